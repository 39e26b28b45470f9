#![forbid(unsafe_code)]
//! What connections cost that are not established: new ones at full rate, and a full table.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::json;

use super::layer3::{on_its_core, traffic};
use super::vhost::{distance, note};
use super::{Arguments, Results, Sample, only, say, seconds};
use crate::flows::FlowGenerator;
use crate::peers::{Kind, Running, Site, Task, Wiring, layer3};

/// Room for what comes in the seconds for which an entry lives.
const ROOM: u32 = 4_194_304;
/// Connections of the full table.
const FULL: u64 = 1 << 22;
/// How long the full table's connections live without packets.
const LIFE: Duration = Duration::from_secs(60);
/// Bytes of a frame without FCS.
const SIZE: usize = 64;

/// What was found of shunt, beside the rates.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Connections {
    /// Microseconds between arriving bursts, the 99.99th percentile and the longest: established flows.
    pub gap_established_us: [f64; 2],
    /// The same while every frame makes a connection and as many expire.
    pub gap_new_us: [f64; 2],
    /// Page faults that the worker took meanwhile, from the first connection on: memory that was not made ready in time.
    pub worker_faults: u64,
    /// Connections a second, in millions, over that time.
    pub sustained_mcps: f64,
    /// Connections of the full table.
    pub full: u64,
    /// MiB that they took, the daemon's growth.
    pub full_mib: f64,
    /// Share of a core that the daemon takes for them while nothing comes and nothing expires (adaptive polling).
    pub rest_share: f64,
    /// Share of a core while they expire, evenly over the seconds that follow, and how many a second that were.
    pub expiry_share: f64,
    /// Expired connections a second.
    pub expired_per_second: f64,
}

/// New connections on each candidate in turn, then shunt's full table.
pub(super) fn run(site: &Site, arguments: &Arguments, kinds: &[Kind], results: &mut Results) -> Result<()> {
    let task = Task::Snat { limit: ROOM };
    for round in 0..arguments.rounds() {
        for kind in only(kinds, |kind| kind != Kind::Testpmd) {
            one_round(site, arguments, (kind, kind.name()), "connections", task, round, results)?;
        }
    }
    if kinds.contains(&Kind::Shunt) {
        let mut found = Connections::default();
        sustained(site, arguments, &mut found)?;
        full_table(site, arguments, &mut found)?;
        say(&format!("connections: {found:?}"));
        results.connections = Some(found);
    }
    Ok(())
}

/// New connections to virtual services, by scheduler and number of servers.
pub(super) fn balanced(
    site: &Site,
    arguments: &Arguments,
    kinds: &[Kind],
    results: &mut Results,
) -> Result<()> {
    if !kinds.contains(&Kind::Shunt) {
        return Ok(());
    }
    let cases = [
        ("shunt", "rr", 3),
        ("shunt-wlc", "wlc", 3),
        ("shunt-mh", "mh", 3),
        ("shunt-wlc-1000-servers", "wlc", 1000),
    ];
    for round in 0..arguments.rounds() {
        for (name, scheduler, servers) in cases {
            let task = Task::Balance { services: 1, servers, scheduler, limit: ROOM };
            one_round(site, arguments, (Kind::Shunt, name), "balance", task, round, results)?;
        }
    }
    Ok(())
}

fn one_round(
    site: &Site,
    arguments: &Arguments,
    (kind, candidate): (Kind, &'static str),
    part: &'static str,
    task: Task,
    round: u32,
    results: &mut Results,
) -> Result<()> {
    // A fresh one each time: what the last run left would have to expire first.
    let mut running = kind.launch(site, &Wiring::layer3(task))?;
    short_lived(&mut running, task)?;
    running.pause()?;
    let before = distance(arguments)?;
    running.resume()?;
    let measured = new_connections(site, arguments, &mut running, task);
    running.pause()?;
    let (measured, busy_cycles) = match measured {
        Ok(measured) => measured,
        Err(why) => {
            let line = format!("{part}: {candidate}: {why:#}");
            say(&format!("FAILED {line}"));
            results.failures.push(line);
            return Ok(());
        }
    };
    let line_transfer = Some([before, distance(arguments)?]);
    let sample = Sample {
        part,
        candidate,
        guests: "new",
        queues: 1,
        size: SIZE,
        round,
        mpps: measured.mpps[0],
        gbps: measured.mpps[0] * SIZE as f64 * 8.0 / 1e3,
        busy_cycles,
        line_transfer,
        generator_busy: Some(measured.generator_busy),
    };
    note(results, sample);
    Ok(())
}

/// Entries without an answer live for a second, so that as many expire as come.
fn short_lived(running: &mut Running, task: Task) -> Result<()> {
    if let Some(control) = running.control() {
        if let Task::Balance { .. } = task {
            let timeouts = json!({ "set-timeouts": { "tcp": 0, "tcp_fin": 0, "udp": 1 } });
            control.call("ipvs.apply", json!({ "changes": [timeouts] }))?;
        }
        control.call("conntrack.set-timeout", json!({ "kind": "udp", "seconds": 1 }))?;
    }
    Ok(())
}

fn new_connections(
    site: &Site,
    arguments: &Arguments,
    running: &mut Running,
    task: Task,
) -> Result<(crate::flows::Measured, Option<f64>)> {
    let [inner, outer] = running.sockets() else { anyhow::bail!("a router has two ports") };
    let destinations = match task {
        Task::Balance { .. } => vec![layer3::service(0).into()],
        _ => layer3::destinations(4096),
    };
    let mut traffic = traffic(arguments, task, 0, destinations);
    traffic.one_way = true;
    let mut generator = FlowGenerator::connect([inner, outer], &traffic)?;
    // Long enough that entries expire all the while.
    let measured = on_its_core(site, || generator.run(seconds(1.5), seconds(0.1)))?;
    ensure!(measured.mpps[0] > 0.0, "nothing arrived");
    running.reset()?;
    let measured = on_its_core(site, || generator.run(seconds(0.0), seconds(2.0 * arguments.seconds())))?;
    ensure!(measured.wrong == 0, "{} frames arrived wrong", measured.wrong);
    Ok((measured, running.busy_cycles()?))
}

/// Half a minute of new connections (a few seconds in a short run) beside as long with established ones.
fn sustained(site: &Site, arguments: &Arguments, found: &mut Connections) -> Result<()> {
    let task = Task::Snat { limit: ROOM };
    let length = seconds(if arguments.is_quick() { 3.0 } else { 30.0 });
    for (count, new) in [(1024, false), (0, true)] {
        let mut running = Kind::Shunt.launch(site, &Wiring::layer3(task))?;
        short_lived(&mut running, task)?;
        let [inner, outer] = running.sockets() else { anyhow::bail!("a router has two ports") };
        let mut traffic = traffic(arguments, task, count, layer3::destinations(4096));
        traffic.one_way = true;
        let mut generator = FlowGenerator::connect([inner, outer], &traffic)?;
        let faults = worker_faults(running.pid())?;
        let measured = on_its_core(site, || generator.run(seconds(1.5), length))?;
        if new {
            found.gap_new_us = measured.gap_us;
            found.worker_faults = worker_faults(running.pid())? - faults;
            found.sustained_mcps = measured.mpps[0];
        } else {
            found.gap_established_us = measured.gap_us;
        }
    }
    Ok(())
}

/// Page faults of the workers of a shuntd so far, those that the kernel served from memory (proc_pid_stat(5), minflt).
fn worker_faults(pid: u32) -> Result<u64> {
    let mut sum = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let stat = std::fs::read_to_string(task?.path().join("stat"))?;
        let (name, fields) = stat.rsplit_once(')').context("stat")?;
        if name.contains("(shunt-w") {
            let faults = fields.split_whitespace().nth(7).context("stat")?;
            sum += faults.parse::<u64>().context("stat")?;
        }
    }
    Ok(sum)
}

/// KiB resident of a process's own memory.
fn anonymous_kib(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let number = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0)
    };
    Ok(number("RssAnon:") + number("RssShmem:"))
}

fn full_table(site: &Site, arguments: &Arguments, found: &mut Connections) -> Result<()> {
    // Room for all, whatever the buckets' filling.
    let task = Task::Snat { limit: FULL as u32 };
    let mut running = Kind::Shunt.launch(site, &Wiring { busy: false, ..Wiring::layer3(task) })?;
    let pid = running.pid();
    let [inner, outer] = running.sockets() else { anyhow::bail!("a router has two ports") };
    let traffic = traffic(arguments, task, FULL, layer3::destinations(4096));
    let mut generator = FlowGenerator::connect([inner, outer], &traffic)?;
    // The rings' and guests' pages are there before the first connection is.
    let before = anonymous_kib(pid)?;
    let control = running.control().context("shunt has a control socket")?;
    // A table may be full a little before its limit: unanswered entries make way, which their flows then do again.
    for kind in ["udp", "udp_stream"] {
        control.call("conntrack.set-timeout", json!({ "kind": kind, "seconds": LIFE.as_secs() }))?;
    }
    on_its_core(site, || generator.establish(Duration::from_secs(180)))?;
    let established = Instant::now();
    let control = running.control().context("shunt has a control socket")?;
    let count = |control: &mut crate::peers::Control| -> Result<u64> {
        control.call("conntrack.count", json!({}))?["count"].as_u64().context("no count")
    };
    found.full = count(control)?;
    found.full_mib = anonymous_kib(pid)?.saturating_sub(before) as f64 / 1024.0;
    found.rest_share = cpu_share(pid, Duration::from_secs(if arguments.is_quick() { 2 } else { 5 }))?;

    // Nobody sends any more: they end as they were last seen, one after the other.
    let (cpu, start) = (super::idle::cpu_ns(pid)?, Instant::now());
    let control = running.control().context("shunt has a control socket")?;
    let first = count(control)?;
    let mut left = first;
    while left > 0 && established.elapsed() < LIFE * 3 {
        std::thread::sleep(Duration::from_secs(1));
        left = count(control)?;
    }
    let seconds = start.elapsed().as_secs_f64();
    found.expiry_share = (super::idle::cpu_ns(pid)? - cpu) as f64 / 1e9 / seconds;
    found.expired_per_second = (first - left) as f64 / seconds;
    Ok(())
}

fn cpu_share(pid: u32, length: Duration) -> Result<f64> {
    let (before, start) = (super::idle::cpu_ns(pid)?, Instant::now());
    std::thread::sleep(length);
    Ok((super::idle::cpu_ns(pid)? - before) as f64 / 1e9 / start.elapsed().as_secs_f64())
}

/// As Markdown.
pub(super) fn markdown(found: &Connections) -> String {
    let mut text =
        "\n### Connections: what does not show in rates\n\n| figure | value |\n|---|---|\n".to_owned();
    let gap = |gap: [f64; 2]| format!("{:.0} / {:.0} us", gap[0], gap[1]);
    let rows = [
        ("time without an arrival, established flows: 99.99 % / longest", gap(found.gap_established_us)),
        ("the same while each frame makes a connection and as many expire", gap(found.gap_new_us)),
        ("page faults of the worker over that time", found.worker_faults.to_string()),
        ("new connections over that time", format!("{:.2} million a second", found.sustained_mcps)),
        ("connections of a full table", found.full.to_string()),
        ("their memory", format!("{:.0} MiB", found.full_mib)),
        ("share of a core while they rest", format!("{:.2} %", found.rest_share * 100.0)),
        (
            "share of a core while they expire",
            format!("{:.2} % for {:.0} a second", found.expiry_share * 100.0, found.expired_per_second),
        ),
    ];
    for (name, value) in rows {
        let _ = writeln!(text, "| {name} | {value} |");
    }
    text
}
