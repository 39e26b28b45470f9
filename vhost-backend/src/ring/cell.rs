//! Where a ring lives while the port exists.
//!
//! The session's control thread starts, changes and stops the ring; workers use it for one burst at a time. The lock is
//! taken once per burst, never per packet, and it is what makes a stop synchronous: once [`RingCell::stop`] has returned,
//! no worker holds the ring and not a byte of guest memory is touched any more.

use std::cell::UnsafeCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use super::{Delivered, Ring, RingFault, Served};
use crate::dirty::Logging;
use crate::frame::Burst;

/// How long a sender waits for others that send to the same ring. The longest burst, 64 frames of 64 KiB, takes less than a
/// millisecond; this is for a holder that has lost its processor for some turns of the scheduler: a lost frame would cost
/// TCP more, 200 ms if it was the last one.
const LONGEST_WAIT: Duration = Duration::from_millis(20);

/// What a worker that wants to sleep learns from a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Armed {
    /// Not running: nothing will come from here until the control thread says so.
    Idle,
    /// The guest will kick when it has something.
    Kick,
    /// There is work already; do not sleep.
    Work,
    /// The ring has no kick descriptor; only polling finds its frames.
    MustPoll,
}

/// A slot for one ring, shared by workers and the control thread of its port. On cache lines of its own, in pairs as
/// processors fetch them: what another worker does with the next ring must not cost this one.
#[derive(Default)]
#[repr(align(128))]
pub struct RingCell {
    /// Odd while somebody holds the ring; counts up.
    lock: AtomicU32,
    /// What it was when a sender last gave up waiting.
    stuck: AtomicU32,
    /// Started, enabled and not broken: the cheap question before the lock.
    active: AtomicBool,
    enabled: AtomicBool,
    fault: AtomicU8,
    /// Changes whenever the kick descriptor may have changed.
    generation: AtomicU32,
    ring: UnsafeCell<Option<Box<Ring>>>,
}

// SAFETY: `ring` is only touched while `lock` is held (see `Guard`), and `Ring` may move between threads.
unsafe impl Sync for RingCell {}
// SAFETY: as above; nothing in a cell belongs to a thread.
unsafe impl Send for RingCell {}

/// Waits a little, and now and then lets others have the processor.
fn relax(spins: u32) {
    if spins.is_multiple_of(1024) {
        std::thread::yield_now();
    } else {
        std::hint::spin_loop();
    }
}

struct Guard<'a> {
    cell: &'a RingCell,
    /// What `lock` is meanwhile.
    held: u32,
}

impl Guard<'_> {
    #[inline]
    fn ring(&mut self) -> &mut Option<Box<Ring>> {
        // SAFETY: this guard is the only one while `lock` is odd, and it is borrowed exclusively.
        unsafe { &mut *self.cell.ring.get() }
    }
}

impl Drop for Guard<'_> {
    #[inline]
    fn drop(&mut self) {
        self.cell.lock.store(self.held.wrapping_add(1), Ordering::Release);
    }
}

impl RingCell {
    /// An empty cell: no ring, not enabled.
    pub fn new() -> Self {
        Self::default()
    }

    #[inline]
    fn try_lock(&self) -> Option<Guard<'_>> {
        let free = self.lock.load(Ordering::Relaxed);
        let held = free | 1;
        // Not `then_some`: it would make a guard in any case, and dropping that unlocks.
        (free != held && self.lock.compare_exchange(free, held, Ordering::Acquire, Ordering::Relaxed).is_ok())
            .then(|| Guard { cell: self, held })
    }

    /// The lock, however long it takes: others hold it for a burst, some microseconds mostly, unless they lost their
    /// processor meanwhile.
    fn lock(&self) -> Guard<'_> {
        let mut spins = 0u32;
        loop {
            if let Some(guard) = self.try_lock() {
                return guard;
            }
            spins = spins.wrapping_add(1);
            relax(spins);
        }
    }

    /// The lock, unless others hold it for longer than a sender waits. Who comes while the same one holds it still does not
    /// wait at all.
    #[cold]
    #[inline(never)]
    fn lock_soon(&self) -> Option<Guard<'_>> {
        let (start, first) = (Instant::now(), self.lock.load(Ordering::Relaxed));
        let mut spins = 0u32;
        loop {
            let now = self.lock.load(Ordering::Relaxed);
            if now & 1 == 0 {
                if let Some(guard) = self.try_lock() {
                    return Some(guard);
                }
            } else if now == self.stuck.load(Ordering::Relaxed) {
                return None;
            }
            spins = spins.wrapping_add(1);
            relax(spins);
            if spins.is_multiple_of(64) && start.elapsed() > LONGEST_WAIT {
                if now == first {
                    self.stuck.store(now, Ordering::Relaxed);
                }
                return None;
            }
        }
    }

    fn refresh(&self, ring: &Option<Box<Ring>>) {
        let fault = ring.as_ref().and_then(|ring| ring.fault());
        self.fault.store(fault.map_or(0, RingFault::code), Ordering::Relaxed);
        let active = ring.is_some() && fault.is_none() && self.enabled.load(Ordering::Relaxed);
        self.active.store(active, Ordering::Release);
        self.generation.fetch_add(1, Ordering::Release);
    }

    // ---- the control thread -------------------------------------------------------------------------------------

    /// Puts a ring into service (if it is enabled, too). A ring that was there before is dropped.
    pub fn start(&self, ring: Ring) {
        let old = {
            let mut guard = self.lock();
            let old = guard.ring().replace(Box::new(ring));
            self.refresh(guard.ring());
            old
        };
        drop(old);
    }

    /// Takes the ring out. When this returns, no worker uses it and none will.
    pub fn stop(&self) -> Option<Ring> {
        let mut guard = self.lock();
        let ring = guard.ring().take();
        self.refresh(guard.ring());
        drop(guard);
        ring.map(|ring| *ring)
    }

    /// Lets the control thread change a started ring between two bursts. `change` must not block.
    pub fn control<R>(&self, change: impl FnOnce(&mut Ring) -> R) -> Option<R> {
        let mut guard = self.lock();
        let result = guard.ring().as_mut().map(|ring| change(ring));
        self.refresh(guard.ring());
        result
    }

    /// Where the started ring stands between two bursts (vhost-user: the answer to GET_VRING_BASE, without the stop).
    pub fn position(&self) -> Option<u32> {
        let mut guard = self.lock();
        guard.ring().as_ref().map(|ring| ring.base())
    }

    /// Whether the ring is enabled, started or not.
    pub fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Relaxed)
    }

    /// Lets a started ring log what it writes from now on, or no more.
    pub fn set_logging(&self, logging: Option<Logging>) {
        let mut guard = self.lock();
        let ring = guard.ring().take();
        *guard.ring() = ring.map(|ring| Box::new(ring.with_logging(logging)));
        self.refresh(guard.ring());
    }

    /// Enables or disables the ring (vhost-user: SET_VRING_ENABLE); once disabled no worker uses it.
    pub fn set_enabled(&self, enabled: bool) {
        let mut guard = self.lock();
        self.enabled.store(enabled, Ordering::Relaxed);
        self.refresh(guard.ring());
    }

    /// Whether the ring is started, enabled and not broken.
    #[inline]
    pub fn is_active(&self) -> bool {
        self.active.load(Ordering::Acquire)
    }

    /// Why the ring is broken, if it is.
    pub fn fault(&self) -> Option<RingFault> {
        RingFault::from_code(self.fault.load(Ordering::Relaxed))
    }

    // ---- workers ------------------------------------------------------------------------------------------------

    /// Fetches what the guest sent (up to a burst), lends it to `forward` if there is any, and gives the buffers back.
    /// A ring that another thread holds right now counts as empty.
    #[inline]
    pub fn serve(&self, burst: &mut Burst, forward: impl FnOnce(&mut Burst)) -> Served {
        if !self.is_active() {
            return Served::default();
        }
        let Some(mut guard) = self.try_lock() else { return Served::default() };
        // Stopped or disabled between the question and the lock.
        if !self.is_active() {
            return Served::default();
        }
        let Some(ring) = guard.ring() else { return Served::default() };
        let served = ring.fetch(burst);
        if !burst.is_empty() {
            burst.lend(forward);
        }
        ring.complete();
        if ring.fault().is_some() {
            self.broke(&mut guard);
        }
        served
    }

    /// Copies the frames of `mask` into the guest's buffers. If other workers send to this ring too, it waits for them, but
    /// not for long: a worker that lost its processor in the midst of a burst costs the others frames to this guest, and no
    /// time for those to all others.
    #[inline]
    pub fn deliver(&self, burst: &Burst, mask: u64) -> Delivered {
        let stopped = Delivered { stopped: mask, ..Delivered::default() };
        if !self.is_active() {
            return stopped;
        }
        let Some(mut guard) = self.try_lock().or_else(|| self.lock_soon()) else {
            return Delivered { busy: mask, ..Delivered::default() };
        };
        if !self.is_active() {
            return stopped;
        }
        let Some(ring) = guard.ring() else { return stopped };
        let delivered = ring.deliver(burst, mask);
        if ring.fault().is_some() {
            self.broke(&mut guard);
        }
        delivered
    }

    #[cold]
    fn broke(&self, guard: &mut Guard<'_>) {
        self.refresh(guard.ring());
        if let Some(ring) = guard.ring() {
            ring.report_fault();
        }
    }

    /// Asks the guest to kick (or not to) before a worker sleeps, and looks whether something came meanwhile.
    pub fn arm(&self) -> Armed {
        if !self.is_active() {
            return Armed::Idle;
        }
        let mut guard = self.lock();
        if !self.is_active() {
            return Armed::Idle;
        }
        let Some(ring) = guard.ring() else { return Armed::Idle };
        if ring.kick().is_none() {
            Armed::MustPoll
        } else if ring.arm() {
            Armed::Work
        } else {
            Armed::Kick
        }
    }

    /// Tells the guest not to kick any more: the worker polls again.
    pub fn disarm(&self) {
        if !self.is_active() {
            return;
        }
        let mut guard = self.lock();
        if let Some(ring) = guard.ring().as_mut().filter(|_| self.is_active()) {
            ring.disarm();
        }
    }

    /// A number that changes whenever [`RingCell::kick`] may have.
    #[inline]
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// The kick descriptor of the running ring, for a worker's epoll.
    pub fn kick(&self) -> Option<Arc<EventFd>> {
        let mut guard = self.lock();
        guard.ring().as_ref().and_then(|ring| ring.kick().cloned())
    }
}
