//! What routing needs to know, as workers see it: one part of the snapshot ([`crate::tables`]).
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::fragment::Reassembly;
use super::interface::Interface;
use super::neighbour::Neighbours;
use super::own::Own;
use super::route::Fib;
use crate::conntrack::Conntrack;
use crate::ipvs::Ipvs;
use crate::nat::Nat;
use crate::policy::Policy;
use crate::policy::log::Log;
use crate::services::mailbox::{Inject, Mailbox};

/// The router.
pub struct RouterTable {
    /// Interfaces by their index.
    pub interfaces: Vec<Option<Arc<Interface>>>,
    /// The addresses of all of them.
    pub own: Own,
    /// Which way addresses are.
    pub fib: Arc<Fib>,
    /// Who is where.
    pub neighbours: Arc<Neighbours>,
    /// Connections.
    pub conntrack: Arc<Conntrack>,
    /// Services that are balanced over servers.
    pub ipvs: Arc<Ipvs>,
    /// Packets in fragments.
    pub reassembly: Arc<Reassembly>,
    /// Whether there is a rule that asks for connections: see [`RouterTable::is_tracked`].
    pub tracked: bool,
    /// Translation rules.
    pub nat: Arc<Nat>,
    /// Filter rules.
    pub policy: Arc<Policy>,
    /// Packets that rules want to be logged.
    pub log: Arc<Log>,
    /// The way to the service thread.
    pub mailbox: Arc<Mailbox>,
    /// The way back.
    pub inject: Arc<Inject>,
}

impl RouterTable {
    /// The interface of an index.
    #[inline]
    pub fn interface(&self, index: u16) -> Option<&Arc<Interface>> {
        self.interfaces.get(usize::from(index)).and_then(Option::as_ref)
    }

    /// Whether packets need connections at all.
    #[inline]
    pub fn is_tracked(&self) -> bool {
        self.tracked || self.ipvs.is_used()
    }

    /// The stamp that a kept next hop must have to be valid, given its slot's version.
    #[inline]
    pub fn stamp(&self, version: u32) -> u32 {
        self.fib.generation().wrapping_add(version)
    }
}
