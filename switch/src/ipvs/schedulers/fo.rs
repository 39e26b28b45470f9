//! Weighted fail-over: the server of the largest weight.
#![forbid(unsafe_code)]

use super::super::destination::Destination;
use super::least;
use super::usable;

#[derive(Debug)]
pub(super) struct Measure;

impl least::Measure for Measure {
    const OUT: u64 = 0;

    #[inline]
    fn measure(server: &Destination) -> u64 {
        if usable(server) { u64::from(server.weight() as u32) } else { Self::OUT }
    }

    #[inline]
    fn better(a: u64, b: u64) -> bool {
        a > b
    }
}
