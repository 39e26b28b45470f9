//! Making and removing neighbours: what happens under the writer's lock.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use super::slot::{Link, Slot, State, WAYS};
use super::{Address, Entry, Neighbours};
use crate::packet::ethernet::Mac;
use crate::refusal::Refusal;

/// How many slots are looked at for an entry that may be displaced.
const EVICTION_PROBES: usize = 256;

/// What only the holder of the lock knows.
pub(super) struct Writer {
    /// Slots that were used and are free once their epoch has passed, in the order of that.
    free: VecDeque<(u32, u64)>,
    /// The first slot that never was used.
    next: u32,
    /// Entries of each port.
    per_port: Vec<u32>,
    /// Ports with at least one entry.
    holders: u32,
    /// Where the next search for a victim begins.
    probe: usize,
    /// The first slot whose neighbour could not be asked in its turn.
    pub(super) waiting: usize,
}

impl Writer {
    pub(super) fn new(ports: usize) -> Self {
        Self { free: VecDeque::new(), next: 0, per_port: vec![0; ports], holders: 0, probe: 0, waiting: 0 }
    }

    /// How many slots have been in use at some time.
    pub(super) fn high(&self) -> usize {
        self.next as usize
    }

    fn held(&self, port: u16) -> u32 {
        self.per_port.get(usize::from(port)).copied().unwrap_or(0)
    }

    fn charge(&mut self, port: u16) {
        if let Some(count) = self.per_port.get_mut(usize::from(port)) {
            self.holders += u32::from(*count == 0);
            *count += 1;
        }
    }

    fn discharge(&mut self, port: u16) {
        if let Some(count) = self.per_port.get_mut(usize::from(port)) {
            *count = count.saturating_sub(1);
            self.holders -= u32::from(*count == 0);
        }
    }
}

impl Neighbours {
    /// Makes an entry that is not there, if need be at the cost of another.
    pub(super) fn store(
        &self,
        writer: &mut Writer,
        key: (u16, Address),
        link: Link,
        port: u16,
        now: u32,
    ) -> Option<u32> {
        if self.len() >= self.limit() && !self.evict(writer, port, now) {
            self.full.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        let hash = self.hash(key.0, key.1);
        let (places, tag) = self.places(hash);
        let vacancy = |place: &usize| {
            let ways = &self.buckets[*place].0;
            let free = ways.iter().filter(|way| way.load(Ordering::Relaxed) == 0).count();
            ways.iter().find(|way| way.load(Ordering::Relaxed) == 0).map(|way| (free, way))
        };
        let Some((_, way)) = places.iter().filter_map(vacancy).max_by_key(|(free, _)| *free) else {
            // Both buckets full at half load: not in this universe, and if, then for this key only.
            self.full.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        let Some(id) = self.vacant(writer) else {
            self.full.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        self.slots[id as usize].give(key, link, port, now);
        way.store(tag | u64::from(id + 1), Ordering::Release);
        writer.charge(port);
        self.count.fetch_add(1, Ordering::Relaxed);
        Some(id)
    }

    /// A slot that nobody has, or can still be looking at.
    fn vacant(&self, writer: &mut Writer) -> Option<u32> {
        if let Some(&(id, epoch)) = writer.free.front()
            && self.epochs.passed(epoch)
        {
            writer.free.pop_front();
            return Some(id);
        }
        let id = writer.next;
        ((id as usize) < self.slots.len()).then(|| {
            writer.next += 1;
            id
        })
    }

    /// Removes the entry of a slot.
    pub(super) fn release(&self, writer: &mut Writer, id: u32) {
        let slot = &self.slots[id as usize];
        let Some((interface, address, port)) = slot.owner() else { return };
        let (places, tag) = self.places(self.hash(interface, address));
        let entry = tag | u64::from(id + 1);
        for way in places.iter().flat_map(|&place| &self.buckets[place].0) {
            if way.load(Ordering::Relaxed) == entry {
                way.store(0, Ordering::Release);
            }
        }
        slot.take();
        writer.discharge(port);
        writer.free.push_back((id, self.epochs.advance()));
        self.count.fetch_sub(1, Ordering::Relaxed);
    }

    /// Makes room in a full table for an entry of `port`. Who holds less than its share displaces an entry of who
    /// holds more; who does not, only its own that never answered: a guest that asks for everybody in a wide network
    /// pays for it alone, and still reaches those who are there.
    fn evict(&self, writer: &mut Writer, port: u16, now: u32) -> bool {
        let newcomer = u32::from(writer.held(port) == 0);
        let share = (self.limit() / (writer.holders + newcomer).max(1)).max(1);
        let operator = port == u16::MAX;
        // Where nobody has too much, the operator's comes first.
        let anybody = operator && writer.per_port.iter().all(|&held| held <= share);
        let modest = operator || writer.held(port) < share;
        let slots = writer.high();
        for step in 0..EVICTION_PROBES.min(slots) {
            let id = (writer.probe + step) % slots;
            let slot = &self.slots[id];
            let Some((_, _, charged)) = slot.owner() else { continue };
            let link = slot.link();
            let unanswered = !link.is_usable() && now != slot.since();
            let greedy = writer.held(charged) > share || anybody;
            if !link.is_fixed() && (modest && greedy || charged == port && unanswered) {
                writer.probe = id;
                self.release(writer, id as u32);
                return true;
            }
        }
        writer.probe = (writer.probe + EVICTION_PROBES) % slots.max(1);
        false
    }

    // ---- the operator's ----------------------------------------------------------------------------------------

    /// Adds or replaces an entry that nothing learned changes.
    ///
    /// # Errors
    /// A group address or zero as MAC address, or the table is full of such entries.
    pub fn fix(&self, interface: u16, address: Address, mac: Mac, now: u32) -> Result<(), Refusal> {
        if mac.is_multicast() || mac.is_zero() {
            return Err(Refusal::new(format!("mac {mac} is no station's address")));
        }
        let mut writer = self.lock();
        if let Some(id) = self.find(interface, address) {
            self.release(&mut writer, id);
        }
        let link = Link::resolved(mac, State::Permanent);
        // A search for a victim looks at some entries; a full table has many.
        let tries = self.slots.len() / EVICTION_PROBES + 2;
        let stored =
            (0..tries).any(|_| self.store(&mut writer, (interface, address), link, u16::MAX, now).is_some());
        stored.then_some(()).ok_or_else(|| {
            Refusal::new(format!(
                "the neighbour table is full of permanent entries: its limit is {}",
                self.limit()
            ))
        })
    }

    /// Makes an entry that was learned elsewhere, in the place of what is known here. False if it has no MAC address,
    /// is one of the operator's, or there is no room.
    pub fn restore(&self, entry: &Entry, now: u32) -> bool {
        let fixed = matches!(entry.state, State::Permanent | State::NoArp);
        let Some(mac) = entry.mac.filter(|mac| !fixed && !mac.is_multicast() && !mac.is_zero()) else {
            return false;
        };
        let key = (entry.interface, Address::from(entry.address));
        let mut writer = self.lock();
        if let Some(id) = self.find(key.0, key.1) {
            if self.slots[id as usize].link().is_fixed() {
                return false;
            }
            self.release(&mut writer, id);
        }
        let link = Link::resolved(mac, entry.state);
        let stored = self.store(&mut writer, key, link, entry.port.unwrap_or(u16::MAX), now);
        if let Some(id) = stored {
            self.slots[id as usize].restore(entry, now);
        }
        stored.is_some()
    }

    /// Removes an entry, whatever its state; false if there was none.
    pub fn remove(&self, interface: u16, address: Address) -> bool {
        let mut writer = self.lock();
        let found = self.find(interface, address);
        if let Some(id) = found {
            self.release(&mut writer, id);
        }
        found.is_some()
    }

    /// Removes what was learned, on one interface or all; with `fixed`, the operator's entries as well (an interface
    /// that is deleted). Returns how many went.
    pub fn flush(&self, interface: Option<u16>, fixed: bool) -> u64 {
        self.flush_where(|slot, of, _| {
            interface.is_none_or(|interface| of == interface) && (fixed || !slot.link().is_fixed())
        })
    }

    /// Removes what was made on the account of a port that is gone: its number may soon be another's.
    pub fn flush_port(&self, port: u16) -> u64 {
        self.flush_where(|slot, _, charged| charged == port && !slot.link().is_fixed())
    }

    fn flush_where(&self, which: impl Fn(&Slot, u16, u16) -> bool) -> u64 {
        let (mut removed, mut start) = (0, 0);
        loop {
            // The lock is let go now and then, so that workers get at it.
            let mut writer = self.lock();
            let end = (start + 1024).min(writer.high());
            for id in start..end {
                let slot = &self.slots[id];
                if slot.owner().is_some_and(|(interface, _, port)| which(slot, interface, port)) {
                    self.release(&mut writer, id as u32);
                    removed += 1;
                }
            }
            if end == writer.high() {
                return removed;
            }
            start = end;
        }
    }
}

const _: () = assert!(size_of::<Slot>() == 64 && WAYS == 8);
