//! What holds whatever clients do.

use proptest::prelude::*;

use super::*;

/// A step of the property below.
#[derive(Clone, Debug)]
enum Step {
    Discover { client: u16, requested: Option<u8>, in_use: bool },
    Request { client: u16, address: u8, ciaddr: bool, server: Option<u8> },
    Decline { client: u16, address: u8 },
    Release { client: u16, address: u8 },
    Later(u16),
    Configure { last: u8, reserved: Option<(u16, u8)> },
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let client = 0_u16..8;
    let address = 0_u8..14;
    prop_oneof![
        4 => (client.clone(), proptest::option::of(address.clone()), any::<bool>())
            .prop_map(|(client, requested, in_use)| Step::Discover { client, requested, in_use }),
        8 => (client.clone(), address.clone(), any::<bool>(), proptest::option::of(0_u8..3))
            .prop_map(|(client, address, ciaddr, server)| Step::Request { client, address, ciaddr, server }),
        1 => (client.clone(), address.clone()).prop_map(|(client, address)| Step::Decline { client, address }),
        1 => (client.clone(), address.clone()).prop_map(|(client, address)| Step::Release { client, address }),
        1 => (0_u16..2000).prop_map(Step::Later),
        1 => (4_u8..12, proptest::option::of((client, 2_u8..14)))
            .prop_map(|(last, reserved)| Step::Configure { last, reserved }),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    /// Whatever clients do, no address is granted to two of them at the same time, none outside the network or of our
    /// own, and one that is reserved only to its owner. Leases that were written down survive a restart.
    #[test]
    fn no_address_belongs_to_two(steps in proptest::collection::vec(step(), 1..150)) {
        let mut server = Server::new(config(9));
        let mut now = 1 << 32;
        let mut granted: BTreeMap<Ipv4Addr, (u16, u64)> = BTreeMap::new();
        let mut file: BTreeMap<Ipv4Addr, Lease> = BTreeMap::new();
        let mut offered: BTreeMap<u16, Ipv4Addr> = BTreeMap::new();
        for step in steps {
            let (client, outcome) = match step {
                Step::Discover { client, requested, in_use } => {
                    let mut ask = discover(client);
                    if let Some(last) = requested {
                        ask = ask.requesting(at(last));
                    }
                    let mut outcome = ask.ask(&mut server, now);
                    if let (Outcome::Probe(address), true) = (&outcome, in_use) {
                        outcome = server.probed(now, *address, Some((mac(99), 99)));
                    }
                    // A client that looks for an address has none, or the one that it will be offered.
                    let bound: Vec<_> = server.list(now).into_iter().filter(|l| l.state == State::Bound).collect();
                    granted.retain(|given, (to, _)| *to != client || bound.iter().any(|l| l.address == *given));
                    (client, outcome)
                }
                Step::Request { client, address, ciaddr, server: to } => {
                    let mut ask = request(client);
                    // Mostly what was offered.
                    let address = offered.get(&client).copied().filter(|_| to == Some(1)).unwrap_or(at(address));
                    ask = if ciaddr { ask.of(address) } else { ask.requesting(address) };
                    if let Some(last) = to {
                        ask = ask.towards(at(last));
                    }
                    (client, ask.ask(&mut server, now))
                }
                Step::Decline { client, address } => {
                    let before = server.list(now);
                    let ask = Ask::new(Kind::Decline, client).requesting(at(address)).towards(SERVER);
                    let outcome = ask.ask(&mut server, now);
                    if server.list(now) != before {
                        granted.retain(|given, (to, _)| (*given, *to) != (at(address), client));
                    }
                    (client, outcome)
                }
                Step::Release { client, address } => {
                    let ask = Ask::new(Kind::Release, client).of(at(address)).towards(SERVER);
                    let outcome = ask.ask(&mut server, now);
                    if outcome == Outcome::Silence(Silence::Done) {
                        granted.remove(&at(address));
                    }
                    (client, outcome)
                }
                Step::Later(seconds) => {
                    now += u64::from(seconds);
                    server.tick(now);
                    continue;
                }
                Step::Configure { last, reserved } => {
                    let reservations = reserved.map(|(n, last)| reserve(n, last, "host")).into_iter().collect();
                    server.configure(Config { reservations, ..config(last) });
                    continue;
                }
                Step::Restart => {
                    let config = server.config().clone();
                    server = Server::new(config);
                    for (&address, lease) in &file {
                        server.restore(now, address, Lease { port: None, ..lease.clone() });
                    }
                    let bound = |address: &Ipv4Addr| {
                        server.list(now).iter().any(|l| l.address == *address && l.state == State::Bound)
                    };
                    for (address, (_, until)) in &granted {
                        prop_assert!(*until <= now || bound(address), "{address} was forgotten");
                    }
                    server.effects();
                    continue;
                }
            };
            let outcome = match outcome {
                Outcome::Probe(address) => server.probed(now, address, None),
                other => other,
            };
            for change in server.effects().changes {
                match change.lease {
                    Some(lease) => file.insert(change.address, lease),
                    None => file.remove(&change.address),
                };
            }
            let Outcome::Answer(answer) = outcome else { continue };
            let address = answer.address;
            if answer.kind == Kind::Nak {
                continue;
            }
            prop_assert!(server.config().is_station(address) && address != SERVER);
            if let Some(owner) = server.config().reservations.iter().find(|r| r.address == address) {
                prop_assert_eq!(owner.mac, mac(client));
            } else {
                let (first, last) = server.config().range.expect("a range");
                prop_assert!((first..=last).contains(&address));
            }
            if let Some(&(other, until)) = granted.get(&address) {
                prop_assert!(other == client || until <= now, "{address} is {other}'s until {until}");
            }
            if answer.kind == Kind::Ack {
                // A client has one address: taking one, it lets go of the other.
                granted.retain(|_, (to, _)| *to != client);
                granted.insert(address, (client, now + 3600));
            } else {
                offered.insert(client, address);
            }
        }
    }

    /// No bytes, and no client however odd, make the server panic.
    #[test]
    fn no_bytes_hurt(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0_u8..10, client in 0_u16..3) {
        let mut server = Server::new(config(9));
        lease(&mut server, 1, 0);
        let mut message = Ask { kind, ..discover(client) }.message();
        message.pop();
        message.extend(&bytes);
        let from = Origin { port: client, mac: mac(client), source: at(7) };
        let _ = server.handle(1, &message, &from);
        let _ = server.handle(1, &bytes, &from);
    }

    /// A server whose settings nobody checked gives no address twice either.
    #[test]
    fn odd_settings_do_not_hurt(first: u32, last: u32, net in "10\\.[0-3]\\.0\\.[0-9]/(8|16|24|30|31|32)", per_port in 0_u32..3) {
        let range = Some((Ipv4Addr::from(first), Ipv4Addr::from(last)));
        let mut server = Server::new(Config { per_port, lease: 0, ..Config::new(net.parse().expect("a network"), range) });
        let mut given = std::collections::BTreeSet::new();
        for n in 0..4 {
            if let Said::Offer(address) = discover(n).say(&mut server, 0) {
                prop_assert!(given.insert(address));
            }
        }
    }
}
