//! What the rule engines of [`crate::nat`] and [`crate::policy`] have in common: counters of rules, maps from
//! addresses and ports to what rules say about them, a cheap hash.
//!
//! Rules are compiled by the control thread into immutable snapshots; nothing here is changed by a packet but the
//! counters.
#![forbid(unsafe_code)]

pub(crate) mod hash;
mod hits;
pub(crate) mod intervals;
pub(crate) mod prefixes;

pub use hits::{Hits, HitsTotal};

/// Cycles of the fastest of `times` runs: what the machine does besides is left out.
#[cfg(test)]
pub(crate) fn best_of(times: usize, mut run: impl FnMut()) -> u64 {
    let mut once = || {
        let start = crate::clock::cycles();
        run();
        crate::clock::cycles() - start
    };
    (0..times).map(|_| once()).min().unwrap_or(0)
}

/// The number of a rule, given when it is added and never given twice while the switch runs.
pub type RuleId = u32;

/// The number of an interface, port or bridge that a packet has not got.
pub const NONE: u16 = u16::MAX;
/// The interface of the switch itself: that of packets to and from its own addresses.
pub const SWITCH: u16 = u16::MAX - 1;
