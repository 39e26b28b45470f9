//! Measures the connection table alone: what a packet of a known connection costs, what a new connection costs, how
//! much memory one takes, how two workers get on with each other. Times are the best of many short rounds, so that
//! what else runs on the machine hardly shows.
//!
//! `cargo run --release -p shunt-perf --bin connections`

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::resource::{UsageWho, getrusage};
use shunt_switch::clock;
use shunt_switch::conntrack::{Conntrack, Key, Key4, Limits, Local, NewConnection, Packet, Ref};
use shunt_switch::worker::epoch::Epochs;

const BURST: usize = 64;
const PACKET: Packet = Packet { bytes: 46, tcp: None, sctp: None };

fn key(n: u32) -> Key4 {
    let n = n.wrapping_mul(0x9e37_79b1);
    Key {
        source: 0x0a00_0000 + (n >> 16),
        destination: 0xc000_0201,
        source_port: n as u16,
        destination_port: 80,
        protocol: 17,
    }
}

/// The tuple of answers, with a translated source that no other connection has.
fn answer(n: u32) -> Key4 {
    let to = key(n).reversed();
    Key4 { destination: 0xc633_6400 + (n >> 15), destination_port: 1024 + (n & 0x7fff) as u16, ..to }
}

fn new(n: u32, now: u32) -> NewConnection<shunt_switch::conntrack::V4> {
    let original = key(n);
    let begun = PACKET.begin(&original, true, now).expect("UDP begins");
    NewConnection {
        original,
        reply: answer(n),
        begun,
        port: 1,
        next_hop: Some((1, 1)),
        watched: false,
        related: false,
        balanced: None,
    }
}

struct Table {
    conntrack: Conntrack,
    epochs: Arc<Epochs>,
    locals: Vec<Local>,
    now: u32,
}

impl Table {
    fn new(capacity: u32, workers: usize) -> Self {
        let epochs = Arc::new(Epochs::new(workers + 1));
        (0..workers).for_each(|worker| epochs.arrive(worker));
        let conntrack = Conntrack::new(capacity, workers, 16, epochs.clone());
        let limits = Limits { entries: capacity, per_port: capacity, half_open: capacity };
        conntrack.shared.set_limits(limits);
        Self { conntrack, epochs, locals: (0..workers).map(Local::new).collect(), now: 100 }
    }

    fn fill(&mut self, count: u32) {
        for n in 0..count {
            let entered = self.locals[0].owner().insert(self.conntrack.table(), &new(n, self.now), self.now);
            entered.unwrap_or_else(|e| panic!("connection {n}: {e:?}"));
            if n % 4096 == 0 {
                self.conntrack.prepare();
            }
        }
    }
}

/// Random numbers, cheap and always the same.
struct Random(u32);

impl Random {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        ((u64::from(self.0) * u64::from(bound)) >> 32) as u32
    }
}

/// What a worker does with a burst of packets of known connections, as far as the table is concerned.
#[inline(never)]
fn burst(conntrack: &Conntrack, keys: &[Key4; BURST], now: u32) -> u32 {
    let table = conntrack.table();
    let mut hashes = [0; BURST];
    for (hash, key) in hashes.iter_mut().zip(keys) {
        *hash = table.hash(key);
        table.prefetch(*hash);
    }
    let mut halves: [Option<Ref>; BURST] = [None; BURST];
    for (half, &hash) in halves.iter_mut().zip(&hashes) {
        *half = table.candidate(hash);
        if let Some(half) = *half {
            table.prefetch_half(half);
        }
    }
    let mut sum = 0;
    for (key, half) in keys.iter().zip(halves) {
        let half = table.half(half.expect("a known connection"));
        assert!(half.matches(&key.compact()));
        let (rewrite, hop) = (half.rewrite(), half.next_hop());
        sum += rewrite.source ^ u32::from(rewrite.l4_delta) ^ hop.adjacency ^ hop.stamp;
        half.touch(now, 46);
    }
    sum
}

/// Best cycles a packet, over rounds of random flows. `keys` makes them.
fn hits(conntrack: &Conntrack, flows: u32, rounds: u32, mut each: impl FnMut(u64), side: fn(u32) -> Key4) {
    let mut random = Random(0x1234_5678 ^ flows);
    let mut lists = Vec::new();
    for _ in 0..(flows as usize / BURST).clamp(16, 4096) {
        let keys: [Key4; BURST] = std::array::from_fn(|_| side(random.below(flows)));
        lists.push(keys);
    }
    for _ in 0..rounds {
        for some in lists.chunks(16) {
            let start = clock::cycles();
            for keys in some {
                black_box(burst(conntrack, black_box(keys), 101));
            }
            each(clock::cycles().wrapping_sub(start) / (some.len() * BURST) as u64);
        }
    }
}

/// The middle of the better half of some samples: best without luck.
fn typical(mut samples: Vec<u64>) -> u64 {
    samples.sort_unstable();
    samples[samples.len() / 4]
}

/// How often this thread has lost its processor.
fn switches() -> i64 {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).expect("a thread");
    usage.involuntary_context_switches() + usage.voluntary_context_switches()
}

fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").expect("/proc");
    let pages: u64 = text.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("a number");
    pages * 4096
}

fn main() {
    let per_ns = clock::cycles_per_us() as f64 / 1000.0;
    println!("{per_ns:.2} cycles a nanosecond; cycles are those of the time stamp counter");
    let capacity = |flows: u32| flows.max(262_144);
    for flows in [1024, 65_536, 1_000_000] {
        let mut table = Table::new(capacity(flows), 1);
        table.fill(flows);
        let mut samples = Vec::new();
        hits(&table.conntrack, flows, 4_000_000 / flows.max(40_000), |sample| samples.push(sample), key);
        let cycles = typical(samples);
        println!("hit, {flows} flows: {cycles} cycles, {:.1} ns a packet", cycles as f64 / per_ns);
    }

    // Enter, and expire a second later, with so many alive at a time.
    for alive in [10_000, 250_000] {
        let mut table = Table::new(1_000_000, 1);
        let timeouts = &table.conntrack.shared.timeouts;
        assert!(timeouts.set(shunt_switch::conntrack::Timeout::Udp, 1));
        let (mut samples, mut next, mut turns) = (Vec::new(), 0, Vec::new());
        for second in 0..(4_000_000 / alive) {
            table.now += 1;
            for _ in 0..alive / BURST as u32 {
                let (before, start) = (switches(), clock::cycles());
                table.epochs.quiesce(0);
                table.locals[0].turn(&table.conntrack, table.now);
                for _ in 0..BURST {
                    let entered = table.locals[0].owner().insert(
                        table.conntrack.table(),
                        &new(next, table.now),
                        table.now,
                    );
                    let half = entered.unwrap_or_else(|e| panic!("connection {next}: {e:?}"));
                    table.conntrack.v4.half(half).touch(table.now, 46);
                    next = (next + 1) % 20_000_000;
                }
                let taken = clock::cycles().wrapping_sub(start);
                if switches() == before {
                    turns.push(taken);
                }
                if second >= 2 {
                    samples.push(taken / BURST as u64);
                }
            }
            table.conntrack.prepare();
        }
        let cycles = typical(samples);
        turns.sort_unstable();
        let us = |share: f64| turns[(turns.len() as f64 * share) as usize] as f64 / per_ns / 1000.0;
        println!(
            "new and expired, {alive} alive: {cycles} cycles, {:.0} ns each; turns of 64: half within {:.1} us, \
             99% within {:.1} us, 99.9% within {:.1} us",
            cycles as f64 / per_ns,
            us(0.5),
            us(0.99),
            us(0.999)
        );
    }

    let before = resident();
    let mut table = Table::new(4_000_000, 1);
    table.fill(4_000_000);
    println!(
        "4 M connections: {} MiB resident, {} bytes each",
        (resident() - before) >> 20,
        (resident() - before) / 4_000_000
    );
    drop(table);

    // Each worker one direction of the same flows.
    let flows = 1024;
    let mut table = Table::new(262_144, 2);
    table.fill(flows);
    let alone = {
        let mut samples = Vec::new();
        hits(&table.conntrack, flows, 2000, |sample| samples.push(sample), key);
        typical(samples)
    };
    let (stop, conntrack) = (AtomicBool::new(false), &table.conntrack);
    let together = std::thread::scope(|scope| {
        let (stop, there) = (
            &stop,
            scope.spawn(|| {
                let mut samples = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    hits(conntrack, flows, 100, |sample| samples.push(sample), answer);
                }
                typical(samples)
            }),
        );
        let mut samples = Vec::new();
        hits(conntrack, flows, 2000, |sample| samples.push(sample), key);
        stop.store(true, Ordering::Relaxed);
        typical(samples).max(there.join().expect("no panic"))
    });
    println!(
        "two workers, a direction each of {flows} flows: {together} cycles a packet; alone {alone}: {:.2} times",
        2.0 * alone as f64 / together as f64
    );
}
