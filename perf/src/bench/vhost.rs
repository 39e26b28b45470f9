#![forbid(unsafe_code)]
//! Frames between two vhost-user ports: our own guests, and large segmentation frames.

use anyhow::Result;

use super::{Arguments, Results, Sample, only, say, seconds, testpmd};
use crate::generate::{Generator, Measured, Shape, Traffic};
use crate::guest::{Answer, features};
use crate::peers::{Kind, Running, Site, Wiring};

/// A 64 KiB segmentation frame: 45 segments of 1448 bytes and their headers.
const LARGE: usize = 54 + 45 * 1448;

fn shape(arguments: &Arguments, candidate: &Running, queues: u16) -> Shape {
    Shape {
        pairs: queues,
        ring_size: arguments.ring,
        mergeable: true,
        event_idx: false,
        features: candidate.guests,
        hugepages: false,
        listen: candidate.guests_listen(),
    }
}

fn traffic(arguments: &Arguments, size: usize, queues: u16, answer: Answer) -> Traffic {
    let window = (arguments.window / queues).max(16);
    Traffic { size, window, answer, open: false, core: Some(arguments.guest_core) }
}

/// Starts every candidate that can be started and stops it until its turn.
pub(super) fn launch(site: &Site, kinds: &[Kind], wiring: &Wiring, results: &mut Results) -> Vec<Running> {
    let mut running = Vec::new();
    for kind in kinds {
        match kind.launch(site, wiring).and_then(|mut r| r.pause().map(|()| r)) {
            Ok(candidate) => running.push(candidate),
            Err(why) => {
                say(&format!("FAILED to start {}: {why:#}", kind.name()));
                results.failures.push(format!("{}: {why:#}", kind.name()));
            }
        }
    }
    running
}

/// How far the two cores are from each other at this moment. Nobody may poll meanwhile.
pub(super) fn distance(arguments: &Arguments) -> Result<f64> {
    crate::clock::line_transfer(arguments.guest_core, arguments.switch_core)
}

/// Whether each of `candidates` has been measured often enough while the cores were near each other.
pub(super) fn enough_near(samples: &[Sample], candidates: usize, arguments: &Arguments) -> bool {
    let near = |name: &str| samples.iter().filter(|s| s.candidate == name && s.cores() == "near").count();
    let mut names: Vec<_> = samples.iter().map(|s| s.candidate).collect();
    names.sort_unstable();
    names.dedup();
    names.len() >= candidates && names.iter().all(|name| near(name) >= arguments.rounds() as usize)
}

pub(super) fn note(results: &mut Results, sample: Sample) {
    say(&format!(
        "{:<7} {:>5} B {} queue(s) round {} {:<10} {:>6.2} Mpps each way {:>6.2} Gbit/s{}{}",
        sample.guests,
        sample.size,
        sample.queues,
        sample.round + 1,
        sample.candidate,
        sample.mpps,
        sample.gbps,
        sample.busy_cycles.map(|c| format!(" {c:>6.1} busy cycles/packet")).unwrap_or_default(),
        sample.line_transfer.map(|[b, a]| format!(" (a line: {b:.0}, {a:.0})")).unwrap_or_default()
    ));
    results.samples.push(sample);
}

/// Our own guests on each candidate in turn, for each number of queues and each size.
pub(super) fn own_guests(
    site: &Site,
    arguments: &Arguments,
    kinds: &[Kind],
    results: &mut Results,
) -> Result<()> {
    for queues in arguments.queues() {
        let mut running = launch(site, kinds, &Wiring::pair(queues), results);
        for size in arguments.sizes(queues) {
            for (answer, guests) in [(Answer::Forward, "forward"), (Answer::Credit, "credit")] {
                let traffic = traffic(arguments, size, queues, answer);
                rounds(site, arguments, &mut running, "vhost", guests, queues, &traffic, results)?;
            }
        }
    }
    Ok(())
}

/// 64 KiB frames between our own guests, on candidates that can carry them.
pub(super) fn large_frames(
    site: &Site,
    arguments: &Arguments,
    kinds: &[Kind],
    results: &mut Results,
) -> Result<()> {
    let kinds = only(kinds, |kind| kind != Kind::Testpmd);
    let mut running = launch(site, &kinds, &Wiring { tso: true, ..Wiring::pair(1) }, results);
    let mut traffic = traffic(arguments, LARGE, 1, Answer::Credit);
    // A frame takes 17 receive buffers: more in flight would overflow the ring whatever the switch does.
    traffic.window = (arguments.ring / 17 / 2).max(2);
    rounds(site, arguments, &mut running, "gso", "credit", 1, &traffic, results)
}

/// shunt with adaptive and with busy workers, 64-byte frames.
pub(super) fn adaptive_beside_busy(site: &Site, arguments: &Arguments, results: &mut Results) -> Result<()> {
    let traffic = traffic(arguments, 64, 1, Answer::Forward);
    let mut running = Vec::new();
    for (busy, name) in [(false, "adaptive"), (true, "shunt")] {
        let mut candidate = Kind::Shunt.launch(site, &Wiring { busy, ..Wiring::pair(1) })?;
        candidate.rename(name);
        candidate.pause()?;
        running.push(candidate);
    }
    rounds(site, arguments, &mut running, "adaptive", "forward", 1, &traffic, results)
}

/// shunt with guests that have packed rings, in order and not, beside split ones: the smallest and the largest frame, our
/// own guests and testpmd's.
pub(super) fn packed_beside_split(site: &Site, arguments: &Arguments, results: &mut Results) -> Result<()> {
    let packed = features::RING_PACKED;
    let mut running = Vec::new();
    for (features, name) in [(0, "split"), (packed | features::IN_ORDER, "in-order"), (packed, "shunt")] {
        let mut candidate = Kind::Shunt.launch(site, &Wiring::pair(1))?;
        candidate.rename(name);
        candidate.guests = features;
        candidate.pause()?;
        running.push(candidate);
    }
    let sizes = [64, 1514];
    for size in sizes {
        for (answer, guests) in [(Answer::Forward, "forward"), (Answer::Credit, "credit")] {
            let traffic = traffic(arguments, size, 1, answer);
            rounds(site, arguments, &mut running, "packed", guests, 1, &traffic, results)?;
        }
    }
    // Our own guests have left: the ports take others.
    testpmd::with_guests(site, "packed", running, 1, &sizes, arguments, results)
}

#[expect(clippy::too_many_arguments, reason = "one caller a part, each argument a column of the results")]
fn rounds(
    site: &Site,
    arguments: &Arguments,
    running: &mut [Running],
    part: &'static str,
    guests: &'static str,
    queues: u16,
    traffic: &Traffic,
    results: &mut Results,
) -> Result<()> {
    let first = results.samples.len();
    for round in 0..arguments.most_rounds() {
        if round >= arguments.rounds() && enough_near(&results.samples[first..], running.len(), arguments) {
            break;
        }
        for candidate in running.iter_mut() {
            let name = candidate.name();
            let before = distance(arguments)?;
            candidate.resume()?;
            let measured = measure_own(site, arguments, candidate, queues, traffic);
            candidate.pause()?;
            let line_transfer = Some([before, distance(arguments)?]);
            match measured {
                Ok((measured, busy_cycles)) => note(
                    results,
                    Sample {
                        part,
                        candidate: name,
                        guests,
                        queues,
                        size: traffic.size,
                        round,
                        mpps: measured.mpps_each_way,
                        gbps: measured.gbps.iter().sum::<f64>() / measured.gbps.len() as f64,
                        busy_cycles,
                        line_transfer,
                        generator_busy: Some(measured.generator_busy),
                    },
                ),
                Err(why) => {
                    say(&format!("FAILED {name}, {} bytes: {why:#}", traffic.size));
                    results.failures.push(format!("{name}, {} bytes, {guests}: {why:#}", traffic.size));
                }
            }
        }
    }
    Ok(())
}

/// Connects fresh guests, warms up, measures. The traffic is driven from a thread of its own, for its core and its
/// scheduling class go with it.
fn measure_own(
    site: &Site,
    arguments: &Arguments,
    candidate: &mut Running,
    queues: u16,
    traffic: &Traffic,
) -> Result<(Measured, Option<f64>)> {
    let length = arguments.seconds();
    let shape = shape(arguments, candidate, queues);
    let mut generator = Generator::connect(candidate.sockets(), &shape, traffic)?;
    drive(site, &mut generator, 0.0, length / 3.0)?;
    candidate.reset()?;
    let measured = drive(site, &mut generator, 0.01, length)?;
    Ok((measured, candidate.busy_cycles()?))
}

/// Runs the generator on a thread of its own, with the scheduling class that was asked for.
fn drive(site: &Site, generator: &mut Generator, warm_up: f64, length: f64) -> Result<Measured> {
    std::thread::scope(|scope| {
        let work = || {
            if site.realtime {
                crate::clock::pin(site.guest_core)?;
                promote_self()?;
            }
            generator.run(seconds(warm_up), seconds(length))
        };
        scope.spawn(work).join().map_err(|_| anyhow::anyhow!("the generator's thread panicked"))?
    })
}

pub(super) fn promote_self() -> Result<()> {
    let tid = nix::unistd::gettid().to_string();
    shunt_tests::process::run(&["chrt", "-f", "-p", "1", &tid]).map(drop).map_err(anyhow::Error::msg)
}
