//! The table against a plain map.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Insert { worker: usize, original: u8, reply: u8 },
    Packet { worker: usize, key: u8 },
    Kill { worker: usize, key: u8 },
    Pass { seconds: u8 },
    Turn { worker: usize },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..2_usize, any::<u8>(), any::<u8>())
            .prop_map(|(worker, original, reply)| Step::Insert { worker, original, reply }),
        4 => (0..2_usize, any::<u8>()).prop_map(|(worker, key)| Step::Packet { worker, key }),
        2 => (0..2_usize, any::<u8>()).prop_map(|(worker, key)| Step::Kill { worker, key }),
        1 => (0..40_u8).prop_map(|seconds| Step::Pass { seconds }),
        2 => (0..2_usize).prop_map(|worker| Step::Turn { worker }),
    ];
    proptest::collection::vec(step, 1..200)
}

/// Keys of which none is another's reverse.
fn number(n: u8) -> Key4 {
    key(17, u32::from(n) % 96)
}

/// A connection of the model: its keys, when it began, when it was last seen, whether packets came back, whether it
/// is a stream.
#[derive(Clone, Debug)]
struct Entry {
    keys: [u8; 2],
    began: u32,
    seen: u32,
    replied: bool,
    stream: bool,
}

#[derive(Default)]
struct Model {
    entries: Vec<Entry>,
}

impl Model {
    fn find(&self, key: u8) -> Option<(usize, bool)> {
        let key = key % 96;
        self.entries.iter().enumerate().find_map(|(at, entry)| {
            entry.keys.iter().position(|&held| held == key).map(|direction| (at, direction == 1))
        })
    }

    fn expire(&mut self, now: u32) {
        self.entries.retain(|entry| now - entry.seen < if entry.stream { 120 } else { 30 });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 300 } else { 3000 }))]

    #[test]
    fn the_table_is_a_map_with_an_end_for_each_entry(steps in steps()) {
        let mut world = World::new(64, 2);
        world.conntrack.shared.set_limits(Limits { entries: 64, per_port: 64, half_open: 64 });
        let mut model = Model::default();
        for step in steps {
            match step {
                Step::Insert { worker, original, reply } => {
                    let (first, second) = (number(original), number(reply));
                    let result = world.insert(worker, &NewConnection {
                        begun: UDP.begin(&first, true, world.now).expect("UDP"), ..plain(first, second)
                    });
                    let free = original % 96 != reply % 96
                        && model.find(original).is_none() && model.find(reply).is_none();
                    // Each of the others can be dropped for the newcomer, streams cannot.
                    match result {
                        Ok(half) => {
                            prop_assert!(free);
                            prop_assert!(!half.is_reply());
                            prop_assert!(model.entries.len() < 64);
                            model.entries.push(Entry {
                                keys: [original % 96, reply % 96],
                                began: world.now, seen: world.now, replied: false, stream: false,
                            });
                            prop_assert_eq!(world.conntrack.v4.half(half).key(), first);
                            prop_assert_eq!(world.conntrack.v4.half(half).translated(), second.reversed());
                            let back = world.conntrack.v4.half(half.other());
                            prop_assert_eq!((back.key(), back.translated()), (second, first.reversed()));
                        }
                        Err(Refused::Exists) => prop_assert!(!free),
                        Err(other) => prop_assert!(false, "{:?}", other),
                    }
                }
                Step::Packet { worker, key } => {
                    if let Some((at, reply)) = model.find(key) {
                        prop_assert_eq!(world.packet(worker, number(key), &UDP), Fate::Accept);
                        let entry = &mut model.entries[at];
                        entry.seen = world.now;
                        entry.replied |= reply;
                        entry.stream |= entry.replied && world.now - entry.began > 2;
                        let half = world.find(number(key)).expect("there");
                        prop_assert_eq!(half.is_reply(), reply);
                        prop_assert!(world.conntrack.v4.half(half).flags().settled());
                        prop_assert_eq!(world.conntrack.v4.state(half, world.now).assured(), entry.stream);
                    }
                }
                Step::Kill { worker, key } => {
                    if let Some((at, _)) = model.find(key) {
                        let half = world.find(number(key)).expect("there");
                        prop_assert!(world.locals[worker].v4.kill(&world.conntrack.v4, half));
                        model.entries.remove(at);
                    }
                }
                Step::Pass { seconds } => {
                    world.pass(u32::from(seconds));
                    model.expire(world.now);
                }
                Step::Turn { worker } => {
                    world.epochs.quiesce(worker);
                    world.locals[worker].turn(&world.conntrack, world.now);
                }
            }
            prop_assert_eq!(world.conntrack.shared.count() as usize, model.entries.len());
            for n in 0..96 {
                prop_assert_eq!(world.find(number(n)).map(Ref::is_reply), model.find(n).map(|(_, reply)| reply));
            }
        }
        // Everything comes back.
        world.pass(120);
        prop_assert_eq!(world.conntrack.shared.count(), 0);
        prop_assert!(world.locals.iter().all(Local::is_idle));
        let (free, all) = world.slots();
        prop_assert_eq!(free, all);
        prop_assert_eq!(world.conntrack.shared.port_count(1), 0);
    }
}

#[test]
fn many_connections_are_all_found_and_all_end() {
    let mut world = World::new(100_000, 2);
    world.conntrack.shared.set_limits(Limits { entries: 100_000, per_port: 100_000, half_open: 1 });
    let mut keys = HashMap::new();
    for n in 0..100_000 {
        let original = key(17, n);
        let half = world.begin(n as usize % 2, original, &UDP).unwrap_or_else(|e| panic!("{n}: {e:?}"));
        keys.insert(original, half);
    }
    assert_eq!(world.begin(0, key(17, 100_000), &UDP).map(|_| ()), Ok(()), "one makes way");
    assert_eq!(world.counter("early_drop"), 1);
    let mut gone = 0;
    for (&key, &half) in &keys {
        match world.find(key) {
            Some(found) => assert_eq!((found, world.find(key.reversed())), (half, Some(half.other()))),
            None => gone += 1,
        }
    }
    assert_eq!(gone, 1);
    world.pass(30);
    assert_eq!((world.conntrack.shared.count(), world.counter("expired")), (0, 100_000));
    let (free, all) = world.slots();
    assert_eq!(free, all);
}
