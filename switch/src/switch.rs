//! The switch as the control thread owns it: bridges, ports, workers, and how a change reaches the packet path.
//!
//! Every change is checked first, then made, then published as a whole ([`crate::tables`]); when a method returns,
//! all workers use the new state, and what was removed is closed. A change that fails leaves nothing behind.
#![forbid(unsafe_code)]

pub(crate) mod attach;
mod handover;
mod publish;
mod rebalance;
mod workers;

use std::cell::Cell;
use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use arc_swap::ArcSwap;
use nix::sched::CpuSet;
use tokio::sync::Notify;

use crate::clock;
use crate::config::document::Key;
use crate::config::spec::Attachment as Asked;
use crate::config::{BridgeSpec, Mac, Name, Poll, PortChange, PortSpec, Workers};
use crate::container::Containers;
use crate::handover::Handed;
use crate::l2::fdb::{Entry, Fdb, Key as Address, Learned};
use crate::members::{MAX_PORTS, MEMBERS};
use crate::memory::Trimmer;
use crate::port::Port;
use crate::refusal::Refusal;
use crate::router::Router;
use crate::router::directors::Directors;
use crate::router::guards::Guards;
use crate::router::keep::Keeper;
use crate::router::live::Live;
use crate::tables::Tables;
use crate::worker::epoch::Epochs;
use crate::worker::generation::Newest;
use crate::worker::{AtomicMode, Handle, Mode, Shared};
use rebalance::Rebalancer;
pub(crate) use workers::Baseline;
use workers::choose_cores;

/// How a switch is to run.
#[derive(Debug)]
pub struct Options {
    /// How many workers, or on which processors.
    pub workers: Workers,
    /// Whether they ever sleep.
    pub poll: Poll,
    /// Where leases are kept over a restart; nowhere if `None`.
    pub state: Option<PathBuf>,
    /// What another process hands over, in whose place this one is to go on: nothing runs then before
    /// [`Switch::go_on`].
    pub handed: Option<Handed>,
}

/// A bridge and its table.
pub(crate) struct Bridge {
    pub(crate) spec: BridgeSpec,
    pub(crate) fdb: Arc<Fdb>,
}

/// A port and what was asked for it.
pub(crate) struct Member {
    pub(crate) spec: PortSpec,
    pub(crate) port: Arc<Port>,
    /// Queues tied to a processor.
    pub(crate) pins: BTreeMap<u16, u32>,
}

/// The switch.
pub struct Switch {
    pub(crate) shared: Arc<Shared>,
    pub(crate) workers: Vec<Arc<Handle>>,
    /// The cores that they run on.
    cores: Vec<usize>,
    pub(crate) baselines: Vec<Baseline>,
    threads: Vec<JoinHandle<()>>,
    pub(crate) bridges: BTreeMap<Name, Bridge>,
    pub(crate) ports: BTreeMap<Name, Member>,
    pub(crate) router: Router,
    /// The router as it is in force, once there is an interface.
    pub(crate) live: Option<Live>,
    pub(crate) directors: Directors,
    pub(crate) started: Instant,
    pub(crate) poll: Poll,
    pub(crate) state: Option<PathBuf>,
    pub(crate) keeper: Keeper,
    /// Nothing is published before a change is whole.
    held: bool,
    /// What is still another process', until [`Switch::go_on`].
    pub(crate) handed: Option<Handed>,
    /// The workers' snapshot is not of the ports that there are.
    stale: bool,
    /// Where the control thread runs, since [`Switch::step_aside`].
    pub(crate) aside: Cell<Option<CpuSet>>,
    pub(crate) guards: Guards,
    pub(crate) containers: Containers,
    pub(crate) rebalancer: Rebalancer,
    trimmer: Trimmer,
    changes: Arc<Notify>,
}

impl Switch {
    /// Starts the workers of a switch without bridges and ports.
    ///
    /// # Errors
    /// A processor that this process may not use, or no thread or descriptor to be had.
    pub fn start(options: Options) -> Result<Self, Refusal> {
        vhost_backend::sigbus::install()
            .map_err(|error| Refusal::new(format!("cannot install the guard against SIGBUS: {error}")))?;
        let allowed = match &options.handed {
            Some(handed) => handed.cores.clone(),
            None => workers::allowed_cores()
                .map_err(|error| Refusal::new(format!("cannot learn which cores may be used: {error}")))?,
        };
        let cores = choose_cores(&options.workers, &allowed)?;
        let shared = Arc::new(Shared {
            tables: ArcSwap::from_pointee(Tables::empty(cores.len())),
            epochs: Arc::new(Epochs::new(cores.len() + 1)),
            newest: Newest::default(),
            seconds: AtomicU32::new(clock::seconds()),
            mode: AtomicMode::new(if options.handed.is_some() { Mode::Hold } else { Mode::Run }),
            busy: options.poll == Poll::Busy,
        });
        clock::cycles_per_us();
        let mut router = Router::new(cores.len());
        if let Some(handed) = &options.handed {
            router.handed = handed.numbers.interfaces.clone();
        }
        let changes = Arc::<Notify>::default();
        let checked = changes.clone();
        let directors = Directors::new(router.ipvs.clone(), move || checked.notify_one());
        let mut switch = Self {
            shared,
            workers: Vec::new(),
            cores,
            baselines: Vec::new(),
            threads: Vec::new(),
            bridges: BTreeMap::new(),
            ports: BTreeMap::new(),
            router,
            live: None,
            directors,
            started: Instant::now(),
            poll: options.poll,
            state: options.state,
            keeper: Keeper::new(),
            held: false,
            handed: options.handed,
            stale: false,
            aside: Cell::new(None),
            guards: Guards::default(),
            containers: Containers::default(),
            rebalancer: Rebalancer::new(clock::seconds()),
            trimmer: Trimmer::default(),
            changes,
        };
        for (id, core) in switch.cores.clone().into_iter().enumerate() {
            // If one does not start, dropping the switch ends the others.
            switch.start_worker(id, core)?;
        }
        switch.reset_workers();
        Ok(switch)
    }

    /// To be called about once a second: moves the tables' clock, forgets what has expired, follows the devices.
    pub fn tick(&mut self) {
        let now = clock::seconds();
        self.shared.seconds.store(now, Ordering::Relaxed);
        for bridge in self.bridges.values() {
            bridge.fdb.expire(now);
        }
        for member in self.ports.values() {
            member.port.follow_device();
        }
        self.tick_router();
        self.router.ipvs.tick(now);
        self.tick_directors();
        self.tick_rebalancer();
        self.tick_keeper();
        if now.is_multiple_of(5) {
            self.trimmer.tick();
        }
    }

    /// Tells when a port came up or went down, or a checked server's health changed: [`Switch::follow_ports`] is to be
    /// called then.
    pub fn changes(&self) -> Arc<Notify> {
        self.changes.clone()
    }

    pub(crate) fn now(&self) -> u32 {
        self.shared.seconds.load(Ordering::Relaxed)
    }

    // ---- bridges ------------------------------------------------------------------------------------------------

    /// Adds an empty bridge.
    ///
    /// # Errors
    /// The name is taken.
    pub fn add_bridge(&mut self, spec: BridgeSpec) -> Result<(), Refusal> {
        if self.bridges.contains_key(&spec.name) {
            return Err(Refusal::new(format!("bridge {:?} exists already", spec.name.as_str())));
        }
        self.touch(Key::Bridge(spec.name));
        let fdb = Arc::new(Fdb::new(spec.fdb_limit, spec.ageing, MEMBERS));
        self.bridges.insert(spec.name, Bridge { spec, fdb });
        Ok(())
    }

    /// Removes a bridge that has no ports.
    ///
    /// # Errors
    /// No such bridge, or it still has ports, interfaces or containers.
    pub fn del_bridge(&mut self, name: &str) -> Result<(), Refusal> {
        self.find_bridge(name)?;
        let ports = self.ports_of(name);
        if !ports.is_empty() {
            let list = ports.iter().map(|port| port.spec.name.as_str()).collect::<Vec<_>>().join(", ");
            return Err(Refusal::new(format!("bridge {name:?} still has ports: delete them first ({list})")));
        }
        if let Some(container) = self.containers.all().find(|container| container.spec.bridge == *name) {
            let id = &container.spec.id;
            return Err(Refusal::new(format!(
                "bridge {name:?} is that of container {id}: 'container del' it first"
            )));
        }
        self.refuse_routed(name)?;
        self.touch(Key::Bridge(self.find_bridge(name)?.spec.name));
        self.bridges.retain(|bridge, _| bridge.as_str() != name);
        Ok(())
    }

    pub(crate) fn find_bridge(&self, name: &str) -> Result<&Bridge, Refusal> {
        self.bridges.iter().find(|(bridge, _)| bridge.as_str() == name).map(|(_, bridge)| bridge).ok_or_else(|| {
            Refusal::new(format!(
                "bridge {name:?} does not exist: 'shuntctl bridge list' shows those that do, 'shuntctl bridge add' makes one"
            ))
        })
    }

    pub(crate) fn ports_of(&self, bridge: &str) -> Vec<&Member> {
        self.ports.values().filter(|member| member.spec.bridge.as_str() == bridge).collect()
    }

    // ---- ports --------------------------------------------------------------------------------------------------

    /// Adds a port and starts what it is attached to.
    ///
    /// # Errors
    /// The name, the socket or the device is taken, the bridge does not exist, all numbers are used, a pin names a
    /// processor without a worker, or the socket or device cannot be opened.
    pub fn add_port(&mut self, spec: PortSpec) -> Result<(), Refusal> {
        if self.ports.contains_key(&spec.name) {
            return Err(Refusal::new(format!("port {:?} exists already", spec.name.as_str())));
        }
        self.find_bridge(spec.bridge.as_str())?;
        self.refuse_taken(&spec)?;
        for &(_, core) in &spec.pins {
            self.worker_on(core)?;
        }
        self.touch(Key::Port(spec.name));
        let number = self.number_for(&spec.name)?;
        let (attachment, mtu) = self.attach(&spec)?;
        let port = Port::new(number, attachment, mtu, self.workers.len());
        port.set_limits(&spec.limits);
        if let (Some(mac), Asked::VhostUser { .. }) = (spec.mac, &spec.attachment) {
            // Whose address is known need not be learned, and nobody else can claim it.
            self.fix(spec.bridge.as_str(), mac, 0, number)?;
        }
        let member = Member { pins: spec.pins.iter().copied().collect(), port: Arc::new(port), spec };
        self.ports.insert(member.spec.name, member);
        self.publish();
        Ok(())
    }

    /// What another port has already must not be attached twice.
    pub(crate) fn refuse_taken(&self, spec: &PortSpec) -> Result<(), Refusal> {
        let taken = self.ports.values().find(|other| match (&other.spec.attachment, &spec.attachment) {
            (Asked::VhostUser { path: a, .. }, Asked::VhostUser { path: b, .. }) => a == b,
            (Asked::Tap { device: a, netns: m, .. }, Asked::Tap { device: b, netns: n, .. }) => {
                a == b && m == n
            }
            (Asked::Netdev { device: a, netns: m }, Asked::Netdev { device: b, netns: n })
            | (Asked::Tap { device: a, netns: m, .. }, Asked::Netdev { device: b, netns: n })
            | (Asked::Netdev { device: a, netns: m }, Asked::Tap { device: b, netns: n, .. }) => {
                a == b && m == n
            }
            _ => false,
        });
        let same_mac = |other: &&Member| other.spec.bridge == spec.bridge && other.spec.mac == spec.mac;
        if let (Some(mac), Some(other)) = (spec.mac, self.ports.values().find(same_mac)) {
            return Err(Refusal::new(format!(
                "mac {mac} belongs to port {:?} already",
                other.spec.name.as_str()
            )));
        }
        let Some(other) = taken else { return Ok(()) };
        let what = match &spec.attachment {
            Asked::VhostUser { path, .. } => format!("vhost_user {path:?}"),
            Asked::Tap { device, .. } => format!("tap {device:?}"),
            Asked::Netdev { device, .. } => format!("netdev {device:?}"),
        };
        Err(Refusal::new(format!("{what} belongs to port {:?} already", other.spec.name.as_str())))
    }

    /// The number that a port had in another process, or a free one.
    fn number_for(&self, name: &Name) -> Result<u16, Refusal> {
        match self.handed.as_ref().and_then(|handed| handed.numbers.ports.get(name)) {
            Some(number) => Ok(*number),
            None => self.free_number(),
        }
    }

    fn free_number(&self) -> Result<u16, Refusal> {
        let taken: HashSet<u16> = self.ports.values().map(|member| member.port.number()).collect();
        (0..MAX_PORTS as u16)
            .find(|number| !taken.contains(number))
            .ok_or_else(|| Refusal::new(format!("there are {MAX_PORTS} ports already, which is the limit")))
    }

    /// Removes a port: closes its socket or gives its device back, and forgets what was learned there.
    ///
    /// # Errors
    /// No such port, or it is a container's NIC.
    pub fn del_port(&mut self, name: &str) -> Result<(), Refusal> {
        if let Ok(key) = name.parse().map(Key::Port)
            && self.forget_unmade(&key)
        {
            return Ok(());
        }
        if let Some((id, nic)) = self.containers.owner(name) {
            let way = format!("'kata-network del-iface' removes it (name {:?})", nic.name);
            return Err(Refusal::new(format!("port {name:?} is a NIC of container {id}: {way}")));
        }
        self.remove_port(name)
    }

    /// Removes a port, whoever it belongs to.
    ///
    /// # Errors
    /// No such port.
    pub(crate) fn remove_port(&mut self, name: &str) -> Result<(), Refusal> {
        let name = self.find_port(name)?.spec.name;
        self.remove_ports(&[name]);
        Ok(())
    }

    /// Removes ports; those that are not there are none.
    pub(crate) fn remove_ports(&mut self, names: &[Name]) {
        self.touch_ports(names);
        let members: Vec<Member> = names.iter().filter_map(|name| self.ports.remove(name)).collect();
        if members.is_empty() {
            return;
        }
        // Workers must not know them any more, whatever else waits.
        let held = std::mem::replace(&mut self.held, false);
        self.publish();
        self.held = held;
        for member in members {
            let number = member.port.number();
            self.router.ipvs.attach(number, None);
            self.guards.forget(number);
            if let Some(live) = &self.live {
                live.services.port_gone(number);
            }
            // Nothing new is learned there.
            if let Some(bridge) = self.bridges.get(&member.spec.bridge) {
                bridge.fdb.flush(Some(number), true);
            }
            if let Some(live) = &self.live {
                live.neighbours.flush_port(number);
            }
        }
    }

    pub(crate) fn find_port(&self, name: &str) -> Result<&Member, Refusal> {
        self.ports.get(name).ok_or_else(|| {
            Refusal::new(format!("port {name:?} does not exist: 'shuntctl port list' shows those that do"))
        })
    }

    /// Changes a port that exists.
    ///
    /// # Errors
    /// No such port or queue, no worker on a processor, or the device refuses the MTU. Nothing is changed then.
    pub fn set_port(&mut self, name: &str, change: PortChange) -> Result<(), Refusal> {
        let member = self.find_port(name)?;
        let queues = member.port.queues();
        for &queue in change.pins.iter().map(|(queue, _)| queue).chain(&change.unpin) {
            if usize::from(queue) >= queues {
                return Err(Refusal::new(format!(
                    "queue {queue} of port {name:?} does not exist: it has {queues}, counted from 0"
                )));
            }
        }
        for &(_, core) in &change.pins {
            self.worker_on(core)?;
        }
        if let Some(network) = change.revoke.iter().find(|network| !member.spec.allow.contains(network)) {
            return Err(Refusal::new(format!("port {name:?} was not allowed to send from {network}")));
        }
        if let Some(mtu) = change.mtu {
            member.port.change_mtu(mtu).map_err(Refusal::new)?;
        }
        let key = member.spec.name;
        self.touch(Key::Port(key));
        self.touch(Key::Nic(key));
        if let Some(member) = self.ports.get_mut(&key) {
            member.spec.mtu = change.mtu.or(member.spec.mtu);
            for queue in &change.unpin {
                member.pins.remove(queue);
            }
            member.pins.extend(change.pins.iter().copied());
            member.spec.guard = change.guard.or(member.spec.guard);
            let limits = &mut member.spec.limits;
            (limits.ingress, limits.egress) =
                (change.ingress.of(limits.ingress), change.egress.of(limits.egress));
            if (change.ingress, change.egress) != Default::default() {
                member.port.set_limits(limits);
            }
            member.spec.allow.retain(|network| !change.revoke.contains(network));
            for network in &change.allow {
                if !member.spec.allow.contains(network) {
                    member.spec.allow.push(*network);
                }
            }
        }
        self.note_nic_port(&key);
        let guarded = change.guard.is_some() || !change.allow.is_empty() || !change.revoke.is_empty();
        if guarded || !change.pins.is_empty() || !change.unpin.is_empty() {
            self.publish();
        }
        Ok(())
    }

    // ---- forwarding database ------------------------------------------------------------------------------------

    /// The entries of one bridge or of all, with the bridges' and ports' names.
    ///
    /// # Errors
    /// No such bridge.
    pub(crate) fn fdb_entries(&self, bridge: Option<&str>) -> Result<Vec<(Name, Name, Entry)>, Refusal> {
        if let Some(name) = bridge {
            self.find_bridge(name)?;
        }
        let names: BTreeMap<u16, Name> =
            self.ports.values().map(|member| (member.port.number(), member.spec.name)).collect();
        let mut entries = Vec::new();
        for (name, of) in self.bridges.iter().filter(|(name, _)| bridge.is_none_or(|b| b == name.as_str())) {
            for entry in of.fdb.entries(self.now()) {
                if let Some(port) = names.get(&entry.port) {
                    entries.push((*name, *port, entry));
                }
            }
        }
        Ok(entries)
    }

    /// Adds or replaces a static entry.
    ///
    /// # Errors
    /// No such bridge or port, the port is on another bridge, or the table is full.
    pub fn fdb_add(&mut self, bridge: &str, mac: Mac, port: &str, vlan: u16) -> Result<(), Refusal> {
        self.find_bridge(bridge)?;
        let member = self.find_port(port)?;
        if member.spec.bridge.as_str() != bridge {
            let other = member.spec.bridge.as_str();
            return Err(Refusal::new(format!("port {port:?} is on bridge {other:?}, not on {bridge:?}")));
        }
        let (number, bridge_name) = (member.port.number(), member.spec.bridge);
        self.touch(Key::Fdb(bridge_name, vlan, mac));
        self.fix(bridge, mac, vlan, number)
    }

    fn fix(&self, bridge: &str, mac: Mac, vlan: u16, port: u16) -> Result<(), Refusal> {
        let table = &self.find_bridge(bridge)?.fdb;
        match table.fix(Address::new(mac.0, vlan), port, self.now()) {
            Learned::Full => Err(Refusal::new(format!(
                "the forwarding database of bridge {bridge:?} is full: its limit is {} (bridge add --fdb-limit)",
                table.limit()
            ))),
            _ => Ok(()),
        }
    }

    /// Removes an entry, static or learned.
    ///
    /// # Errors
    /// No such bridge or entry.
    pub fn fdb_del(&mut self, bridge: &str, mac: Mac, vlan: u16) -> Result<(), Refusal> {
        let name = self.find_bridge(bridge)?.spec.name;
        self.touch(Key::Fdb(name, vlan, mac));
        if self.find_bridge(bridge)?.fdb.remove(Address::new(mac.0, vlan)) {
            return Ok(());
        }
        let of_vlan = if vlan == 0 { String::new() } else { format!(" in VLAN {vlan}") };
        Err(Refusal::new(format!("bridge {bridge:?} has no entry for {mac}{of_vlan}")))
    }

    /// Forgets what was learned, on one bridge or all, at one port or all. Returns how many entries went.
    ///
    /// # Errors
    /// No such bridge or port.
    pub fn fdb_flush(&mut self, bridge: Option<&str>, port: Option<&str>) -> Result<u64, Refusal> {
        if let Some(name) = bridge {
            self.find_bridge(name)?;
        }
        let port = port.map(|name| self.find_port(name)).transpose()?;
        if let (Some(bridge), Some(member)) = (bridge, port)
            && member.spec.bridge.as_str() != bridge
        {
            let (port, other) = (member.spec.name.as_str(), member.spec.bridge.as_str());
            return Err(Refusal::new(format!("port {port:?} is on bridge {other:?}, not on {bridge:?}")));
        }
        let number = port.map(|member| member.port.number());
        let bridges = self.bridges.iter().filter(|(name, _)| bridge.is_none_or(|b| b == name.as_str()));
        Ok(bridges.map(|(_, bridge)| bridge.fdb.flush(number, false)).sum())
    }
}

impl Drop for Switch {
    /// Ends the services, whose last words workers send, then the workers, then closes the ports.
    fn drop(&mut self) {
        self.directors.close();
        if let Some(live) = &mut self.live {
            live.services.close();
        }
        self.shared.mode.set(Mode::Stop);
        self.workers.iter().for_each(|worker| worker.wake());
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        self.ports.clear();
    }
}
