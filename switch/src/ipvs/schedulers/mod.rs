//! Who gets the next connection: one file for each of Linux's algorithms, which are followed to the choice.
//!
//! A scheduler sees the servers in Linux's order of iteration, the last added one first. What it can work out when the
//! servers change is a [`Table`]; what it has to remember from choice to choice is a [`State`].
#![forbid(unsafe_code)]

pub(crate) mod board;
mod rr;

use std::sync::{Arc, Mutex};

use super::account::Account;
use super::destination::Destination;
use super::service::{Flow, View};
use super::spec::Scheduler;

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
    /// Nothing.
    None,
}

impl Table {
    pub(crate) fn new(_scheduler: Option<Scheduler>, _destinations: &[Arc<Destination>]) -> Self {
        Self::None
    }

    /// The choice of a scheduler that remembers nothing.
    pub(crate) fn choose<'a>(&self, _view: &'a View, _flow: &Flow) -> Option<&'a Arc<Destination>> {
        None
    }
}

/// What a scheduler remembers.
#[derive(Debug)]
enum Memory {
    None,
    Rr(rr::Position),
}

/// A scheduler with what it remembers, and the servers as it last saw them.
#[derive(Debug)]
pub(crate) struct State {
    view: Arc<View>,
    memory: Memory,
}

impl State {
    /// Whether the scheduler remembers something.
    pub(crate) fn is_needed(_scheduler: Scheduler) -> bool {
        true
    }

    /// A scheduler that begins.
    pub(crate) fn new(view: &Arc<View>, _account: &Account, _edits: &Edits) -> Self {
        let memory = match view.spec.scheduler {
            Some(_) => Memory::Rr(rr::Position::default()),
            None => Memory::None,
        };
        Self { view: Arc::clone(view), memory }
    }

    /// Follows a change.
    pub(crate) fn change(&mut self, view: &Arc<View>, account: &Account, edits: &Edits) {
        if edits.restarted {
            *self = Self::new(view, account, edits);
            return;
        }
        self.view = Arc::clone(view);
        match &mut self.memory {
            Memory::None => {}
            Memory::Rr(position) => position.change(edits),
        }
    }

    /// Ends: its service was deleted.
    pub(crate) fn retire(&mut self) {
        self.memory = Memory::None;
    }

    /// Looks again at servers that changed while [`Self::change`] moved them.
    pub(crate) fn settle(_state: &Mutex<Self>, _account: &Account) {}

    /// The choice.
    pub(crate) fn choose(&mut self, _account: &Account, _flow: &Flow, _now: u32) -> Option<Arc<Destination>> {
        let chosen = match &mut self.memory {
            Memory::None => None,
            Memory::Rr(position) => position.choose(&self.view.destinations),
        };
        chosen.map(Arc::clone)
    }
}

/// Whether a server may get a connection.
#[inline]
fn usable(server: &Destination) -> bool {
    server.weight() > 0 && !server.is_overloaded()
}
