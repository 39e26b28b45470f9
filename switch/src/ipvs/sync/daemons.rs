//! The sync daemons of a director: at most one master and one backup, a thread each.
//!
//! They stand between the network and [`Connections`], which the tables of balanced connections implement.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::thread::JoinHandle;

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::message::SyncConnection;
use super::receiver::Receiver;
use super::sender::Sender;
use super::socket;
use super::spec::{DaemonConfig, DaemonError, DaemonSpec, Role, SyncSettings};
use super::timing::Look;
use crate::stats::Counter;

/// What became of a connection that another director told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adopted {
    /// It is known now, or known better.
    Yes,
    /// It cannot be: no such server, or no room.
    Refused,
}

/// Is shown a connection, and a function that makes the record to be told, `None` if it cannot be.
pub type Show<'a> = dyn FnMut(&Look, &dyn Fn() -> Option<SyncConnection>) + 'a;

/// The balanced connections of a director.
pub trait Connections: Send + Sync {
    /// Shows all connections and templates.
    /// `show` must be quick; `rest` is called every some hundred of them, and after the last, with nothing held.
    fn walk(&self, show: &mut Show<'_>, rest: &mut dyn FnMut());

    /// When connections are to be told of.
    fn settings(&self) -> SyncSettings;

    /// Takes what another director told: from now on its packets go where they went there.
    fn adopt(&self, connection: SyncConnection) -> Adopted;
}

/// What a daemon has done so far.
#[derive(Debug, Default)]
pub struct Counters {
    /// Messages sent or taken.
    pub messages: Counter,
    /// Connections in them.
    pub connections: Counter,
    /// Master: messages that the network did not take.
    pub lost: Counter,
    /// Backup: messages with another sync ID.
    pub foreign: Counter,
    /// Backup: broken messages (what stood before the fault was taken).
    pub malformed: Counter,
    /// Connections of a kind, state or protocol that is not known; master: that cannot be told.
    pub unknown: Counter,
    /// Backup: connections for which there is no server or room.
    pub refused: Counter,
}

impl Counters {
    /// Names and values.
    pub fn list(&self) -> [(&'static str, u64); 7] {
        [
            ("messages", self.messages.get()),
            ("connections", self.connections.get()),
            ("lost", self.lost.get()),
            ("foreign", self.foreign.get()),
            ("malformed", self.malformed.get()),
            ("unknown", self.unknown.get()),
            ("refused", self.refused.get()),
        ]
    }
}

struct Daemon {
    config: DaemonConfig,
    counters: Arc<Counters>,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let told = self.stop.write(1).is_ok();
        if let Some(thread) = self.thread.take()
            && told
        {
            let _ = thread.join();
        }
    }
}

/// The daemons. They end when this is dropped.
pub struct Daemons {
    connections: Arc<dyn Connections>,
    running: Vec<Daemon>,
}

impl Daemons {
    /// None yet.
    pub fn new(connections: Arc<dyn Connections>) -> Self {
        Self { connections, running: Vec::new() }
    }

    /// Starts a daemon. Its socket belongs to the network namespace of the calling thread.
    ///
    /// # Errors
    /// See [`DaemonError`].
    pub fn start(&mut self, spec: &DaemonSpec) -> Result<DaemonConfig, DaemonError> {
        if self.running.iter().any(|daemon| daemon.config.role == spec.role) {
            return Err(DaemonError::Exists(spec.role));
        }
        // The name is checked before the kernel is asked about it.
        spec.complete(0)?;
        let failed = |action| move |source| DaemonError::System { role: spec.role, action, source };
        let mtu = crate::port::link::mtu_of(&spec.interface)
            .map_err(failed("ask for its interface"))?
            .ok_or_else(|| DaemonError::NoSuchInterface(spec.interface.clone()))?;
        let config = spec.complete(mtu)?;
        let socket = socket::open(&config)?;
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let stop = EventFd::from_value_and_flags(0, flags)
            .map_err(|errno| failed("make an event descriptor")(errno.into()))?;
        let (stop, counters) = (Arc::new(stop), Arc::new(Counters::default()));
        let (connections, count, end) = (self.connections.clone(), counters.clone(), stop.clone());
        let thread = match spec.role {
            Role::Master => {
                let sender = Sender::new(&config, socket, connections, count, end);
                spawn("ipvs-master", move || sender.run())
            }
            Role::Backup => {
                let receiver = Receiver::new(&config, socket, connections, count, end);
                spawn("ipvs-backup", move || receiver.run())
            }
        };
        let thread = Some(thread.map_err(failed("start its thread"))?);
        self.running.push(Daemon { config: config.clone(), counters, stop, thread });
        self.running.sort_by_key(|daemon| daemon.config.role);
        Ok(config)
    }

    /// Stops a daemon and waits for its end, half a second at most.
    ///
    /// # Errors
    /// There is none of this role.
    pub fn stop(&mut self, role: Role) -> Result<(), DaemonError> {
        let at = self.running.iter().position(|daemon| daemon.config.role == role);
        drop(self.running.remove(at.ok_or(DaemonError::NotRunning(role))?));
        Ok(())
    }

    /// Those that run, the master first.
    pub fn list(&self) -> impl Iterator<Item = (&DaemonConfig, &Counters)> {
        self.running.iter().map(|daemon| (&daemon.config, &*daemon.counters))
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.into()).spawn(work)
}
