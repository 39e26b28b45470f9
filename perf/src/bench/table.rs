#![forbid(unsafe_code)]
//! The table of connections alone, in this process: what a lookup, a new connection and its end cost, and what two
//! workers make of it that share the table. No frames, no rings; bursts of 64 as the workers have them.

use std::fmt::Write as _;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde::Serialize;
use shunt_switch::conntrack::{Key4, Local, Timeout};

use super::{Arguments, Results, say};
use crate::clock::{cycles_per_second, pin, thread_seconds};
use crate::tracker::{BURST, answer, enter, key, new_table};

/// Room for what lives at once.
const CAPACITY: u32 = 4_194_304;

/// What was found, of one worker and of two.
#[derive(Clone, Debug, Default, Serialize)]
pub struct TableCosts {
    /// Rows: what was done, by how many connections.
    pub rows: Vec<Row>,
    /// MiB of address space that the tables may take when full.
    pub mib: f64,
}

/// A thing that was done.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What.
    pub what: &'static str,
    /// Connections there were, 0 for as many as came.
    pub connections: u64,
    /// Millions a second: one worker, two workers together.
    pub millions: [f64; 2],
    /// Cycles each: one worker, the mean of two.
    pub cycles: [f64; 2],
}

/// What one worker did, and in which time on its processor: what others took of it does not count.
struct Done {
    count: u64,
    seconds: f64,
}

/// Runs `work` on a thread for each core at once, and adds up.
fn on_cores(cores: &[usize], work: impl Fn(usize, &Barrier) -> Done + Sync) -> Result<(f64, f64)> {
    let barrier = Barrier::new(cores.len());
    let done: Vec<Done> = std::thread::scope(|scope| {
        let threads: Vec<_> = cores
            .iter()
            .enumerate()
            .map(|(worker, &core)| {
                let (work, barrier) = (&work, &barrier);
                scope.spawn(move || -> Result<Done> {
                    pin(core)?;
                    Ok(work(worker, barrier))
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow::anyhow!("a worker panicked"))?)
            .collect::<Result<_>>()
    })?;
    let millions = done.iter().map(|d| d.count as f64 / d.seconds / 1e6).sum();
    let each = done.iter().map(|d| d.seconds / d.count.max(1) as f64).sum::<f64>() / done.len() as f64;
    Ok((millions, each * cycles_per_second()))
}

/// Looks up and counts packets of `connections` established ones: worker 0 those of the side that began, worker 1 those
/// of the other side, so that both work on the same connections.
fn look_up(cores: &[usize], connections: u64, length: Duration) -> Result<(f64, f64)> {
    let (table, epochs) = new_table(CAPACITY, 1);
    epochs.arrive(0);
    let mut local = Local::new(0);
    for n in 0..connections {
        ensure!(
            enter(&table, &mut local, key(n), 1).is_some(),
            "connection {n} of {connections} was refused"
        );
        if n % 4096 == 0 {
            table.prepare();
        }
    }
    on_cores(cores, |worker, barrier| {
        let side = |n: u64| {
            let original = key(n % connections);
            if worker == 0 { original } else { answer(&original) }
        };
        let mut next = worker as u64 * 977;
        let mut found = 0_u64;
        let mut keys = [Key4::default(); BURST];
        barrier.wait();
        let (start, first) = (Instant::now(), thread_seconds());
        while start.elapsed() < length {
            for _ in 0..64 {
                for key in &mut keys {
                    *key = side(next);
                    next += 1;
                }
                found += crate::tracker::look_up(&table, &keys, 1) as u64;
            }
        }
        Done { count: found, seconds: thread_seconds() - first }
    })
}

/// Enters connections that nobody answers and that live for a second, while those before them end.
fn come_and_go(cores: &[usize], length: Duration) -> Result<(f64, f64)> {
    let workers = cores.len();
    let (table, epochs) = new_table(CAPACITY, workers);
    ensure!(table.shared.timeouts.set(Timeout::Udp, 1), "a timeout of one second is refused");
    let over = AtomicU32::new(0);
    std::thread::scope(|scope| {
        // What the control thread does meanwhile.
        let keeper = scope.spawn(|| {
            while over.load(Ordering::Acquire) == 0 {
                table.prepare();
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let result = on_cores(cores, |worker, barrier| {
            let mut local = Local::new(worker);
            epochs.arrive(worker);
            let mut next = (worker as u64) << 31;
            let mut entered = 0_u64;
            barrier.wait();
            let start = Instant::now();
            // Counted from the moment at which entries expire, too.
            let warm = Duration::from_millis(2500);
            let (mut counted_from, mut seconds_from) = (0, 0.0);
            let mut counting = false;
            while start.elapsed() < warm + length {
                if !counting && start.elapsed() >= warm {
                    (counted_from, seconds_from) = (entered, thread_seconds());
                    counting = true;
                }
                let now = 1 + start.elapsed().as_secs() as u32;
                for _ in 0..16 {
                    for _ in 0..BURST {
                        let original = key(next);
                        next += 1;
                        entered += u64::from(enter(&table, &mut local, original, now).is_some());
                    }
                    epochs.quiesce(worker);
                    local.turn(&table, now);
                }
            }
            epochs.leave(worker);
            Done { count: entered - counted_from, seconds: thread_seconds() - seconds_from }
        });
        over.store(1, Ordering::Release);
        let _ = keeper.join();
        result
    })
}

/// Measures; the result goes into `results.table`.
pub(super) fn run(arguments: &Arguments, results: &mut Results) -> Result<()> {
    let (one, two) = (&[arguments.switch_core][..], &[arguments.switch_core, arguments.guest_core][..]);
    let length = super::seconds(arguments.seconds());
    let mut costs = TableCosts {
        mib: new_table(CAPACITY, 2).0.v4.bytes() as f64 / f64::from(1 << 20),
        ..Default::default()
    };
    type Work<'a> = &'a dyn Fn(&[usize]) -> Result<(f64, f64)>;
    let few = |cores: &[usize]| look_up(cores, 1 << 10, length);
    let many = |cores: &[usize]| look_up(cores, 1 << 20, length);
    let new = |cores: &[usize]| come_and_go(cores, 2 * length);
    let all: [(&str, u64, Work<'_>); 3] =
        [("lookup", 1 << 10, &few), ("lookup", 1 << 20, &many), ("new connection and its end", 0, &new)];
    for (what, connections, work) in all {
        let mut best = Row { what, connections, millions: [0.0; 2], cycles: [f64::MAX; 2] };
        for _ in 0..arguments.rounds() {
            for (n, cores) in [one, two].into_iter().enumerate() {
                let (millions, each) = work(cores)?;
                best.millions[n] = best.millions[n].max(millions);
                best.cycles[n] = best.cycles[n].min(each);
            }
        }
        say(&format!("table: {best:?}"));
        costs.rows.push(best);
    }
    results.table = Some(costs);
    Ok(())
}

/// As Markdown.
pub(super) fn markdown(costs: &TableCosts) -> String {
    let mut text = format!(
        "\n### The table of connections alone (best of all rounds; {CAPACITY} connections of IPv4 take {:.0} MiB)\n\n\
         | what | connections | one worker | two workers | two / one | cycles each: one | two |\n\
         |---|---|---|---|---|---|---|\n",
        costs.mib
    );
    for row in &costs.rows {
        let [one, two] = row.millions;
        let connections =
            if row.connections == 0 { "as they come".into() } else { row.connections.to_string() };
        let _ = writeln!(
            text,
            "| {} | {connections} | {one:.2} million a second | {two:.2} | {:.2} | {:.0} | {:.0} |",
            row.what,
            two / one,
            row.cycles[0],
            row.cycles[1]
        );
    }
    text
}
