//! The thread that serves: takes frames from the mailbox, asks the protocols, writes leases down, sends, keeps time.
//!
//! Protocols live behind one lock that the control thread takes as well, to configure and to list; workers never do.
//! What is decided under the lock is written to the disk and sent after it is let go of, in this order: no client hears
//! of a lease that is not kept.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use super::dhcp::leases::Lease;
use super::dhcp::store::{Clock, Store};
use super::dhcp::{self, Counters, Listing, Origin, Outcome, Server, Silence};
use super::mailbox::{Inject, Mailbox};
use super::packet::{Incoming, read, to_client};
use super::ra::{self, Advertiser};
use crate::config::Name;
use crate::l3::arp::Arp;
use crate::l3::compose::Link;
use crate::l3::nd;
use crate::packet::ethernet::Mac;
use crate::refusal::Refusal;

/// Times that it is asked who has an address before it is offered, and milliseconds between.
const PROBES: (u8, u64) = (2, 200);
/// Announcements of an address of our own, and milliseconds between (RFC 5227 section 3).
const ANNOUNCEMENTS: (u8, u64) = (2, 2_000);
/// Milliseconds between two warnings about one interface.
const WARNINGS: u64 = 60_000;
/// How long workers are waited for to send the last frames.
const FAREWELL: Duration = Duration::from_millis(100);
/// The server's seconds begin here, so that times of before the start are numbers, too.
const EPOCH: u64 = 1 << 32;

/// An interface as services know it.
#[derive(Clone, Debug)]
pub struct Served {
    /// Its number, by which workers know it.
    pub index: u16,
    /// Its name, by which its leases are kept.
    pub name: Name,
    /// Its MAC address.
    pub mac: Mac,
    /// Addresses to give.
    pub dhcp: Option<dhcp::Config>,
    /// What to advertise.
    pub ra: Option<ra::Config>,
}

/// Something that happened to a client's address, at an interface of this index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The interface's number.
    pub interface: u16,
    /// What happened.
    pub event: dhcp::Event,
}

/// A lease that goes on in another process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptLease {
    /// The interface whose it is.
    pub interface: Name,
    /// The address.
    pub address: Ipv4Addr,
    /// The client's Ethernet address.
    pub mac: Mac,
    /// The client's identifier.
    pub identity: Box<[u8]>,
    /// Its name.
    pub hostname: Option<String>,
    /// Number of the port behind which it is.
    pub port: Option<u16>,
    /// What it is.
    pub state: dhcp::leases::State,
    /// When that ends, in seconds since 1970.
    pub expires: u64,
}

/// The services of a switch. They end with [`Services::close`], or when this is dropped.
pub struct Services {
    shared: Arc<Shared>,
    mailbox: Arc<Mailbox>,
    inject: Arc<Inject>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    store: Mutex<Store>,
    stop: AtomicBool,
    start: Instant,
    wake: Box<dyn Fn() + Send + Sync>,
    notify: Box<dyn Fn(Notice) + Send + Sync>,
}

#[derive(Default)]
struct State {
    interfaces: BTreeMap<u16, Interface>,
    probes: Vec<Probe>,
    announcements: Vec<Announcement>,
    todo: Todo,
}

/// What was decided and is still to be done, in the order of the fields.
#[derive(Default)]
struct Todo {
    changes: Vec<(Name, Ipv4Addr, Option<Lease>)>,
    notices: Vec<Notice>,
    frames: Vec<Outgoing>,
}

struct Outgoing {
    interface: u16,
    port: Option<u16>,
    frame: Vec<u8>,
}

struct Interface {
    name: Name,
    mac: Mac,
    dhcp: Option<Server>,
    ra: Option<Advertiser>,
    warned: Option<u64>,
}

struct Probe {
    interface: u16,
    address: Ipv4Addr,
    left: u8,
    at: u64,
}

struct Announcement {
    interface: u16,
    mac: Mac,
    address: IpAddr,
    left: u8,
    at: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn warn(text: String) {
    tracing::warn!("{text}");
}

impl Services {
    /// Starts the thread. Leases are kept in the directory `state`, or not over a restart without one. `wake` is called
    /// when there are frames to [`Inject::drain`], `notify` when a client got or lost an address: on the service thread,
    /// with no lock held.
    ///
    /// # Errors
    /// No thread is to be had.
    pub fn start(
        state: Option<&Path>,
        wake: Box<dyn Fn() + Send + Sync>,
        notify: Box<dyn Fn(Notice) + Send + Sync>,
    ) -> Result<Self, Refusal> {
        let start = Instant::now();
        let clock = Clock { now: EPOCH, wall: SystemTime::now() };
        let store = match state {
            Some(directory) => Store::open(directory, clock, &mut warn),
            None => Store::in_memory(),
        };
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            store: Mutex::new(store),
            stop: AtomicBool::new(false),
            start,
            wake,
            notify,
        });
        let (mailbox, inject) = (Arc::new(Mailbox::default()), Arc::new(Inject::default()));
        let thread = {
            let (shared, mailbox, inject) = (shared.clone(), mailbox.clone(), inject.clone());
            std::thread::Builder::new()
                .name("services".into())
                .spawn(move || serve(&shared, &mailbox, &inject))
                .map_err(|error| Refusal::new(format!("cannot start the thread of services: {error}")))?
        };
        mailbox.read_by(thread.thread().clone());
        Ok(Self { shared, mailbox, inject, thread: Some(thread) })
    }

    /// Where workers put frames for services.
    pub fn mailbox(&self) -> Arc<Mailbox> {
        self.mailbox.clone()
    }

    /// Where a worker finds frames to send.
    pub fn inject(&self) -> Arc<Inject> {
        self.inject.clone()
    }

    fn unpark(&self) {
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }

    /// Serves an interface, or goes on with other settings. Leases stay, also those of before a restart; if `dhcp` is
    /// `None`, nobody is given any until it is something again.
    pub fn set(&self, served: Served) {
        let clock = self.shared.clock();
        let mut state = lock(&self.shared.state);
        let Served { index, name, mac, dhcp, ra } = served;
        let mut old = state.interfaces.remove(&index);
        if let Some(old) = &mut old
            && (old.name != name || dhcp.is_none())
            && let Some(mut server) = old.dhcp.take()
        {
            server.close();
            state.todo.take_from(index, old.name, &mut server);
        }
        let (old_dhcp, old_ra) = old.map_or((None, None), |old| (old.dhcp, old.ra));
        let dhcp = dhcp.map(|config| match old_dhcp {
            Some(mut server) => {
                server.configure(config);
                server
            }
            None => {
                let mut store = lock(&self.shared.store);
                // What was decided for the name before is not yet written.
                store.keep(std::mem::take(&mut state.todo.changes), clock, &mut warn);
                let mut server = Server::new(config);
                for (address, lease) in store.leases_of(name, clock) {
                    server.restore(clock.now, address, lease);
                }
                server
            }
        });
        let now = self.shared.milliseconds();
        let ra = match (old_ra, ra) {
            (Some(mut advertiser), Some(config)) => {
                advertiser.configure(config, now);
                Some(advertiser)
            }
            (None, Some(config)) => Some(Advertiser::new(config, now, seed())),
            (Some(advertiser), None) => {
                let frame = advertiser.farewell();
                state.todo.frames.push(Outgoing { interface: index, port: None, frame });
                None
            }
            (None, None) => None,
        };
        let mut interface = Interface { name, mac, dhcp, ra, warned: None };
        state.todo.take(index, &mut interface);
        state.interfaces.insert(index, interface);
        drop(state);
        self.unpark();
    }

    /// Serves an interface no longer. Its leases are kept for the day when an interface of its name is served again,
    /// unless [`Services::forget`] came before.
    pub fn remove(&self, index: u16) {
        let mut state = lock(&self.shared.state);
        let Some(mut interface) = state.interfaces.remove(&index) else { return };
        if let Some(dhcp) = &mut interface.dhcp {
            dhcp.close();
        }
        state.todo.take(index, &mut interface);
        state.probes.retain(|probe| probe.interface != index);
        state.announcements.retain(|announcement| announcement.interface != index);
        if let Some(ra) = &interface.ra {
            state.todo.frames.push(Outgoing { interface: index, port: None, frame: ra.farewell() });
        }
        drop(state);
        self.unpark();
    }

    /// Forgets the leases of an interface: its clients are to be given anything.
    pub fn forget(&self, index: u16) {
        let mut state = lock(&self.shared.state);
        let State { interfaces, todo, .. } = &mut *state;
        let Some(interface) = interfaces.get_mut(&index) else { return };
        if let Some(dhcp) = &mut interface.dhcp {
            let config = dhcp.config().clone();
            dhcp.close();
            todo.take_from(index, interface.name, dhcp);
            *dhcp = Server::new(config);
        }
        let name = interface.name;
        todo.changes.retain(|(of, ..)| *of != name);
        let mut store = lock(&self.shared.store);
        drop(state);
        store.forget(name, self.shared.clock(), &mut warn);
        self.unpark();
    }

    /// Tells the network of an interface that is served, or will be, that these addresses are at `mac` now (gratuitous
    /// ARP, unsolicited neighbour advertisements).
    pub fn announce(&self, index: u16, mac: Mac, addresses: impl IntoIterator<Item = IpAddr>) {
        let mut state = lock(&self.shared.state);
        let at = self.shared.milliseconds();
        for address in addresses {
            state.announcements.retain(|one| (one.interface, one.address) != (index, address));
            state.announcements.push(Announcement {
                interface: index,
                mac,
                address,
                left: ANNOUNCEMENTS.0,
                at,
            });
        }
        drop(state);
        self.unpark();
    }

    /// All leases, for another process.
    pub fn export(&self) -> Vec<KeptLease> {
        let clock = self.shared.clock();
        let state = lock(&self.shared.state);
        let served = state.interfaces.values().filter_map(|one| Some((one.name, one.dhcp.as_ref()?)));
        let kept = served
            .flat_map(|(name, server)| server.leases().map(move |(address, lease)| (name, address, lease)));
        kept.map(|(interface, address, lease)| KeptLease {
            interface,
            address,
            mac: lease.mac,
            identity: lease.identity.clone(),
            hostname: lease.hostname.clone(),
            port: lease.port,
            state: lease.state,
            expires: clock.wall_time(lease.expires),
        })
        .collect()
    }

    /// Takes over leases of another process. False for one of an interface that serves none.
    pub fn restore(&self, kept: KeptLease) -> bool {
        let clock = self.shared.clock();
        let mut state = lock(&self.shared.state);
        let State { interfaces, todo, .. } = &mut *state;
        let found = interfaces.iter_mut().find(|(_, one)| one.name == kept.interface);
        let Some((&index, Interface { dhcp: Some(server), .. })) = found else { return false };
        let lease = Lease {
            mac: kept.mac,
            identity: kept.identity,
            hostname: kept.hostname,
            port: kept.port,
            state: kept.state,
            expires: clock.since_start(kept.expires),
        };
        server.release(kept.address);
        server.restore(clock.now, kept.address, lease.clone());
        todo.take_from(index, kept.interface, server);
        todo.changes.push((kept.interface, kept.address, Some(lease)));
        drop(state);
        self.unpark();
        true
    }

    /// Keeps leases in a state directory from now on, that of a process which has ended.
    pub fn settle(&self, directory: &Path) {
        let clock = self.shared.clock();
        let mut state = lock(&self.shared.state);
        let changes = std::mem::take(&mut state.todo.changes);
        let mut store = lock(&self.shared.store);
        drop(state);
        store.keep(changes, clock, &mut warn);
        store.settle(directory, clock, &mut warn);
    }

    /// Who has which address of an interface.
    pub fn leases(&self, index: u16) -> Vec<Listing> {
        let now = self.shared.clock().now;
        let state = lock(&self.shared.state);
        state
            .interfaces
            .get(&index)
            .and_then(|one| one.dhcp.as_ref())
            .map(|dhcp| dhcp.list(now))
            .unwrap_or_default()
    }

    /// How often what happened at an interface.
    pub fn counters(&self, index: u16) -> Counters {
        let state = lock(&self.shared.state);
        state
            .interfaces
            .get(&index)
            .and_then(|one| one.dhcp.as_ref())
            .map(Server::counters)
            .unwrap_or_default()
    }

    /// Takes an address back without telling its client; false if nothing is known of it.
    pub fn release(&self, index: u16, address: Ipv4Addr) -> bool {
        let mut state = lock(&self.shared.state);
        let State { interfaces, todo, .. } = &mut *state;
        let Some(interface) = interfaces.get_mut(&index) else { return false };
        let known = interface.dhcp.as_mut().is_some_and(|dhcp| dhcp.release(address));
        todo.take(index, interface);
        drop(state);
        self.unpark();
        known
    }

    /// Nobody is behind this port any more: its number may become another's.
    pub fn port_gone(&self, port: u16) {
        let mut state = lock(&self.shared.state);
        state
            .interfaces
            .values_mut()
            .filter_map(|one| one.dhcp.as_mut())
            .for_each(|dhcp| dhcp.port_gone(port));
    }
}

impl Services {
    /// Ends the services: hosts are told that there is no router any more. Workers should still run, since they send
    /// that; leases can still be listed.
    pub fn close(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn milliseconds(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    fn clock(&self) -> Clock {
        Clock { now: EPOCH + self.start.elapsed().as_secs(), wall: SystemTime::now() }
    }
}

/// A number that differs from start to start and from call to call.
fn seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}

/// Serves until the end.
fn serve(shared: &Shared, mailbox: &Mailbox, inject: &Inject) {
    let mut refill = None;
    while !shared.stop.load(Ordering::Relaxed) {
        let mut state = lock(&shared.state);
        let clock = shared.clock();
        while mailbox.take(|letter| state.take_letter(clock.now, shared.milliseconds(), letter)) {}
        state.keep_time(clock.now, shared.milliseconds());
        let deadline = state.next_deadline(clock.now);
        carry_out(state, shared, inject);
        let now = shared.milliseconds();
        if mailbox.needs_refill() {
            let at = *refill.get_or_insert(now + 1000);
            if at <= now {
                mailbox.refill();
                refill = None;
            }
        }
        let until = deadline.into_iter().chain(refill).min();
        match until {
            Some(at) => std::thread::park_timeout(Duration::from_millis(at.saturating_sub(now))),
            None => std::thread::park(),
        }
    }
    let mut state = lock(&shared.state);
    let State { interfaces, todo, .. } = &mut *state;
    for (&interface, one) in interfaces.iter() {
        if let Some(ra) = &one.ra {
            todo.frames.push(Outgoing { interface, port: None, frame: ra.farewell() });
        }
    }
    carry_out(state, shared, inject);
    // Workers go on until services have ended: they send what is left.
    let patience = Instant::now() + FAREWELL;
    while !inject.is_empty() && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Does what was decided. The store is locked before the state is let go of, so that whoever has locked the state finds
/// in the store all that was decided before.
fn carry_out(mut state: MutexGuard<'_, State>, shared: &Shared, inject: &Inject) {
    let todo = std::mem::take(&mut state.todo);
    if todo.changes.is_empty() {
        drop(state);
    } else {
        let mut store = lock(&shared.store);
        drop(state);
        store.keep(todo.changes, shared.clock(), &mut warn);
    }
    for notice in todo.notices {
        (shared.notify)(notice);
    }
    let mut sent = false;
    for Outgoing { interface, port, frame } in todo.frames {
        sent |= inject.push(interface, port, &frame);
    }
    if sent {
        (shared.wake)();
    }
}

impl Todo {
    /// Takes what the server of an interface wants to be done.
    fn take(&mut self, index: u16, interface: &mut Interface) {
        if let Some(dhcp) = &mut interface.dhcp {
            self.take_from(index, interface.name, dhcp);
        }
    }

    fn take_from(&mut self, index: u16, name: Name, dhcp: &mut Server) {
        let effects = dhcp.effects();
        self.changes.extend(effects.changes.into_iter().map(|change| (name, change.address, change.lease)));
        self.notices.extend(effects.events.into_iter().map(|event| Notice { interface: index, event }));
    }
}

impl State {
    fn take_letter(&mut self, now: u64, milliseconds: u64, letter: &super::mailbox::Letter) {
        let index = letter.interface();
        let (Some(interface), Some(port)) = (self.interfaces.get_mut(&index), letter.port()) else { return };
        match read(letter) {
            Some(Incoming::Dhcp { mac, source, message }) => {
                if let Some(dhcp) = &mut interface.dhcp {
                    let outcome = dhcp.handle(now, message, &Origin { port, mac, source });
                    self.follow(index, outcome, milliseconds);
                }
            }
            Some(Incoming::RouterSolicitation { mac, source }) => {
                if let Some(ra) = &mut interface.ra {
                    ra.solicited(milliseconds, source, mac, port);
                }
            }
            Some(Incoming::InUse { mac, address }) => {
                let probe = self.probes.iter().position(|p| (p.interface, p.address) == (index, address));
                // The client's own answer does not end the probe: somebody else's may come as well.
                if let Some(probe) = probe
                    && let Some(dhcp) = &mut interface.dhcp
                    && dhcp.is_other(address, mac, port)
                {
                    self.probes.swap_remove(probe);
                    let outcome = dhcp.probed(now, address, Some((mac, port)));
                    self.follow(index, outcome, milliseconds);
                }
            }
            None => {}
        }
    }

    fn keep_time(&mut self, now: u64, milliseconds: u64) {
        for (&index, interface) in &mut self.interfaces {
            if let Some(dhcp) = &mut interface.dhcp {
                dhcp.tick(now);
            }
            self.todo.take(index, interface);
            while let Some(due) = interface.ra.as_mut().and_then(|ra| ra.poll(milliseconds)) {
                self.todo.frames.push(Outgoing { interface: index, port: due.port, frame: due.frame });
            }
        }
        while let Some(due) = self.probes.iter().position(|probe| probe.at <= milliseconds) {
            let Probe { interface: index, address, left, .. } = self.probes[due];
            if left > 0 {
                self.ask(due, milliseconds);
                continue;
            }
            self.probes.swap_remove(due);
            if let Some(dhcp) = self.interfaces.get_mut(&index).and_then(|one| one.dhcp.as_mut()) {
                let outcome = dhcp.probed(now, address, None);
                self.follow(index, outcome, milliseconds);
            }
        }
        for one in self.announcements.iter_mut().filter(|one| one.at <= milliseconds) {
            let frame = match one.address {
                IpAddr::V4(v4) => Arp::announcement(one.mac, v4.to_bits()).frame(None).to_vec(),
                IpAddr::V6(v6) => {
                    let (frame, len) = nd::advertisement(one.mac, v6.to_bits(), None);
                    frame[..len].to_vec()
                }
            };
            self.todo.frames.push(Outgoing { interface: one.interface, port: None, frame });
            one.left -= 1;
            one.at = milliseconds + ANNOUNCEMENTS.1;
        }
        self.announcements.retain(|one| one.left > 0);
    }

    /// Sends a probe and notes when to go on: whoever has the address gets the whole time for an answer, also if this
    /// thread comes late.
    fn ask(&mut self, probe: usize, milliseconds: u64) {
        let Probe { interface: index, address, ref mut left, ref mut at } = self.probes[probe];
        *left -= 1;
        *at = milliseconds + PROBES.1;
        if let Some(interface) = self.interfaces.get(&index) {
            let frame = Arp::probe(interface.mac, address.to_bits()).frame(None).to_vec();
            self.todo.frames.push(Outgoing { interface: index, port: None, frame });
        }
    }

    /// Does what the DHCP server wants.
    fn follow(&mut self, index: u16, outcome: Outcome, milliseconds: u64) {
        let Some(interface) = self.interfaces.get_mut(&index) else { return };
        self.todo.take(index, interface);
        let name = interface.name;
        match outcome {
            Outcome::Answer(answer) => {
                let Some(dhcp) = &interface.dhcp else { return };
                tracing::debug!("dhcp {name}: {:?} {} to {}", answer.kind, answer.address, answer.mac);
                let link = Link { destination: answer.mac, source: interface.mac };
                let server = dhcp.config().server.addr();
                if let Some(frame) = to_client(link, server, answer.destination, &answer.message) {
                    self.todo.frames.push(Outgoing { interface: index, port: Some(answer.port), frame });
                }
            }
            Outcome::Probe(address) => {
                self.probes.retain(|probe| (probe.interface, probe.address) != (index, address));
                self.probes.push(Probe { interface: index, address, left: PROBES.0, at: milliseconds });
                self.ask(self.probes.len() - 1, milliseconds);
            }
            Outcome::Silence(
                silence @ (Silence::Exhausted | Silence::PortLimit | Silence::Relayed | Silence::Elsewhere),
            ) => {
                // Once in a while: a guest can bring this about as often as it likes.
                if interface.warned.is_none_or(|at| milliseconds >= at + WARNINGS) {
                    interface.warned = Some(milliseconds);
                    tracing::warn!("dhcp {name}: a request was not answered: {silence}");
                }
            }
            Outcome::Silence(silence) => tracing::debug!("dhcp {name}: no answer: {silence}"),
        }
    }

    /// The millisecond at which something is to be done.
    fn next_deadline(&self, now: u64) -> Option<u64> {
        let leases = self.interfaces.values().filter_map(|one| one.dhcp.as_ref()?.next_deadline());
        let leases = leases.map(|second| (second.max(now) - EPOCH).saturating_mul(1000));
        let ra = self.interfaces.values().filter_map(|one| Some(one.ra.as_ref()?.next_deadline()));
        let probes = self.probes.iter().map(|probe| probe.at);
        let announcements = self.announcements.iter().map(|one| one.at);
        leases.chain(ra).chain(probes).chain(announcements).min()
    }
}

#[cfg(test)]
mod tests;
