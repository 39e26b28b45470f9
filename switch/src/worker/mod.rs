//! Workers: threads that carry packets from port to port and do nothing else.
//!
//! One turn of the loop: for each receive queue of this worker, fetch a burst, classify it, place it at the ports it
//! leaves by, give the buffers back. A worker owns its scratch memory and its counters and shares nothing per packet.
#![forbid(unsafe_code)]

pub mod epoch;
mod poll;
mod sleep;

use std::sync::Arc;
// The epochs take their atomics from here, so that their test can put others in their place.
use std::sync::atomic;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use vhost_backend::frame::Burst;
use vmm_sys_util::eventfd::EventFd;

use crate::clock;
use crate::pipeline::{Ingress, Verdict, classify};
use crate::port::{Gone, Scratch};
use crate::stats::Counter;
use crate::tables::Tables;
use poll::Slot;
use sleep::Sleeper;

/// What all workers and the control thread share.
pub struct Shared {
    /// The newest snapshot.
    pub tables: ArcSwap<Tables>,
    /// Its number; workers look at this alone.
    pub generation: AtomicU64,
    /// The tables' clock, in seconds; the control thread moves it.
    pub seconds: AtomicU32,
    /// Set once, at the end.
    pub stop: AtomicBool,
    /// Never sleep.
    pub busy: bool,
}

/// What others may know and want of one worker.
pub struct Handle {
    /// Number, from 0.
    pub id: usize,
    /// Processor that it runs on.
    pub core: usize,
    /// Ends a sleep.
    pub wake: EventFd,
    /// The snapshot that the worker uses.
    pub adopted: AtomicU64,
    /// Frames received.
    pub packets: Counter,
    /// Polls that found frames.
    pub batches: Counter,
    /// Cycles of these polls, from fetching to giving back.
    pub busy_cycles: Counter,
}

impl Handle {
    /// Makes the worker look at its queues and at the snapshot.
    pub fn wake(&self) {
        // A full counter (never in practice) means that it is awake already.
        let _ = self.wake.write(1);
    }
}

/// A worker's own state.
pub struct Worker {
    handle: Arc<Handle>,
    shared: Arc<Shared>,
    tables: Arc<Tables>,
    slots: Vec<Slot>,
    sleeper: Sleeper,
    burst: Burst,
    verdict: Verdict,
    scratch: Scratch,
}

impl Worker {
    /// A worker that is ready to [`Worker::run`] on a thread of its own.
    ///
    /// # Errors
    /// No epoll descriptor is to be had.
    pub fn new(handle: Arc<Handle>, shared: Arc<Shared>) -> std::io::Result<Self> {
        Ok(Self {
            sleeper: Sleeper::new(&handle.wake)?,
            handle,
            shared,
            tables: Arc::default(),
            slots: Vec::new(),
            burst: Burst::new(),
            verdict: Verdict::default(),
            scratch: Scratch::default(),
        })
    }

    /// Carries packets until the switch stops.
    pub fn run(mut self) {
        // How long a worker looks before it sleeps: a sleep and its end cost some microseconds themselves.
        let idle_budget = 50 * clock::cycles_per_us();
        let mut last_work = clock::cycles();
        while !self.shared.stop.load(Ordering::Relaxed) {
            if self.shared.generation.load(Ordering::Acquire) != self.handle.adopted.load(Ordering::Relaxed) {
                self.adopt();
                last_work = clock::cycles();
            }
            let start = clock::cycles();
            if self.turn(start) {
                last_work = start;
            } else if !self.shared.busy && start.wrapping_sub(last_work) > idle_budget {
                self.sleeper.sleep(&mut self.slots);
                last_work = clock::cycles();
            } else {
                std::hint::spin_loop();
            }
        }
        // What this worker was the last to hold is freed after it has said goodbye.
        self.handle.adopted.store(u64::MAX, Ordering::Release);
    }

    /// Polls each queue once that is due; whether any had frames.
    fn turn(&mut self, start: u64) -> bool {
        let now = self.shared.seconds.load(Ordering::Relaxed);
        let id = self.handle.id;
        let mut worked = false;
        let mut before = start;
        for slot in &mut self.slots {
            if !slot.due(before) {
                continue;
            }
            let from =
                Ingress { port: slot.port.number(), fdb: &slot.bridge.fdb, members: &slot.bridge.members };
            let counted = slot.port.rx_counters(id);
            let (tables, verdict, finisher) = (&self.tables, &mut self.verdict, &mut self.scratch.finisher);
            let key = slot.queue + id;
            let received =
                slot.port.receive(slot.queue, id, &mut self.scratch.buffer, &mut self.burst, |burst| {
                    classify(burst, &from, now, counted, verdict);
                    while let Some((port, frames)) = verdict.take() {
                        if let Some(to) = tables.port(port) {
                            to.port.send(burst, frames, key, id, finisher);
                        }
                    }
                });
            match received {
                Ok(0) => slot.found_nothing(before),
                Ok(frames) => {
                    let after = clock::cycles();
                    slot.found_work(after);
                    self.handle.packets.add(frames as u64);
                    self.handle.batches.add(1);
                    self.handle.busy_cycles.add(after.wrapping_sub(before));
                    before = after;
                    worked = true;
                }
                Err(Gone) => slot.retire(),
            }
        }
        worked
    }

    /// Takes over the newest snapshot: queues that stay keep their state.
    #[cold]
    fn adopt(&mut self) {
        let generation = self.shared.generation.load(Ordering::Acquire);
        let tables = self.shared.tables.load_full();
        let mut old = std::mem::take(&mut self.slots);
        let mine = tables.queues.get(self.handle.id).map(Vec::as_slice).unwrap_or_default();
        for &id in mine {
            let Some(entry) = tables.port(id.port) else { continue };
            let queue = usize::from(id.queue);
            let kept =
                old.iter().position(|slot| Arc::ptr_eq(&slot.port, &entry.port) && slot.queue == queue);
            let mut slot = match kept {
                Some(at) => old.swap_remove(at),
                None => Slot::new(entry.port.clone(), entry.bridge.clone(), queue),
            };
            slot.bridge = entry.bridge.clone();
            self.slots.push(slot);
        }
        for slot in &mut old {
            self.sleeper.forget(slot);
        }
        drop(old);
        self.tables = tables;
        self.handle.adopted.store(generation, Ordering::Release);
    }
}
