#![forbid(unsafe_code)]
//! The switches that are measured side by side: shunt, Open vSwitch with DPDK, and testpmd's vhost forwarding.
//!
//! Each is started by hand with everything of its own (sockets, database, run directory) below a scratch directory,
//! bound to the switch's core, and stopped (SIGSTOP) whenever it is not its turn, so that candidates can alternate
//! within seconds. Whatever happens, the kernel ends them when the benchmark ends.

pub mod layer3;
mod ovs;
mod shunt;
mod testpmd;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use shunt_tests::poll_for;
use shunt_tests::process::{Process, run};

pub use shunt::{Control, Shunt};
pub use testpmd::{Flowgen, TestpmdGuests, available as testpmd_available};

/// Where and how candidates run.
#[derive(Clone, Debug)]
pub struct Site {
    /// Everything that is written lies below.
    pub scratch: PathBuf,
    /// Core of the switch.
    pub switch_core: usize,
    /// Core of guests and of everything that is not the packet path.
    pub guest_core: usize,
    /// Whether 2 MiB pages are there for DPDK.
    pub hugepages: bool,
    /// Directory of `shuntd`.
    pub programs: PathBuf,
    /// Whether polling threads run as SCHED_FIFO.
    pub realtime: bool,
}

/// What a candidate shall connect.
#[derive(Clone, Debug)]
pub struct Wiring {
    /// vhost-user ports.
    pub sockets: usize,
    /// TAP devices to make: name and network namespace.
    pub taps: Vec<(String, String)>,
    /// Queue pairs of each port.
    pub queues: u16,
    /// Whether segmentation offload is wanted, where it is off by default.
    pub tso: bool,
    /// Whether shunt's workers never sleep.
    pub busy: bool,
    /// What is done with packets between the first two ports.
    pub task: Task,
}

/// What a candidate does with IPv4 packets between two ports; addresses are those of [`layer3`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Both are on one bridge.
    Bridge,
    /// Each is on a network of its own.
    Route {
        /// Routes in the table, beside those that are needed.
        routes: u32,
    },
    /// The same, and what leaves the inner network gets the address [`layer3::TRANSLATED`].
    Snat {
        /// Connections for which there is room.
        limit: u32,
    },
    /// The same without translation of sources; virtual UDP services ([`layer3::service`]), whose masqueraded servers
    /// are in the outer network ([`layer3::server`]).
    Balance {
        /// How many.
        services: u32,
        /// Servers of each.
        servers: u32,
        /// Who chooses, as IPVS calls it.
        scheduler: &'static str,
        /// Connections for which there is room.
        limit: u32,
    },
}

impl Wiring {
    /// Two vhost-user ports with `queues` queue pairs, workers that never sleep.
    pub fn pair(queues: u16) -> Self {
        Self { sockets: 2, taps: Vec::new(), queues, tso: false, busy: true, task: Task::Bridge }
    }

    /// Two vhost-user ports with one queue pair and a router between them.
    pub fn layer3(task: Task) -> Self {
        Self { task, ..Self::pair(1) }
    }
}

/// A running candidate.
pub trait Candidate {
    /// Sockets of its vhost-user ports.
    fn sockets(&self) -> &[PathBuf];
    /// Whether the guests make the sockets, and the candidate connects.
    fn guests_listen(&self) -> bool {
        false
    }
    /// The process with the packet path.
    fn process(&mut self) -> &mut Process;
    /// Starts its counters at zero.
    fn reset(&mut self) -> Result<()>;
    /// Cycles of polls that found something, for each packet, by its own counters since the reset.
    fn busy_cycles(&mut self) -> Result<Option<f64>>;
    /// Its control connection, if it is shunt.
    fn control(&mut self) -> Option<&mut Control> {
        None
    }
    /// Everything that it says of itself, for the record.
    fn report(&mut self) -> String {
        String::new()
    }
}

/// The kinds of candidates, in the order of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// shunt itself.
    Shunt,
    /// Open vSwitch with DPDK, NORMAL action.
    Ovs,
    /// testpmd with net_vhost devices, io forwarding: no switching at all.
    Testpmd,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Shunt, Self::Ovs, Self::Testpmd];

    /// Short name in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Shunt => "shunt",
            Self::Ovs => "ovs-dpdk",
            Self::Testpmd => "testpmd-io",
        }
    }

    /// Why it cannot run here, if it cannot.
    pub fn missing(self, site: &Site) -> Option<String> {
        match self {
            Self::Shunt => shunt::missing(site),
            Self::Ovs => ovs::missing(),
            Self::Testpmd => testpmd::missing(),
        }
    }

    /// Starts it and waits until its ports are there.
    pub fn launch(self, site: &Site, wiring: &Wiring) -> Result<Running> {
        let serial = SERIAL.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let dir = site.scratch.join(format!("{}-{serial}", self.name()));
        std::fs::create_dir_all(&dir)?;
        let inner: Box<dyn Candidate> = match self {
            Self::Shunt => Box::new(shunt::Shunt::launch(site, &dir, wiring)?),
            Self::Ovs => Box::new(ovs::Ovs::launch(site, &dir, wiring)?),
            Self::Testpmd => Box::new(testpmd::Forwarder::launch(site, &dir, wiring)?),
        };
        Ok(Running { kind: self, name: self.name(), guests: 0, inner, site: site.clone() })
    }
}

static SERIAL: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);

/// A candidate that runs or is stopped.
pub struct Running {
    /// What it is.
    pub kind: Kind,
    name: &'static str,
    /// Feature bits that guests ask for on it, beside those of the traffic.
    pub guests: u64,
    inner: Box<dyn Candidate>,
    site: Site,
}

impl Running {
    /// Its name in the results.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Gives it another name: two of a kind are compared.
    pub fn rename(&mut self, name: &'static str) {
        self.name = name;
    }

    /// Sockets of its vhost-user ports.
    pub fn sockets(&self) -> &[PathBuf] {
        self.inner.sockets()
    }

    /// Whether the guests make the sockets, and the candidate connects.
    pub fn guests_listen(&self) -> bool {
        self.inner.guests_listen()
    }

    /// Counters at zero.
    pub fn reset(&mut self) -> Result<()> {
        self.inner.reset().with_context(|| self.words())
    }

    /// Busy cycles a packet since the reset.
    pub fn busy_cycles(&mut self) -> Result<Option<f64>> {
        self.inner.busy_cycles().with_context(|| self.words())
    }

    /// shunt's control connection.
    pub fn control(&mut self) -> Option<&mut Control> {
        self.inner.control()
    }

    /// Process id.
    pub fn pid(&mut self) -> u32 {
        self.inner.process().pid()
    }

    /// What it says of itself.
    pub fn report(&mut self) -> String {
        self.inner.report()
    }

    fn words(&self) -> String {
        format!("{} does not answer", self.kind.name())
    }

    /// Not its turn.
    pub fn pause(&mut self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Its turn.
    pub fn resume(&mut self) -> Result<()> {
        self.signal(Signal::SIGCONT)?;
        if self.site.realtime {
            promote(self.inner.process().pid(), self.site.switch_core)?;
        }
        Ok(())
    }

    fn signal(&mut self, signal: Signal) -> Result<()> {
        let process = self.inner.process();
        if !process.alive() {
            bail!("{} has ended:\n{}", self.kind.name(), process.tail(20));
        }
        kill(Pid::from_raw(process.pid().cast_signed()), signal)?;
        Ok(())
    }
}

/// How the names of polling threads begin: shunt's, Open vSwitch's, DPDK's.
const POLLERS: [&str; 4] = ["shunt", "pmd-", "rte-worker", "lcore-worker"];

/// Gives the threads of `pid` that are bound to `core` alone the scheduling class FIFO: other work on the machine
/// then costs them next to nothing.
pub fn promote(pid: u32, core: usize) -> Result<()> {
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let path = task?.path();
        let status = std::fs::read_to_string(path.join("status")).unwrap_or_default();
        let bound =
            status.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:")).unwrap_or_default().trim();
        if bound == core.to_string() {
            let tid = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            // DPDK leaves control threads on the same core: without a higher priority they would wait for ever.
            let name = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
            let polls = POLLERS.iter().any(|prefix| name.starts_with(prefix));
            run(&["chrt", "-f", "-p", if polls { "1" } else { "2" }, &tid]).map_err(anyhow::Error::msg)?;
        }
    }
    Ok(())
}

/// Whether a program is in PATH or at that path.
pub(crate) fn program(name: &str) -> bool {
    if name.contains('/') {
        return Path::new(name).exists();
    }
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    path.split(':').any(|dir| Path::new(dir).join(name).exists())
}

/// Waits for a condition of a starting process.
fn await_start<T>(
    what: &str,
    process: &mut Process,
    limit: Duration,
    mut probe: impl FnMut(&mut Process) -> Option<T>,
) -> Result<T> {
    let mut ended = false;
    let found = poll_for(limit, || {
        ended = !process.alive();
        if ended { Some(None) } else { probe(process).map(Some) }
    });
    match found.flatten() {
        Some(found) => Ok(found),
        None if ended => bail!("it ended instead of starting ({what}):\n{}", process.tail(20)),
        None => bail!("waited {} s in vain: {what}\n{}", limit.as_secs(), process.tail(20)),
    }
}
