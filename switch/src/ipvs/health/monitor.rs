//! The thread that asks: a task for each server, each at its own moments, so that a thousand servers are not asked at
//! once. What they answer is left where the control thread looks.
#![forbid(unsafe_code)]

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval_at};

use super::probe;
use super::spec::CheckSpec;

/// Servers that are asked at the same moment.
const AT_ONCE: usize = 256;

/// What is called when a verdict changes.
pub(super) type Changed = Arc<dyn Fn() + Send + Sync>;

/// What is known of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// It is good; every server is taken for good until it fails.
    pub up: bool,
    /// Checks in a row that say the contrary.
    pub contrary: u32,
    /// What was wrong at the last check.
    pub error: Option<String>,
    /// Checks so far.
    pub checks: u64,
    /// Those that failed.
    pub failures: u64,
    /// When it last changed.
    pub since: Instant,
    /// How long the last check took.
    pub took: Duration,
}

impl Verdict {
    fn new() -> Self {
        Self {
            up: true,
            contrary: 0,
            error: None,
            checks: 0,
            failures: 0,
            since: Instant::now(),
            took: Duration::ZERO,
        }
    }

    /// Takes the outcome of a check; whether that changed the verdict.
    fn note(&mut self, check: &CheckSpec, outcome: Result<(), String>, took: Duration) -> bool {
        let good = outcome.is_ok();
        self.checks += 1;
        self.failures += u64::from(!good);
        self.error = outcome.err();
        self.took = took;
        if good == self.up {
            self.contrary = 0;
            return false;
        }
        self.contrary += 1;
        let enough = if good { check.rise } else { check.fall };
        if self.contrary < enough {
            return false;
        }
        self.up = good;
        self.contrary = 0;
        self.since = Instant::now();
        true
    }
}

/// A server that is asked, until this is dropped.
pub(super) struct Watched {
    verdict: Arc<Mutex<Verdict>>,
    _until: oneshot::Sender<()>,
}

impl Watched {
    /// It had failed before it was asked here.
    pub(super) fn take_for_failed(&self) {
        let mut verdict = lock(&self.verdict);
        verdict.up = false;
        verdict.error = Some("it had failed before the restart".to_owned());
    }

    /// What is known of it.
    pub(super) fn verdict(&self) -> Verdict {
        lock(&self.verdict).clone()
    }
}

fn lock(verdict: &Mutex<Verdict>) -> MutexGuard<'_, Verdict> {
    verdict.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A server to ask.
struct Job {
    check: Arc<CheckSpec>,
    address: SocketAddr,
    verdict: Arc<Mutex<Verdict>>,
    until: oneshot::Receiver<()>,
}

/// The thread. It ends when this is dropped.
pub(super) struct Monitor {
    jobs: Option<mpsc::UnboundedSender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Monitor {
    /// Starts the thread; `changed` is called in it when a verdict changes.
    ///
    /// # Errors
    /// The system has no thread, or no descriptors, to spare.
    pub(super) fn start(changed: Changed) -> std::io::Result<Self> {
        let (jobs, mut wanted) = mpsc::unbounded_channel::<Job>();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name("ipvs-health".into()).spawn(move || {
            runtime.block_on(async move {
                let gate = Arc::new(Semaphore::new(AT_ONCE));
                while let Some(job) = wanted.recv().await {
                    tokio::spawn(watch(job, gate.clone(), changed.clone()));
                }
            });
            // What is still under way ends with the runtime.
        })?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Begins to ask a server.
    pub(super) fn watch(&self, check: Arc<CheckSpec>, address: SocketAddr) -> Watched {
        let verdict = Arc::new(Mutex::new(Verdict::new()));
        let (alive, until) = oneshot::channel();
        if let Some(jobs) = &self.jobs {
            // The thread lives as long as this.
            let _ = jobs.send(Job { check, address, verdict: verdict.clone(), until });
        }
        Watched { verdict, _until: alive }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Asks one server until nobody wants to know.
async fn watch(job: Job, gate: Arc<Semaphore>, changed: Changed) {
    let Job { check, address, verdict, until } = job;
    let asking = async {
        let mut hasher = DefaultHasher::new();
        address.hash(&mut hasher);
        let phase = hasher.finish() % check.interval.as_millis().max(1) as u64;
        let first = tokio::time::Instant::now() + Duration::from_millis(phase);
        let mut moments = interval_at(first, check.interval);
        moments.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            moments.tick().await;
            let Ok(_place) = gate.acquire().await else { return };
            let began = Instant::now();
            let outcome = probe::ask(&check, address).await;
            if lock(&verdict).note(&check, outcome, began.elapsed()) {
                changed();
            }
        }
    };
    tokio::select! {
        _ = until => {}
        () = asking => {}
    }
}

#[cfg(test)]
mod tests {
    use super::super::spec::Probe;
    use super::*;
    use crate::ipvs::spec::ServiceKey;

    #[test]
    fn verdicts_change_after_so_many_checks_in_a_row() {
        let check = CheckSpec {
            service: ServiceKey::Mark { mark: 1, v6: false },
            probe: Probe::Tcp,
            port: None,
            device: None,
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            rise: 2,
            fall: 3,
        };
        let mut verdict = Verdict::new();
        let mut note = |good: bool| {
            let outcome = if good { Ok(()) } else { Err("silent".to_owned()) };
            let changed = verdict.note(&check, outcome, Duration::ZERO);
            (changed, verdict.up)
        };
        // Two bad ones are forgiven by a good one.
        for good in [true, false, false, true, false, false] {
            assert_eq!(note(good), (false, true));
        }
        assert_eq!(note(false), (true, false));
        assert_eq!((note(true), note(false), note(true)), ((false, false), (false, false), (false, false)));
        assert_eq!(note(true), (true, true));
        assert_eq!((verdict.checks, verdict.failures, verdict.error), (11, 6, None));
    }
}
