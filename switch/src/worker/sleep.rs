//! How a worker sleeps without missing a packet.
//!
//! Guests are asked to kick, then every ring is looked at once more: a frame that came between the last poll and the
//! request would be neither seen nor kicked for. Only then the worker waits in epoll, on the guests' kicks, on the
//! devices and on its own wake descriptor. All are edge-triggered, so nothing has to be read to silence them.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use vhost_backend::ring::cell::Armed;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::poll::Slot;
use crate::clock;
use crate::port::WakeDescriptor;

/// Descriptors that are registered, or forgotten, before the worker looks at its queues again: each takes a system call
/// or two, and a port may have 128.
const AT_ONCE: usize = 16;

/// A worker's epoll instance.
pub(super) struct Sleeper {
    epoll: Epoll,
    events: Vec<EpollEvent>,
    /// Kicks of queues that are no longer this worker's, still registered: a wake-up too many does no harm.
    leaving: Vec<WakeDescriptor>,
}

impl Sleeper {
    pub(super) fn new(wake: &EventFd) -> io::Result<Self> {
        let sleeper =
            Self { epoll: Epoll::new()?, events: vec![EpollEvent::default(); 64], leaving: Vec::new() };
        sleeper.add(wake.as_raw_fd())?;
        Ok(sleeper)
    }

    fn add(&self, fd: RawFd) -> io::Result<()> {
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 0);
        self.epoll.ctl(ControlOperation::Add, fd, event)
    }

    /// Sleeps until there may be work, or for `patience` milliseconds if it is not negative; returns at once if there is
    /// work already.
    #[cold]
    pub(super) fn sleep(&mut self, slots: &mut [Slot], patience: i32) {
        // What cannot be prepared is work, or will be looked at before the next try.
        let mut left = AT_ONCE;
        let mut served = slots.iter_mut().filter(|slot| !slot.is_retired());
        if served.all(|slot| self.prepare(slot, &mut left)) {
            // An interrupted wait is a spurious wake-up like any other.
            let _ = self.epoll.wait(patience, &mut self.events);
        }
        let now = clock::cycles();
        for slot in slots {
            slot.hurry(now);
        }
    }

    /// Waits until the worker is woken, or for so many milliseconds.
    pub(super) fn rest(&mut self, patience: i32) {
        let _ = self.epoll.wait(patience, &mut self.events);
    }

    /// Sees to it that frames of this queue end the sleep; false if there are some already, or must be polled for, or if
    /// more than `left` descriptors would be registered.
    fn prepare(&self, slot: &mut Slot, left: &mut usize) -> bool {
        let generation = slot.port.wake_generation(slot.queue);
        if slot.registered.as_ref().is_none_or(|(registered, _)| *registered != generation) {
            let Some(fewer) = left.checked_sub(1) else { return false };
            *left = fewer;
            if let Some((_, Some(descriptor))) = slot.registered.take() {
                self.forget(&descriptor);
            }
            let descriptor = slot.port.wake_descriptor(slot.queue);
            let failed = descriptor.as_ref().is_some_and(|fd| self.add(fd.as_raw_fd()).is_err());
            slot.registered = Some((generation, descriptor));
            slot.armed = false;
            if failed {
                // Without its descriptor in epoll this queue is served by polling.
                slot.registered = None;
                return false;
            }
        }
        if slot.armed {
            return true;
        }
        match slot.port.arm(slot.queue) {
            Armed::Idle => true,
            Armed::Kick => {
                slot.armed = true;
                true
            }
            Armed::Work => {
                slot.armed = true;
                false
            }
            Armed::MustPoll => false,
        }
    }

    /// Leaves a queue to others: its guest is not left with a request to kick, and it soon wakes this worker no more.
    pub(super) fn let_go(&mut self, slot: &mut Slot) {
        match slot.registered.take() {
            Some((_, Some(kick @ WakeDescriptor::Kick(_)))) => self.leaving.push(kick),
            // Its device is to go with the port, not later.
            Some((_, Some(device))) => self.forget(&device),
            _ => {}
        }
        if std::mem::take(&mut slot.armed) {
            slot.port.disarm(slot.queue);
        }
    }

    /// Whether there is something to [`Sleeper::tidy`].
    #[inline]
    pub(super) fn is_untidy(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// Forgets some of the queues that were let go of.
    #[cold]
    pub(super) fn tidy(&mut self) {
        let from = self.leaving.len().saturating_sub(AT_ONCE);
        for descriptor in self.leaving.split_off(from) {
            self.forget(&descriptor);
        }
    }

    /// Takes a queue's descriptor out of epoll, before it is closed here: the guest's side keeps it open.
    fn forget(&self, descriptor: &WakeDescriptor) {
        let _ = self.epoll.ctl(ControlOperation::Delete, descriptor.as_raw_fd(), EpollEvent::default());
    }
}
