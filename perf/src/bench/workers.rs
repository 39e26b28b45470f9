#![forbid(unsafe_code)]
//! What two workers make of it, and several queues: cycles a frame, on a machine that has no core to spare for guests.
//!
//! A real switch in this process, its workers on two cores. On each of these cores there is also a thread that plays
//! guests, which goes before the worker (SCHED_FIFO) and never runs beside it: it fills the rings of its guests, meets
//! the other thread, and both go to sleep at once: then both workers wake up and carry what lies there, at the same time
//! and undisturbed, and sleep long before the guests come back to empty the rings. What is counted is the workers' own
//! time of polls that found frames. Two workers carry `2 * one / two` times as much as one, if a frame takes `one` cycles
//! on a worker alone and `two` on each of two at once. What the machine itself takes from two that work at once (cores
//! may be two threads of one) is seen by two switches of one worker each, which share nothing.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::Serialize;
use shunt_switch::config::{Config, Poll, PortChange, Workers};
use shunt_switch::switch::{self, Switch};
use vhost_backend::net_header::NetHeader;

use super::report::median;
use super::{Arguments, Results, say};
use crate::clock;
use crate::frames;
use crate::guest::{Answer, Connection, Guest, Lane, Options, features};

/// Entries of all rings of a port one way, and frames that lie in them when the workers wake up: however many queues, as
/// much memory is used.
const RING: u16 = 256;
/// How long the guests sleep: the workers take some ten microseconds for a hundred frames.
const PAUSE: Duration = Duration::from_millis(1);
/// Times that the rings are filled in one measurement: few, for a virtual machine's pause of some milliseconds spoils it.
const FILLINGS: u32 = 10;
/// Measurements in a round.
const MEASUREMENTS: usize = 40;
/// Pauses after which what has not come is lost.
const PATIENCE: u32 = 2000;

/// Where the ports' queues are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Placing {
    /// All by one worker.
    One,
    /// Two ports that talk to each other by each of two workers.
    Apart,
    /// Those of one side by one worker, of the other side by the other: each delivers to rings whose guests run on the
    /// other's core.
    Across,
    /// Two ports that talk to each other by each of two switches, with one worker each.
    Strangers,
}

/// A measurement: ports 0 and 1 talk to each other, 2 and 3.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Case {
    /// Where.
    pub placing: Placing,
    /// Ports: two or four.
    pub ports: u16,
    /// Queue pairs of each.
    pub pairs: u16,
    /// Frame length without FCS.
    pub size: usize,
}

/// What was found for a case.
#[derive(Clone, Debug, Serialize)]
pub struct Found {
    /// What was measured.
    pub case: Case,
    /// Cycles a frame, mean of the workers: the median of each round's measurements.
    pub rounds: Vec<f64>,
    /// The fewest of all measurements.
    pub least: f64,
    /// Cycles that a cache line took between the two cores before each round; see [`crate::clock::line_transfer`].
    pub lines: Vec<f64>,
}

impl Found {
    fn median(&self) -> f64 {
        median(self.rounds.clone())
    }

    /// (Most - least) / median of the rounds.
    fn spread(&self) -> f64 {
        let (least, most) =
            self.rounds.iter().fold((f64::MAX, 0f64), |(least, most), &of| (least.min(of), most.max(of)));
        (most - least) / self.median()
    }

    /// What these workers carry in the time in which those of `base` carry one frame each.
    fn rate_against(&self, base: &Self) -> f64 {
        let workers = |found: &Self| if found.case.placing == Placing::One { 1.0 } else { 2.0 };
        workers(self) / self.median() / (workers(base) / base.median())
    }
}

impl Case {
    /// The worker of a port.
    fn worker(&self, port: u16) -> usize {
        usize::from(match self.placing {
            Placing::One => 0,
            Placing::Apart | Placing::Strangers => port / 2,
            Placing::Across => port % 2,
        })
    }

    /// The switch of a port.
    fn switch(&self, port: u16) -> usize {
        if self.placing == Placing::Strangers { self.worker(port) } else { 0 }
    }

    /// What switch number `switch` is to have.
    fn config(&self, switch: usize, dir: &Path) -> String {
        let mut text = "[[bridge]]\nname = \"bench\"\n".to_owned();
        for port in (0..self.ports).filter(|&port| self.switch(port) == switch) {
            let path = dir.join(format!("v{port}"));
            let _ = writeln!(
                text,
                "[[port]]\nname = \"v{port}\"\nbridge = \"bench\"\nvhost_user = \"{}\"\nqueues = {}",
                path.display(),
                self.pairs
            );
            // Known from the start: what is flooded comes to others, too.
            let mac = frames::mac(port as u8 + 1).map(|byte| format!("{byte:02x}")).join(":");
            let _ = writeln!(text, "[[fdb]]\nbridge = \"bench\"\nmac = \"{mac}\"\nport = \"v{port}\"");
        }
        text
    }
}

/// The guests that one thread plays.
#[derive(Default)]
struct Players {
    lanes: Vec<Lane>,
    _connections: Vec<Connection>,
}

impl Players {
    /// Fills the rings, so that `each` frames are on their way on each.
    fn fill(&mut self, each: u16) -> Result<()> {
        for lane in &mut self.lanes {
            ensure!(lane.transmit(each)? == each, "a ring is not empty when it is filled again");
        }
        Ok(())
    }

    /// Sleeps until `each` frames have come on each lane.
    fn empty(&mut self, each: u16) -> Result<()> {
        let received = |lanes: &[Lane]| lanes.iter().map(|lane| lane.counts.received).sum::<u64>();
        let due = received(&self.lanes) + self.lanes.len() as u64 * u64::from(each);
        for _ in 0..PATIENCE {
            std::thread::sleep(PAUSE);
            for lane in &mut self.lanes {
                while lane.turn(false)? > 0 {}
            }
            let mut under_way = 0;
            for lane in &mut self.lanes {
                // Takes back what has been sent.
                lane.transmit(0)?;
                under_way += lane.in_flight();
            }
            if received(&self.lanes) == due && under_way == 0 {
                return Ok(());
            }
        }
        bail!("of {due} frames {} came", received(&self.lanes))
    }
}

/// Has this thread run on `core` alone, before all threads without a priority of their own.
fn take(core: usize) -> Result<()> {
    clock::pin(core).with_context(|| format!("cannot run on core {core}"))?;
    let tid = nix::unistd::gettid().to_string();
    let status = std::process::Command::new("chrt").args(["-f", "-p", "2", &tid]).status()?;
    ensure!(status.success(), "guests must go before workers: SCHED_FIFO is for root only");
    Ok(())
}

/// Cycles a frame, measured again and again.
fn measure(case: &Case, cores: [usize; 2]) -> Result<Vec<f64>> {
    let dir = tempfile::Builder::new().prefix("shunt-workers-").tempdir()?;
    let workers = if case.placing == Placing::One { 1 } else { 2 };
    let used = cores[..workers].to_vec();
    let mut switches = Vec::new();
    for its in used.chunks(if case.placing == Placing::Strangers { 1 } else { workers }) {
        let workers = Workers::Cores(its.to_vec());
        let options = switch::Options { workers, poll: Poll::Adaptive, state: None, handed: None };
        let mut switch = Switch::start(options)?;
        switch.configure(Config::parse(&case.config(switches.len(), dir.path()), None)?)?;
        switches.push(switch);
    }
    let mut players: Vec<Players> = used.iter().map(|_| Players::default()).collect();
    for port in 0..case.ports {
        let name = format!("v{port}");
        let core = cores[case.worker(port)] as u32;
        let pins = (0..case.pairs).map(|queue| (queue, core)).collect();
        switches[case.switch(port)].set_port(&name, PortChange { pins, ..PortChange::default() })?;
        let options = Options {
            pairs: case.pairs,
            ring_size: RING / case.pairs,
            features: features::VERSION_1 | features::INDIRECT_DESC | features::MQ | features::MRG_RXBUF,
            ..Options::default()
        };
        let guest = Guest::connect(dir.path().join(&name), &options)?;
        let (from, to) = (port as u8 + 1, (port ^ 1) as u8 + 1);
        let header = NetHeader::default();
        let (connection, lanes) =
            guest.into_lanes(Answer::Credit, &header, |queue| frames::udp(from, to, case.size, queue))?;
        let player = &mut players[case.worker(port)];
        player.lanes.extend(lanes);
        player._connections.push(connection);
    }
    switches.iter_mut().for_each(Switch::follow_ports);
    let each = RING / case.pairs;
    let phase = |players: &mut Vec<Players>, fillings: u32| -> Result<()> {
        let meeting = Meeting::default();
        std::thread::scope(|scope| {
            let threads: Vec<_> = players
                .iter_mut()
                .zip(&used)
                .map(|(players, &core)| {
                    let meeting = (&meeting, workers);
                    scope.spawn(move || play(players, core, fillings, each, meeting))
                })
                .collect();
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().map_err(|_| anyhow!("a guests' thread panicked"))?)
        })
    };
    // Where everybody is must be learnt, and rings and tables want to be warm.
    phase(&mut players, FILLINGS)?;
    let frames = u64::from(FILLINGS) * u64::from(case.ports) * u64::from(each * case.pairs);
    let mut found = Vec::new();
    for _ in 0..MEASUREMENTS {
        switches.iter_mut().for_each(Switch::reset_workers);
        phase(&mut players, FILLINGS)?;
        let of: Vec<_> = switches.iter().flat_map(Switch::workers).collect();
        let carried: Vec<u64> = of.iter().map(|worker| worker.packets).collect();
        ensure!(carried == vec![frames / workers as u64; workers], "workers carried {carried:?} of {frames}");
        found.push(of.iter().map(|worker| worker.busy_cycles_per_packet).sum::<f64>() / workers as f64);
    }
    Ok(found)
}

/// Where threads that must not sleep wait for each other.
#[derive(Default)]
struct Meeting(AtomicU64);

impl Meeting {
    /// Waits until all of `threads` have come as often as the caller, now for the `time`th time.
    fn wait(&self, threads: usize, time: u64) {
        self.0.fetch_add(1, Ordering::AcqRel);
        while self.0.load(Ordering::Acquire) < threads as u64 * time {
            std::hint::spin_loop();
        }
    }
}

/// The life of a guests' thread. After a failure it goes on meeting the others, who would wait for ever.
fn play(
    players: &mut Players,
    core: usize,
    fillings: u32,
    each: u16,
    meeting: (&Meeting, usize),
) -> Result<()> {
    let mut outcome = take(core);
    for filling in 0..u64::from(fillings) {
        outcome = outcome.and_then(|()| players.fill(each));
        meeting.0.wait(meeting.1, filling + 1);
        outcome = outcome.and_then(|()| players.empty(each));
    }
    outcome
}

/// Measures; the result goes into `results.workers`.
pub(super) fn run(arguments: &Arguments, results: &mut Results) -> Result<()> {
    let cores = [arguments.switch_core, arguments.guest_core];
    let sizes: &[usize] = if arguments.is_quick() { &[64] } else { &[64, 1514] };
    let mut cases = Vec::new();
    for &size in sizes {
        for placing in [Placing::One, Placing::Apart, Placing::Across, Placing::Strangers] {
            cases.push(Case { placing, ports: 4, pairs: 1, size });
        }
        for pairs in [1, 2, 4] {
            cases.push(Case { placing: Placing::One, ports: 2, pairs, size });
        }
    }
    let mut found: Vec<Found> = cases
        .into_iter()
        .map(|case| Found { case, rounds: Vec::new(), least: f64::MAX, lines: Vec::new() })
        .collect();
    for round in 0..arguments.rounds() {
        for of in &mut found {
            of.lines.push(super::vhost::distance(arguments)?);
            // On a thread of its own, for its scheduling class is what workers inherit.
            let work = || {
                if arguments.realtime {
                    super::vhost::promote_self()?;
                }
                measure(&of.case, cores).with_context(|| format!("{:?}", of.case))
            };
            let cycles = std::thread::scope(|scope| scope.spawn(work).join());
            let cycles = cycles.map_err(|_| anyhow!("the measurement's thread panicked"))??;
            of.least = cycles.iter().copied().fold(of.least, f64::min);
            let cycles = median(cycles);
            say(&format!("workers round {} {:?}: {cycles:.1} cycles a frame", round + 1, of.case));
            of.rounds.push(cycles);
        }
    }
    results.workers = found;
    Ok(())
}

/// As Markdown.
pub(super) fn markdown(found: &[Found]) -> String {
    let mut text = "\n### Workers and queues: cycles of a worker for a frame, all rings filled before it wakes up\n\n\
                    | ports | queue pairs | workers | bytes | rounds | median | spread | least | rate against one worker, one queue | a line between the cores, cycles |\n\
                    |---|---|---|---|---|---|---|---|---|---|\n"
        .to_owned();
    for this in found {
        let Found { case, rounds, least, lines } = this;
        let base = found.iter().find(|other| {
            (other.case.size, other.case.ports) == (case.size, case.ports)
                && other.case.placing == Placing::One
                && other.case.pairs == 1
        });
        let against = base.map_or(String::new(), |base| format!("{:.2}", this.rate_against(base)));
        let workers = match case.placing {
            Placing::One => "one",
            Placing::Apart => "two, each with two ports that talk to each other",
            Placing::Across => "two, each with one side of two conversations",
            Placing::Strangers => "two of two switches",
        };
        let _ = writeln!(
            text,
            "| {} | {} | {workers} | {} | {} | {:.1} | {:.0} % | {least:.1} | {against} | {:.0} |",
            case.ports,
            case.pairs,
            case.size,
            rounds.len(),
            this.median(),
            this.spread() * 100.0,
            median(lines.clone()),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_workers_that_cost_no_more_carry_twice_as_much() {
        let of = |placing, rounds: &[f64]| Found {
            case: Case { placing, ports: 4, pairs: 1, size: 64 },
            rounds: rounds.to_vec(),
            least: 0.0,
            lines: Vec::new(),
        };
        let one = of(Placing::One, &[40.0, 38.0, 42.0]);
        let near = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-9, "{found}");
        near(one.spread(), 0.1);
        near(of(Placing::Apart, &[40.0]).rate_against(&one), 2.0);
        near(of(Placing::Across, &[50.0]).rate_against(&one), 1.6);
        near(of(Placing::One, &[50.0]).rate_against(&one), 0.8);
    }
}
