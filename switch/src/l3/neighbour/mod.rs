//! Neighbours: the MAC addresses of the stations on the links of all interfaces, and how sure we are of them.
//!
//! One table for IPv4 (ARP) and IPv6 (ND), as `ip neighbour` shows it, with its states ([`State`]). A neighbour's slot
//! number is its adjacency: whoever keeps it with the slot's version finds the MAC address in one cache line, and sees
//! by the version when the slot went to somebody else; within a turn of a worker it does not ([`Epochs`]). Workers read
//! without a lock and change states by compare and exchange; only making and removing entries takes the writer's lock,
//! which a worker never waits for. Entries are made when there is something to send, or by who asks for our address;
//! nobody fills the table by talking. The control thread's [`Neighbours::tick`] ages the entries once a second and
//! says whom to ask.
#![forbid(unsafe_code)]

mod age;
mod slot;
mod store;
#[cfg(test)]
mod tests;

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use serde::{Deserialize, Serialize};
use zerocopy::FromZeros;

pub use age::{Action, Timing};
use slot::{Bucket, Link, WAYS};
pub use slot::{Slot, State};
use store::Writer;

use super::interface::Address;
use crate::members::MAX_PORTS;
use crate::packet::ethernet::Mac;
use crate::worker::epoch::Epochs;

/// Entries that a table holds where nothing else is said.
pub const LIMIT_DEFAULT: u32 = 65_536;
/// Slots beyond the limit, for entries that are gone while a worker may still look at them.
const LIMBO: usize = 4096;

/// What to do with a packet to a neighbour whose MAC address is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// It did not answer, a moment ago.
    Failed,
    /// Ask for it.
    Ask,
    /// It has been asked for.
    Wait,
}

/// What learning came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learned {
    /// Nobody is interested in that neighbour.
    Unknown,
    /// As it was known.
    Known,
    /// It was being asked for: what waits for it can be sent.
    Resolved,
    /// A new entry.
    New,
    /// Known with another MAC address, which is replaced.
    Moved,
    /// Known with another MAC address, which stays: fixed by the operator, or changed less than a second ago.
    Kept,
    /// No room for this port.
    Full,
    /// Somebody else is writing; the next packet will do.
    Busy,
}

/// An entry, for people. Times are in seconds before now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Number of the interface.
    pub interface: u16,
    /// Its address.
    pub address: IpAddr,
    /// Its MAC address, if known.
    pub mac: Option<Mac>,
    /// How sure we are of it.
    pub state: State,
    /// The port whose packet made the entry; `None` for one of the operator's.
    pub port: Option<u16>,
    /// Since it was last used.
    pub used: u32,
    /// Since the neighbour last proved to be there.
    pub confirmed: u32,
    /// Since the MAC address last changed.
    pub updated: u32,
    /// How often it was asked for without an answer.
    pub probes: u32,
}

/// The table. Seconds are the switch's clock ([`crate::clock`]).
pub struct Neighbours {
    slots: Box<[Slot]>,
    buckets: Box<[Bucket]>,
    secret: [u64; 4],
    epochs: Arc<Epochs>,
    limit: u32,
    timing: Timing,
    /// Seconds for which a neighbour is believed to be reachable; drawn anew now and then.
    reachable: AtomicU32,
    writer: Mutex<Writer>,
    count: AtomicU32,
    full: AtomicU64,
    failed: AtomicU64,
}

impl Neighbours {
    /// A table of the usual size, whose readers have seats in `epochs`.
    pub fn new(epochs: Arc<Epochs>) -> Self {
        Self::with_limit(LIMIT_DEFAULT, Timing::default(), epochs)
    }

    /// A table for `limit` entries.
    pub fn with_limit(limit: u32, timing: Timing, epochs: Arc<Epochs>) -> Self {
        let limit = limit.max(1);
        let slots = limit as usize + LIMBO.min(limit as usize);
        // Twice the room: with two buckets of eight to choose from, an insertion then practically never fails early.
        let buckets = (limit as usize * 2 / WAYS).next_power_of_two().max(2);
        let random = RandomState::new();
        Self {
            slots: <[Slot]>::new_box_zeroed_with_elems(slots).expect("memory for neighbours"),
            buckets: <[Bucket]>::new_box_zeroed_with_elems(buckets).expect("memory for neighbours"),
            secret: std::array::from_fn(|i| random.hash_one(i) | 1),
            epochs,
            limit,
            reachable: AtomicU32::new(timing.reachable),
            timing,
            writer: Mutex::new(Writer::new(MAX_PORTS)),
            count: AtomicU32::new(0),
            full: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        }
    }

    /// Entries now.
    pub fn len(&self) -> u32 {
        self.count.load(Ordering::Relaxed)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Most entries that the table takes.
    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// How often an entry was not made since there was no room (`table_fulls` of the kernel).
    pub fn full(&self) -> u64 {
        self.full.load(Ordering::Relaxed)
    }

    /// How often a neighbour was given up (`res_failed` of the kernel).
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// The slot of a number, if it is somebody's.
    #[inline]
    pub fn slot(&self, id: u32) -> Option<&Slot> {
        self.slots.get(id as usize).filter(|slot| slot.is_used())
    }

    #[inline]
    fn hash(&self, interface: u16, address: Address) -> u64 {
        let [a, b, c, d] = self.secret;
        let mix = |x: u64, y: u64| {
            let wide = u128::from(x) * u128::from(y);
            (wide >> 64) as u64 ^ wide as u64
        };
        let (high, low) = ((address.0 >> 64) as u64, address.0 as u64);
        mix(mix(low ^ a, b) ^ high ^ u64::from(interface) << 17, c) ^ d
    }

    /// The two buckets of a hash, and the tag by which an entry is known there.
    #[inline]
    fn places(&self, hash: u64) -> ([usize; 2], u64) {
        let mask = self.buckets.len() - 1;
        ([hash as usize & mask, (hash >> 24) as usize & mask], hash >> 32 << 32)
    }

    /// The slot number of a neighbour.
    #[inline]
    pub fn find(&self, interface: u16, address: Address) -> Option<u32> {
        let (places, tag) = self.places(self.hash(interface, address));
        for place in places {
            for way in &self.buckets[place].0 {
                let entry = way.load(Ordering::Acquire);
                if entry >> 32 << 32 == tag && entry as u32 != 0 {
                    let id = entry as u32 - 1;
                    if self.slots.get(id as usize).is_some_and(|slot| slot.holds(interface, address)) {
                        return Some(id);
                    }
                }
            }
        }
        None
    }

    /// The slot number of a neighbour to whom something is to be sent; made if there is none, on the account of `port`
    /// (where the packet came from; [`u16::MAX`] for the switch itself). `None` if there is no room for that port, or
    /// somebody else is writing.
    #[inline]
    pub fn find_or_create(&self, interface: u16, address: Address, port: u16, now: u32) -> Option<u32> {
        match self.find(interface, address) {
            Some(id) => Some(id),
            None => self.create(interface, address, port, now),
        }
    }

    #[cold]
    fn create(&self, interface: u16, address: Address, port: u16, now: u32) -> Option<u32> {
        let mut writer = self.try_lock()?;
        if let Some(id) = self.find(interface, address) {
            return Some(id);
        }
        self.store(&mut writer, (interface, address), Link::unresolved(State::Incomplete), port, now)
    }

    /// Takes note of the sender of a request for one of our addresses, known or not: it is about to talk to us.
    pub fn learn(&self, interface: u16, address: Address, mac: Mac, port: u16, now: u32) -> Learned {
        let learned = self.update(interface, address, mac, false, now);
        if learned != Learned::Unknown {
            return learned;
        }
        let Some(mut writer) = self.try_lock() else { return Learned::Busy };
        if self.find(interface, address).is_some() {
            return Learned::Busy;
        }
        let link = Link::resolved(mac, State::Stale);
        match self.store(&mut writer, (interface, address), link, port, now) {
            Some(_) => Learned::New,
            None => Learned::Full,
        }
    }

    /// Takes note of a neighbour's MAC address if the neighbour is known. `confirmed`: it has answered us, which proves
    /// that it hears us; otherwise it only said so. As the kernel's `neigh_update`, with the lock time of ARP (1 s)
    /// for both families.
    pub fn update(&self, interface: u16, address: Address, mac: Mac, confirmed: bool, now: u32) -> Learned {
        let Some(slot) = self.find(interface, address).and_then(|id| self.slot(id)) else {
            return Learned::Unknown;
        };
        let link = slot.link();
        if link.is_fixed() {
            return if link.mac() == mac { Learned::Known } else { Learned::Kept };
        }
        let state = if confirmed { State::Reachable } else { State::Stale };
        let same = link.is_usable() && link.mac() == mac;
        if same && !confirmed {
            return Learned::Known;
        }
        if link.is_usable() && !same && slot.updated() == now {
            return Learned::Kept;
        }
        if confirmed {
            slot.confirm(now);
        }
        if same {
            if link.state() != State::Reachable {
                slot.change(link, link.with(State::Reachable), now);
            }
            return Learned::Known;
        }
        slot.renew(now);
        match slot.change(link, link.resolve(mac, state), now) {
            true if link.is_usable() => Learned::Moved,
            true => Learned::Resolved,
            false => Learned::Busy,
        }
    }

    /// As [`update`](Self::update), where another MAC address does not take the place of the known one (a neighbour
    /// advertisement without the override flag, RFC 4861, section 7.2.5): a neighbour that was believed to be reachable
    /// is doubted then.
    pub fn hear(&self, interface: u16, address: Address, mac: Mac, confirmed: bool, now: u32) -> Learned {
        let Some(slot) = self.find(interface, address).and_then(|id| self.slot(id)) else {
            return Learned::Unknown;
        };
        let link = slot.link();
        if !link.is_usable() || link.is_fixed() || link.mac() == mac {
            return self.update(interface, address, mac, confirmed, now);
        }
        if link.state() == State::Reachable {
            slot.change(link, link.with(State::Stale), now);
        }
        Learned::Kept
    }

    /// All entries, in no order.
    pub fn entries(&self, now: u32) -> Vec<Entry> {
        let mut entries = Vec::with_capacity(self.len() as usize);
        entries.extend(self.slots.iter().filter_map(|slot| slot.entry(now)));
        entries
    }

    fn lock(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn try_lock(&self) -> Option<MutexGuard<'_, Writer>> {
        match self.writer.try_lock() {
            Ok(writer) => Some(writer),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}
