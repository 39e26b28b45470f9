//! Packets that the switch routes and that are not as ordinary as [`super::ordinary`] wants them: connections that
//! begin or end, ICMP, fragments, options, tags, offloads that do not fit, refusals.
//!
//! A burst is looked at in passes, each asking for the memory of the next: headers and hashes; the index of
//! connections; the connections. An established connection's half holds everything that its packets need. A packet
//! without one takes the long way ([`super::first`]) or, where no rule asks for connections, that of the prefixes.
#![forbid(unsafe_code)]

use vhost_backend::frame::{BURST, Burst};

use super::family::Routed;
use super::icmp::Error;
use super::next_hop::{Hop, next_hop};
use super::{Arrival, Stage, UNTAGGED, checks};
use crate::conntrack::{Fate, Half, Key, Packet, Ref};
use crate::drops::DropReason;
use crate::packet::headers::{Fragment, Headers};
use crate::packet::rewrite::decrement_ttl;

/// A packet of the burst.
pub(super) struct Item<F: Routed> {
    pub(super) i: usize,
    pub(super) headers: Headers,
    pub(super) key: Key<F>,
    pub(super) hash: u64,
    candidate: Option<Ref>,
}

impl<F: Routed> Item<F> {
    pub(super) fn new(i: usize, headers: Headers, key: Key<F>, hash: u64) -> Self {
        Self { i, headers, key, hash, candidate: None }
    }
}

/// What becomes of a packet, where it does not simply go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Dropped and counted.
    Drop(DropReason),
    /// Dropped, counted, and its sender is told.
    Tell(DropReason, Error),
    /// Dropped, counted, and its sender is told that nobody wants to talk to it: TCP by a reset.
    Reject(DropReason),
    /// It is for the switch itself.
    Local,
    /// Its connection's server is gone, and the connection with it: it begins another one, if it may.
    Renew,
}

impl From<DropReason> for Refusal {
    fn from(reason: DropReason) -> Self {
        Self::Drop(reason)
    }
}

impl Stage {
    /// Routes the frames of `frames`, untagged IP packets of one family addressed to `at.interface`.
    pub(super) fn route<F: Routed>(&mut self, burst: &mut Burst, frames: u64, at: &Arrival<'_>) {
        let mut items = [const { None::<Item<F>> }; BURST];
        let mut count = 0;
        let table = at.router.conntrack.table::<F>();
        let tracked = at.router.is_tracked();
        let mut left = frames;
        while left != 0 {
            let i = left.trailing_zeros() as usize;
            left &= left - 1;
            match read::<F>(burst, i) {
                Ok((headers, key)) => {
                    let hash = table.hash(&key);
                    if tracked {
                        table.prefetch(hash);
                    }
                    items[count] = Some(Item::new(i, headers, key, hash));
                    count += 1;
                }
                Err(reason) => at.counted.drop(reason, 1),
            }
        }
        let items = &mut items[..count];
        if tracked {
            for item in items.iter_mut().flatten() {
                item.candidate = table.candidate(item.hash);
                if let Some(candidate) = item.candidate {
                    table.prefetch_half(candidate);
                }
            }
        }
        for item in items.iter().flatten() {
            let done = if tracked { self.tracked(burst, item, at) } else { self.plain(burst, item, at) };
            if let Err(refusal) = done {
                self.refuse(burst, item.i, &item.headers, refusal, at);
            }
        }
    }

    /// A packet that needs no connection.
    pub(super) fn plain<F: Routed>(
        &mut self,
        burst: &mut Burst,
        item: &Item<F>,
        at: &Arrival<'_>,
    ) -> Result<(), Refusal> {
        F::admit(&item.key, at)?;
        let hop = next_hop::<F>(at, item.key.destination, item.hash)?;
        self.send_on(burst, item, hop, at, |head, headers, _| decrement_ttl(head, headers))
    }

    /// A packet that belongs to a connection, or begins one.
    fn tracked<F: Routed>(
        &mut self,
        burst: &mut Burst,
        item: &Item<F>,
        at: &Arrival<'_>,
    ) -> Result<(), Refusal> {
        let table = at.router.conntrack.table::<F>();
        if item.headers.fragment != Fragment::None || item.headers.icmp_error {
            return self.unusual(burst, item, at);
        }
        let found = item
            .candidate
            .filter(|&candidate| table.half(candidate).matches(&item.key.compact()))
            .or_else(|| table.find(&item.key, item.hash));
        match found {
            Some(half) => self.established(burst, item, half, at),
            None => self.first(burst, item, at),
        }
    }

    /// A packet of a connection.
    #[inline]
    pub(super) fn established<F: Routed>(
        &mut self,
        burst: &mut Burst,
        item: &Item<F>,
        of: Ref,
        at: &Arrival<'_>,
    ) -> Result<(), Refusal> {
        let table = at.router.conntrack.table::<F>();
        let half = table.half(of);
        let head = burst.head(item.i);
        let flags = half.flags();
        if flags.settled() && !Packet::is_special(&item.headers) {
            match Packet::acknowledged(&item.headers, head) {
                Some(ack) => half.touch_tcp(at.now, item.headers.len, ack),
                None => half.touch(at.now, item.headers.len),
            }
        } else {
            match self.local.owner::<F>().update(table, of, &Packet::of(&item.headers, head), at.now) {
                Fate::Accept => {}
                Fate::Invalid => return Err(DropReason::CtInvalid.into()),
                Fate::Renew => return self.first(burst, item, at),
            }
        }
        match self.carry_any(burst, item, of, at) {
            Err(Refusal::Renew) => self.first(burst, item, at),
            done => done,
        }
    }

    /// A packet of any connection that has been counted.
    #[inline]
    pub(super) fn carry_any<F: Routed>(
        &mut self,
        burst: &mut Burst,
        item: &Item<F>,
        of: Ref,
        at: &Arrival<'_>,
    ) -> Result<(), Refusal> {
        let flags = at.router.conntrack.table::<F>().half(of).flags();
        match (flags.watched(), flags.tunnelled()) {
            (false, false) => self.carry(burst, item, of, at),
            (_, true) => self.carry_through(burst, item, of, at),
            (true, _) => self.watched(burst, item, of, at),
        }
    }

    /// A packet of a connection that has been counted.
    #[inline]
    pub(super) fn carry<F: Routed>(
        &mut self,
        burst: &mut Burst,
        item: &Item<F>,
        of: Ref,
        at: &Arrival<'_>,
    ) -> Result<(), Refusal> {
        let half = at.router.conntrack.table::<F>().half(of);
        let hop = self.hop_of::<F>(of, item.hash, at)?;
        if half.flags().any() {
            let rewrite = half.rewrite();
            self.send_on(burst, item, hop, at, |head, headers, partial| {
                rewrite.forward(head, headers, partial)
            })
        } else {
            self.send_on(burst, item, hop, at, |head, headers, _| decrement_ttl(head, headers))
        }
    }

    /// The next hop of a half's packets.
    #[inline]
    pub(super) fn hop_of<F: Routed>(&mut self, of: Ref, hash: u64, at: &Arrival<'_>) -> Result<Hop, Refusal> {
        match Self::kept_hop(at.router.conntrack.table::<F>().half(of), at) {
            Some(hop) => Ok(hop),
            None => self.find_hop::<F>(of, hash, at),
        }
    }

    /// The next hop that a half has kept, if it is still the right one.
    #[inline]
    fn kept_hop<F: Routed>(half: &Half<F>, at: &Arrival<'_>) -> Option<Hop> {
        let kept = half.next_hop();
        let slot = at.router.neighbours.slot(kept.adjacency)?;
        (kept.stamp == at.router.stamp(slot.version())).then_some(Hop { adjacency: kept.adjacency })
    }

    /// Looks for the next hop of a half's packets and keeps it.
    #[cold]
    fn find_hop<F: Routed>(&mut self, of: Ref, hash: u64, at: &Arrival<'_>) -> Result<Hop, Refusal> {
        let half = at.router.conntrack.table::<F>().half(of);
        // Before the lookup: what changes meanwhile makes the stamp void.
        let generation = at.router.fib.generation();
        let hop = if half.flags().balanced() && !of.is_reply() {
            self.hop_to_server::<F>(of, hash, at)?
        } else {
            next_hop::<F>(at, half.translated().destination, hash)?
        };
        if let Some(slot) = at.router.neighbours.slot(hop.adjacency) {
            half.set_next_hop(hop.adjacency, generation.wrapping_add(slot.version()));
        }
        Ok(hop)
    }
}

/// Reads a packet's headers and key.
#[inline]
fn read<F: Routed>(burst: &Burst, i: usize) -> Result<(Headers, Key<F>), DropReason> {
    let head = burst.head(i);
    let headers = Headers::parse(head, burst.frame_len(i), UNTAGGED, F::V6)?;
    // Nothing to be done where there are none, which is known by then.
    checks::options(head, &headers, false)?;
    let key = Key::of(&headers, head);
    Ok((headers, key))
}
