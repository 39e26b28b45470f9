//! The index, the inbox and the epochs in every order that the memory model allows (by loom, with the sources as they are and
//! loom's atomics in place of the processor's).

use loom::sync::Arc;
use loom::sync::atomic;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;

#[path = "../../worker/epoch.rs"]
#[allow(dead_code, unreachable_pub, clippy::duplicate_mod)]
mod epoch;
#[path = "../inbox.rs"]
#[allow(dead_code, unreachable_pub, clippy::duplicate_mod)]
mod inbox;
#[path = "../index.rs"]
#[allow(dead_code, unreachable_pub, clippy::duplicate_mod)]
mod index;

use epoch::Epochs;
use inbox::Inbox;
use index::Index;

const WAYS: usize = 2;
const STRIPES: usize = 4;
const LOCK_TRIES: usize = 1;
const MESSAGES: u32 = 4;

struct Bucket([AtomicU64; WAYS]);

type Buckets = Box<[Bucket]>;

fn new_buckets(count: usize) -> Buckets {
    (0..count).map(|_| Bucket(std::array::from_fn(|_| AtomicU64::new(0)))).collect()
}

fn prepare_buckets(_: &[Bucket]) {}

/// The first hash, of those that a counter makes, that is in this bucket first, in that one else, and of this stripe.
fn hash(index: &Index, first: usize, other: usize, stripe: usize) -> u64 {
    let mixed = (1..u64::MAX).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut fitting = mixed.filter(|&hash| {
        index.first(hash) == first
            && index.other(first, Index::tag(hash)) == other
            && (Index::tag(hash) >> 28) as usize % STRIPES == stripe
    });
    fitting.next().expect("one of many")
}

fn insert(index: &Index, hash: u64, reference: u32) -> bool {
    let Some(stripes) = index.lock(hash, hash) else { return false };
    index.find(hash, |_| true).is_none() && index.place(&stripes, hash, reference)
}

#[test]
fn of_two_that_enter_the_same_key_one_succeeds() {
    loom::model(|| {
        let index = Arc::new(Index::new(4));
        let key = hash(&index, 0, 1, 0);
        let there = index.clone();
        let other = thread::spawn(move || insert(&there, key, 1));
        let here = insert(&index, key, 0);
        let there = other.join().expect("no panic");
        assert!(!(here && there));
        match index.find(key, |_| true) {
            Some(reference) => assert_eq!((here, there), (reference == 0, reference == 1)),
            None => assert!(!here && !there),
        }
    });
}

#[test]
fn a_word_on_the_move_is_found() {
    loom::model(|| {
        let index = Arc::new(Index::new(6));
        // Both places of bucket 0 are taken; one resident may live in bucket 1 as well, the newcomer nowhere else.
        let resident = hash(&index, 1, 0, 0);
        let stay = hash(&index, 0, 0, 1);
        let newcomer = hash(&index, 0, 0, 2);
        let blocker = hash(&index, 1, 1, 3);
        for (reference, key) in [(8, blocker), (9, hash(&index, 1, 1, 2)), (1, resident), (2, stay)] {
            assert!(insert(&index, key, reference));
        }
        let stripes = index.lock(blocker, blocker).expect("free");
        assert!(index.remove(&stripes, blocker, 8));
        drop(stripes);
        let there = index.clone();
        let reader = thread::spawn(move || there.find(resident, |reference| reference == 1));
        assert!(insert(&index, newcomer, 3));
        assert_eq!(reader.join().expect("no panic"), Some(1));
        for (reference, key) in [(1, resident), (2, stay), (3, newcomer)] {
            assert_eq!(index.find(key, |found| found == reference), Some(reference));
        }
    });
}

#[test]
fn a_word_is_removed_wherever_it_moves() {
    loom::model(|| {
        let index = Arc::new(Index::new(6));
        let resident = hash(&index, 0, 1, 0);
        let newcomer = hash(&index, 0, 0, 2);
        for (reference, key) in [(1, resident), (2, hash(&index, 0, 0, 1))] {
            assert!(insert(&index, key, reference));
        }
        let there = index.clone();
        let remover = thread::spawn(move || match there.lock(resident, resident) {
            Some(stripes) => there.remove(&stripes, resident, 1),
            None => false,
        });
        let entered = insert(&index, newcomer, 3);
        let removed = remover.join().expect("no panic");
        assert_eq!(index.find(resident, |found| found == 1).is_none(), removed);
        assert_eq!(index.find(newcomer, |found| found == 3).is_some(), entered);
        assert!(entered || removed);
    });
}

/// A table of one slot: whose connection it holds.
struct Table {
    index: Index,
    epochs: Epochs,
    slot: AtomicU64,
    old: u64,
    new: u64,
}

impl Table {
    fn new() -> Self {
        let index = Index::new(4);
        let (old, new) = (hash(&index, 0, 1, 0), hash(&index, 1, 0, 1));
        let table = Self { index, epochs: Epochs::new(2), slot: AtomicU64::new(old), old, new };
        assert!(insert(&table.index, old, 0));
        table
    }

    /// One look at a key: what was found stays what it is.
    fn look(&self, key: u64) {
        if self.index.find(key, |_| true).is_some() {
            assert_eq!(self.slot.load(Ordering::Relaxed), key);
            assert_eq!(self.slot.load(Ordering::Relaxed), key);
        }
    }

    /// Removes the old connection and uses its slot for the new one, if nobody can hold it.
    fn replace(&self) -> bool {
        let stripes = self.index.lock(self.old, self.old).expect("nobody else writes");
        assert!(self.index.remove(&stripes, self.old, 0));
        drop(stripes);
        let epoch = self.epochs.advance();
        self.epochs.quiesce(1);
        let free = self.epochs.passed(epoch);
        if free {
            self.slot.store(self.new, Ordering::Relaxed);
            assert!(insert(&self.index, self.new, 0));
        }
        free
    }
}

#[test]
fn memory_is_used_again_when_all_readers_have_looked_up() {
    loom::model(|| {
        let table = Arc::new(Table::new());
        table.epochs.arrive(0);
        table.epochs.arrive(1);
        let there = table.clone();
        let reader = thread::spawn(move || {
            there.look(there.old);
            there.epochs.quiesce(0);
            there.look(there.old);
            there.look(there.new);
            there.epochs.leave(0);
        });
        let _ = table.replace();
        reader.join().expect("no panic");
    });
}

#[test]
fn who_arrives_late_sees_what_was_removed() {
    loom::model(|| {
        let table = Arc::new(Table::new());
        table.epochs.arrive(1);
        let there = table.clone();
        let reader = thread::spawn(move || {
            there.epochs.arrive(0);
            there.look(there.old);
            there.look(there.new);
            there.epochs.leave(0);
        });
        let _ = table.replace();
        reader.join().expect("no panic");
    });
}

#[test]
fn an_epoch_passes_when_all_seats_have_noted_it_or_are_away() {
    loom::model(|| {
        let epochs = Epochs::new(3);
        let first = epochs.advance();
        assert!(epochs.passed(first), "all are away");
        epochs.arrive(0);
        epochs.arrive(1);
        assert!(epochs.passed(first), "who came later has seen the removal");
        let second = epochs.advance();
        assert!(!epochs.passed(second));
        epochs.quiesce(0);
        assert!(!epochs.passed(second), "seat 1 has not looked up");
        epochs.leave(1);
        assert!(epochs.passed(second));
    });
}

#[test]
fn a_box_that_is_not_full_takes_what_is_posted() {
    loom::model(|| {
        let inbox = Arc::new(Inbox::new());
        let there = inbox.clone();
        let other = thread::spawn(move || there.post(1));
        let there = inbox.clone();
        let owner = thread::spawn(move || there.take());
        assert!(inbox.post(2));
        assert!(other.join().expect("no panic"));
        let taken = owner.join().expect("no panic");
        let mut all: Vec<u32> = taken.into_iter().chain(std::iter::from_fn(|| inbox.take())).collect();
        all.sort_unstable();
        assert_eq!(all, [1, 2]);
    });
}
