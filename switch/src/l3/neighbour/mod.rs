//! Neighbours: the MAC addresses of the stations on the links of all interfaces, and how sure we are of them.
//!
//! One table for IPv4 (ARP) and IPv6 (ND), as `ip neighbour` shows it, with its states ([`State`]). A neighbour's slot
//! number is its adjacency: whoever keeps it with the slot's version reads the MAC address in one cache line and
//! notices when the slot went to somebody else. Workers read without a lock and change states by compare and exchange;
//! only making and removing entries takes the writer's lock, which a worker never waits for. Entries are made when
//! there is something to send, or by who asks for our address; nobody fills the table by talking. The control thread's
//! [`Neighbours::tick`] ages the entries once a second and says whom to ask.
#![forbid(unsafe_code)]

mod age;
mod slot;
mod store;
#[cfg(test)]
mod tests;

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use zerocopy::FromZeros;

pub use age::{Action, Timing};
pub use slot::{Adjacency, State};
use slot::{Bucket, Link, Slot, WAYS};
use store::Writer;

use super::interface::Address;
use crate::packet::ethernet::Mac;
use crate::pipeline::MAX_PORTS;

/// Entries that a table holds where nothing else is said.
pub const LIMIT_DEFAULT: u32 = 65_536;

/// What an adjacency is good for right now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Send to this address.
    To(Mac),
    /// Nobody has answered yet.
    Unresolved {
        /// Ask now: it was given up and is tried again. Otherwise somebody has asked already.
        ask: bool,
    },
    /// The slot is another's now: look again.
    Gone,
}

/// What [`Neighbours::find_or_create`] came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// It is known, or being asked for.
    Known(Adjacency),
    /// It was not; it is now [`State::Incomplete`], and the caller is to ask for it, once.
    New(Adjacency),
    /// No room for this port.
    Full,
    /// Somebody else is writing; the next packet will do.
    Busy,
}

/// What somebody said about an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// An answer to us: an ARP reply, a solicited neighbour advertisement. It proves that the neighbour hears us.
    Answer {
        /// Whether it replaces another MAC address: yes in ARP, the O flag in ND.
        replaces: bool,
    },
    /// The sender of a request for one of our addresses. The only evidence that makes an entry.
    Request,
    /// A gratuitous ARP, or an unsolicited neighbour advertisement.
    Announcement {
        /// As with an answer.
        replaces: bool,
    },
}

/// What learning came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learned {
    /// Nobody is interested in that neighbour.
    Unknown,
    /// As it was known.
    Known,
    /// It was being asked for: what waits for it can be sent.
    Resolved(Adjacency),
    /// A new entry.
    New(Adjacency),
    /// Known with another MAC address, which is replaced.
    Moved,
    /// Known with another MAC address, which stays: fixed by the operator, changed less than a second ago, or the
    /// evidence says that it does not replace.
    Kept,
    /// No room for this port.
    Full,
    /// Somebody else is writing; the next packet will do.
    Busy,
}

/// An entry, for people. Times are in seconds before now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    timing: Timing,
    /// Seconds for which a neighbour is believed to be reachable; drawn anew now and then.
    reachable: AtomicU32,
    writer: Mutex<Writer>,
    count: AtomicU32,
    full: AtomicU64,
    failed: AtomicU64,
}

impl Default for Neighbours {
    fn default() -> Self {
        Self::new(LIMIT_DEFAULT)
    }
}

impl Neighbours {
    /// A table for `limit` entries.
    pub fn new(limit: u32) -> Self {
        Self::with_timing(limit, Timing::default())
    }

    /// As [`Self::new`], with other times.
    pub fn with_timing(limit: u32, timing: Timing) -> Self {
        let limit = limit.max(1) as usize;
        // Twice the room: with two buckets of eight to choose from, an insertion then practically never fails early.
        let buckets = (limit * 2 / WAYS).next_power_of_two().max(2);
        let random = RandomState::new();
        Self {
            slots: <[Slot]>::new_box_zeroed_with_elems(limit).expect("memory for neighbours"),
            buckets: <[Bucket]>::new_box_zeroed_with_elems(buckets).expect("memory for neighbours"),
            secret: std::array::from_fn(|i| random.hash_one(i) | 1),
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
        self.slots.len() as u32
    }

    /// How often an entry was not made since there was no room (`table_fulls` of the kernel).
    pub fn full(&self) -> u64 {
        self.full.load(Ordering::Relaxed)
    }

    /// How often a neighbour was given up (`res_failed` of the kernel).
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// The slot of an adjacency, for its version.
    #[inline]
    pub fn slot(&self, id: u32) -> Option<&Slot> {
        self.slots.get(id as usize)
    }

    /// The version of an adjacency's slot now; it changes whenever the slot goes to another neighbour.
    #[inline]
    pub fn version(&self, id: u32) -> u32 {
        self.slot(id).map_or(0, Slot::version)
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

    /// The adjacency of a neighbour.
    #[inline]
    pub fn find(&self, interface: u16, address: Address) -> Option<Adjacency> {
        let (places, tag) = self.places(self.hash(interface, address));
        for place in places {
            for way in &self.buckets[place].0 {
                let entry = way.load(Ordering::Acquire);
                if entry >> 32 << 32 == tag && entry as u32 != 0 {
                    let id = entry as u32 - 1;
                    if let Some(found) = self.slots.get(id as usize).and_then(|s| s.holds(interface, address))
                    {
                        return Some(Adjacency { id, version: found });
                    }
                }
            }
        }
        None
    }

    /// As [`Self::find`], first at the place that `hint` holds ([`Adjacency::bits`]); what is found is remembered
    /// there.
    #[inline]
    pub fn find_hinted(&self, hint: &AtomicU64, interface: u16, address: Address) -> Option<Adjacency> {
        let at = Adjacency::from_bits(hint.load(Ordering::Relaxed));
        if let Some(slot) = self.slots.get(at.id as usize)
            && slot.holds(interface, address) == Some(at.version)
        {
            return Some(at);
        }
        let found = self.find(interface, address)?;
        hint.store(found.bits(), Ordering::Relaxed);
        Some(found)
    }

    /// Where to send what goes by an adjacency, and notes its use: a neighbour that was silent for long is asked
    /// whether it is still there ([`State::Delay`]), one that was given up is tried again.
    #[inline]
    pub fn way(&self, adjacency: Adjacency, now: u32) -> Way {
        let Some(slot) = self.slots.get(adjacency.id as usize) else { return Way::Gone };
        let link = slot.link();
        if slot.version() != adjacency.version || !link.is_of(adjacency.version) {
            return Way::Gone;
        }
        slot.touch(now);
        if link.is_fresh() { Way::To(link.mac()) } else { way_slow(slot, link, now) }
    }

    /// Notes that the neighbour proved to be there: something came back that only an arrival of ours can have caused.
    #[inline]
    pub fn confirm(&self, adjacency: Adjacency, now: u32) {
        if let Some(slot) = self.slots.get(adjacency.id as usize) {
            let link = slot.link();
            if link.is_of(adjacency.version) && link.is_usable() && !link.is_fixed() {
                slot.confirm(now);
                if link.state() != State::Reachable {
                    slot.change(link, link.with(State::Reachable), now);
                }
            }
        }
    }

    /// The adjacency of a neighbour to whom something is to be sent; made if there is none, on the account of `port`
    /// (where the packet came from; [`u16::MAX`] for the switch itself).
    #[inline]
    pub fn find_or_create(&self, interface: u16, address: Address, port: u16, now: u32) -> Found {
        match self.find(interface, address) {
            Some(adjacency) => Found::Known(adjacency),
            None => self.create(interface, address, port, now),
        }
    }

    #[cold]
    fn create(&self, interface: u16, address: Address, port: u16, now: u32) -> Found {
        let Some(mut writer) = self.try_lock() else { return Found::Busy };
        if let Some(adjacency) = self.find(interface, address) {
            return Found::Known(adjacency);
        }
        let link = Link::unresolved(State::Incomplete);
        match self.store(&mut writer, (interface, address), link, port, now) {
            Some(adjacency) => Found::New(adjacency),
            None => Found::Full,
        }
    }

    /// Takes note of what somebody at `port` said: `address` on the link of `interface` has this MAC address.
    pub fn learn(
        &self,
        interface: u16,
        address: Address,
        mac: Mac,
        evidence: Evidence,
        port: u16,
        now: u32,
    ) -> Learned {
        if let Some(adjacency) = self.find(interface, address) {
            return self.update(adjacency, mac, evidence, now);
        }
        if evidence != Evidence::Request {
            return Learned::Unknown;
        }
        let Some(mut writer) = self.try_lock() else { return Learned::Busy };
        if let Some(adjacency) = self.find(interface, address) {
            return self.update(adjacency, mac, evidence, now);
        }
        let link = Link::resolved(mac, State::Stale);
        match self.store(&mut writer, (interface, address), link, port, now) {
            Some(adjacency) => Learned::New(adjacency),
            None => Learned::Full,
        }
    }

    /// As the kernel's `neigh_update`, with the lock time of ARP (1 s) for both families.
    fn update(&self, adjacency: Adjacency, mac: Mac, evidence: Evidence, now: u32) -> Learned {
        let Some(slot) = self.slots.get(adjacency.id as usize) else { return Learned::Unknown };
        let link = slot.link();
        if !link.is_of(adjacency.version) {
            return Learned::Unknown;
        }
        let (proof, replaces) = match evidence {
            Evidence::Answer { replaces } => (true, replaces),
            Evidence::Request => (false, true),
            Evidence::Announcement { replaces } => (false, replaces),
        };
        let state = if proof { State::Reachable } else { State::Stale };
        if link.is_fixed() {
            return if link.mac() == mac { Learned::Known } else { Learned::Kept };
        }
        if !link.is_usable() {
            if proof {
                slot.confirm(now);
            }
            slot.renew(now);
            return match slot.change(link, link.resolve(mac, state), now) {
                true => Learned::Resolved(adjacency),
                false => Learned::Busy,
            };
        }
        if link.mac() == mac {
            if proof {
                slot.confirm(now);
                if link.state() != State::Reachable {
                    slot.change(link, link.with(State::Reachable), now);
                }
            }
            return Learned::Known;
        }
        let garp = matches!(evidence, Evidence::Announcement { .. });
        if !replaces || (slot.updated() == now && !garp) {
            if !replaces && link.state() == State::Reachable {
                // RFC 4861, 7.2.5: somebody else claims it; believe neither without asking.
                slot.change(link, link.with(State::Stale), now);
            }
            return Learned::Kept;
        }
        if proof {
            slot.confirm(now);
        }
        slot.renew(now);
        if slot.change(link, link.resolve(mac, state), now) { Learned::Moved } else { Learned::Busy }
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

#[cold]
fn way_slow(slot: &Slot, link: Link, now: u32) -> Way {
    match link.state() {
        State::Stale => {
            // Should another be faster, that is as well.
            slot.change(link, link.with(State::Delay), now);
            Way::To(link.mac())
        }
        State::Failed => {
            let again = slot.change(link, link.with(State::Incomplete), now);
            if again {
                slot.set_probes(1);
            }
            Way::Unresolved { ask: again }
        }
        _ => Way::Unresolved { ask: false },
    }
}
