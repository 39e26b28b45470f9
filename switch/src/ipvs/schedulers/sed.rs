//! Shortest expected delay: the server that would have the fewest active connections for its weight with this one.
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
        if usable(server) { least::load(u64::from(server.active()) + 1, server.weight()) } else { Self::OUT }
    }

    #[inline]
    fn better(a: u64, b: u64) -> bool {
        least::less(a, b)
    }
}
