//! Packets that wait until it is known where their next hop is.
//!
//! Each worker keeps a few, as whole frames in memory of its own; so the first packet to a neighbour is not lost while
//! it is asked for its address (RFC 1122, section 2.3.2.2).
#![forbid(unsafe_code)]

use vhost_backend::frame::Burst;
use vhost_backend::net_header::NetHeader;

/// Packets that one worker keeps.
const PACKETS: usize = 64;
/// Packets that may wait for one neighbour.
const PER_NEIGHBOUR: usize = 4;
/// Longest frame that is kept: a jumbo frame. Segmentation frames are longer, but no conversation begins with one.
const LONGEST: usize = 9728;
/// Seconds that a packet waits at most: as long as a neighbour is asked.
const PATIENCE: u32 = 3;

/// Who waits for what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    /// The neighbour's slot.
    pub(super) adjacency: u32,
    /// That slot's version, so that another neighbour in it is not mistaken for this one.
    pub(super) version: u32,
    /// Offload metadata.
    pub(super) header: NetHeader,
    /// Second since which it waits.
    pub(super) since: u32,
    len: usize,
}

/// The packets of one worker.
pub(super) struct Hold {
    waiting: Box<[Option<Waiting>]>,
    count: usize,
    bytes: Box<[u8]>,
}

impl Default for Hold {
    fn default() -> Self {
        // Zeroed pages: memory is taken when packets wait.
        Self { waiting: vec![None; PACKETS].into(), count: 0, bytes: vec![0; PACKETS * LONGEST].into() }
    }
}

/// What is to become of a packet that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Wait on.
    Wait,
    /// Take it out: its next hop is known, or never will be.
    Take,
}

impl Hold {
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Keeps frame `i`. False if there is no room, for this neighbour or at all.
    pub(super) fn keep(&mut self, burst: &Burst, i: usize, adjacency: u32, version: u32, now: u32) -> bool {
        let same = |w: &&Waiting| w.adjacency == adjacency && w.version == version;
        if self.waiting.iter().flatten().filter(same).count() >= PER_NEIGHBOUR {
            return false;
        }
        let Some(free) = self.waiting.iter().position(Option::is_none) else { return false };
        let Some(len) = burst.linearise(i, &mut self.bytes[free * LONGEST..(free + 1) * LONGEST]) else {
            return false;
        };
        self.waiting[free] = Some(Waiting { adjacency, version, header: *burst.header(i), since: now, len });
        self.count += 1;
        true
    }

    /// Takes out, in no particular order of neighbours but in order for each, what `judge` says is ready.
    pub(super) fn release(
        &mut self,
        now: u32,
        mut judge: impl FnMut(&Waiting, bool) -> Outcome,
        mut take: impl FnMut(&Waiting, &mut [u8]),
    ) {
        let mut order: [usize; PACKETS] = std::array::from_fn(|i| i);
        // Slots are taken lowest first, so the order of arrival is that of `since`, then of slots: near enough.
        order.sort_unstable_by_key(|&i| (self.waiting[i].map_or(u32::MAX, |w| w.since), i));
        for slot in order {
            let Some(waiting) = self.waiting[slot] else { continue };
            let overdue = now.saturating_sub(waiting.since) > PATIENCE;
            if judge(&waiting, overdue) == Outcome::Take {
                take(&waiting, &mut self.bytes[slot * LONGEST..slot * LONGEST + waiting.len]);
                self.waiting[slot] = None;
                self.count -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_frame(bytes: &[u8], consume: impl FnOnce(&Burst)) {
        Burst::new().with_slices(
            |filler| assert!(filler.push(NetHeader::default(), &bytes[..64], &bytes[64..])),
            |burst| consume(burst),
        );
    }

    #[test]
    fn packets_wait_for_their_neighbour_and_not_for_ever() {
        let mut hold = Hold::default();
        with_frame(&[7; 1000], |burst| {
            for _ in 0..PER_NEIGHBOUR {
                assert!(hold.keep(burst, 0, 5, 1, 10));
            }
            assert!(!hold.keep(burst, 0, 5, 1, 10), "one neighbour's share");
            assert!(hold.keep(burst, 0, 6, 1, 12));
        });
        let mut taken = Vec::new();
        let known = |known: u32| {
            move |w: &Waiting, overdue: bool| {
                if overdue || w.adjacency == known { Outcome::Take } else { Outcome::Wait }
            }
        };
        hold.release(12, known(6), |w, bytes| taken.push((w.adjacency, bytes.to_vec())));
        assert_eq!(taken, [(6, vec![7; 1000])]);
        hold.release(13, known(6), |_, _| panic!("nobody is ready"));
        let mut overdue = 0;
        hold.release(14, known(6), |_, _| overdue += 1);
        assert_eq!(overdue, PER_NEIGHBOUR);
        assert!(hold.is_empty());
    }

    #[test]
    fn room_is_bounded() {
        let mut hold = Hold::default();
        with_frame(&[1; 64], |burst| {
            let kept = (0..1000).filter(|&n| hold.keep(burst, 0, n, 0, 0)).count();
            assert_eq!(kept, PACKETS);
        });
        with_frame(&[1; LONGEST + 1], |burst| assert!(!Hold::default().keep(burst, 0, 0, 0, 0)));
    }
}
