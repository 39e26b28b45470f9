//! One direction of a connection: everything that a packet of that direction needs, on lines of its own.
//!
//! A connection is two halves, the way of its first packet and the way back. A worker that carries one direction
//! writes that half alone, so two workers on the two directions share no line. All fields are atomics with plain loads
//! and stores: counters of a direction that moves between workers may lose a packet, nothing else. What identifies
//! a half is written before the index shows it and stays until no reader can hold it (see [`crate::worker::epoch`]).
//!
//! One half of IPv4 is one cache line of 64 bytes, one of IPv6 two.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use vhost_backend::frame::SNAPSHOT;
use zerocopy::FromZeros;

use super::key::{Compact, Family, Key, V4, V6};
use crate::packet::ip::{ICMP, ICMPV6};
use crate::packet::rewrite::{self, Address, Rewrite, fold};

/// The adjacency of a half that has none yet.
pub const NO_ADJACENCY: u32 = (1 << 24) - 1;

/// What of a packet is to be replaced; also whether there is more to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(u8);

impl Flags {
    const SOURCE: u8 = 1;
    const DESTINATION: u8 = 2;
    const SOURCE_PORT: u8 = 4;
    const DESTINATION_PORT: u8 = 8;
    /// Nothing of the connection's state changes by an ordinary packet.
    pub(super) const SETTLED: u8 = 0x10;
    /// A helper reads along.
    pub(super) const WATCHED: u8 = 0x20;
    /// It has a record: see [`super::balance`].
    pub(super) const BALANCED: u8 = 0x40;
    /// Packets go through a tunnel.
    pub(super) const TUNNELLED: u8 = 0x80;

    /// The source address changes.
    #[inline]
    pub fn source(self) -> bool {
        self.0 & Self::SOURCE != 0
    }
    /// The destination address changes.
    #[inline]
    pub fn destination(self) -> bool {
        self.0 & Self::DESTINATION != 0
    }
    /// The source port (the identifier of an ICMP query) changes.
    #[inline]
    pub fn source_port(self) -> bool {
        self.0 & Self::SOURCE_PORT != 0
    }
    /// The destination port changes.
    #[inline]
    pub fn destination_port(self) -> bool {
        self.0 & Self::DESTINATION_PORT != 0
    }
    /// Anything changes.
    #[inline]
    pub fn any(self) -> bool {
        self.0 & 0xf != 0
    }
    /// The half's packets need [`super::Owner::update`] no more, unless they are TCP segments with SYN, FIN or RST.
    #[inline]
    pub fn settled(self) -> bool {
        self.0 & Self::SETTLED != 0
    }
    /// Ordinary packets need nothing but what the half holds: it is settled, and no other flag asks for more.
    #[inline(always)]
    pub fn is_enough(self) -> bool {
        self.0 & (Self::SETTLED | Self::WATCHED | Self::TUNNELLED) == Self::SETTLED
    }
    /// A helper wants to see the payload.
    #[inline]
    pub fn watched(self) -> bool {
        self.0 & Self::WATCHED != 0
    }
    /// The connection was given to a server: it has a record.
    #[inline]
    pub fn balanced(self) -> bool {
        self.0 & Self::BALANCED != 0
    }
    /// Packets go through a tunnel.
    #[inline]
    pub fn tunnelled(self) -> bool {
        self.0 & Self::TUNNELLED != 0
    }
    pub(super) fn bits(self) -> u8 {
        self.0
    }
    /// There is more to do with packets than to translate them.
    #[inline]
    pub fn special(self) -> bool {
        self.0 & (Self::WATCHED | Self::TUNNELLED) != 0
    }
}

/// A next hop as it was resolved for a half: see [`Half::next_hop`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// The neighbour's slot; [`NO_ADJACENCY`] if there is none.
    pub adjacency: u32,
    /// What the resolution is valid for.
    pub stamp: u32,
    /// The half's flags, which lie in the same word.
    pub flags: Flags,
}

/// Seconds as a half keeps them.
pub(super) const SECONDS_MASK: u64 = (1 << 24) - 1;

/// A direction of a connection.
#[derive(FromZeros)]
#[repr(C, align(64))]
pub struct Half<F: Family> {
    addresses: F::Pair,
    ports: AtomicU32,
    protocol: AtomicU8,
    /// TCP: window scale of who sends this way (bits 0 to 3), whether that is known (bit 6), whether `ack` is (bit 7).
    scale: AtomicU8,
    /// [`Rewrite::ip_delta`].
    delta: AtomicU16,
    new_addresses: F::Pair,
    new_ports: AtomicU32,
    /// TCP: the next sequence number that who sends this way expects, as far as it acknowledged.
    ack: AtomicU32,
    /// Adjacency (bits 0 to 23), flags (24 to 31), stamp (32 to 63): one word, so that they always belong together.
    hop: AtomicU64,
    bytes: AtomicU64,
    /// Second last seen (bits 0 to 23), packets (24 to 63).
    seen: AtomicU64,
    /// For the entry's owner alone: the list that the entry is in. First half: next; second half: previous.
    pub(super) link: AtomicU32,
    /// What concerns both directions. First half: see [`super::table::Holder`]; second half: see [`super::State`].
    pub(super) cold: AtomicU32,
}

const _: () = assert!(size_of::<Half<V4>>() == 64 && size_of::<Half<V6>>() == 128);

impl<F: Family> Half<F> {
    /// Makes it the half of `key` whose packets become those of `to`, with `flags` beside those that tell what changes.
    pub(super) fn fill(&self, key: &Key<F>, to: &Key<F>, hop: Option<(u32, u32)>, flags: u8, now: u32) {
        F::store(&self.addresses, key.source, key.destination);
        self.ports.store(key.ports(), Ordering::Relaxed);
        self.protocol.store(key.protocol, Ordering::Relaxed);
        self.scale.store(0, Ordering::Relaxed);
        let sum = |key: &Key<F>| key.source.sum() + key.destination.sum();
        self.delta.store(rewrite::delta(sum(key), sum(to)), Ordering::Relaxed);
        F::store(&self.new_addresses, to.source, to.destination);
        self.new_ports.store(to.ports(), Ordering::Relaxed);
        self.ack.store(0, Ordering::Relaxed);
        let mut flags = flags;
        for (differs, flag) in [
            (key.source != to.source, Flags::SOURCE),
            (key.destination != to.destination, Flags::DESTINATION),
            (key.source_port != to.source_port, Flags::SOURCE_PORT),
            (key.destination_port != to.destination_port, Flags::DESTINATION_PORT),
        ] {
            if differs {
                flags |= flag;
            }
        }
        let (adjacency, stamp) = hop.unwrap_or((NO_ADJACENCY, 0));
        self.hop.store(hop_word(adjacency, stamp, flags), Ordering::Relaxed);
        self.bytes.store(0, Ordering::Relaxed);
        self.seen.store(u64::from(now) & SECONDS_MASK, Ordering::Relaxed);
    }

    /// Whether packets of `key` belong here.
    #[inline(always)]
    pub fn matches(&self, key: &Compact<F>) -> bool {
        F::load(&self.addresses) == key.both
            && self.ports.load(Ordering::Relaxed) == key.ports
            && self.protocol.load(Ordering::Relaxed) == key.protocol
    }

    /// Whose packets belong here.
    pub fn key(&self) -> Key<F> {
        self.key_of(&self.addresses, &self.ports)
    }

    /// What its packets become.
    pub fn translated(&self) -> Key<F> {
        self.key_of(&self.new_addresses, &self.new_ports)
    }

    fn key_of(&self, pair: &F::Pair, ports: &AtomicU32) -> Key<F> {
        let (source, destination) = F::apart(F::load(pair));
        let ports = ports.load(Ordering::Relaxed);
        Key {
            source,
            destination,
            source_port: (ports >> 16) as u16,
            destination_port: ports as u16,
            protocol: self.protocol.load(Ordering::Relaxed),
        }
    }

    /// What is to be done to its packets, if anything ([`Flags::any`]).
    #[inline]
    pub fn rewrite(&self) -> Rewrite<F::Address> {
        let (source, destination) = F::apart(F::load(&self.new_addresses));
        let (old, new) = (self.ports.load(Ordering::Relaxed), self.new_ports.load(Ordering::Relaxed));
        let ip_delta = self.delta.load(Ordering::Relaxed);
        let protocol = self.protocol.load(Ordering::Relaxed);
        // Of an ICMP query the identifier is in the packet as it is here; the type stays what it is.
        let mask = if matches!(protocol, ICMP | ICMPV6) { 0xffff_0000 } else { 0xffff_ffff };
        let words = |ports: u32| (ports >> 16) + (ports & 0xffff);
        let ports = fold(words(!old & mask) + words(new & mask));
        // Sums do not care which byte of a word comes first as long as all agree; there it is as in memory.
        let ports = u32::from(u16::from_ne_bytes(ports.to_be_bytes()));
        let l4_delta = if protocol == ICMP { fold(ports) } else { fold(ports + u32::from(ip_delta)) };
        Rewrite {
            source,
            destination,
            source_port: (new >> 16) as u16,
            destination_port: new as u16,
            ip_delta,
            l4_delta,
        }
    }

    /// Translates an ordinary packet on its way to the next hop: what [`Half::rewrite`] says, for less.
    #[inline(always)]
    pub fn forward_ordinary(&self, head: &mut [u8; SNAPSHOT], partial: bool) {
        let (source, destination) = F::apart(F::load(&self.new_addresses));
        let (ports, delta) = (self.new_ports.load(Ordering::Relaxed), self.delta.load(Ordering::Relaxed));
        rewrite::forward_ordinary(head, source, destination, ports, delta, partial);
    }

    /// Flags alone.
    #[inline(always)]
    pub fn flags(&self) -> Flags {
        Flags((self.hop.load(Ordering::Relaxed) >> 24) as u8)
    }

    /// The next hop that was kept; valid if its stamp is what the routing tables say it must be.
    #[inline(always)]
    pub fn next_hop(&self) -> NextHop {
        let word = self.hop.load(Ordering::Relaxed);
        NextHop {
            adjacency: word as u32 & NO_ADJACENCY,
            stamp: (word >> 32) as u32,
            flags: Flags((word >> 24) as u8),
        }
    }

    /// Keeps a next hop.
    #[cold]
    pub fn set_next_hop(&self, adjacency: u32, stamp: u32) {
        self.update_hop(|word| hop_word(adjacency, stamp, (word >> 24) as u8));
    }

    pub(super) fn set_flags(&self, flags: u8) {
        self.hop.fetch_or(u64::from(flags) << 24, Ordering::Relaxed);
    }

    pub(super) fn clear_flags(&self, flags: u8) {
        self.hop.fetch_and(!(u64::from(flags) << 24), Ordering::Relaxed);
    }

    fn update_hop(&self, change: impl Fn(u64) -> u64) {
        let mut word = self.hop.load(Ordering::Relaxed);
        while let Err(other) =
            self.hop.compare_exchange_weak(word, change(word), Ordering::Relaxed, Ordering::Relaxed)
        {
            word = other;
        }
    }

    /// Counts a packet of `bytes` and notes that the half was seen. For the worker that carries it.
    #[inline(always)]
    pub fn touch(&self, now: u32, bytes: u32) {
        self.bytes
            .store(self.bytes.load(Ordering::Relaxed).wrapping_add(u64::from(bytes)), Ordering::Relaxed);
        let seen = self.seen.load(Ordering::Relaxed) & !SECONDS_MASK;
        self.seen.store(seen.wrapping_add(1 << 24) | u64::from(now) & SECONDS_MASK, Ordering::Relaxed);
    }

    /// Notes that the connection lives, by another way than a packet.
    pub(super) fn renew(&self, now: u32) {
        let now = u64::from(now) & SECONDS_MASK;
        let seen = self.seen.load(Ordering::Relaxed);
        // If its worker counts a packet at the same time, that is as good.
        let _ = self.seen.compare_exchange(
            seen,
            seen & !SECONDS_MASK | now,
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
    }

    /// As [`Half::touch`], for a TCP segment with ACK of a settled connection: notes what it acknowledges, too.
    #[inline(always)]
    pub fn touch_tcp(&self, now: u32, bytes: u32, ack: u32) {
        self.touch(now, bytes);
        if ack.wrapping_sub(self.ack.load(Ordering::Relaxed)) as i32 > 0 {
            self.ack.store(ack, Ordering::Relaxed);
        }
    }

    /// Packets seen.
    pub fn packets(&self) -> u64 {
        self.seen.load(Ordering::Relaxed) >> 24
    }

    /// Their bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Seconds since it was last seen. A worker whose clock is a second ahead makes that 0, not a lot.
    #[inline]
    pub fn age(&self, now: u32) -> u32 {
        let seen = self.seen.load(Ordering::Relaxed) & SECONDS_MASK;
        let age = u64::from(now).wrapping_sub(seen) & SECONDS_MASK;
        if age > SECONDS_MASK / 2 { 0 } else { age as u32 }
    }

    /// The second (of 24 bits) when it was last seen.
    pub(super) fn seen(&self) -> u32 {
        (self.seen.load(Ordering::Relaxed) & SECONDS_MASK) as u32
    }

    /// What its sender acknowledged last, whether known or not.
    pub(super) fn ack(&self) -> u32 {
        self.ack.load(Ordering::Relaxed)
    }

    /// What is known of its sender's window, as one byte.
    pub(super) fn scale(&self) -> u8 {
        self.scale.load(Ordering::Relaxed)
    }

    /// Makes it what it was elsewhere, beyond its keys: flags that are not told by those, window, acknowledged number,
    /// bytes. Nobody has seen it yet.
    pub(super) fn restore(&self, flags: u8, scale: u8, ack: u32, bytes: u64) {
        self.clear_flags(!0xf);
        self.set_flags(flags);
        self.scale.store(scale, Ordering::Relaxed);
        self.ack.store(ack, Ordering::Relaxed);
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    /// Forgets what was counted.
    pub(super) fn forget_counts(&self) {
        self.bytes.store(0, Ordering::Relaxed);
        self.seen.fetch_and(SECONDS_MASK, Ordering::Relaxed);
    }

    /// Likewise how many packets were seen, and when the last one was.
    pub(super) fn restore_seen(&self, packets: u64, seen: u32) {
        self.seen.store(packets << 24 | u64::from(seen) & SECONDS_MASK, Ordering::Relaxed);
    }

    /// The next sequence number that this half's sender expects, if anything tells.
    pub(super) fn expects(&self) -> Option<u32> {
        (self.scale.load(Ordering::Relaxed) & 0x80 != 0).then(|| self.ack.load(Ordering::Relaxed))
    }

    /// Moves that number on, never back unless `anew`.
    pub(super) fn expect(&self, next: u32, anew: bool) {
        let known = !anew && self.scale.load(Ordering::Relaxed) & 0x80 != 0;
        if !known || next.wrapping_sub(self.ack.load(Ordering::Relaxed)) as i32 > 0 {
            self.ack.store(next, Ordering::Relaxed);
            self.scale.fetch_or(0x80, Ordering::Relaxed);
        }
    }

    /// Notes the window scale that its sender announced in a SYN.
    pub(super) fn set_scale(&self, scale: u8) {
        let known = self.scale.load(Ordering::Relaxed) & 0x80;
        self.scale.store(known | 0x40 | scale.min(14), Ordering::Relaxed);
    }

    /// The largest window that its sender can offer.
    pub(super) fn largest_window(&self) -> u32 {
        let scale = self.scale.load(Ordering::Relaxed);
        // A connection that was picked up in its midst may have any scale.
        0xffff << if scale & 0x40 != 0 { scale & 0xf } else { 14 }
    }
}

fn hop_word(adjacency: u32, stamp: u32, flags: u8) -> u64 {
    u64::from(stamp) << 32 | u64::from(flags) << 24 | u64::from(adjacency & NO_ADJACENCY)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::conntrack::key::{Key4, Key6};
    use crate::packet::rewrite::Ends;

    fn half<F: Family>() -> Box<Half<F>> {
        Half::new_box_zeroed().expect("memory")
    }

    #[test]
    fn counters_and_seconds_share_a_word_without_harm() {
        let half = half::<V4>();
        half.fill(&Key4::default(), &Key4::default(), None, 0, 5);
        for _ in 0..3 {
            half.touch((1 << 24) - 1, 1500);
        }
        assert_eq!((half.packets(), half.bytes(), half.age((1 << 24) + 1)), (3, 4500, 2));
        half.touch(7, 1);
        assert_eq!((half.packets(), half.age(6), half.age(9)), (4, 0, 2));
    }

    #[test]
    fn flags_and_next_hop_keep_out_of_each_others_way() {
        let half = half::<V6>();
        let to = Key6 { source: 5, destination_port: 1, ..Key6::default() };
        half.fill(&Key6::default(), &to, None, Flags::WATCHED, 0);
        assert_eq!(half.next_hop().adjacency, NO_ADJACENCY);
        half.set_next_hop(77, 0xffff_fff0);
        half.set_flags(Flags::SETTLED);
        let hop = half.next_hop();
        assert_eq!((hop.adjacency, hop.stamp), (77, 0xffff_fff0));
        let flags = hop.flags;
        assert!(
            flags.source() && flags.destination_port() && flags.settled() && flags.watched() && flags.any()
        );
        assert!(!flags.destination() && !flags.source_port());
        half.clear_flags(Flags::SETTLED);
        assert_eq!((half.next_hop().adjacency, half.flags().settled()), (77, false));
    }

    /// One's complement has two zeros.
    fn same(a: u16, b: u16) -> bool {
        a == b || [a, b].iter().all(|&x| x == 0 || x == 0xffff)
    }

    fn check<F: Family>(old: Key<F>, new: Key<F>) {
        let half = half::<F>();
        half.fill(&old, &new, None, 0, 0);
        let ends = |key: &Key<F>| Ends {
            source: key.source,
            destination: key.destination,
            source_port: key.source_port,
            destination_port: key.destination_port,
        };
        let (kept, made) = (half.rewrite(), Rewrite::new(old.protocol, &ends(&old), &ends(&new)));
        assert!(same(kept.ip_delta, made.ip_delta), "{kept:x?} {made:x?}");
        assert!(same(kept.l4_delta, made.l4_delta), "{kept:x?} {made:x?}");
        assert_eq!((kept.source, kept.destination), (new.source, new.destination));
        assert_eq!(ends(&half.key()), ends(&old));
        assert_eq!(ends(&half.translated()), ends(&new));
    }

    proptest! {
        #[test]
        fn a_half_keeps_the_whole_translation(
            old: (u32, u32, u16, u16), new: (u32, u32, u16, u16),
            protocol in proptest::sample::select(vec![6, 17, ICMP, 33])
        ) {
            let key = |(source, destination, source_port, destination_port)| {
                // What is no port stays as it is.
                let (source_port, destination_port) = match protocol {
                    ICMP => (source_port, 8),
                    33 => (0, 0),
                    _ => (source_port, destination_port),
                };
                Key4 { source, destination, source_port, destination_port, protocol }
            };
            check(key(old), key(new));
        }

        #[test]
        fn also_with_long_addresses(
            old: (u128, u128, u16), new: (u128, u128, u16), protocol in proptest::sample::select(vec![6, 17, ICMPV6])
        ) {
            let key = |(source, destination, source_port)| Key6 {
                source, destination, source_port, destination_port: 128, protocol,
            };
            check(key(old), key(new));
        }
    }
}
