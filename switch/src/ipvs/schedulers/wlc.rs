//! Weighted least connections: the server with the fewest for its weight.
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
        if usable(server) { least::load(least::overhead(server), server.weight()) } else { Self::OUT }
    }

    #[inline]
    fn better(a: u64, b: u64) -> bool {
        least::less(a, b)
    }
}
