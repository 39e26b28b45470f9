//! When a queue is polled next.
//!
//! An idle poll is not free: on a ring it reads a line that the guest is about to write, which slows the guest, and on
//! a device it is a system call. So a queue that was found empty is left alone for an eighth of the time that it has
//! been empty, up to a bound: a packet never waits for long compared with the pause before it, and a hundred idle ports
//! hardly slow a busy one.
//!
//! A queue's *lane* is the key that chooses by which queue of the receiver its frames leave. Each worker has lanes of its
//! own, so that workers meet at a receiver's queue as rarely as the number of queues allows. A queue that comes from
//! another worker brings its lane along: frames of a flow must not overtake each other in two queues of a guest. It
//! changes into a lane of its worker's when it has been silent for so long that what it sent has been read.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::clock;
use crate::port::{Attachment, Port, WakeDescriptor};
use crate::stats::NO_LANE;
use crate::tables::QueueId;

/// The shortest pause of a ring, in cycles.
const RING_PAUSE: u64 = 64;
/// The longest pause of any queue, in microseconds.
const LONGEST_PAUSE: u64 = 32;
/// Silence after which a queue may change its lane, in microseconds.
const READ_BY_THEN: u64 = 100_000;

/// A queue as its worker sees it. On cache lines of its own: the allocator may put another worker's beside it.
#[repr(align(128))]
pub(super) struct Slot {
    pub(super) port: Arc<Port>,
    pub(super) queue: usize,
    lane: u16,
    /// The lane that its worker has for it.
    own_lane: u16,
    /// When it last had frames, or came to this worker.
    worked: u64,
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
    pub(super) fn new(port: Arc<Port>, queue: usize, own_lane: u16) -> Self {
        let us = clock::cycles_per_us();
        let shortest = match port.attachment() {
            Attachment::Vhost(_) => RING_PAUSE,
            Attachment::Tap(_) | Attachment::Netdev(_) => us / 2,
        };
        let now = clock::cycles();
        // Its last worker wrote this before it said that it lets go, which came before this one heard of it.
        let lane = match port.queue_counters(queue).lane.load(Ordering::Relaxed) {
            NO_LANE => own_lane,
            brought => brought,
        };
        port.queue_counters(queue).lane.store(lane, Ordering::Relaxed);
        Self {
            port,
            queue,
            lane,
            own_lane,
            worked: now,
            next: now,
            last: now,
            shortest,
            longest: LONGEST_PAUSE * us,
            retired: false,
            armed: false,
            registered: None,
        }
    }

    /// Which queue this is.
    pub(super) fn id(&self) -> QueueId {
        QueueId { port: self.port.number(), queue: self.queue as u16 }
    }

    /// Its worker has another lane for it.
    pub(super) fn belongs_in(&mut self, lane: u16) {
        self.own_lane = lane;
    }

    /// The lane of frames that are fetched now.
    #[inline]
    pub(super) fn lane(&mut self, now: u64) -> usize {
        if self.lane != self.own_lane {
            self.change_lane(now);
        }
        usize::from(self.lane)
    }

    #[cold]
    fn change_lane(&mut self, now: u64) {
        if now.wrapping_sub(self.worked) > READ_BY_THEN * clock::cycles_per_us() {
            self.lane = self.own_lane;
            self.port.queue_counters(self.queue).lane.store(self.lane, Ordering::Relaxed);
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
        self.worked = now;
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
