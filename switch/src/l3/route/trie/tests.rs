use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::worker::epoch::Epochs;

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
        let steps = trie.steps();
        let slots: Vec<u32> = keys.iter().map(|&key| steps.enter(key)).collect();
        for (key, slot) in keys.into_iter().zip(slots) {
            assert_eq!(trie.lookup(key), model.lookup(key), "{key:x?}");
            assert_eq!(steps.finish(slot, key), model.lookup(key), "{key:x?} among many");
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
    // there at some time. 10/8 always is, so nothing shorter may ever be seen. Rooms are used again as soon as all
    // readers have begun a new turn.
    let (trie, mut builder) = Builder::<u32>::with_room(1 << 20, 0);
    let epochs = Epochs::new(2);
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
                let (trie, done, epochs) = (&trie, &done, &epochs);
                scope.spawn(move || {
                    let (mut key, mut seen) = (seed + 1, 0u64);
                    epochs.arrive(seed as usize);
                    // Once at least: the writer may be done before this thread has had a processor.
                    while seen == 0 || !done.load(Ordering::Relaxed) {
                        key = key.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        let value = trie.lookup(0x0a00_0000 | key >> 8);
                        assert!([8, 13, 17, 22, 24, 29, 32].contains(&value), "{value}");
                        seen |= 1 << value;
                        if key & 31 == 0 {
                            epochs.quiesce(seed as usize);
                        }
                    }
                    epochs.leave(seed as usize);
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
            let epoch = epochs.advance();
            let deadline = Instant::now() + Duration::from_secs(60);
            while !epochs.passed(epoch) {
                assert!(Instant::now() < deadline, "a reader is stuck");
                std::thread::yield_now();
            }
            builder.reclaim();
        }
        drop(finish);
        for reader in readers {
            assert_ne!(reader.join().unwrap(), 0);
        }
    });
}
