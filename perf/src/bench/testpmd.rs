#![forbid(unsafe_code)]
//! Frames between testpmd's virtio-user guests.

use std::path::Path;

use anyhow::{Context, Result};

use super::vhost::{distance, enough_near, launch, note};
use super::{Arguments, Results, Sample, say, seconds};
use crate::peers::{Kind, Running, Site, TestpmdGuests, Wiring, testpmd_available};

/// testpmd's guests on each candidate in turn, for each number of queues and each size.
pub(super) fn run(site: &Site, arguments: &Arguments, kinds: &[Kind], results: &mut Results) -> Result<()> {
    for queues in arguments.queues() {
        let candidates = launch(site, kinds, &Wiring::pair(queues), results);
        let sizes = arguments.sizes(queues);
        with_guests(site, "testpmd", candidates, queues, &sizes, arguments, results)?;
    }
    Ok(())
}

/// testpmd's guests on these candidates, which are paused, in turn. Their rings are as [`Running::guests`] says.
pub(super) fn with_guests(
    site: &Site,
    part: &'static str,
    candidates: Vec<Running>,
    queues: u16,
    sizes: &[usize],
    arguments: &Arguments,
    results: &mut Results,
) -> Result<()> {
    let connect = |dir: &Path, candidate: &Running| {
        TestpmdGuests::connect(site, dir, candidate.sockets(), queues, candidate.guests)
    };
    let what = format!("guests-{part}-{queues}");
    let Some(mut pairs) = connected(site, &what, candidates, connect, results)? else { return Ok(()) };
    for &size in sizes {
        let first = results.samples.len();
        for round in 0..arguments.most_rounds() {
            if round >= arguments.rounds() && enough_near(&results.samples[first..], pairs.len(), arguments) {
                break;
            }
            for (candidate, guests) in &mut pairs {
                let before = distance(arguments)?;
                let (mpps, busy_cycles) = measure(arguments, candidate, guests, size)
                    .with_context(|| format!("{} with testpmd's guests", candidate.name()))?;
                let line_transfer = Some([before, distance(arguments)?]);
                note(
                    results,
                    Sample {
                        part,
                        candidate: candidate.name(),
                        guests: "testpmd",
                        queues,
                        size,
                        round,
                        mpps,
                        gbps: mpps * size as f64 * 8.0 / 1e3,
                        busy_cycles,
                        line_transfer,
                        generator_busy: None,
                    },
                );
            }
        }
    }
    Ok(())
}

/// Each of these candidates, which are paused, with a testpmd that plays its guests; `None` if there is no testpmd. Those
/// that cannot be connected are left out.
pub(super) fn connected<G>(
    site: &Site,
    what: &str,
    candidates: Vec<Running>,
    connect: impl Fn(&Path, &Running) -> Result<G>,
    results: &mut Results,
) -> Result<Option<Vec<(Running, G)>>> {
    if !testpmd_available() {
        let why = format!("testpmd's {what}: dpdk-testpmd is not installed (dpdk-dev)");
        say(&format!("SKIPPED {why}"));
        results.absent.push(why);
        return Ok(None);
    }
    let mut pairs = Vec::new();
    for mut candidate in candidates {
        candidate.resume()?;
        let dir = site.scratch.join(format!("{what}-{}", candidate.name()));
        std::fs::create_dir_all(&dir)?;
        let guests = connect(&dir, &candidate);
        candidate.pause()?;
        match guests {
            Ok(guests) => pairs.push((candidate, guests)),
            Err(why) => {
                let line = format!("testpmd's {what} on {}: {why:#}", candidate.name());
                say(&format!("FAILED {line}"));
                results.failures.push(line);
            }
        }
    }
    Ok(Some(pairs))
}

fn measure(
    arguments: &Arguments,
    candidate: &mut Running,
    guests: &mut TestpmdGuests,
    size: usize,
) -> Result<(f64, Option<f64>)> {
    let length = arguments.seconds();
    candidate.resume()?;
    guests.start(size)?;
    std::thread::sleep(seconds(length / 3.0));
    candidate.reset()?;
    guests.received()?;
    std::thread::sleep(seconds(length));
    let rates = guests.received()?;
    let busy_cycles = candidate.busy_cycles()?;
    guests.stop()?;
    candidate.pause()?;
    Ok(((rates[0] + rates[1]) / 2e6, busy_cycles))
}
