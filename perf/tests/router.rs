//! The router of the instruction-count gates routes and translates as the daemon does.

use shunt_perf::frames;
use shunt_perf::guest::Options;
use shunt_perf::peers::layer3::{GATEWAYS, guests};
use shunt_perf::router::{Kind, Router};

/// A packet of flow `n` from the inner guest.
fn packet(n: u8) -> Vec<u8> {
    frames::routed(GATEWAYS[0], guests()[0], [10, 254, 1, n], [10, 253, n, 1], 10_000, 100)
}

#[test]
fn packets_are_routed_by_a_table_of_thousands() {
    for routes in [0, 3000] {
        let mut router = Router::new(Kind::Route(routes), &Options::default()).expect("a router");
        router.offer(0, &[packet(1), packet(2)]).expect("room");
        assert_eq!(router.turn(0), 2);
        let got = router.guests[1].receive().expect("frames");
        assert_eq!(got.len(), 2);
        let sent = packet(1);
        assert_eq!((&got[0][..6], &got[0][6..12]), (&guests()[1][..], &GATEWAYS[1][..]));
        assert_eq!(got[0][22], sent[22] - 1, "time to live");
        assert_eq!(got[0][26..], sent[26..], "addresses and all that follows");
        assert_eq!(router.connections(), 0);
    }
}

#[test]
fn packets_are_translated_and_connections_made() {
    let mut router = Router::new(Kind::Snat, &Options::default()).expect("a router");
    for _ in 0..2 {
        router.offer(0, &[packet(1), packet(2)]).expect("room");
        assert_eq!(router.turn(0), 2);
        let got = router.guests[1].receive().expect("frames");
        assert_eq!(got.len(), 2);
        assert!(got.iter().all(|frame| frame[26..30] == [10, 252, 0, 1] && frame[22] == 63));
        assert_eq!(router.connections(), 2);
    }
}
