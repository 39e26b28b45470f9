//! What a worker owns of a table: the connections that it entered, from their first packet until their memory is free
//! again.
//!
//! A connection leaves in three steps: taken out of the index (by anybody), noticed by its owner (told by an inbox, or
//! doing it itself), used again when no worker can hold it any more. Everything is bounded per turn.
#![forbid(unsafe_code)]

use std::marker::PhantomData;
use std::sync::atomic::Ordering;

use super::balance::Balanced;
use super::entry::Flags;
use super::key::{Family, Key};
use super::shared::Refused;
use super::state::{Phase, State};
use super::table::{CHUNK, Chain, Holder, KEEP, Ref, Removed, Slot, Standing, Table};
use super::track::Begun;
use super::wheel::{END, Wheel};
use crate::ipvs::states::SCTP;

/// Fewest free connections that are given away together.
pub(super) const BATCH: u32 = 64;
/// Appointments kept in one turn.
const DUE_PER_TURN: usize = 64;
/// Of these, such that are looked at side by side.
const DUE_AT_ONCE: usize = 16;
/// Messages read in one turn.
const MESSAGES_PER_TURN: usize = 128;
/// The first look at a new connection is no later than this: its state will have changed, and this saves making a new
/// appointment each time.
const FIRST_LOOK: u32 = 60;
/// Connections that a search for one to drop looks at, on the wheel and in each sample of the index.
const CANDIDATES: usize = 24;
/// Samples of the index that it takes.
const SAMPLES: usize = 3;
/// Such searches in vain that one turn may make: refusing must stay cheap in a flood.
const PATIENCE: u32 = 4;

impl Chain {
    const EMPTY: Self = Self { head: END, tail: END, count: 0 };

    fn push<F: Family>(&mut self, table: &Table<F>, slot: Slot) {
        table.first(slot).link.store(self.head, Ordering::Relaxed);
        if self.count == 0 {
            self.tail = slot.0;
        }
        self.head = slot.0;
        self.count += 1;
    }

    fn pop<F: Family>(&mut self, table: &Table<F>) -> Option<Slot> {
        if self.count == 0 {
            return None;
        }
        let slot = Slot(self.head);
        self.head = table.first(slot).link.load(Ordering::Relaxed);
        self.count -= 1;
        if self.count > 0 {
            crate::memory::prefetch(table.first(Slot(self.head)));
            crate::memory::prefetch(table.second(Slot(self.head)));
        }
        Some(slot)
    }

    /// Puts another list in front of this one.
    fn prepend<F: Family>(&mut self, table: &Table<F>, other: Self) {
        if other.count == 0 {
            return;
        }
        table.first(Slot(other.tail)).link.store(self.head, Ordering::Relaxed);
        if self.count == 0 {
            self.tail = other.tail;
        }
        self.head = other.head;
        self.count += other.count;
    }
}

/// A connection to enter.
#[derive(Clone, Copy, Debug)]
pub struct NewConnection<F: Family> {
    /// The first packet's key as it came in.
    pub original: Key<F>,
    /// The key that answers will have as they come in: [`Key::answer`] of the translated tuple's reverse.
    pub reply: Key<F>,
    /// What the first packet begins: see [`super::track::Packet::begin`].
    pub begun: Begun,
    /// Port by which it came in.
    pub port: u16,
    /// Adjacency and stamp for the original direction, if resolved.
    pub next_hop: Option<(u32, u32)>,
    /// Whether a helper is to see its payload.
    pub watched: bool,
    /// It was expected by another connection.
    pub related: bool,
    /// The server that it was given to.
    pub balanced: Option<Balanced>,
}

/// Which connections may be dropped for another.
#[derive(Clone, Copy)]
enum Victim {
    Any,
    OfPort(u16),
    HalfOpen,
}

/// A worker's share of a table.
pub struct Owner<F: Family> {
    worker: u8,
    wheel: Wheel,
    free: Chain,
    /// Removed, and somebody may hold them.
    dead: Chain,
    /// Removed before the epoch `awaited` began.
    waiting: Chain,
    awaited: u64,
    /// Connections in the wheel.
    held: u32,
    random: u64,
    /// Vain searches for something to drop that this turn may still make.
    patience: u32,
    family: PhantomData<F>,
}

impl<F: Family> Owner<F> {
    pub(super) fn new(worker: u8) -> Self {
        Self {
            worker,
            wheel: Wheel::new(),
            free: Chain::EMPTY,
            dead: Chain::EMPTY,
            waiting: Chain::EMPTY,
            awaited: 0,
            held: 0,
            random: 0x9e37_79b9_7f4a_7c15 ^ u64::from(worker),
            patience: PATIENCE,
            family: PhantomData,
        }
    }

    /// Whether there is anything that a turn per second is needed for.
    pub(super) fn is_idle(&self) -> bool {
        self.held == 0 && self.dead.count == 0 && self.waiting.count == 0
    }

    pub(super) fn worker(&self) -> usize {
        usize::from(self.worker)
    }

    /// Enters a connection; the half of its first packet, which is not counted yet.
    ///
    /// # Errors
    /// There is no room, it is refused by a limit, or one of the keys is in use (then [`Table::find`] tells whether it
    /// is this connection, entered by somebody else).
    pub fn insert(&mut self, table: &Table<F>, new: &NewConnection<F>, now: u32) -> Result<Ref, Refused> {
        let counters = table.shared.counters(self.worker());
        let result = self.admit(table, new, now);
        match result {
            Ok(_) => {
                counters.insert.add(1);
                counters.related.add(u64::from(new.related));
            }
            Err(Refused::Exists) => counters.insert_failed.add(1),
            Err(Refused::Busy) => counters.busy.add(1),
            Err(Refused::Full) => counters.drop.add(1),
            Err(Refused::PortQuota) => counters.port_quota.add(1),
            Err(Refused::HalfOpen) => counters.half_open_limit.add(1),
        }
        result
    }

    fn admit(&mut self, table: &Table<F>, new: &NewConnection<F>, now: u32) -> Result<Ref, Refused> {
        let hashes = [&new.original, &new.reply].map(|key| table.hash(key));
        hashes.iter().for_each(|&hash| table.index.prefetch_both(hash));
        if table.find(&new.original, hashes[0]).is_some() {
            return Err(Refused::Exists);
        }
        let half_open = new.begun.phase.is_half_open();
        self.reserve(table, new.port, half_open, now)?;
        let entered = match self.allocate(table) {
            Some(slot) => {
                let entered = self.enter(table, new, hashes, slot, now);
                match entered {
                    Ok(_) => {}
                    // It may have been seen for a moment.
                    Err(Refused::Full) => self.dead.push(table, slot),
                    Err(_) => self.free.push(table, slot),
                }
                entered
            }
            None => Err(Refused::Full),
        };
        if entered.is_err() {
            table.shared.release(new.port);
            if half_open {
                table.shared.release_half_open();
            }
        }
        entered
    }

    /// Takes places under all limits, at the cost of others if need be.
    fn reserve(&mut self, table: &Table<F>, port: u16, half_open: bool, now: u32) -> Result<(), Refused> {
        let shared = &table.shared;
        match shared.reserve(port) {
            Ok(()) => {}
            Err(refused) => {
                let victim = if refused == Refused::PortQuota { Victim::OfPort(port) } else { Victim::Any };
                if !self.drop_one(table, victim, now) {
                    return Err(refused);
                }
                shared.reserve(port)?;
            }
        }
        if half_open && shared.reserve_half_open().is_err() {
            let place = if self.drop_one(table, Victim::HalfOpen, now) {
                shared.reserve_half_open()
            } else {
                Err(Refused::HalfOpen)
            };
            if place.is_err() {
                shared.release(port);
            }
            return place;
        }
        Ok(())
    }

    fn allocate(&mut self, table: &Table<F>) -> Option<Slot> {
        if self.free.count == 0 {
            self.refill(table);
        }
        self.free.pop(table)
    }

    #[cold]
    fn refill(&mut self, table: &Table<F>) {
        if let Some(chain) = table.borrow_free() {
            self.free = chain;
        } else if let Some(chunk) = table.fresh_chunk() {
            for slot in chunk.rev() {
                self.free.push(table, Slot(slot));
            }
        }
    }

    /// Fills a free slot and shows it, if neither key is in use.
    fn enter(
        &mut self,
        table: &Table<F>,
        new: &NewConnection<F>,
        hashes: [u64; 2],
        slot: Slot,
        now: u32,
    ) -> Result<Ref, Refused> {
        let stripes = table.index.lock(hashes[0], hashes[1]).ok_or(Refused::Busy)?;
        let taken = |key, hash| table.find(key, hash).is_some();
        if new.original == new.reply || taken(&new.original, hashes[0]) || taken(&new.reply, hashes[1]) {
            return Err(Refused::Exists);
        }
        let (first, second) = (table.first(slot), table.second(slot));
        let flags = if new.watched { Flags::WATCHED } else { 0 }
            | if new.balanced.is_some() { Flags::BALANCED } else { 0 };
        // Until it is answered, packets change nothing, unless they are of TCP, or of SCTP that is followed.
        let followed = new.begun.is_tcp() || new.balanced.is_some() && new.original.protocol == SCTP;
        let settled = if followed { 0 } else { Flags::SETTLED };
        let tunnel = new.balanced.is_some_and(|balanced| balanced.tunnel);
        let there = flags | settled | if tunnel { Flags::TUNNELLED } else { 0 };
        first.fill(&new.original, &new.reply.reversed(), new.next_hop, there, now);
        second.fill(&new.reply, &new.original.reversed(), None, flags, now);
        let status = if new.related { State::RELATED } else { 0 } | new.begun.status;
        second.cold.store(State::new(new.begun.phase, status, new.begun.note).0, Ordering::Relaxed);
        new.begun.apply(first, second);
        if !table.index.place(&stripes, hashes[1], slot.reply().0) {
            return Err(Refused::Full);
        }
        if !table.index.place(&stripes, hashes[0], slot.original().0) {
            table.index.remove(&stripes, hashes[1], slot.reply().0);
            return Err(Refused::Full);
        }
        let mut timeout = table.shared.timeouts.get(new.begun.phase.timeout());
        if let Some(balanced) = &new.balanced {
            // Nobody can remove it yet.
            table.begin_balanced(slot, balanced);
            timeout = table.record(slot).timeout();
        }
        table.set_holder(slot, Holder::new(new.port, self.worker, Standing::Live));
        table.mark(slot);
        drop(stripes);
        self.wheel.schedule(table, slot, timeout.min(FIRST_LOOK), now);
        self.held += 1;
        Ok(slot.original())
    }

    /// What is to be done once a turn, when the worker holds no [`Ref`], after it has quiesced; whether connections wait
    /// whose time is over.
    #[inline]
    pub(super) fn turn(&mut self, table: &Table<F>, now: u32) -> bool {
        self.patience = PATIENCE;
        for _ in 0..MESSAGES_PER_TURN {
            let Some(slot) = table.inbox(self.worker).take() else { break };
            self.look_at(table, Slot(slot), now);
        }
        let behind = (0..DUE_PER_TURN / DUE_AT_ONCE).all(|_| self.keep_appointments(table, now));
        if self.waiting.count > 0 && table.shared.epochs.passed(self.awaited) {
            self.recycle(table);
        }
        if self.dead.count > 0 && self.waiting.count == 0 {
            self.waiting = std::mem::replace(&mut self.dead, Chain::EMPTY);
            self.awaited = table.shared.epochs.advance();
        }
        behind
    }

    /// Nobody can hold what waited.
    fn recycle(&mut self, table: &Table<F>) {
        let chain = std::mem::replace(&mut self.waiting, Chain::EMPTY);
        if self.free.count < KEEP || chain.count < BATCH || !table.lend_free(chain) {
            self.free.prepend(table, chain);
        }
    }

    /// Somebody says that a connection was removed, or changed so that it will end earlier.
    fn look_at(&mut self, table: &Table<F>, slot: Slot, now: u32) {
        let holder = table.holder(slot);
        if holder.owner() != self.worker {
            return;
        }
        if holder.is(Standing::Dead) {
            self.wheel.cancel(table, slot);
            self.bury(table, slot);
        } else if holder.is(Standing::Live) {
            self.reschedule(table, slot, now);
        }
    }

    /// A connection's life got shorter: look at it in time.
    pub(super) fn reschedule(&mut self, table: &Table<F>, slot: Slot, now: u32) {
        self.wheel.cancel(table, slot);
        self.wheel.schedule(table, slot, table.remaining(slot, now).unwrap_or(1), now);
    }

    /// Looks at some connections whose appointments have come; false if there were none left.
    #[inline]
    fn keep_appointments(&mut self, table: &Table<F>, now: u32) -> bool {
        let mut due = [Slot(END); DUE_AT_ONCE];
        let mut count = 0;
        while count < DUE_AT_ONCE
            && let Some(slot) = self.wheel.due(table, now)
        {
            due[count] = slot;
            count += 1;
        }
        // Where the index shows those that are over has to be fetched from memory: for all at the same time.
        let due = &due[..count];
        for &slot in due.iter().filter(|&&slot| table.remaining(slot, now).is_none()) {
            for half in [table.first(slot), table.second(slot)] {
                table.prefetch(table.hash(&half.key()));
            }
        }
        for &slot in due {
            self.keep_appointment(table, slot, now);
        }
        count == DUE_AT_ONCE
    }

    fn keep_appointment(&mut self, table: &Table<F>, slot: Slot, now: u32) {
        if table.holder(slot).is(Standing::Dead) {
            return self.bury(table, slot);
        }
        if let Some(left) = table.remaining(slot, now) {
            return self.wheel.schedule(table, slot, left, now);
        }
        match table.remove(slot) {
            Removed::Now(_) => {
                table.shared.counters(self.worker()).expired.add(1);
                self.bury(table, slot);
            }
            Removed::Already => self.bury(table, slot),
            Removed::Busy => self.wheel.schedule(table, slot, 1, now),
        }
    }

    /// A connection that can be found no more and is in no list.
    fn bury(&mut self, table: &Table<F>, slot: Slot) {
        table.set_holder(slot, table.holder(slot).with(Standing::Limbo));
        self.dead.push(table, slot);
        self.held -= 1;
    }

    /// Removes a connection; false if a lock was held for long. It can be found no more, but a [`Ref`] that was found
    /// before stays good for this turn.
    pub fn kill(&mut self, table: &Table<F>, half: Ref) -> bool {
        let slot = half.slot();
        match table.remove(slot) {
            Removed::Now(owner) if owner == self.worker => {
                self.wheel.cancel(table, slot);
                self.bury(table, slot);
                true
            }
            // If its box is full, the owner will see it when it looks at the connection anyway.
            Removed::Now(owner) => {
                table.inbox(owner).post(slot.0);
                true
            }
            Removed::Already => true,
            Removed::Busy => false,
        }
    }

    /// A connection's life got shorter, and somebody else may own it.
    pub(super) fn shorten(&mut self, table: &Table<F>, slot: Slot, now: u32) {
        let holder = table.holder(slot);
        if !holder.is(Standing::Live) {
        } else if holder.owner() == self.worker {
            self.reschedule(table, slot, now);
        } else {
            table.inbox(holder.owner()).post(slot.0);
        }
    }

    /// Drops a connection that has not proved itself, preferably one that would end soon.
    #[cold]
    fn drop_one(&mut self, table: &Table<F>, victim: Victim, now: u32) -> bool {
        if self.patience == 0 {
            return false;
        }
        let fits = |slot: Slot| {
            let (holder, state) = (table.holder(slot), table.state(slot.original(), now));
            holder.is(Standing::Live)
                && !state.assured()
                && match victim {
                    Victim::Any => true,
                    Victim::OfPort(port) => holder.port() == port,
                    Victim::HalfOpen => state.phase().is_half_open(),
                }
        };
        let mut chosen = self.wheel.soonest(table).take(CANDIDATES).find(|&slot| fits(slot));
        for _ in 0..SAMPLES {
            if chosen.is_some() {
                break;
            }
            self.random = self.random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            let sample = table.index.sample(self.random >> 16, CANDIDATES).take(CANDIDATES);
            chosen = sample.map(|half| Ref(half).slot()).find(|&slot| fits(slot));
        }
        let dropped = chosen.is_some_and(|slot| self.kill(table, slot.original()));
        self.patience -= u32::from(!dropped);
        table.shared.counters(self.worker()).early_drop.add(u64::from(dropped));
        dropped
    }

    /// Marks both halves: ordinary packets need no [`Owner::update`] any more, or need it again.
    pub(super) fn settle(table: &Table<F>, slot: Slot, settled: bool) {
        for half in [table.first(slot), table.second(slot)] {
            if settled {
                half.set_flags(Flags::SETTLED);
            } else {
                half.clear_flags(Flags::SETTLED);
            }
        }
    }

    /// Free connections at hand.
    #[cfg(test)]
    pub(super) fn free_count(&self) -> u32 {
        self.free.count
    }
}

/// So that slots in a chunk and references agree.
const _: () = assert!(CHUNK.is_power_of_two() && Phase::ALL.len() < 255);
