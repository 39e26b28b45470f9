//! Workers: threads that carry packets from port to port and do nothing else.
//!
//! One turn of the loop: for each receive queue of this worker, fetch a burst, classify it, place it at the ports it
//! leaves by, give the buffers back. A worker owns its scratch memory and its counters and shares nothing per packet.
#![forbid(unsafe_code)]

pub mod epoch;
pub mod generation;
mod hold;
#[cfg(test)]
mod modelled;
mod poll;
mod sleep;

use std::sync::Arc;
// The epochs take their atomics from here, so that their test can put others in their place.
use std::sync::atomic;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use arc_swap::ArcSwap;
use vhost_backend::frame::Burst;
use vmm_sys_util::eventfd::EventFd;

use crate::clock;
use crate::l3::bridged::Crossing;
use crate::l3::{Arrival, Stage};
use crate::members::{Verdict, interface_index};
use crate::packet::offload::Finisher;
use crate::pipeline::{Ingress, classify};
use crate::port::{Gone, Scratch};
use crate::stats::{Counter, Direction, Maximum};
use crate::tables::{Queues, Tables};
use epoch::Epochs;
use generation::{Adopted, Newest};
pub use hold::{AtomicMode, Held, Job, Mode};
use poll::Slot;
use sleep::Sleeper;

/// What all workers and the control thread share.
pub struct Shared {
    /// The newest snapshot.
    pub tables: ArcSwap<Tables>,
    /// Its number; workers look at this alone.
    pub newest: Newest,
    /// The tables' clock, in seconds; the control thread moves it.
    pub seconds: AtomicU32,
    /// What workers are to do.
    pub mode: AtomicMode,
    /// Never sleep.
    pub busy: bool,
    /// When memory of shared tables may be used again; each worker has the seat of its number.
    pub epochs: Arc<Epochs>,
}

/// What others may know and want of one worker. On cache lines of its own, in pairs as processors fetch them: the worker
/// writes its counters with each burst.
#[repr(align(128))]
pub struct Handle {
    /// Number, from 0.
    pub id: usize,
    /// Processor that it runs on.
    pub core: usize,
    /// Ends a sleep.
    pub wake: EventFd,
    /// The snapshot that the worker uses.
    pub adopted: Adopted,
    /// Frames received.
    pub packets: Counter,
    /// Polls that found frames.
    pub batches: Counter,
    /// Cycles of these polls, from fetching to giving back.
    pub busy_cycles: Counter,
    /// Most cycles from the beginning of one turn to that of the next, sleep left out: for so long a frame may have
    /// waited for others.
    pub longest_turn: Maximum,
    /// Most cycles that it took to take a snapshot over.
    pub longest_update: Maximum,
    /// What it does while it carries nothing.
    pub held: Held,
    /// The number of its thread; 0 before it runs.
    pub thread: AtomicI32,
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
    /// What `slots` was made of.
    queues: Queues,
    slots: Vec<Slot>,
    sleeper: Sleeper,
    burst: Burst,
    verdict: Verdict,
    stage: Stage,
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
            stage: Stage::new(handle.id),
            handle,
            shared,
            tables: Arc::default(),
            queues: Queues::default(),
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
        let mut last_start = last_work;
        self.shared.epochs.arrive(self.handle.id);
        loop {
            match self.shared.mode.get() {
                Mode::Run => {}
                Mode::Hold => {
                    self.hold();
                    last_work = clock::cycles();
                    last_start = last_work;
                    continue;
                }
                Mode::Stop => break,
            }
            if self.handle.adopted.differs(self.shared.newest.get()) {
                let before = clock::cycles();
                self.adopt();
                last_work = clock::cycles();
                self.handle.longest_update.raise(last_work.wrapping_sub(before));
            }
            if self.sleeper.is_untidy() {
                self.sleeper.tidy();
            }
            self.shared.epochs.quiesce(self.handle.id);
            let start = clock::cycles();
            self.handle.longest_turn.raise(start.wrapping_sub(last_start));
            last_start = start;
            if self.turn(start) {
                last_work = start;
            } else if !self.shared.busy && start.wrapping_sub(last_work) > idle_budget {
                self.sleep();
                last_work = clock::cycles();
                last_start = last_work;
            } else {
                std::hint::spin_loop();
            }
        }
        self.shared.epochs.leave(self.handle.id);
        // What this worker was the last to hold is freed after it has said goodbye.
        self.handle.adopted.note(u64::MAX);
    }

    /// Sleeps until there may be work.
    #[cold]
    fn sleep(&mut self) {
        let patience = self.stage.patience();
        self.shared.epochs.leave(self.handle.id);
        self.sleeper.sleep(&mut self.slots, patience);
        self.shared.epochs.arrive(self.handle.id);
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
            let Some(entry) = self.tables.port(slot.port.number()) else { continue };
            let key = slot.lane(before);
            let (bridge, guard) = (&entry.bridge, entry.guard.as_deref());
            let from = Ingress {
                port: slot.port.number(),
                fdb: &bridge.fdb,
                members: &bridge.members,
                guard,
                limit: slot.port.egress_limit(),
            };
            let counted = slot.port.rx_counters(id);
            let (tables, verdict, finisher) = (&self.tables, &mut self.verdict, &mut self.scratch.finisher);
            let stage = &mut self.stage;
            let received =
                slot.port.receive(slot.queue, id, &mut self.scratch.buffer, &mut self.burst, |burst| {
                    classify(burst, &from, now, counted, verdict);
                    while let Some((member, frames)) = verdict.take() {
                        if let Some(to) = tables.port(member) {
                            let mut frames = frames;
                            if bridge.filter
                                && let Some(router) = &tables.router
                            {
                                let (bridge, from) = (bridge.number, from.port);
                                let over = Crossing { router, bridge, from, to: member, now, counted };
                                frames = stage.filter(burst, frames, &over);
                            }
                            to.port.send(burst, frames, key, id, finisher);
                        } else if let Some(arrival) = arrival(tables, member, from.port, now, counted) {
                            stage.receive(burst, frames, &arrival);
                        }
                    }
                    while let Some((port, frames)) = stage.verdict.take() {
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
                    let cost = slot.port.queue_counters(slot.queue);
                    cost.packets.add(frames as u64);
                    cost.busy_cycles.add(after.wrapping_sub(before));
                    before = after;
                    worked = true;
                    if stage.is_crowded() {
                        flush(stage, tables, &mut self.burst, now, id, &mut self.scratch.finisher);
                    }
                }
                Err(Gone) => slot.retire(),
            }
        }
        worked | self.route(now)
    }

    /// What layer 3 has to do between two bursts; whether there was anything.
    #[inline]
    fn route(&mut self, now: u32) -> bool {
        let Some(router) = &self.tables.router else { return false };
        let (stage, id) = (&mut self.stage, self.handle.id);
        // Nobody sleeps over connections that are over.
        let mut worked = stage.age(router, now);
        if id == 0 {
            stage.take_injected(router);
            worked |= stage.take_announced(router, now);
        }
        if !stage.is_pending() {
            return worked;
        }
        worked | flush(stage, &self.tables, &mut self.burst, now, id, &mut self.scratch.finisher)
    }

    /// Takes over the newest snapshot. All that was fetched before has been sent.
    #[cold]
    fn adopt(&mut self) {
        let number = self.shared.newest.get();
        let tables = self.shared.tables.load_full();
        let queues = tables.queues.get(self.handle.id).cloned().unwrap_or_default();
        if !Arc::ptr_eq(&queues, &self.queues) {
            self.take_over(&tables, &queues);
            self.queues = queues;
        }
        self.tables = tables;
        self.handle.adopted.note(number);
    }

    /// Polls these queues from now on, in ascending order as before; those that stay keep their state.
    fn take_over(&mut self, tables: &Tables, queues: &Queues) {
        let old = std::mem::replace(&mut self.slots, Vec::with_capacity(queues.len()));
        let mut old = old.into_iter().peekable();
        // Lanes of this worker: its number, and every so many workers further.
        let (own, workers) = (self.handle.id, tables.queues.len());
        let (mut port, mut lane) = (None, own);
        for &id in queues.iter() {
            let Some(entry) = tables.port(id.port) else { continue };
            lane = if port == Some(id.port) { lane + workers } else { own };
            port = Some(id.port);
            while let Some(mut slot) = old.next_if(|slot| slot.id() < id) {
                self.sleeper.let_go(&mut slot);
            }
            let kept = old.next_if(|slot| slot.id() == id && Arc::ptr_eq(&slot.port, &entry.port));
            self.slots.push(match kept {
                Some(mut slot) => {
                    slot.belongs_in(lane as u16);
                    slot
                }
                None => Slot::new(entry.port.clone(), usize::from(id.queue), lane as u16),
            });
        }
        for mut slot in old {
            self.sleeper.let_go(&mut slot);
        }
    }
}

/// Sends what layer 3 has made between two bursts; whether there was anything.
#[cold]
fn flush(
    stage: &mut Stage,
    tables: &Tables,
    burst: &mut Burst,
    now: u32,
    id: usize,
    finisher: &mut Finisher,
) -> bool {
    let Some(router) = &tables.router else { return false };
    let counted = |port| tables.port(port).map(|entry| entry.port.rx_counters(id));
    stage.flush(router, burst, now, counted, |burst, port, frames| {
        if let Some(to) = tables.port(port) {
            to.port.send(burst, frames, id, id, finisher);
        }
    })
}

/// What layer 3 must know of frames that go to an interface; `None` if the member is none.
#[inline]
fn arrival<'a>(
    tables: &'a Tables,
    member: u16,
    port: u16,
    now: u32,
    counted: &'a Direction,
) -> Option<Arrival<'a>> {
    let router = tables.router.as_ref()?;
    let interface = router.interface(interface_index(member)?)?;
    Some(Arrival { router, interface, port, now, counted })
}
