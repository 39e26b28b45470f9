//! The connections of one family: their halves, and the index by which packets find them.
//!
//! Halves lie in one array, in chunks: 256 first halves, then the 256 second halves of the same connections, so that
//! neighbouring lines are written in the same direction. The array is zero pages until used. Workers read without
//! locks; each connection has an owner, the worker that entered it, which alone frees it (see [`super::owner`]).
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use crossbeam_utils::CachePadded;

use super::balance;
use super::entry::Half;
use super::inbox::Inbox;
use super::index::Index;
use super::key::{Compact, Family, Key, Secret};
use super::marks::Marks;
use super::shared::Shared;
use super::state::{Phase, State};
use crate::memory::{self, Pages};

/// Connections in a chunk.
pub(super) const CHUNK: u32 = 256;
/// Free connections that an owner keeps for itself.
pub(super) const KEEP: u32 = 1024;
/// Seconds after which a UDP conversation that goes on is a stream.
const STREAM_AFTER: u16 = 2;
/// Bytes of the array that are made ready at a time: a huge page.
const READY: usize = 2 << 20;
/// What is made ready ahead of need, in units of [`READY`], at most: some 130,000 connections.
const AHEAD: u32 = 8;

/// One direction of a connection in its table. Stays good until its worker's turn ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ref(pub(super) u32);

impl Ref {
    /// Whether it is the way back of the connection.
    #[inline]
    pub fn is_reply(self) -> bool {
        self.0 & CHUNK != 0
    }

    /// The other direction of the connection.
    #[inline]
    #[must_use]
    pub fn other(self) -> Self {
        Self(self.0 ^ CHUNK)
    }

    #[inline]
    pub(super) fn slot(self) -> Slot {
        Slot(self.0 & !CHUNK)
    }
}

/// A connection: the place of its first half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot(pub(super) u32);

impl Slot {
    /// The slot of a [`Slot::place`].
    pub(super) fn at(place: u32) -> Self {
        Self(place / CHUNK * 2 * CHUNK + place % CHUNK)
    }
    /// Its number without the gaps that second halves are.
    #[inline(always)]
    pub(super) fn place(self) -> u32 {
        self.0 / (2 * CHUNK) * CHUNK + self.0 % CHUNK
    }
    pub(super) fn original(self) -> Ref {
        Ref(self.0)
    }
    pub(super) fn reply(self) -> Ref {
        Ref(self.0 | CHUNK)
    }
}

/// Whether a slot holds a connection; 0 if it never did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Can be found.
    Live = 1,
    /// Can be found no more; the owner does not know yet.
    Dead = 2,
    /// The owner waits until nobody can hold it, or has it at hand.
    Limbo = 3,
}

/// The first half's word about the whole connection: standing (bits 0 to 7), owner (8 to 15), port (16 to 31).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Holder(pub(super) u32);

impl Holder {
    pub(super) fn new(port: u16, owner: u8, standing: Standing) -> Self {
        Self(u32::from(port) << 16 | u32::from(owner) << 8 | standing as u32)
    }
    pub(super) fn port(self) -> u16 {
        (self.0 >> 16) as u16
    }
    pub(super) fn owner(self) -> u8 {
        (self.0 >> 8) as u8
    }
    pub(super) fn is(self, standing: Standing) -> bool {
        self.0 as u8 == standing as u8
    }
    pub(super) fn with(self, standing: Standing) -> Self {
        Self(self.0 & !0xff | standing as u32)
    }
}

/// A list of free connections, linked through their first halves.
#[derive(Clone, Copy)]
pub(super) struct Chain {
    pub(super) head: u32,
    pub(super) tail: u32,
    pub(super) count: u32,
}

/// What a removal came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Removed {
    /// It can be found no more; this owner has to be told.
    Now(u8),
    /// Somebody else was first.
    Already,
    /// A lock was held for long.
    Busy,
}

/// The table.
pub struct Table<F: Family> {
    halves: Pages<Half<F>>,
    /// What balanced connections have beyond that.
    pub(super) records: Pages<balance::Record>,
    pub(super) index: Index,
    /// Which connections may have changed.
    pub(super) marks: Marks,
    secret: Secret,
    /// Chunks handed out.
    handed: AtomicU32,
    /// Chunks whose pages were made ready.
    ready: AtomicU32,
    /// Free connections that an owner had too many of.
    pool: Mutex<Vec<Chain>>,
    inboxes: Box<[CachePadded<Inbox>]>,
    pub(super) shared: Arc<Shared>,
}

impl<F: Family> Table<F> {
    pub(super) fn new(workers: usize, shared: Arc<Shared>) -> Self {
        let capacity = shared.capacity;
        // What owners keep and what nobody may use yet comes on top of what is in use.
        let spare = workers as u32 * (KEEP + 2 * CHUNK) + (capacity / 64).max(16 * CHUNK);
        let chunks = (capacity + spare).div_ceil(CHUNK);
        let table = Self {
            halves: Pages::new((chunks * CHUNK * 2) as usize),
            records: Pages::new(balance::places((chunks * CHUNK * 2) as usize)),
            index: Index::new(capacity as usize * 2),
            marks: Marks::new(chunks),
            secret: Secret::new(),
            handed: AtomicU32::new(0),
            ready: AtomicU32::new(0),
            pool: Mutex::new(Vec::with_capacity((chunks * CHUNK / super::owner::BATCH) as usize + 1)),
            inboxes: (0..workers).map(|_| CachePadded::new(Inbox::new())).collect(),
            shared,
        };
        table.prepare();
        table
    }

    /// Makes pages ready that will be needed soon, so that no packet waits for the kernel to clear one. To be called
    /// by a thread that carries no packets; see [`super::keeper`].
    pub fn prepare(&self) {
        let handed = self.handed.load(Ordering::Relaxed);
        if handed == 0 && F::V6 {
            // Perhaps never.
            return;
        }
        if self.ready.load(Ordering::Relaxed) == 0 {
            self.index.prepare();
        }
        let chunks = self.chunks();
        let end = handed.saturating_add(Self::ahead(handed)).min(chunks);
        loop {
            // Where workers were faster than this, they have touched the pages themselves.
            let from = self.ready.load(Ordering::Relaxed).max(self.handed.load(Ordering::Relaxed));
            let from = from.next_multiple_of(Self::PER_STEP);
            if from >= end {
                return;
            }
            let to = (from + Self::PER_STEP).min(chunks);
            make_ready(&self.halves[(from * 2 * CHUNK) as usize..(to * 2 * CHUNK) as usize], |half| {
                half.cold.fetch_or(0, Ordering::Relaxed);
            });
            self.marks.prepare(from..to);
            self.ready.store(to, Ordering::Relaxed);
        }
    }

    /// Chunks that are made ready at a time.
    const PER_STEP: u32 = (READY / (2 * CHUNK as usize * size_of::<Half<F>>())) as u32;

    /// How many chunks should be ready when so many are handed out: a table that grows will go on growing.
    fn ahead(handed: u32) -> u32 {
        handed.clamp(Self::PER_STEP, AHEAD * Self::PER_STEP)
    }

    fn chunks(&self) -> u32 {
        self.halves.len() as u32 / (2 * CHUNK)
    }

    /// Bytes that the table takes when full.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.halves) + self.index.bytes()
    }

    /// The hash of a key, for the functions below.
    #[inline(always)]
    pub fn hash(&self, key: &Key<F>) -> u64 {
        self.hash_compact(&key.compact())
    }

    /// The same of a key in few words.
    #[inline(always)]
    pub fn hash_compact(&self, key: &Compact<F>) -> u64 {
        key.hash(&self.secret)
    }

    /// Asks for the line where the index most likely shows a key of this hash.
    #[inline(always)]
    pub fn prefetch(&self, hash: u64) {
        self.index.prefetch(hash);
    }

    /// The half that is probably that of a key with this hash: to be prefetched, and then asked whether it
    /// [`Half::matches`]. If there is none, or it does not match, [`Table::find`] knows better.
    #[inline(always)]
    pub fn candidate(&self, hash: u64) -> Option<Ref> {
        self.index.candidate(hash).map(Ref)
    }

    /// Asks for a half's lines.
    #[inline(always)]
    pub fn prefetch_half(&self, half: Ref) {
        memory::prefetch(self.half(half));
        if F::V6 {
            memory::prefetch(&self.half(half).cold);
        }
    }

    /// A half.
    #[inline(always)]
    pub fn half(&self, half: Ref) -> &Half<F> {
        &self.halves[half.0 as usize]
    }

    /// The half of `key`, whose hash is `hash`; if none is found, there was none at some moment of the search.
    #[inline]
    pub fn find(&self, key: &Key<F>, hash: u64) -> Option<Ref> {
        let key = key.compact();
        self.index.find(hash, |half| self.half(Ref(half)).matches(&key)).map(Ref)
    }

    /// Whether no connection has this key, in either direction: for the search for a port.
    #[inline]
    pub fn is_free(&self, key: &Key<F>) -> bool {
        self.find(key, self.hash(key)).is_none()
    }

    /// What is known of the connection that a half belongs to, and what the time that has passed makes of it: a UDP
    /// conversation that went on for long enough is a stream. Its packets do not ask; whoever wants to know does.
    #[inline]
    pub fn state(&self, half: Ref, now: u32) -> State {
        let state = self.noted(half.slot());
        if state.phase() == Phase::UdpShort && state.seen_reply() {
            self.ripen(half.slot(), now)
        } else {
            state
        }
    }

    /// What is noted of a connection.
    #[inline]
    pub(super) fn noted(&self, slot: Slot) -> State {
        State(self.second(slot).cold.load(Ordering::Relaxed))
    }

    #[inline(never)]
    fn ripen(&self, slot: Slot, now: u32) -> State {
        let old = self.noted(slot);
        let since_it_began = (now as u16).wrapping_sub(old.note());
        let since_it_was_seen = self.first(slot).age(now).min(self.second(slot).age(now)).min(0xffff) as u16;
        if since_it_began.saturating_sub(since_it_was_seen) <= STREAM_AFTER {
            return old;
        }
        let new = State::new(Phase::UdpStream, old.status() | State::ASSURED, old.note());
        let cell = &self.second(slot).cold;
        match cell.compare_exchange(old.0, new.0, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => {
                self.mark(slot);
                new
            }
            Err(other) => State(other),
        }
    }

    /// Something of a connection has changed that another process is to know: see [`Marks`].
    #[inline(always)]
    pub(super) fn mark(&self, slot: Slot) {
        self.marks.set(slot.place());
    }

    /// Notes of a connection that nobody has seen yet what was known of it elsewhere.
    pub(super) fn set_noted(&self, slot: Slot, state: State) {
        self.second(slot).cold.store(state.0, Ordering::Relaxed);
    }

    /// Places that were ever handed out.
    pub(super) fn places(&self) -> u32 {
        self.handed.load(Ordering::Acquire) * CHUNK
    }

    /// The port by which the connection's first packet came in.
    #[inline]
    pub fn ingress_port(&self, half: Ref) -> u16 {
        self.holder(half.slot()).port()
    }

    #[inline]
    pub(super) fn first(&self, slot: Slot) -> &Half<F> {
        self.half(slot.original())
    }

    #[inline]
    pub(super) fn second(&self, slot: Slot) -> &Half<F> {
        self.half(slot.reply())
    }

    /// What it is.
    #[inline]
    pub(super) fn holder(&self, slot: Slot) -> Holder {
        Holder(self.first(slot).cold.load(Ordering::Acquire))
    }

    /// Says what it is; for the owner.
    pub(super) fn set_holder(&self, slot: Slot, holder: Holder) {
        self.first(slot).cold.store(holder.0, Ordering::Release);
    }

    /// Seconds that the connection may go on without a packet; none if they are over.
    pub(super) fn remaining(&self, slot: Slot, now: u32) -> Option<u32> {
        let age = self.first(slot).age(now).min(self.second(slot).age(now));
        let timeout = if self.first(slot).flags().balanced() {
            self.record(slot).timeout()
        } else {
            self.shared.timeouts.get(self.state(slot.original(), now).phase().timeout())
        };
        timeout.checked_sub(age).filter(|&left| left > 0)
    }

    /// Takes a connection out of the index. Whoever holds it already may go on until its turn ends.
    pub(super) fn remove(&self, slot: Slot) -> Removed {
        let (first, second) = (self.first(slot), self.second(slot));
        let holder = self.holder(slot);
        if !holder.is(Standing::Live) {
            return Removed::Already;
        }
        let hashes = [first, second].map(|half| self.hash(&half.key()));
        let Some(stripes) = self.index.lock(hashes[0], hashes[1]) else {
            return Removed::Busy;
        };
        let dead = holder.with(Standing::Dead).0;
        if first.cold.compare_exchange(holder.0, dead, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return Removed::Already;
        }
        self.index.remove(&stripes, hashes[0], slot.original().0);
        self.index.remove(&stripes, hashes[1], slot.reply().0);
        drop(stripes);
        if State(second.cold.swap(0, Ordering::AcqRel)).phase().is_half_open() {
            self.shared.release_half_open();
        }
        self.shared.release(holder.port());
        if first.flags().balanced() {
            self.end_balanced(slot);
        }
        self.mark(slot);
        Removed::Now(holder.owner())
    }

    /// The box of a worker.
    #[inline]
    pub(super) fn inbox(&self, owner: u8) -> &Inbox {
        &self.inboxes[usize::from(owner)]
    }

    /// A chunk of connections that were never used, as a range of slots.
    pub(super) fn fresh_chunk(&self) -> Option<std::ops::Range<u32>> {
        let chunks = self.chunks();
        let chunk = self
            .handed
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |handed| {
                (handed < chunks).then_some(handed + 1)
            })
            .ok()?;
        let ready = self.ready.load(Ordering::Relaxed);
        if ready < chunks && ready.saturating_sub(chunk) <= Self::ahead(chunk) / 2 {
            self.shared.keeper.ask();
        }
        Some(chunk * 2 * CHUNK..chunk * 2 * CHUNK + CHUNK)
    }

    /// Free connections that somebody had too many of.
    pub(super) fn borrow_free(&self) -> Option<Chain> {
        self.pool.try_lock().ok()?.pop()
    }

    /// Gives away free connections; false if that is not possible now.
    pub(super) fn lend_free(&self, chain: Chain) -> bool {
        match self.pool.try_lock() {
            Ok(mut pool) if pool.len() < pool.capacity() => {
                pool.push(chain);
                true
            }
            _ => false,
        }
    }

    /// Free connections in the pool.
    #[cfg(test)]
    pub(super) fn lent(&self) -> u32 {
        self.pool.lock().expect("whole").iter().map(|chain| chain.count).sum()
    }

    /// Slots that were never handed out, and all.
    #[cfg(test)]
    pub(super) fn slots(&self) -> (u32, u32) {
        let all = self.halves.len() as u32 / 2;
        (all - self.handed.load(Ordering::Relaxed) * CHUNK, all)
    }

    /// All connections that can be found, from the `from`-th place on, at most `places` places; where to go on. What is
    /// seen is stable while the caller has a seat that it does not quiesce.
    pub(super) fn scan(&self, from: u32, places: u32, mut seen: impl FnMut(Slot)) -> Option<u32> {
        let end = self.handed.load(Ordering::Acquire) * CHUNK;
        let to = from.saturating_add(places).min(end);
        for place in from..to {
            let slot = Slot::at(place);
            if self.holder(slot).is(Standing::Live) {
                seen(slot);
            }
        }
        (to < end).then_some(to)
    }
}

/// Has the kernel provide the pages of a part of a table. `touch` writes to an element without changing it.
pub(super) fn make_ready<T>(part: &[T], touch: impl Fn(&T)) {
    memory::prefer_huge_pages(part);
    part.iter().step_by(4096 / size_of::<T>()).for_each(touch);
}
