use super::*;

const GATEWAY: Address = Address(0xffff_0a00_0001);
const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
const OTHER: Mac = Mac([2, 0, 0, 0, 0, 2]);

fn table(limit: u32) -> Neighbours {
    Neighbours::with_limit(limit, Timing::default(), Arc::new(Epochs::new(1)))
}

fn host(n: u32) -> Address {
    Address::v4(0x0a00_0000 + n)
}

fn mac(n: u32) -> Mac {
    let b = n.to_be_bytes();
    Mac([2, 0, b[0], b[1], b[2], b[3]])
}

fn state(table: &Neighbours, interface: u16, address: Address) -> Option<State> {
    table
        .entries(0)
        .into_iter()
        .find(|e| e.interface == interface && e.address == address.ip())
        .map(|e| e.state)
}

fn tick(table: &Neighbours, now: u32) -> Vec<Action> {
    let mut actions = Vec::new();
    table.tick(now, usize::MAX, &mut actions);
    actions
}

#[test]
fn nobody_answers_three_questions_and_a_packet_tries_again() {
    let table = table(100);
    let at = table.find_or_create(3, GATEWAY, 1, 10).unwrap();
    assert_eq!(table.find_or_create(3, GATEWAY, 1, 10), Some(at));
    let slot = table.slot(at).unwrap();
    assert_eq!((slot.interface(), slot.address()), (3, GATEWAY));
    assert_eq!(slot.usable_mac(10), None);
    assert_eq!([slot.ask(10), slot.ask(10)], [Waiting::Ask, Waiting::Wait]);
    assert!(tick(&table, 10).is_empty());
    let ask = Action::Ask { interface: 3, address: GATEWAY, mac: None };
    assert_eq!(tick(&table, 11), [ask]);
    assert_eq!(tick(&table, 12), [ask]);
    assert_eq!(slot.ask(12), Waiting::Wait);
    assert_eq!(tick(&table, 13), [Action::Failed { interface: 3, address: GATEWAY }]);
    assert_eq!(state(&table, 3, GATEWAY), Some(State::Failed));
    assert_eq!(slot.ask(13), Waiting::Failed);
    assert_eq!([slot.ask(14), slot.ask(14)], [Waiting::Ask, Waiting::Wait]);
    assert_eq!(tick(&table, 15), [ask]);
    assert_eq!(table.update(3, GATEWAY, MAC, true, 15), Learned::Resolved);
    assert_eq!(slot.usable_mac(15), Some(MAC));
    assert_eq!(table.failed(), 1);
}

#[test]
fn a_neighbour_in_use_is_asked_and_one_that_is_not_gets_stale() {
    let table = table(100);
    let at = table.find_or_create(1, GATEWAY, 1, 100).unwrap();
    let slot = table.slot(at).unwrap();
    table.update(1, GATEWAY, MAC, true, 100);
    for now in 101..=130 {
        assert_eq!(slot.usable_mac(now), Some(MAC));
        assert!(tick(&table, now).is_empty());
        assert_eq!(state(&table, 1, GATEWAY), Some(State::Reachable), "{now}");
    }
    tick(&table, 131);
    assert_eq!(state(&table, 1, GATEWAY), Some(State::Delay));
    for now in 132..136 {
        assert!(tick(&table, now).is_empty());
    }
    // It stays usable while it is asked, three times.
    for now in 136..139 {
        assert_eq!(tick(&table, now), [Action::Ask { interface: 1, address: GATEWAY, mac: Some(MAC) }]);
        assert_eq!(slot.usable_mac(now), Some(MAC));
    }
    assert_eq!(state(&table, 1, GATEWAY), Some(State::Probe));
    table.update(1, GATEWAY, MAC, true, 139);
    assert_eq!(state(&table, 1, GATEWAY), Some(State::Reachable));
    tick(&table, 170);
    assert_eq!(state(&table, 1, GATEWAY), Some(State::Stale), "unused");
    assert_eq!(slot.usable_mac(171), Some(MAC), "still good");
    assert_eq!(state(&table, 1, GATEWAY), Some(State::Delay), "but to be checked");
    table.update(1, GATEWAY, MAC, true, 172);
    assert_eq!(state(&table, 1, GATEWAY), Some(State::Reachable));
    tick(&table, 203);
    assert_eq!(slot.usable_mac(204), Some(MAC));
    let asked: Vec<_> = (205..213).flat_map(|now| tick(&table, now)).collect();
    assert_eq!(asked.len(), 4, "three questions, then it is given up: {asked:?}");
    assert_eq!(slot.usable_mac(213), None);
    assert_eq!(slot.ask(213), Waiting::Ask);
}

#[test]
fn who_does_not_override_is_doubted_or_not_heard() {
    let table = table(100);
    assert_eq!(table.hear(1, GATEWAY, MAC, true, 5), Learned::Unknown);
    table.find_or_create(1, GATEWAY, 1, 5).unwrap();
    assert_eq!(table.hear(1, GATEWAY, MAC, true, 5), Learned::Resolved, "nothing is there to be kept");
    assert_eq!(state(&table, 1, GATEWAY), Some(State::Reachable));
    assert_eq!(table.hear(1, GATEWAY, OTHER, true, 7), Learned::Kept);
    assert_eq!(state(&table, 1, GATEWAY), Some(State::Stale));
    assert_eq!(table.hear(1, GATEWAY, OTHER, true, 8), Learned::Kept);
    let slot = table.slot(table.find(1, GATEWAY).unwrap()).unwrap();
    assert_eq!(slot.usable_mac(9), Some(MAC));
    assert_eq!(table.hear(1, GATEWAY, MAC, true, 9), Learned::Known);
    assert_eq!(state(&table, 1, GATEWAY), Some(State::Reachable));
    assert_eq!(table.update(1, GATEWAY, OTHER, true, 10), Learned::Moved, "this one does");
}

#[test]
fn what_is_said_counts_as_much_as_it_proves() {
    let table = table(100);
    // Nobody asked: nothing is made, however much is said.
    assert_eq!(table.update(1, GATEWAY, MAC, true, 5), Learned::Unknown);
    assert_eq!(table.update(1, GATEWAY, MAC, false, 5), Learned::Unknown);
    assert!(table.is_empty());
    // Who asks for us will be answered.
    assert_eq!(table.learn(1, GATEWAY, MAC, 1, 5), Learned::New);
    assert_eq!(state(&table, 1, GATEWAY), Some(State::Stale));
    assert_eq!(state(&table, 2, GATEWAY), None, "another link is another neighbour");
    // Another address is believed, but not at once again.
    assert_eq!(table.update(1, GATEWAY, OTHER, true, 7), Learned::Moved);
    assert_eq!(table.learn(1, GATEWAY, MAC, 1, 7), Learned::Kept);
    assert_eq!(state(&table, 1, GATEWAY), Some(State::Reachable));
    assert_eq!(table.learn(1, GATEWAY, OTHER, 1, 8), Learned::Known);
    assert_eq!(state(&table, 1, GATEWAY), Some(State::Reachable), "nothing new");
    assert_eq!(table.update(1, GATEWAY, MAC, false, 9), Learned::Moved);
    assert_eq!(state(&table, 1, GATEWAY), Some(State::Stale), "it only said so");
    let at = table.find(1, GATEWAY).unwrap();
    assert_eq!(table.slot(at).unwrap().usable_mac(9), Some(MAC));
}

#[test]
fn permanent_entries_stay_as_they_are() {
    let table = table(4);
    table.find_or_create(1, GATEWAY, 1, 0).unwrap();
    table.fix(1, GATEWAY, MAC, 0).unwrap();
    let at = table.find(1, GATEWAY).unwrap();
    assert_eq!(table.update(1, GATEWAY, OTHER, true, 1), Learned::Kept);
    for now in 0..2000 {
        assert!(tick(&table, now).is_empty());
    }
    assert_eq!(table.slot(at).unwrap().usable_mac(2000), Some(MAC));
    assert_eq!(table.flush(None, false), 0);
    for n in 10..13 {
        table.fix(1, host(n), MAC, 0).unwrap();
    }
    let refusal = table.fix(1, host(20), MAC, 0).unwrap_err();
    assert_eq!(refusal.as_str(), "the neighbour table is full of permanent entries: its limit is 4");
    assert!(table.fix(1, GATEWAY, Mac::BROADCAST, 0).unwrap_err().as_str().contains("no station's"));
    assert!(table.remove(1, GATEWAY) && !table.remove(1, GATEWAY));
    assert!(table.slot(at).is_none());
    assert_eq!(table.flush(Some(1), true), 3);
    assert!(table.is_empty());
}

#[test]
fn a_slot_goes_to_another_only_when_no_worker_looks_at_it() {
    let epochs = Arc::new(Epochs::new(1));
    let table = Neighbours::with_limit(1, Timing::default(), epochs.clone());
    epochs.arrive(0);
    let first = table.find_or_create(1, GATEWAY, 1, 0).unwrap();
    let version = table.slot(first).unwrap().version();
    table.remove(1, GATEWAY);
    // The one spare slot is used in the meantime.
    let second = table.find_or_create(1, host(2), 1, 0).unwrap();
    assert_ne!(second, first);
    table.remove(1, host(2));
    assert_eq!(table.find_or_create(1, host(3), 1, 0), None, "the worker may look at both");
    epochs.quiesce(0);
    assert_eq!(table.find_or_create(1, host(3), 1, 0), Some(first));
    assert_ne!(table.slot(first).unwrap().version(), version);
}

#[test]
fn unused_entries_go_once_there_are_many() {
    let table = table(1000);
    for n in 0..200 {
        table.learn(1, host(n), mac(n), 1, 0);
    }
    tick(&table, 60);
    assert_eq!(table.len(), 200);
    table.slot(table.find(1, host(7)).unwrap()).unwrap().usable_mac(60);
    tick(&table, 61);
    assert_eq!(table.len(), 127, "down to those that cost nothing");
    assert!(table.find(1, host(7)).is_some(), "it was used");
    // Those that never answered always go.
    table.find_or_create(1, host(300), 1, 61);
    (62..67).for_each(|now| drop(tick(&table, now)));
    assert_eq!(state(&table, 1, host(300)), Some(State::Failed));
    (67..84).for_each(|now| drop(tick(&table, now)));
    assert_eq!(state(&table, 1, host(300)), None);
}

#[test]
fn questions_are_asked_a_few_at_a_time_and_all_of_them() {
    let table = table(5000);
    for n in 0..3000 {
        table.find_or_create(1, host(n), 1, 0);
    }
    let mut asked = std::collections::BTreeMap::new();
    for now in 1..200 {
        let mut actions = Vec::new();
        table.tick(now, 100, &mut actions);
        let questions = actions.iter().filter_map(|action| match action {
            Action::Ask { address, .. } => Some(*address),
            Action::Failed { .. } => None,
        });
        assert!(questions.clone().count() <= 100);
        questions.for_each(|address| *asked.entry(address).or_insert(0) += 1);
    }
    assert_eq!(asked.len(), 3000);
    assert!(asked.values().all(|&times| times == 3));
    assert_eq!(table.failed(), 3000);
}

#[test]
fn a_guest_that_asks_for_everybody_pays_alone() {
    let table = table(1000);
    for n in 0..100 {
        table.learn(1, host(n), mac(n), 2, 0);
    }
    for n in 1000..3000 {
        table.find_or_create(1, host(n), 1, 0);
    }
    assert_eq!(table.len(), 1000);
    assert!(table.full() > 0);
    assert!((0..100).all(|n| table.find(1, host(n)).is_some()), "the other's stay");
    // The other guest still gets new ones in, and so does the operator.
    for n in 100..200 {
        assert!(table.find_or_create(1, host(n), 2, 0).is_some(), "{n}");
    }
    table.fix(1, host(5000), MAC, 0).unwrap();
    // The greedy one reaches who is there: what did not answer makes room.
    assert!(table.find_or_create(1, host(4000), 1, 2).is_some());
    assert_eq!(table.len(), 1000);
    assert_eq!(table.flush_port(2), 200);
    assert_eq!(table.flush(None, true), 800);
}

#[test]
fn many_neighbours_fit_and_are_found() {
    let table = table(65_536);
    for n in 0..65_536 {
        assert!(table.find_or_create((n % 7) as u16, host(n), (n % 5) as u16, 0).is_some());
    }
    assert!((0..65_536).all(|n| table.find((n % 7) as u16, host(n)).is_some()));
    assert!((0..65_536).all(|n| table.find((n % 7) as u16 + 1, host(n)).is_none()));
    assert_eq!(table.entries(0).len(), 65_536);
    assert_eq!(table.flush(Some(3), false), 9_362);
}

#[test]
fn workers_never_send_to_another_neighbours_address() {
    // The MAC address is made of the address: churn a tiny table while workers use what they find.
    let epochs = Arc::new(Epochs::new(2));
    let table = Neighbours::with_limit(16, Timing::default(), epochs.clone());
    std::thread::scope(|scope| {
        for seat in 0..2usize {
            let (table, epochs) = (&table, &epochs);
            scope.spawn(move || {
                epochs.arrive(seat);
                let mut sent = 0;
                for n in 0..100_000u32 {
                    let address = n.wrapping_mul(2_654_435_761).wrapping_add(seat as u32) >> 8 & 63;
                    if let Some(at) = table.find_or_create(1, host(address), seat as u16, n) {
                        if let Some(to) = table.slot(at).and_then(|slot| slot.usable_mac(n)) {
                            assert_eq!(to, mac(address));
                            sent += 1;
                        } else {
                            table.update(1, host(address), mac(address), true, n);
                        }
                    }
                    if n % 3 == 0 {
                        table.remove(1, host(address ^ 5));
                    }
                    if n % 64 == 0 {
                        tick(table, n);
                    }
                    epochs.quiesce(seat);
                }
                epochs.leave(seat);
                assert_ne!(sent, 0);
            });
        }
    });
    table.flush(None, true);
    assert!(table.is_empty());
}
