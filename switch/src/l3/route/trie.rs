//! The forwarding table of one family: longest prefix match in a trie that workers read while one thread changes it.
//!
//! The first 16 bits of an address choose a slot of the root, each further node looks at 8 more. A slot holds a leaf
//! (what the longest prefix known there leads to, pushed down to every slot that it covers) or leads to a node; a
//! chain of nodes without a choice is one node that compares the skipped bits. So a lookup reads as many nodes as
//! there are decisions, not as the address has bytes. A node is plain (256 slots) or packed (a bit map of where the
//! slots change, and one slot for each run): few routes in wide space cost two cache lines, not a kilobyte each.
//!
//! Everything lies in one array of atomic words, reserved once and committed by use. A changed node is written beside
//! the old one and linked by one store; the old one's room is taken again only after [`Builder::reclaim`], which the
//! caller invokes when no reader can be on its way through it. Single slots of plain nodes change in place.
#![forbid(unsafe_code)]

use std::marker::PhantomData;
use std::sync::atomic::{AtomicU32, Ordering};

use zerocopy::FromZeros;

use super::bits::Bits;

/// A slot that leads to a node: bit 31; the rest is the node's place. Otherwise it is a leaf, see [`leaf`].
const NODE: u32 = 1 << 31;
/// The node is plain and skips nothing.
const DIRECT: u32 = 1 << 30;
const PLACE: u32 = DIRECT - 1;
/// Bits of a leaf's value.
pub(super) const VALUE_BITS: u32 = 23;
const VALUE: u32 = (1 << VALUE_BITS) - 1;

const ROOT: usize = 1 << 16;
/// Words of a cache line, and of a node's head; nodes are made of whole lines.
const LINE: usize = 16;
/// Words of a node's head: what it is, default, path (4), runs before each word of the map (8 bytes), map (8).
const DEFAULT: usize = 1;
const PATH: usize = 2;
const COUNTS: usize = 6;
const MAP: usize = 8;
const PLAIN: u32 = 1 << 8;
const LINES_SHIFT: u32 = 16;
const PLAIN_LINES: usize = 1 + 256 / LINE;
/// A node of more runs is plain: its slots then are one load away. So a packed node is two cache lines.
const PACKED_RUNS: usize = LINE;
/// Words that may be spent before nodes of few runs are packed (16 MiB).
const SPACIOUS: usize = 1 << 22;
/// Words that are reserved, unless the system refuses: address space, not memory (1 GiB).
const RESERVED: usize = 1 << 28;

/// A leaf: what a prefix of `len` bits leads to. Value zero means nothing.
pub(super) fn leaf(len: u8, value: u32) -> u32 {
    if value == 0 { 0 } else { (u32::from(len) + 1) << VALUE_BITS | value & VALUE }
}

#[inline(always)]
fn is_node(slot: u32) -> bool {
    slot & NODE != 0
}

/// One prefix that is to appear, to lead elsewhere, or to go. A batch has at most one of each prefix.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change<K> {
    /// The prefix; bits beyond `len` are zero.
    pub(super) bits: K,
    /// Its length.
    pub(super) len: u8,
    /// The leaf that it leads to; of a prefix that goes, the leaf of the longest one left that covers it, or zero.
    pub(super) leaf: u32,
    /// Whether it goes.
    pub(super) remove: bool,
}

impl<K> Change<K> {
    /// What becomes of a leaf somewhere in the prefix.
    #[inline]
    fn apply(&self, old: u32) -> u32 {
        let (old_len, own_len) = (old >> VALUE_BITS, u32::from(self.len) + 1);
        let replaced = if self.remove { old_len == own_len } else { old_len <= own_len };
        if replaced { self.leaf } else { old }
    }
}

fn fold<K>(covers: &[Change<K>], leaf: u32) -> u32 {
    covers.iter().fold(leaf, |leaf, change| change.apply(leaf))
}

/// The table as readers see it.
pub struct Trie<K> {
    words: Box<[AtomicU32]>,
    /// Where the root begins, so that nodes lie in whole cache lines.
    root: usize,
    key: PhantomData<K>,
}

/// The head of a node.
struct Head<K> {
    at: usize,
    depth: u32,
    plain: bool,
    lines: usize,
    default: u32,
    path: K,
}

impl<K: Bits> Trie<K> {
    /// An empty table that may grow to `words` words of memory, or to what the system is willing to promise.
    fn new(words: usize) -> Self {
        let mut words = words.max(ROOT * 2);
        let words = loop {
            // Word by word on purpose: an allocation of larger alignment would be cleared, that is committed, at once.
            match <[AtomicU32]>::new_box_zeroed_with_elems(words) {
                Ok(memory) => break memory,
                Err(_) if words <= ROOT * 2 => panic!("no memory for an empty forwarding table"),
                Err(_) => words /= 2,
            }
        };
        let misplaced = (words.as_ptr() as usize / size_of::<AtomicU32>()) % LINE;
        Self { words, root: (LINE - misplaced) % LINE, key: PhantomData }
    }

    #[inline(always)]
    fn word(&self, at: usize) -> u32 {
        self.words[at].load(Ordering::Relaxed)
    }

    #[inline(always)]
    fn slot(&self, at: usize) -> u32 {
        // A node is written before the slot that leads to it.
        self.words[at].load(Ordering::Acquire)
    }

    /// What the longest prefix that holds `key` leads to; 0 if there is none.
    #[inline]
    pub fn lookup(&self, key: K) -> u32 {
        self.descend(self.slot(self.root + key.first16()), key)
    }

    /// As [`Self::lookup`] for several addresses at once: the waits for memory of different addresses overlap.
    /// `found` is at least as long as `keys`.
    #[inline]
    pub fn lookup_many(&self, keys: &[K], found: &mut [u32]) {
        for (key, found) in keys.iter().zip(found.iter_mut()) {
            *found = self.slot(self.root + key.first16());
        }
        // One level for all before the next for any: the loads of one pass do not wait for each other.
        for (key, found) in keys.iter().zip(found.iter_mut()) {
            if *found & (NODE | DIRECT) == NODE | DIRECT {
                let next = self.slot((*found & PLACE) as usize + LINE + key.byte(16));
                // The depth of the next node is lost unless it is the end; few paths are longer.
                if !is_node(next) {
                    *found = next;
                }
            }
        }
        for (key, found) in keys.iter().zip(found.iter_mut()) {
            *found = if is_node(*found) { self.descend(*found, *key) } else { *found & VALUE };
        }
    }

    #[inline(always)]
    fn descend(&self, mut slot: u32, key: K) -> u32 {
        let mut depth = 16;
        while is_node(slot) {
            let at = (slot & PLACE) as usize;
            if slot & DIRECT != 0 {
                slot = self.slot(at + LINE + key.byte(depth));
                depth += 8;
                continue;
            }
            let kind = self.word(at);
            let node_depth = kind & 0xff;
            let path = K::from_words(|i| self.word(at + PATH + i));
            if !path.shares(key, node_depth) {
                slot = self.word(at + DEFAULT);
                break;
            }
            let byte = key.byte(node_depth);
            let place = if kind & PLAIN != 0 { byte } else { self.rank(at, byte) };
            slot = self.slot(at + LINE + place);
            depth = node_depth + 8;
        }
        slot & VALUE
    }

    /// Which of a packed node's runs a byte is in.
    #[inline(always)]
    fn rank(&self, at: usize, byte: usize) -> usize {
        let word = byte >> 5;
        let before = self.word(at + COUNTS + (word >> 2)) >> ((word & 3) * 8) & 0xff;
        let up_to = self.word(at + MAP + word) & (u32::MAX >> (31 - (byte & 31)));
        (before + up_to.count_ones() - 1) as usize
    }

    fn head(&self, slot: u32) -> Head<K> {
        let at = (slot & PLACE) as usize;
        let kind = self.word(at);
        Head {
            at,
            depth: kind & 0xff,
            plain: kind & PLAIN != 0,
            lines: (kind >> LINES_SHIFT) as usize,
            default: self.word(at + DEFAULT),
            path: K::from_words(|i| self.word(at + PATH + i)),
        }
    }

    fn slots(&self, head: &Head<K>) -> [u32; 256] {
        let first = head.at + LINE;
        std::array::from_fn(|byte| {
            self.slot(first + if head.plain { byte } else { self.rank(head.at, byte) })
        })
    }
}

impl<K: Bits> Head<K> {
    /// The slot that leads to this node from a node whose slots begin at `depth`.
    fn link(&self, depth: u32) -> u32 {
        let direct = self.plain && self.depth == depth;
        NODE | if direct { DIRECT } else { 0 } | self.at as u32
    }
}

/// The table is full; what could be changed was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full;

/// The one who changes a [`Trie`]: knows which words are free.
pub(super) struct Builder<K> {
    /// Free blocks by their lines.
    free: Vec<Vec<u32>>,
    /// Blocks that a reader may still be looking at.
    retired: Vec<(u32, u8)>,
    next: usize,
    limit: usize,
    spacious: usize,
    failed: bool,
    key: PhantomData<K>,
}

impl<K: Bits> Builder<K> {
    /// An empty table and its builder.
    pub(super) fn new() -> (Trie<K>, Self) {
        Self::with_room(RESERVED, SPACIOUS)
    }

    /// As [`Self::new`] for `words` words in all, of which `spacious` are spent freely.
    pub(super) fn with_room(words: usize, spacious: usize) -> (Trie<K>, Self) {
        let trie = Trie::new(words);
        let builder = Self {
            free: vec![Vec::new(); PLAIN_LINES + 1],
            retired: Vec::new(),
            next: trie.root + ROOT,
            limit: 0,
            spacious,
            failed: false,
            key: PhantomData,
        };
        (trie, builder)
    }

    /// Bytes in use by nodes, free and retired ones included, and by the root.
    pub(super) fn bytes(&self) -> usize {
        self.next * size_of::<u32>()
    }

    /// Makes room of what was replaced before. No reader may be left that began its lookup before that.
    pub(super) fn reclaim(&mut self) {
        for (at, lines) in self.retired.drain(..) {
            self.free[usize::from(lines)].push(at);
        }
    }

    /// Makes all changes; readers see each of them at once or a moment later, and never anything else than before or
    /// after. With `urgent` the last eighth of the room may be used, which is kept for removing and undoing.
    ///
    /// # Errors
    /// No room: some changes may have been made for some addresses. The inverse changes restore all of them.
    pub(super) fn apply(
        &mut self,
        trie: &Trie<K>,
        changes: &mut [Change<K>],
        urgent: bool,
    ) -> Result<(), Full> {
        changes.sort_unstable_by_key(|change| (change.bits, change.len));
        self.limit = if urgent { trie.words.len() } else { trie.words.len() / 8 * 7 };
        self.failed = false;
        let before = self.retired.len();
        sweep(changes, 0, 16, &mut Vec::new(), |at, inside, covers| {
            let slot = &trie.words[trie.root + at];
            let old = slot.load(Ordering::Relaxed);
            let new = self.update(trie, old, 16, inside, covers);
            if new != old {
                slot.store(new, Ordering::Release);
            }
        });
        if self.failed {
            // Something unchanged may still lead to what was retired: it is lost.
            self.retired.truncate(before);
            return Err(Full);
        }
        Ok(())
    }

    /// The new content of a slot at `depth`: `inside` are the changes of prefixes within it, sorted, `covers` those of
    /// prefixes that hold all of it, shortest first.
    fn update(
        &mut self,
        trie: &Trie<K>,
        slot: u32,
        depth: u32,
        inside: &[Change<K>],
        covers: &mut Vec<Change<K>>,
    ) -> u32 {
        let (Some(first), Some(last)) = (inside.first(), inside.last()) else {
            return match (covers.is_empty(), is_node(slot)) {
                (true, _) => slot,
                (false, false) => fold(covers, slot),
                (false, true) => {
                    let head = trie.head(slot);
                    let (node_depth, path) = (head.depth, head.path);
                    self.rebuild(trie, slot, Some(head), (node_depth, path), depth, inside, covers)
                }
            };
        };
        let head = is_node(slot).then(|| trie.head(slot));
        // The node to change is where the changes and the present node part, or where the shortest of them ends.
        let shortest = inside.iter().map(|change| u32::from(change.len)).min().unwrap_or(K::WIDTH);
        let mut shared = first.bits.common(last.bits).min(shortest - 1);
        let mut node_depth = K::WIDTH;
        if let Some(head) = &head {
            shared = shared.min(head.path.common(first.bits)).min(head.path.common(last.bits));
            node_depth = head.depth;
        }
        node_depth = node_depth.min(shared & !7);
        let path = first.bits.masked(node_depth);
        self.rebuild(trie, slot, head, (node_depth, path), depth, inside, covers)
    }

    /// Changes the node at `node_depth` on `path`, which may be the present one or come in front of it.
    #[allow(clippy::too_many_arguments)] // It is the second half of `update`.
    fn rebuild(
        &mut self,
        trie: &Trie<K>,
        slot: u32,
        head: Option<Head<K>>,
        (node_depth, path): (u32, K),
        depth: u32,
        inside: &[Change<K>],
        covers: &mut Vec<Change<K>>,
    ) -> u32 {
        let present = head.as_ref().is_some_and(|head| head.depth == node_depth);
        let old_default = head.as_ref().map_or(slot, |head| head.default);
        let old = match &head {
            Some(head) if present => trie.slots(head),
            Some(head) => {
                let mut slots = [old_default; 256];
                slots[head.path.byte(node_depth)] = head.link(node_depth + 8);
                slots
            }
            None => [slot; 256],
        };
        let default = fold(covers, old_default);
        let mut new = old;
        sweep(inside, node_depth, 8, covers, |at, inside, covers| {
            new[at] = self.update(trie, old[at], node_depth + 8, inside, covers);
        });
        let present = head.filter(|_| present);
        if let Some(shorter) = collapsed(trie, &new, node_depth, default, depth) {
            self.retire(present);
            return shorter;
        }
        if let Some(head) = &present {
            if new == old && default == old_default {
                return head.link(depth);
            }
            if head.plain {
                for at in (0..256).filter(|&at| new[at] != old[at]) {
                    trie.words[head.at + LINE + at].store(new[at], Ordering::Release);
                }
                trie.words[head.at + DEFAULT].store(default, Ordering::Release);
                return head.link(depth);
            }
        }
        match self.write(trie, &new, node_depth, path, default) {
            Some(head) => {
                self.retire(present);
                head.link(depth)
            }
            None => slot,
        }
    }

    /// Writes a node, plain or packed; `None` if there is no room.
    fn write(
        &mut self,
        trie: &Trie<K>,
        slots: &[u32; 256],
        depth: u32,
        path: K,
        default: u32,
    ) -> Option<Head<K>> {
        let runs = 1 + slots.windows(2).filter(|pair| pair[0] != pair[1]).count();
        // IPv4's first nodes are at most as many as the root has slots, and every packet reads one.
        let first = K::WIDTH == 32 && depth == 16;
        let plain = first || runs > PACKED_RUNS || self.next - trie.root - ROOT < self.spacious;
        let lines = if plain { PLAIN_LINES } else { 1 + runs.div_ceil(LINE) };
        let at = self.take(trie, lines)?;
        let put = |offset: usize, value: u32| trie.words[at + offset].store(value, Ordering::Relaxed);
        put(0, depth | if plain { PLAIN } else { 0 } | (lines as u32) << LINES_SHIFT);
        put(DEFAULT, default);
        for (i, word) in path.words().into_iter().enumerate() {
            put(PATH + i, word);
        }
        if plain {
            for (byte, &slot) in slots.iter().enumerate() {
                put(LINE + byte, slot);
            }
        } else {
            let (mut run, mut counts, mut map) = (0, [0u8; 8], [0u32; 8]);
            for (byte, &slot) in slots.iter().enumerate() {
                if byte & 31 == 0 {
                    counts[byte >> 5] = run as u8;
                }
                if byte == 0 || slot != slots[byte - 1] {
                    map[byte >> 5] |= 1 << (byte & 31);
                    put(LINE + run, slot);
                    run += 1;
                }
            }
            put(COUNTS, u32::from_le_bytes([counts[0], counts[1], counts[2], counts[3]]));
            put(COUNTS + 1, u32::from_le_bytes([counts[4], counts[5], counts[6], counts[7]]));
            for (i, word) in map.into_iter().enumerate() {
                put(MAP + i, word);
            }
        }
        Some(Head { at, depth, plain, lines, default, path })
    }

    fn take(&mut self, trie: &Trie<K>, lines: usize) -> Option<usize> {
        if let Some(at) = self.free[lines].pop() {
            return Some(at as usize);
        }
        if self.next + lines * LINE <= self.limit.min(trie.words.len()) {
            let at = self.next;
            self.next += lines * LINE;
            return Some(at);
        }
        // A piece of a larger block rather than none at all.
        let larger = (lines + 1..self.free.len()).find(|&size| !self.free[size].is_empty());
        let Some((size, at)) = larger.and_then(|size| Some((size, self.free[size].pop()?))) else {
            self.failed = true;
            return None;
        };
        self.free[size - lines].push(at + (lines * LINE) as u32);
        Some(at as usize)
    }

    fn retire(&mut self, head: Option<Head<K>>) {
        if let Some(head) = head {
            self.retired.push((head.at as u32, head.lines as u8));
        }
    }
}

/// What stands for a node at `node_depth` that decides nothing: a leaf, or the only node below it.
fn collapsed<K: Bits>(
    trie: &Trie<K>,
    slots: &[u32; 256],
    node_depth: u32,
    default: u32,
    depth: u32,
) -> Option<u32> {
    let mut child = None;
    let mut common = (node_depth > depth).then_some(default);
    for &slot in slots {
        if is_node(slot) {
            if child.replace(slot).is_some() {
                return None;
            }
        } else if *common.get_or_insert(slot) != slot {
            return None;
        }
    }
    let (Some(child), Some(common)) = (child, common) else { return common };
    let head = trie.head(child);
    if head.depth != node_depth + 8 {
        return (head.default == common).then(|| head.link(depth));
    }
    // So far it skipped nothing: nobody looks at its default yet.
    trie.words[head.at + DEFAULT].store(common, Ordering::Release);
    Some(head.link(depth))
}

/// Walks the slots, `width` bits of them at `depth`, that the sorted changes `inside` or the `covers` of the whole node
/// concern, and gives `visit` each with the changes within it and those that cover it.
fn sweep<K: Bits>(
    inside: &[Change<K>],
    depth: u32,
    width: u32,
    covers: &mut Vec<Change<K>>,
    mut visit: impl FnMut(usize, &[Change<K>], &mut Vec<Change<K>>),
) {
    let outer = covers.len();
    let place =
        |change: &Change<K>| if width == 16 { change.bits.first16() } else { change.bits.byte(depth) };
    let span =
        |change: &Change<K>| 1usize << (depth + width).saturating_sub(u32::from(change.len)).min(width);
    let covering = |change: &Change<K>| u32::from(change.len) <= depth + width;
    let (mut next, mut at) = (0, 0);
    while at < 1 << width {
        // They are nested, so those that end first are on top.
        while covers.len() > outer && covers.last().is_some_and(|cover| place(cover) + span(cover) <= at) {
            covers.pop();
        }
        if covers.is_empty() {
            let Some(change) = inside.get(next) else { break };
            at = place(change);
        }
        while let Some(change) = inside.get(next).filter(|change| covering(change) && place(change) == at) {
            covers.push(*change);
            next += 1;
        }
        let start = next;
        while inside.get(next).is_some_and(|change| place(change) == at) {
            next += 1;
        }
        visit(at, &inside[start..next], covers);
        at += 1;
    }
    covers.truncate(outer);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::AtomicBool;

    use proptest::prelude::*;

    use super::*;

    /// The plain model: every prefix and its value.
    #[derive(Clone)]
    struct Model<K>(BTreeMap<(K, u8), u32>);

    impl<K: Bits> Model<K> {
        fn cover(&self, key: K, below: u32) -> (u8, u32) {
            (0..below)
                .rev()
                .find_map(|len| Some((len as u8, *self.0.get(&(key.masked(len), len as u8))?)))
                .unwrap_or((0, 0))
        }

        fn lookup(&self, key: K) -> u32 {
            self.cover(key, K::WIDTH + 1).1
        }

        /// The changes that make one model of another.
        fn changes(&self, to: &Self) -> Vec<Change<K>> {
            let mut changes = Vec::new();
            for (&(bits, len), &value) in &to.0 {
                if self.0.get(&(bits, len)) != Some(&value) {
                    changes.push(Change { bits, len, leaf: leaf(len, value), remove: false });
                }
            }
            for &(bits, len) in self.0.keys().filter(|key| !to.0.contains_key(key)) {
                let (cover_len, cover) = to.cover(bits, u32::from(len));
                changes.push(Change { bits, len, leaf: leaf(cover_len, cover), remove: true });
            }
            changes
        }
    }

    /// Addresses worth asking for: the ends of a prefix and their neighbours.
    fn edges(bits: u128, len: u8, width: u32) -> Vec<u128> {
        let mask = if width == 128 { u128::MAX } else { (1 << width) - 1 };
        let host = if u32::from(len) == width { 0 } else { mask >> len };
        let last = bits | host;
        vec![bits, last, bits.wrapping_sub(1) & mask, last.wrapping_add(1) & mask, bits | host >> 1]
    }

    /// A prefix near others: few different bytes, any length.
    fn prefix(width: u32) -> impl Strategy<Value = (u128, u8)> {
        let byte = prop_oneof![Just(0u8), Just(1), Just(255), Just(128), any::<u8>()];
        (proptest::collection::vec(byte, 16), 0..=width as u8).prop_map(move |(bytes, len)| {
            let all = u128::from_be_bytes(bytes.try_into().unwrap());
            let bits = if width == 128 { all } else { all >> (128 - width) };
            let masked = if len == 0 { 0 } else { bits & (u128::MAX << (width - u32::from(len))) };
            (masked, len)
        })
    }

    /// Batches of prefixes that appear (value) or go (zero).
    fn history(width: u32) -> impl Strategy<Value = Vec<Vec<((u128, u8), u32)>>> {
        let change = (prefix(width), prop_oneof![2 => 1..6u32, 1 => Just(0)]);
        proptest::collection::vec(proptest::collection::vec(change, 1..24), 1..12)
    }

    fn check<K: Bits>(history: Vec<Vec<((u128, u8), u32)>>, spacious: usize, to: impl Fn(u128) -> K) {
        let (trie, mut builder) = Builder::<K>::with_room(1 << 24, spacious);
        let mut model = Model(BTreeMap::new());
        let mut asked = vec![0, u128::MAX];
        for batch in history {
            let before = model.clone();
            for ((bits, len), value) in batch {
                asked.extend(edges(bits, len, K::WIDTH));
                match value {
                    0 => model.0.remove(&(to(bits), len)),
                    value => model.0.insert((to(bits), len), value),
                };
            }
            builder.apply(&trie, &mut before.changes(&model), false).unwrap();
            builder.reclaim();
            let keys: Vec<K> = asked.iter().map(|&key| to(key)).collect();
            let mut found = vec![0; keys.len()];
            trie.lookup_many(&keys, &mut found);
            for (key, found) in keys.into_iter().zip(found) {
                assert_eq!(trie.lookup(key), model.lookup(key), "{key:x?}");
                assert_eq!(found, model.lookup(key), "{key:x?} among many");
            }
        }
        // Without prefixes the table is as it was made.
        let empty = Model(BTreeMap::new());
        builder.apply(&trie, &mut model.changes(&empty), false).unwrap();
        builder.reclaim();
        assert!((0..ROOT).all(|at| trie.slot(trie.root + at) == 0), "leaves or nodes are left");
        let free: usize = builder.free.iter().enumerate().map(|(lines, list)| lines * list.len()).sum();
        assert_eq!(free * LINE, builder.next - trie.root - ROOT, "blocks are lost");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn longest_prefix_wins_in_ipv4(history in history(32), packed in any::<bool>()) {
            check(history, if packed { 0 } else { SPACIOUS }, |bits| bits as u32);
        }

        #[test]
        fn longest_prefix_wins_in_ipv6(history in history(128), packed in any::<bool>()) {
            check(history, if packed { 0 } else { SPACIOUS }, |bits| bits);
        }

        #[test]
        fn a_full_table_can_be_put_right(history in history(128)) {
            // Room for the root and a few nodes: most batches fail, and are undone.
            let (trie, mut builder) = Builder::<u128>::with_room(ROOT * 2, 0);
            builder.next = trie.words.len() / 8 * 7 - 12 * LINE;
            let mut model = Model(BTreeMap::new());
            for batch in history {
                let before = model.clone();
                let asked: Vec<u128> = batch.iter().flat_map(|((bits, len), _)| edges(*bits, *len, 128)).collect();
                for (key, value) in batch {
                    match value {
                        0 => model.0.remove(&key),
                        value => model.0.insert(key, value),
                    };
                }
                if builder.apply(&trie, &mut before.changes(&model), false).is_err() {
                    let undone = builder.apply(&trie, &mut model.changes(&before), true);
                    prop_assert_eq!(undone, Ok(()));
                    model = before;
                }
                builder.reclaim();
                for key in asked {
                    prop_assert_eq!(trie.lookup(key), model.lookup(key));
                }
            }
        }
    }

    #[test]
    fn readers_see_what_was_or_what_is_and_nothing_else() {
        // Values tell the prefix length: whatever is read must be the length of a prefix that holds the address and is
        // there at some time. 10/8 always is, so nothing shorter may ever be seen.
        let (trie, mut builder) = Builder::<u32>::with_room(1 << 24, 0);
        let change = |bits: u32, len: u8, there: bool| Change {
            bits: bits.masked(u32::from(len)),
            len,
            leaf: if there { leaf(len, u32::from(len)) } else { leaf(8, 8) },
            remove: !there,
        };
        builder.apply(&trie, &mut [change(0x0a00_0000, 8, true)], false).unwrap();
        let done = AtomicBool::new(false);
        /// Readers end when the writer does, however it does.
        struct Finish<'a>(&'a AtomicBool);
        impl Drop for Finish<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        std::thread::scope(|scope| {
            let finish = Finish(&done);
            let readers: Vec<_> = (0..2u32)
                .map(|seed| {
                    let (trie, done) = (&trie, &done);
                    scope.spawn(move || {
                        let (mut key, mut seen) = (seed + 1, 0u64);
                        while !done.load(Ordering::Relaxed) {
                            key = key.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                            let value = trie.lookup(0x0a00_0000 | key >> 8);
                            assert!([8, 13, 17, 22, 24, 29, 32].contains(&value), "{value}");
                            seen |= 1 << value;
                        }
                        seen
                    })
                })
                .collect();
            let mut random = 7u32;
            for _ in 0..300 {
                let mut batch = BTreeMap::new();
                for _ in 0..40 {
                    random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let len = [13, 17, 22, 24, 29, 32][(random >> 4) as usize % 6];
                    // The prefixes of one batch do not nest in those that go, so that 10/8 is what covers them.
                    let there = random & 8 == 0;
                    let one = change(0x0a00_0000 | random >> 8, len, there);
                    batch.insert((one.bits, one.len), one);
                }
                let mut batch: Vec<_> = batch.into_values().collect();
                builder.apply(&trie, &mut batch, false).unwrap();
                // Nothing is reclaimed while readers are at work.
            }
            drop(finish);
            for reader in readers {
                assert_ne!(reader.join().unwrap(), 0);
            }
        });
    }
}
