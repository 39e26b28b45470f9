//! Templates of persistence: which server a client, or a network of clients, stays with.
//!
//! A template is found by the client's address as far as it counts and by what it called, and lives for the service's
//! timeout after its last new connection, and as long as it has connections. They lie in a table of fixed size, in
//! buckets of a few, each behind a flag that is held for some tens of nanoseconds and tried for a bounded time; nothing
//! is allocated. Hostile clients cannot aim at a bucket (the hash is keyed); who makes many templates, as by many
//! addresses of IPv6, displaces in each bucket those that would end soonest of the ones without connections.
#![forbid(unsafe_code)]

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use serde::{Deserialize, Serialize};
use zerocopy::FromZeros;

use crate::memory::Pages;
use crate::rules::hash::mix;

/// Templates of a bucket.
const WAYS: usize = 8;
/// Buckets: a million templates, in pages that exist where they were used.
const BUCKETS: usize = 1 << 17;
/// How often a bucket is tried for.
const TRIES: usize = 400;
/// In how many steps the table is looked through for what is over.
const SWEEPS: usize = 8;

/// A template is in this place.
const USED: u32 = 1;
/// A connection that followed it was established.
const ASSURED: u32 = 2;
/// Nobody follows it any more; it waits for its connections to end.
const INVALID: u32 = 4;

/// What a template is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// The client's address, as far as it counts; or a hash of what tells clients apart.
    pub client: IpAddr,
    /// The address that it called; of a service by mark, the mark.
    pub address: IpAddr,
    /// The protocol, 0 of a service by mark.
    pub protocol: u8,
    /// The port that it called, 0 if that does not matter.
    pub port: u16,
    /// Tells scopes apart.
    pub scope: u32,
}

impl Pattern {
    fn words(&self) -> [u64; 5] {
        let halves = |address: IpAddr| match address {
            IpAddr::V4(v4) => [0, u64::from(v4.to_bits())],
            IpAddr::V6(v6) => [(v6.to_bits() >> 64) as u64, v6.to_bits() as u64],
        };
        let ([a, b], [c, d]) = (halves(self.client), halves(self.address));
        let rest = u64::from(self.scope) << 32
            | u64::from(self.port) << 16
            | u64::from(self.protocol) << 8
            | u64::from(self.client.is_ipv6())
            | u64::from(self.address.is_ipv6()) << 1;
        [a, b, c, d, rest]
    }

    fn of(words: [u64; 5]) -> Self {
        let [a, b, c, d, rest] = words;
        let address = |high: u64, low: u64, v6: bool| -> IpAddr {
            if v6 {
                std::net::Ipv6Addr::from_bits(u128::from(high) << 64 | u128::from(low)).into()
            } else {
                std::net::Ipv4Addr::from_bits(low as u32).into()
            }
        };
        Self {
            client: address(a, b, rest & 1 != 0),
            address: address(c, d, rest & 2 != 0),
            protocol: (rest >> 8) as u8,
            port: (rest >> 16) as u16,
            scope: (rest >> 32) as u32,
        }
    }
}

#[derive(FromZeros)]
#[repr(C, align(64))]
struct Slot {
    words: [AtomicU64; 5],
    destination: AtomicU32,
    /// Second from which on it is over, unless it has connections.
    expires: AtomicU32,
    held: AtomicU32,
    timeout: AtomicU32,
    /// [`USED`] and the like; the server's port from bit 16 on.
    flags: AtomicU32,
}

#[derive(FromZeros)]
#[repr(C, align(64))]
struct Bucket {
    lock: AtomicU32,
    used: AtomicU32,
    slots: [Slot; WAYS],
}

impl Slot {
    fn words(&self) -> [u64; 5] {
        std::array::from_fn(|at| self.words[at].load(Ordering::Relaxed))
    }

    fn flags(&self) -> u32 {
        self.flags.load(Ordering::Relaxed)
    }

    fn is_over(&self, now: u32) -> bool {
        let past = now.wrapping_sub(self.expires.load(Ordering::Relaxed)) as i32 >= 0;
        self.held.load(Ordering::Acquire) == 0 && (past || self.flags() & INVALID != 0)
    }
}

/// A bucket that nobody else changes.
struct Held<'a>(&'a Bucket);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.lock.store(0, Ordering::Release);
    }
}

impl Bucket {
    fn hold(&self) -> Option<Held<'_>> {
        for _ in 0..TRIES {
            if self.lock.compare_exchange_weak(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                return Some(Held(self));
            }
            std::hint::spin_loop();
        }
        None
    }
}

impl Held<'_> {
    /// Empties a place; the server of what was there.
    fn clear(&self, slot: &Slot) -> u32 {
        slot.flags.store(0, Ordering::Relaxed);
        self.0.used.fetch_sub(1, Ordering::Relaxed);
        slot.destination.load(Ordering::Relaxed)
    }
}

/// A template, for listings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Template {
    /// What it is found by.
    pub pattern: Pattern,
    /// Number of its server.
    pub destination: u32,
    /// The port of the server's that connections get, 0: the one that is called.
    pub port: u16,
    /// Seconds that it lives if no connection follows it.
    pub remaining: u32,
    /// Seconds that it lives after each new connection.
    pub timeout: u32,
    /// Whether a connection that followed it was established.
    pub assured: bool,
    /// Connections that follow it.
    pub held: u32,
}

/// A template for another process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptTemplate {
    /// Its number, by which connections name it.
    pub number: u32,
    /// The client's address, as far as it counts.
    pub client: IpAddr,
    /// The address that it called; of a service by mark, the mark.
    pub address: IpAddr,
    /// The protocol, 0 of a service by mark.
    pub protocol: u8,
    /// The port that it called, 0 if that does not matter.
    pub port: u16,
    /// Number of its server.
    pub destination: u32,
    /// The port of the server's that connections get.
    pub server_port: u16,
    /// Seconds that it lives after each new connection.
    pub timeout: u32,
    /// The second from which on it is over.
    pub expires: u32,
    /// Whether a connection that followed it was established.
    pub assured: bool,
}

/// All templates.
pub struct Templates {
    buckets: OnceLock<Pages<Bucket>>,
    count: AtomicUsize,
    swept: AtomicUsize,
    random: RandomState,
}

impl Default for Templates {
    fn default() -> Self {
        Self {
            buckets: OnceLock::new(),
            count: AtomicUsize::new(0),
            swept: AtomicUsize::new(0),
            random: RandomState::new(),
        }
    }
}

impl fmt::Debug for Templates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Templates").field("count", &self.len()).finish_non_exhaustive()
    }
}

impl Templates {
    /// How many there are; some of them may be over.
    pub fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The table, which is mapped with the first use.
    fn buckets(&self) -> &[Bucket] {
        self.buckets.get_or_init(|| Pages::new(BUCKETS))
    }

    fn place(&self, words: &[u64; 5]) -> usize {
        let hash = self.random.hash_one(words);
        mix(hash, 0x5bd1) as usize % BUCKETS
    }

    fn slot(&self, number: u32) -> Option<&Slot> {
        let at = number.checked_sub(1)? as usize;
        self.buckets.get()?.get(at / WAYS)?.slots.get(at % WAYS)
    }

    /// Finds the template of a pattern, and has a connection follow it: its number (from 1 on), server, and server's
    /// port. The time until its end begins anew. What the caller does not use it must [`Templates::release`]. `over` is
    /// told the server of each template found to be over.
    ///
    /// # Errors
    /// The bucket was busy for long; the next packet will do.
    pub fn follow(
        &self,
        pattern: &Pattern,
        now: u32,
        mut over: impl FnMut(u32),
    ) -> Result<Option<(u32, u32, u16)>, Busy> {
        if self.is_empty() {
            return Ok(None);
        }
        let words = pattern.words();
        let place = self.place(&words);
        let held = self.buckets()[place].hold().ok_or(Busy)?;
        for (way, slot) in held.0.slots.iter().enumerate() {
            if slot.flags() & (USED | INVALID) != USED || slot.words() != words {
                continue;
            }
            if slot.is_over(now) {
                over(held.clear(slot));
                self.count.fetch_sub(1, Ordering::Relaxed);
                return Ok(None);
            }
            slot.held.fetch_add(1, Ordering::AcqRel);
            let timeout = slot.timeout.load(Ordering::Relaxed);
            slot.expires.store(now.wrapping_add(timeout), Ordering::Relaxed);
            let number = (place * WAYS + way) as u32 + 1;
            let port = (slot.flags() >> 16) as u16;
            return Ok(Some((number, slot.destination.load(Ordering::Relaxed), port)));
        }
        Ok(None)
    }

    /// Makes a template, which a connection follows already, instead of what was there for its pattern; its number. The
    /// caller has counted it at its server.
    ///
    /// # Errors
    /// The bucket was busy, or all of its templates have connections.
    pub fn insert(
        &self,
        pattern: &Pattern,
        server: (u32, u16),
        timeout: u32,
        now: u32,
        mut over: impl FnMut(u32),
    ) -> Result<u32, Busy> {
        let words = pattern.words();
        let place = self.place(&words);
        let held = self.buckets()[place].hold().ok_or(Busy)?;
        let mut free = None;
        let mut soonest = None;
        for (way, slot) in held.0.slots.iter().enumerate() {
            if slot.flags() & USED == 0 {
                free = Some(way);
                continue;
            }
            if slot.words() == words {
                slot.flags.fetch_or(INVALID, Ordering::Relaxed);
            }
            let left = slot.expires.load(Ordering::Relaxed).wrapping_sub(now) as i32;
            if slot.is_over(now) {
                over(held.clear(slot));
                self.count.fetch_sub(1, Ordering::Relaxed);
                free = Some(way);
            } else if slot.held.load(Ordering::Acquire) == 0 && soonest.is_none_or(|(_, least)| left < least)
            {
                soonest = Some((way, left));
            }
        }
        let way = match (free, soonest) {
            (Some(way), _) => way,
            (None, Some((way, _))) => {
                over(held.clear(&held.0.slots[way]));
                self.count.fetch_sub(1, Ordering::Relaxed);
                way
            }
            (None, None) => return Err(Busy),
        };
        let slot = &held.0.slots[way];
        for (cell, word) in slot.words.iter().zip(words) {
            cell.store(word, Ordering::Relaxed);
        }
        slot.destination.store(server.0, Ordering::Relaxed);
        slot.timeout.store(timeout, Ordering::Relaxed);
        slot.expires.store(now.wrapping_add(timeout), Ordering::Relaxed);
        slot.held.store(1, Ordering::Relaxed);
        slot.flags.store(USED | u32::from(server.1) << 16, Ordering::Relaxed);
        held.0.used.fetch_add(1, Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed);
        Ok((place * WAYS + way) as u32 + 1)
    }

    /// A connection follows a template no more.
    pub fn release(&self, number: u32) {
        if let Some(slot) = self.slot(number) {
            slot.held.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Nobody is to follow a template any more: its server is not to be used. One connection that does is not counted
    /// from now on.
    pub fn invalidate(&self, number: u32) {
        if let Some(slot) = self.slot(number) {
            slot.flags.fetch_or(INVALID, Ordering::Relaxed);
            slot.held.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// A connection that follows a template was established.
    pub fn assure(&self, number: u32) {
        if let Some(slot) = self.slot(number) {
            slot.flags.fetch_or(ASSURED, Ordering::Relaxed);
        }
    }

    /// Removes, in a part of the table, what is over; to be called about once a second. `over` as in
    /// [`Templates::follow`].
    pub fn sweep(&self, now: u32, mut over: impl FnMut(u32)) {
        if self.is_empty() {
            return;
        }
        let part = self.swept.fetch_add(1, Ordering::Relaxed) % SWEEPS;
        let size = BUCKETS / SWEEPS;
        for bucket in &self.buckets()[part * size..(part + 1) * size] {
            if bucket.used.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let Some(held) = bucket.hold() else { continue };
            for slot in held.0.slots.iter().filter(|slot| slot.flags() & USED != 0) {
                if slot.is_over(now) {
                    over(held.clear(slot));
                    self.count.fetch_sub(1, Ordering::Relaxed);
                }
            }
        }
    }

    /// All templates that are not over, for another process.
    pub fn export(&self, now: u32) -> Vec<KeptTemplate> {
        let mut kept = Vec::with_capacity(self.len());
        if self.is_empty() {
            return kept;
        }
        for (place, bucket) in self.buckets().iter().enumerate() {
            if bucket.used.load(Ordering::Relaxed) == 0 {
                continue;
            }
            for (way, slot) in bucket.slots.iter().enumerate() {
                if slot.flags() & (USED | INVALID) != USED || slot.is_over(now) {
                    continue;
                }
                let Pattern { client, address, protocol, port, .. } = Pattern::of(slot.words());
                kept.push(KeptTemplate {
                    number: (place * WAYS + way) as u32 + 1,
                    client,
                    address,
                    protocol,
                    port,
                    destination: slot.destination.load(Ordering::Relaxed),
                    server_port: (slot.flags() >> 16) as u16,
                    timeout: slot.timeout.load(Ordering::Relaxed),
                    expires: slot.expires.load(Ordering::Relaxed),
                    assured: slot.flags() & ASSURED != 0,
                });
            }
        }
        kept
    }

    /// Makes a template as it was elsewhere, for a server of this number here; no connection follows it yet. The caller
    /// has counted it at its server. Its number here.
    ///
    /// # Errors
    /// There is no room for it.
    pub fn restore(
        &self,
        kept: &KeptTemplate,
        destination: u32,
        scope: u32,
        now: u32,
        over: impl FnMut(u32),
    ) -> Result<u32, Busy> {
        let KeptTemplate { client, address, protocol, port, .. } = *kept;
        let pattern = Pattern { client, address, protocol, port, scope };
        let number = self.insert(&pattern, (destination, kept.server_port), kept.timeout, now, over)?;
        if let Some(slot) = self.slot(number) {
            slot.expires.store(kept.expires, Ordering::Relaxed);
        }
        if kept.assured {
            self.assure(number);
        }
        self.release(number);
        Ok(number)
    }

    /// A connection follows a template from now on.
    pub fn hold(&self, number: u32) {
        if let Some(slot) = self.slot(number) {
            slot.held.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// All templates that are not over.
    pub fn list(&self, now: u32, mut show: impl FnMut(Template)) {
        if self.is_empty() {
            return;
        }
        for bucket in self.buckets() {
            if bucket.used.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let Some(held) = bucket.hold() else { continue };
            for slot in &held.0.slots {
                if slot.flags() & (USED | INVALID) != USED || slot.is_over(now) {
                    continue;
                }
                let timeout = slot.timeout.load(Ordering::Relaxed);
                let left = slot.expires.load(Ordering::Relaxed).wrapping_sub(now) as i32;
                show(Template {
                    pattern: Pattern::of(slot.words()),
                    destination: slot.destination.load(Ordering::Relaxed),
                    port: (slot.flags() >> 16) as u16,
                    // One with connections is looked at again every minute.
                    remaining: if left > 0 { left as u32 } else { (left.rem_euclid(60)) as u32 },
                    timeout,
                    assured: slot.flags() & ASSURED != 0,
                    held: slot.held.load(Ordering::Relaxed),
                });
            }
        }
    }
}

/// A bucket is in use, or has no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy;

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(client: [u8; 4]) -> Pattern {
        Pattern { client: client.into(), address: [10, 9, 9, 9].into(), protocol: 6, port: 80, scope: 1 }
    }

    fn nobody(destination: u32) {
        panic!("nothing is over, not that of {destination}");
    }

    #[test]
    fn a_client_stays_with_its_server_until_the_time_is_over() {
        let templates = Templates::default();
        let mine = pattern([10, 0, 1, 10]);
        assert_eq!(templates.follow(&mine, 100, nobody), Ok(None));
        let number = templates.insert(&mine, (7, 8080), 60, 100, nobody).expect("room");
        templates.release(number);
        assert_eq!(templates.follow(&mine, 159, nobody), Ok(Some((number, 7, 8080))));
        assert_eq!(templates.follow(&pattern([10, 0, 1, 11]), 159, nobody), Ok(None), "another client");
        assert_eq!(templates.follow(&Pattern { scope: 2, ..mine }, 159, nobody), Ok(None), "another scope");
        assert_eq!(templates.follow(&Pattern { protocol: 17, ..mine }, 159, nobody), Ok(None));
        // Its time began anew, and it has a connection.
        assert!(templates.follow(&mine, 1000, nobody).expect("free").is_some());
        templates.release(number);
        templates.release(number);
        let mut over = Vec::new();
        assert_eq!(templates.follow(&mine, 1060, |server| over.push(server)), Ok(None));
        assert_eq!((over, templates.len()), (vec![7], 0));
    }

    #[test]
    fn a_template_of_a_server_that_is_not_to_be_used_makes_way() {
        let templates = Templates::default();
        let mine = pattern([10, 0, 1, 10]);
        let first = templates.insert(&mine, (7, 0), 60, 100, nobody).expect("room");
        let (number, ..) = templates.follow(&mine, 101, nobody).expect("free").expect("there");
        templates.invalidate(number);
        assert_eq!(templates.follow(&mine, 101, nobody), Ok(None));
        let second = templates.insert(&mine, (8, 0), 60, 101, nobody).expect("room");
        assert_ne!(first, second, "the first one still has a connection");
        assert_eq!(templates.follow(&mine, 102, nobody), Ok(Some((second, 8, 0))));
        templates.release(first);
        let mut over = Vec::new();
        for _ in 0..SWEEPS {
            templates.sweep(102, |server| over.push(server));
        }
        assert_eq!((over, templates.len()), (vec![7], 1));
    }

    #[test]
    fn listings_tell_what_is_known() {
        let templates = Templates::default();
        let mine = Pattern { client: "fd00::1".parse().expect("an address"), ..pattern([0; 4]) };
        let number = templates.insert(&mine, (7, 80), 60, 100, nobody).expect("room");
        templates.assure(number);
        let mut all = Vec::new();
        templates.list(110, |template| all.push(template));
        let template = Template {
            pattern: mine,
            destination: 7,
            port: 80,
            remaining: 50,
            timeout: 60,
            assured: true,
            held: 1,
        };
        assert_eq!(all, [template]);
        all.clear();
        templates.list(170, |template| all.push(template));
        assert_eq!(all[0].remaining, 50, "over but for its connection: looked at again in a minute");
    }

    #[test]
    fn room_is_bounded_and_connections_keep_theirs() {
        let templates = Templates::default();
        let (mut gone, mut refused) = (0_u32, 0_u32);
        let total = 40 * BUCKETS as u32 / 4;
        let mut first = Vec::new();
        for n in 0..total {
            let client = std::net::Ipv4Addr::from_bits(n).octets();
            match templates.insert(&pattern(client), (n, 0), 60, 100, |_| gone += 1) {
                // Every hundredth keeps its connection.
                Ok(number) if n % 100 == 0 => first.push((client, number)),
                Ok(number) => templates.release(number),
                Err(Busy) => refused += 1,
            }
        }
        assert!(templates.len() <= BUCKETS * WAYS);
        assert_eq!(templates.len() as u32, total - gone - refused);
        for (client, number) in first {
            let found = templates.follow(&pattern(client), 101, |_| ()).expect("free");
            assert_eq!(found.map(|(found, ..)| found), Some(number));
        }
    }
}
