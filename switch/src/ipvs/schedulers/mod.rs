//! Who gets the next connection: one file for each of Linux's algorithms, which are followed to the choice.
//!
//! A scheduler sees the servers in Linux's order of iteration, the last added one first. What it can work out when the
//! servers change is a [`Table`]; what it has to remember from choice to choice is a [`State`].
#![forbid(unsafe_code)]

pub(crate) mod board;
mod cache;
mod dh;
mod fo;
mod hashing;
mod lblc;
mod lblcr;
mod lc;
mod least;
mod mh;
mod nq;
mod ovf;
mod rr;
mod sed;
mod sh;
#[cfg(test)]
mod tests;
mod twos;
mod wlc;
mod wrr;

use std::sync::Arc;

use super::account::Account;
use super::destination::Destination;
use super::service::{Flow, View};
use super::settings::Setting;
use super::spec::{Scheduler, SchedulerFlags, ServiceKey, ServiceSpec};
use least::{Least, SCANNED};

/// What happened to the servers of a service, as far as schedulers that remember something need to know.
#[derive(Debug, Default)]
pub(crate) struct Edits {
    /// Where a pointer to the server with an old index points now; `None`: before the first one. Empty if no server
    /// came or went.
    pub(crate) moved: Vec<Option<u32>>,
    /// The scheduler begins anew; the first of `weights` is what it begins with.
    pub(crate) restarted: bool,
    /// The steps of `wrr`, in their order.
    pub(crate) weights: Vec<Weights>,
}

/// The weights of a service's servers after a step of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Weights {
    /// The largest, 0 if none is above.
    pub(crate) largest: i32,
    /// The greatest common divisor of those above 0; 1 if there is none.
    pub(crate) divisor: i32,
}

/// Worked out when the servers change.
#[derive(Debug)]
pub(crate) enum Table {
    /// There is no scheduler.
    Nobody,
    /// The scheduler remembers something: its [`State`] is asked.
    State,
    /// So few servers that looking at each is cheapest.
    Scan(fn(&[Arc<Destination>]) -> Option<&Arc<Destination>>),
    Dh(dh::Table),
    Sh(sh::Table),
    Mh(mh::Lazy),
    Twos(twos::Dice),
}

impl Table {
    pub(crate) fn new(scheduler: Option<Scheduler>, servers: &[Arc<Destination>]) -> Self {
        let Some(scheduler) = scheduler else {
            return Self::Nobody;
        };
        let few = servers.len() <= SCANNED;
        match scheduler {
            Scheduler::Lc if few => Self::Scan(least::scan::<lc::Measure>),
            Scheduler::Wlc if few => Self::Scan(least::scan::<wlc::Measure>),
            Scheduler::Sed if few => Self::Scan(least::scan::<sed::Measure>),
            Scheduler::Nq if few => Self::Scan(least::scan::<nq::Measure>),
            Scheduler::Fo if few => Self::Scan(least::scan::<fo::Measure>),
            Scheduler::Ovf if few => Self::Scan(least::scan::<ovf::Measure>),
            Scheduler::Dh => Self::Dh(dh::Table::new(servers)),
            Scheduler::Sh => Self::Sh(sh::Table::new(servers)),
            Scheduler::Mh => Self::Mh(mh::Lazy::default()),
            Scheduler::Twos => Self::Twos(twos::Dice::default()),
            _ => Self::State,
        }
    }

    /// Whether [`Self::prepare`] has something to do.
    pub(crate) fn is_unprepared(&self) -> bool {
        matches!(self, Self::Mh(table) if !table.is_there())
    }

    /// Works out what takes long, lest the first packet do it.
    pub(crate) fn prepare(&self, servers: &[Arc<Destination>]) {
        if let Self::Mh(table) = self {
            table.get(servers);
        }
    }

    /// The choice of a scheduler that remembers nothing; that of others is [`State::choose`]'s, and `Err` says so.
    #[inline]
    pub(crate) fn choose<'a>(
        &self,
        view: &'a View,
        flow: &Flow,
    ) -> Result<Option<&'a Arc<Destination>>, Remembers> {
        let servers = &*view.destinations;
        Ok(match self {
            Self::Nobody => None,
            Self::State => return Err(Remembers),
            Self::Scan(scan) => scan(servers),
            Self::Dh(table) => table.choose(servers, flow),
            Self::Sh(table) => table.choose(servers, flow, view.spec.flags),
            Self::Mh(table) => table.choose(servers, flow, view.spec.flags),
            Self::Twos(dice) => dice.choose(servers),
        })
    }
}

/// The scheduler remembers something.
#[derive(Debug)]
pub(crate) struct Remembers;

/// What a scheduler remembers.
#[derive(Debug)]
enum Memory {
    None,
    Rr(rr::Position),
    Wrr(wrr::Mark),
    Lc(Least<lc::Measure>),
    Wlc(Least<wlc::Measure>),
    Sed(Least<sed::Measure>),
    Nq(Least<nq::Measure>),
    Fo(Least<fo::Measure>),
    Ovf(Least<ovf::Measure>),
    Lblc(lblc::Lblc),
    Lblcr(lblcr::Lblcr),
}

impl Memory {
    /// Of a scheduler that begins. The servers' slots have been given.
    fn new(spec: &ServiceSpec, servers: &[Arc<Destination>], edits: &Edits) -> Self {
        let few = servers.len() <= SCANNED;
        // Packets to a service by address have one destination; those of a mark have many.
        let many = matches!(spec.key, ServiceKey::Mark { .. });
        match spec.scheduler {
            Some(Scheduler::Rr) => Self::Rr(rr::Position::default()),
            Some(Scheduler::Wrr) => Self::Wrr(wrr::Mark::new(&edits.weights)),
            Some(Scheduler::Lc) if !few => Self::Lc(Least::new(servers)),
            Some(Scheduler::Wlc) if !few => Self::Wlc(Least::new(servers)),
            Some(Scheduler::Sed) if !few => Self::Sed(Least::new(servers)),
            Some(Scheduler::Nq) if !few => Self::Nq(Least::new(servers)),
            Some(Scheduler::Fo) if !few => Self::Fo(Least::new(servers)),
            Some(Scheduler::Ovf) if !few => Self::Ovf(Least::new(servers)),
            Some(Scheduler::Lblc) => Self::Lblc(lblc::Lblc::new(servers, many)),
            Some(Scheduler::Lblcr) => Self::Lblcr(lblcr::Lblcr::new(servers, many)),
            _ => Self::None,
        }
    }

    /// Goes on from what the scheduler remembered before its servers changed.
    fn inherit(&mut self, old: Self, edits: &Edits) {
        match (self, old) {
            (Self::Rr(new), Self::Rr(old)) => *new = old.changed(edits),
            (Self::Wrr(new), Self::Wrr(old)) => *new = old.changed(&edits.weights),
            (Self::Lblc(new), Self::Lblc(old)) => new.inherit(old),
            (Self::Lblcr(new), Self::Lblcr(old)) => new.inherit(old),
            // The others see in the servers all that they have to know.
            _ => {}
        }
    }
}

/// A scheduler with what it remembers, and the servers as it last saw them.
#[derive(Debug)]
pub(crate) struct State {
    view: Arc<View>,
    memory: Memory,
    /// Its successor is being made: notes on the board are for that one.
    frozen: bool,
}

impl State {
    /// A scheduler that begins, or one that is to inherit from that of the same service.
    pub(crate) fn new(view: &Arc<View>, account: &Account, edits: &Edits) -> Self {
        let servers = &*view.destinations;
        let unmoved = matches!(view.spec.scheduler, Some(Scheduler::Rr | Scheduler::Wrr));
        if matches!(view.table, Table::State) && !unmoved && servers.len() > SCANNED {
            account.board.prepare(servers.len());
            for (slot, server) in (0..).zip(servers) {
                server.set_slot(slot);
            }
            // What was posted with the old slots is seen when the servers are looked at from here on.
            std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        }
        Self { view: Arc::clone(view), memory: Memory::new(&view.spec, servers, edits), frozen: false }
    }

    /// Leaves notes on the board alone: a successor is made.
    pub(crate) fn freeze(&mut self) {
        self.frozen = true;
    }

    /// Makes way for a successor that was made from [`Self::freeze`] on.
    pub(crate) fn succeed(&mut self, mut successor: Self, edits: &Edits) {
        if !edits.restarted {
            successor.memory.inherit(std::mem::replace(&mut self.memory, Memory::None), edits);
        }
        *self = successor;
    }

    /// Ends: its service was deleted.
    pub(crate) fn retire(&mut self) {
        self.memory = Memory::None;
    }

    /// Provides for more addresses, and forgets servers of long ago. For the control thread, now and then.
    pub(crate) fn tick(&mut self, account: &Account, now: u32) {
        let settings = account.settings();
        match &mut self.memory {
            Memory::Lblc(lblc) => lblc.tick(now, settings.get(Setting::LblcExpiration)),
            Memory::Lblcr(lblcr) => lblcr.tick(now, settings.get(Setting::LblcrExpiration)),
            _ => {}
        }
    }

    /// The choice.
    #[inline]
    pub(crate) fn choose(&mut self, account: &Account, flow: &Flow, now: u32) -> Option<Arc<Destination>> {
        let servers = &*self.view.destinations;
        let board = (!self.frozen).then_some(&account.board);
        let chosen = match &mut self.memory {
            Memory::None => None,
            Memory::Rr(position) => position.choose(servers),
            Memory::Wrr(mark) => mark.choose(servers),
            Memory::Lc(least) => least.choose(servers, board),
            Memory::Wlc(least) => least.choose(servers, board),
            Memory::Sed(least) => least.choose(servers, board),
            Memory::Nq(least) => least.choose(servers, board),
            Memory::Fo(least) => least.choose(servers, board),
            Memory::Ovf(least) => least.choose(servers, board),
            Memory::Lblc(lblc) => {
                return lblc.choose(servers, board, flow.destination, now);
            }
            Memory::Lblcr(lblcr) => {
                let expiration = account.settings().get(Setting::LblcrExpiration);
                return lblcr.choose(servers, board, flow.destination, now, expiration);
            }
        };
        chosen.map(Arc::clone)
    }
}

/// Whether a server may get a connection.
#[inline]
fn usable(server: &Destination) -> bool {
    server.weight() > 0 && !server.is_overloaded()
}

fn has(flags: SchedulerFlags, flag: u8) -> bool {
    flags.0 & flag != 0
}
