//! Network address translation: what the first packet of a connection becomes.
//!
//! The control thread keeps a [`RuleSet`] and compiles it, with the interfaces and their addresses, into an immutable
//! [`Nat`] that workers ask: [`Nat::destination`] before routing, [`Nat::source`] after it. What they answer is
//! written into the connection's entry; later packets come here no more. Lookups are by hash and by sorted prefixes,
//! never along a list. Model: iptables' nat table (DNAT, SNAT, MASQUERADE, NETMAP) as Docker and lxc-net use it;
//! RFC 4787, RFC 5382 and RFC 5508 for what a mapping is.
#![forbid(unsafe_code)]

mod destination;
mod mappings;
mod own;
mod ports;
#[cfg(test)]
mod properties;
pub mod rule;
mod set;
mod source;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

pub use self::mappings::KeptMapping;
pub use self::set::{HitsOf, RuleSet};
pub(crate) use self::source::from_pool;
use crate::config::name::Name;
use crate::drops::DropReason;
use crate::packet::tuple::Tuple;
use crate::rules::{Hits, RuleId};

/// An interface of the switch, for [`RuleSet::compile`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its number on the packet path; not [`crate::rules::NONE`].
    pub index: u16,
    /// Its name.
    pub name: Name,
    /// Its own addresses and their networks, in the order in which they were given.
    pub addresses: Vec<IpNet>,
}

/// What an address and port become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The new address.
    pub address: IpAddr,
    /// The new port (identifier of an ICMP query); the old one where there are none.
    pub port: u16,
    /// Whose doing it is: for [`Nat::cause`] and [`Nat::count`].
    slot: u32,
}

/// Why a packet is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Client and server of a published port are behind the same interface: without translation the server would
    /// answer past the switch.
    Hairpin,
    /// No rule, but a connection with the same answers exists: the source port changes, as with Linux.
    Clash,
    /// A rule.
    Rule(RuleId),
}

/// A connection's first packet on its way out.
#[derive(Clone, Copy, Debug)]
pub struct Leaving {
    /// Its tuple, destination already translated.
    pub tuple: Tuple,
    /// The interface that it came in by.
    pub ingress: u16,
    /// The interface that it leaves by.
    pub egress: u16,
    /// The gateway, or the destination itself if that is on the egress network.
    pub next_hop: IpAddr,
    /// Whether [`Nat::destination`] has translated it.
    pub redirected: bool,
    /// [`crate::clock::seconds`].
    pub now: u32,
}

/// Why a packet that must be translated cannot be, and is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The reason.
    pub why: Why,
    slot: u32,
}

/// The reasons of a [`Failure`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// No free port was found at any of the addresses.
    Exhausted,
    /// The egress interface has no address of the packet's family.
    NoAddress,
    /// Another worker holds the table of endpoint-independent mappings; the next try will do.
    Busy,
}

impl Why {
    /// What the packet's drop is counted as.
    pub fn drop_reason(self) -> DropReason {
        match self {
            Self::Exhausted => DropReason::NatExhausted,
            Self::NoAddress => DropReason::NatNoAddress,
            Self::Busy => DropReason::NatBusy,
        }
    }
}

/// The rules, compiled. Immutable but for counters.
pub struct Nat {
    destinations: destination::Destinations,
    sources: source::Sources,
    own: own::Own,
    /// By slots.
    causes: Box<[(Cause, Arc<Hits>)]>,
}

/// Slot of [`Cause::Hairpin`].
const HAIRPIN: u32 = 0;
/// Slot of [`Cause::Clash`].
const CLASH: u32 = 1;

impl Nat {
    /// Whether there is no rule at all: packets need not come here.
    pub fn is_empty(&self) -> bool {
        self.destinations.is_empty() && self.sources.is_empty()
    }

    /// What the destination of a connection's first packet becomes; asked before routing, about packets to own
    /// addresses, too. `ingress`: the interface that it came in by.
    pub fn destination(&self, tuple: &Tuple, ingress: u16) -> Option<Translation> {
        self.destinations.find(tuple, ingress, &self.own)
    }

    /// What the destination of a connection's first packet becomes that calls the outside end of an endpoint-independent
    /// mapping; asked where [`Nat::destination`] says nothing. For `is_free` see [`Nat::source`].
    #[inline]
    pub fn mapped(
        &self,
        tuple: &Tuple,
        ingress: u16,
        now: u32,
        is_free: impl FnMut(&Tuple) -> bool,
    ) -> Option<Translation> {
        self.sources.mapped(tuple, ingress, now, is_free)
    }

    /// What the source of a connection's first packet becomes; asked after routing and policy.
    ///
    /// `is_free` tells whether no connection expects this tuple as an answer. If the connection then cannot be
    /// inserted after all, since another worker was faster, ask again. `random`: 64 random bits.
    ///
    /// # Errors
    /// It must be translated, and cannot be: drop it, and [count](Self::count_failure).
    pub fn source(
        &self,
        leaving: &Leaving,
        is_free: impl FnMut(&Tuple) -> bool,
        random: u64,
    ) -> Result<Option<Translation>, Failure> {
        self.sources.find(leaving, is_free, random, &self.own)
    }

    /// Whether an address is one of an interface's own.
    #[inline]
    pub fn is_own(&self, address: IpAddr) -> bool {
        self.own.has(address)
    }

    /// Whether packets to an address are expected although no interface has it: outside addresses of one-to-one rules,
    /// pools, published addresses. Who wants them reachable without a route answers ARP and ND for these.
    pub fn speaks_for(&self, address: IpAddr) -> bool {
        !self.own.has(address) && (self.destinations.speaks_for(address) || self.sources.speaks_for(address))
    }

    /// Whose doing a translation is.
    pub fn cause(&self, translation: &Translation) -> Cause {
        self.causes[translation.slot as usize].0
    }

    /// Counts a translated connection; only the thread of this worker may.
    #[inline]
    pub fn count(&self, translation: &Translation, worker: usize, bytes: u64) {
        self.causes[translation.slot as usize].1.hit(worker, bytes);
    }

    /// Counts a failure; only the thread of this worker may.
    #[cold]
    pub fn count_failure(&self, failure: &Failure, worker: usize) {
        self.causes[failure.slot as usize].1.failure(worker);
    }
}
