//! The new process' side of what was learned: entered as it is told, while the workers stand still.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use zerocopy::FromBytes;

use super::message::{Final, Record};
use super::port;
use crate::clock;
use crate::conntrack::handover::{Kept, Places, RECORD, worker_of};
use crate::ipvs::Ipvs;
use crate::ipvs::connection::{counted, scope_number};
use crate::ipvs::destination::Counted;
use crate::ipvs::draft::Change;
use crate::ipvs::scope::Scope;
use crate::ipvs::spec::{Scheduler, SchedulerFlags, ServiceSpec};
use crate::l2::fdb::Key;
use crate::refusal::Refusal;
use crate::switch::Switch;

/// How long a worker may take for what it is given at once.
const PATIENCE: Duration = Duration::from_secs(20);

/// What was heard so far.
pub(super) struct Heard {
    /// Servers by their numbers there.
    servers: HashMap<u32, u32>,
    /// Templates by their numbers there.
    templates: HashMap<u32, u32>,
    /// Where connections are, of each worker.
    places: Vec<Arc<Mutex<Places>>>,
    /// Servers that were deleted there, and are to be here: the last first.
    deleted: Vec<(Arc<Scope>, Change)>,
    /// What there was no room for, or no server.
    left_out: Arc<AtomicU64>,
}

fn nonsense(what: &str) -> Refusal {
    Refusal::new(format!("the hand-over's {what} are cut off"))
}

impl Heard {
    pub(super) fn new(workers: usize) -> Self {
        Self {
            servers: HashMap::new(),
            templates: HashMap::new(),
            deleted: Vec::new(),
            places: (0..workers).map(|_| Arc::default()).collect(),
            left_out: Arc::default(),
        }
    }

    /// Entries that could not be taken over.
    pub(super) fn left_out(&self) -> u64 {
        self.left_out.load(Ordering::Relaxed)
    }

    fn leave_out(&self) {
        self.left_out.fetch_add(1, Ordering::Relaxed);
    }

    /// Enters what was learned.
    pub(super) fn record(&mut self, switch: &Switch, record: Record) {
        let now = clock::seconds();
        match record {
            Record::Station { bridge, mac, vlan, port, age } => {
                if let Some(bridge) = switch.bridges.get(&bridge) {
                    bridge.fdb.restore(Key::new(mac.0, vlan), port, age, now);
                }
            }
            Record::Neighbour(entry) => {
                if let Some(live) = &switch.live {
                    live.neighbours.restore(&entry, now);
                }
            }
            Record::Mapping(mapping) => {
                if !switch.router.nat.restore_mapping(&mapping) {
                    self.leave_out();
                }
            }
            Record::MappingGone { protocol, inside } => switch.router.nat.forget_mapping(protocol, inside),
            Record::Lease(lease) => {
                if !switch.live.as_ref().is_some_and(|live| live.services.restore(lease)) {
                    self.leave_out();
                }
            }
            Record::LeaseGone { interface, address } => {
                if let Some(live) = &switch.live
                    && let Some(index) = live.index(&interface)
                {
                    live.services.release(index, address);
                }
            }
            Record::Server { scope, service, address, port, number, counted } => {
                let ipvs = &switch.router.ipvs;
                let found = scope_of(ipvs, scope.as_deref()).and_then(|scope| scope.table.get(&service));
                let Some(found) = found else { return };
                let view = found.view();
                let same = |server: &&Arc<_>| {
                    let server: &crate::ipvs::destination::Destination = server;
                    (server.address(), server.port()) == (address, port)
                };
                if let Some(server) = view.destinations.iter().find(same) {
                    server.stats.restore(counted);
                    self.servers.insert(number, server.id());
                }
            }
            Record::Deleted { scope, service, server, number, counted } => {
                // It is deleted again when its connections are here.
                let Some(scope) = scope_of(&switch.router.ipvs, scope.as_deref()) else { return };
                let (address, port) = (server.address, server.port);
                let mut changes = Vec::new();
                if scope.table.get(&service).is_none() {
                    changes.push(Change::AddService(ServiceSpec {
                        key: service,
                        scheduler: Some(Scheduler::Rr),
                        flags: SchedulerFlags::default(),
                        persistence: None,
                        one_packet: false,
                    }));
                }
                let gone = match changes.is_empty() {
                    true => Change::DeleteDestination(service, address, port),
                    false => Change::DeleteService(service),
                };
                changes.push(Change::AddDestination(service, server));
                if scope.apply(changes).is_err() {
                    return self.leave_out();
                }
                let found = scope.table.get(&service).and_then(|service| {
                    let view = service.view();
                    view.destinations
                        .iter()
                        .find(|one| (one.address(), one.port()) == (address, port))
                        .cloned()
                });
                if let Some(server) = found {
                    server.stats.restore(counted);
                    self.servers.insert(number, server.id());
                }
                self.deleted.push((scope, gone));
            }
            Record::Service { scope, service, counted } => {
                let found = scope_of(&switch.router.ipvs, scope.as_deref());
                let found = found.and_then(|scope| scope.table.get(&service));
                if let Some(first) =
                    found.as_ref().and_then(|service| service.view().destinations.first().cloned())
                {
                    first.account().stats.restore(counted);
                }
            }
            Record::Template(template) => {
                let ipvs = &switch.router.ipvs;
                let server = self.servers.get(&template.destination).copied();
                let Some(server) = server.and_then(|id| ipvs.destination(id).clone()) else {
                    return self.leave_out();
                };
                if !server.bind(Counted::Template) {
                    return self.leave_out();
                }
                let scope = scope_number(server.account().settings());
                let over = |server| ipvs.template_over(server);
                match ipvs.templates.restore(&template, server.id(), scope, now, over) {
                    Ok(number) => {
                        // One that was told before waits for its connections, and ends with them.
                        self.templates.insert(template.number, number);
                        ipvs.note_use();
                    }
                    Err(_) => {
                        server.unbind(Counted::Template);
                        self.leave_out();
                    }
                }
            }
        }
    }

    /// Enters connections.
    ///
    /// # Errors
    /// They are cut off or contradict themselves, or a worker does not answer.
    pub(super) fn connections(&mut self, switch: &Switch, payload: &[u8]) -> Result<(), Refusal> {
        if !payload.len().is_multiple_of(RECORD) {
            return Err(nonsense("connections"));
        }
        let mut batches: Vec<Vec<Kept>> = self.places.iter().map(|_| Vec::new()).collect();
        for bytes in payload.chunks_exact(RECORD) {
            let mut kept = Kept::read_from_bytes(bytes).map_err(|_| nonsense("connections"))?;
            kept.check().map_err(|error| Refusal::new(error.to_string()))?;
            let Some(live) = &switch.live else {
                self.leave_out();
                continue;
            };
            if kept.place & 0xffff_ffff >= 4 * u64::from(live.conntrack.shared.capacity()) + (1 << 24) {
                return Err(Refusal::new("a connection's place is out of range"));
            }
            if kept.is_balanced() && !self.balance(&switch.router.ipvs, &mut kept) {
                self.leave_out();
                continue;
            }
            let workers = batches.len();
            batches[worker_of(kept.place, workers)].push(kept);
        }
        let left_out = self.left_out.clone();
        self.have_workers(switch, batches, move |conntrack, local, places, ipvs, kept: Kept| {
            if conntrack.take_over(local, places, &kept, clock::seconds()).is_err() {
                left_out.fetch_add(1, Ordering::Relaxed);
                release(ipvs, &kept);
            }
            places.take_dropped().iter().for_each(|kept| release(ipvs, kept));
        })
    }

    /// All that has changed so far was told: connections that waited for others' ends are entered.
    ///
    /// # Errors
    /// A worker does not answer.
    pub(super) fn settle(&mut self, switch: &Switch) -> Result<(), Refusal> {
        let waits =
            |places: &Arc<Mutex<Places>>| places.lock().unwrap_or_else(PoisonError::into_inner).is_waiting();
        let batches = self.places.iter().map(|places| if waits(places) { vec![()] } else { Vec::new() });
        let left_out = self.left_out.clone();
        self.have_workers(switch, batches.collect(), move |conntrack, local, places, ipvs, ()| {
            for kept in conntrack.take_over_waiting(local, places, clock::seconds()) {
                left_out.fetch_add(1, Ordering::Relaxed);
                release(ipvs, &kept);
            }
        })
    }

    /// Gives a connection the numbers that its server and template have here, and counts it at its server.
    fn balance(&self, ipvs: &Ipvs, kept: &mut Kept) -> bool {
        let Some(&server) = self.servers.get(&kept.destination) else { return false };
        let bound =
            ipvs.destination(server).as_deref().is_some_and(|one| one.bind(counted(kept.is_active())));
        kept.destination = server;
        kept.template = self.templates.get(&kept.template).copied().unwrap_or(0);
        if bound {
            ipvs.templates.hold(kept.template);
            ipvs.note_use();
        }
        bound
    }

    /// Removes connections that are no more.
    ///
    /// # Errors
    /// They are cut off, or a worker does not answer.
    pub(super) fn gone(&mut self, switch: &Switch, payload: &[u8]) -> Result<(), Refusal> {
        let (places, rest) = payload.as_chunks::<8>();
        if !rest.is_empty() {
            return Err(nonsense("connections"));
        }
        let mut batches: Vec<Vec<u64>> = self.places.iter().map(|_| Vec::new()).collect();
        let workers = batches.len();
        for bytes in places {
            let place = u64::from_ne_bytes(*bytes);
            if place >> 33 != 0 {
                return Err(Refusal::new("a connection's place is out of range"));
            }
            batches[worker_of(place, workers)].push(place);
        }
        self.have_workers(switch, batches, |conntrack, local, places, ipvs, place: u64| {
            conntrack.give_up(local, places, place);
            places.take_dropped().iter().for_each(|kept| release(ipvs, kept));
        })
    }

    /// Has each worker do something with each of its batch, and waits until all have.
    fn have_workers<T: Send + 'static>(
        &self,
        switch: &Switch,
        batches: Vec<Vec<T>>,
        act: impl Fn(&crate::conntrack::Conntrack, &mut crate::conntrack::Local, &mut Places, &Ipvs, T)
        + Clone
        + Send
        + 'static,
    ) -> Result<(), Refusal> {
        let Some(live) = &switch.live else { return Ok(()) };
        let mut waiting = 0;
        let (done, all) = sync_channel(batches.len());
        for ((worker, batch), places) in switch.workers.iter().zip(batches).zip(&self.places) {
            if batch.is_empty() {
                continue;
            }
            let (conntrack, ipvs) = (live.conntrack.clone(), switch.router.ipvs.clone());
            let (places, act, done) = (places.clone(), act.clone(), done.clone());
            worker.held.give(Box::new(move |stage| {
                let mut places = places.lock().unwrap_or_else(PoisonError::into_inner);
                for one in batch {
                    act(&conntrack, stage.connections(), &mut places, &ipvs, one);
                }
                let _ = done.send(());
            }));
            worker.wake();
            waiting += 1;
        }
        for _ in 0..waiting {
            all.recv_timeout(PATIENCE).map_err(|_| Refusal::new("a worker does not answer"))?;
        }
        Ok(())
    }

    /// Enters the rest.
    ///
    /// # Errors
    /// A port is missing, or its rings cannot stand where they are said to.
    pub(super) fn last(&mut self, switch: &Switch, last: Final) -> Result<(), Refusal> {
        for end in &last.ports {
            let member = switch.find_port(end.name.as_str())?;
            port::set_positions(member.port.attachment(), &end.positions)
                .map_err(|refusal| Refusal::new(format!("port {:?}: {refusal}", end.name.as_str())))?;
            let counted = |side: usize| {
                let counted = &end.counted[side];
                (counted.packets, counted.bytes, &counted.drops)
            };
            member.port.restore([counted(0), counted(1)]);
            member.port.owe(end.owed, clock::ticks());
        }
        self.settle(switch)?;
        for places in &self.places {
            let left = places.lock().unwrap_or_else(PoisonError::into_inner).end();
            self.left_out.fetch_add(left.len() as u64, Ordering::Relaxed);
            left.iter().for_each(|kept| release(&switch.router.ipvs, kept));
        }
        for (scope, change) in self.deleted.drain(..).rev() {
            scope.apply([change]).map_err(|failed| Refusal::new(failed.to_string()))?;
        }
        if let Some(live) = &switch.live {
            live.conntrack.expectations.restore(last.expectations);
        }
        Ok(())
    }
}

/// Nothing came of a connection that was counted at its server.
fn release(ipvs: &Ipvs, kept: &Kept) {
    if kept.is_balanced() {
        ipvs.templates.release(kept.template);
        if let Some(server) = ipvs.destination(kept.destination).as_deref() {
            server.unbind(counted(kept.is_active()));
        }
    }
}

fn scope_of(ipvs: &Ipvs, container: Option<&str>) -> Option<Arc<Scope>> {
    match container {
        None => Some(Arc::clone(ipvs.global())),
        Some(name) => ipvs.container(name),
    }
}
