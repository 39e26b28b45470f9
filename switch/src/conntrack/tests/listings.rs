//! What people see of the table.

use super::*;

fn records(world: &World, filter: &Filter) -> Vec<Record> {
    let (mut records, mut next) = (Vec::new(), Some(0));
    while let Some(from) = next {
        next = world.conntrack.page(filter, world.now, from, 100, |record| records.push(record));
    }
    records
}

fn filter(json: &str) -> Filter {
    serde_json::from_str(json).unwrap_or_else(|e| panic!("{json}: {e}"))
}

#[test]
fn a_listing_shows_both_sides_and_what_is_left() {
    let mut world = World::new(100, 1);
    let (there, back) =
        (key(17, 1), Key4 { destination: 0x0a02_0001, destination_port: 40_000, ..key(17, 1).reversed() });
    let half = world.insert(0, &NewConnection { port: 7, ..plain(there, back) }).expect("room");
    world.conntrack.v4.half(half).touch(world.now, 76);
    world.pass(5);
    let records = records(&world, &Filter::default());
    let [record] = &records[..] else { panic!("{records:?}") };
    assert_eq!(
        format::line(record, true),
        "udp      17 25 src=10.0.0.0 dst=192.0.2.1 sport=1025 dport=80 packets=1 bytes=76 [UNREPLIED] \
         src=192.0.2.1 dst=10.2.0.1 sport=80 dport=40000 packets=0 bytes=0 mark=0 use=1"
    );
    assert_eq!((record.ingress, record.is_translated()), (7, (true, false)));
}

#[test]
fn queries_are_shown_with_the_types_of_both_ways() {
    let mut world = World::new(100, 1);
    let ping = Key4 { source_port: 77, ..key(1, 1) };
    world.begin(0, ping, &UDP).expect("room");
    world.packet(0, ping.reversed(), &UDP);
    let v6 = Key6 { source: 1, destination: 2, source_port: 9, destination_port: 128, protocol: 58 };
    let begun = UDP.begin(&v6, true, world.now).expect("a query");
    let new = NewConnection {
        original: v6,
        reply: v6.reversed(),
        begun,
        port: 0,
        next_hop: None,
        watched: false,
        related: false,
        balanced: None,
    };
    world.insert(0, &new).expect("room");
    let lines: Vec<_> = records(&world, &Filter::default()).iter().map(|r| format::line(r, false)).collect();
    assert_eq!(
        lines,
        [
            "icmp     1 30 src=10.0.0.0 dst=192.0.2.1 type=8 code=0 id=77 \
             src=192.0.2.1 dst=10.0.0.0 type=0 code=0 id=77 mark=0 use=1",
            "icmpv6   58 30 src=::1 dst=::2 type=128 code=0 id=9 [UNREPLIED] \
             src=::2 dst=::1 type=129 code=0 id=9 mark=0 use=1"
        ]
    );
}

#[test]
fn filters_take_what_they_name() {
    let mut world = World::new(1000, 1);
    for n in 0..10 {
        world.begin(0, key(17, n), &UDP).expect("room");
    }
    world.begin(0, key(1, 1), &UDP).expect("room");
    world
        .insert(0, &plain(key(17, 20 << 14), Key4 { destination: 5, ..key(17, 20 << 14).reversed() }))
        .expect("room");
    let count = |json: &str| records(&world, &filter(json)).len();
    assert_eq!(count("{}"), 12);
    assert_eq!(
        (count(r#"{"proto":"icmp"}"#), count(r#"{"proto":17}"#), count(r#"{"proto":"tcp"}"#)),
        (1, 11, 0)
    );
    assert_eq!(count(r#"{"source":"10.0.0.0/32"}"#), 11);
    assert_eq!(count(r#"{"source":"10.0.0.0/24","proto":"udp","sport":1026}"#), 1);
    assert_eq!((count(r#"{"dest":"192.0.2.0/24"}"#), count(r#"{"dest":"::/0"}"#)), (12, 0));
    assert_eq!((count(r#"{"src_nat":true}"#), count(r#"{"dst_nat":true}"#)), (1, 0));
    assert_eq!((count(r#"{"reply_dest":"0.0.0.5/32"}"#), count(r#"{"ingress":2}"#)), (1, 0));
    assert!(serde_json::from_str::<Filter>(r#"{"sourc":"10.0.0.0/8"}"#).is_err(), "no such field");
    assert!(serde_json::from_str::<Filter>(r#"{"proto":"tpc"}"#).is_err(), "no such protocol");
}

#[test]
fn a_listing_comes_in_parts() {
    let mut world = World::new(5000, 1);
    world.conntrack.shared.set_limits(Limits { entries: 5000, per_port: 5000, half_open: 1 });
    for n in 0..3000 {
        world.begin(0, key(17, n), &UDP).expect("room");
    }
    let mut shown = 0;
    let next = world.conntrack.page(&Filter::default(), world.now, 0, 700, |_| shown += 1);
    assert!((700..1300).contains(&shown) && next.is_some_and(|next| next > 0), "{shown}, {next:?}");
    let mut ports: Vec<_> =
        records(&world, &Filter::default()).iter().map(|record| record.original.sport).collect();
    ports.sort_unstable();
    assert_eq!(ports, (1024..4024).map(Some).collect::<Vec<_>>());
    for nonsense in [u64::from(u32::MAX), 1 << 32, u64::MAX] {
        let mut more = Some(nonsense);
        while let Some(from) = more {
            more = world
                .conntrack
                .page(&Filter::default(), world.now, from, 100, |_| panic!("there is nothing"));
        }
    }
}

#[test]
fn a_flush_takes_those_that_are_meant_and_their_memory_comes_back() {
    let mut world = World::new(20_000, 2);
    world.conntrack.shared.set_limits(Limits { entries: 20_000, per_port: 20_000, half_open: 1 });
    for n in 0..6000 {
        world.begin(n as usize % 2, key(17, n), &UDP).expect("room");
    }
    world.begin(0, key(1, 1), &UDP).expect("room");
    // More than fit into the workers' boxes: they have to take them out meanwhile.
    let World { conntrack, epochs, locals, now } = &mut world;
    let (conntrack, now) = (&*conntrack, *now);
    let flushed = conntrack.flush(&filter(r#"{"proto":"udp"}"#), now, |worker| {
        epochs.quiesce(worker);
        locals[worker].turn(conntrack, now);
    });
    assert_eq!((flushed, conntrack.shared.count()), (6000, 1));
    assert!(world.find(key(1, 1)).is_some() && world.find(key(17, 1)).is_none());
    assert_eq!(world.conntrack.flush(&Filter::default(), now, |_| ()), 1);
    for _ in 0..100 {
        world.turn();
    }
    let (free, all) = world.slots();
    assert_eq!((free, world.counter("delete")), (all, 6001));
}
