//! A worker that stands still: it carries nothing, keeps up with snapshots, and does what it is given to do meanwhile.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::Worker;
use crate::clock;
use crate::l3::Stage;

/// Milliseconds after which a worker that stands still looks around without having been woken.
const LOOK: i32 = 100;

/// What workers are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Mode {
    /// Carry packets.
    Run = 0,
    /// Stand still.
    Hold = 1,
    /// End.
    Stop = 2,
}

/// A [`Mode`] that workers look at once a turn.
#[derive(Debug)]
pub struct AtomicMode(AtomicU8);

impl AtomicMode {
    /// With this mode.
    pub fn new(mode: Mode) -> Self {
        Self(AtomicU8::new(mode as u8))
    }

    /// The mode.
    #[inline]
    pub fn get(&self) -> Mode {
        match self.0.load(Ordering::Acquire) {
            0 => Mode::Run,
            1 => Mode::Hold,
            _ => Mode::Stop,
        }
    }

    /// Another mode; workers are to be woken then.
    pub fn set(&self, mode: Mode) {
        self.0.store(mode as u8, Ordering::Release);
    }
}

/// Something that a worker does with what only it may touch.
pub type Job = Box<dyn FnOnce(&mut Stage) + Send>;

/// What a worker that stands still has to say, and to do.
#[derive(Default)]
pub struct Held {
    still: AtomicBool,
    /// When it last went on, in nanoseconds of the system's monotonic clock.
    went_on: AtomicU64,
    jobs: Mutex<VecDeque<Job>>,
}

impl Held {
    /// Whether the worker stands still.
    pub fn is_still(&self) -> bool {
        self.still.load(Ordering::Acquire)
    }

    /// When the worker last went on after it had stood still, by the system's monotonic clock; none while it does.
    pub fn went_on(&self) -> Option<Duration> {
        (!self.is_still()).then(|| Duration::from_nanos(self.went_on.load(Ordering::Relaxed)))
    }

    /// Has the worker do something, as soon as it stands still; it is to be woken then.
    pub fn give(&self, job: Job) {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).push_back(job);
    }

    fn next(&self) -> Option<Job> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }
}

impl Worker {
    /// Stands still as long as that is wanted.
    #[cold]
    pub(super) fn hold(&mut self) {
        let (shared, handle) = (self.shared.clone(), self.handle.clone());
        shared.epochs.leave(handle.id);
        handle.held.still.store(true, Ordering::Release);
        while shared.mode.get() == Mode::Hold {
            if handle.adopted.differs(shared.newest.get()) {
                self.adopt();
            }
            match handle.held.next() {
                Some(job) => {
                    shared.epochs.arrive(handle.id);
                    job(&mut self.stage);
                    shared.epochs.leave(handle.id);
                }
                None => self.sleeper.rest(LOOK),
            }
        }
        let now = clock::monotonic().as_nanos().min(u128::from(u64::MAX)) as u64;
        handle.held.went_on.store(now, Ordering::Relaxed);
        handle.held.still.store(false, Ordering::Release);
        shared.epochs.arrive(handle.id);
        // Kicks that came meanwhile have been taken notice of by nobody.
        let now = clock::cycles();
        for slot in &mut self.slots {
            slot.hurry(now);
        }
    }
}
