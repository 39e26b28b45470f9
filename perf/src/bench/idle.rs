#![forbid(unsafe_code)]
//! What shunt costs when nothing happens: a hundred connected ports, no traffic, adaptive polling. And what waking up
//! costs: the first frame after silence, and the rate of adaptive beside busy workers.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use serde::Serialize;
use serde_json::json;

use super::report::median;
use super::{Arguments, Results, say};
use crate::frames;
use crate::guest::{Guest, Options};
use crate::peers::{Candidate, Shunt, Site, Wiring};

/// Ports that are connected and silent.
const PORTS: usize = 100;
/// Frames after silence.
const WAKES: usize = 300;

/// What was found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Idle {
    /// Connected ports.
    pub ports: usize,
    /// Milliseconds that `port.add` took on the control socket: median and most.
    pub add_port_ms: (f64, f64),
    /// KiB resident with all ports connected: all, private (anonymous), program files, shared with guests.
    pub resident_kib: [u64; 4],
    /// Share of a core that the daemon took, all threads together.
    pub cpu_share: f64,
    /// Seconds over which that was watched.
    pub cpu_seconds: f64,
    /// Microseconds from the guest's kick to the frame in the other guest's ring: median, 90th, 99th percentile, most.
    pub wake_us: [f64; 4],
    /// The same of a bare wake-up: an eventfd, epoll and two threads on the same cores.
    pub bare_wake_us: [f64; 4],
}

/// Nanoseconds on a processor, all threads.
pub(super) fn cpu_ns(pid: u32) -> Result<u64> {
    let mut sum = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
        sum += text.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).context("schedstat")?;
    }
    Ok(sum)
}

fn resident(pid: u32) -> Result<[u64; 4]> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| {
        let line = status.lines().find(|l| l.starts_with(name)).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0)
    };
    Ok(["VmRSS:", "RssAnon:", "RssFile:", "RssShmem:"].map(field))
}

/// Measures; the result goes into `results.idle`.
pub(super) fn run(site: &Site, arguments: &Arguments, results: &mut Results) -> Result<()> {
    let dir = site.scratch.join("idle");
    std::fs::create_dir_all(&dir)?;
    let wiring = Wiring { sockets: 0, busy: false, ..Wiring::pair(1) };
    let mut shunt = Shunt::launch(site, &dir, &wiring)?;
    let mut add = Vec::new();
    let mut paths = Vec::new();
    for n in 0..PORTS {
        let path = dir.join(format!("v{n}"));
        let request = json!({ "name": format!("v{n}"), "bridge": "bench", "vhost_user": path });
        let start = Instant::now();
        shunt.control().call("port.add", request)?;
        add.push(start.elapsed().as_secs_f64() * 1e3);
        paths.push(path);
    }
    let options = Options { ring_size: arguments.ring, ..Options::default() };
    let mut guests = paths.iter().map(|p| Guest::connect(p, &options)).collect::<Result<Vec<_>>>()?;
    let pid = shunt.process().pid();
    // Everybody says a word, so that every ring has been touched, and the table knows everybody.
    for n in 0..PORTS {
        let frame = frames::udp(n as u8 + 1, 255, 64, 0);
        guests[n].send(&[&frame])?;
        let got = guests[(n + 1) % PORTS].receive_until(1, Duration::from_secs(5))?;
        ensure!(!got.is_empty(), "guest {} heard nothing of guest {n}", (n + 1) % PORTS);
        for guest in &mut guests {
            guest.receive()?;
        }
    }
    let resident_kib = resident(pid)?;

    let length = Duration::from_secs_f64(if arguments.is_quick() { 2.0 } else { 10.0 });
    std::thread::sleep(Duration::from_millis(200));
    let (before, start) = (cpu_ns(pid)?, Instant::now());
    std::thread::sleep(length);
    let cpu_seconds = start.elapsed().as_secs_f64();
    let cpu_share = (cpu_ns(pid)? - before) as f64 / 1e9 / cpu_seconds;

    let wake_us = wake(site, &mut guests)?;
    let bare_wake_us = bare_wake(site)?;
    let most = add.iter().copied().fold(0.0, f64::max);
    let idle = Idle {
        ports: PORTS,
        add_port_ms: (median(add), most),
        resident_kib,
        cpu_share,
        cpu_seconds,
        wake_us,
        bare_wake_us,
    };
    say(&format!("idle: {idle:?}"));
    results.idle = Some(idle);
    Ok(())
}

/// Guest 0 sends to guest 1 after a silence much longer than a worker's patience; we poll guest 1's ring.
fn wake(site: &Site, guests: &mut [Guest]) -> Result<[f64; 4]> {
    let frame = frames::udp(1, 2, 64, 0);
    let (first, rest) = guests.split_at_mut(1);
    let (sender, receiver) = (&mut first[0], &mut rest[0]);
    std::thread::scope(|scope| {
        let work = || -> Result<[f64; 4]> {
            crate::clock::pin(site.guest_core)?;
            let mut times = Vec::new();
            for n in 0..WAKES {
                std::thread::sleep(Duration::from_micros(2000 + (n as u64 * 37) % 3000));
                receiver.receive()?;
                let start = Instant::now();
                sender.send(&[&frame])?;
                while receiver.receive()?.is_empty() {
                    ensure!(
                        start.elapsed() < Duration::from_secs(2),
                        "frame {n} after silence did not arrive"
                    );
                }
                times.push(start.elapsed().as_secs_f64() * 1e6);
            }
            Ok(quantiles(times))
        };
        scope.spawn(work).join().map_err(|_| anyhow::anyhow!("the measuring thread panicked"))?
    })
}

/// What the machine itself takes to wake a thread that sleeps in epoll on the switch's core, from a write to its
/// eventfd until it runs: the floor of [`wake`], in the same run.
fn bare_wake(site: &Site) -> Result<[f64; 4]> {
    let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(&event, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
    let woken = AtomicU64::new(0);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let sleeper = scope.spawn(|| -> Result<()> {
            crate::clock::pin(site.switch_core)?;
            for _ in 0..WAKES {
                ensure!(
                    epoll.wait(&mut [EpollEvent::empty()], 2000u16)? == 1,
                    "no wake-up within two seconds"
                );
                woken.store(begun.elapsed().as_nanos() as u64, Ordering::Release);
                event.read()?;
            }
            Ok(())
        });
        let waker = scope.spawn(|| -> Result<[f64; 4]> {
            crate::clock::pin(site.guest_core)?;
            let mut times = Vec::new();
            for n in 0..WAKES {
                std::thread::sleep(Duration::from_micros(2000 + (n as u64 * 37) % 3000));
                woken.store(0, Ordering::Release);
                let start = begun.elapsed().as_nanos() as u64;
                event.write(1)?;
                let end = loop {
                    match woken.load(Ordering::Acquire) {
                        0 => {
                            ensure!(begun.elapsed().as_nanos() as u64 - start < 2_000_000_000, "it sleeps on")
                        }
                        end => break end,
                    }
                };
                times.push(end.saturating_sub(start) as f64 / 1e3);
            }
            Ok(quantiles(times))
        });
        sleeper.join().map_err(|_| anyhow::anyhow!("the sleeping thread panicked"))??;
        waker.join().map_err(|_| anyhow::anyhow!("the waking thread panicked"))?
    })
}

/// Median, 90 %, 99 % and most.
pub(super) fn quantiles(mut values: Vec<f64>) -> [f64; 4] {
    values.sort_by(f64::total_cmp);
    [0.5, 0.9, 0.99, 1.0].map(|share| values[((values.len() - 1) as f64 * share) as usize])
}

/// As Markdown.
pub(super) fn markdown(idle: &Idle) -> String {
    let mut text = format!(
        "\n### {} connected ports, no traffic, adaptive polling\n\n| figure | value |\n|---|---|\n",
        idle.ports
    );
    let [rss, anonymous, file, shared] = idle.resident_kib.map(|kib| kib as f64 / 1024.0);
    let rows = [
        ("adding a port, median / most", format!("{:.2} / {:.2} ms", idle.add_port_ms.0, idle.add_port_ms.1)),
        (
            "resident",
            format!("{rss:.1} MiB ({anonymous:.1} own, {file:.1} program, {shared:.1} guests' memory)"),
        ),
        ("share of a core", format!("{:.2} % over {:.0} s", idle.cpu_share * 100.0, idle.cpu_seconds)),
        (
            "first frame after silence: median / 90 % / 99 % / most",
            idle.wake_us.map(|us| format!("{us:.0}")).join(" / ") + " us",
        ),
        (
            "a bare eventfd wake-up between the same cores: the same",
            idle.bare_wake_us.map(|us| format!("{us:.0}")).join(" / ") + " us",
        ),
    ];
    for (name, value) in rows {
        let _ = writeln!(text, "| {name} | {value} |");
    }
    text
}
