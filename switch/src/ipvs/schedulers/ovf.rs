//! Weighted overflow: the server of the largest weight of those that have no more active connections than their weight.
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
        let weight = server.weight() as u32;
        if usable(server) && server.active() <= weight { u64::from(weight) } else { Self::OUT }
    }

    #[inline]
    fn better(a: u64, b: u64) -> bool {
        a > b
    }
}
