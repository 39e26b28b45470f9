//! Active health checks: servers that do not answer get no new connections until they do again.
//!
//! Off unless somebody asks for them, service by service. A failed server's weight is set to 0 and put back later; what
//! an operator changes meanwhile is respected: a new weight is the one that comes back. A thread of its own asks
//! (`monitor`, `probe`), from the network namespace of the daemon: the host must be able to reach the servers.
#![forbid(unsafe_code)]

mod monitor;
mod probe;
pub mod spec;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

pub use monitor::Verdict;
pub use spec::{CheckSpec, Probe};

use super::scope::{Live, Scope};
use super::spec::ServiceKey;
use monitor::{Changed, Monitor, Watched};

/// A server that is checked.
struct Server {
    watched: Watched,
    /// Its weight before it was set to 0.
    taken: Option<i32>,
}

/// A service whose servers are checked.
struct Check {
    spec: Arc<CheckSpec>,
    /// By address and port in the service.
    servers: BTreeMap<(IpAddr, u16), Server>,
}

/// What is known of a server, for listings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerHealth {
    /// Its address.
    pub address: IpAddr,
    /// Its port in the service.
    pub port: u16,
    /// What its checks say.
    pub verdict: Verdict,
    /// The weight that comes back when it is good again; none if it was not taken.
    pub taken: Option<i32>,
}

/// The checks of a scope. Nothing runs while there are none.
pub struct Health {
    changed: Changed,
    monitor: Option<Monitor>,
    checks: BTreeMap<ServiceKey, Check>,
    /// Servers that had failed in another process.
    expected: HashSet<(ServiceKey, IpAddr, u16)>,
}

impl Health {
    /// No checks. `changed` is called by another thread when [`Health::tick`] has something to do.
    pub fn new(changed: impl Fn() + Send + Sync + 'static) -> Self {
        Self { changed: Arc::new(changed), monitor: None, checks: BTreeMap::new(), expected: HashSet::new() }
    }

    /// Servers that have failed.
    pub fn failed(&self) -> Vec<(ServiceKey, IpAddr, u16)> {
        let of = |check: &Check| {
            let failed = check.servers.iter().filter(|(_, server)| !server.watched.verdict().up);
            let service = check.spec.service;
            failed.map(move |(&(address, port), _)| (service, address, port)).collect::<Vec<_>>()
        };
        self.checks.values().flat_map(of).collect()
    }

    /// Takes servers for failed when their checks begin, until those say something else.
    pub fn expect_failed(&mut self, servers: Vec<(ServiceKey, IpAddr, u16)>) {
        self.expected = servers.into_iter().collect();
    }

    /// Checks a service's servers from now on, in this way instead of another one.
    ///
    /// # Errors
    /// The system has no thread to spare.
    pub fn set(&mut self, spec: CheckSpec, scope: &Scope) -> io::Result<()> {
        if self.monitor.is_none() {
            self.monitor = Some(Monitor::start(self.changed.clone())?);
        }
        // Weights that were taken are not forgotten.
        let old = self.checks.remove(&spec.service).map(|check| check.servers).unwrap_or_default();
        let mut check = Check { spec: Arc::new(spec), servers: BTreeMap::new() };
        if let Some(monitor) = &self.monitor {
            for (key, server) in old.into_iter().filter(|(_, server)| server.taken.is_some()) {
                let watched = check.watch(monitor, key);
                check.servers.insert(key, Server { watched, taken: server.taken });
            }
        }
        self.checks.insert(check.spec.service, check);
        self.tick(scope);
        Ok(())
    }

    /// Checks a service no more; weights that were taken come back. Whether there was a check.
    pub fn remove(&mut self, service: &ServiceKey, scope: &Scope) -> bool {
        let Some(mut check) = self.checks.remove(service) else { return false };
        for (&key, server) in &mut check.servers {
            server.give_back(service, key, scope);
        }
        if self.checks.is_empty() {
            self.monitor = None;
        }
        true
    }

    /// All checks with their servers, by service.
    pub fn list(&self) -> impl Iterator<Item = (&CheckSpec, Vec<ServerHealth>)> {
        self.checks.values().map(|check| {
            let servers = check.servers.iter().map(|(&(address, port), server)| ServerHealth {
                address,
                port,
                verdict: server.watched.verdict(),
                taken: server.taken,
            });
            (&*check.spec, servers.collect())
        })
    }

    /// Ends everything; weights stay as they are.
    pub fn close(&mut self) {
        self.checks.clear();
        self.monitor = None;
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.checks.is_empty()
    }

    /// Follows what was changed in the services, and sets weights as checks say. To be called about once a second, and
    /// when told to. What it changes in the scope is little, and only for servers whose verdict has changed.
    pub fn tick(&mut self, scope: &Scope) {
        let Some(monitor) = &self.monitor else { return };
        for check in self.checks.values_mut() {
            check.tick(monitor, scope, &mut self.expected);
        }
    }
}

impl Check {
    fn watch(&self, monitor: &Monitor, (address, port): (IpAddr, u16)) -> Watched {
        monitor.watch(self.spec.clone(), SocketAddr::new(address, self.spec.port.unwrap_or(port)))
    }

    fn tick(&mut self, monitor: &Monitor, scope: &Scope, expected: &mut HashSet<(ServiceKey, IpAddr, u16)>) {
        let key = self.spec.service;
        let Some(listing) = scope.service(&key, &Live::new()) else {
            // The service is gone for now, its servers with it.
            self.servers.clear();
            return;
        };
        let mut before = std::mem::take(&mut self.servers);
        for destination in listing.destinations {
            let mut wanted = destination.spec;
            let place = (wanted.address, wanted.port);
            let mut server = before.remove(&place).unwrap_or_else(|| {
                let watched = self.watch(monitor, place);
                if expected.remove(&(key, place.0, place.1)) {
                    watched.take_for_failed();
                }
                Server { watched, taken: None }
            });
            let verdict = server.watched.verdict();
            if verdict.up {
                server.give_back(&key, place, scope);
            } else if wanted.weight != 0 {
                let taken = std::mem::replace(&mut wanted.weight, 0);
                if scope.edit_destination(key, wanted).is_ok() {
                    server.taken = Some(taken);
                    let why = verdict.error.as_deref().unwrap_or("it failed");
                    tracing::warn!(
                        "server {} of {}: {why}; it gets no new connections",
                        name(place),
                        named(key)
                    );
                }
            }
            self.servers.insert(place, server);
        }
    }
}

impl Server {
    /// Puts the weight back, unless there is another one.
    fn give_back(&mut self, service: &ServiceKey, place: (IpAddr, u16), scope: &Scope) {
        let Some(weight) = self.taken.take() else { return };
        let Some(listing) = scope.service(service, &Live::new()) else { return };
        let spec = listing.destinations.into_iter().map(|destination| destination.spec);
        let mut of_it = spec.filter(|spec| (spec.address, spec.port) == place && spec.weight == 0);
        if let Some(mut spec) = of_it.next() {
            spec.weight = weight;
            if scope.edit_destination(*service, spec).is_ok() {
                tracing::info!("server {} of {}: weight {weight} again", name(place), named(*service));
            }
        }
    }
}

fn name((address, port): (IpAddr, u16)) -> String {
    SocketAddr::new(address, port).to_string()
}

fn named(service: ServiceKey) -> impl std::fmt::Display {
    super::error::Name(service)
}
