//! Routing: which way a packet to an address goes.
//!
//! Two halves. [`Fib`] is what workers ask: a trie for each family ([`trie`]) that leads from an address to a set of
//! next hops, and the sets themselves; all of it atomics, changed while workers read. [`rib::Rib`] belongs to the
//! control thread: it knows interfaces, addresses and every route that was asked for, decides which are good, and
//! keeps the FIB like that.
#![forbid(unsafe_code)]

mod bits;
mod check;
mod hops;
pub mod rib;
mod spec;
mod table;
#[cfg(test)]
mod tests;
mod trie;
pub mod view;

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

pub use bits::Bits;
use hops::Hops;
pub use hops::MAX_PATHS;
pub use trie::Trie;

use super::interface::Address;

/// A set of next hops, as the FIB names it; valid until the change that replaced it has been reclaimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NextHopSetId(u32);

impl NextHopSetId {
    /// No route leads there.
    pub const NONE: Self = Self(0);

    /// Whether no route leads there.
    #[inline]
    pub fn is_none(self) -> bool {
        self == Self::NONE
    }
}

/// Where one path leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Path {
    /// There is no route: ICMP network unreachable.
    NoRoute,
    /// To a gateway, which is on the interface's link.
    Via {
        /// Number of the interface.
        interface: u16,
        /// The gateway.
        gateway: Address,
    },
    /// To the destination itself, which is on the interface's link.
    Connected {
        /// Number of the interface.
        interface: u16,
    },
    /// To the switch itself.
    Local {
        /// Number of the interface that has the address.
        interface: u16,
    },
    /// To everybody on the interface's link; never forwarded there (RFC 2644).
    Broadcast {
        /// Number of the interface.
        interface: u16,
    },
    /// Dropped without a word.
    Blackhole,
    /// Refused: ICMP host unreachable (IPv6: no route).
    Unreachable,
    /// Refused: ICMP administratively prohibited.
    Prohibit,
}

/// The forwarding tables of both families. Shared by all workers; [`rib::Rib`] changes it.
pub struct Fib {
    v4: Trie<u32>,
    v6: Trie<u128>,
    hops: Hops,
    generation: AtomicU32,
}

impl Fib {
    /// The next hops for an IPv4 address in host byte order.
    #[inline]
    pub fn lookup_v4(&self, address: u32) -> NextHopSetId {
        NextHopSetId(self.v4.lookup(address))
    }

    /// The next hops for an IPv6 address.
    #[inline]
    pub fn lookup_v6(&self, address: u128) -> NextHopSetId {
        NextHopSetId(self.v6.lookup(address))
    }

    /// As [`Self::lookup_v4`] for many addresses at once, whose cache misses overlap; `found` is as long as
    /// `addresses`. What it holds goes to [`Self::path_of`].
    #[inline]
    pub fn lookup_many_v4(&self, addresses: &[u32], found: &mut [u32]) {
        self.v4.lookup_many(addresses, found);
    }

    /// As [`Self::lookup_many_v4`] for IPv6.
    #[inline]
    pub fn lookup_many_v6(&self, addresses: &[u128], found: &mut [u32]) {
        self.v6.lookup_many(addresses, found);
    }

    /// The path of a set that a flow takes; flows of one hash (32 bits, all of them random) take one path.
    #[inline]
    pub fn path(&self, set: NextHopSetId, hash: u32) -> Path {
        self.hops.path(self.hops.choose(set.0, hash))
    }

    /// As [`Self::path`] of one that [`Self::lookup_many_v4`] found.
    #[inline]
    pub fn path_of(&self, found: u32, hash: u32) -> Path {
        self.path(NextHopSetId(found), hash)
    }

    /// As [`Self::path`], with a word in which the caller may remember the adjacency of the path's gateway for all
    /// who come after it (0 at first and whenever the path is another).
    #[inline]
    pub fn path_and_hint(&self, set: NextHopSetId, hash: u32) -> (Path, &AtomicU64) {
        let path = self.hops.choose(set.0, hash);
        (self.hops.path(path), self.hops.hint(path))
    }

    /// Counts changes of anything that decides where packets go; what was decided earlier must be decided again.
    /// Read it before the lookup whose result is to be kept.
    #[inline]
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// Makes everything that was decided so far void. The RIB does it after its changes; those who change rules or
    /// interfaces do it after theirs.
    pub fn bump(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }
}
