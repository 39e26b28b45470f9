//! When a queue is polled next.
//!
//! An idle poll is not free: on a ring it reads a line that the guest is about to write, which slows the guest, and on
//! a device it is a system call. So a queue that was found empty is left alone for an eighth of the time that it has
//! been empty, up to a bound: a packet never waits for long compared with the pause before it, and a hundred idle ports
//! hardly slow a busy one.
#![forbid(unsafe_code)]

use std::sync::Arc;

use crate::clock;
use crate::policy::guard::Guard;
use crate::port::{Attachment, Port, WakeDescriptor};
use crate::tables::{BridgeTable, PortEntry};

/// The shortest pause of a ring, in cycles.
const RING_PAUSE: u64 = 64;
/// The longest pause of any queue, in microseconds.
const LONGEST_PAUSE: u64 = 32;

/// A queue as its worker sees it.
pub(super) struct Slot {
    pub(super) port: Arc<Port>,
    pub(super) bridge: Arc<BridgeTable>,
    pub(super) guard: Option<Arc<Guard>>,
    pub(super) queue: usize,
    /// Cycle count before which the queue is left alone.
    next: u64,
    /// When it last had frames, or was expected to.
    last: u64,
    shortest: u64,
    longest: u64,
    retired: bool,
    /// The guest was asked to kick since frames were last found.
    pub(super) armed: bool,
    /// What is registered with epoll, and for which generation of the queue.
    pub(super) registered: Option<(u32, Option<WakeDescriptor>)>,
}

impl Slot {
    pub(super) fn new(entry: &PortEntry, queue: usize) -> Self {
        let (port, bridge, guard) = (entry.port.clone(), entry.bridge.clone(), entry.guard.clone());
        let us = clock::cycles_per_us();
        let shortest = match port.attachment() {
            Attachment::Vhost(_) => RING_PAUSE,
            Attachment::Tap(_) | Attachment::Netdev(_) => us / 2,
        };
        let now = clock::cycles();
        Self {
            port,
            bridge,
            guard,
            queue,
            next: now,
            last: now,
            shortest,
            longest: LONGEST_PAUSE * us,
            retired: false,
            armed: false,
            registered: None,
        }
    }

    #[inline]
    pub(super) fn due(&self, now: u64) -> bool {
        now.wrapping_sub(self.next) as i64 >= 0 && !self.retired
    }

    #[inline]
    pub(super) fn found_nothing(&mut self, now: u64) {
        let pause = (now.wrapping_sub(self.last) / 8).clamp(self.shortest, self.longest);
        self.next = now.wrapping_add(pause);
    }

    #[inline]
    pub(super) fn found_work(&mut self, now: u64) {
        self.last = now;
        if self.armed {
            self.armed = false;
            self.port.disarm(self.queue);
        }
    }

    /// To be polled at once: something may have come while the worker slept.
    pub(super) fn hurry(&mut self, now: u64) {
        self.next = now;
        self.last = now;
    }

    /// Never poll again: the device is gone.
    #[cold]
    pub(super) fn retire(&mut self) {
        self.retired = true;
    }

    pub(super) fn is_retired(&self) -> bool {
        self.retired
    }
}
