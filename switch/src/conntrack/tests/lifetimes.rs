//! When connections end.

use super::*;

#[test]
fn a_question_without_answer_ends_after_thirty_seconds() {
    let mut world = World::new(100, 1);
    world.begin(0, key(17, 1), &UDP).expect("room");
    world.pass(29);
    assert!(world.find(key(17, 1)).is_some());
    world.pass(1);
    assert!(world.find(key(17, 1)).is_none());
    assert_eq!(world.counter("expired"), 1);
}

#[test]
fn a_conversation_becomes_a_stream_when_it_goes_on() {
    let mut world = World::new(100, 1);
    let there = key(17, 1);
    world.begin(0, there, &UDP).expect("room");
    world.packet(0, there.reversed(), &UDP);
    let half = world.find(there).expect("there");
    assert!(!world.conntrack.v4.state(half, world.now).assured(), "one question, one answer");
    world.pass(3);
    world.packet(0, there.reversed(), &UDP);
    let state = world.conntrack.v4.state(half, world.now);
    assert!(state.assured() && state.seen_reply());
    assert_eq!(state.phase(), Phase::UdpStream);
    // From here on packets touch their half alone, and that is enough.
    for _ in 0..5 {
        world.pass(100);
        assert!(world.conntrack.v4.half(half).flags().settled());
        world.conntrack.v4.half(half).touch(world.now, 60);
    }
    world.pass(119);
    assert!(world.find(there).is_some());
    world.pass(1);
    assert!(world.find(there).is_none());
}

#[test]
fn timeouts_hold_over_many_rounds_of_the_wheel() {
    let mut world = World::new(100, 1);
    assert!(world.conntrack.shared.timeouts.set(Timeout::Udp, 2000));
    world.begin(0, key(17, 1), &UDP).expect("room");
    world.pass(1999);
    assert!(world.find(key(17, 1)).is_some());
    world.pass(1);
    assert!(world.find(key(17, 1)).is_none());
}

#[test]
fn a_shorter_timeout_counts_from_the_last_packet() {
    let mut world = World::new(100, 1);
    world.begin(0, key(17, 1), &UDP).expect("room");
    assert!(world.conntrack.shared.timeouts.set(Timeout::Udp, 1));
    world.begin(0, key(17, 2), &UDP).expect("room");
    world.pass(1);
    assert!(world.find(key(17, 2)).is_none());
    world.pass(29);
    assert!(world.find(key(17, 1)).is_none(), "at the latest when its old timeout is over");
}

#[test]
fn a_worker_that_slept_long_catches_up() {
    let mut world = World::new(1000, 1);
    for n in 0..500 {
        world.begin(0, key(17, n), &UDP).expect("room");
        world.now += 1;
    }
    assert!(!world.locals[0].is_idle());
    world.now += 100_000;
    world.turn();
    assert_eq!(world.conntrack.shared.count(), 0);
    world.begin(0, key(17, 1), &UDP).expect("room");
    world.pass(30);
    assert_eq!(world.conntrack.shared.count(), 0);
    assert!(world.locals[0].is_idle());
}

#[test]
fn what_one_worker_removes_another_ones_memory_returns() {
    let mut world = World::new(100, 2);
    world.begin(0, key(17, 1), &UDP).expect("room");
    let half = world.find(key(17, 1)).expect("there");
    assert!(world.locals[1].v4.kill(&world.conntrack.v4, half));
    assert!(world.find(key(17, 1)).is_none() && world.find(key(17, 1).reversed()).is_none());
    assert!(!world.locals[0].is_idle(), "its owner does not know yet");
    world.turn();
    assert!(world.locals[0].is_idle());
    let (free, all) = world.slots();
    assert_eq!(free, all);
}

#[test]
fn memory_is_not_used_again_while_somebody_may_look() {
    let mut world = World::new(4000, 2);
    let half = world.begin(0, key(17, 1), &UDP).expect("room");
    assert!(world.locals[0].v4.kill(&world.conntrack.v4, half));
    // Worker 1 is in the midst of a turn; worker 0 goes on.
    for n in 2..600 {
        world.epochs.quiesce(0);
        world.locals[0].turn(&world.conntrack, world.now);
        assert_ne!(world.begin(0, key(17, n), &UDP), Ok(half));
        assert_eq!(world.conntrack.v4.half(half).key(), key(17, 1));
    }
    world.turn();
    assert!((600..2000).any(|n| world.begin(0, key(17, n), &UDP) == Ok(half)), "then it is");
}

#[test]
fn queries_and_other_protocols_have_their_own_timeouts() {
    let mut world = World::new(100, 1);
    let (ping, gre) = (key(1, 1), Key4 { source_port: 0, destination_port: 0, ..key(47, 1) });
    for key in [ping, gre] {
        world.begin(0, key, &UDP).expect("room");
        world.packet(0, key.reversed(), &UDP);
    }
    assert_eq!(UDP.begin(&ping.reversed(), true, 0).map(|_| ()), None, "an answer without question");
    assert_eq!(UDP.begin(&Key4 { destination_port: 0, ..ping }, true, 0).map(|_| ()), None, "no query");
    let state = |world: &World, key| world.conntrack.v4.state(world.find(key).expect("there"), world.now);
    assert!(state(&world, gre).assured() && !state(&world, ping).assured());
    assert!(state(&world, ping).seen_reply());
    world.pass(30);
    assert!(world.find(ping).is_none());
    world.pass(569);
    assert!(world.find(gre).is_some());
    world.pass(1);
    assert!(world.find(gre).is_none());
}

#[test]
fn a_worker_is_told_that_more_connections_are_over_than_a_turn_ends() {
    let mut world = World::new(1000, 1);
    for n in 0..500 {
        world.begin(0, key(17, n), &UDP).expect("room");
    }
    world.now += 31;
    let mut turns = 0;
    loop {
        world.epochs.quiesce(0);
        turns += 1;
        if !world.locals[0].turn(&world.conntrack, world.now) {
            break;
        }
        assert!(turns < 100, "it comes to an end");
    }
    assert!(turns > 5, "each turn is bounded: {turns}");
    assert_eq!((world.conntrack.shared.count(), world.counter("expired")), (0, 500));
}
