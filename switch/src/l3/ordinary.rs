//! Ordinary packets ([`crate::packet::ordinary`]) on their ordinary way: where connections are tracked, of one that is
//! established; where they are not, by the prefixes. What is carried here costs a few dozen instructions; whatever is
//! not, is left untouched for [`super::forward`], which can do everything.
//!
//! A burst is looked at in passes, each asking for the memory of the next. Frames leave in the order in which they came
//! even if some of them are left for later, since what leaves is a mask over the burst.
#![forbid(unsafe_code)]

use vhost_backend::frame::{BURST, Burst, SNAPSHOT};
use vhost_backend::net_header::{NEEDS_CSUM, NetHeader};

use super::family::Routed;
use super::next_hop::start_of;
use super::route::{NextHopSetId, PathId};
use super::way::Way;
use super::{Arrival, Stage};
use crate::conntrack::{Compact, Family, Half, Ref};
use crate::packet::ethernet::Mac;
use crate::packet::ordinary::{self, is_ordinary, transport};
use crate::packet::rewrite;

/// A packet that may be of an established connection.
#[derive(Clone, Copy, Default)]
struct Tracked<F: Family> {
    key: Compact<F>,
    hash: u64,
    half: Option<Ref>,
    frame: u8,
}

/// A packet without a connection.
#[derive(Clone, Copy, Default)]
struct Plain<A> {
    destination: A,
    slot: u32,
    frame: u8,
}

/// Where packets without a connection are going: those that follow each other mostly take the same path, and then the
/// same way.
struct Course {
    last: Option<PathId>,
    way: Way,
    place: Option<usize>,
    /// Bytes of the longest frame of the burst.
    longest: usize,
    taken: u64,
}

impl Course {
    fn new(longest: usize) -> Self {
        Self { last: None, way: Way::NONE, place: None, longest, taken: 0 }
    }
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
        let start = u64::from_le_bytes(ordinary::bytes(head, 0));
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
        let mut packets = [Tracked::<F>::default(); BURST];
        let mut count = 0;
        for i in each(frames) {
            let (head, head_len, len) = burst.start(i);
            if ours.is(head) && is_ordinary::<F::Address>(head, head_len, len) {
                let key = Compact::of_ordinary(head);
                let hash = table.hash_compact(&key);
                table.prefetch(hash);
                packets[count % BURST] = Tracked { key, hash, half: None, frame: i as u8 };
                count += 1;
            }
        }
        let packets = &mut packets[..count];
        for packet in packets.iter_mut() {
            packet.half = table.candidate(packet.hash);
            if let Some(half) = packet.half {
                table.prefetch_half(half);
            }
        }
        let (longest, offloads) = (burst.longest(), burst.offloads());
        let mut left = frames;
        for packet in packets.iter() {
            let i = usize::from(packet.frame) % BURST;
            let Some(half) = packet.half.map(|half| table.half(half)) else { continue };
            let kept = half.next_hop();
            if !half.matches(&packet.key) || !kept.flags.is_enough() {
                continue;
            }
            let Some(way) = self.way_kept(kept.adjacency, kept.stamp, at) else { continue };
            if !way.fits(longest) && !way.fits(burst.frame_len(i)) {
                continue;
            }
            let partial = offloads >> i & 1 != 0 && is_partial::<F>(burst.header(i));
            let head = burst.snapshot_mut(i);
            touch(half, head, at.now);
            if kept.flags.any() {
                half.forward_ordinary(head, partial);
            } else {
                rewrite::decrement_ttl_ordinary::<F::Address>(head);
            }
            way.take(1 << i, head);
            left &= !(1 << i);
        }
        left
    }

    fn ordinary_plain<F: Routed>(&mut self, burst: &mut Burst, frames: u64, at: &Arrival<'_>) -> u64 {
        let routes = F::routes(&at.router.fib).steps();
        let ours = Addressed::to(at.interface.mac);
        let mut packets = [Plain::<F::Address>::default(); BURST];
        let mut count = 0;
        let mut course = Course::new(burst.longest());
        for i in each(frames) {
            let (head, head_len, len) = burst.start(i);
            if !ours.is(head) || !is_ordinary::<F::Address>(head, head_len, len) {
                continue;
            }
            let (source, destination) = F::apart(F::both_of(head));
            if F::may_pass(source, destination, at) {
                let slot = routes.enter(destination);
                // Where the root decides, nothing has to be waited for.
                if let Some(found) = routes.decided(slot) {
                    self.take_along::<F>(&mut course, burst, i, destination, found, at);
                } else {
                    packets[count % BURST] = Plain { destination, slot, frame: i as u8 };
                    count += 1;
                }
            }
        }
        for packet in &packets[..count] {
            let i = usize::from(packet.frame) % BURST;
            let found = routes.finish(packet.slot, packet.destination);
            self.take_along::<F>(&mut course, burst, i, packet.destination, found, at);
        }
        self.went(course.place, &course.way);
        frames & !course.taken
    }

    /// Sends a packet along what the prefixes led to, if it can go the short way.
    #[inline(always)]
    fn take_along<F: Routed>(
        &mut self,
        course: &mut Course,
        burst: &mut Burst,
        i: usize,
        destination: F::Address,
        found: u32,
        at: &Arrival<'_>,
    ) {
        let fib = &at.router.fib;
        let path = fib.choose(NextHopSetId::found(found), || {
            let key = Compact::<F>::of_ordinary(burst.snapshot(i));
            at.router.conntrack.table::<F>().hash_compact(&key) as u32
        });
        if Some(path) != course.last {
            self.went(course.place, &course.way);
            course.place =
                start_of(at, path, F::wide(destination)).ok().map(|hop| self.place_of_way(hop, at));
            course.way = course.place.map_or(Way::NONE, |place| *self.ways.at(place));
            // To a network of our own each packet may go elsewhere.
            course.last = fib.path(path).is_via().then_some(path);
        }
        if !course.way.fits(course.longest) && !course.way.fits(burst.frame_len(i)) {
            return;
        }
        let head = burst.snapshot_mut(i);
        rewrite::decrement_ttl_ordinary::<F::Address>(head);
        course.way.take(1 << i, head);
        course.taken |= 1 << i;
    }

    /// Notes what took a way that was at hand.
    #[inline]
    fn went(&mut self, place: Option<usize>, way: &Way) {
        if let Some(place) = place {
            *self.ways.at(place) = *way;
        }
    }
}

/// Whether an ordinary packet's checksum is left to its receiver.
#[inline]
fn is_partial<F: Routed>(metadata: &NetHeader) -> bool {
    metadata.flags & NEEDS_CSUM != 0 && usize::from(metadata.csum_start) == transport::<F::Address>()
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
