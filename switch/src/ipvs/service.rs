//! A virtual service while the switch runs: what was asked for, its servers in Linux's order, and who is next.
//!
//! Workers see the spec and the servers as one immutable view. Schedulers that remember something keep it behind a lock
//! that is held for some tens of nanoseconds; a worker tries for it for a bounded time and then chooses without it.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use arc_swap::{ArcSwap, Guard};

use super::account::Account;
use super::destination::Destination;
use super::schedulers::{Edits, State, Table};
use super::spec::{ServiceKey, ServiceSpec};

/// How often a worker tries for a scheduler that another one uses: some tens of microseconds.
const PATIENCE: u32 = 500;

/// What schedulers may know of a new connection's first packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The client's address.
    pub source: IpAddr,
    /// The address that it called.
    pub destination: IpAddr,
    /// The client's port.
    pub source_port: u16,
}

/// A service as workers see it.
#[derive(Debug)]
pub struct View {
    /// What was asked for.
    pub spec: ServiceSpec,
    /// Its servers in the order in which Linux goes through them: the last added one first.
    pub destinations: Box<[Arc<Destination>]>,
    /// What its scheduler worked out beforehand.
    pub(super) table: Table,
}

impl View {
    pub(super) fn new(spec: ServiceSpec, destinations: Box<[Arc<Destination>]>) -> Self {
        let table = Table::new(spec.scheduler, &destinations);
        Self { spec, destinations, table }
    }

    /// Works out what takes long.
    pub(super) fn prepare(&self) {
        self.table.prepare(&self.destinations);
    }

    pub(super) fn is_unprepared(&self) -> bool {
        self.table.is_unprepared()
    }
}

/// A virtual service.
#[derive(Debug)]
pub struct Service {
    /// Which of the services that ever had this key.
    pub(super) serial: u64,
    key: ServiceKey,
    account: Arc<Account>,
    view: ArcSwap<View>,
    state: Mutex<State>,
}

impl Service {
    pub(super) fn new(serial: u64, account: Arc<Account>, view: View, edits: &Edits) -> Self {
        let view = Arc::new(view);
        let state = Mutex::new(State::new(&view, &account, edits));
        Self { serial, key: account.key(), account, view: ArcSwap::new(view), state }
    }

    /// What it is known by.
    #[inline]
    pub fn key(&self) -> ServiceKey {
        self.key
    }

    /// Its counters, the settings of its scope.
    #[inline]
    pub fn account(&self) -> &Arc<Account> {
        &self.account
    }

    /// What was asked for, and its servers. Not to be kept.
    #[inline]
    pub fn view(&self) -> Guard<Arc<View>> {
        self.view.load()
    }

    /// Chooses the server of a new connection, as Linux 6.1 would. `now` is [`crate::clock::seconds`].
    ///
    /// The caller counts the connection ([`Destination::bind`]) before the next choice can know of it.
    pub fn schedule(&self, flow: &Flow, now: u32) -> Option<Arc<Destination>> {
        let view = self.view.load();
        if let Ok(choice) = view.table.choose(&view, flow) {
            return choice.map(Arc::clone);
        }
        for _ in 0..PATIENCE {
            match self.state.try_lock() {
                Ok(mut state) => return state.choose(&self.account, flow, now),
                Err(TryLockError::Poisoned(poisoned)) => {
                    return poisoned.into_inner().choose(&self.account, flow, now);
                }
                Err(TryLockError::WouldBlock) => std::hint::spin_loop(),
            }
        }
        // Whoever holds the scheduler was interrupted: any server will do.
        let usable = |server: &&Arc<Destination>| server.weight() > 0 && !server.is_overloaded();
        let start = usize::from(flow.source_port) % view.destinations.len().max(1);
        let (before, from) = view.destinations.split_at(start.min(view.destinations.len()));
        from.iter().chain(before).take(64).find(usable).map(Arc::clone)
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Housekeeping of schedulers that remember addresses.
    pub(super) fn tick(&self, now: u32) {
        self.state().tick(&self.account, now);
    }

    /// Replaces what workers see. Only the control thread.
    pub(super) fn change(&self, view: View, edits: &Edits) {
        let view = Arc::new(view);
        // What the successor finds out about its servers is worked out beside the old one, which goes on choosing.
        self.state().freeze();
        let successor = State::new(&view, &self.account, edits);
        self.state().succeed(successor, edits);
        self.view.store(view);
    }
}
