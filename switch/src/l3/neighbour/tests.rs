use super::*;

const GATEWAY: Address = Address(0xffff_0a00_0001);
const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
const OTHER: Mac = Mac([2, 0, 0, 0, 0, 2]);
const ANSWER: Evidence = Evidence::Answer { replaces: true };

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
    table.tick(now, &mut actions);
    actions
}

#[test]
fn nobody_answers_three_questions_and_a_packet_tries_again() {
    let table = Neighbours::new(100);
    let Found::New(at) = table.find_or_create(3, GATEWAY, 1, 10) else { panic!("not made") };
    assert_eq!(table.find_or_create(3, GATEWAY, 1, 10), Found::Known(at));
    assert_eq!(table.way(at, 10), Way::Unresolved { ask: false });
    assert!(tick(&table, 10).is_empty(), "the maker has asked");
    let ask = Action::Ask { interface: 3, address: GATEWAY, mac: None };
    assert_eq!(tick(&table, 11), [ask]);
    assert_eq!(tick(&table, 12), [ask]);
    assert_eq!(tick(&table, 13), [Action::Failed { interface: 3, address: GATEWAY, adjacency: at }]);
    assert_eq!(state(&table, 3, GATEWAY), Some(State::Failed));
    assert_eq!(table.way(at, 14), Way::Unresolved { ask: true });
    assert_eq!(table.way(at, 14), Way::Unresolved { ask: false });
    assert_eq!(tick(&table, 15), [ask]);
    assert_eq!(table.learn(3, GATEWAY, MAC, ANSWER, 1, 15), Learned::Resolved(at));
    assert_eq!(table.way(at, 15), Way::To(MAC));
    assert_eq!(table.failed(), 1);
}

#[test]
fn a_neighbour_in_use_is_asked_and_one_that_is_not_gets_stale() {
    let table = Neighbours::new(100);
    let Found::New(at) = table.find_or_create(1, GATEWAY, 1, 100) else { panic!("not made") };
    table.learn(1, GATEWAY, MAC, ANSWER, 1, 100);
    for now in 101..=130 {
        table.way(at, now);
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
        assert_eq!(table.way(at, now), Way::To(MAC));
    }
    assert_eq!(state(&table, 1, GATEWAY), Some(State::Probe));
    table.learn(1, GATEWAY, MAC, ANSWER, 1, 139);
    assert_eq!(state(&table, 1, GATEWAY), Some(State::Reachable));
    tick(&table, 170);
    assert_eq!(state(&table, 1, GATEWAY), Some(State::Stale), "unused");
    assert_eq!(table.way(at, 171), Way::To(MAC), "still good");
    assert_eq!(state(&table, 1, GATEWAY), Some(State::Delay), "but to be checked");
    table.confirm(at, 172);
    assert_eq!(state(&table, 1, GATEWAY), Some(State::Reachable));
    tick(&table, 203);
    assert_eq!(table.way(at, 204), Way::To(MAC));
    let asked: Vec<_> = (205..213).flat_map(|now| tick(&table, now)).collect();
    assert_eq!(asked.len(), 4, "three questions, then it is given up: {asked:?}");
    assert_eq!(table.way(at, 213), Way::Unresolved { ask: true });
}

#[test]
fn what_is_said_counts_as_much_as_it_proves() {
    let table = Neighbours::new(100);
    let announcement = Evidence::Announcement { replaces: true };
    // Nobody asked: nothing is made, however much is said.
    assert_eq!(table.learn(1, GATEWAY, MAC, ANSWER, 1, 5), Learned::Unknown);
    assert_eq!(table.learn(1, GATEWAY, MAC, announcement, 1, 5), Learned::Unknown);
    assert!(table.is_empty());
    // Who asks for us will be answered.
    assert!(matches!(table.learn(1, GATEWAY, MAC, Evidence::Request, 1, 5), Learned::New(_)));
    assert_eq!(state(&table, 1, GATEWAY), Some(State::Stale));
    assert_eq!(state(&table, 2, GATEWAY), None, "another link is another neighbour");
    // Another address is believed, but not at once again.
    assert_eq!(table.learn(1, GATEWAY, OTHER, ANSWER, 1, 7), Learned::Moved);
    assert_eq!(table.learn(1, GATEWAY, MAC, Evidence::Request, 1, 7), Learned::Kept);
    assert_eq!(state(&table, 1, GATEWAY), Some(State::Reachable));
    assert_eq!(table.learn(1, GATEWAY, OTHER, Evidence::Request, 1, 8), Learned::Known);
    assert_eq!(state(&table, 1, GATEWAY), Some(State::Reachable), "nothing new");
    // ND without the override flag: ask before believing either.
    assert_eq!(table.learn(1, GATEWAY, MAC, Evidence::Answer { replaces: false }, 1, 9), Learned::Kept);
    assert_eq!(state(&table, 1, GATEWAY), Some(State::Stale));
    assert_eq!(table.learn(1, GATEWAY, MAC, announcement, 1, 9), Learned::Moved);
    let at = table.find(1, GATEWAY).unwrap();
    assert_eq!(table.way(at, 9), Way::To(MAC));
}

#[test]
fn permanent_entries_stay_as_they_are() {
    let table = Neighbours::new(4);
    assert_eq!(table.find_or_create(1, GATEWAY, 1, 0), Found::New(Adjacency { id: 0, version: 1 }));
    table.fix(1, GATEWAY, MAC, 0).unwrap();
    let at = table.find(1, GATEWAY).unwrap();
    assert_eq!(table.learn(1, GATEWAY, OTHER, ANSWER, 1, 1), Learned::Kept);
    for now in 0..2000 {
        assert!(tick(&table, now).is_empty());
    }
    assert_eq!(table.way(at, 2000), Way::To(MAC));
    assert_eq!(table.flush(None, false), 0);
    for n in 10..13 {
        table.fix(1, host(n), MAC, 0).unwrap();
    }
    let refusal = table.fix(1, host(20), MAC, 0).unwrap_err();
    assert_eq!(refusal.as_str(), "the neighbour table is full of permanent entries: its limit is 4");
    assert!(table.fix(1, GATEWAY, Mac::BROADCAST, 0).unwrap_err().as_str().contains("no station's"));
    assert!(table.remove(1, GATEWAY) && !table.remove(1, GATEWAY));
    assert_eq!(table.way(at, 2000), Way::Gone);
    assert_eq!(table.flush(Some(1), true), 3);
    assert!(table.is_empty());
}

#[test]
fn an_adjacency_tells_when_its_slot_is_anothers() {
    let table = Neighbours::new(8);
    let hint = AtomicU64::new(0);
    assert_eq!(table.find_hinted(&hint, 1, GATEWAY), None);
    let Found::New(first) = table.find_or_create(1, GATEWAY, 1, 0) else { panic!("not made") };
    assert_eq!(table.find_hinted(&hint, 1, GATEWAY), Some(first));
    assert_eq!(Adjacency::from_bits(hint.load(Ordering::Relaxed)), first);
    table.remove(1, GATEWAY);
    let Found::New(second) = table.find_or_create(1, host(9), 1, 0) else { panic!("not made") };
    assert_eq!(second.id, first.id);
    assert_ne!(table.version(second.id), first.version);
    assert_eq!(table.way(first, 0), Way::Gone);
    assert_eq!(table.find_hinted(&hint, 1, GATEWAY), None);
    table.confirm(first, 0);
    assert_eq!(table.way(second, 0), Way::Unresolved { ask: false });
}

#[test]
fn unused_entries_go_once_there_are_many() {
    let table = Neighbours::new(1000);
    for n in 0..200 {
        table.learn(1, host(n), mac(n), Evidence::Request, 1, 0);
    }
    tick(&table, 60);
    assert_eq!(table.len(), 200);
    table.way(table.find(1, host(7)).unwrap(), 60);
    tick(&table, 61);
    assert_eq!(table.len(), 127, "down to those that cost nothing");
    assert!(table.find(1, host(7)).is_some(), "it was used");
    // Those that never answered always go.
    table.find_or_create(1, host(300), 1, 61);
    (62..66).for_each(|now| drop(tick(&table, now)));
    assert_eq!(state(&table, 1, host(300)), Some(State::Failed));
    (66..82).for_each(|now| drop(tick(&table, now)));
    assert_eq!(state(&table, 1, host(300)), None);
}

#[test]
fn a_guest_that_asks_for_everybody_pays_alone() {
    let table = Neighbours::new(1000);
    for n in 0..100 {
        table.learn(1, host(n), mac(n), Evidence::Request, 2, 0);
    }
    for n in 1000..3000 {
        table.find_or_create(1, host(n), 1, 0);
    }
    assert_eq!(table.len(), 1000);
    assert!(table.full() > 0);
    assert!((0..100).all(|n| table.find(1, host(n)).is_some()), "the other's stay");
    // The other guest still gets new ones in, and so does the operator.
    for n in 100..200 {
        assert!(matches!(table.find_or_create(1, host(n), 2, 0), Found::New(_)), "{n}");
    }
    table.fix(1, host(5000), MAC, 0).unwrap();
    // The greedy one reaches who is there: what did not answer makes room.
    assert!(matches!(table.find_or_create(1, host(4000), 1, 2), Found::New(_)));
    assert_eq!(table.len(), 1000);
    assert_eq!(table.flush_port(2), 200);
    assert_eq!(table.flush(None, true), 800);
}

#[test]
fn many_neighbours_fit_and_are_found() {
    let table = Neighbours::new(65_536);
    for n in 0..65_536 {
        assert!(matches!(table.find_or_create((n % 7) as u16, host(n), (n % 5) as u16, 0), Found::New(_)));
    }
    assert!((0..65_536).all(|n| table.find((n % 7) as u16, host(n)).is_some()));
    assert!((0..65_536).all(|n| table.find((n % 7) as u16 + 1, host(n)).is_none()));
    assert_eq!(table.entries(0).len(), 65_536);
    assert_eq!(table.flush(Some(3), false), 9_362);
}

#[test]
fn workers_never_send_to_another_neighbours_address() {
    // The MAC address is made of the address: churn a tiny table while workers use what they find.
    let table = Neighbours::new(16);
    std::thread::scope(|scope| {
        for thread in 0..2u32 {
            let table = &table;
            scope.spawn(move || {
                for n in 0..100_000u32 {
                    let address = n.wrapping_mul(2_654_435_761).wrapping_add(thread) >> 8 & 63;
                    match table.find_or_create(1, host(address), thread as u16, n) {
                        Found::New(_) => {
                            table.learn(1, host(address), mac(address), ANSWER, 0, n);
                        }
                        Found::Known(at) => match table.way(at, n) {
                            Way::To(to) => assert_eq!(to, mac(address)),
                            Way::Unresolved { .. } => {
                                table.learn(1, host(address), mac(address), ANSWER, 0, n);
                            }
                            Way::Gone => {}
                        },
                        Found::Full | Found::Busy => {}
                    }
                    if n % 3 == 0 {
                        table.remove(1, host(address ^ 5));
                    }
                    if n % 64 == 0 {
                        tick(table, n);
                    }
                }
            });
        }
    });
    table.flush(None, true);
    assert!(table.is_empty());
}
