//! The routes of one family by prefix, which of them are in use, and how a change of that reaches the trie.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::Path;
use super::bits::Bits;
use super::hops::{Hops, HopsWriter};
use super::spec::{Kind, Protocol};
use super::trie::{Builder, Change, Trie, leaf};

/// A prefix: its bits, zero beyond the length, and the length.
pub(super) type Key<K> = (K, u8);

/// One way to a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) metric: u32,
    pub(super) interface: Option<u16>,
    pub(super) kind: Kind,
    pub(super) protocol: Protocol,
    pub(super) onlink: bool,
    pub(super) gateway: Option<IpAddr>,
}

impl Record {
    /// Less is better; equal is used together.
    pub(super) fn rank(&self) -> (u32, Protocol, Kind) {
        (self.metric, self.protocol, self.kind)
    }
}

/// Nearly every prefix has one.
enum Records {
    One(Record),
    Several(Vec<Record>),
}

impl Records {
    fn as_slice(&self) -> &[Record] {
        match self {
            Self::One(record) => std::slice::from_ref(record),
            Self::Several(records) => records,
        }
    }

    fn push(&mut self, record: Record) {
        match self {
            Self::One(first) => *self = Self::Several(vec![*first, record]),
            Self::Several(records) if records.is_empty() => *self = Self::One(record),
            Self::Several(records) => records.push(record),
        }
    }

    fn retain(&mut self, mut keep: impl FnMut(&Record) -> bool) {
        match self {
            Self::One(record) if keep(record) => {}
            Self::One(_) => *self = Self::Several(Vec::new()),
            Self::Several(records) => records.retain(keep),
        }
    }
}

struct Entry {
    records: Records,
    /// What the trie holds for the prefix: a set of next hops, 0 if the prefix is not in it.
    active: u32,
}

/// No room in the trie or among the next hops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full;

/// What a settlement works with besides the table itself.
pub(super) struct Scene<'a, K, F> {
    pub(super) trie: &'a Trie<K>,
    pub(super) hops: &'a Hops,
    pub(super) writer: &'a mut HopsWriter,
    /// Where a record leads now; `None` if nowhere.
    pub(super) path: F,
    /// Whether what is kept for emergencies may be used.
    pub(super) urgent: bool,
}

/// A prefix whose set of next hops changes.
struct Turn<K> {
    key: Key<K>,
    old: u32,
    new: u32,
}

/// The table.
pub(super) struct Table<K> {
    prefixes: BTreeMap<Key<K>, Entry>,
    /// How many prefixes of each length are in the trie.
    lengths: [u32; 129],
    records: usize,
    builder: Builder<K>,
}

impl<K: Bits> Table<K> {
    pub(super) fn new(builder: Builder<K>) -> Self {
        Self { prefixes: BTreeMap::new(), lengths: [0; 129], records: 0, builder }
    }

    /// How many records there are.
    pub(super) fn len(&self) -> usize {
        self.records
    }

    /// Bytes of the trie.
    pub(super) fn bytes(&self) -> usize {
        self.builder.bytes()
    }

    pub(super) fn reclaim(&mut self) {
        self.builder.reclaim();
    }

    /// The records of a prefix.
    pub(super) fn of(&self, key: Key<K>) -> &[Record] {
        self.prefixes.get(&key).map_or(&[], |entry| entry.records.as_slice())
    }

    /// All prefixes in order, and their records.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Key<K>, &[Record])> {
        self.prefixes.iter().map(|(key, entry)| (*key, entry.records.as_slice()))
    }

    /// The prefixes that hold an address, longest first, and their records.
    pub(super) fn holding(&self, address: K) -> impl Iterator<Item = (Key<K>, &[Record])> {
        (0..=K::WIDTH as u8).rev().filter_map(move |len| {
            let key = (address.masked(u32::from(len)), len);
            self.prefixes.get(&key).map(|entry| (key, entry.records.as_slice()))
        })
    }

    /// Notes a record; [`Self::settle`] makes it count.
    pub(super) fn insert(&mut self, key: Key<K>, record: Record) {
        self.records += 1;
        self.prefixes
            .entry(key)
            .or_insert_with(|| Entry { records: Records::Several(Vec::new()), active: 0 })
            .records
            .push(record);
    }

    /// Takes the records of a prefix that `which` names; [`Self::settle`] makes it count.
    pub(super) fn remove(&mut self, key: Key<K>, which: impl Fn(&Record) -> bool) -> Vec<Record> {
        let mut gone = Vec::new();
        if let Some(entry) = self.prefixes.get_mut(&key) {
            entry.records.retain(|record| {
                let goes = which(record);
                if goes {
                    gone.push(*record);
                }
                !goes
            });
        }
        self.records -= gone.len();
        gone
    }

    /// Takes all records that `which` names, in order; [`Self::settle`] makes it count.
    pub(super) fn take(&mut self, which: impl Fn(&Record) -> bool, mut taken: impl FnMut(Key<K>, Record)) {
        let mut gone = 0;
        for (&key, entry) in &mut self.prefixes {
            if !entry.records.as_slice().iter().any(&which) {
                continue;
            }
            entry.records.retain(|record| {
                let goes = which(record);
                if goes {
                    gone += 1;
                    taken(key, *record);
                }
                !goes
            });
        }
        self.records -= gone;
    }

    /// The prefixes with a record that `which` names, in order.
    pub(super) fn keys(&self, which: impl Fn(&Record) -> bool) -> Vec<Key<K>> {
        self.iter().filter(|(_, records)| records.iter().any(&which)).map(|(key, _)| key).collect()
    }

    /// Brings the trie in line with the records of these prefixes (sorted, each once): the best records that lead
    /// somewhere are used. Returns whether anything changed. Prefixes without records are forgotten.
    ///
    /// # Errors
    /// No room: the trie is as it was, the records are the caller's to put right.
    pub(super) fn settle<F>(&mut self, keys: &[Key<K>], scene: &mut Scene<'_, K, F>) -> Result<bool, Full>
    where
        F: Fn(&Record) -> Option<Path>,
    {
        let mut turns = Vec::with_capacity(keys.len());
        let mut paths = Vec::new();
        let mut full = false;
        for &key in keys {
            let Some(entry) = self.prefixes.get_mut(&key) else { continue };
            best(entry.records.as_slice(), &scene.path, &mut paths);
            let Ok(new) = scene.writer.acquire(scene.hops, &paths) else {
                full = true;
                break;
            };
            if new == entry.active {
                scene.writer.release(new);
            } else {
                turns.push(Turn { key, old: entry.active, new });
                entry.active = new;
            }
        }
        for turn in &turns {
            self.count(turn.key, turn.old, turn.new);
        }
        if !full {
            let mut changes = self.changes(&turns, |turn| turn.new);
            full = self.builder.apply(scene.trie, &mut changes, scene.urgent).is_err();
        }
        if full {
            self.undo(&turns, scene);
            return Err(Full);
        }
        for turn in &turns {
            scene.writer.release(turn.old);
        }
        self.forget(keys);
        Ok(!turns.is_empty())
    }

    fn undo<F>(&mut self, turns: &[Turn<K>], scene: &mut Scene<'_, K, F>) {
        for turn in turns {
            if let Some(entry) = self.prefixes.get_mut(&turn.key) {
                entry.active = turn.old;
            }
            self.count(turn.key, turn.new, turn.old);
        }
        let mut changes = self.changes(turns, |turn| turn.old);
        match self.builder.apply(scene.trie, &mut changes, true) {
            Ok(()) => turns.iter().for_each(|turn| scene.writer.release(turn.new)),
            // Some addresses may still lead to the new sets, which therefore are never given to others.
            Err(_) => tracing::error!("the forwarding table is full beyond repair: restart to shrink it"),
        }
    }

    /// Forgets those of the prefixes that have no records left.
    pub(super) fn forget(&mut self, keys: &[Key<K>]) {
        for key in keys {
            if self.prefixes.get(key).is_some_and(|entry| entry.records.as_slice().is_empty()) {
                self.prefixes.remove(key);
            }
        }
    }

    fn count(&mut self, key: Key<K>, old: u32, new: u32) {
        let count = &mut self.lengths[usize::from(key.1)];
        *count = *count - u32::from(old != 0) + u32::from(new != 0);
    }

    fn changes(&self, turns: &[Turn<K>], to: impl Fn(&Turn<K>) -> u32) -> Vec<Change<K>> {
        let going = turns.iter().filter(|turn| to(turn) == 0).count();
        // For many, one walk over everything is cheaper than a search for each.
        let mut walk = (going > self.prefixes.len() / 16).then(|| Walk::new(self));
        turns
            .iter()
            .map(|turn| {
                let ((bits, len), value) = (turn.key, to(turn));
                let leaf = match (value, &mut walk) {
                    (0, Some(walk)) => walk.cover(turn.key),
                    (0, None) => self.cover(turn.key),
                    _ => leaf(len, value),
                };
                Change { bits, len, leaf, remove: value == 0 }
            })
            .collect()
    }

    /// The leaf of the longest prefix in the trie that is shorter than this one and holds it.
    fn cover(&self, (bits, len): Key<K>) -> u32 {
        (0..len)
            .rev()
            .filter(|&shorter| self.lengths[usize::from(shorter)] > 0)
            .find_map(|shorter| {
                let active = self.prefixes.get(&(bits.masked(u32::from(shorter)), shorter))?.active;
                (active != 0).then(|| leaf(shorter, active))
            })
            .unwrap_or(0)
    }
}

/// Answers what [`Table::cover`] does for ascending prefixes, in one walk.
struct Walk<'a, K> {
    rest: std::iter::Peekable<std::collections::btree_map::Iter<'a, Key<K>, Entry>>,
    /// The prefixes in the trie that hold the last one, shortest first, with their leaves.
    nest: Vec<(Key<K>, u32)>,
}

impl<'a, K: Bits> Walk<'a, K> {
    fn new(table: &'a Table<K>) -> Self {
        Self { rest: table.prefixes.iter().peekable(), nest: Vec::new() }
    }

    fn cover(&mut self, key: Key<K>) -> u32 {
        while let Some((at, entry)) = self.rest.next_if(|(at, _)| **at < key) {
            self.leave(*at);
            if entry.active != 0 {
                self.nest.push((*at, leaf(at.1, entry.active)));
            }
        }
        self.leave(key);
        self.nest.last().map_or(0, |(_, leaf)| *leaf)
    }

    fn leave(&mut self, (bits, _): Key<K>) {
        let holds = |(outer, len): Key<K>| bits.masked(u32::from(len)) == outer;
        while self.nest.last().is_some_and(|(key, _)| !holds(*key)) {
            self.nest.pop();
        }
    }
}

/// The paths of the best records that lead somewhere.
fn best(records: &[Record], path: impl Fn(&Record) -> Option<Path>, paths: &mut Vec<Path>) {
    paths.clear();
    let mut rank = None;
    for record in records {
        if rank.is_some_and(|rank| record.rank() > rank) {
            continue;
        }
        let Some(path) = path(record) else { continue };
        if rank != Some(record.rank()) {
            paths.clear();
            rank = Some(record.rank());
        }
        paths.push(path);
    }
    // One set, whatever the order in which its paths were added.
    paths.sort_unstable();
    paths.dedup();
}
