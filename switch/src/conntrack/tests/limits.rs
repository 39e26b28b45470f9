//! What happens when there is no room.

use super::*;

#[test]
fn a_full_table_drops_what_has_not_proved_itself() {
    let mut world = World::new(100, 2);
    world.conntrack.shared.set_limits(Limits { entries: 100, per_port: 100, half_open: 100 });
    for n in 0..50 {
        world.begin(0, key(17, n), &UDP).expect("room");
        world.packet(0, key(17, n).reversed(), &UDP);
    }
    world.now += 3;
    for n in 0..50 {
        world.packet(0, key(17, n), &UDP);
    }
    for n in 50..5000 {
        // Also what another worker entered makes way.
        world.begin(n as usize % 2, key(17, n), &UDP).unwrap_or_else(|e| panic!("{n}: {e:?}"));
        assert!(world.conntrack.shared.count() <= 100);
        if n % 50 == 0 {
            world.turn();
        }
    }
    assert_eq!(world.counter("early_drop"), 4900);
    assert!((0..50).all(|n| world.find(key(17, n)).is_some()), "streams stay");
}

#[test]
fn a_table_full_of_conversations_refuses() {
    let mut world = World::new(64, 1);
    world.conntrack.shared.set_limits(Limits { entries: 64, per_port: 100, half_open: 64 });
    for n in 0..64 {
        world.begin(0, key(17, n), &UDP).expect("room");
    }
    world.now += 3;
    for n in 0..64 {
        world.packet(0, key(17, n).reversed(), &UDP);
    }
    for n in 64..200 {
        assert_eq!(world.begin(0, key(17, n), &UDP), Err(Refused::Full));
    }
    assert_eq!((world.counter("drop"), world.counter("early_drop")), (136, 0));
    world.pass(120);
    assert_eq!(world.begin(0, key(17, 64), &UDP).map(|_| ()), Ok(()));
}

#[test]
fn a_port_cannot_take_more_than_its_quota() {
    let mut world = World::new(1000, 1);
    world.conntrack.shared.set_limits(Limits { entries: 1000, per_port: 100, half_open: 1000 });
    let begin = |world: &mut World, n: u32, port: u16| {
        let begun = UDP.begin(&key(17, n), true, world.now).expect("UDP");
        let new = NewConnection { begun, port, ..plain(key(17, n), key(17, n).reversed()) };
        world.insert(0, &new)
    };
    for n in 0..100 {
        begin(&mut world, n, 1).expect("room");
    }
    for n in 100..150 {
        begin(&mut world, n, 2).expect("another port has its own");
    }
    for n in 150..400 {
        begin(&mut world, n, 1).expect("its own unanswered ones make way");
    }
    let shared = &world.conntrack.shared;
    assert_eq!((shared.port_count(1), shared.port_count(2)), (100, 50));
    assert!((100..150).all(|n| world.find(key(17, n)).is_some()));
    assert_eq!(world.counter("early_drop"), 250);
}

#[test]
fn half_open_connections_make_way_for_each_other_only() {
    let mut world = World::new(1000, 1);
    world.conntrack.shared.set_limits(Limits { entries: 1000, per_port: 1000, half_open: 50 });
    let syn =
        Packet { bytes: 60, tcp: Some(tcp::Segment { flags: 2, ..tcp::Segment::default() }), sctp: None };
    for n in 0..20 {
        world.begin(0, key(17, n), &UDP).expect("room");
    }
    for n in 0..500 {
        world.begin(0, key(6, n), &syn).unwrap_or_else(|e| panic!("{n}: {e:?}"));
        assert!(world.conntrack.shared.half_open() <= 50);
    }
    assert_eq!((world.conntrack.shared.half_open(), world.conntrack.shared.count()), (50, 70));
    assert!((0..20).all(|n| world.find(key(17, n)).is_some()));
    world.pass(120);
    assert_eq!((world.conntrack.shared.half_open(), world.conntrack.shared.count()), (0, 0));
}

#[test]
fn refusing_stays_cheap() {
    let mut world = World::new(64, 1);
    world.conntrack.shared.set_limits(Limits { entries: 64, per_port: 64, half_open: 0 });
    let syn =
        Packet { bytes: 60, tcp: Some(tcp::Segment { flags: 2, ..tcp::Segment::default() }), sctp: None };
    for n in 0..100 {
        assert_eq!(world.begin(0, key(6, n), &syn), Err(Refused::HalfOpen));
    }
    assert_eq!(world.conntrack.shared.count(), 0, "what was reserved is given back");
    assert_eq!(world.counter("half_open_limit"), 100);
}

#[test]
fn no_two_connections_share_a_tuple_of_either_side() {
    let mut world = World::new(64, 1);
    world.insert(0, &plain(key(17, 1), key(17, 2))).expect("room");
    for (original, reply) in [(1, 3), (3, 1), (2, 3), (3, 2), (1, 2), (4, 4)] {
        assert_eq!(world.insert(0, &plain(key(17, original), key(17, reply))), Err(Refused::Exists));
    }
    assert_eq!((world.counter("insert_failed"), world.conntrack.shared.count()), (6, 1));
    assert!(!world.conntrack.v4.is_free(&key(17, 2)) && world.conntrack.v4.is_free(&key(17, 3)));
}

#[test]
fn free_memory_moves_from_worker_to_worker() {
    let mut world = World::new(5000, 2);
    world.conntrack.shared.set_limits(Limits { entries: 5000, per_port: 5000, half_open: 5000 });
    for round in 0..6 {
        let worker = round % 2;
        for n in 0..5000 {
            world.begin(worker, key(17, n), &UDP).unwrap_or_else(|e| panic!("round {round}, {n}: {e:?}"));
        }
        world.pass(30);
        assert_eq!(world.conntrack.shared.count(), 0);
    }
    let (free, all) = world.slots();
    assert_eq!(free, all);
}

#[test]
fn four_million_connections_take_less_than_600_mebibytes() {
    let world = World::new(4_000_000, 2);
    let bytes = world.conntrack.v4.bytes();
    assert!(bytes < 600 << 20, "{bytes}");
    assert!(bytes > 512_000_000, "{bytes}: that cannot be all");
}
