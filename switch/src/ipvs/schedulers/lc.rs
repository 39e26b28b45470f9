//! Least connections: the server with the fewest, whatever its weight unless that is 0.
#![forbid(unsafe_code)]

use super::super::destination::Destination;
use super::least::{self, OUT};
use super::usable;

#[derive(Debug)]
pub(super) struct Measure;

impl least::Measure for Measure {
    #[inline]
    fn measure(server: &Destination) -> u64 {
        if usable(server) { least::overhead(server) } else { OUT }
    }

    #[inline]
    fn better(a: u64, b: u64) -> bool {
        a < b
    }
}
