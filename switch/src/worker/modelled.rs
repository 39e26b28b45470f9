//! A queue's way from one worker to another in every order that the memory model allows (by loom, with the source as it
//! is and loom's atomics in place of the processor's).
#![forbid(unsafe_code)]

use loom::sync::atomic;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;

#[path = "generation.rs"]
#[allow(dead_code, unreachable_pub, clippy::duplicate_mod)]
mod generation;

use generation::{Adopted, Newest};

/// Turns of each worker: enough to see each snapshot on its own, and for the model to end.
const TURNS: usize = 3;

/// A switch of two workers and one queue.
struct Switch {
    /// The snapshot: whose the queue is. What stores and loads whole snapshots is itself sound.
    owner: Mutex<Option<usize>>,
    newest: Newest,
    adopted: [Adopted; 2],
    /// What only the queue's worker may write, as [`crate::stats::Counter`]: two at once lose what they count.
    counter: AtomicU64,
}

impl Switch {
    fn new(owner: Option<usize>) -> Arc<Self> {
        Arc::new(Self {
            owner: Mutex::new(owner),
            newest: Newest::default(),
            adopted: [Adopted::default(), Adopted::default()],
            counter: AtomicU64::new(0),
        })
    }

    fn publish(&self, owner: Option<usize>) -> u64 {
        *self.owner.lock().expect("not poisoned") = owner;
        self.newest.raise()
    }

    fn hand_out(&self, owner: Option<usize>) {
        let number = self.publish(owner);
        for adopted in &self.adopted {
            while !adopted.has(number) {
                thread::yield_now();
            }
        }
    }

    /// Some turns of a worker's loop, and its end; what it has counted.
    fn work(&self, id: usize, mut mine: bool) -> u64 {
        let mut counted = 0;
        for _ in 0..TURNS {
            let number = self.newest.get();
            if self.adopted[id].differs(number) {
                mine = *self.owner.lock().expect("not poisoned") == Some(id);
                self.adopted[id].note(number);
            }
            if mine {
                self.counter.store(self.counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
                counted += 1;
            }
        }
        self.adopted[id].note(u64::MAX);
        counted
    }
}

/// Both workers turn while the queue goes from the first to the second.
fn model(change: impl Fn(&Switch) + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(move || {
        let switch = Switch::new(Some(0));
        let worker = |id: usize| {
            let switch = switch.clone();
            thread::spawn(move || switch.work(id, id == 0))
        };
        let workers = [worker(0), worker(1)];
        change(&switch);
        let counted: u64 = workers.into_iter().map(|worker| worker.join().expect("no panic")).sum();
        assert_eq!(switch.counter.load(Ordering::Relaxed), counted, "what was counted is lost");
    });
}

#[test]
fn a_queue_that_was_nobodys_in_between_has_one_worker_at_a_time() {
    model(|switch| {
        switch.hand_out(None);
        switch.hand_out(Some(1));
    });
}

#[test]
#[should_panic(expected = "what was counted is lost")]
fn a_queue_that_is_handed_over_at_once_has_two() {
    model(|switch| switch.hand_out(Some(1)));
}
