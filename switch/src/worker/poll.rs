//! When a queue is polled next.
//!
//! An idle poll is not free: on a ring it reads a line that the guest is about to write, which slows the guest, and on
//! a device it is a system call. So a queue that was found empty is left alone for a little while, twice as long each
//! time up to a bound, and a queue that had frames is polled again at once.
#![forbid(unsafe_code)]

use std::sync::Arc;

use crate::clock;
use crate::port::{Attachment, Port, WakeDescriptor};
use crate::tables::BridgeTable;

/// The first pause, in cycles.
const FIRST_PAUSE: u64 = 64;

/// A queue as its worker sees it.
pub(super) struct Slot {
    pub(super) port: Arc<Port>,
    pub(super) bridge: Arc<BridgeTable>,
    pub(super) queue: usize,
    /// Cycle count before which the queue is left alone.
    next: u64,
    pause: u64,
    longest: u64,
    retired: bool,
    /// The guest was asked to kick since frames were last found.
    pub(super) armed: bool,
    /// What is registered with epoll, and for which generation of the queue.
    pub(super) registered: Option<(u32, Option<WakeDescriptor>)>,
}

impl Slot {
    pub(super) fn new(port: Arc<Port>, bridge: Arc<BridgeTable>, queue: usize) -> Self {
        let us = clock::cycles_per_us();
        let longest = match port.attachment() {
            Attachment::Vhost(_) => us / 4,
            Attachment::Tap(_) | Attachment::Netdev(_) => 5 * us,
        };
        Self {
            port,
            bridge,
            queue,
            next: 0,
            pause: FIRST_PAUSE,
            longest,
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
        self.next = now.wrapping_add(self.pause);
        self.pause = (self.pause * 2).min(self.longest);
    }

    #[inline]
    pub(super) fn found_work(&mut self) {
        self.pause = FIRST_PAUSE;
        if self.armed {
            self.armed = false;
            self.port.disarm(self.queue);
        }
    }

    /// To be polled at once: something may have come while the worker slept.
    pub(super) fn hurry(&mut self) {
        self.next = 0;
        self.pause = FIRST_PAUSE;
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
