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
    /// The longest time in which a guest that is sent a frame every 50 us got none.
    pub gap_ms: (f64, f64),
    /// The command as a whole.
    pub command_ms: (f64, f64),
    /// Frames between those guests that got lost in all rounds, and how many were sent.
    pub lost: (u64, u64),
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

/// Sends a frame every [`PACE`] until told to stop; the longest time without one at the receiver, lost ones, all.
fn watch(sender: &mut Guest, receiver: &mut Guest, stop: &AtomicBool) -> Result<(Duration, u64, u64)> {
    let frame = frames::udp(2, 3, 64, 0);
    let (mut longest, mut sent, mut got) = (Duration::ZERO, 0, 0);
    let mut last = Instant::now();
    let mut next = last;
    let mut end = None;
    loop {
        let now = Instant::now();
        let arrived = receiver.receive()?.len() as u64;
        if arrived > 0 {
            got += arrived;
            longest = longest.max(now - last);
            last = now;
        }
        match end {
            None if stop.load(Ordering::Relaxed) => end = Some(now + Duration::from_millis(50)),
            None if now >= next => {
                // A full ring is as good as a lost frame.
                sender.send(&[&frame])?;
                sent += 1;
                next = now + PACE;
            }
            Some(end) if now > end || got >= sent => return Ok((longest, sent.saturating_sub(got), sent)),
            _ => {}
        }
    }
}

/// Measures; the result goes into `results.takeover`.
pub(super) fn run(site: &Site, arguments: &Arguments, results: &mut Results) -> Result<()> {
    let dir = site.scratch.join("takeover");
    std::fs::create_dir_all(&dir)?;
    let (file, socket) = (dir.join("shunt.toml"), dir.join("control.sock"));
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
        "warn".into(),
        "--config".into(),
        file.display().to_string(),
    ]
    .into();
    Process::adopt_orphans();
    let mut process = Process::start("shuntd", &argv, &dir.join("shuntd.log"), None);
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
    let [mut pauses, mut gaps, mut commands] = [const { Vec::new() }; 3];
    let mut lost = (0, 0);
    for _ in 0..rounds {
        let stop = AtomicBool::new(false);
        let (done, seen, taken) = std::thread::scope(|scope| {
            let watching = scope.spawn(|| {
                crate::clock::pin(site.guest_core)?;
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
        let (longest, missing, sent) =
            seen.map_err(|_| anyhow::anyhow!("the watching thread panicked"))??;
        let pid =
            done["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).context("no process goes on")?;
        process.follow(pid);
        let kept = call("conntrack.count", json!({}))?["count"].as_u64().unwrap_or(0);
        ensure!(kept >= connections, "{kept} of {connections} connections are left");
        pauses.push(done["pause_microseconds"].as_f64().unwrap_or(f64::NAN) / 1e3);
        gaps.push(longest.as_secs_f64() * 1e3);
        commands.push(taken.as_secs_f64() * 1e3);
        lost = (lost.0 + missing, lost.1 + sent);
    }
    let summary = |times: Vec<f64>| (median(times.clone()), times.into_iter().fold(0.0, f64::max));
    let takeover = Takeover {
        ports: PORTS,
        connections,
        rounds,
        pause_ms: summary(pauses),
        gap_ms: summary(gaps),
        command_ms: summary(commands),
        lost,
    };
    say(&format!("takeover: {takeover:?}"));
    results.takeover = Some(takeover);
    Ok(())
}

pub(super) fn markdown(takeover: &Takeover) -> String {
    let row = |what: &str, (median, most): (f64, f64)| format!("| {what} | {median:.2} | {most:.2} |\n");
    format!(
        "\n## Planned restart: {} ports, {} connections, {} times\n\n| ms | median | most |\n|---|---|---|\n{}{}{}\n\
         {} of {} frames between two guests got lost.\n",
        takeover.ports,
        takeover.connections,
        takeover.rounds,
        row("no packet carried, by the daemon's word", takeover.pause_ms),
        row("no frame at a guest that is sent one every 50 us", takeover.gap_ms),
        row("the command", takeover.command_ms),
        takeover.lost.0,
        takeover.lost.1
    )
}
