#![forbid(unsafe_code)]
//! How long a port that comes, restarts and goes keeps the others waiting.
//!
//! Two guests exchange frames as fast as they can. Beside them, round by round, a third port is added, its guest
//! connects (which maps its memory), shares its memory anew while its rings run, restarts its rings and leaves, and the port is deleted. What is measured is the
//! longest turn of the worker in each round, by its own count, and the longest that it took to take a new configuration
//! over; beside it, the same in rounds of the same length without any change: what the machine does of itself.

use std::fmt::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::json;

use super::{Arguments, Results, say};
use crate::generate::{Generator, Shape, Traffic};
use crate::guest::{Answer, Guest, Options};
use crate::peers::{Control, Kind, Site, Wiring};

/// What was found. Times are median, 90th, 99th percentile and most of the rounds, in microseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Changes {
    /// Rounds of each kind.
    pub rounds: usize,
    /// Longest turn in rounds without a change.
    pub quiet_us: [f64; 4],
    /// Longest turn in rounds with a port that came and went.
    pub changing_us: [f64; 4],
    /// Longest that the worker took to take a new configuration over, in the same rounds.
    pub update_us: [f64; 4],
    /// Frames that were dropped at the two ports meanwhile.
    pub drops: u64,
    /// Millions of frames a second that each of the two guests received meanwhile.
    pub mpps: f64,
}

/// Measures; the result goes into `results.changes`.
pub(super) fn run(site: &Site, arguments: &Arguments, results: &mut Results) -> Result<()> {
    let mut candidate = Kind::Shunt.launch(site, &Wiring::pair(1))?;
    candidate.resume()?;
    let dir = site.scratch.join("changes");
    std::fs::create_dir_all(&dir)?;
    let shape = Shape {
        pairs: 1,
        ring_size: arguments.ring,
        mergeable: true,
        event_idx: false,
        features: 0,
        hugepages: false,
        listen: false,
    };
    let core = Some(arguments.guest_core);
    let traffic = Traffic { size: 64, window: arguments.window, answer: Answer::Forward, open: false, core };
    let mut generator = Generator::connect(candidate.sockets(), &shape, &traffic)?;
    let rounds = if arguments.is_quick() { 50 } else { 300 };
    let done = AtomicBool::new(false);
    let control = candidate.control().context("shunt has a control connection")?;
    let (outcome, measured) = std::thread::scope(|scope| {
        let driver = scope.spawn(|| {
            let mut sum = (0.0, 0u32);
            while !done.load(Ordering::Relaxed) {
                let measured = generator.run(Duration::ZERO, Duration::from_millis(200))?;
                sum = (sum.0 + measured.mpps_each_way, sum.1 + 1);
            }
            anyhow::Ok(sum.0 / f64::from(sum.1.max(1)))
        });
        let outcome = measure(control, &dir, rounds);
        done.store(true, Ordering::Relaxed);
        (outcome, driver.join())
    });
    let mpps = measured.map_err(|_| anyhow::anyhow!("the generator's thread panicked"))??;
    let [quiet, changing, update] = outcome?;
    let changes = Changes {
        rounds,
        quiet_us: super::idle::quantiles(quiet),
        changing_us: super::idle::quantiles(changing),
        update_us: super::idle::quantiles(update),
        drops: drops(control)?,
        mpps,
    };
    say(&format!("changes: {changes:?}"));
    results.changes = Some(changes);
    Ok(())
}

/// Rounds of both kinds, in turn: longest turns without a change and with one, longest updates.
fn measure(control: &mut Control, dir: &std::path::Path, rounds: usize) -> Result<[Vec<f64>; 3]> {
    let mut found = [const { Vec::new() }; 3];
    let longest = |control: &mut Control| -> Result<(f64, f64)> {
        let workers = control.call("worker.list", json!({ "reset": true }))?;
        let of = |field: &str| workers[0][field].as_f64().with_context(|| format!("no {field}"));
        Ok((of("longest_turn_us")?, of("longest_update_us")?))
    };
    for round in 0..rounds {
        longest(control)?;
        let start = Instant::now();
        come_and_go(control, &dir.join(format!("x{round}")))?;
        let length = start.elapsed();
        let (turn, update) = longest(control)?;
        found[1].push(turn);
        found[2].push(update);
        std::thread::sleep(length);
        found[0].push(longest(control)?.0);
    }
    Ok(found)
}

/// A port is added, its guest connects, changes its memory map, restarts and leaves, the port is deleted.
fn come_and_go(control: &mut Control, path: &std::path::Path) -> Result<()> {
    let add = json!({ "name": "coming", "bridge": "bench", "vhost_user": path, "queues": 2 });
    control.call("port.add", add)?;
    let mut guest = Guest::connect(path, &Options { pairs: 2, ..Options::default() })?;
    guest.remap()?;
    let bases = guest.stop()?;
    guest.restart(&bases)?;
    drop(guest);
    control.call("port.del", json!({ "name": "coming" })).map(drop)
}

fn drops(control: &mut Control) -> Result<u64> {
    let ports = control.call("stats.show", json!({}))?;
    let ports = ports.as_array().context("stats.show is no array")?;
    let sides = ports.iter().flat_map(|port| [&port["rx"]["drops"], &port["tx"]["drops"]]);
    let reasons = sides.filter_map(|drops| drops.as_object()).flatten();
    Ok(reasons.filter_map(|(_, count)| count.as_u64()).sum())
}

/// As Markdown.
pub(super) fn markdown(changes: &Changes) -> String {
    let mut text = format!(
        "\n### A port that comes and goes beside {:.1} Mpps each way, {} times\n\n| figure, us | median | 90 % | 99 % | most |\n|---|---|---|---|---|\n",
        changes.mpps, changes.rounds
    );
    for (name, values) in [
        ("longest turn in a round without a change", changes.quiet_us),
        ("longest turn in a round with one", changes.changing_us),
        ("longest time to take a configuration over", changes.update_us),
    ] {
        let _ = writeln!(text, "| {name} | {} |", values.map(|us| format!("{us:.1}")).join(" | "));
    }
    let _ = writeln!(text, "\nFrames dropped at the other ports: {}.", changes.drops);
    text
}
