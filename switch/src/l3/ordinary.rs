//! Ordinary packets ([`crate::packet::ordinary`]) on their ordinary way: where connections are tracked, of one that is
//! established; where they are not, by the prefixes. What is carried here costs a few dozen instructions; whatever is
//! not, is left untouched for [`super::forward`], which can do everything.
//!
//! A burst is looked at in passes, each asking for the memory of the next. Frames leave in the order in which they came
//! even if some of them are left for later, since what leaves is a mask over the burst.
#![forbid(unsafe_code)]

use vhost_backend::frame::{BURST, Burst, SNAPSHOT};
use vhost_backend::net_header::NEEDS_CSUM;

use super::family::Routed;
use super::next_hop::{Hop, start_of};
use super::route::{NextHopSetId, PathId};
use super::{Arrival, Stage};
use crate::conntrack::{Family, Half, Key, Ref};
use crate::packet::ethernet::Mac;
use crate::packet::ordinary::{self, NETWORK, is_ordinary, transport};
use crate::packet::rewrite::{self, Address};

/// A packet of a connection.
#[derive(Clone, Copy, Default)]
struct Item<F: Family> {
    key: Key<F>,
    hash: u64,
    half: Option<Ref>,
    frame: u8,
}

/// The first word of frames to an address.
struct Addressed(u64);

impl Addressed {
    const MASK: u64 = (1 << 48) - 1;

    fn to(mac: Mac) -> Self {
        let [a, b, c, d, e, f] = mac.0;
        Self(u64::from_le_bytes([a, b, c, d, e, f, 0, 0]))
    }

    #[inline(always)]
    fn is(&self, head: &[u8; SNAPSHOT]) -> bool {
        let start = u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|at| head[at]));
        start & Self::MASK == self.0
    }
}

/// The numbers of the frames of a mask.
#[inline(always)]
fn each(mut frames: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let i = frames.trailing_zeros() as usize;
        frames = frames.checked_sub(1)? & frames;
        Some(i % BURST)
    })
}

#[inline(always)]
fn key<F: Routed>(head: &[u8; SNAPSHOT]) -> Key<F> {
    let (source, destination) = F::Address::read(head, NETWORK);
    let (source_port, destination_port) = ordinary::ports::<F::Address>(head);
    let protocol = ordinary::protocol::<F::Address>(head);
    Key { source, destination, source_port, destination_port, protocol }
}

impl Stage {
    /// Carries those of `frames` that are ordinary, of family `F`, and untagged to `at.interface`; the mask of all
    /// others. [`Stage::end_ways`] sends them.
    pub(super) fn ordinary<F: Routed>(&mut self, burst: &mut Burst, frames: u64, at: &Arrival<'_>) -> u64 {
        match (at.interface.vlan, at.router.is_tracked()) {
            (0, true) => self.ordinary_tracked::<F>(burst, frames, at),
            (0, false) => self.ordinary_plain::<F>(burst, frames, at),
            _ => frames,
        }
    }

    fn ordinary_tracked<F: Routed>(&mut self, burst: &mut Burst, frames: u64, at: &Arrival<'_>) -> u64 {
        let table = at.router.conntrack.table::<F>();
        let ours = Addressed::to(at.interface.mac);
        let mut items = [Item::<F>::default(); BURST];
        let mut count = 0;
        for i in each(frames) {
            let (head, head_len, len) = burst.start(i);
            if ours.is(head) && is_ordinary::<F::Address>(head, head_len, len) {
                let key = key::<F>(head);
                let hash = table.hash(&key);
                table.prefetch(hash);
                items[count % BURST] = Item { key, hash, half: None, frame: i as u8 };
                count += 1;
            }
        }
        let items = &mut items[..count];
        for item in items.iter_mut() {
            item.half = table.candidate(item.hash);
            if let Some(half) = item.half {
                table.prefetch_half(half);
            }
        }
        let mut left = frames;
        for item in items.iter() {
            let i = usize::from(item.frame);
            let Some(half) = item.half.map(|half| table.half(half)) else { continue };
            let kept = half.next_hop();
            if !half.matches(&item.key) || !kept.flags.is_enough() {
                continue;
            }
            let Some(way) = self.way_kept(kept.adjacency, kept.stamp, at) else { continue };
            if !way.fits(burst.frame_len(i)) {
                continue;
            }
            let metadata = burst.header(i);
            let partial = metadata.flags & NEEDS_CSUM != 0
                && usize::from(metadata.csum_start) == transport::<F::Address>();
            let head = burst.snapshot_mut(i);
            touch(half, head, at.now);
            if kept.flags.any() {
                half.rewrite().forward_ordinary(head, partial);
            } else {
                rewrite::decrement_ttl_ordinary::<F::Address>(head);
            }
            way.take(i, head);
            left &= !(1 << i);
        }
        left
    }

    fn ordinary_plain<F: Routed>(&mut self, burst: &mut Burst, frames: u64, at: &Arrival<'_>) -> u64 {
        let fib = &at.router.fib;
        let ours = Addressed::to(at.interface.mac);
        let mut numbers = [0_u8; BURST];
        let mut destinations = [F::Address::default(); BURST];
        let mut count = 0;
        for i in each(frames) {
            let (head, head_len, len) = burst.start(i);
            if !ours.is(head) || !is_ordinary::<F::Address>(head, head_len, len) {
                continue;
            }
            let (source, destination) = F::Address::read(head, NETWORK);
            if F::may_pass(source, destination, at) {
                (numbers[count % BURST], destinations[count % BURST]) = (i as u8, destination);
                count += 1;
            }
        }
        let mut sets = [NextHopSetId::NONE; BURST];
        F::lookup_many(fib, &destinations[..count], &mut sets[..count]);

        // Packets that follow each other mostly take the same path.
        let mut last = (PathId::NONE, None);
        let mut left = frames;
        for (n, &destination) in destinations[..count].iter().enumerate() {
            let i = usize::from(numbers[n]);
            let path = fib.choose(sets[n], || {
                let key = key::<F>(burst.snapshot(i));
                at.router.conntrack.table::<F>().hash(&key) as u32
            });
            if path != last.0 {
                let hop = start_of(at, path, F::wide(destination)).ok();
                // To a network of our own each packet may go elsewhere.
                last = if fib.path(path).is_via() { (path, hop) } else { (PathId::NONE, hop) };
            }
            let Some(Hop { adjacency }) = last.1 else { continue };
            let way = self.way_to(Hop { adjacency }, at);
            if !way.fits(burst.frame_len(i)) {
                continue;
            }
            let head = burst.snapshot_mut(i);
            rewrite::decrement_ttl_ordinary::<F::Address>(head);
            way.take(i, head);
            left &= !(1 << i);
        }
        left
    }
}

/// Counts a packet.
#[inline(always)]
fn touch<F: Routed>(half: &Half<F>, head: &[u8; SNAPSHOT], now: u32) {
    let bytes = ordinary::len::<F::Address>(head) as u32;
    match ordinary::acknowledged::<F::Address>(head) {
        Some(ack) => half.touch_tcp(now, bytes, ack),
        None => half.touch(now, bytes),
    }
}
