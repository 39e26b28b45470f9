//! Instruction counts of the packet path for bursts of 64 frames, and their limits.
//!
//! Counts do not waver as times do, so they can be a gate: `gates.json` holds what each benchmark took when it was
//! last recorded, and 3 % more is a failure. They depend on compiler and C library; see docs/performance.md.

#![allow(missing_docs, reason = "gungraun's macros make public items")]

use std::hint::black_box;

use gungraun::prelude::*;
use gungraun::{Callgrind, EventKind};
use shunt_perf::bridge::Bridge;
use shunt_perf::frames;
use shunt_perf::gates::limit;
use shunt_perf::guest::{Options, features};
use shunt_perf::peers::layer3::{GATEWAYS, guests};
use shunt_perf::router::{Kind, Router};
use shunt_perf::tracker::Tracker;
use vhost_backend::net_header::NetHeader;

const BURST: usize = 64;
/// A segmentation frame as large as they get: 45 segments.
const LARGE: usize = 54 + 45 * 1448;

/// Two guests, a burst of frames of `size` bytes waiting at the first port. One burst has gone before, so that
/// everything that happens once has happened.
fn waiting(size: usize) -> Bridge {
    waiting_as(size, &Options::default())
}

/// The same in packed rings.
fn waiting_packed(size: usize) -> Bridge {
    let features = features::PLAIN | features::RING_PACKED;
    waiting_as(size, &Options { features, required: features::RING_PACKED, ..Options::default() })
}

/// The same in packed rings that are used in order.
fn waiting_in_order(size: usize) -> Bridge {
    let order = features::RING_PACKED | features::IN_ORDER;
    waiting_as(size, &Options { features: features::PLAIN | order, required: order, ..Options::default() })
}

fn waiting_as(size: usize, options: &Options) -> Bridge {
    let mut bridge = Bridge::new(2, options).expect("a bridge");
    for _ in 0..2 {
        let before = bridge.turn(0);
        assert!(before == 0 || before == BURST);
        bridge.guests[1].receive().expect("frames");
        bridge.offer(0, BURST, &NetHeader::default(), &frames::udp(1, 2, size, 0)).expect("room");
    }
    bridge
}

/// The same with eight guests and frames for all of them.
fn waiting_to_flood() -> Bridge {
    let mut bridge = Bridge::new(8, &Options::default()).expect("a bridge");
    let mut frame = frames::udp(1, 2, 64, 0);
    frame[..6].fill(0xff);
    bridge.offer(0, BURST, &NetHeader::default(), &frame).expect("room");
    bridge
}

/// Eight large segmentation frames.
fn waiting_large() -> Bridge {
    let options =
        Options { features: features::PLAIN | features::OFFLOADS, buffer_len: 4096, ..Options::default() };
    let mut bridge = Bridge::new(2, &options).expect("a bridge");
    let (header, frame) = frames::tcp_gso(1, 2, LARGE, 1448, 0);
    bridge.offer(0, 8, &header, &frame).expect("room");
    bridge
}

fn gate(name: &str) -> LibraryBenchmarkConfig {
    let mut callgrind = Callgrind::default();
    if let Some(limit) = limit(name) {
        callgrind.hard_limits([(EventKind::Ir, limit)]);
    }
    let mut config = LibraryBenchmarkConfig::default();
    // The C library chooses its copy routines by processor; these are in all of them.
    config.env("GLIBC_TUNABLES", "glibc.cpu.hwcaps=-AVX2,-AVX512F,-ERMS,-FSRM,-AVX_Fast_Unaligned_Load");
    config.tool(callgrind);
    config
}

#[library_benchmark]
#[bench::small(args = (waiting(64)), config = gate("fetch/small"))]
#[bench::packed(args = (waiting_packed(64)), config = gate("fetch/packed"))]
#[bench::in_order(args = (waiting_in_order(64)), config = gate("fetch/in_order"))]
fn fetch(mut bridge: Bridge) -> Bridge {
    assert_eq!(black_box(&mut bridge).fetch(0), BURST);
    bridge
}

#[library_benchmark]
#[bench::small(args = (waiting(64), frames::udp(1, 2, 64, 0)), config = gate("deliver/small"))]
#[bench::full(args = (waiting(64), frames::udp(1, 2, 1518, 0)), config = gate("deliver/full"))]
#[bench::packed(args = (waiting_packed(64), frames::udp(1, 2, 64, 0)), config = gate("deliver/packed"))]
#[bench::packed_full(args = (waiting_packed(64), frames::udp(1, 2, 1518, 0)), config = gate("deliver/packed_full"))]
fn deliver(mut bridge: Bridge, frame: Vec<u8>) -> Bridge {
    assert_eq!(black_box(&mut bridge).deliver(1, BURST, &frame) as usize, BURST);
    bridge
}

#[library_benchmark]
#[bench::small(args = (waiting(64)), config = gate("forward/small"))]
#[bench::full(args = (waiting(1518)), config = gate("forward/full"))]
#[bench::packed(args = (waiting_packed(64)), config = gate("forward/packed"))]
#[bench::flood(args = (waiting_to_flood()), config = gate("forward/flood"))]
fn forward(mut bridge: Bridge) -> Bridge {
    assert_eq!(black_box(&mut bridge).turn(0), BURST);
    bridge
}

#[library_benchmark]
#[bench::gso(args = (waiting_large()), config = gate("forward_large/gso"))]
fn forward_large(mut bridge: Bridge) -> Bridge {
    assert_eq!(black_box(&mut bridge).turn(0), 8);
    bridge
}

/// A burst of packets of as many flows, from the inner guest.
fn flows() -> Vec<Vec<u8>> {
    let frame = |n: usize| {
        let n = n as u8;
        frames::routed(GATEWAYS[0], guests()[0], [10, 254, 1, n], [10, 253, n, 1], 10_000 + u16::from(n), 64)
    };
    (0..BURST).map(frame).collect()
}

/// A router with a burst waiting at its inner port; `bursts` before it have passed.
fn at_router(kind: Kind, bursts: usize) -> Router {
    let mut router = Router::new(kind, &Options::default()).expect("a router");
    for _ in 0..bursts {
        router.offer(0, &flows()).expect("room");
        assert_eq!(router.turn(0), BURST);
        assert_eq!(router.guests[1].receive().expect("frames").len(), BURST);
    }
    router.offer(0, &flows()).expect("room");
    router
}

/// A router with the answers to a burst of translated packets waiting at its outer port.
fn answered() -> Router {
    let mut router = at_router(Kind::Snat, 1);
    assert_eq!(router.turn(0), BURST);
    let answers: Vec<Vec<u8>> = router.guests[1]
        .receive()
        .expect("frames")
        .iter()
        .map(|seen| {
            let address = |at: usize| [seen[at], seen[at + 1], seen[at + 2], seen[at + 3]];
            let mut frame = frames::routed(GATEWAYS[1], guests()[1], address(30), address(26), 20_000, 64);
            // To the translated port; without a checksum, as UDP over IPv4 may be.
            frame[36..38].copy_from_slice(&seen[34..36]);
            frame[40..42].fill(0);
            frame
        })
        .collect();
    router.offer(1, &answers).expect("room");
    router
}

/// A table in which a burst's connections are, and one more second has passed for each burst before.
fn tracked() -> Tracker {
    let mut tracker = Tracker::new(65_536);
    assert_eq!(tracker.enter(0, BURST as u64), BURST as u64);
    assert_eq!(tracker.look_up(0, BURST), BURST);
    tracker
}

/// A table whose connections are over at the next turn.
fn over() -> Tracker {
    let mut tracker = tracked();
    tracker.pass(100);
    tracker
}

#[library_benchmark]
#[bench::one(args = (at_router(Kind::Route(0), 1)), config = gate("route/one"))]
#[bench::many(args = (at_router(Kind::Route(5000), 1)), config = gate("route/many"))]
fn route(mut router: Router) -> Router {
    assert_eq!(black_box(&mut router).turn(0), BURST);
    router
}

#[library_benchmark]
#[bench::established(args = (at_router(Kind::Snat, 2)), config = gate("translate/established"))]
#[bench::new(args = (at_router(Kind::Snat, 0)), config = gate("translate/new"))]
fn translate(mut router: Router) -> Router {
    assert_eq!(black_box(&mut router).turn(0), BURST);
    router
}

#[library_benchmark]
#[bench::answers(args = (answered()), config = gate("translate_back/answers"))]
fn translate_back(mut router: Router) -> Router {
    assert_eq!(black_box(&mut router).turn(1), BURST);
    router
}

#[library_benchmark]
#[bench::established(args = (tracked()), config = gate("track/established"))]
fn track(mut tracker: Tracker) -> Tracker {
    assert_eq!(black_box(&mut tracker).look_up(0, BURST), BURST);
    tracker
}

#[library_benchmark]
#[bench::new(args = (tracked()), config = gate("track_new/new"))]
fn track_new(mut tracker: Tracker) -> Tracker {
    assert_eq!(black_box(&mut tracker).enter(1000, BURST as u64), BURST as u64);
    tracker
}

#[library_benchmark]
#[bench::expiry(args = (over()), config = gate("track_end/expiry"))]
fn track_end(mut tracker: Tracker) -> Tracker {
    black_box(&mut tracker).turn();
    tracker
}

library_benchmark_group!(
    name = path,
    benchmarks = [
        fetch,
        deliver,
        forward,
        forward_large,
        route,
        translate,
        translate_back,
        track,
        track_new,
        track_end
    ]
);
main!(library_benchmark_groups = path);
