#![forbid(unsafe_code)]
//! The benchmark: candidates side by side in one run, their measurements interleaved.
//!
//! A machine's speed wavers by the second, so each round measures every candidate within a few seconds, and what is
//! compared is the best and the median of the rounds. See docs/performance.md for the method.

mod changes;
mod config;
mod connections;
mod guests;
mod hotplug;
mod idle;
mod layer3;
mod machine;
mod plan;
mod plot;
mod report;
mod rules;
mod table;
mod takeover;
mod tap;
mod testpmd;
mod vhost;
mod workers;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

pub use changes::Changes;
pub use config::Applied;
pub use connections::Connections;
pub use hotplug::Hotplug;
pub use idle::Idle;
pub use machine::{Guardian, Machine};
pub use plan::{Arguments, Part};
pub use rules::Rules;
pub use table::TableCosts;
pub use takeover::Takeover;
pub use workers::{Case, Found, Placing};

use crate::peers::{Kind, Site};

/// Cycles that a line takes at most between cores that share a cache.
const NEAR: f64 = 200.0;

/// One measurement.
#[derive(Clone, Debug, Serialize)]
pub struct Sample {
    /// Which table it belongs to.
    pub part: &'static str,
    /// The candidate.
    pub candidate: &'static str,
    /// Who made the traffic.
    pub guests: &'static str,
    /// Queue pairs of each port.
    pub queues: u16,
    /// Frame length without FCS.
    pub size: usize,
    /// Round, counted from 0.
    pub round: u32,
    /// Millions of frames a second that each side received, on average.
    pub mpps: f64,
    /// Gigabits a second that each side received, frames without FCS.
    pub gbps: f64,
    /// Cycles of polls that found frames, for each frame, by the candidate's own count.
    pub busy_cycles: Option<f64>,
    /// Cycles that a cache line took between the two cores just before and just after; see
    /// [`crate::clock::line_transfer`].
    pub line_transfer: Option<[f64; 2]>,
    /// Share of the generator's time in which it had frames to work on, where that is known.
    pub generator_busy: Option<f64>,
}

impl Sample {
    /// How far the two cores were from each other. A virtual machine's cores move; samples are only compared with
    /// samples of the same distance. `mixed`: they moved in the middle.
    pub fn cores(&self) -> &'static str {
        match self.line_transfer {
            None => "",
            Some([before, after]) if before.max(after) <= NEAR => "near",
            Some([before, after]) if before.min(after) > NEAR => "far",
            Some(_) => "mixed",
        }
    }
}

/// Everything that a run found.
#[derive(Clone, Debug, Serialize)]
pub struct Results {
    /// Where.
    pub machine: Machine,
    /// The command line.
    pub command: String,
    /// Candidates that could not run, and why.
    pub absent: Vec<String>,
    /// What went wrong on the way.
    pub failures: Vec<String>,
    /// All measurements.
    pub samples: Vec<Sample>,
    /// What a hundred silent ports cost.
    pub idle: Option<Idle>,
    /// How long a port that comes and goes keeps others waiting.
    pub changes: Option<Changes>,
    /// What two workers and several queues make of it.
    pub workers: Vec<Found>,
    /// What new connections and a full table cost.
    pub connections: Option<Connections>,
    /// What thousands of rules cost to load.
    pub rules: Option<Rules>,
    /// What a configuration with a thousand ports takes to be applied.
    pub applied: Option<Applied>,
    /// How long a NIC for a running guest takes.
    pub hotplug: Option<Hotplug>,
    /// What a planned restart costs.
    pub takeover: Option<Takeover>,
    /// What the table of connections costs alone.
    pub table: Option<TableCosts>,
}

/// Says what goes on.
pub(crate) fn say(line: &str) {
    shunt_tests::progress(line);
}

/// Runs the benchmark and writes `results.json`, `results.md` and the plots.
pub fn run(arguments: &Arguments) -> Result<()> {
    ensure!(
        std::thread::available_parallelism()?.get() >= 2,
        "two cores are needed: one for the switch, one for the guests"
    );
    ensure!(
        arguments.switch_core != arguments.guest_core,
        "switch and guests share core {}",
        arguments.guest_core
    );
    let scratch = tempfile::Builder::new().prefix("shunt-bench-").tempdir()?;
    let guardian = Guardian::start(scratch.path(), arguments.hugepages.then_some(plan::HUGEPAGES))?;
    let site = Site {
        scratch: scratch.path().to_owned(),
        switch_core: arguments.switch_core,
        guest_core: arguments.guest_core,
        hugepages: guardian.has_hugepages(),
        programs: programs(arguments)?,
        realtime: arguments.realtime,
    };
    let mut results = Results {
        machine: Machine::look(),
        command: std::env::args().collect::<Vec<_>>().join(" "),
        absent: Vec::new(),
        failures: Vec::new(),
        samples: Vec::new(),
        idle: None,
        changes: None,
        workers: Vec::new(),
        connections: None,
        rules: None,
        applied: None,
        hotplug: None,
        takeover: None,
        table: None,
    };
    let mut kinds = Vec::new();
    for kind in arguments.candidates() {
        match kind.missing(&site) {
            None => kinds.push(kind),
            Some(why) => {
                say(&format!("SKIPPED {}: {why}", kind.name()));
                results.absent.push(format!("{}: {why}", kind.name()));
            }
        }
    }
    ensure!(!kinds.is_empty(), "no candidate can run here");
    // Where the kernel or an emulator does most of the work, a switch that cannot be preempted would starve it.
    let shared = Site { realtime: false, ..site.clone() };
    for part in arguments.parts() {
        let outcome = match part {
            Part::Vhost => vhost::own_guests(&site, arguments, &kinds, &mut results),
            Part::Packed if !kinds.contains(&Kind::Shunt) => Ok(()),
            Part::Packed => vhost::packed_beside_split(&site, arguments, &mut results),
            Part::Testpmd => testpmd::run(&site, arguments, &kinds, &mut results),
            Part::Gso => vhost::large_frames(&site, arguments, &kinds, &mut results),
            Part::Route => layer3::route(&site, arguments, &kinds, &mut results),
            Part::Snat => layer3::snat(&site, arguments, &kinds, &mut results),
            Part::Balance => {
                layer3::balance(&site, arguments, &kinds, &mut results)?;
                connections::balanced(&site, arguments, &kinds, &mut results)
            }
            Part::Connections => connections::run(&site, arguments, &kinds, &mut results),
            Part::Rules => rules::run(&site, arguments, &kinds, &mut results),
            Part::Takeover if !kinds.contains(&Kind::Shunt) => Ok(()),
            Part::Takeover => takeover::run(&site, arguments, &mut results),
            Part::Config => config::run(&site, arguments, &kinds, &mut results),
            Part::Table => table::run(arguments, &mut results),
            Part::Idle if !kinds.contains(&Kind::Shunt) => Ok(()),
            Part::Idle => {
                let compared = vhost::adaptive_beside_busy(&site, arguments, &mut results);
                idle::run(&site, arguments, &mut results).and(compared)
            }
            Part::Changes if !kinds.contains(&Kind::Shunt) => Ok(()),
            Part::Changes => changes::run(&site, arguments, &mut results),
            Part::Workers if !kinds.contains(&Kind::Shunt) => Ok(()),
            Part::Workers => workers::run(arguments, &mut results),
            Part::Tap => tap::run(&shared, arguments, &kinds, &mut results),
            Part::Hotplug => hotplug::run(arguments, &kinds, &mut results),
            Part::Qemu => guests::run(&shared, arguments, &kinds, &mut results),
        };
        if let Err(why) = outcome {
            say(&format!("FAILED {part:?}: {why:#}"));
            results.failures.push(format!("{part:?}: {why:#}"));
        }
        // After each part, so that what has been measured is not lost with what comes later.
        write(arguments, &results)?;
    }
    println!("{}", report::markdown(&results));
    say(&format!("results are in {}", arguments.output.display()));
    drop(guardian);
    Ok(())
}

fn programs(arguments: &Arguments) -> Result<PathBuf> {
    if let Some(dir) = &arguments.programs {
        return Ok(dir.clone());
    }
    let own = std::env::current_exe()?;
    Ok(own.parent().context("the benchmark's own program has no directory")?.to_owned())
}

fn write(arguments: &Arguments, results: &Results) -> Result<()> {
    let dir = &arguments.output;
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    std::fs::write(dir.join("results.json"), serde_json::to_string_pretty(results)?)?;
    std::fs::write(dir.join("results.md"), report::markdown(results))?;
    for (name, svg) in plot::plots(results) {
        std::fs::write(dir.join(name), svg)?;
    }
    Ok(())
}

/// Seconds as a duration.
fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

/// The kinds in `kinds` that `wanted` holds for.
fn only(kinds: &[Kind], wanted: impl Fn(Kind) -> bool) -> Vec<Kind> {
    kinds.iter().copied().filter(|k| wanted(*k)).collect()
}
