//! From a destination to the neighbour that a packet goes to next.
#![forbid(unsafe_code)]

use std::sync::atomic::Ordering;

use super::Arrival;
use super::family::Routed;
use super::forward::Refusal;
use super::icmp::Error;
use super::interface::Address;
use super::route::{Path, PathId};
use crate::drops::DropReason;

/// A next hop: the neighbour's slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hop {
    pub(super) adjacency: u32,
}

/// The path that packets of this hash take to a destination.
#[inline]
pub(super) fn path_to<F: Routed>(at: &Arrival<'_>, destination: F::Address, hash: u64) -> Path {
    let fib = &at.router.fib;
    fib.path(fib.choose(F::lookup(fib, destination), || hash as u32))
}

/// The neighbour that packets of this hash to a destination go to, known or not.
#[inline]
pub(super) fn next_hop<F: Routed>(
    at: &Arrival<'_>,
    destination: F::Address,
    hash: u64,
) -> Result<Hop, Refusal> {
    let fib = &at.router.fib;
    let path = fib.choose(F::lookup(fib, destination), || hash as u32);
    start_of(at, path, F::wide(destination))
}

/// The neighbour at the beginning of a path, as somebody found it before or by a search.
#[inline]
pub(super) fn start_of(at: &Arrival<'_>, path: PathId, destination: Address) -> Result<Hop, Refusal> {
    let (router, hint) = (at.router, at.router.fib.hint(path));
    let path = router.fib.path(path);
    if let Path::Via { .. } = path {
        // Version and adjacency of the gateway.
        let word = hint.load(Ordering::Relaxed);
        let adjacency = word as u32;
        if word != 0
            && router.neighbours.slot(adjacency).is_some_and(|slot| slot.version() == (word >> 32) as u32)
        {
            return Ok(Hop { adjacency });
        }
    }
    let hop = along(at, path, destination)?;
    if let Path::Via { .. } = path
        && let Some(slot) = router.neighbours.slot(hop.adjacency)
    {
        hint.store(u64::from(slot.version()) << 32 | u64::from(hop.adjacency), Ordering::Relaxed);
    }
    Ok(hop)
}

/// The neighbour at the beginning of a path to a destination. A new one counts for the port that the packet came from.
pub(super) fn along(at: &Arrival<'_>, path: Path, destination: Address) -> Result<Hop, Refusal> {
    let (interface, address) = match path {
        Path::Via { interface, gateway } => (interface, gateway),
        Path::Connected { interface } => (interface, destination),
        Path::Local { .. } => return Err(Refusal::Local),
        Path::NoRoute => return Err(Refusal::Tell(DropReason::NoRoute, Error::NetUnreachable)),
        Path::Broadcast { .. } => return Err(DropReason::DirectedBroadcast.into()),
        Path::Blackhole => return Err(DropReason::Blackhole.into()),
        Path::Unreachable => return Err(Refusal::Tell(DropReason::Unreachable, Error::HostUnreachable)),
        Path::Prohibit => return Err(Refusal::Tell(DropReason::Prohibited, Error::Prohibited)),
    };
    match at.router.neighbours.find_or_create(interface, address, at.port, at.now) {
        Some(adjacency) => Ok(Hop { adjacency }),
        None => Err(DropReason::NeighbourTableFull.into()),
    }
}
