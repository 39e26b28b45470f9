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

    /// What a lookup in a trie found.
    #[inline(always)]
    pub fn found(value: u32) -> Self {
        Self(value)
    }

    /// Whether no route leads there.
    #[inline]
    pub fn is_none(self) -> bool {
        self == Self::NONE
    }
}

/// A path of a set, as long as the set is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathId(u32);

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

impl Path {
    /// Whether all packets that take it go to the same neighbour.
    #[inline]
    pub fn is_via(self) -> bool {
        matches!(self, Self::Via { .. })
    }
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

    /// The table of IPv4, for lookups in bursts ([`Trie::steps`]); what is found there is a set
    /// ([`NextHopSetId::found`]).
    #[inline]
    pub fn v4(&self) -> &Trie<u32> {
        &self.v4
    }

    /// The table of IPv6.
    #[inline]
    pub fn v6(&self) -> &Trie<u128> {
        &self.v6
    }

    /// Which path of a set a flow takes; flows of one hash (32 bits, all of them random) take one path. Sets of one
    /// path do not ask for the hash.
    #[inline(always)]
    pub fn choose(&self, set: NextHopSetId, hash: impl FnOnce() -> u32) -> PathId {
        PathId(self.hops.choose(set.0, hash))
    }

    /// Where a path leads.
    #[inline]
    pub fn path(&self, path: PathId) -> Path {
        self.hops.path(path.0)
    }

    /// A word in which a path's user may remember the adjacency of its gateway for all who come after (0 at first and
    /// whenever the path is another).
    #[inline]
    pub fn hint(&self, path: PathId) -> &AtomicU64 {
        self.hops.hint(path.0)
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
