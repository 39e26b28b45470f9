//! The workers as the control thread has them: where they run, what they did, which queues they are to have.
#![forbid(unsafe_code)]

use std::sync::Arc;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
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
        });
        let (ready, started) = std::sync::mpsc::sync_channel(1);
        let (worker_handle, shared) = (handle.clone(), self.shared.clone());
        let thread = std::thread::Builder::new()
            .name(format!("shunt-w{id}"))
            .spawn(move || {
                // Made on its own thread and core, so that its memory is near it. Raw pointers in it never travel.
                let made = pin(core).and_then(|()| Worker::new(worker_handle, shared));
                match made {
                    Ok(worker) => {
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
        let Ok(mut set) = sched_getaffinity(Pid::from_raw(0)) else { return };
        for worker in &self.workers {
            let _ = set.unset(worker.core);
        }
        if (0..CpuSet::count()).any(|core| set.is_set(core).unwrap_or(false)) {
            // What cannot be changed is as it was.
            let _ = sched_setaffinity(Pid::from_raw(0), &set);
        }
    }

    /// The cores that this process may use, before it stepped aside.
    pub(crate) fn cores(&self) -> nix::Result<CpuSet> {
        let mut set = sched_getaffinity(Pid::from_raw(0))?;
        for worker in &self.workers {
            set.set(worker.core)?;
        }
        Ok(set)
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

fn pin(core: usize) -> std::io::Result<()> {
    let mut set = CpuSet::new();
    set.set(core)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// The processors that the workers run on, one each. A number of workers takes the highest that this process may use:
/// the lowest are where systems put everything else.
pub(super) fn choose_cores(workers: &Workers) -> Result<Vec<usize>, Refusal> {
    let set = sched_getaffinity(Pid::from_raw(0))
        .map_err(|error| Refusal::new(format!("cannot learn which cores may be used: {error}")))?;
    let allowed: Vec<usize> =
        (0..CpuSet::count()).filter(|&core| set.is_set(core).unwrap_or(false)).collect();
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
