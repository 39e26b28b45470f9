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

mod build;
#[cfg(test)]
mod tests;

use std::marker::PhantomData;
use std::sync::atomic::{AtomicU32, Ordering};

use zerocopy::FromZeros;

use super::bits::Bits;
pub(super) use build::Builder;

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

/// See [`Trie::steps`].
pub struct Steps<'a, K> {
    root: &'a [AtomicU32; ROOT],
    trie: &'a Trie<K>,
}

impl<K: Bits> Steps<'_, K> {
    /// First, for all: reads the root's slot, and asks for the node that it leads to.
    #[inline(always)]
    pub fn enter(&self, key: K) -> u32 {
        // A node is written before the slot that leads to it.
        let slot = self.root[key.first16() % ROOT].load(Ordering::Acquire);
        if is_node(slot) {
            self.prefetch_node(slot, key);
        }
        slot
    }

    #[inline]
    fn prefetch_node(&self, slot: u32, key: K) {
        let at = (slot & PLACE) as usize;
        let next = at + LINE + if slot & DIRECT != 0 { key.byte(16) } else { 0 };
        crate::memory::prefetch(&self.trie.words[at]);
        crate::memory::prefetch(&self.trie.words[next]);
    }

    /// What the root alone decides, given what [`Steps::enter`] read.
    #[inline(always)]
    pub fn decided(&self, slot: u32) -> Option<u32> {
        (!is_node(slot)).then_some(slot & VALUE)
    }

    /// Last: what the longest prefix leads to, given what [`Steps::enter`] read; 0 if there is none.
    #[inline(always)]
    pub fn finish(&self, slot: u32, key: K) -> u32 {
        self.decided(slot).unwrap_or_else(|| self.trie.descend(slot, key))
    }
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

    /// For lookups of several addresses step by step: the waits for memory of different addresses overlap.
    #[inline]
    pub fn steps(&self) -> Steps<'_, K> {
        let root = self.words[self.root..].first_chunk();
        Steps { root: root.unwrap_or_else(|| unreachable!("the root is there")), trie: self }
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
