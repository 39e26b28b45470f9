//! Measures routing alone: what a lookup costs with one route and with a million, how long a million take to load,
//! what a change costs then, and what a neighbour costs. Times are the best of many short rounds, so that what else
//! runs on the machine hardly shows.
//!
//! `cargo run --release -p shunt-perf --bin routes`

use std::hint::black_box;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use shunt_switch::clock;
use shunt_switch::l3::interface::Address;
use shunt_switch::l3::neighbour::{Neighbours, Timing};
use shunt_switch::l3::route::rib::{Rib, Route, Terms, Which};
use shunt_switch::l3::route::{Fib, NextHopSetId};
use shunt_switch::packet::ethernet::Mac;
use shunt_switch::worker::epoch::Epochs;

const BURST: usize = 64;
const ROUTES: usize = 1_000_000;
/// Destinations of established flows, as the benchmark beside the peers has them.
const FLOWS: usize = 1024;

/// Random numbers (splitmix64), always the same.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Prefix lengths about as the internet's tables have them, in percent.
const LENGTHS_V4: [(u8, u64); 9] =
    [(24, 60), (23, 10), (22, 11), (21, 5), (20, 5), (19, 3), (18, 2), (16, 3), (32, 1)];
const LENGTHS_V6: [(u8, u64); 7] = [(48, 47), (32, 12), (40, 10), (44, 12), (36, 6), (64, 8), (128, 5)];

fn length(lengths: &[(u8, u64)], random: &mut Random) -> u8 {
    let mut draw = random.next() % 100;
    for &(length, share) in lengths {
        if draw < share {
            return length;
        }
        draw -= share;
    }
    lengths[0].0
}

/// An address where the internet's are: 1.0.0.0 to 223.255.255.255, but for the interfaces' own 10/8.
fn address_v4(random: &mut Random) -> u32 {
    loop {
        let address = random.next() as u32;
        if (1..224).contains(&(address >> 24)) && address >> 24 != 10 {
            return address;
        }
    }
}

/// An address of 2000::/3 within the thousands of /32s that providers have.
fn address_v6(random: &mut Random) -> u128 {
    let provider = 0x2000_0000 | ((random.next() % 256) as u32 * 0x10_0101) | (random.next() % 256) as u32;
    let (high, low) = (random.next(), random.next());
    u128::from(provider & 0x3fff_ffff) << 96 | u128::from(high as u32) << 64 | u128::from(low)
}

fn routes(v6: bool) -> Vec<Route> {
    let mut random = Random(1);
    let mut seen = std::collections::HashSet::new();
    let mut routes = Vec::with_capacity(ROUTES);
    while routes.len() < ROUTES {
        let (prefix, gateway) = if v6 {
            let len = length(&LENGTHS_V6, &mut random);
            let address = IpAddr::from(address_v6(&mut random).to_be_bytes());
            (IpNet::new_assert(address, len).trunc(), "fd00::%")
        } else {
            let len = length(&LENGTHS_V4, &mut random);
            let address = IpAddr::from(address_v4(&mut random).to_be_bytes());
            (IpNet::new_assert(address, len).trunc(), "10.0.0.%")
        };
        if seen.insert(prefix) {
            let gateway = gateway.replace('%', &(2 + random.next() % 64).to_string());
            routes.push(Route { gateway: Some(gateway.parse().expect("an address")), ..Route::to(prefix) });
        }
    }
    routes
}

fn rib() -> Rib {
    let mut rib = Rib::new();
    rib.add_interface(0, "lan".parse().expect("a name"), true).expect("an interface");
    rib.add_address(0, "10.0.0.1/24".parse().expect("an address")).expect("room");
    rib.add_address(0, "fd00::1/64".parse().expect("an address")).expect("room");
    for (prefix, gateway) in [("0.0.0.0/0", "10.0.0.2"), ("::/0", "fd00::2")] {
        let prefix: IpNet = prefix.parse().expect("a prefix");
        let route = Route { gateway: gateway.parse().ok(), ..Route::to(prefix) };
        rib.add(route, Terms::New).expect("a route");
    }
    rib
}

/// Cycles an address, the best round of all: bursts of addresses, each looked up by `one`.
fn cycles<A: Copy>(addresses: &[A], mut burst: impl FnMut(&[A])) -> f64 {
    let mut best = f64::MAX;
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(400) {
        for round in addresses.chunks(FLOWS) {
            let begin = clock::cycles();
            round.chunks(BURST).for_each(&mut burst);
            best = best.min(clock::cycles().wrapping_sub(begin) as f64 / round.len() as f64);
        }
    }
    best
}

/// The median round instead of the best: for addresses that are never in a cache, no round is the best by luck.
fn median<A: Copy>(addresses: &[A], mut burst: impl FnMut(&[A])) -> f64 {
    let mut rounds: Vec<f64> = addresses
        .chunks(FLOWS)
        .map(|round| {
            let begin = clock::cycles();
            round.chunks(BURST).for_each(&mut burst);
            clock::cycles().wrapping_sub(begin) as f64 / round.len() as f64
        })
        .collect();
    rounds.sort_unstable_by(f64::total_cmp);
    rounds[rounds.len() / 2]
}

fn lookups(fib: &Fib, what: &str) {
    let mut random = Random(2);
    let v4: Vec<u32> = (0..4_000_000).map(|_| address_v4(&mut random)).collect();
    let v6: Vec<u128> = (0..4_000_000).map(|_| address_v6(&mut random)).collect();
    let mut slots = [0; BURST];
    let one_v4 = |burst: &[u32]| {
        for &address in burst {
            black_box(fib.path(fib.choose(fib.lookup_v4(address), || address)));
        }
    };
    let one_v6 = |burst: &[u128]| {
        for &address in burst {
            black_box(fib.path(fib.choose(fib.lookup_v6(address), || address as u32)));
        }
    };
    println!(
        "{what:<22} IPv4 {:6.1} repeated {:6.1} random {:6.1} random, in bursts",
        cycles(&v4[..FLOWS], one_v4),
        median(&v4, one_v4),
        median(&v4, |burst| {
            let steps = fib.v4().steps();
            for (&address, slot) in burst.iter().zip(&mut slots) {
                *slot = steps.enter(address);
            }
            for (&address, &slot) in burst.iter().zip(&slots) {
                let set = NextHopSetId::found(steps.finish(slot, address));
                black_box(fib.path(fib.choose(set, || address)));
            }
        }),
    );
    println!(
        "{what:<22} IPv6 {:6.1} repeated {:6.1} random {:6.1} random, in bursts",
        cycles(&v6[..FLOWS], one_v6),
        median(&v6, one_v6),
        median(&v6, |burst| {
            let steps = fib.v6().steps();
            for (&address, slot) in burst.iter().zip(&mut slots) {
                *slot = steps.enter(address);
            }
            for (&address, &slot) in burst.iter().zip(&slots) {
                let set = NextHopSetId::found(steps.finish(slot, address));
                black_box(fib.path(fib.choose(set, || address as u32)));
            }
        }),
    );
}

/// Microseconds that `act` takes, the median of many.
fn each(count: usize, mut act: impl FnMut(usize)) -> f64 {
    let mut times: Vec<f64> = (0..count)
        .map(|n| {
            let begin = Instant::now();
            act(n);
            begin.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    times.sort_unstable_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Processor time that `act` takes, whatever else runs.
fn timed<T>(act: impl FnOnce() -> T) -> (T, Duration) {
    let now = || {
        let usage = getrusage(UsageWho::RUSAGE_THREAD).expect("usage");
        let (user, system) = (usage.user_time(), usage.system_time());
        Duration::from_micros((user.num_microseconds() + system.num_microseconds()) as u64)
    };
    let begin = now();
    let done = act();
    (done, now() - begin)
}

fn neighbours() {
    let epochs = Arc::new(Epochs::new(1));
    let table = Neighbours::with_limit(65_536, Timing::default(), epochs);
    let host = |n: u32| Address::v4(0x0a00_0000 + n);
    for n in 0..FLOWS as u32 {
        let _ = table.learn(0, host(n), Mac([2, 0, 0, 0, (n >> 8) as u8, n as u8]), 0, 1);
        let _ = table.update(0, host(n), Mac([2, 0, 0, 0, (n >> 8) as u8, n as u8]), true, 1);
    }
    let ids: Vec<u32> = (0..FLOWS as u32).collect();
    let adjacency = cycles(&ids, |burst| {
        burst.iter().for_each(|&id| {
            let slot = table.slot(id).expect("a neighbour");
            black_box((slot.version(), slot.interface(), slot.usable_mac(2)));
        });
    });
    let find = cycles(&ids, |burst| {
        for &n in burst {
            black_box(table.find(0, host(n)));
        }
    });
    println!("neighbours             {adjacency:.1} by adjacency {find:.1} by address");
}

fn main() {
    println!("cycles each ({} a microsecond)", clock::cycles_per_us());
    let mut rib = rib();
    lookups(&rib.fib(), "one route");
    for v6 in [false, true] {
        let (list, before) = (routes(v6), rib.bytes());
        let copy = list.clone();
        let (count, took) =
            timed(|| rib.load(copy.into_iter().map(Ok), Terms::New, false).expect("routes").added);
        rib.reclaim();
        let mib = (rib.bytes() - before) as f64 / f64::from(1 << 20);
        println!("{count} routes of IPv{}: loaded in {took:.2?}, {mib:.0} MiB", if v6 { 6 } else { 4 });
        lookups(&rib.fib(), if v6 { "a million of each" } else { "a million of IPv4" });
        let deleted = each(2000, |n| {
            let which = Which { prefix: Some(list[n * 7].prefix), ..Which::default() };
            rib.del(&which).expect("a route");
            rib.reclaim();
        });
        let added = each(2000, |n| {
            rib.add(list[n * 7], Terms::New).expect("a route");
            rib.reclaim();
        });
        println!("one change:            {deleted:.1} us to delete {added:.1} us to add");
    }
    let default = Which { prefix: "0.0.0.0/0".parse().ok(), ..Which::default() };
    let (gone, took) = timed(|| rib.del(&default).expect("a route"));
    println!("default route deleted  {took:.1?}");
    rib.add(gone[0], Terms::New).expect("a route");
    for up in [false, true] {
        let (_, took) = timed(|| rib.interface_state(0, up).expect("an interface"));
        println!("interface {:<4}         {took:.1?}", if up { "up" } else { "down" });
        rib.reclaim();
    }
    neighbours();
}
