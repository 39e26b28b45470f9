//! The servers of a service while a transaction changes them: what came, went and changed, and in which order, since
//! Linux's schedulers remember the order.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::destination::Destination;
use super::schedulers::{Edits, Weights};
use super::service::View;
use super::spec::DestinationSpec;
use crate::rules::hash::Map;

/// From this many look-ups on, an index pays.
const INDEX_AFTER: usize = 8;

/// A server that was added or edited.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) spec: DestinationSpec,
    /// The last weight other than 0 or that it was added with.
    pub(super) last_weight: i32,
    /// It may have connections again if it was overloaded.
    pub(super) relieve: bool,
    /// The upper threshold that it was added with, if it may be one that lies in the trash.
    pub(super) added_with: Option<u32>,
}

#[derive(Debug)]
struct Entry {
    /// The server, if there was one before.
    kept: Option<Arc<Destination>>,
    /// What becomes of it; `None`: nothing.
    wanted: Option<Wanted>,
}

#[derive(Debug)]
enum Slot {
    Live(Entry),
    /// Deleted.
    Dead {
        /// A later slot before which there is no live one.
        next: usize,
        /// The slot that came before it in Linux's order when it was deleted; `None`: it was the first.
        before: Option<usize>,
    },
}

/// The servers in the order in which they were added.
#[derive(Debug, Default)]
pub(super) struct List {
    slots: Vec<Slot>,
    live: usize,
    /// How many there were before the transaction.
    old: usize,
    index: Option<Map<(IpAddr, u16), usize>>,
    lookups: usize,
    /// Servers from before that are deleted.
    dropped: Map<(IpAddr, u16), Arc<Destination>>,
    /// Whether servers came or went.
    moved: bool,
    /// How many servers have which weight above 0, where somebody needs to know.
    weights: Option<BTreeMap<i32, usize>>,
    steps: Vec<Weights>,
}

/// A server of the finished list.
pub(super) enum Item {
    /// As before.
    Kept(Arc<Destination>),
    /// Was there, and changes.
    Changed(Arc<Destination>, Wanted),
    /// To be made.
    New(Wanted),
}

/// Whether a server that is overloaded may have connections again for its new upper threshold.
pub(super) fn relieves(new: u32, old: u32) -> bool {
    new == 0 || new > old
}

fn gcd(mut a: i32, mut b: i32) -> i32 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

impl List {
    /// The servers of a service as they are.
    pub(super) fn of(view: &View) -> Self {
        let entry =
            |server: &Arc<Destination>| Slot::Live(Entry { kept: Some(Arc::clone(server)), wanted: None });
        let slots: Vec<_> = view.destinations.iter().rev().map(entry).collect();
        Self { live: slots.len(), old: slots.len(), slots, ..Self::default() }
    }

    /// How many servers.
    pub(super) fn len(&self) -> usize {
        self.live
    }

    fn socket(entry: &Entry) -> (IpAddr, u16) {
        match (&entry.kept, &entry.wanted) {
            (Some(kept), _) => (kept.address(), kept.port()),
            (None, Some(wanted)) => (wanted.spec.address, wanted.spec.port),
            (None, None) => unreachable!("an entry is of a server that was or one that will be"),
        }
    }

    fn find(&mut self, socket: (IpAddr, u16)) -> Option<usize> {
        self.lookups += 1;
        if self.index.is_none() && self.lookups > INDEX_AFTER {
            let live = self.slots.iter().enumerate().filter_map(|(at, slot)| match slot {
                Slot::Live(entry) => Some((Self::socket(entry), at)),
                Slot::Dead { .. } => None,
            });
            self.index = Some(live.collect());
        }
        match &self.index {
            Some(index) => index.get(&socket).copied(),
            None => self
                .slots
                .iter()
                .position(|slot| matches!(slot, Slot::Live(entry) if Self::socket(entry) == socket)),
        }
    }

    /// The weight, last weight and upper threshold of a live server.
    fn present(entry: &Entry) -> (i32, i32, u32) {
        match (&entry.wanted, &entry.kept) {
            (Some(wanted), _) => (wanted.spec.weight, wanted.last_weight, wanted.spec.upper),
            (None, Some(kept)) => (kept.weight(), kept.last_weight(), kept.upper()),
            (None, None) => (0, 0, 0),
        }
    }

    /// Adds a server; `false`: it is there already.
    pub(super) fn add(&mut self, spec: &DestinationSpec) -> bool {
        let socket = (spec.address, spec.port);
        if self.find(socket).is_some() {
            return false;
        }
        let kept = self.dropped.remove(&socket);
        let relieve = kept.as_ref().is_some_and(|kept| relieves(spec.upper, kept.upper()));
        let added_with = kept.is_none().then_some(spec.upper);
        let wanted = Wanted { spec: spec.clone(), last_weight: spec.weight, relieve, added_with };
        if let Some(index) = &mut self.index {
            index.insert(socket, self.slots.len());
        }
        self.slots.push(Slot::Live(Entry { kept, wanted: Some(wanted) }));
        self.live += 1;
        self.moved = true;
        self.step(None, Some(spec.weight));
        true
    }

    /// Edits a server; `false`: there is none.
    pub(super) fn edit(&mut self, spec: &DestinationSpec) -> bool {
        let Some(at) = self.find((spec.address, spec.port)) else {
            return false;
        };
        let Slot::Live(entry) = &mut self.slots[at] else {
            return false;
        };
        let (weight, last_weight, upper) = Self::present(entry);
        let last_weight = if spec.weight == 0 { last_weight } else { spec.weight };
        let before = entry.wanted.as_ref();
        let relieve = before.is_some_and(|wanted| wanted.relieve) || relieves(spec.upper, upper);
        let added_with = before.and_then(|wanted| wanted.added_with);
        entry.wanted = Some(Wanted { spec: spec.clone(), last_weight, relieve, added_with });
        self.step(Some(weight), Some(spec.weight));
        true
    }

    /// Deletes a server; `false`: there is none.
    pub(super) fn delete(&mut self, socket: (IpAddr, u16)) -> bool {
        let Some(at) = self.find(socket) else {
            return false;
        };
        let next = self.live_after(at);
        let before = (next < self.slots.len()).then_some(next);
        let Slot::Live(entry) = std::mem::replace(&mut self.slots[at], Slot::Dead { next, before }) else {
            return false;
        };
        let (weight, ..) = Self::present(&entry);
        if let Some(kept) = entry.kept {
            self.dropped.insert(socket, kept);
        }
        if let Some(index) = &mut self.index {
            index.remove(&socket);
        }
        self.live -= 1;
        self.moved = true;
        self.step(Some(weight), None);
        true
    }

    /// The first live slot after `at`; the number of slots if there is none.
    fn live_after(&mut self, at: usize) -> usize {
        let mut end = at + 1;
        while let Some(Slot::Dead { next, .. }) = self.slots.get(end) {
            end = *next;
        }
        // What was walked over is jumped over the next time.
        let mut walk = at + 1;
        while let Some(Slot::Dead { next, .. }) = self.slots.get_mut(walk) {
            walk = std::mem::replace(next, end);
        }
        end
    }

    /// Begins to note the weights after each change, the present ones first.
    pub(super) fn note_weights(&mut self) {
        let mut weights = BTreeMap::new();
        for slot in &self.slots {
            if let Slot::Live(entry) = slot
                && let (weight @ 1.., ..) = Self::present(entry)
            {
                *weights.entry(weight).or_default() += 1;
            }
        }
        self.weights = Some(weights);
    }

    /// Whether [`Self::note_weights`] was called.
    pub(super) fn notes_weights(&self) -> bool {
        self.weights.is_some()
    }

    /// Forgets the steps noted so far and takes the present weights as the first.
    pub(super) fn restart(&mut self) {
        self.steps.clear();
        self.step(None, None);
    }

    fn step(&mut self, out: Option<i32>, into: Option<i32>) {
        let Some(weights) = &mut self.weights else {
            return;
        };
        if let Some(out @ 1..) = out
            && let Some(number) = weights.get_mut(&out)
        {
            *number -= 1;
            if *number == 0 {
                weights.remove(&out);
            }
        }
        if let Some(into @ 1..) = into {
            *weights.entry(into).or_default() += 1;
        }
        let largest = weights.last_key_value().map_or(0, |(&largest, _)| largest);
        let mut divisor = 0;
        for &weight in weights.keys() {
            divisor = gcd(divisor, weight);
            if divisor == 1 {
                break;
            }
        }
        self.steps.push(Weights { largest, divisor: divisor.max(1) });
    }

    /// The servers in Linux's order, what schedulers are to know, and the deleted servers.
    pub(super) fn finish(self) -> (Vec<Item>, Edits, Vec<Arc<Destination>>) {
        let moved = if self.moved { self.moved() } else { Vec::new() };
        let edits = Edits { moved, restarted: false, weights: self.steps };
        let live = self.slots.into_iter().rev().filter_map(|slot| match slot {
            Slot::Live(entry) => Some(entry),
            Slot::Dead { .. } => None,
        });
        let items = live.filter_map(|entry| match (entry.kept, entry.wanted) {
            (Some(kept), None) => Some(Item::Kept(kept)),
            (Some(kept), Some(wanted)) => Some(Item::Changed(kept, wanted)),
            (None, Some(wanted)) => Some(Item::New(wanted)),
            (None, None) => None,
        });
        (items.collect(), edits, self.dropped.into_values().collect())
    }

    fn moved(&self) -> Vec<Option<u32>> {
        // From the last slot on: Linux's order.
        let mut number = 0;
        let mut places: Vec<Option<u32>> = vec![None; self.slots.len()];
        for (at, slot) in self.slots.iter().enumerate().rev() {
            places[at] = match slot {
                Slot::Live(_) => {
                    number += 1;
                    Some(number - 1)
                }
                // What came before it was worked out already: it is a later slot.
                Slot::Dead { before, .. } => before.and_then(|before| places[before]),
            };
        }
        (0..self.old).rev().map(|at| places[at]).collect()
    }
}
