//! From the thread that hears of connections to the worker that enters them: a queue of bounded length, of which the
//! worker takes some between two bursts.
#![forbid(unsafe_code)]

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_queue::ArrayQueue;

use crate::conntrack::adopt::Announced;

/// Connections that may wait.
const WAITING: usize = 2048;
/// How often the thread waits for room, and how long each time: a sleeping worker was woken.
const WAITS: (u32, Duration) = (200, Duration::from_millis(1));

/// The queue.
pub struct Announcements {
    queue: ArrayQueue<Announced>,
    /// There is something in it: the only thing that a worker looks at each turn.
    any: AtomicBool,
}

impl Default for Announcements {
    fn default() -> Self {
        Self { queue: ArrayQueue::new(WAITING), any: AtomicBool::new(false) }
    }
}

impl fmt::Debug for Announcements {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Announcements").field("waiting", &self.queue.len()).finish()
    }
}

impl Announcements {
    /// Puts a connection in; false if the worker took none for long. `wake` wakes the worker.
    pub fn put(&self, announced: Announced, wake: impl Fn()) -> bool {
        let mut announced = announced;
        for _ in 0..WAITS.0 {
            match self.queue.push(announced) {
                Ok(()) => {
                    if !self.any.swap(true, Ordering::AcqRel) {
                        wake();
                    }
                    return true;
                }
                Err(back) => announced = back,
            }
            wake();
            std::thread::sleep(WAITS.1);
        }
        false
    }

    /// Whether there is nothing to take.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        !self.any.load(Ordering::Relaxed)
    }

    /// Takes at most `most`. For one worker.
    #[cold]
    pub fn take(&self, most: usize, mut each: impl FnMut(Announced)) {
        // Whoever puts something in after this says so again.
        self.any.swap(false, Ordering::AcqRel);
        for _ in 0..most {
            let Some(announced) = self.queue.pop() else { return };
            each(announced);
        }
        if !self.queue.is_empty() {
            self.any.store(true, Ordering::Release);
        }
    }
}
