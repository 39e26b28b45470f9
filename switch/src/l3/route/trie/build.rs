//! The one who changes a trie: makes nodes, links them, and knows which words are free.
#![forbid(unsafe_code)]

use std::marker::PhantomData;
use std::sync::atomic::Ordering;

use super::{
    COUNTS, Change, DEFAULT, Head, LINE, LINES_SHIFT, MAP, PACKED_RUNS, PATH, PLAIN, PLAIN_LINES, RESERVED,
    ROOT, SPACIOUS, Trie, fold, is_node,
};
use crate::l3::route::bits::Bits;

/// The table is full; what could be changed was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::l3::route) struct Full;

/// The one who changes a [`Trie`]: knows which words are free.
pub(in crate::l3::route) struct Builder<K> {
    /// Free blocks by their lines.
    pub(super) free: Vec<Vec<u32>>,
    /// Blocks that a reader may still be looking at.
    retired: Vec<(u32, u8)>,
    pub(super) next: usize,
    limit: usize,
    spacious: usize,
    failed: bool,
    key: PhantomData<K>,
}

impl<K: Bits> Builder<K> {
    /// An empty table and its builder.
    pub(in crate::l3::route) fn new() -> (Trie<K>, Self) {
        Self::with_room(RESERVED, SPACIOUS)
    }

    /// As [`Self::new`] for `words` words in all, of which `spacious` are spent freely.
    pub(in crate::l3::route) fn with_room(words: usize, spacious: usize) -> (Trie<K>, Self) {
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
    pub(in crate::l3::route) fn bytes(&self) -> usize {
        self.next * size_of::<u32>()
    }

    /// Makes room of what was replaced before. No reader may be left that began its lookup before that.
    pub(in crate::l3::route) fn reclaim(&mut self) {
        for (at, lines) in self.retired.drain(..) {
            self.free[usize::from(lines)].push(at);
        }
    }

    /// Makes all changes; readers see each of them at once or a moment later, and never anything else than before or
    /// after. With `urgent` the last eighth of the room may be used, which is kept for removing and undoing.
    ///
    /// # Errors
    /// No room: some changes may have been made for some addresses. The inverse changes restore all of them.
    pub(in crate::l3::route) fn apply(
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
