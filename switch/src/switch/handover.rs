//! A switch that another process goes on with, and one that goes on in another process' place.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use vhost_backend::handover::Descriptors;

use super::Switch;
use crate::clock;
use crate::config::Name;
use crate::handover::message;
use crate::handover::port;
use crate::port::Port;
use crate::refusal::Refusal;
use crate::worker::{Handle, Mode};

/// A worker that does not come to a halt for so long does not.
const HALT: Duration = Duration::from_millis(500);

impl Switch {
    /// Has all workers stand still; they carry nothing when this returns.
    ///
    /// # Errors
    /// One of them does not come to a halt; all go on then.
    pub(crate) fn hold_workers(&self) -> Result<(), Refusal> {
        self.shared.mode.set(Mode::Hold);
        self.workers.iter().for_each(|worker| worker.wake());
        let deadline = Instant::now() + HALT;
        for worker in &self.workers {
            while !worker.held.is_still() {
                if Instant::now() > deadline {
                    self.let_workers_go();
                    return Err(Refusal::new(format!("worker {} does not come to a halt", worker.id)));
                }
                std::thread::sleep(Duration::from_micros(10));
            }
        }
        Ok(())
    }

    /// Lets the workers go on.
    pub(crate) fn let_workers_go(&self) {
        self.shared.mode.set(Mode::Run);
        self.workers.iter().for_each(|worker| worker.wake());
    }

    /// When all workers carried packets again, by the system's monotonic clock; now if one does not begin.
    pub(crate) fn workers_went_on(&self) -> Duration {
        let deadline = Instant::now() + HALT;
        let went_on = |worker: &Arc<Handle>| loop {
            match worker.held.went_on() {
                // One that never stood still goes on from the beginning.
                Some(at) if at.is_zero() => return clock::monotonic(),
                Some(at) => return at,
                None if Instant::now() > deadline => return clock::monotonic(),
                None => std::thread::sleep(Duration::from_micros(10)),
            }
        };
        self.workers.iter().map(went_on).max().unwrap_or_default()
    }

    /// Interfaces that are up: of a switch that goes on in another's place, those that were up there.
    pub(crate) fn interfaces_up(&self) -> BTreeSet<Name> {
        let names = self.router.interfaces.keys().copied();
        match &self.handed {
            Some(handed) => names.filter(|name| handed.numbers.up.contains(name)).collect(),
            None => names.filter(|name| self.is_up(*name)).collect(),
        }
    }

    /// A port has changed since it was handed over.
    pub(crate) fn replace_port(
        &mut self,
        changed: &message::Port,
        descriptors: &mut Descriptors,
    ) -> Result<(), Refusal> {
        let spec = self.find_port(changed.name.as_str())?.spec.clone();
        let (attachment, mtu) = port::resume(&spec, &changed.state, descriptors, self.changed())?;
        let workers = self.workers.len();
        if let Some(member) = self.ports.get_mut(&changed.name) {
            let port = Port::new(member.port.number(), attachment, mtu, workers);
            port.set_limits(&spec.limits);
            member.port = Arc::new(port);
        }
        // Workers stand still: the snapshot need not be right before they begin.
        self.stale = true;
        Ok(())
    }

    /// Gives workers the snapshot with which they are to begin.
    pub(crate) fn publish_handed(&mut self) {
        if std::mem::take(&mut self.stale) {
            self.publish();
        }
    }

    /// Everything that was handed over is ours from now on, and workers begin. `lap` hears what has been done.
    pub fn go_on(&mut self, mut lap: impl FnMut(&'static str)) {
        for member in self.ports.values() {
            port::start(member.port.attachment());
        }
        lap("rings");
        self.shared.seconds.store(clock::seconds(), Ordering::Relaxed);
        self.let_workers_go();
        // They need this core now.
        self.step_back();
        lap("workers");
        // Afterwards, since each wakes a thread, and nobody waits for those.
        for member in self.ports.values() {
            port::own(member.port.attachment());
        }
        lap("the rest");
        self.handed = None;
        self.router.handed.clear();
        // What is up now may differ from what was.
        self.changes().notify_one();
    }
}
