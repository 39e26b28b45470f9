//! Locality-based least connections: an address keeps the server that it was first given, by `wlc`, until that server
//! has more active connections than its weight while another has fewer than half of its own.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::sync::Arc;

use super::super::destination::Destination;
use super::board::Board;
use super::cache::Cache;
use super::least::Least;
use super::wlc;

/// Servers by address.
#[derive(Debug)]
pub(super) struct Lblc {
    least: Least<wlc::Measure>,
    cache: Cache<Arc<Destination>>,
}

/// Whether a server has enough to do, and another one too little.
pub(super) fn is_too_busy(server: &Destination, servers: &[Arc<Destination>]) -> bool {
    let above = |server: &Destination| i64::from(server.active()) > i64::from(server.weight());
    let idle = |server: &Arc<Destination>| i64::from(server.active()) * 2 < i64::from(server.weight());
    above(server) && servers.iter().any(idle)
}

impl Lblc {
    pub(super) fn new(servers: &[Arc<Destination>], many: bool) -> Self {
        Self { least: Least::new(servers), cache: Cache::new(many) }
    }

    pub(super) fn inherit(&mut self, old: Self) {
        self.cache.inherit(old.cache, |server| server);
    }

    pub(super) fn tick(&mut self, now: u32, expiration: u32) {
        self.cache.tick(now, expiration, |server| server.is_available());
    }

    pub(super) fn choose(
        &mut self,
        servers: &[Arc<Destination>],
        board: Option<&Board>,
        address: IpAddr,
        now: u32,
    ) -> Option<Arc<Destination>> {
        let cached = self.cache.get(address, now);
        if let Some(server) = &cached
            && server.is_available()
            && server.weight() > 0
            && !is_too_busy(server, servers)
        {
            return Some(Arc::clone(server));
        }
        let server = self.least.choose(servers, board)?;
        match cached {
            Some(cached) => *cached = Arc::clone(server),
            None => self.cache.enter(address, now, Arc::clone(server)),
        }
        Some(Arc::clone(server))
    }
}
