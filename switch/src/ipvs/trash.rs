//! Servers that were deleted: as in Linux they keep their connections and counts, and come back with them if they are
//! added to the same service again. Two minutes after its last connection a server is forgotten.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::sync::Arc;

use super::account::{Account, Totals};
use super::destination::Destination;
use super::registry::Registry;
use super::service::Service;
use super::spec::ServiceKey;
use crate::rules::hash::Map;

/// Seconds without a connection after which a server is forgotten.
const PERIOD: u32 = 120;
/// Seconds between two looks.
const INTERVAL: u32 = 60;

/// Deleted servers and services.
#[derive(Debug, Default)]
pub(super) struct Trash {
    /// With the number of the service that they were deleted from.
    servers: Map<(ServiceKey, IpAddr, u16), (Arc<Destination>, u64)>,
    /// What deleted services shared with their servers.
    accounts: Map<ServiceKey, Arc<Account>>,
    /// Deleted services that workers may be using.
    retired: Vec<Arc<Service>>,
    looked: u32,
}

impl Trash {
    /// Buries a deleted server. One that never had a connection is forgotten at once: nobody could tell the difference.
    pub(super) fn bury(&mut self, server: Arc<Destination>, serial: u64, registry: &Registry) {
        server.withdraw();
        server.set_idle_since(0);
        if server.stats.sums() == Totals::default() && server.forget() {
            registry.remove(server.id());
            return;
        }
        let key = (server.account().key(), server.address(), server.port());
        self.servers.insert(key, (server, serial));
    }

    /// Buries a deleted service with its servers.
    pub(super) fn bury_service(&mut self, service: &Service, registry: &Registry) {
        // Nobody schedules with it any more, so nobody takes notes down that another one may need.
        service.state().retire();
        for server in &service.view().destinations {
            self.bury(Arc::clone(server), service.serial, registry);
        }
        self.accounts.insert(service.key(), Arc::clone(service.account()));
    }

    /// Keeps services until no worker uses them.
    pub(super) fn retire(&mut self, services: Vec<Arc<Service>>) {
        self.retired.extend(services);
    }

    /// The account that an earlier service of this key had.
    pub(super) fn account(&mut self, key: &ServiceKey) -> Option<Arc<Account>> {
        let account = self.accounts.remove(key)?;
        account.stats.zero(Totals::default());
        Some(account)
    }

    /// A server that was deleted and is added again, to the service numbered `serial`.
    pub(super) fn take(
        &mut self,
        key: ServiceKey,
        address: IpAddr,
        port: u16,
        serial: u64,
    ) -> Option<Arc<Destination>> {
        let (server, before) = self.servers.remove(&(key, address, port))?;
        if before != serial {
            server.stats.zero(Totals::default());
        }
        Some(server)
    }

    /// Forgets what nobody needs any more.
    pub(super) fn tick(&mut self, now: u32, registry: &Registry) {
        self.retired.retain(|service| Arc::strong_count(service) > 1);
        if now.wrapping_sub(self.looked) < INTERVAL {
            return;
        }
        self.looked = now;
        self.servers.retain(|_, (server, _)| {
            if server.is_referred_to() {
                server.set_idle_since(0);
                return true;
            }
            match server.idle_since() {
                0 => server.set_idle_since(now.max(1)),
                since if now.wrapping_sub(since) >= PERIOD && server.forget() => {
                    registry.remove(server.id());
                    return false;
                }
                _ => {}
            }
            true
        });
        self.accounts.retain(|_, account| Arc::strong_count(account) > 1);
    }

    /// Whether there is no deleted server.
    pub(super) fn is_empty(&self) -> bool {
        self.servers.is_empty()
    }

    /// All deleted servers.
    pub(super) fn all(&self) -> Vec<Arc<Destination>> {
        self.servers.values().map(|(server, _)| Arc::clone(server)).collect()
    }
}
