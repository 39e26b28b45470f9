//! Never queue: the first server without an active connection; if there is none, as `sed`.
#![forbid(unsafe_code)]

use super::super::destination::Destination;
use super::least;
use super::usable;

#[derive(Debug)]
pub(super) struct Measure;

impl least::Measure for Measure {
    const OUT: u64 = least::ENDLESS;

    #[inline]
    fn measure(server: &Destination) -> u64 {
        if !usable(server) {
            return Self::OUT;
        }
        match server.active() {
            // Idle servers are alike, and better than any other.
            0 => least::load(0, 1),
            active => least::load(u64::from(active) + 1, server.weight()),
        }
    }

    #[inline]
    fn better(a: u64, b: u64) -> bool {
        least::less(a, b)
    }
}
