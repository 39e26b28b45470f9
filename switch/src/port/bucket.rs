//! Rate limits of ports: a token bucket for each direction, shared by all workers.
//!
//! The bucket is kept as the moment at which it will be full again (the virtual scheduling of ITU-T I.371's generic cell
//! rate algorithm), one word that workers change by compare and exchange, once a burst of frames. A frame passes as long
//! as the bucket is not empty, whatever its length, and may leave it in debt: else a GSO frame longer than the bucket
//! would never pass (Linux's tbf cuts those up, which would cost everybody the offload). What passes in the long run is
//! the rate all the same. What finds the bucket empty is dropped, not queued.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use vhost_backend::frame::Burst;

use super::Bits;
use crate::clock::TICKS_PER_SECOND;
use crate::config::spec::Rate;

/// Binary digits behind the point of [`Bucket::per_byte`]: at 1 Tbit/s, half a tick a byte, seven decimals remain.
const FRACTION: u32 = 24;
/// How often a worker tries while others change the bucket.
const TRIES: usize = 8;

/// A token bucket; without a limit until one is [set](Bucket::set).
#[derive(Debug, Default)]
pub struct Bucket {
    /// Ticks that a byte costs, with [`FRACTION`] binary digits behind the point; 0: no limit.
    per_byte: AtomicU64,
    /// Ticks that the whole bucket is worth, at least 1.
    depth: AtomicU64,
    /// When it will be full, in ticks.
    full_at: AtomicU64,
}

impl Bucket {
    /// Limits to `rate`, beginning with a full bucket; `None` lifts the limit.
    pub fn set(&self, rate: Option<Rate>) {
        let byte = |rate: Rate| 8 * (u128::from(TICKS_PER_SECOND) << FRACTION) / u128::from(rate.bits.max(1));
        let (per_byte, depth) = rate.map_or((0, 0), |rate| {
            let depth = u128::from(rate.burst) * u128::from(TICKS_PER_SECOND) / u128::from(rate.bits.max(1));
            // Not more than a quarter of the clock, so that no sum overflows.
            (byte(rate).clamp(1, u64::MAX.into()) as u64, depth.clamp(1, u128::from(u64::MAX / 4)) as u64)
        });
        self.depth.store(depth, Relaxed);
        self.full_at.store(0, Relaxed);
        self.per_byte.store(per_byte, Relaxed);
    }

    /// Ticks from `now` until the bucket is full.
    pub fn owed(&self, now: u64) -> u64 {
        self.full_at.load(Relaxed).saturating_sub(now)
    }

    /// Has the bucket be full again so many ticks from `now` on. More than it is worth is a debt, which frames leave.
    pub fn owe(&self, ticks: u64, now: u64) {
        self.full_at.store(now.saturating_add(ticks.min(u64::MAX / 4)), Relaxed);
    }

    /// Whether there is a limit.
    #[inline]
    pub fn is_limited(&self) -> bool {
        self.per_byte.load(Relaxed) != 0
    }

    /// Of the frames of `mask`, those that may pass at `now` ([`crate::clock::ticks`]); they are charged.
    ///
    /// Frames of a burst come at the same moment: once one finds the bucket empty, so do all behind it.
    pub fn admit(&self, burst: &Burst, mask: u64, now: u64) -> u64 {
        let per_byte = self.per_byte.load(Relaxed);
        if per_byte == 0 {
            return mask;
        }
        let empty = now.saturating_add(self.depth.load(Relaxed));
        let cost = |bytes: u64| ((u128::from(bytes) * u128::from(per_byte)) >> FRACTION) as u64;
        let mut full_at = self.full_at.load(Relaxed);
        let mut decided = (0, 0);
        for _ in 0..TRIES {
            let start = full_at.max(now);
            let (mut passed, mut bytes) = (0, 0);
            for i in Bits(mask) {
                if start.saturating_add(cost(bytes)) >= empty {
                    break;
                }
                passed |= 1 << i;
                bytes += wire_len(burst, i);
            }
            if passed == 0 {
                return 0;
            }
            let next = start.saturating_add(cost(bytes));
            match self.full_at.compare_exchange_weak(full_at, next, Relaxed, Relaxed) {
                Ok(_) => return passed,
                Err(seen) => full_at = seen,
            }
            decided = (passed, bytes);
        }
        // Others are at it all the time: what was decided last holds, and is charged to whatever stands there.
        self.full_at.fetch_add(cost(decided.1), Relaxed);
        decided.0
    }
}

/// Bytes of frame `i` on a wire, from the Ethernet header on: a GSO frame's headers count for every segment.
fn wire_len(burst: &Burst, i: usize) -> u64 {
    let (len, header) = (burst.frame_len(i) as u64, burst.header(i));
    if header.gso_size == 0 {
        return len;
    }
    let headers = u64::from(header.hdr_len).min(len);
    let segments = (len - headers).div_ceil(header.gso_size.into()).max(1);
    len + (segments - 1) * headers
}

#[cfg(test)]
mod tests {
    use vhost_backend::frame::SNAPSHOT;
    use vhost_backend::net_header::NetHeader;

    use super::*;

    const SECOND: u64 = TICKS_PER_SECOND;

    /// Lends a burst of frames: lengths and virtio-net headers.
    fn with<T>(frames: &[(usize, NetHeader)], f: impl FnOnce(&Burst) -> T) -> T {
        let bytes: Vec<Vec<u8>> = frames.iter().map(|(len, _)| vec![0; *len]).collect();
        let mut answer = None;
        Burst::new().with_slices(
            |filler| {
                for (frame, (_, header)) in bytes.iter().zip(frames) {
                    let (head, rest) = frame.split_at(frame.len().min(SNAPSHOT));
                    assert!(filler.push(*header, head, rest));
                }
            },
            |burst| answer = Some(f(burst)),
        );
        answer.expect("called")
    }

    fn plain(count: usize, len: usize) -> Vec<(usize, NetHeader)> {
        vec![(len, NetHeader::default()); count]
    }

    fn bucket(bits: u64, burst: u64) -> Bucket {
        let bucket = Bucket::default();
        bucket.set(Some(Rate { bits, burst }));
        bucket
    }

    #[test]
    fn without_a_limit_everything_passes() {
        let bucket = Bucket::default();
        assert!(!bucket.is_limited());
        assert_eq!(with(&plain(64, 1500), |burst| bucket.admit(burst, u64::MAX, 7)), u64::MAX);
        bucket.set(Some(Rate { bits: 8, burst: 8 }));
        bucket.set(None);
        assert_eq!(with(&plain(64, 1500), |burst| bucket.admit(burst, u64::MAX, 7)), u64::MAX);
    }

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        // 8 Mbit/s are 1000 bytes a millisecond; 10,000 bytes at once.
        let bucket = bucket(8_000_000, 80_000);
        with(&plain(64, 1000), |burst| {
            assert_eq!(bucket.admit(burst, u64::MAX, SECOND), 0x3ff, "ten frames are the burst");
            assert_eq!(bucket.admit(burst, 1, SECOND), 0);
            assert_eq!(bucket.admit(burst, u64::MAX, SECOND + SECOND / 1000), 1, "one frame a millisecond");
            assert_eq!(
                bucket.admit(burst, 0xf0f0, SECOND + 3 * SECOND / 1000),
                0x30,
                "the first of the mask"
            );
            let mut passed = 0;
            for step in 0..10_000 {
                let now = 2 * SECOND + step * SECOND / 10_000;
                passed += bucket.admit(burst, 0xff, now).count_ones();
            }
            assert!((1009..=1011).contains(&passed), "the burst and a second's worth: {passed}");
            assert_eq!(
                bucket.admit(burst, u64::MAX, 90 * SECOND),
                0x3ff,
                "no more is saved up than the burst"
            );
        });
    }

    #[test]
    fn a_frame_longer_than_the_bucket_passes_and_is_paid_for() {
        let bucket = bucket(8_000_000, 8);
        with(&plain(2, 60_000), |burst| {
            assert_eq!(bucket.admit(burst, 3, SECOND), 1);
            assert_eq!(bucket.admit(burst, 3, SECOND + 59 * SECOND / 1000), 0);
            assert_eq!(bucket.admit(burst, 3, SECOND + 60 * SECOND / 1000), 1);
        });
    }

    #[test]
    fn segments_count_with_their_headers() {
        let gso = NetHeader { gso_type: 1, gso_size: 1000, hdr_len: 54, ..NetHeader::default() };
        let wire = |len, header| with(&[(len, header)], |burst| wire_len(burst, 0));
        assert_eq!(wire(54 + 3000, gso), 3 * 1054);
        assert_eq!(wire(54 + 3001, gso), 3 * 1054 + 55);
        assert_eq!(wire(1000, NetHeader { hdr_len: 2000, ..gso }), 1000, "a header length that lies");
    }

    #[test]
    fn the_bounds_of_rate_and_burst_do_not_overflow() {
        for (bits, burst) in [(8, 8), (8, 1 << 40), (1_000_000_000_000, 8), (1_000_000_000_000, 1 << 40)] {
            let bucket = bucket(bits, burst);
            with(&plain(64, 65_000), |burst| {
                assert_ne!(bucket.admit(burst, u64::MAX, 0), 0, "{bits}");
                bucket.admit(burst, u64::MAX, u64::MAX);
            });
        }
        let fast = bucket(1_000_000_000_000, 8_000_000);
        let passed = with(&plain(64, 1250), |burst| {
            // 10 microseconds a burst of 80,000 bytes would be 64 Gbit/s: all of it passes.
            (0..1000)
                .map(|i| fast.admit(burst, u64::MAX, SECOND + i * SECOND / 100_000).count_ones())
                .sum::<u32>()
        });
        assert_eq!(passed, 64_000);
    }

    #[test]
    fn workers_share_one_bucket() {
        let bucket = bucket(8_000_000, 8_000_000);
        let passed: u32 = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        with(&plain(1, 1000), |burst| {
                            (0..2000).map(|_| bucket.admit(burst, 1, SECOND).count_ones()).sum::<u32>()
                        })
                    })
                })
                .collect();
            workers.into_iter().map(|worker| worker.join().expect("no panic")).sum()
        });
        // Each worker that lost all its tries may have let one too many pass.
        assert!((1000..1100).contains(&passed), "{passed}");
    }
}
