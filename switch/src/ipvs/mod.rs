//! Layer 4 balancing with the semantics of Linux IPVS.
//!
//! [`Ipvs`] holds the [`scope::Scope`]s: a global one, and one for each container that has services of its own. A scope
//! is a table of [`service::Service`]s; a service chooses among its [`destination::Destination`]s with one of
//! [`schedulers`]. The control thread changes scopes, workers look services up and schedule without waiting for it.
#![forbid(unsafe_code)]

pub mod account;
pub mod connection;
pub mod destination;
mod difference;
pub mod draft;
pub mod error;
pub mod health;
mod list;
pub mod persistence;
mod registry;
pub(crate) mod schedulers;
pub mod scope;
pub mod service;
pub mod settings;
pub mod spec;
pub mod states;
pub mod sync;
pub mod table;
mod trash;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::{ArcSwap, Guard};

use destination::Destination;
use registry::Registry;
use scope::Scope;
use service::Service;
use table::Asked;

/// The most rules (services and servers) of the global scope.
pub const GLOBAL_RULES: usize = 1_000_000;
/// The most rules of a container's scope.
pub const CONTAINER_RULES: usize = 20_000;

/// Containers' scopes by the numbers of the ports whose packets they are about; where there is none: the global one.
type Ports = Vec<Option<Arc<Scope>>>;

/// All scopes.
#[derive(Debug)]
pub struct Ipvs {
    registry: Arc<Registry>,
    global: Arc<Scope>,
    containers: Mutex<HashMap<String, Arc<Scope>>>,
    ports: ArcSwap<Ports>,
    /// Scopes of removed containers whose servers still have connections.
    removed: Mutex<Vec<Arc<Scope>>>,
    /// Which clients stay with which servers.
    pub templates: persistence::Templates,
    /// Connections that another director told of, for a worker to enter.
    pub announced: sync::Announcements,
    /// Whether there ever was a connection.
    used: AtomicBool,
    /// Whether a backup daemon runs.
    backup: AtomicBool,
}

impl Default for Ipvs {
    fn default() -> Self {
        let registry = Arc::<Registry>::default();
        let global = Arc::new(Scope::new(None, GLOBAL_RULES, Arc::clone(&registry)));
        Self {
            registry,
            global,
            containers: Mutex::default(),
            ports: ArcSwap::default(),
            removed: Mutex::default(),
            templates: Default::default(),
            announced: Default::default(),
            used: AtomicBool::new(false),
            backup: AtomicBool::new(false),
        }
    }
}

impl Ipvs {
    /// The global scope.
    #[inline]
    pub fn global(&self) -> &Arc<Scope> {
        &self.global
    }

    fn containers(&self) -> MutexGuard<'_, HashMap<String, Arc<Scope>>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The scope of a container, if it has one.
    pub fn container(&self, name: &str) -> Option<Arc<Scope>> {
        self.containers().get(name).map(Arc::clone)
    }

    /// The scope of a container, made if it has none.
    pub fn ensure_container(&self, name: &str) -> Arc<Scope> {
        let make = || Arc::new(Scope::new(Some(name.into()), CONTAINER_RULES, Arc::clone(&self.registry)));
        Arc::clone(self.containers().entry(name.into()).or_insert_with(make))
    }

    /// Removes a container's scope; its connections stay until they end. Its ports go back to the global scope.
    pub fn remove_container(&self, name: &str) -> Option<Arc<Scope>> {
        let scope = self.containers().remove(name)?;
        scope.flush();
        self.ports.rcu(|ports| {
            let mut ports = Ports::clone(ports);
            let of_it =
                |port: &&mut Option<Arc<Scope>>| port.as_ref().is_some_and(|at| Arc::ptr_eq(at, &scope));
            ports.iter_mut().filter(of_it).for_each(|port| *port = None);
            ports
        });
        self.removed.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&scope));
        Some(scope)
    }

    /// The names of containers that have a scope, sorted.
    pub fn container_names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.containers().keys().cloned().collect();
        names.sort_unstable();
        names
    }

    /// Says whose packets come in by a port; `None`: the global scope's.
    pub fn attach(&self, port: u16, scope: Option<&Arc<Scope>>) {
        let at = usize::from(port);
        self.ports.rcu(|ports| {
            let mut ports = Ports::clone(ports);
            if scope.is_some() && ports.len() <= at {
                ports.resize(at + 1, None);
            }
            if let Some(entry) = ports.get_mut(at) {
                *entry = scope.map(Arc::clone);
            }
            while ports.last().is_some_and(Option::is_none) {
                ports.pop();
            }
            ports
        });
    }

    /// Whether no packet can meet a service: nothing but this costs a packet where nothing is balanced.
    #[inline(always)]
    pub fn is_idle(&self) -> bool {
        self.registry.services.load(Ordering::Relaxed) == 0
    }

    /// Whether packets need to be looked up among connections: there are services, or were when connections began.
    #[inline(always)]
    pub fn is_used(&self) -> bool {
        !self.is_idle() || self.used.load(Ordering::Relaxed)
    }

    /// Whether nothing is to be scheduled: a backup daemon runs, and `backup_only` is set.
    pub fn is_passive(&self) -> bool {
        self.backup.load(Ordering::Relaxed) && self.global.settings().is_on(settings::Setting::BackupOnly)
    }

    /// A backup daemon runs from now on, or not any more.
    pub(crate) fn set_backup(&self, runs: bool) {
        self.backup.store(runs, Ordering::Relaxed);
    }

    /// A connection was given to a server.
    pub(crate) fn note_use(&self) {
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
    }

    /// Says what is to be called when servers were deleted: what was resolved for their connections is void.
    pub fn on_withdrawal(&self, act: Box<dyn Fn() + Send + Sync>) {
        // Only the first one counts.
        let _ = self.registry.withdrawn.set(registry::Act(act));
    }

    /// Says what is to be called when timeouts were changed, so that connections have those in force.
    pub fn on_timeouts(&self, act: Box<dyn Fn() + Send + Sync>) {
        // Only the first one counts.
        let _ = self.registry.retimed.set(registry::Act(act));
    }

    /// The service that a packet which came in by `port` belongs to: one of its container's scope, or else one of the
    /// global scope.
    #[inline]
    pub fn find(&self, port: u16, asked: &Asked) -> Option<Arc<Service>> {
        let ports = self.ports.load();
        let own = ports.get(usize::from(port)).and_then(Option::as_ref);
        own.and_then(|scope| scope.table.find(asked))
            .or_else(|| if self.global.table.is_empty() { None } else { self.global.table.find(asked) })
    }

    /// The scope whose rules come first for packets from a port.
    pub fn scope_of(&self, port: u16) -> Arc<Scope> {
        let ports = self.ports.load();
        let own = ports.get(usize::from(port)).and_then(Option::as_ref);
        Arc::clone(own.unwrap_or(&self.global))
    }

    /// The server of a number, also a deleted one as long as a connection has it. Not to be kept.
    #[inline]
    pub fn destination(&self, id: u32) -> Guard<Option<Arc<Destination>>> {
        self.registry.get(id)
    }

    /// Housekeeping of all scopes; to be called about once a second. `now` is [`crate::clock::seconds`].
    pub fn tick(&self, now: u32) {
        self.sweep(now);
        self.global.tick(now);
        let containers: Vec<_> = self.containers().values().map(Arc::clone).collect();
        containers.iter().for_each(|scope| scope.tick(now));
        self.removed.lock().unwrap_or_else(PoisonError::into_inner).retain(|scope| {
            scope.tick(now);
            scope.has_deleted()
        });
    }
}
