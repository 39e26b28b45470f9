#![forbid(unsafe_code)]
//! What a planned restart costs: for how long no frame passes while a new process takes over a hundred ports and a
//! hundred thousand translated connections, by the daemon's own word and as guests see it.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::{Value, json};
use shunt_tests::process::Process;

use super::report::median;
use super::{Arguments, Results, say};
use crate::frames;
use crate::guest::{Guest, Options};
use crate::peers::{Control, Site};

/// Connected ports: a client, a server outside, two that measure, and silent ones.
const PORTS: usize = 100;
/// Connections, each translated.
const CONNECTIONS: usize = 100_000;
/// Where they go: each destination has fewer than 64,000 of them.
const DESTINATIONS: usize = 2;
/// Between two frames of the guests that measure.
const PACE: Duration = Duration::from_micros(50);

const GATEWAY: [u8; 6] = [2, 0, 0, 0, 0xee, 1];
const OUTER: [u8; 6] = [2, 0, 0, 0, 0xee, 2];

/// What was found; milliseconds are median and most of the rounds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Takeover {
    /// Connected ports.
    pub ports: usize,
    /// Connections in the table.
    pub connections: u64,
    /// Restarts.
    pub rounds: usize,
    /// From the moment that the old process' workers stand still until the new one says that its workers run.
    pub pause_ms: (f64, f64),
    /// The longest time in which a guest that is sent a frame every 50 us got none. Its thread has real-time priority, as
    /// it shares its core with everything but the switch's worker.
    pub gap_ms: (f64, f64),
    /// The longest time in which the thread that plays these guests did not run itself: what it saw is no more exact.
    pub absent_ms: (f64, f64),
    /// The command as a whole.
    pub command_ms: (f64, f64),
    /// Frames that those guests had for each other, in all rounds.
    pub sent: u64,
    /// Of these, such that the sender's full ring had no room for: a guest's kernel would have kept them.
    pub unplaced: u64,
    /// Of the others, such that did not arrive.
    pub lost: u64,
}

fn config(dir: &std::path::Path) -> String {
    let mut text = format!(
        "[conntrack]\nlimit = 262144\nport_quota = 262144\n[conntrack.timeouts]\nudp = 3600\n\
         [[bridge]]\nname = \"lan\"\n[[bridge]]\nname = \"wan\"\n\
         [[interface]]\nname = \"gw\"\nbridge = \"lan\"\nmac = \"{}\"\naddress = [\"10.0.0.1/16\"]\n\
         [[interface]]\nname = \"up\"\nbridge = \"wan\"\nmac = \"{}\"\naddress = [\"192.0.2.1/24\"]\n\
         [[nat.masquerade]]\nsource = \"10.0.0.0/16\"\nout = \"up\"\n",
        spelt(GATEWAY),
        spelt(OUTER)
    );
    for n in 0..DESTINATIONS {
        let _ = write!(
            text,
            "[[neighbour]]\ninterface = \"up\"\naddress = \"192.0.2.{}\"\nmac = \"{}\"\n",
            10 + n,
            spelt(frames::mac(1))
        );
    }
    for n in 0..PORTS {
        let bridge = if n == 1 { "wan" } else { "lan" };
        let _ = write!(
            text,
            "[[port]]\nname = \"v{n}\"\nbridge = \"{bridge}\"\nvhost_user = {:?}\n",
            dir.join(format!("v{n}"))
        );
    }
    text
}

fn spelt(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// The first packet of a connection.
fn first_packet(n: usize) -> Vec<u8> {
    let (source, destination) = (2000 + (n / DESTINATIONS) as u16, (n % DESTINATIONS) as u8);
    frames::routed(GATEWAY, frames::mac(0), [10, 0, 0, 2], [192, 0, 2, 10 + destination], source, 60)
}

/// Makes all connections: each is entered when its first packet has come out at the other end.
fn connect(client: &mut Guest, server: &mut Guest) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(120);
    let (mut sent, mut got) = (0, 0);
    while got < CONNECTIONS {
        ensure!(Instant::now() < deadline, "{got} of {CONNECTIONS} first packets came through");
        while sent < CONNECTIONS && sent - got < 128 && client.send(&[&first_packet(sent)])? == 1 {
            sent += 1;
        }
        got += server.receive()?.len();
    }
    Ok(())
}

/// What the two guests saw that send each other frames.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// The longest time without a frame at the receiver.
    gap: Duration,
    /// The longest time in which their thread did not run itself.
    absent: Duration,
    /// Frames that the sender had.
    sent: u64,
    /// Such that its full ring had no room for.
    unplaced: u64,
    /// Frames that arrived.
    arrived: u64,
}

/// Sends a frame every [`PACE`] until told to stop, and looks what arrives. In between it sleeps: others need the core.
fn watch(sender: &mut Guest, receiver: &mut Guest, stop: &AtomicBool) -> Result<Seen> {
    let frame = frames::udp(2, 3, 64, 0);
    let mut seen = Seen::default();
    let mut last = Instant::now();
    let (mut before, mut next) = (last, last);
    let mut end = None;
    loop {
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        let now = Instant::now();
        seen.absent = seen.absent.max(now - before);
        before = now;
        // Others are announcements of the switch.
        let arrived = receiver.receive()?.iter().filter(|one| **one == frame).count() as u64;
        if arrived > 0 {
            seen.arrived += arrived;
            seen.gap = seen.gap.max(now - last);
            last = now;
        }
        match end {
            None if stop.load(Ordering::Relaxed) => end = Some(now + Duration::from_millis(500)),
            None if now >= next => {
                seen.sent += 1;
                seen.unplaced += u64::from(sender.send(&[&frame])? == 0);
            }
            Some(end) if now > end || seen.arrived >= seen.sent - seen.unplaced => return Ok(seen),
            _ => {}
        }
        while next <= now {
            next += PACE;
        }
    }
}

/// Measures; the result goes into `results.takeover`.
pub(super) fn run(site: &Site, arguments: &Arguments, results: &mut Results) -> Result<()> {
    let dir = site.scratch.join("takeover");
    std::fs::create_dir_all(&dir)?;
    let (file, socket) = (dir.join("shunt.toml"), dir.join("control.sock"));
    let log = dir.join("shuntd.log");
    std::fs::write(&file, config(&dir))?;
    let argv: Vec<String> = [
        site.programs.join("shuntd").display().to_string(),
        "--control".into(),
        socket.display().to_string(),
        "--state-dir".into(),
        dir.join("state").display().to_string(),
        "--cores".into(),
        site.switch_core.to_string(),
        "--log".into(),
        "info".into(),
        "--config".into(),
        file.display().to_string(),
    ]
    .into();
    Process::adopt_orphans();
    let mut process = Process::start("shuntd", &argv, &log, None);
    let options = Options { ring_size: arguments.ring, ..Options::default() };
    let mut guests = (0..PORTS)
        .map(|n| Guest::connect(dir.join(format!("v{n}")), &options))
        .collect::<Result<Vec<_>>>()
        .with_context(|| process.tail(20))?;
    let call =
        |method: &str, params: Value| -> Result<Value> { Control::connect(&socket)?.call(method, params) };
    let [client, server, sender, receiver, ..] = &mut guests[..] else { anyhow::bail!("too few guests") };
    // So that the bridge knows who is where.
    receiver.send(&[&frames::udp(3, 2, 64, 0)])?;
    server.send(&[&frames::udp(1, 255, 64, 0)])?;
    sender.receive_until(1, Duration::from_secs(5))?;
    connect(client, server)?;
    let connections = call("conntrack.count", json!({}))?["count"].as_u64().unwrap_or(0);
    ensure!(connections >= CONNECTIONS as u64, "{connections} connections");

    let rounds = if arguments.is_quick() { 3 } else { 20 };
    let [mut pauses, mut gaps, mut absences, mut commands] = [const { Vec::new() }; 4];
    let mut all = Seen::default();
    for _ in 0..rounds {
        let stop = AtomicBool::new(false);
        let (done, seen, taken) = std::thread::scope(|scope| {
            let watching = scope.spawn(|| {
                crate::clock::pin(site.guest_core)?;
                super::vhost::promote_self()?;
                watch(sender, receiver, &stop)
            });
            std::thread::sleep(Duration::from_millis(100));
            let begun = Instant::now();
            let done = call("daemon.upgrade", json!({}));
            let taken = begun.elapsed();
            std::thread::sleep(Duration::from_millis(100));
            stop.store(true, Ordering::Relaxed);
            (done, watching.join(), taken)
        });
        let done = done.with_context(|| process.tail(20))?;
        let seen = seen.map_err(|_| anyhow::anyhow!("the watching thread panicked"))??;
        let pid =
            done["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).context("no process goes on")?;
        process.follow(pid);
        let kept = call("conntrack.count", json!({}))?["count"].as_u64().unwrap_or(0);
        ensure!(kept >= connections, "{kept} of {connections} connections are left");
        pauses.push(done["pause_microseconds"].as_f64().unwrap_or(f64::NAN) / 1e3);
        gaps.push(seen.gap.as_secs_f64() * 1e3);
        absences.push(seen.absent.as_secs_f64() * 1e3);
        commands.push(taken.as_secs_f64() * 1e3);
        all.sent += seen.sent;
        all.unplaced += seen.unplaced;
        all.arrived += seen.arrived;
        for line in std::fs::read_to_string(&log)?.lines().rev().filter(|line| line.contains("us, ")).take(2)
        {
            say(line);
        }
        say(&format!("pause {:?} ms, {seen:?}", pauses.last()));
    }
    let summary = |times: Vec<f64>| (median(times.clone()), times.into_iter().fold(0.0, f64::max));
    let takeover = Takeover {
        ports: PORTS,
        connections,
        rounds,
        pause_ms: summary(pauses),
        gap_ms: summary(gaps),
        absent_ms: summary(absences),
        command_ms: summary(commands),
        sent: all.sent,
        unplaced: all.unplaced,
        lost: (all.sent - all.unplaced).saturating_sub(all.arrived),
    };
    say(&format!("takeover: {takeover:?}"));
    results.takeover = Some(takeover);
    Ok(())
}

pub(super) fn markdown(takeover: &Takeover) -> String {
    let row = |what: &str, (median, most): (f64, f64)| format!("| {what} | {median:.2} | {most:.2} |\n");
    format!(
        "\n## Planned restart: {} ports, {} connections, {} times\n\n| ms | median | most |\n|---|---|---|\n{}{}{}{}\n\
         Of {} frames between two guests {} got lost, and {} were not sent, since the sender's ring was full.\n",
        takeover.ports,
        takeover.connections,
        takeover.rounds,
        row("no packet carried, by the daemon's word", takeover.pause_ms),
        row("no frame at a guest that is sent one every 50 us", takeover.gap_ms),
        row("the guest itself did not run", takeover.absent_ms),
        row("the command", takeover.command_ms),
        takeover.sent,
        takeover.lost,
        takeover.unplaced
    )
}
