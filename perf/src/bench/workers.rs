#![forbid(unsafe_code)]
//! What two workers make of it, and several queues: cycles a frame, on a machine that has no core to spare for guests.
//!
//! A real switch in this process, its workers on two cores. On each of these cores there is also a thread that plays
//! guests, which goes before the worker (SCHED_FIFO) and never runs beside it: it fills the rings of its guests, meets
//! the other thread, and both go to sleep at once: then both workers wake up and carry what lies there, at the same time
//! and undisturbed, and sleep long before the guests come back to empty the rings. What is counted is the workers' own
//! time of polls that found frames. Two workers carry `2 * one / two` times as much as one, if a frame takes `one` cycles
//! on a worker alone and `two` on each of two at once.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::Serialize;
use shunt_switch::config::{Config, Poll, PortChange, Workers};
use shunt_switch::switch::{self, Switch};
use vhost_backend::net_header::NetHeader;

use super::{Arguments, Results, say};
use crate::clock;
use crate::frames;
use crate::guest::{Answer, Connection, Guest, Lane, Options, features};

/// Entries of each ring, and frames that lie in all transmit rings of a port when the workers wake up.
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
    /// Cycles a frame, mean of the workers: median, quartiles and least of all measurements.
    pub cycles: [f64; 4],
}

impl Case {
    /// The worker of a port.
    fn worker(&self, port: u16) -> usize {
        usize::from(match self.placing {
            Placing::One => 0,
            Placing::Apart => port / 2,
            Placing::Across => port % 2,
        })
    }

    fn config(&self, dir: &std::path::Path) -> String {
        let mut text = "[[bridge]]\nname = \"bench\"\n".to_owned();
        for port in 0..self.ports {
            let path = dir.join(format!("v{port}"));
            let _ = writeln!(
                text,
                "[[port]]\nname = \"v{port}\"\nbridge = \"bench\"\nvhost_user = \"{}\"\nqueues = {}",
                path.display(),
                self.pairs
            );
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
            if received(&self.lanes) == due {
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
    let options = switch::Options {
        workers: Workers::Cores(used.clone()),
        poll: Poll::Adaptive,
        state: None,
        handed: None,
    };
    let mut switch = Switch::start(options)?;
    switch.configure(Config::parse(&case.config(dir.path()), None)?)?;
    let mut players: Vec<Players> = used.iter().map(|_| Players::default()).collect();
    for port in 0..case.ports {
        let name = format!("v{port}");
        let core = cores[case.worker(port)] as u32;
        let pins = (0..case.pairs).map(|queue| (queue, core)).collect();
        switch.set_port(&name, PortChange { pins, ..PortChange::default() })?;
        let options = Options {
            pairs: case.pairs,
            ring_size: RING,
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
    switch.follow_ports();
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
        switch.reset_workers();
        phase(&mut players, FILLINGS)?;
        let of = switch.workers();
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
        for placing in [Placing::One, Placing::Apart, Placing::Across] {
            cases.push(Case { placing, ports: 4, pairs: 1, size });
        }
        for pairs in [1, 2, 4] {
            cases.push(Case { placing: Placing::One, ports: 2, pairs, size });
        }
    }
    let mut all: Vec<Vec<f64>> = vec![Vec::new(); cases.len()];
    for _ in 0..arguments.rounds() {
        for (case, cycles) in cases.iter().zip(&mut all) {
            cycles.extend(measure(case, cores).with_context(|| format!("{case:?}"))?);
        }
    }
    let found = cases.into_iter().zip(all).map(|(case, mut cycles)| {
        cycles.sort_by(f64::total_cmp);
        let at = |share: f64| cycles[((cycles.len() - 1) as f64 * share) as usize];
        Found { case, cycles: [0.5, 0.25, 0.75, 0.0].map(at) }
    });
    results.workers = found.collect();
    for found in &results.workers {
        say(&format!("workers: {found:?}"));
    }
    Ok(())
}

/// As Markdown.
pub(super) fn markdown(found: &[Found]) -> String {
    let mut text = "\n### Workers and queues: cycles of a worker for a frame, all rings filled before it wakes up\n\n\
                    | ports | queue pairs | workers | frame | cycles a frame: median | quartiles | least | rate against one |\n\
                    |---|---|---|---|---|---|---|---|\n"
        .to_owned();
    for Found { case, cycles } in found {
        let base = found.iter().find(|other| {
            other.case.size == case.size
                && other.case.ports == case.ports
                && other.case.placing == Placing::One
                && other.case.pairs == 1
        });
        let base = base.map_or(f64::NAN, |base| base.cycles[0]);
        let (workers, against) = match case.placing {
            Placing::One => ("one", base / cycles[0]),
            Placing::Apart => ("two, each with two ports that talk to each other", 2.0 * base / cycles[0]),
            Placing::Across => ("two, each with one side of two conversations", 2.0 * base / cycles[0]),
        };
        let _ = writeln!(
            text,
            "| {} | {} | {workers} | {} | {:.1} | {:.1} to {:.1} | {:.1} | {against:.2} |",
            case.ports, case.pairs, case.size, cycles[0], cycles[1], cycles[2], cycles[3]
        );
    }
    text
}
