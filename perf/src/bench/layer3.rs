#![forbid(unsafe_code)]
//! Frames of many flows through a router, plain and with their source translated.

use std::path::Path;

use anyhow::Result;

use super::testpmd::connected;
use super::vhost::{distance, enough_near, launch, note, promote_self};
use super::{Arguments, Results, Sample, only, say, seconds};
use crate::flows::{FlowGenerator, Measured, Traffic};
use crate::frames::mac;
use crate::guest::Flows;
use crate::peers::layer3::{self, GATEWAYS};
use crate::peers::{Flowgen, Kind, Running, Site, Task, Wiring};

/// Bytes of a frame without FCS.
const SIZE: usize = 64;
/// Routes of a full internet table.
const INTERNET: u32 = 1_000_000;
/// Few flows and many: how they are called, how many, for how many connections the table is.
const FLOWS: [(&str, u64, u32); 2] =
    [("1,024 flows", 1 << 10, 262_144), ("1,048,576 flows", 1 << 20, 2_097_152)];
/// Seconds that all flows may take to be established.
const PATIENCE: f64 = 60.0;

/// The traffic for a task, to these destinations.
pub(super) fn traffic(arguments: &Arguments, task: Task, count: u64, destinations: Vec<u32>) -> Traffic {
    let routed = task != Task::Bridge;
    Traffic {
        flows: Flows { count, destinations },
        size: SIZE,
        ring: arguments.ring,
        window: arguments.window,
        one_way: false,
        gateways: if routed { GATEWAYS } else { [mac(2), mac(1)] },
        seen_from: if matches!(task, Task::Snat { .. }) {
            layer3::SEEN_TRANSLATED
        } else {
            layer3::SEEN_ROUTED
        },
        routed,
        core: Some(arguments.guest_core),
    }
}

/// A candidate, what it is called, and its traffic.
struct Entrant {
    running: Running,
    traffic: Traffic,
}

fn enter(
    site: &Site,
    kind: Kind,
    name: &'static str,
    traffic: Traffic,
    task: Task,
    results: &mut Results,
) -> Option<Entrant> {
    let mut running = launch(site, &[kind], &Wiring::layer3(task), results).pop()?;
    running.rename(name);
    Some(Entrant { running, traffic })
}

/// By one route, by a million; the same flows on one bridge; peers.
pub(super) fn route(site: &Site, arguments: &Arguments, kinds: &[Kind], results: &mut Results) -> Result<()> {
    let one = Task::Route { routes: 0 };
    let many = Task::Route { routes: INTERNET };
    let near = || layer3::destinations(1024);
    // Every address of the traffic lies in another prefix of the table.
    let step = (INTERNET as usize) / 1024;
    let far = layer3::internet(INTERNET).iter().step_by(step).map(|(address, _)| address + 1).collect();
    let mut entrants = Vec::new();
    if kinds.contains(&Kind::Shunt) {
        for (name, task, destinations) in
            [("shunt", one, near()), ("shunt-bridged", Task::Bridge, near()), ("shunt-1M-routes", many, far)]
        {
            let traffic = traffic(arguments, task, 1024, destinations);
            entrants.extend(enter(site, Kind::Shunt, name, traffic, task, results));
        }
    }
    if kinds.contains(&Kind::Ovs) {
        let traffic = traffic(arguments, one, 1024, near());
        entrants.extend(enter(site, Kind::Ovs, Kind::Ovs.name(), traffic, one, results));
    }
    rounds(site, arguments, &mut entrants, "route", "1,024 flows", results)?;
    drop(entrants);
    flowgen(site, arguments, kinds, "route", one, results)
}

/// With 1,024 and with 1,048,576 established flows.
pub(super) fn snat(site: &Site, arguments: &Arguments, kinds: &[Kind], results: &mut Results) -> Result<()> {
    for (name, count, limit) in FLOWS {
        let task = Task::Snat { limit };
        let mut entrants = Vec::new();
        for kind in only(kinds, |kind| kind != Kind::Testpmd) {
            let traffic = traffic(arguments, task, count, layer3::destinations(1024));
            entrants.extend(enter(site, kind, kind.name(), traffic, task, results));
        }
        rounds(site, arguments, &mut entrants, "snat", name, results)?;
    }
    flowgen(site, arguments, kinds, "snat", Task::Snat { limit: 262_144 }, results)
}

/// Masqueraded by one virtual service and by many, beside translated sources.
pub(super) fn balance(
    site: &Site,
    arguments: &Arguments,
    kinds: &[Kind],
    results: &mut Results,
) -> Result<()> {
    let limit = 262_144;
    let of = |services| Task::Balance { services, servers: 3, scheduler: "rr", limit };
    let to = |services: u32| {
        (0..services.min(1024)).map(move |n| layer3::service(n * services.div_ceil(1024).min(4)).into())
    };
    let mut entrants = Vec::new();
    if kinds.contains(&Kind::Shunt) {
        for (name, services) in [("shunt", 5000), ("shunt-1-service", 1)] {
            let traffic = traffic(arguments, of(services), 1024, to(services).collect());
            entrants.extend(enter(site, Kind::Shunt, name, traffic, of(services), results));
        }
        let task = Task::Snat { limit };
        let traffic = traffic(arguments, task, 1024, layer3::destinations(1024));
        entrants.extend(enter(site, Kind::Shunt, "shunt-snat", traffic, task, results));
    }
    if kinds.contains(&Kind::Ovs) {
        let traffic = traffic(arguments, of(5000), 1024, to(5000).collect());
        entrants.extend(enter(site, Kind::Ovs, Kind::Ovs.name(), traffic, of(5000), results));
    }
    rounds(site, arguments, &mut entrants, "balance", "1,024 flows", results)
}

fn rounds(
    site: &Site,
    arguments: &Arguments,
    entrants: &mut [Entrant],
    part: &'static str,
    guests: &'static str,
    results: &mut Results,
) -> Result<()> {
    let first = results.samples.len();
    for round in 0..arguments.most_rounds() {
        if round >= arguments.rounds() && enough_near(&results.samples[first..], entrants.len(), arguments) {
            break;
        }
        for entrant in entrants.iter_mut() {
            let name = entrant.running.name();
            let before = distance(arguments)?;
            entrant.running.resume()?;
            let measured = measure(site, arguments, entrant);
            entrant.running.pause()?;
            let line_transfer = Some([before, distance(arguments)?]);
            match measured {
                Ok((measured, busy_cycles)) => note(
                    results,
                    Sample {
                        part,
                        candidate: name,
                        guests,
                        queues: 1,
                        size: SIZE,
                        round,
                        mpps: measured.each_way(),
                        gbps: measured.each_way() * SIZE as f64 * 8.0 / 1e3,
                        busy_cycles,
                        line_transfer,
                        generator_busy: Some(measured.generator_busy),
                    },
                ),
                Err(why) => {
                    let line = format!("{part}, {guests}: {name}: {why:#}");
                    say(&format!("FAILED {line}"));
                    results.failures.push(line);
                }
            }
        }
    }
    Ok(())
}

/// Connects fresh guests, establishes every flow, warms up, measures.
fn measure(site: &Site, arguments: &Arguments, entrant: &mut Entrant) -> Result<(Measured, Option<f64>)> {
    let [inner, outer] = entrant.running.sockets() else { anyhow::bail!("a router has two ports") };
    let mut generator = FlowGenerator::connect([inner, outer], &entrant.traffic)?;
    on_its_core(site, || generator.establish(seconds(PATIENCE)))?;
    let length = arguments.seconds();
    on_its_core(site, || generator.run(seconds(0.0), seconds(length / 3.0)))?;
    entrant.running.reset()?;
    let measured = on_its_core(site, || generator.run(seconds(0.01), seconds(length)))?;
    anyhow::ensure!(measured.wrong == 0, "{} frames arrived wrong", measured.wrong);
    Ok((measured, entrant.running.busy_cycles()?))
}

/// Does `work` on a thread of its own, with the scheduling class that was asked for.
pub(super) fn on_its_core<T: Send>(site: &Site, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            if site.realtime {
                crate::clock::pin(site.guest_core)?;
                promote_self()?;
            }
            work()
        });
        thread.join().map_err(|_| anyhow::anyhow!("the generator's thread panicked"))?
    })
}

/// testpmd's flowgen on each candidate in turn; cycles are counted for each packet that was forwarded.
fn flowgen(
    site: &Site,
    arguments: &Arguments,
    kinds: &[Kind],
    part: &'static str,
    task: Task,
    results: &mut Results,
) -> Result<()> {
    let kinds = only(kinds, |kind| kind != Kind::Testpmd);
    let candidates = launch(site, &kinds, &Wiring::layer3(task), results);
    let connect = |dir: &Path, running: &Running| Flowgen::connect(site, dir, running.sockets(), 1024);
    let what = format!("flowgen-{part}");
    let Some(mut entrants) = connected(site, &what, candidates, connect, results)? else { return Ok(()) };
    let first = results.samples.len();
    for round in 0..arguments.most_rounds() {
        if round >= arguments.rounds() && enough_near(&results.samples[first..], entrants.len(), arguments) {
            break;
        }
        for (running, guests) in &mut entrants {
            let before = distance(arguments)?;
            let (mpps, busy_cycles) = measure_flowgen(arguments, running, guests)?;
            let line_transfer = Some([before, distance(arguments)?]);
            note(
                results,
                Sample {
                    part,
                    candidate: running.kind.name(),
                    guests: "flowgen",
                    queues: 1,
                    size: SIZE,
                    round,
                    mpps,
                    gbps: mpps * SIZE as f64 * 8.0 / 1e3,
                    busy_cycles,
                    line_transfer,
                    generator_busy: None,
                },
            );
        }
    }
    Ok(())
}

fn measure_flowgen(
    arguments: &Arguments,
    running: &mut Running,
    guests: &mut Flowgen,
) -> Result<(f64, Option<f64>)> {
    let length = arguments.seconds();
    running.resume()?;
    guests.start()?;
    std::thread::sleep(seconds(length / 3.0));
    running.reset()?;
    guests.rates()?;
    std::thread::sleep(seconds(length));
    let rates = guests.rates()?;
    let busy_cycles = running.busy_cycles()?;
    guests.stop()?;
    running.pause()?;
    let share = rates.sent / rates.forwarded.max(1.0);
    Ok((rates.forwarded / 1e6, busy_cycles.map(|cycles| cycles * share)))
}
