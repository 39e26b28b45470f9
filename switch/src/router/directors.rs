//! What a director of balanced connections does beside carrying packets: sync daemons and health checks.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::live::Live;
use crate::config::document::Key;
use crate::ipvs::Ipvs;
use crate::ipvs::health::{CheckSpec, Health, ServerHealth};
use crate::ipvs::spec::ServiceKey;
use crate::ipvs::sync::{DaemonConfig, DaemonError, DaemonSpec, Daemons, LiveConnections, Role};
use crate::refusal::Refusal;
use crate::switch::Switch;

/// A sync daemon that runs, with what it has counted, by name.
pub type RunningDaemon = (DaemonConfig, [(&'static str, u64); 7]);

/// Daemons and checks of the global table of services. Nothing runs until it is asked for.
pub(crate) struct Directors {
    connections: Arc<LiveConnections>,
    daemons: Daemons,
    /// What was asked for the daemons that run.
    asked: BTreeMap<Role, DaemonSpec>,
    health: Health,
}

impl Directors {
    /// For these services. `changed` is called by another thread when [`Directors::tick`] has something to do.
    pub(crate) fn new(ipvs: Arc<Ipvs>, changed: impl Fn() + Send + Sync + 'static) -> Self {
        let connections = Arc::new(LiveConnections::new(ipvs));
        let daemons = Daemons::new(connections.clone());
        Self { connections, daemons, asked: BTreeMap::new(), health: Health::new(changed) }
    }

    /// There is a table of connections now; `wake` wakes the worker that enters new ones.
    pub(crate) fn attach(&self, live: &Live, wake: impl Fn() + Send + Sync + 'static) {
        self.connections.attach(live.conntrack.clone(), wake);
    }

    /// What was asked for the daemons that run, the master first.
    pub(crate) fn asked(&self) -> impl Iterator<Item = &DaemonSpec> {
        self.asked.values()
    }

    /// The checks.
    pub(crate) fn health(&self) -> &Health {
        &self.health
    }

    /// Servers that are to be taken for failed when their checks begin.
    pub(crate) fn expect_failed(&mut self, servers: Vec<(ServiceKey, IpAddr, u16)>) {
        self.health.expect_failed(servers);
    }

    /// The checks, by service, with their servers.
    pub(crate) fn checks(&self) -> impl Iterator<Item = (&CheckSpec, Vec<ServerHealth>)> {
        self.health.list()
    }

    /// To be called about once a second, and when told to.
    pub(crate) fn tick(&mut self, ipvs: &Ipvs) {
        self.health.tick(ipvs.global());
    }

    /// Ends all threads.
    pub(crate) fn close(&mut self) {
        for role in [Role::Master, Role::Backup] {
            // Whether it ran does not matter.
            let _ = self.daemons.stop(role);
        }
        self.health.close();
    }
}

impl Switch {
    /// Starts a sync daemon in the network namespace of this process.
    ///
    /// # Errors
    /// See [`DaemonError`].
    pub fn start_daemon(&mut self, spec: &DaemonSpec) -> Result<DaemonConfig, DaemonError> {
        self.touch(Key::Daemon(spec.role.to_string()));
        let config = self.directors.daemons.start(spec)?;
        self.directors.asked.insert(spec.role, spec.clone());
        self.note_backup();
        tracing::info!(
            "sync daemon started: {}, interface {}, sync ID {}, {} port {}",
            config.role,
            config.interface,
            config.sync_id,
            config.group,
            config.port
        );
        Ok(config)
    }

    /// Stops a sync daemon.
    ///
    /// # Errors
    /// None of this role runs.
    pub fn stop_daemon(&mut self, role: Role) -> Result<(), DaemonError> {
        self.touch(Key::Daemon(role.to_string()));
        self.directors.daemons.stop(role)?;
        self.directors.asked.remove(&role);
        self.note_backup();
        tracing::info!("sync daemon stopped: {role}");
        Ok(())
    }

    /// Who balances knows whether a backup daemon runs.
    fn note_backup(&self) {
        let backup = self.directors.daemons.list().any(|(config, _)| config.role == Role::Backup);
        self.router.ipvs.set_backup(backup);
    }

    /// The sync daemons that run, the master first.
    pub fn daemons(&self) -> Vec<RunningDaemon> {
        let running = self.directors.daemons.list();
        running.map(|(config, counters)| (config.clone(), counters.list())).collect()
    }

    /// Has the servers of a service of the global table checked in this way, instead of another one.
    ///
    /// # Errors
    /// There is no such service, or no thread is to be had.
    pub fn set_check(&mut self, spec: CheckSpec) -> Result<(), Refusal> {
        if self.router.ipvs.global().table.get(&spec.service).is_none() {
            return Err(Refusal::new(crate::ipvs::error::Error::NoSuchService(spec.service).to_string()));
        }
        self.start_check(spec)
    }

    /// The same; whether the service exists does not matter.
    pub(crate) fn start_check(&mut self, spec: CheckSpec) -> Result<(), Refusal> {
        self.touch(Key::Check(spec.service));
        let scope = self.router.ipvs.global();
        let started = self.directors.health.set(spec, scope);
        started.map_err(|error| Refusal::new(format!("cannot start the thread of health checks: {error}")))
    }

    /// Checks the servers of a service no more; weights that were taken come back. Whether they were checked.
    pub fn del_check(&mut self, service: &ServiceKey) -> bool {
        self.touch(Key::Check(*service));
        self.directors.health.remove(service, self.router.ipvs.global())
    }

    /// The checks, by service, and what they say of its servers.
    pub fn checks(&self) -> Vec<(CheckSpec, Vec<ServerHealth>)> {
        self.directors.health.list().map(|(spec, servers)| (spec.clone(), servers)).collect()
    }

    /// Sets weights as checks say.
    pub(crate) fn tick_directors(&mut self) {
        self.directors.tick(&self.router.ipvs);
    }
}
