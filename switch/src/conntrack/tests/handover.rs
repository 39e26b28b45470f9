//! Connections that go on in another table are what they were.

use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

use super::*;
use crate::conntrack::handover::{Copies, Kept, Places, RECORD, worker_of};

/// All connections that were not told, or have changed since, and the places of those that are no more.
fn changed(world: &World, copies: &mut Copies) -> (Vec<Kept>, Vec<u64>) {
    // Who looks at conversations of UDP finds out which of them have become streams.
    let mut from = Some(0);
    while let Some(place) = from {
        from = world.conntrack.page(&Filter::default(), world.now, place, usize::MAX, |_| ());
    }
    let (mut kept, mut gone) = (Vec::new(), Vec::new());
    let show = |one: &Kept| -> Result<(), ()> {
        kept.push(*one);
        Ok(())
    };
    world
        .conntrack
        .changed(copies, show, |place| {
            gone.push(place);
            Ok(())
        })
        .unwrap();
    (kept, gone)
}

fn hear(world: &mut World, places: &mut [Places], kept: &[Kept], gone: &[u64]) {
    let workers = places.len();
    for &place in gone {
        let worker = worker_of(place, workers);
        world.conntrack.give_up(&mut world.locals[worker], &mut places[worker], place);
    }
    for kept in kept {
        let worker = worker_of(kept.place, workers);
        let kept = Kept::read_from_bytes(kept.as_bytes()).unwrap();
        kept.check().unwrap();
        let (local, places) = (&mut world.locals[worker], &mut places[worker]);
        world.conntrack.take_over(local, places, &kept, world.now).unwrap();
    }
    for (places, local) in places.iter_mut().zip(&mut world.locals) {
        assert!(world.conntrack.take_over_waiting(local, places, world.now).is_empty());
        assert!(!places.is_waiting(), "who had their addresses has gone");
    }
}

/// Everything that a table tells, without the places.
fn told(world: &World) -> Vec<Kept> {
    let (mut kept, gone) = changed(world, &mut Copies::default());
    assert!(gone.is_empty());
    kept.iter_mut().for_each(|one| one.place = 0);
    kept.sort_unstable_by_key(|one| one.as_bytes().to_vec());
    kept
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Begin { n: u32, udp: bool, translated: bool, wide: bool },
    Packet { n: u32, reply: bool },
    Remove { n: u32 },
    Pass,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..40u32, any::<bool>(), any::<bool>(), any::<bool>())
            .prop_map(|(n, udp, translated, wide)| Step::Begin { n, udp, translated, wide }),
        6 => (0..40u32, any::<bool>()).prop_map(|(n, reply)| Step::Packet { n, reply }),
        2 => (0..40u32).prop_map(|n| Step::Remove { n }),
        1 => Just(Step::Pass),
    ]
}

fn protocol(udp: bool) -> u8 {
    if udp { 17 } else { 6 }
}

fn apply(world: &mut World, step: Step) {
    match step {
        Step::Begin { n, wide: true, translated, .. } => {
            let original = Key6 {
                source: n.into(),
                destination: 1 << 100,
                source_port: 9,
                destination_port: 53,
                protocol: 17,
            };
            let mut reply = original.reversed();
            reply.destination_port = if translated { 40_000 } else { 9 };
            let begun = UDP.begin(&key(17, 0), true, world.now).unwrap();
            let NewConnection { port, next_hop, watched, related, balanced, .. } =
                plain(key(17, n), key(17, n));
            let new = NewConnection { original, reply, begun, port, next_hop, watched, related, balanced };
            let _ = world.insert(n as usize % 2, &new);
        }
        Step::Begin { n, udp, translated, .. } => {
            let original = key(protocol(udp), n);
            let mut reply = original.reversed();
            if translated {
                (reply.destination, reply.destination_port) = (0xc633_6401, 30_000 + n as u16);
            }
            let packet = if udp { UDP } else { tcp_life::segment(2, n, 0) };
            let begun = packet.begin(&original, true, world.now).unwrap();
            let new = NewConnection { begun, watched: n.is_multiple_of(7), ..plain(original, reply) };
            if let Ok(half) = world.insert(n as usize % 2, &new) {
                world.conntrack.v4.half(half).touch(world.now, 60);
            }
        }
        Step::Packet { n, reply } => {
            for udp in [true, false] {
                let original = key(protocol(udp), n);
                let Some(half) = world.find(original) else { continue };
                let half = if reply { half.other() } else { half };
                let packet = match (udp, reply) {
                    (true, _) => UDP,
                    (false, true) => tcp_life::segment(0x12, 5, n + 1),
                    (false, false) => tcp_life::segment(0x10, n + 1, 6),
                };
                world.locals[0].v4.update(&world.conntrack.v4, half, &packet, world.now);
            }
        }
        Step::Remove { n } => {
            for udp in [true, false] {
                if let Some(half) = world.find(key(protocol(udp), n)) {
                    assert!(world.locals[1].v4.kill(&world.conntrack.v4, half));
                }
            }
        }
        Step::Pass => world.pass(2),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn tables_are_equal_whatever_happened_between_two_tellings(
        before in proptest::collection::vec(step(), 0..80),
        between in proptest::collection::vec(step(), 0..40),
    ) {
        let mut old = World::new(4096, 2);
        before.into_iter().for_each(|step| apply(&mut old, step));
        let (mut new, mut places) = (World::new(4096, 3), [Places::default(), Places::default(), Places::default()]);
        let mut copies = Copies::default();
        new.now = old.now;
        let (kept, gone) = changed(&old, &mut copies);
        hear(&mut new, &mut places, &kept, &gone);
        prop_assert_eq!(told(&new), told(&old));
        prop_assert_eq!(changed(&old, &mut copies), (vec![], vec![]), "nothing has changed");

        between.into_iter().for_each(|step| apply(&mut old, step));
        new.now = old.now;
        let (kept, gone) = changed(&old, &mut copies);
        hear(&mut new, &mut places, &kept, &gone);
        // What packets alone change is as of when it was told.
        let substance = |mut all: Vec<Kept>| {
            for one in &mut all {
                (one.seen, one.acks, one.packets, one.bytes) = ([0; 2], [0; 2], [0; 2], [0; 2]);
                one.scales = one.scales.map(|scale| scale & 0x4f);
            }
            all.sort_unstable_by_key(|one| one.as_bytes().to_vec());
            all
        };
        prop_assert_eq!(substance(told(&new)), substance(told(&old)));
        prop_assert_eq!(new.conntrack.shared.count(), old.conntrack.shared.count());
        prop_assert_eq!(new.conntrack.shared.half_open(), old.conntrack.shared.half_open());
        // And it lives on: all ends when its time is over, and all memory comes back.
        new.pass(600);
        new.conntrack.flush(&Filter::default(), new.now, |_| ());
        new.pass(4);
        let (free, all) = new.slots();
        prop_assert_eq!((new.conntrack.shared.count(), free), (0, all));
    }

    #[test]
    fn nonsense_is_refused_or_harmless(bytes in proptest::collection::vec(any::<u8>(), RECORD), careful in any::<bool>()) {
        let mut kept = Kept::read_from_bytes(&bytes).unwrap();
        if careful {
            // Nearly a good one.
            kept.family = 4;
            kept.place &= 0xffff;
            kept.addresses.iter_mut().for_each(|address| address[..12].fill(0));
            kept.seen = kept.seen.map(|seen| seen & 0xff_ffff);
            kept.packets = kept.packets.map(|packets| packets >> 24);
            kept.flags = [kept.flags[0] & 0x30; 2];
            (kept.balanced, kept.template) = (0, 0);
        }
        if kept.check().is_ok() && kept.place < 1 << 20 {
            let mut world = World::new(1024, 1);
            let mut places = [Places::default()];
            let _ = world.conntrack.take_over(&mut world.locals[0], &mut places[0], &kept, 7);
            let _ = world.conntrack.take_over(&mut world.locals[0], &mut places[0], &kept, 7);
            world.pass(3);
            world.conntrack.give_up(&mut world.locals[0], &mut places[0], kept.place);
            prop_assert_eq!(world.conntrack.shared.count(), 0);
        }
    }
}
