//! A part of the table: packets, which of their bytes have passed, and the fragments that wait.
#![forbid(unsafe_code)]

use vhost_backend::net_header::NetHeader;

use super::{Fate, First, Key, Piece};
use crate::drops::DropReason;

/// Packets of a shard.
const PACKETS: usize = 64;
/// How many of them may be of one port.
const PACKETS_OF_PORT: usize = PACKETS / 2;
/// Fragments that may wait in a shard.
const SLOTS: usize = 64;
/// How many of them may be of one port: more than a packet of 64 KiB has at an MTU of 1,500.
const SLOTS_OF_PORT: usize = SLOTS * 3 / 4;
/// Longest frame that can wait.
const SLOT_LEN: usize = 9728;
/// Words of a packet's bit map: a bit for each 8 bytes.
const WORDS: usize = 65536 / 8 / 64;
/// Seconds that fragments are remembered for: as Linux does it (ipfrag_time).
const TIME_V4: u32 = 30;
const TIME_V6: u32 = 60;
/// Seconds after which another first fragment begins another packet of the same identification.
const ANEW: u32 = 2;

/// A packet of which fragments have come.
#[derive(Clone, Copy)]
struct Packet {
    key: Key,
    born: u32,
    first: Option<First>,
    /// Pieces overlapped: nothing more of it passes.
    spoiled: bool,
    /// Its length, once its last piece has passed.
    end: Option<usize>,
    /// The furthest byte that has passed.
    reach: usize,
    /// Units of 8 bytes that have passed.
    passed: usize,
}

/// A fragment that waits for packet `packet`.
#[derive(Clone, Copy)]
struct Slot {
    packet: usize,
    /// Order of arrival.
    number: u64,
    port: u16,
    len: usize,
    metadata: NetHeader,
}

pub(super) struct Shard {
    packets: [Option<Packet>; PACKETS],
    slots: [Option<Slot>; SLOTS],
    arrivals: u64,
    // Zeroed pages: taken when they are used.
    bits: Box<[u64]>,
    bytes: Box<[u8]>,
}

impl Default for Shard {
    fn default() -> Self {
        Self {
            packets: [None; PACKETS],
            slots: [None; SLOTS],
            arrivals: 0,
            bits: vec![0; PACKETS * WORDS].into_boxed_slice(),
            bytes: vec![0; SLOTS * SLOT_LEN].into_boxed_slice(),
        }
    }
}

type Lost<'a> = &'a mut dyn FnMut(u16, DropReason, u64);

impl Packet {
    fn is_old(&self, now: u32) -> bool {
        now.wrapping_sub(self.born) >= if self.key.v6 { TIME_V6 } else { TIME_V4 }
    }
}

impl Shard {
    pub(super) fn first(
        &mut self,
        piece: &Piece,
        first: First,
        now: u32,
        mut each: impl FnMut(&[u8], NetHeader),
        lost: Lost<'_>,
    ) -> Result<(), DropReason> {
        let mut at = self.find_or_add(&piece.key, now, lost);
        if let Some(Packet { first: Some(_), born, .. }) = self.packets[at]
            && now.wrapping_sub(born) >= ANEW
        {
            // Its predecessor's missing pieces will not come any more; identifications are used again.
            self.forget(at, DropReason::FragmentTimeout, lost);
            at = self.find_or_add(&piece.key, now, lost);
        }
        self.pass(at, piece)?;
        if let Some(packet) = &mut self.packets[at] {
            packet.first = Some(first);
        }
        let mut waiting: [Option<(u64, usize)>; SLOTS] = [None; SLOTS];
        for (i, slot) in self.slots.iter().enumerate() {
            waiting[i] = slot.filter(|slot| slot.packet == at).map(|slot| (slot.number, i));
        }
        waiting.sort_unstable();
        for (_, i) in waiting.into_iter().flatten() {
            if let Some(slot) = self.slots[i].take() {
                each(&self.bytes[i * SLOT_LEN..][..slot.len], slot.metadata);
            }
        }
        Ok(())
    }

    pub(super) fn later(
        &mut self,
        piece: &Piece,
        now: u32,
        metadata: NetHeader,
        fill: impl FnOnce(&mut [u8]) -> Option<usize>,
        lost: Lost<'_>,
    ) -> Result<Fate, DropReason> {
        let at = self.find_or_add(&piece.key, now, lost);
        let Some(first) = self.packets[at].and_then(|packet| packet.first) else {
            return self.hold(at, piece.key.port, metadata, fill);
        };
        if self.pass(at, piece)? {
            self.packets[at] = None;
        }
        Ok(Fate::Pass(first))
    }

    /// Keeps a fragment until its first one comes.
    fn hold(
        &mut self,
        packet: usize,
        port: u16,
        metadata: NetHeader,
        fill: impl FnOnce(&mut [u8]) -> Option<usize>,
    ) -> Result<Fate, DropReason> {
        let held = self.slots.iter().flatten().filter(|slot| slot.port == port).count();
        let free = self.slots.iter().position(Option::is_none);
        let (Some(i), true) = (free, held < SLOTS_OF_PORT) else { return Err(DropReason::FragmentNoRoom) };
        let space = &mut self.bytes[i * SLOT_LEN..][..SLOT_LEN];
        let len = fill(space).filter(|&len| len <= SLOT_LEN).ok_or(DropReason::FragmentNoRoom)?;
        self.arrivals += 1;
        self.slots[i] = Some(Slot { packet, number: self.arrivals, port, len, metadata });
        Ok(Fate::Held)
    }

    /// Where the packet is, or is from now on.
    fn find_or_add(&mut self, key: &Key, now: u32, lost: Lost<'_>) -> usize {
        let found = self.packets.iter().position(|p| p.is_some_and(|p| p.key == *key));
        if let Some(at) = found {
            if self.packets[at].is_some_and(|packet| !packet.is_old(now)) {
                return at;
            }
            self.forget(at, DropReason::FragmentTimeout, lost);
        }
        let at = self.make_room(key.port, now, lost);
        self.packets[at] = Some(Packet {
            key: *key,
            born: now,
            first: None,
            spoiled: false,
            end: None,
            reach: 0,
            passed: 0,
        });
        self.bits[at * WORDS..][..WORDS].fill(0);
        at
    }

    /// A place for a packet of `port`, at the cost of the port's own oldest if it has used up its share.
    fn make_room(&mut self, port: u16, now: u32, lost: Lost<'_>) -> usize {
        let of_port = |packet: &Packet| packet.key.port == port;
        let own = self.packets.iter().flatten().filter(|packet| of_port(packet)).count();
        let free = self.packets.iter().position(Option::is_none);
        if let (Some(at), true) = (free, own < PACKETS_OF_PORT) {
            return at;
        }
        let age = |packet: &Packet| now.wrapping_sub(packet.born);
        let candidates = self.packets.iter().enumerate().filter_map(|(at, p)| p.map(|p| (at, p)));
        let oldest = candidates
            .filter(|(_, packet)| own < PACKETS_OF_PORT || of_port(packet))
            .max_by_key(|(_, packet)| age(packet));
        // There is one: either the port has its share, or the shard is full.
        let at = oldest.map_or(0, |(at, _)| at);
        let reason = match self.packets[at] {
            Some(packet) if packet.is_old(now) => DropReason::FragmentTimeout,
            _ => DropReason::FragmentNoRoom,
        };
        self.forget(at, reason, lost);
        at
    }

    /// Forgets a packet, and drops what waits for its first fragment.
    fn forget(&mut self, at: usize, reason: DropReason, lost: Lost<'_>) {
        for slot in &mut self.slots {
            if let Some(waited) = slot.take_if(|slot| slot.packet == at) {
                lost(waited.port, reason, 1);
            }
        }
        self.packets[at] = None;
    }

    pub(super) fn expire(&mut self, now: u32, lost: Lost<'_>) {
        for at in 0..PACKETS {
            if self.packets[at].is_some_and(|packet| packet.is_old(now)) {
                self.forget(at, DropReason::FragmentTimeout, lost);
            }
        }
    }

    /// Notes that a piece passes, or says why it must not. True if the packet is whole with it.
    fn pass(&mut self, at: usize, piece: &Piece) -> Result<bool, DropReason> {
        let Some(packet) = &mut self.packets[at] else { return Ok(false) };
        if packet.spoiled {
            return Err(DropReason::FragmentOverlap);
        }
        let beyond = packet.end.is_some_and(|end| piece.to > end);
        let ends_twice = !piece.more && (packet.end.is_some() || packet.reach > piece.to);
        let bits = &mut self.bits[at * WORDS..][..WORDS];
        let (from, to) = (piece.from / 8, piece.to.div_ceil(8));
        let known = words(from, to).map(|(i, mask)| (bits[i] & mask).count_ones() as usize).sum::<usize>();
        match known {
            0 if beyond || ends_twice => return Err(DropReason::FragmentInvalid),
            0 => {}
            // A copy of what has passed, or part of it: that alone harms nobody if it does not go on.
            _ if known == to - from => return Err(DropReason::FragmentOverlap),
            _ => {
                packet.spoiled = true;
                return Err(DropReason::FragmentOverlap);
            }
        }
        for (i, mask) in words(from, to) {
            bits[i] |= mask;
        }
        packet.passed += to - from;
        packet.reach = packet.reach.max(piece.to);
        if !piece.more {
            packet.end = Some(piece.to);
        }
        Ok(packet.end.is_some_and(|end| packet.passed == end.div_ceil(8)))
    }
}

/// The words of a bit map with the bits `from` to `to` (exclusive), each with the mask of these bits.
fn words(from: usize, to: usize) -> impl Iterator<Item = (usize, u64)> {
    (from / 64..to.div_ceil(64)).map(move |i| {
        let low = from.saturating_sub(i * 64).min(64);
        let high = (to - i * 64).min(64);
        let below = |n: usize| if n == 64 { u64::MAX } else { (1 << n) - 1 };
        (i, below(high) & !below(low))
    })
}

#[cfg(test)]
impl Shard {
    /// Packets, and fragments that wait.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.packets.iter().flatten().count(), self.slots.iter().flatten().count())
    }
}
