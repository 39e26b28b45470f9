//! How many ICMP errors a worker may send: so many to one destination, and so many in all.
//!
//! The defaults are Linux's (`icmp_ratelimit`, `icmp_msgs_per_sec`, `icmp_msgs_burst`): 6 at once and 1 a second to
//! one destination, 50 at once and 1,000 a second in all. Destinations share a fixed number of buckets by a keyed
//! hash. Path MTU discovery depends on its errors and has a total of its own, without a limit per destination.
#![forbid(unsafe_code)]

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use super::icmp::Error;

/// Buckets for destinations.
const BUCKETS: usize = 1024;

/// What is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Milliseconds between errors to one destination, on average.
    pub interval: u32,
    /// Errors at once to one destination.
    pub burst: u32,
    /// Errors a second in all.
    pub per_second: u32,
    /// Errors at once in all.
    pub total_burst: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { interval: 1000, burst: 6, per_second: 1000, total_burst: 50 }
    }
}

/// A token bucket as the time (microseconds) at which it will be full again.
#[derive(Clone, Copy, Default)]
struct Bucket(u64);

impl Bucket {
    /// The bucket after a token is taken, if there is one: `interval` microseconds for each, at most `burst` of them.
    fn taken(self, now: u64, interval: u64, burst: u32) -> Option<Self> {
        let full = self.0.max(now).saturating_add(interval);
        (full <= now.saturating_add(interval.saturating_mul(u64::from(burst)))).then_some(Self(full))
    }
}

/// The limiter of one worker.
pub struct Limiter {
    limits: Limits,
    hash: RandomState,
    destinations: Box<[Bucket]>,
    total: Bucket,
    too_big: Bucket,
    suppressed: u64,
}

impl Limiter {
    /// A limiter with full buckets.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            hash: RandomState::new(),
            destinations: vec![Bucket::default(); BUCKETS].into_boxed_slice(),
            total: Bucket::default(),
            too_big: Bucket::default(),
            suppressed: 0,
        }
    }

    /// Whether an error may go to `destination` (IPv4 addresses as they are) now, in microseconds of any steady clock.
    pub fn allow(&mut self, error: Error, destination: u128, now: u64) -> bool {
        let interval = 1_000_000 / u64::from(self.limits.per_second.max(1));
        let burst = self.limits.total_burst;
        if matches!(error, Error::TooBig { .. }) {
            let taken = self.too_big.taken(now, interval, burst);
            self.suppressed += u64::from(taken.is_none());
            self.too_big = taken.unwrap_or(self.too_big);
            return taken.is_some();
        }
        let own = &mut self.destinations[self.hash.hash_one(destination) as usize % BUCKETS];
        let taken = own.taken(now, u64::from(self.limits.interval) * 1000, self.limits.burst);
        let (Some(taken), Some(total)) = (taken, self.total.taken(now, interval, burst)) else {
            self.suppressed += 1;
            return false;
        };
        (*own, self.total) = (taken, total);
        true
    }

    /// Errors that were not sent.
    pub fn suppressed(&self) -> u64 {
        self.suppressed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    fn count(limiter: &mut Limiter, error: Error, destination: u128, now: u64, tries: usize) -> usize {
        (0..tries).filter(|_| limiter.allow(error, destination, now)).count()
    }

    #[test]
    fn one_destination_gets_six_at_once_and_one_a_second() {
        let mut limiter = Limiter::new(Limits::default());
        let mut at = |now| count(&mut limiter, Error::TimeExceeded, 7, now, 20);
        assert_eq!(at(100 * SECOND), 6);
        assert_eq!(at(100 * SECOND + 999_999), 0);
        assert_eq!(at(101 * SECOND), 1);
        assert_eq!(at(103 * SECOND), 2);
        assert_eq!(at(1000 * SECOND), 6);
        assert_eq!(limiter.suppressed(), 100 - 15);
    }

    #[test]
    fn all_destinations_together_get_fifty_at_once_and_a_thousand_a_second() {
        let mut limiter = Limiter::new(Limits::default());
        let mut at = |now| (0..500).filter(|&d| limiter.allow(Error::HostUnreachable, d, now)).count();
        assert_eq!(at(SECOND), 50);
        assert_eq!(at(SECOND + 10_000), 10);
        assert_eq!(at(2 * SECOND), 50);
    }

    #[test]
    fn path_mtu_discovery_is_not_starved_and_not_endless() {
        let mut limiter = Limiter::new(Limits::default());
        assert_eq!((0..500).filter(|&d| limiter.allow(Error::PortUnreachable, d, SECOND)).count(), 50);
        let error = Error::TooBig { mtu: 1400 };
        assert_eq!(count(&mut limiter, error, 7, SECOND, 100), 50);
        assert_eq!(count(&mut limiter, error, 7, SECOND + 5000, 100), 5);
    }

    #[test]
    fn odd_limits_and_clocks_do_not_hurt() {
        let limits = Limits { interval: u32::MAX, burst: u32::MAX, per_second: 0, total_burst: u32::MAX };
        let mut limiter = Limiter::new(limits);
        assert!(limiter.allow(Error::TimeExceeded, 1, u64::MAX - 1));
        assert!(!limiter.allow(Error::TimeExceeded, 1, 0), "long before the bucket is full again");
        let mut none = Limiter::new(Limits { burst: 0, ..Limits::default() });
        assert!(!none.allow(Error::TimeExceeded, 1, 5));
    }
}
