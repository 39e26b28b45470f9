//! Workers and the control thread at the same table at the same time.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::*;

const KEYS: u32 = 512;

/// The key of answers that goes with a connection, and with no other.
fn answers(n: u32) -> Key4 {
    Key4 { destination: 0x0909_0000 + n, ..key(17, n).reversed() }
}

/// Does something to a random connection, and checks whatever is seen of it.
fn visit(conntrack: &Conntrack, local: &mut Local, random: u32, now: u32) -> bool {
    let n = random % KEYS;
    let table = &conntrack.v4;
    let original = key(17, n);
    let hash = table.hash(&original);
    match table.find(&original, hash) {
        Some(half) => {
            let (there, back) = (table.half(half), table.half(half.other()));
            let check = || {
                assert_eq!((there.key(), there.translated()), (original, answers(n).reversed()));
                assert_eq!((back.key(), back.translated()), (answers(n), original.reversed()));
            };
            check();
            match random >> 16 & 3 {
                0 => {
                    local.v4.kill(table, half);
                }
                1 => {
                    local.v4.update(table, half.other(), &UDP, now);
                }
                _ => there.touch(now, 100),
            }
            // Whatever the others do meanwhile: until the turn ends it stays what it was.
            check();
            false
        }
        None => {
            let begun = UDP.begin(&original, true, now).expect("UDP");
            let new = NewConnection { begun, ..plain(original, answers(n)) };
            match local.v4.insert(table, &new, now) {
                Ok(half) => {
                    assert_eq!(table.half(half).key(), original);
                    true
                }
                // Somebody was faster, or holds a lock, or was put to sleep by the kernel amid a turn for so long
                // that nothing could be used again.
                Err(Refused::Exists | Refused::Busy | Refused::Full) => false,
                Err(refused) => panic!("{refused:?}"),
            }
        }
    }
}

#[test]
fn nobody_ever_sees_half_of_another_connection() {
    let mut world = World::new(KEYS, 3);
    world.conntrack.shared.set_limits(Limits { entries: KEYS, per_port: KEYS, half_open: KEYS });
    let (stop, inserted) = (AtomicBool::new(false), AtomicU64::new(0));
    let World { conntrack, epochs, locals, now } = &mut world;
    let (conntrack, epochs, now) = (&*conntrack, &*epochs, *now);
    let rounds = if cfg!(debug_assertions) { 200_000 } else { 2_000_000_u32 };
    std::thread::scope(|scope| {
        let workers: Vec<_> = locals
            .iter_mut()
            .enumerate()
            .map(|(worker, local)| {
                let inserted = &inserted;
                scope.spawn(move || {
                    let mut random = worker as u32 + 1;
                    for round in 0..rounds {
                        if round % 16 == 0 {
                            epochs.quiesce(worker);
                            local.turn(conntrack, now + round / 10_000);
                        }
                        random ^= random << 13;
                        random ^= random >> 17;
                        random ^= random << 5;
                        let new = visit(conntrack, local, random, now + round / 10_000);
                        inserted.fetch_add(u64::from(new), Ordering::Relaxed);
                    }
                    epochs.leave(worker);
                })
            })
            .collect();
        let stop = &stop;
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                conntrack.page(&Filter::default(), now, 0, usize::MAX, |record| {
                    let n = u32::from(record.original.sport.expect("UDP")) - 1024;
                    assert_eq!(record.reply.dest, V4::to_ip(answers(n).destination));
                });
                conntrack.flush(&Filter { sport: Some(1024 + 7), ..Filter::default() }, now, |_| ());
                conntrack.prepare();
            }
        });
        for worker in workers {
            if let Err(panic) = worker.join() {
                stop.store(true, Ordering::Relaxed);
                std::panic::resume_unwind(panic);
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(inserted.into_inner() > u64::from(rounds) / 100, "too little happened");
    // All are in their places, none is left behind.
    for worker in 0..3 {
        world.epochs.arrive(worker);
    }
    world.turn();
    let live = (0..KEYS).filter(|&n| world.find(key(17, n)).is_some()).count() as u32;
    assert_eq!((world.conntrack.shared.count(), world.conntrack.shared.port_count(1)), (live, live));
    for n in 0..KEYS {
        assert_eq!(world.find(key(17, n)).map(Ref::other), world.find(answers(n)), "{n}");
    }
    world.conntrack.flush(&Filter::default(), world.now, |_| ());
    world.turn();
    world.turn();
    let (free, all) = world.slots();
    assert_eq!(free, all);
    assert_eq!(world.conntrack.v4.index.sample(0, usize::MAX).count(), 0);
}
