//! Locality-based least connections with replication: an address has a set of servers, of which the least loaded is
//! taken. The set grows, by `wlc`, when that one is too busy, and loses its most loaded server once a day.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::sync::Arc;

use super::super::destination::Destination;
use super::board::Board;
use super::cache::Cache;
use super::lblc::is_too_busy;
use super::least::{Least, less, load, overhead};
use super::wlc;

/// The most servers of one address where there are many addresses.
const MEMBERS: usize = 16;

/// The servers of an address.
#[derive(Debug)]
struct Set {
    /// In the order in which they came; there is room for as many as there may be. Servers that were deleted stay until
    /// the next tick, in case they are added again, and take no room from others.
    members: Vec<Arc<Destination>>,
    /// When a server came or went.
    changed: u32,
}

impl Set {
    /// The least loaded server, the last that came first.
    fn least(&self) -> Option<&Arc<Destination>> {
        let mut members = self.members.iter().rev().filter(|server| !server.is_overloaded());
        let mut least = members.find(|server| server.weight() > 0 && server.is_available())?;
        for server in members.filter(|server| server.weight() > 0 && server.is_available()) {
            if less(load(overhead(server), server.weight()), load(overhead(least), least.weight())) {
                least = server;
            }
        }
        Some(least)
    }

    /// The place of the most loaded server.
    fn most(&self) -> Option<usize> {
        let mut most: Option<(usize, u64)> = None;
        for (at, server) in self.members.iter().enumerate().rev().filter(|(_, server)| server.weight() > 0) {
            let load = load(overhead(server), server.weight());
            if most.is_none_or(|(_, most)| less(most, load)) {
                most = Some((at, load));
            }
        }
        most.map(|(at, _)| at)
    }

    /// Adds a server to a set that may have `room` of them.
    fn insert(&mut self, server: &Arc<Destination>, room: usize, now: u32) {
        if self.members.iter().any(|member| Arc::ptr_eq(member, server)) {
            return;
        }
        let there = self.members.iter().filter(|member| member.is_available()).count();
        if there < room && self.members.len() < self.members.capacity() {
            self.members.push(Arc::clone(server));
            self.changed = now;
        }
    }
}

/// Sets of servers by address.
#[derive(Debug)]
pub(super) struct Lblcr {
    least: Least<wlc::Measure>,
    cache: Cache<Set>,
    /// Empty sets for addresses that come, so that none need be made in a packet's way.
    spare: Vec<Vec<Arc<Destination>>>,
    /// How many sets lie ready at most.
    spares: usize,
    /// Room of a set.
    room: usize,
}

/// How many sets lie ready where there are many addresses.
const SPARE: usize = 64;

impl Lblcr {
    pub(super) fn new(servers: &[Arc<Destination>], many: bool) -> Self {
        let room = if many { servers.len().min(MEMBERS) } else { servers.len() };
        let spares = if many { SPARE } else { 1 };
        let spare = (0..spares).map(|_| Vec::with_capacity(room)).collect();
        Self { least: Least::new(servers), cache: Cache::new(many), spare, spares, room }
    }

    pub(super) fn inherit(&mut self, old: Self) {
        let room = self.room;
        self.cache.inherit(old.cache, |mut set| {
            // Which of its servers are deleted is known a little later.
            set.members.reserve(room);
            set
        });
    }

    pub(super) fn tick(&mut self, now: u32, expiration: u32) {
        let expiration = expiration.saturating_mul(2);
        self.cache.tick(now, expiration, |set| {
            set.members.retain(|server| server.is_available());
            !set.members.is_empty()
        });
        let room = self.room;
        self.spare.resize_with(self.spares, || Vec::with_capacity(room));
    }

    pub(super) fn choose(
        &mut self,
        servers: &[Arc<Destination>],
        board: Option<&Board>,
        address: IpAddr,
        now: u32,
        expiration: u32,
    ) -> Option<Arc<Destination>> {
        let Some(set) = self.cache.get(address, now) else {
            let server = self.least.choose(servers, board)?;
            if let Some(members) = self.spare.pop() {
                let mut set = Set { members, changed: now };
                set.insert(server, self.room, now);
                self.cache.enter(address, now, set);
            }
            return Some(Arc::clone(server));
        };
        let least = set.least().map(Arc::clone);
        if set.members.len() > 1
            && now.wrapping_sub(set.changed) > expiration
            && let Some(most) = set.most()
        {
            set.members.remove(most);
            set.changed = now;
        }
        if least.as_ref().is_some_and(|least| !is_too_busy(least, servers)) {
            return least;
        }
        let server = self.least.choose(servers, board)?;
        set.insert(server, self.room, now);
        Some(Arc::clone(server))
    }
}
