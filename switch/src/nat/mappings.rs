//! Endpoint-independent mappings: which outside address and port a client's port has, whatever it talks to
//! (RFC 4787, REQ-1).
//!
//! No two clients share an outside port here (REQ-3). A mapping lives while the connection that it was made for, or a
//! later one, is alive, and [`IDLE`] seconds longer; a full table gives up its oldest mapping that nobody uses, else
//! its oldest. Only first packets of connections under such a rule come here: one lock for all, taken with a bounded
//! number of tries. All memory is there before the first packet.
#![forbid(unsafe_code)]

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use serde::{Deserialize, Serialize};

use crate::packet::tuple::Tuple;
use crate::rules::hash;

/// Most mappings.
pub(super) const LIMIT: usize = 65_536;
/// Seconds that a mapping is kept after its last connection began (RFC 4787, REQ-5: 5 minutes recommended).
const IDLE: u32 = 300;
/// Tries to take the lock.
const SPINS: usize = 4096;
/// Old mappings that are looked at for one new one.
const PROBES: usize = 8;
const NOBODY: u32 = u32::MAX;

/// One end of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct End {
    protocol: u8,
    address: IpAddr,
    port: u16,
}

#[derive(Clone, Copy)]
struct Mapping {
    inside: End,
    outside: End,
    /// The answer that a connection of this mapping expects: while it is not free, the mapping is in use.
    witness: Tuple,
    used: u32,
    /// Next of the same inside bucket, or of the free list.
    next_inside: u32,
    next_outside: u32,
    older: u32,
    newer: u32,
}

/// A mapping that goes on in another process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptMapping {
    /// The protocol.
    pub protocol: u8,
    /// The client.
    pub inside: (IpAddr, u16),
    /// What it seems to be.
    pub outside: (IpAddr, u16),
    /// The answer that a connection of it expects.
    pub witness: Tuple,
    /// The second when it was last used.
    pub used: u32,
}

/// The table and its lock.
pub(super) struct Mappings(Mutex<Table>);

#[derive(Default)]
pub(super) struct Table {
    mappings: Vec<Mapping>,
    inside: Box<[u32]>,
    outside: Box<[u32]>,
    limit: usize,
    free: u32,
    oldest: u32,
    newest: u32,
    len: usize,
    secret: u64,
}

impl Mappings {
    /// An empty table that takes no memory before [`prepare`](Self::prepare).
    pub(super) fn new(limit: usize) -> Self {
        let secret = RandomState::new().hash_one(limit);
        let table = Table { limit, secret, free: NOBODY, oldest: NOBODY, newest: NOBODY, ..Table::default() };
        Self(Mutex::new(table))
    }

    /// Makes room, once; for the control thread.
    pub(super) fn prepare(&self) {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if table.inside.is_empty() {
            let buckets = table.limit.next_power_of_two().max(2);
            table.inside = vec![NOBODY; buckets].into();
            table.outside = vec![NOBODY; buckets].into();
            let limit = table.limit;
            table.mappings.reserve_exact(limit);
        }
    }

    /// All mappings, the longest unused first; for the control thread.
    pub(super) fn export(&self) -> Vec<KeptMapping> {
        let table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut kept = Vec::with_capacity(table.len);
        let mut at = table.oldest;
        while at != NOBODY {
            let mapping = &table.mappings[at as usize];
            kept.push(KeptMapping {
                protocol: mapping.inside.protocol,
                inside: (mapping.inside.address, mapping.inside.port),
                outside: (mapping.outside.address, mapping.outside.port),
                witness: mapping.witness,
                used: mapping.used,
            });
            at = mapping.newer;
        }
        kept
    }

    /// Adds a mapping of another process, in the place of what is known of either end; for the control thread. False
    /// if there is no room.
    pub(super) fn restore(&self, kept: &KeptMapping) -> bool {
        self.prepare();
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let end = |(address, port)| End { protocol: kept.protocol, address, port };
        let (inside, outside) = (end(kept.inside), end(kept.outside));
        let same_inside = table
            .chain(&table.inside, &inside, |mapping| mapping.next_inside)
            .find(|&index| table.mappings[index as usize].inside == inside);
        if let Some(index) = same_inside {
            table.remove(index);
        }
        let same_outside = table
            .chain(&table.outside, &outside, |mapping| mapping.next_outside)
            .find(|&index| table.mappings[index as usize].outside == outside);
        if let Some(index) = same_outside {
            table.remove(index);
        }
        let (older, newer) = (NOBODY, NOBODY);
        let (witness, used) = (kept.witness, kept.used);
        table.enter(Mapping {
            inside,
            outside,
            witness,
            used,
            next_inside: NOBODY,
            next_outside: NOBODY,
            older,
            newer,
        })
    }

    /// Forgets the mapping of a client's port.
    pub(super) fn forget(&self, protocol: u8, inside: (IpAddr, u16)) {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let end = End { protocol, address: inside.0, port: inside.1 };
        let found = table
            .chain(&table.inside, &end, |mapping| mapping.next_inside)
            .find(|&index| table.mappings[index as usize].inside == end);
        if let Some(index) = found {
            table.remove(index);
        }
    }

    /// Mappings now; for the control thread.
    pub(super) fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len
    }

    /// The table, unless somebody else keeps it for too long.
    pub(super) fn lock(&self) -> Option<MutexGuard<'_, Table>> {
        for _ in 0..SPINS {
            match self.0.try_lock() {
                Ok(table) => return Some(table),
                Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) => std::hint::spin_loop(),
            }
        }
        None
    }
}

impl Table {
    fn bucket(&self, end: &End) -> usize {
        let rest = u64::from(end.port) | u64::from(end.protocol) << 16;
        let hash =
            hash::mix(hash::mix(self.secret, hash::stable(end.address)), rest ^ self.secret.rotate_left(17));
        hash as usize & self.inside.len().wrapping_sub(1)
    }

    fn chain(&self, heads: &[u32], end: &End, next: fn(&Mapping) -> u32) -> impl Iterator<Item = u32> {
        let head = heads.get(self.bucket(end)).copied().unwrap_or(NOBODY);
        std::iter::successors((head != NOBODY).then_some(head), move |&index| {
            let next = next(&self.mappings[index as usize]);
            (next != NOBODY).then_some(next)
        })
    }

    /// The mapping of a packet's source: its place, address and port.
    pub(super) fn find(&self, tuple: &Tuple) -> Option<(u32, (IpAddr, u16))> {
        let end = End { protocol: tuple.protocol, address: tuple.source, port: tuple.source_port };
        let index = self
            .chain(&self.inside, &end, |mapping| mapping.next_inside)
            .find(|&index| self.mappings[index as usize].inside == end)?;
        let outside = self.mappings[index as usize].outside;
        Some((index, (outside.address, outside.port)))
    }

    /// Whether an outside port is somebody's.
    pub(super) fn is_taken(&self, protocol: u8, address: IpAddr, port: u16) -> bool {
        let end = End { protocol, address, port };
        self.chain(&self.outside, &end, |mapping| mapping.next_outside)
            .any(|index| self.mappings[index as usize].outside == end)
    }

    /// Who is behind an outside port now: address and port. A mapping that nobody uses any more is nobody's.
    pub(super) fn behind(
        &self,
        protocol: u8,
        address: IpAddr,
        port: u16,
        now: u32,
        is_free: &mut impl FnMut(&Tuple) -> bool,
    ) -> Option<(IpAddr, u16)> {
        let end = End { protocol, address, port };
        let mut behind = self.chain(&self.outside, &end, |mapping| mapping.next_outside);
        let mapping =
            &self.mappings[behind.find(|&index| self.mappings[index as usize].outside == end)? as usize];
        // Another worker's clock may be a second ahead.
        let lives = now.wrapping_sub(mapping.used) as i32 <= IDLE as i32 || !is_free(&mapping.witness);
        lives.then_some((mapping.inside.address, mapping.inside.port))
    }

    /// A mapping got another connection, which expects `answer`.
    pub(super) fn used(
        &mut self,
        index: u32,
        answer: Tuple,
        now: u32,
        is_free: &mut impl FnMut(&Tuple) -> bool,
    ) {
        self.unlink_age(index);
        self.link_newest(index);
        let mapping = &mut self.mappings[index as usize];
        mapping.used = now;
        if is_free(&mapping.witness) {
            mapping.witness = answer;
        }
    }

    /// Adds a mapping of a packet's source.
    pub(super) fn insert(
        &mut self,
        tuple: &Tuple,
        address: IpAddr,
        port: u16,
        now: u32,
        is_free: &mut impl FnMut(&Tuple) -> bool,
    ) {
        self.expire(now, is_free);
        let mapping = Mapping {
            inside: End { protocol: tuple.protocol, address: tuple.source, port: tuple.source_port },
            outside: End { protocol: tuple.protocol, address, port },
            witness: super::ports::reply(tuple, address, port),
            used: now,
            next_inside: NOBODY,
            next_outside: NOBODY,
            older: NOBODY,
            newer: NOBODY,
        };
        self.enter(mapping);
    }

    /// Takes a mapping in as the newest; false if there is no room.
    fn enter(&mut self, mapping: Mapping) -> bool {
        let index = if self.free != NOBODY {
            let index = self.free;
            self.free = self.mappings[index as usize].next_inside;
            self.mappings[index as usize] = mapping;
            index
        } else if self.mappings.len() < self.limit {
            // Within what `prepare` reserved.
            self.mappings.push(mapping);
            self.mappings.len() as u32 - 1
        } else {
            return false;
        };
        let (inside, outside) = (self.bucket(&mapping.inside), self.bucket(&mapping.outside));
        let fits = inside < self.inside.len() && outside < self.outside.len();
        if fits {
            let mapping = &mut self.mappings[index as usize];
            mapping.next_inside = std::mem::replace(&mut self.inside[inside], index);
            mapping.next_outside = std::mem::replace(&mut self.outside[outside], index);
            self.len += 1;
            self.link_newest(index);
        }
        fits
    }

    /// Forgets a mapping.
    pub(super) fn remove(&mut self, index: u32) {
        let mapping = self.mappings[index as usize];
        let (inside, outside) = (self.bucket(&mapping.inside), self.bucket(&mapping.outside));
        unchain(&mut self.inside[inside], index, &mut self.mappings, |mapping| &mut mapping.next_inside);
        unchain(&mut self.outside[outside], index, &mut self.mappings, |mapping| &mut mapping.next_outside);
        self.unlink_age(index);
        self.mappings[index as usize].next_inside = self.free;
        self.free = index;
        self.len -= 1;
    }

    /// Looks at a few of the oldest mappings; makes room for one if the table is full.
    fn expire(&mut self, now: u32, is_free: &mut impl FnMut(&Tuple) -> bool) {
        for _ in 0..PROBES {
            let index = self.oldest;
            let full = self.len >= self.limit;
            if index == NOBODY {
                return;
            }
            let mapping = self.mappings[index as usize];
            if !full && now.wrapping_sub(mapping.used) <= IDLE {
                return;
            }
            if is_free(&mapping.witness) {
                self.remove(index);
            } else {
                self.unlink_age(index);
                self.link_newest(index);
                self.mappings[index as usize].used = now;
            }
        }
        if self.len >= self.limit && self.oldest != NOBODY {
            self.remove(self.oldest);
        }
    }

    fn link_newest(&mut self, index: u32) {
        let before = std::mem::replace(&mut self.newest, index);
        let mapping = &mut self.mappings[index as usize];
        (mapping.older, mapping.newer) = (before, NOBODY);
        match before {
            NOBODY => self.oldest = index,
            before => self.mappings[before as usize].newer = index,
        }
    }

    fn unlink_age(&mut self, index: u32) {
        let Mapping { older, newer, .. } = self.mappings[index as usize];
        match older {
            NOBODY => self.oldest = newer,
            older => self.mappings[older as usize].newer = newer,
        }
        match newer {
            NOBODY => self.newest = older,
            newer => self.mappings[newer as usize].older = older,
        }
    }
}

/// Takes a mapping out of the chain that begins at `head`.
fn unchain(head: &mut u32, index: u32, mappings: &mut [Mapping], next: fn(&mut Mapping) -> &mut u32) {
    let after = *next(&mut mappings[index as usize]);
    if *head == index {
        *head = after;
        return;
    }
    let mut at = *head;
    while at != NOBODY {
        let link = next(&mut mappings[at as usize]);
        if *link == index {
            *link = after;
            return;
        }
        at = *link;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn tuple(port: u16) -> Tuple {
        Tuple {
            source: [10, 0, 0, 1].into(),
            destination: [192, 0, 2, 1].into(),
            protocol: 17,
            source_port: port,
            destination_port: 53,
        }
    }

    fn outside() -> IpAddr {
        [198, 51, 100, 1].into()
    }

    fn table(limit: usize) -> Mappings {
        let mappings = Mappings::new(limit);
        mappings.prepare();
        mappings
    }

    #[test]
    fn idle_mappings_go_and_used_ones_stay() {
        let mappings = table(100);
        let mut table = mappings.lock().expect("nobody else");
        let live = crate::nat::ports::reply(&tuple(1), outside(), 1001);
        for port in 1..=3 {
            table.insert(&tuple(port), outside(), 1000 + port, 10, &mut |_| true);
        }
        table.insert(&tuple(4), outside(), 1004, 10 + IDLE + 1, &mut |t| *t != live);
        assert_eq!(table.len, 2);
        assert!(table.find(&tuple(1)).is_some() && table.find(&tuple(4)).is_some());
        assert!(table.find(&tuple(2)).is_none() && !table.is_taken(17, outside(), 1002));
        let behind = |port, now, free| table.behind(17, outside(), port, now, &mut |_| free);
        let client = Some((tuple(4).source, 4));
        assert_eq!((behind(1004, 300, true), behind(1004, 10 + IDLE + 1 + IDLE, true)), (client, client));
        assert_eq!(behind(1004, 1000, true), None, "not yet taken away, and over");
        assert_eq!((behind(1004, 1000, false), behind(1005, 300, true)), (client, None));
    }

    #[test]
    fn a_full_table_takes_a_new_mapping_for_its_oldest() {
        let mappings = table(10);
        let mut table = mappings.lock().expect("nobody else");
        for port in 1..=50 {
            table.insert(&tuple(port), outside(), port, 10, &mut |_| false);
            assert!(table.find(&tuple(port)).is_some());
            assert_eq!(table.len, usize::from(port).min(10));
        }
        assert!(table.find(&tuple(40)).is_none() || table.find(&tuple(41)).is_none());
    }

    #[test]
    fn a_table_that_nobody_prepared_takes_nothing_and_breaks_nothing() {
        let mappings = Mappings::new(0);
        mappings.prepare();
        let mut table = mappings.lock().expect("nobody else");
        table.insert(&tuple(1), outside(), 1, 1, &mut |_| true);
        assert_eq!((table.len, table.find(&tuple(1))), (0, None));
    }

    proptest! {
        #[test]
        fn as_a_map_would_say(steps in proptest::collection::vec((0..4_u8, 0..40_u16), 1..200)) {
            let mappings = table(1000);
            let mut table = mappings.lock().expect("nobody else");
            let mut model: HashMap<u16, u16> = HashMap::new();
            for (step, port) in steps {
                let found = table.find(&tuple(port));
                prop_assert_eq!(found.map(|(_, (_, port))| port), model.get(&port).copied());
                match (step, found) {
                    (0, Some((index, _))) => {
                        table.remove(index);
                        model.remove(&port);
                    }
                    (1, Some((index, _))) => table.used(index, tuple(port).reversed(), 1, &mut |_| true),
                    (_, None) => {
                        table.insert(&tuple(port), outside(), port + 7, 1, &mut |_| false);
                        model.insert(port, port + 7);
                    }
                    _ => {}
                }
                prop_assert_eq!(table.len, model.len());
                for outer in 0..50 {
                    let taken = model.values().any(|&port| port == outer);
                    prop_assert_eq!(table.is_taken(17, outside(), outer), taken);
                }
            }
        }
    }
}
