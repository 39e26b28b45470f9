//! Power of two choices (Mitzenmacher): two servers are drawn by lot, by their weights, and the one with fewer
//! connections for its weight is taken.
#![forbid(unsafe_code)]

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::super::destination::Destination;
use super::least::{less, load, overhead};
use super::usable;
use crate::rules::hash::mix;

/// Where lots come from.
#[derive(Debug)]
pub(crate) struct Dice(AtomicU64);

impl Default for Dice {
    fn default() -> Self {
        Self(AtomicU64::new(RandomState::new().hash_one(0)))
    }
}

/// The choice by two lots, numbers of any size.
pub(super) fn draw(servers: &[Arc<Destination>], lots: [u64; 2]) -> Option<&Arc<Destination>> {
    let takes_part = |server: &&Arc<Destination>| usable(server);
    let total: u64 = servers.iter().filter(takes_part).map(|server| server.weight() as u64).sum();
    if total == 0 {
        return None;
    }
    // From 0 to the sum of weights, both included.
    let mut left = lots.map(|lot| (lot % (total + 1)) as i64);
    let mut drawn: [Option<&Arc<Destination>>; 2] = [None; 2];
    for server in servers.iter().filter(takes_part) {
        for (left, drawn) in left.iter_mut().zip(&mut drawn) {
            *left -= i64::from(server.weight());
            if *left <= 0 && drawn.is_none() {
                *drawn = Some(server);
            }
        }
        if drawn.iter().all(Option::is_some) {
            break;
        }
    }
    let load = |server: &Arc<Destination>| load(overhead(server), server.weight().max(1));
    match drawn {
        [Some(first), Some(second)] if less(load(second), load(first)) => Some(second),
        [first, second] => first.or(second),
    }
}

impl Dice {
    #[inline]
    pub(super) fn choose<'a>(&self, servers: &'a [Arc<Destination>]) -> Option<&'a Arc<Destination>> {
        let seed = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        let lots = mix(seed, 1);
        draw(servers, [lots >> 32, lots & 0xffff_ffff])
    }
}
