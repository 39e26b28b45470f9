//! Least connections: the server with the fewest, whatever its weight unless that is 0.
#![forbid(unsafe_code)]

use super::super::destination::Destination;
use super::least;
use super::usable;

#[derive(Debug)]
pub(super) struct Measure;

impl least::Measure for Measure {
    const OUT: u64 = u64::MAX;

    #[inline]
    fn measure(server: &Destination) -> u64 {
        if usable(server) { least::overhead(server) } else { Self::OUT }
    }

    #[inline]
    fn better(a: u64, b: u64) -> bool {
        a < b
    }
}
