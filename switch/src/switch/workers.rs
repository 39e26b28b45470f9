//! The workers as the control thread has them: where they run, what they did, which queues they are to have.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::{Pid, gettid};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::Switch;
use crate::clock;
use crate::config::Workers;
use crate::refusal::Refusal;
use crate::stats::{Counter, Maximum};
use crate::worker::generation::Adopted;
use crate::worker::{Handle, Held, Worker};

/// What a worker had counted when its counters were last reset.
#[derive(Clone, Copy)]
pub(crate) struct Baseline {
    pub(crate) packets: u64,
    pub(crate) batches: u64,
    pub(crate) busy_cycles: u64,
    pub(crate) cycles: u64,
}

impl Switch {
    pub(super) fn start_worker(&mut self, id: usize, core: usize) -> Result<(), Refusal> {
        let refuse =
            |error: std::io::Error| Refusal::new(format!("cannot start worker {id} on core {core}: {error}"));
        let handle = Arc::new(Handle {
            id,
            core,
            wake: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(refuse)?,
            adopted: Adopted::default(),
            packets: Counter::default(),
            batches: Counter::default(),
            busy_cycles: Counter::default(),
            longest_turn: Maximum::default(),
            longest_update: Maximum::default(),
            held: Held::default(),
            thread: AtomicI32::new(0),
        });
        let (ready, started) = std::sync::mpsc::sync_channel(1);
        let (worker_handle, shared) = (handle.clone(), self.shared.clone());
        // What it does while it stands still is not to take time from another process' worker on this core.
        let aside = self.handed.as_ref().and_then(|_| without(&self.cores));
        let thread = std::thread::Builder::new()
            .name(format!("shunt-w{id}"))
            .spawn(move || {
                // Made on its own thread and core, so that its memory is near it. Raw pointers in it never travel.
                worker_handle.thread.store(gettid().as_raw(), Ordering::Relaxed);
                let made = pin(0, core).and_then(|()| Worker::new(worker_handle, shared));
                match made {
                    Ok(worker) => {
                        let _ = aside.map(|aside| sched_setaffinity(Pid::from_raw(0), &aside));
                        let _ = ready.send(Ok(()));
                        worker.run();
                    }
                    Err(error) => {
                        let _ = ready.send(Err(error));
                    }
                }
            })
            .map_err(refuse)?;
        self.threads.push(thread);
        self.workers.push(handle);
        match started.recv() {
            Ok(result) => result.map_err(refuse),
            Err(_) => Err(Refusal::new(format!("worker {id} ended before it began"))),
        }
    }

    /// The number of the worker on a processor.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn worker_on(&self, core: u32) -> Result<usize, Refusal> {
        self.workers.iter().position(|worker| worker.core == core as usize).ok_or_else(|| {
            let cores = self.workers.iter().map(|w| w.core.to_string()).collect::<Vec<_>>().join(", ");
            Refusal::new(format!(
                "no worker runs on core {core}: workers run on {cores} (shuntd --cores chooses)"
            ))
        })
    }

    /// Keeps the calling thread, and those that it makes from now on, off the workers' cores if there are others: a worker
    /// that loses its core to a port's control thread keeps everybody waiting for milliseconds.
    pub fn step_aside(&self) {
        if let Some(aside) = without(&self.cores) {
            self.aside.set(Some(aside));
            self.step_back();
        }
    }

    /// Has the calling thread run where the workers do, who stand still, and nowhere else: whoever uses the other cores
    /// need not be waited for. Nothing happens if it has stepped aside nowhere.
    pub(crate) fn use_workers_cores(&self) {
        if self.aside.get().is_some() {
            let mut set = CpuSet::new();
            for &core in &self.cores {
                let _ = set.set(core);
            }
            let _ = sched_setaffinity(Pid::from_raw(0), &set);
        }
    }

    /// Has the calling thread run where it did before [`Switch::use_workers_cores`].
    pub(crate) fn step_back(&self) {
        if let Some(aside) = self.aside.get() {
            // What cannot be changed is as it was.
            let _ = sched_setaffinity(Pid::from_raw(0), &aside);
        }
    }

    /// Puts the workers, who stand still, on their cores.
    pub(crate) fn place_workers(&self) {
        for worker in &self.workers {
            let placed = pin(worker.thread.load(Ordering::Relaxed), worker.core);
            if let Err(error) = placed {
                tracing::error!("worker {} is not on core {}: {error}", worker.id, worker.core);
            }
        }
    }

    /// Has the workers, who stand still and will carry nothing any more, end on other cores: it takes a while.
    pub(crate) fn displace_workers(&self) {
        if let Some(aside) = self.aside.get() {
            for worker in &self.workers {
                let _ = sched_setaffinity(Pid::from_raw(worker.thread.load(Ordering::Relaxed)), &aside);
            }
        }
    }

    /// The cores that this process may use, before it stepped aside.
    pub(crate) fn cores(&self) -> nix::Result<Vec<usize>> {
        let mut cores = allowed_cores()?;
        cores.extend(&self.cores);
        cores.sort_unstable();
        cores.dedup();
        Ok(cores)
    }

    /// Lets the counters of `worker list` begin anew.
    pub fn reset_workers(&mut self) {
        let cycles = clock::cycles();
        for worker in &self.workers {
            worker.longest_turn.reset();
            worker.longest_update.reset();
        }
        self.baselines = self
            .workers
            .iter()
            .map(|worker| Baseline {
                packets: worker.packets.get(),
                batches: worker.batches.get(),
                busy_cycles: worker.busy_cycles.get(),
                cycles,
            })
            .collect();
    }
}

/// Has a thread (0: the calling one) run on this core.
fn pin(thread: i32, core: usize) -> std::io::Result<()> {
    let mut set = CpuSet::new();
    set.set(core)?;
    Ok(sched_setaffinity(Pid::from_raw(thread), &set)?)
}

/// Where the calling thread may run, without these cores; none if nothing is left.
fn without(cores: &[usize]) -> Option<CpuSet> {
    let mut set = sched_getaffinity(Pid::from_raw(0)).ok()?;
    for &core in cores {
        let _ = set.unset(core);
    }
    (0..CpuSet::count()).any(|core| set.is_set(core).unwrap_or(false)).then_some(set)
}

/// The cores that the calling thread may use, in ascending order.
pub(super) fn allowed_cores() -> nix::Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0))?;
    Ok((0..CpuSet::count()).filter(|&core| set.is_set(core).unwrap_or(false)).collect())
}

/// The processors that the workers run on, one each. A number of workers takes the highest that this process may use:
/// the lowest are where systems put everything else.
pub(super) fn choose_cores(workers: &Workers, allowed: &[usize]) -> Result<Vec<usize>, Refusal> {
    let list = || allowed.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
    match workers {
        Workers::Count(count) if *count > allowed.len() => Err(Refusal::new(format!(
            "workers {count} is more than the {} cores that this process may use ({}): each needs a core of its own",
            allowed.len(),
            list()
        ))),
        Workers::Count(count) => Ok(allowed.iter().rev().take(*count).rev().copied().collect()),
        Workers::Cores(cores) => match cores.iter().find(|core| !allowed.contains(core)) {
            Some(core) => Err(Refusal::new(format!(
                "core {core} does not exist or may not be used: allowed are {}",
                list()
            ))),
            None => Ok(cores.clone()),
        },
    }
}
