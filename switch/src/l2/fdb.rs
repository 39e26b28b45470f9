//! The forwarding database of a bridge: which port an address was last seen at.
//!
//! Workers read it without a lock and learn without waiting: a new address takes the writer's lock only if it is free
//! (the next frame of that source tries again). An address may lie in one of two buckets of four, a cache line each,
//! so a lookup costs the same whatever the table holds and whatever addresses a guest makes up. Entries are learned
//! per VLAN tag of the frame (independent VLAN learning, IEEE 802.1Q, 8.7); untagged and priority-tagged is VLAN 0.
#![forbid(unsafe_code)]

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use zerocopy::FromZeros;

use super::ageing::Wheel;

const WAYS: usize = 4;
/// How many buckets a learner looks through for an entry of a port that has more than its share.
const EVICTION_PROBES: usize = 64;

/// An address and its VLAN, as the table compares them; never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key(u64);

impl Key {
    const USED: u64 = 1 << 63;
    const ADDRESS: u64 = (1 << 48) - 1;

    /// A key of six address bytes and a VLAN identifier (12 bits; 0 for untagged).
    pub fn new(mac: [u8; 6], vlan: u16) -> Self {
        let mut bytes = [0; 8];
        bytes[..6].copy_from_slice(&mac);
        Self::from_word(u64::from_le_bytes(bytes), vlan)
    }

    /// A key of the first six bytes of a little-endian word.
    #[inline]
    pub fn from_word(word: u64, vlan: u16) -> Self {
        Self(word & Self::ADDRESS | u64::from(vlan & 0xfff) << 48 | Self::USED)
    }

    /// A multicast or broadcast address.
    #[inline]
    pub fn is_group(self) -> bool {
        self.0 & 1 == 1
    }

    /// The address 00:00:00:00:00:00, which nobody has.
    #[inline]
    pub fn is_zero(self) -> bool {
        self.0 & Self::ADDRESS == 0
    }

    /// One of 01-80-C2-00-00-00 to 0F, which bridges do not forward (IEEE 802.1Q, table 8-1).
    #[inline]
    pub fn is_reserved(self) -> bool {
        self.0 & (Self::ADDRESS & !(0x0f << 40)) == u64::from_le_bytes([1, 0x80, 0xc2, 0, 0, 0, 0, 0])
    }

    /// The address.
    pub fn mac(self) -> [u8; 6] {
        let b = self.0.to_le_bytes();
        [b[0], b[1], b[2], b[3], b[4], b[5]]
    }

    /// The VLAN identifier.
    pub fn vlan(self) -> u16 {
        (self.0 >> 48 & 0xfff) as u16
    }
}

/// Port (bits 0 to 15), static (bit 16), second last seen (bits 32 to 63).
#[derive(Clone, Copy, PartialEq, Eq)]
struct Value(u64);

impl Value {
    fn new(port: u16, fixed: bool, seen: u32) -> Self {
        Self(u64::from(port) | u64::from(fixed) << 16 | u64::from(seen) << 32)
    }
    #[inline]
    fn port(self) -> u16 {
        self.0 as u16
    }
    #[inline]
    fn fixed(self) -> bool {
        self.0 >> 16 & 1 == 1
    }
    #[inline]
    fn seen(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// Both zero when empty. The key is zeroed before the value changes hands and written after it.
#[derive(FromZeros)]
#[repr(C)]
struct Slot {
    key: AtomicU64,
    value: AtomicU64,
}

#[derive(FromZeros)]
#[repr(C, align(64))]
struct Bucket([Slot; WAYS]);

/// What learning came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learned {
    /// Known at this port already.
    Known,
    /// New.
    New,
    /// Was at another port, whose number is given.
    Moved(u16),
    /// Fixed at another port by the operator.
    Fixed,
    /// The table is full.
    Full,
    /// Somebody else is writing; the next frame will do.
    Busy,
}

/// An entry, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Address and VLAN.
    pub key: Key,
    /// Port number.
    pub port: u16,
    /// Made by the operator; neither ages nor moves.
    pub fixed: bool,
    /// Seconds since the address was last seen as a source; 0 for a static entry.
    pub age: u32,
}

struct Writer {
    wheel: Wheel,
    /// Entries of each port, static ones included.
    per_port: Vec<u32>,
    /// Ports with at least one entry.
    holders: u32,
    /// Where the next search for a victim begins.
    probe: usize,
}

/// The table. Seconds are the switch's clock ([`crate::clock`]), whose zero means nothing.
pub struct Fdb {
    buckets: Box<[Bucket]>,
    secret: [u64; 2],
    limit: u32,
    ageing: u32,
    writer: Mutex<Writer>,
    count: AtomicU32,
    moves: AtomicU64,
    full: AtomicU64,
}

impl Fdb {
    /// A table for `limit` entries that forgets after `ageing` seconds (0: never), for port numbers below `ports`.
    pub fn new(limit: u32, ageing: u32, ports: usize) -> Self {
        // Twice the room: with two buckets of four to choose from, an insertion then practically never fails early. In
        // a very small table it would by mere chance.
        let buckets = (limit as usize * 2 / WAYS).next_power_of_two().max(64);
        let random = RandomState::new();
        Self {
            buckets: <[Bucket]>::new_box_zeroed_with_elems(buckets)
                .expect("memory for the forwarding database"),
            secret: [random.hash_one(0u8) | 1, random.hash_one(1u8) | 1],
            limit,
            ageing,
            writer: Mutex::new(Writer {
                wheel: Wheel::new(buckets * WAYS),
                per_port: vec![0; ports],
                holders: 0,
                probe: 0,
            }),
            count: AtomicU32::new(0),
            moves: AtomicU64::new(0),
            full: AtomicU64::new(0),
        }
    }

    /// Entries now, static ones included.
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

    /// Seconds after which an unseen address is forgotten; 0: never.
    pub fn ageing(&self) -> u32 {
        self.ageing
    }

    /// How often an address was seen to move from one port to another.
    pub fn moves(&self) -> u64 {
        self.moves.load(Ordering::Relaxed)
    }

    /// How often an address was not learned since the table was full.
    pub fn full(&self) -> u64 {
        self.full.load(Ordering::Relaxed)
    }

    /// The two buckets of a key. Keyed and mixed by wide multiplications: a guest cannot aim at a bucket, and if it
    /// could, it would win two full buckets, not a slow table. Two of them: after one, the buckets of addresses that
    /// follow each other hang together with some secrets, and both are full while half of the table is free.
    #[inline]
    fn places(&self, key: Key) -> (usize, usize) {
        let fold = |wide: u128| (wide >> 64) as u64 ^ wide as u64;
        let hash = fold(u128::from(key.0 ^ self.secret[1]) * u128::from(self.secret[0]));
        let hash = fold(u128::from(hash ^ self.secret[0]) * u128::from(self.secret[1]));
        let mask = self.buckets.len() - 1;
        (hash as usize & mask, (hash >> 32) as usize & mask)
    }

    #[inline]
    fn find(&self, key: Key) -> Option<(&Slot, Value)> {
        let (first, second) = self.places(key);
        for place in [first, second] {
            for slot in &self.buckets[place].0 {
                if slot.key.load(Ordering::Acquire) == key.0 {
                    let value = Value(slot.value.load(Ordering::Acquire));
                    // Still the same owner, so the value was this key's.
                    if slot.key.load(Ordering::Relaxed) == key.0 {
                        return Some((slot, value));
                    }
                }
            }
        }
        None
    }

    fn expired(&self, value: Value, now: u32) -> bool {
        self.ageing != 0 && !value.fixed() && now.wrapping_sub(value.seen()) as i32 > self.ageing as i32
    }

    /// The port at which an address was last seen.
    #[inline]
    pub fn lookup(&self, key: Key, now: u32) -> Option<u16> {
        let (_, value) = self.find(key)?;
        (!self.expired(value, now)).then(|| value.port())
    }

    /// Notes that `key` was seen as a source at `port`.
    #[inline]
    pub fn learn(&self, key: Key, port: u16, now: u32) -> Learned {
        if let Some((slot, value)) = self.find(key)
            && (value.port() == port || value.fixed())
        {
            if value.port() != port {
                return Learned::Fixed;
            }
            if value.seen() != now && !value.fixed() {
                // Once a second per address. Lost if the slot changes hands meanwhile, as it should be.
                let fresh = Value::new(port, false, now);
                let _ = slot.value.compare_exchange(value.0, fresh.0, Ordering::AcqRel, Ordering::Relaxed);
            }
            return Learned::Known;
        }
        self.learn_slow(key, port, now)
    }

    #[cold]
    fn learn_slow(&self, key: Key, port: u16, now: u32) -> Learned {
        let mut writer = match self.writer.try_lock() {
            Ok(writer) => writer,
            Err(std::sync::TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(std::sync::TryLockError::WouldBlock) => return Learned::Busy,
        };
        self.store(&mut writer, key, Value::new(port, false, now), now)
    }

    fn lock(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds or replaces a static entry; `Full` if there is no room.
    pub fn fix(&self, key: Key, port: u16, now: u32) -> Learned {
        let mut writer = self.lock();
        // A learned entry gives way to the operator's.
        self.forget(&mut writer, key);
        self.store(&mut writer, key, Value::new(port, true, now), now)
    }

    /// The port of a static entry.
    pub fn fixed(&self, key: Key) -> Option<u16> {
        self.find(key).filter(|(_, value)| value.fixed()).map(|(_, value)| value.port())
    }

    /// Notes what was learned elsewhere, `age` seconds ago. A static entry stays.
    pub fn restore(&self, key: Key, port: u16, age: u32, now: u32) -> Learned {
        let value = Value::new(port, false, now.wrapping_sub(age));
        if self.expired(value, now) {
            return Learned::Known;
        }
        self.store(&mut self.lock(), key, value, now)
    }

    /// Removes an entry; false if there was none.
    pub fn remove(&self, key: Key) -> bool {
        let mut writer = self.lock();
        self.forget(&mut writer, key)
    }

    fn forget(&self, writer: &mut Writer, key: Key) -> bool {
        match self.find(key) {
            Some((slot, _)) => {
                self.release(writer, slot);
                true
            }
            None => false,
        }
    }

    /// Removes the learned entries (of one port, if one is given), or with `fixed` the static ones, too.
    pub fn flush(&self, port: Option<u16>, fixed: bool) -> u64 {
        let mut removed = 0;
        for chunk in self.buckets.chunks(1024) {
            // The lock is let go now and then, so that learning goes on.
            let mut writer = self.lock();
            for slot in chunk.iter().flat_map(|bucket| &bucket.0) {
                let value = Value(slot.value.load(Ordering::Relaxed));
                if slot.key.load(Ordering::Relaxed) != 0
                    && port.is_none_or(|port| value.port() == port)
                    && (fixed || !value.fixed())
                {
                    self.release(&mut writer, slot);
                    removed += 1;
                }
            }
        }
        removed
    }

    /// All entries that are alive at `now`.
    pub fn entries(&self, now: u32) -> Vec<Entry> {
        let mut entries = Vec::with_capacity(self.len() as usize);
        for slot in self.buckets.iter().flat_map(|bucket| &bucket.0) {
            let key = slot.key.load(Ordering::Acquire);
            let value = Value(slot.value.load(Ordering::Acquire));
            if key == 0 || slot.key.load(Ordering::Relaxed) != key || self.expired(value, now) {
                continue;
            }
            let age = if value.fixed() { 0 } else { now.wrapping_sub(value.seen()) };
            entries.push(Entry { key: Key(key), port: value.port(), fixed: value.fixed(), age });
        }
        entries
    }

    /// Removes what has expired; to be called about once a second. Costs nothing while nothing expires.
    pub fn expire(&self, now: u32) {
        if self.ageing == 0 {
            return;
        }
        let mut more = true;
        while more {
            let mut writer = self.lock();
            more = false;
            for _ in 0..1024 {
                let Some(index) = writer.wheel.due(now) else { break };
                let slot = &self.buckets[index / WAYS].0[index % WAYS];
                let value = Value(slot.value.load(Ordering::Relaxed));
                if slot.key.load(Ordering::Relaxed) != 0 && !value.fixed() {
                    if self.expired(value, now) {
                        self.release(&mut writer, slot);
                    } else {
                        let at = value.seen().wrapping_add(self.ageing).wrapping_add(1);
                        writer.wheel.schedule(index, at, now);
                    }
                }
                more = true;
            }
        }
    }

    fn release(&self, writer: &mut Writer, slot: &Slot) {
        let port = usize::from(Value(slot.value.load(Ordering::Relaxed)).port());
        slot.key.store(0, Ordering::Release);
        if let Some(count) = writer.per_port.get_mut(port) {
            *count = count.saturating_sub(1);
            writer.holders -= u32::from(*count == 0);
        }
        self.count.fetch_sub(1, Ordering::Relaxed);
    }

    fn store(&self, writer: &mut Writer, key: Key, value: Value, now: u32) -> Learned {
        let mut result = Learned::New;
        if let Some((slot, old)) = self.find(key) {
            if old.fixed() {
                return Learned::Fixed;
            }
            if old.port() == value.port() {
                slot.value.store(value.0, Ordering::Release);
                return Learned::Known;
            }
            if !self.expired(old, now) {
                self.moves.fetch_add(1, Ordering::Relaxed);
                result = Learned::Moved(old.port());
            }
            self.release(writer, slot);
        }
        if self.count.load(Ordering::Relaxed) >= self.limit && !self.evict(writer, value, now) {
            self.full.fetch_add(1, Ordering::Relaxed);
            return Learned::Full;
        }
        let Some(index) = self.vacancy(writer, key, now).or_else(|| self.make_way(writer, key, now)) else {
            self.full.fetch_add(1, Ordering::Relaxed);
            return Learned::Full;
        };
        let slot = &self.buckets[index / WAYS].0[index % WAYS];
        slot.value.store(value.0, Ordering::Release);
        slot.key.store(key.0, Ordering::Release);
        let port = usize::from(value.port());
        if let Some(count) = writer.per_port.get_mut(port) {
            writer.holders += u32::from(*count == 0);
            *count += 1;
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        if self.ageing != 0 && !value.fixed() {
            writer.wheel.schedule(index, now.wrapping_add(self.ageing).wrapping_add(1), now);
        }
        result
    }

    /// A free slot in the emptier of the key's buckets; an expired entry counts as free.
    fn vacancy(&self, writer: &mut Writer, key: Key, now: u32) -> Option<usize> {
        let (first, second) = self.places(key);
        let mut best = None;
        for place in [first, second] {
            let mut free = 0;
            let mut at = 0;
            for (way, slot) in self.buckets[place].0.iter().enumerate() {
                let expired = self.expired(Value(slot.value.load(Ordering::Relaxed)), now);
                if slot.key.load(Ordering::Relaxed) != 0 && expired {
                    self.release(writer, slot);
                }
                if slot.key.load(Ordering::Relaxed) == 0 {
                    free += 1;
                    at = place * WAYS + way;
                }
            }
            if free > 0 && best.is_none_or(|(most, _)| free > most) {
                best = Some((free, at));
            }
        }
        best.map(|(_, at)| at)
    }

    /// Moves an entry of the key's buckets, both full, to its other bucket; the slot that it leaves. A reader that looks
    /// meanwhile finds it at one place or at both, or at worst misses it once.
    #[cold]
    fn make_way(&self, writer: &mut Writer, key: Key, now: u32) -> Option<usize> {
        let (first, second) = self.places(key);
        for place in [first, second] {
            for (way, slot) in self.buckets[place].0.iter().enumerate() {
                let resident = Key(slot.key.load(Ordering::Relaxed));
                let (a, b) = self.places(resident);
                let other = if a == place { b } else { a };
                let empty = |slot: &Slot| slot.key.load(Ordering::Relaxed) == 0;
                let Some(free) = self.buckets[other].0.iter().position(empty) else { continue };
                let value = Value(slot.value.load(Ordering::Relaxed));
                let target = &self.buckets[other].0[free];
                target.value.store(value.0, Ordering::Release);
                target.key.store(resident.0, Ordering::Release);
                slot.key.store(0, Ordering::Release);
                if self.ageing != 0 && !value.fixed() {
                    let at = value.seen().wrapping_add(self.ageing).wrapping_add(1);
                    writer.wheel.schedule(other * WAYS + free, at, now);
                }
                return Some(place * WAYS + way);
            }
        }
        None
    }

    /// Makes room in a full table for a port that holds less than its share, at the cost of one that holds more: a
    /// guest that floods the table with sources displaces its own entries, not its neighbours'.
    fn evict(&self, writer: &mut Writer, value: Value, now: u32) -> bool {
        let held = |port: u16| writer.per_port.get(usize::from(port)).copied().unwrap_or(0);
        let newcomer = u32::from(held(value.port()) == 0);
        let share = (self.limit / (writer.holders + newcomer).max(1)).max(1);
        if !value.fixed() && held(value.port()) >= share {
            return false;
        }
        let mask = self.buckets.len() - 1;
        let start = writer.probe;
        for step in 0..EVICTION_PROBES.min(self.buckets.len()) {
            let place = (start + step) & mask;
            for slot in &self.buckets[place].0 {
                let victim = Value(slot.value.load(Ordering::Relaxed));
                let used = slot.key.load(Ordering::Relaxed) != 0;
                if used && !victim.fixed() && (held(victim.port()) > share || self.expired(victim, now)) {
                    writer.probe = place;
                    self.release(writer, slot);
                    return true;
                }
            }
        }
        writer.probe = (start + EVICTION_PROBES) & mask;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u32) -> Key {
        let b = n.to_be_bytes();
        Key::new([2, 0, b[0], b[1], b[2], b[3]], 0)
    }

    #[test]
    fn learns_moves_ages_and_keeps_vlans_apart() {
        let fdb = Fdb::new(100, 300, 8);
        assert_eq!(fdb.learn(key(1), 1, 10), Learned::New);
        assert_eq!(fdb.learn(key(1), 1, 11), Learned::Known);
        assert_eq!(fdb.lookup(key(1), 11), Some(1));
        assert_eq!(fdb.lookup(Key::new(key(1).mac(), 7), 11), None);
        assert_eq!(fdb.learn(key(1), 2, 12), Learned::Moved(1));
        assert_eq!((fdb.moves(), fdb.len()), (1, 1));
        assert_eq!(fdb.lookup(key(1), 312), Some(2), "300 seconds are not more than 300");
        assert_eq!(fdb.lookup(key(1), 313), None);
        for now in 12..=312 {
            fdb.expire(now);
        }
        assert_eq!(fdb.len(), 1);
        fdb.expire(314);
        assert_eq!(fdb.len(), 0);
    }

    #[test]
    fn an_address_that_is_seen_again_lives_on() {
        let fdb = Fdb::new(100, 30, 8);
        for now in 0..100 {
            fdb.learn(key(1), 1, now);
            fdb.expire(now);
        }
        assert_eq!(fdb.lookup(key(1), 100), Some(1));
        fdb.expire(131);
        assert!(fdb.is_empty());
    }

    #[test]
    fn static_entries_neither_age_nor_move_nor_flush() {
        let fdb = Fdb::new(100, 30, 8);
        fdb.learn(key(1), 1, 0);
        assert_eq!(fdb.fix(key(1), 3, 0), Learned::New);
        assert_eq!(fdb.learn(key(1), 1, 1), Learned::Fixed);
        fdb.expire(1000);
        assert_eq!(fdb.flush(None, false), 0);
        assert_eq!(fdb.lookup(key(1), 1000), Some(3));
        assert_eq!(fdb.entries(1000), [Entry { key: key(1), port: 3, fixed: true, age: 0 }]);
        assert!(fdb.remove(key(1)) && !fdb.remove(key(1)));
    }

    #[test]
    fn the_limit_is_exact_and_a_flooding_port_pays_for_it() {
        for limit in [1u32, 10, 65_536] {
            let fdb = Fdb::new(limit, 300, 8);
            for n in 0..limit {
                assert_eq!(fdb.learn(key(n), 1, 0), Learned::New, "{n} of {limit}");
            }
            assert_eq!(fdb.learn(key(limit), 1, 0), Learned::Full);
            assert_eq!((fdb.len(), fdb.full()), (limit, 1));
            if limit >= 10 {
                // Another port still gets its addresses in, and the table does not grow.
                assert_eq!(fdb.learn(key(limit + 1), 2, 0), Learned::New);
                assert_eq!(fdb.len(), limit);
                assert_eq!(fdb.lookup(key(limit + 1), 0), Some(2));
            }
        }
    }

    #[test]
    fn addresses_in_a_row_fit_whatever_the_secret_is() {
        for table in 0..500 {
            let fdb = Fdb::new(1024, 300, 2);
            let learned = (0..1024).filter(|&n| fdb.learn(key(n), 1, 0) == Learned::New).count();
            assert_eq!(learned, 1024, "table {table}");
        }
    }

    #[test]
    fn a_million_entries_fit() {
        let fdb = Fdb::new(1 << 20, 300, 2);
        let learned = (0..1 << 20).filter(|&n| fdb.learn(key(n), 1, 0) == Learned::New).count();
        assert_eq!(learned, 1 << 20);
        assert!((0..1 << 20).step_by(997).all(|n| fdb.lookup(key(n), 0) == Some(1)));
        assert_eq!(fdb.flush(Some(1), false), 1 << 20);
        assert!(fdb.is_empty());
    }

    #[test]
    fn readers_never_see_one_address_at_another_ones_port() {
        // Port = low bit of the address: learners churn a tiny table while readers check what they see.
        let fdb = Fdb::new(16, 300, 2);
        std::thread::scope(|scope| {
            for thread in 0..2u32 {
                let fdb = &fdb;
                scope.spawn(move || {
                    for n in 0..100_000u32 {
                        let address = n.wrapping_mul(2_654_435_761).wrapping_add(thread) % 64;
                        fdb.learn(key(address), (address & 1) as u16, 0);
                        fdb.remove(key(address ^ 3));
                        let other = address ^ 5;
                        if let Some(port) = fdb.lookup(key(other), 0) {
                            assert_eq!(u32::from(port), other & 1);
                        }
                    }
                });
            }
        });
    }
}
