//! The services of one scope, the global one or a container's: looked up by workers, changed by the control thread in
//! transactions, with Linux's rules for what is refused and for what becomes of deleted servers.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::account::{Account, Totals};
use super::destination::Destination;
use super::draft::{Change, Draft, Drafted};
use super::error::{Error, Failed};
use super::list::{Item, relieves};
use super::registry::Registry;
use super::schedulers::Edits;
use super::service::{Service, View};
use super::settings::{Settings, Timeouts};
use super::spec::{DestinationSpec, Scheduler, ServiceKey, ServiceSpec};
use super::table::ServiceTable;
use super::trash::Trash;

/// So many services' tables are worked out at once,
const PREPARED: usize = 64;
/// so many more by a thread; those of others when their first connection comes.
const PREPARED_LATER: usize = 20_000;

/// What connections have counted that was not added to servers' [`super::account::Stats`] yet, by servers' numbers.
pub type Live = HashMap<u32, Totals>;

/// A service with its servers, for a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceListing {
    /// What was asked for.
    pub spec: ServiceSpec,
    /// Its counters.
    pub totals: Totals,
    /// Its servers in Linux's order, the last added one first.
    pub destinations: Vec<DestinationListing>,
}

/// A server, for a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DestinationListing {
    /// Its number.
    pub id: u32,
    /// What was asked for.
    pub spec: DestinationSpec,
    /// Connections in use.
    pub active: u32,
    /// Connections that begin or end.
    pub inactive: u32,
    /// Templates of persistence.
    pub templates: u32,
    /// Whether it gets no new connections because it has too many.
    pub overloaded: bool,
    /// Its counters.
    pub totals: Totals,
}

/// What [`Scope::replace`] changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replaced {
    /// Services and servers added.
    pub added: usize,
    /// Services and servers edited.
    pub edited: usize,
    /// Services and servers deleted.
    pub deleted: usize,
}

/// What the control thread alone knows.
#[derive(Debug, Default)]
struct Control {
    rules: usize,
    serial: u64,
    trash: Trash,
    /// Services whose schedulers remember addresses, and some that were such.
    local: Vec<Weak<Service>>,
    /// When they were looked after.
    looked: u32,
}

/// A table of services with its settings.
#[derive(Debug)]
pub struct Scope {
    name: Option<String>,
    limit: usize,
    registry: Arc<Registry>,
    settings: Arc<Settings>,
    /// The services, for workers.
    pub table: ServiceTable,
    control: Mutex<Control>,
}

impl Scope {
    pub(super) fn new(name: Option<String>, limit: usize, registry: Arc<Registry>) -> Self {
        Self {
            name,
            limit,
            registry,
            settings: Arc::default(),
            table: ServiceTable::new(limit),
            control: Mutex::default(),
        }
    }

    /// The container's name; `None`: the global scope.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// How many rules (services and servers) it may have.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// How many rules it has.
    pub fn rules(&self) -> usize {
        self.control().rules
    }

    /// Its settings.
    pub fn settings(&self) -> &Arc<Settings> {
        &self.settings
    }

    fn control(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn one(&self, change: Change) -> Result<(), Error> {
        self.apply([change]).map_err(|failed| failed.error)
    }

    /// `-A`.
    pub fn add_service(&self, spec: ServiceSpec) -> Result<(), Error> {
        self.one(Change::AddService(spec))
    }

    /// `-E`.
    pub fn edit_service(&self, spec: ServiceSpec) -> Result<(), Error> {
        self.one(Change::EditService(spec))
    }

    /// `-D`.
    pub fn delete_service(&self, key: ServiceKey) -> Result<(), Error> {
        self.one(Change::DeleteService(key))
    }

    /// `-C`.
    pub fn flush(&self) {
        // A flush is always possible.
        let _ = self.one(Change::Flush);
    }

    /// `-a`.
    pub fn add_destination(&self, key: ServiceKey, spec: DestinationSpec) -> Result<(), Error> {
        self.one(Change::AddDestination(key, spec))
    }

    /// `-e`.
    pub fn edit_destination(&self, key: ServiceKey, spec: DestinationSpec) -> Result<(), Error> {
        self.one(Change::EditDestination(key, spec))
    }

    /// `-d`.
    pub fn delete_destination(&self, key: ServiceKey, address: IpAddr, port: u16) -> Result<(), Error> {
        self.one(Change::DeleteDestination(key, address, port))
    }

    /// `--set`; 0 leaves a timeout as it is.
    pub fn set_timeouts(&self, timeouts: Timeouts) {
        self.settings.set_timeouts(timeouts);
        if let Some(act) = self.registry.retimed.get() {
            (act.0)();
        }
    }

    /// Makes all of these changes in their order, or none of them.
    pub fn apply(&self, changes: impl IntoIterator<Item = Change>) -> Result<(), Failed> {
        let mut control = self.control();
        let mut draft = Draft::new(&self.table, control.rules, self.limit);
        let mut last = None;
        for (index, change) in changes.into_iter().enumerate() {
            draft.change(&change).map_err(|error| Failed { index, error })?;
            if let Change::AddDestination(key, spec) = change {
                last = Some((index, key, (spec.address, spec.port)));
            }
        }
        // All scopes together may have as many as there are numbers for.
        if let Some((index, key, server)) = last
            && draft.new_servers > self.registry.room()
        {
            let error = Error::Full { key, server: Some(server), limit: self.limit };
            return Err(Failed { index, error });
        }
        if let Some(timeouts) = draft.timeouts {
            self.set_timeouts(timeouts);
        }
        self.commit(&mut control, draft);
        Ok(())
    }

    fn commit(&self, control: &mut Control, draft: Draft<'_>) {
        let Draft { rules, services, removed, .. } = draft;
        control.rules = rules;
        for service in &removed {
            control.trash.bury_service(service, &self.registry);
        }
        let mut new = Vec::new();
        // What takes long is done before services change if they are few, and beside the packets if they are many.
        let (mut prepared, mut later) = (0, Vec::new());
        let mut withdrawn = !removed.is_empty();
        for (key, drafted) in services {
            let Some(Drafted { base, spec, list, edited, restarted }) = drafted else {
                continue;
            };
            if base.is_some() && list.is_none() && !edited {
                continue;
            }
            let (serial, account) = match &base {
                Some(base) => (base.serial, Arc::clone(base.account())),
                None => {
                    control.serial += 1;
                    let account = control.trash.account(&key);
                    let make = || Arc::new(Account::new(key, Arc::clone(&self.settings)));
                    (control.serial, account.unwrap_or_else(make))
                }
            };
            let (items, edits, dropped) = match list {
                Some(list) => list.finish(),
                None => {
                    let servers = base.as_ref().map(|base| base.view().destinations.to_vec());
                    let kept = servers.into_iter().flatten().map(Item::Kept).collect();
                    (kept, Edits::default(), Vec::new())
                }
            };
            let place = |item| self.place(&mut control.trash, &account, serial, item);
            let destinations = items.into_iter().filter_map(place).collect();
            let local = matches!(spec.scheduler, Some(Scheduler::Lblc | Scheduler::Lblcr));
            let view = View::new(spec, destinations);
            let unprepared = view.is_unprepared();
            if unprepared && prepared < PREPARED {
                prepared += 1;
                view.prepare();
            } else if unprepared && later.len() < PREPARED_LATER {
                later.push(key);
            }
            match base {
                Some(base) => {
                    base.change(view, &Edits { restarted, ..edits });
                    if local && restarted {
                        control.local.push(Arc::downgrade(&base));
                    }
                }
                None => {
                    let service = Arc::new(Service::new(serial, account, view, &edits));
                    if local {
                        control.local.push(Arc::downgrade(&service));
                    }
                    new.push(service);
                }
            }
            for server in dropped {
                withdrawn = true;
                control.trash.bury(server, serial, &self.registry);
            }
        }
        self.registry.services.fetch_add(new.len(), Ordering::SeqCst);
        self.table.change(&removed, &new);
        self.registry.services.fetch_sub(removed.len(), Ordering::SeqCst);
        control.trash.retire(removed);
        if let Some(act) = self.registry.withdrawn.get().filter(|_| withdrawn) {
            (act.0)();
        }
        prepare(later.iter().filter_map(|key| self.table.get(key)).collect());
    }

    /// The server of an item of a finished list.
    fn place(
        &self,
        trash: &mut Trash,
        account: &Arc<Account>,
        serial: u64,
        item: Item,
    ) -> Option<Arc<Destination>> {
        let (server, wanted) = match item {
            Item::Kept(server) => return Some(server),
            Item::Changed(server, wanted) => (server, wanted),
            Item::New(mut wanted) => {
                let (address, port) = (wanted.spec.address, wanted.spec.port);
                let server = if let Some(server) = trash.take(account.key(), address, port, serial) {
                    wanted.relieve |= wanted.added_with.is_some_and(|upper| relieves(upper, server.upper()));
                    server
                } else {
                    let make = |id| Destination::new(id, address, port, Arc::clone(account));
                    self.registry.enter(make)?
                };
                (server, wanted)
            }
        };
        server.update(&wanted.spec, wanted.last_weight, wanted.relieve);
        Some(server)
    }

    /// The fewest changes that make the table what `wanted` says, and how many of which kind.
    pub fn difference(&self, wanted: &[(ServiceSpec, Vec<DestinationSpec>)]) -> (Vec<Change>, Replaced) {
        super::difference::difference(&self.table, wanted)
    }

    /// Makes the table what `wanted` says, by the fewest changes: what is in both stays, with its connections.
    pub fn replace(&self, wanted: &[(ServiceSpec, Vec<DestinationSpec>)]) -> Result<Replaced, Failed> {
        let (changes, replaced) = super::difference::difference(&self.table, wanted);
        self.apply(changes)?;
        Ok(replaced)
    }

    /// What was asked for of a service: itself, and its servers in the order in which they were added.
    pub fn asked(&self, key: &ServiceKey) -> Option<(ServiceSpec, Vec<DestinationSpec>)> {
        self.table.get(key).map(|service| asked(&service))
    }

    /// The same of all services, in no order that means anything.
    pub fn all_asked(&self) -> impl Iterator<Item = (ServiceSpec, Vec<DestinationSpec>)> {
        self.table.all().into_iter().map(|service| asked(&service))
    }

    /// A service, for a listing.
    pub fn service(&self, key: &ServiceKey, live: &Live) -> Option<ServiceListing> {
        self.table.get(key).map(|service| listing(&service, live))
    }

    /// All services, in no order that means anything.
    pub fn services(&self, live: &Live) -> Vec<ServiceListing> {
        self.table.all().iter().map(|service| listing(service, live)).collect()
    }

    /// `-Z`: counts from here on, for one service or all.
    pub fn zero(&self, key: Option<&ServiceKey>, live: &Live) -> Result<(), Error> {
        let services = match key {
            Some(key) => vec![self.table.get(key).ok_or(Error::NoSuchService(*key))?],
            None => self.table.all(),
        };
        for service in services {
            let mut sum = Totals::default();
            for server in &service.view().destinations {
                let live = live.get(&server.id()).copied().unwrap_or_default();
                server.stats.zero(live);
                sum = sum.plus(live);
            }
            service.account().stats.zero(sum);
        }
        Ok(())
    }

    /// Forgets what lies in the trash for long; to be called about once a second. `now` is [`crate::clock::seconds`].
    pub fn tick(&self, now: u32) {
        let mut control = self.control();
        control.trash.tick(now, &self.registry);
        if now.wrapping_sub(control.looked) >= 60 {
            control.looked = now;
            control.local.retain(|service| match service.upgrade() {
                Some(service) => {
                    service.tick(now);
                    true
                }
                None => false,
            });
        }
    }

    /// Whether there are such as [`Self::deleted`] gives.
    pub fn has_deleted(&self) -> bool {
        !self.control().trash.is_empty()
    }

    /// The deleted servers that have connections or may come back soon.
    pub fn deleted(&self) -> Vec<Arc<Destination>> {
        self.control().trash.all()
    }
}

/// Has the tables of services worked out by a thread that ends with that. Without one they are when they are needed.
fn prepare(services: Vec<Arc<Service>>) {
    if services.is_empty() {
        return;
    }
    let work = move || services.iter().for_each(|service| service.view().prepare());
    if let Err(error) = std::thread::Builder::new().name("ipvs-tables".into()).spawn(work) {
        tracing::warn!(%error, "no thread for the tables of virtual services");
    }
}

fn asked(service: &Service) -> (ServiceSpec, Vec<DestinationSpec>) {
    let view = service.view();
    (view.spec.clone(), view.destinations.iter().rev().map(|server| server.spec()).collect())
}

fn listing(service: &Service, live: &Live) -> ServiceListing {
    let view = service.view();
    let mut sum = Totals::default();
    let destinations = view.destinations.iter().map(|server| {
        let live = live.get(&server.id()).copied().unwrap_or_default();
        sum = sum.plus(live);
        DestinationListing {
            id: server.id(),
            spec: server.spec(),
            active: server.active(),
            inactive: server.inactive(),
            templates: server.templates(),
            overloaded: server.is_overloaded(),
            totals: server.stats.totals(live),
        }
    });
    let destinations = destinations.collect();
    ServiceListing { spec: view.spec.clone(), totals: service.account().stats.totals(sum), destinations }
}
