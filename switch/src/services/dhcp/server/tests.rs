use std::collections::BTreeMap;

use ipnet::Ipv4Net;

use super::super::{Reservation, Told};
use super::*;

mod properties;

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 3, 1);

fn at(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 3, last)
}

fn mac(n: u16) -> Mac {
    let [a, b] = n.to_be_bytes();
    Mac([0x52, 0x54, 0, 0, a, b])
}

/// lxc-net's network with addresses from 2 to `last`.
fn config(last: u8) -> Config {
    Config::new("10.0.3.1/24".parse().expect("a network"), Some((at(2), at(last))))
}

fn reserve(n: u16, last: u8, name: &str) -> Reservation {
    Reservation { mac: mac(n), address: at(last), hostname: Some(name.into()), told: None }
}

/// A client's message, built by hand.
#[derive(Clone, Default)]
struct Ask {
    kind: u8,
    mac: Mac,
    port: u16,
    ciaddr: Option<Ipv4Addr>,
    giaddr: Option<Ipv4Addr>,
    broadcast: bool,
    options: Vec<(u8, Vec<u8>)>,
    source: Option<Mac>,
}

impl Ask {
    fn new(kind: Kind, n: u16) -> Self {
        Self { kind: kind as u8, mac: mac(n), port: n, ..Self::default() }
    }

    fn with(mut self, code: u8, value: impl AsRef<[u8]>) -> Self {
        self.options.push((code, value.as_ref().to_vec()));
        self
    }

    fn requesting(self, address: Ipv4Addr) -> Self {
        self.with(option::REQUESTED_ADDRESS, address.octets())
    }

    fn towards(self, address: Ipv4Addr) -> Self {
        self.with(option::SERVER, address.octets())
    }

    fn of(mut self, address: Ipv4Addr) -> Self {
        self.ciaddr = Some(address);
        self
    }

    fn at(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    fn message(&self) -> Vec<u8> {
        let mut bytes = vec![0; 240];
        bytes[..8].copy_from_slice(&[1, 1, 6, 0, 1, 2, 3, 4]);
        bytes[10] = if self.broadcast { 0x80 } else { 0 };
        bytes[12..16].copy_from_slice(&self.ciaddr.unwrap_or(Ipv4Addr::UNSPECIFIED).octets());
        bytes[24..28].copy_from_slice(&self.giaddr.unwrap_or(Ipv4Addr::UNSPECIFIED).octets());
        bytes[28..34].copy_from_slice(&self.mac.0);
        bytes[236..].copy_from_slice(&[99, 130, 83, 99]);
        bytes.extend([53, 1, self.kind]);
        for (code, value) in &self.options {
            bytes.extend([*code, value.len() as u8]);
            bytes.extend(value);
        }
        bytes.push(255);
        bytes
    }

    fn ask(&self, server: &mut Server, now: u64) -> Outcome {
        let source = self.ciaddr.unwrap_or(Ipv4Addr::UNSPECIFIED);
        server.handle(
            now,
            &self.message(),
            &Origin { port: self.port, mac: self.source.unwrap_or(self.mac), source },
        )
    }

    /// Asks where nobody else uses any address.
    fn say(&self, server: &mut Server, now: u64) -> Said {
        let outcome = match self.ask(server, now) {
            Outcome::Probe(address) => server.probed(now, address, None),
            outcome => outcome,
        };
        Said::from(outcome)
    }
}

/// What a client makes of an outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Said {
    Offer(Ipv4Addr),
    Ack(Ipv4Addr),
    Nak,
    Nothing(Silence),
    Probe(Ipv4Addr),
}

impl From<Outcome> for Said {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Answer(answer) => {
                let yiaddr: [u8; 4] = answer.message[16..20].try_into().expect("four");
                assert_eq!(Ipv4Addr::from(yiaddr), answer.address);
                match answer.kind {
                    Kind::Offer => Self::Offer(answer.address),
                    Kind::Ack => Self::Ack(answer.address),
                    _ => Self::Nak,
                }
            }
            Outcome::Probe(address) => Self::Probe(address),
            Outcome::Silence(silence) => Self::Nothing(silence),
        }
    }
}

fn discover(n: u16) -> Ask {
    Ask::new(Kind::Discover, n)
}

fn request(n: u16) -> Ask {
    Ask::new(Kind::Request, n)
}

/// The usual four messages; the address.
fn lease(server: &mut Server, n: u16, now: u64) -> Ipv4Addr {
    let Said::Offer(offered) = discover(n).say(server, now) else { panic!("no offer to {n}") };
    let said = request(n).requesting(offered).towards(SERVER).say(server, now);
    assert_eq!(said, Said::Ack(offered));
    offered
}

/// The options of an answer.
fn options(outcome: Outcome) -> BTreeMap<u8, Vec<u8>> {
    let Outcome::Answer(answer) = outcome else { panic!("{outcome:?}") };
    let mut area = &answer.message[240..];
    let mut options = BTreeMap::new();
    while let [code, rest @ ..] = area {
        match code {
            0 => area = rest,
            255 => break,
            _ => {
                let (value, next) = rest[1..].split_at(rest[0].into());
                assert!(options.insert(*code, value.to_vec()).is_none(), "option {code} twice");
                area = next;
            }
        }
    }
    options
}

#[test]
fn discover_offer_request_ack() {
    let mut server = Server::new(config(254));
    let Outcome::Probe(address) = discover(1).ask(&mut server, 100) else { panic!("no probe") };
    assert_eq!(Said::from(discover(1).ask(&mut server, 100)), Said::Nothing(Silence::Probing));
    assert_eq!(Said::from(server.probed(100, address, None)), Said::Offer(address));
    assert_eq!(Said::from(server.probed(100, address, None)), Said::Nothing(Silence::Done));
    assert_eq!(
        Said::from(discover(1).ask(&mut server, 101)),
        Said::Offer(address),
        "the same, without a probe"
    );
    assert!(server.effects().changes.is_empty(), "an offer is no lease");

    let said = request(1).requesting(address).towards(SERVER).ask(&mut server, 102);
    assert_eq!(Said::from(said), Said::Ack(address));
    let effects = server.effects();
    assert_eq!(effects.events, [Event::Bound { mac: mac(1), address, port: Some(1) }]);
    assert_eq!(effects.changes.len(), 1);
    assert_eq!(
        (effects.changes[0].address, effects.changes[0].lease.as_ref().map(|l| l.expires)),
        (address, Some(3702))
    );
    let listing = Listing { address, mac: Some(mac(1)), hostname: None, state: State::Bound, expires: 3600 };
    assert_eq!(server.list(102), [listing]);
    assert_eq!(server.counters(), Counters { requests: 4, offers: 2, acks: 1, ..Counters::default() });
}

#[test]
fn lxc_nets_range_has_253_addresses_and_no_254th() {
    let mut server = Server::new(Config { per_port: u32::MAX, ..config(254) });
    let mut given = std::collections::BTreeSet::new();
    for n in 0..253 {
        assert!(given.insert(lease(&mut server, n, 0)), "twice");
    }
    assert_eq!((given.first(), given.last()), (Some(&at(2)), Some(&at(254))));
    assert_eq!(discover(253).say(&mut server, 0), Said::Nothing(Silence::Exhausted));
    assert_eq!(server.counters().exhausted, 1);
    let mut release = Ask::new(Kind::Release, 7);
    release.ciaddr = server.list(0).iter().find(|l| l.mac == Some(mac(7))).map(|l| l.address);
    assert_eq!(release.say(&mut server, 1), Said::Nothing(Silence::Done));
    assert_eq!(Some(lease(&mut server, 253, 2)), release.ciaddr, "what was given up");
    assert_eq!(discover(7).say(&mut server, 3), Said::Nothing(Silence::Exhausted));
    // When their time is over, addresses go to others, that of the longest absence first.
    assert!(matches!(discover(300).say(&mut server, 3600), Said::Offer(_)));
}

#[test]
fn options_are_what_the_client_asked_for() {
    let settings = Config {
        dns: vec![at(53), [9, 9, 9, 9].into()],
        domain: Some("lan.example".into()),
        mtu: Some(1400),
        routes: vec![
            ("10.77.0.0/16".parse().expect("a network"), at(9)),
            ("192.0.2.128/25".parse().expect("a network"), at(8)),
        ],
        reservations: vec![reserve(1, 16, "mail")],
        ..config(254)
    };
    let mut server = Server::new(settings);
    let id = [1, 0x52, 0x54, 0, 0, 0, 1];
    let ask = discover(1)
        .with(option::PARAMETERS, [1, 3, 6, 12, 15, 26, 28, 121, 249, 42, 3])
        .with(option::CLIENT, id)
        .with(option::LEASE_TIME, 600_u32.to_be_bytes());
    let Outcome::Probe(address) = ask.ask(&mut server, 0) else { panic!("no probe") };
    assert_eq!(address, at(16));
    let told = options(server.probed(0, address, None));
    let routes =
        [&[16, 10, 77, 10, 0, 3, 9][..], &[25, 192, 0, 2, 128, 10, 0, 3, 8], &[0, 10, 0, 3, 1]].concat();
    let expected = BTreeMap::from([
        (1, vec![255, 255, 255, 0]),
        (3, vec![10, 0, 3, 1]),
        (6, vec![10, 0, 3, 53, 9, 9, 9, 9]),
        (12, b"mail".to_vec()),
        (15, b"lan.example".to_vec()),
        (26, vec![0x05, 0x78]),
        (28, vec![10, 0, 3, 255]),
        (51, vec![0, 0, 2, 88]),
        (53, vec![2]),
        (54, vec![10, 0, 3, 1]),
        (58, vec![0, 0, 1, 44]),
        (59, vec![0, 0, 2, 13]),
        (61, id.to_vec()),
        (121, routes.clone()),
        (249, routes),
    ]);
    assert_eq!(told, expected);

    // Who asks for nothing gets what it cannot do without, and a lease that is neither too short nor too long.
    let plain = request(1).requesting(at(16)).towards(SERVER).with(option::LEASE_TIME, [0, 0, 0, 1]);
    let told = options(plain.ask(&mut server, 0));
    assert_eq!(told.keys().copied().collect::<Vec<_>>(), [1, 3, 6, 12, 15, 28, 51, 53, 54, 58, 59]);
    assert_eq!(told[&51], [0, 0, 0, 60]);
    let long = request(1).requesting(at(16)).with(option::LEASE_TIME, [0xff; 4]);
    assert_eq!(options(long.ask(&mut server, 0))[&51], 3600_u32.to_be_bytes());
}

#[test]
fn answers_reach_clients_where_they_listen() {
    let mut server = Server::new(config(254));
    let address = lease(&mut server, 1, 0);
    let answer = |server: &mut Server, ask: Ask| match ask.ask(server, 1) {
        Outcome::Answer(answer) => (answer.kind, answer.destination, answer.mac, answer.port),
        other => panic!("{other:?}"),
    };
    let all = (Ipv4Addr::BROADCAST, Mac::BROADCAST);
    assert_eq!(answer(&mut server, discover(1)), (Kind::Offer, address, mac(1), 1));
    let deaf = Ask { broadcast: true, ..discover(1) };
    assert_eq!(answer(&mut server, deaf), (Kind::Offer, all.0, all.1, 1));
    let init_reboot = request(1).requesting(address);
    assert_eq!(answer(&mut server, init_reboot), (Kind::Ack, address, mac(1), 1));
    let renewing = Ask { broadcast: true, ..request(1).of(address) };
    assert_eq!(answer(&mut server, renewing), (Kind::Ack, address, mac(1), 1));
    let wrong = request(1).requesting([192, 168, 7, 7].into());
    assert_eq!(answer(&mut server, wrong), (Kind::Nak, all.0, all.1, 1));
    let inform = Ask::new(Kind::Inform, 9).of(at(200));
    assert_eq!(answer(&mut server, inform.clone()), (Kind::Ack, at(200), mac(9), 9));
    let told = options(inform.ask(&mut server, 1));
    assert_eq!(told.keys().copied().collect::<Vec<_>>(), [1, 3, 28, 53, 54], "no lease");
}

#[test]
fn init_reboot_and_renewal_of_what_is_known_and_what_is_not() {
    let mut server = Server::new(config(254));
    let address = lease(&mut server, 1, 0);
    let other = lease(&mut server, 2, 0);
    assert_eq!(request(1).requesting(address).say(&mut server, 10), Said::Ack(address));
    assert_eq!(request(1).requesting(other).say(&mut server, 10), Said::Nak, "somebody else's");
    assert_eq!(request(1).requesting(SERVER).say(&mut server, 10), Said::Nak, "our own");
    assert_eq!(request(1).requesting(at(255)).say(&mut server, 10), Said::Nak, "nobody's");
    assert_eq!(request(1).of(other).say(&mut server, 10), Said::Nak);
    assert_eq!(request(1).of([10, 0, 4, 9].into()).say(&mut server, 10), Said::Nak);
    assert_eq!(request(1).say(&mut server, 10), Said::Nothing(Silence::Incomplete));
    assert_eq!(request(1).of(address).say(&mut server, 1800), Said::Ack(address));
    assert_eq!(server.list(1800)[0].expires.max(server.list(1800)[1].expires), 3600, "renewed");

    // Leases are lost, clients go on: whoever lives with a free address keeps it, whoever returns to one has to wait
    // until it is known to be free.
    let mut server = Server::new(config(254));
    assert_eq!(Said::from(request(1).of(address).ask(&mut server, 0)), Said::Ack(address));
    assert_eq!(Said::from(request(2).requesting(other).ask(&mut server, 0)), Said::Probe(other));
    assert_eq!(Said::from(server.probed(0, other, Some((mac(3), 3)))), Said::Nak);
    assert_eq!(request(2).requesting(address).say(&mut server, 0), Said::Nak);
}

#[test]
fn a_client_of_another_server_is_let_go() {
    let mut server = Server::new(config(254));
    let Said::Offer(offered) = discover(1).say(&mut server, 0) else { panic!("no offer") };
    let elsewhere = request(1).requesting(at(77)).towards(at(250));
    assert_eq!(elsewhere.say(&mut server, 0), Said::Nothing(Silence::OtherServer));
    assert!(server.list(0).is_empty(), "{offered} is free again");
    let release = Ask::new(Kind::Release, 1).of(offered).towards(at(250));
    assert_eq!(release.say(&mut server, 0), Said::Nothing(Silence::OtherServer));
}

#[test]
fn addresses_in_use_are_found_out_before_and_after() {
    let mut server = Server::new(config(4));
    let Outcome::Probe(first) = discover(1).ask(&mut server, 0) else { panic!("no probe") };
    assert!(server.is_other(first, mac(9), 1) && !server.is_other(first, mac(1), 1));
    let Outcome::Probe(second) = server.probed(0, first, Some((mac(9), 9))) else { panic!("no other") };
    assert_ne!(first, second);
    assert_eq!(
        Said::from(server.probed(0, second, Some((mac(1), 1)))),
        Said::Offer(second),
        "the client's own answer"
    );
    assert_eq!(request(1).requesting(second).towards(SERVER).say(&mut server, 0), Said::Ack(second));
    server.effects();
    // The client finds out by itself.
    let decline = Ask::new(Kind::Decline, 1).requesting(second).towards(SERVER);
    assert_eq!(
        decline.clone().at(5).say(&mut server, 0),
        Said::Nothing(Silence::NotTheirs),
        "from elsewhere"
    );
    assert_eq!(decline.say(&mut server, 0), Said::Nothing(Silence::Done));
    assert_eq!(server.effects().events, [Event::Unbound { mac: mac(1), address: second, port: Some(1) }]);
    let third = lease(&mut server, 1, 0);
    assert!(third != first && third != second);
    assert_eq!(discover(2).say(&mut server, 0), Said::Nothing(Silence::Exhausted));
    let states: Vec<_> = server.list(0).into_iter().map(|l| (l.state, l.mac.is_some())).collect();
    assert_eq!(states.iter().filter(|&&one| one == (State::Declined, false)).count(), 2, "{states:?}");
    assert_eq!(server.counters().conflicts, 2);
    // After ten minutes they are tried again.
    assert!(matches!(discover(2).say(&mut server, 600), Said::Offer(_)));
}

#[test]
fn only_the_client_gives_its_address_up() {
    let mut server = Server::new(config(254));
    let address = lease(&mut server, 1, 0);
    server.effects();
    let release = |n| Ask::new(Kind::Release, n).of(address).towards(SERVER);
    assert_eq!(release(2).say(&mut server, 1), Said::Nothing(Silence::NotTheirs));
    assert_eq!(release(1).at(2).say(&mut server, 1), Said::Nothing(Silence::NotTheirs), "from another port");
    let foreign = Ask { source: Some(mac(2)), ..release(1) };
    assert_eq!(foreign.say(&mut server, 1), Said::Nothing(Silence::Foreign));
    assert!(server.effects().events.is_empty());
    assert_eq!(release(1).say(&mut server, 1), Said::Nothing(Silence::Done));
    assert_eq!(server.effects().events, [Event::Unbound { mac: mac(1), address, port: Some(1) }]);
    assert_eq!(lease(&mut server, 1, 2), address, "it gets it again");
}

#[test]
fn what_is_not_served_has_a_name() {
    let mut server = Server::new(config(254));
    let relayed = Ask { giaddr: Some(at(9)), ..discover(1) };
    assert_eq!(relayed.say(&mut server, 0), Said::Nothing(Silence::Relayed));
    let foreign = Ask { source: Some(mac(2)), ..discover(1) };
    assert_eq!(foreign.say(&mut server, 0), Said::Nothing(Silence::Foreign));
    let decline = Ask::new(Kind::Decline, 1).towards(SERVER);
    assert_eq!(decline.say(&mut server, 0), Said::Nothing(Silence::Incomplete));
    let outcome = server.handle(0, b"hello", &Origin { port: 0, mac: mac(1), source: Ipv4Addr::UNSPECIFIED });
    assert!(matches!(outcome, Outcome::Silence(Silence::Malformed(_))));
    assert_eq!(server.counters(), Counters { requests: 1, malformed: 2, refused: 2, ..Counters::default() });
}

#[test]
fn a_port_takes_its_share_and_leaves_the_rest() {
    let mut server = Server::new(config(254));
    for n in 0..1000 {
        let said = discover(n).at(1).say(&mut server, 0);
        assert!(matches!(said, Said::Offer(_)), "an offer that was not taken up gives way: {said:?}");
    }
    assert_eq!(server.list(0).len(), 32);
    let taken = |server: &mut Server, n| {
        let Said::Offer(address) = discover(n).at(1).say(server, 1) else { return false };
        request(n).at(1).requesting(address).towards(SERVER).say(server, 1) == Said::Ack(address)
    };
    assert_eq!((2000..3000).filter(|&n| taken(&mut server, n)).count(), 32);
    assert_eq!(discover(1).at(1).say(&mut server, 1), Said::Nothing(Silence::PortLimit));
    assert_ne!(request(1).at(1).of(at(2)).say(&mut server, 1), Said::Ack(at(2)));
    lease(&mut server, 5000, 1);
    // Those that have an address go on with it.
    let own = server.list(1).into_iter().find(|l| l.mac == Some(mac(2003))).expect("a lease").address;
    assert_eq!(request(2003).at(1).of(own).say(&mut server, 2), Said::Ack(own));
    server.port_gone(1);
    lease(&mut server, 1, 3);
    // Nor does a port that claims to use every address empty the range.
    let mut server = Server::new(config(254));
    for n in 0..100 {
        let mut outcome = discover(n).ask(&mut server, 0);
        while let Outcome::Probe(address) = outcome {
            outcome = server.probed(0, address, Some((mac(999), 999)));
        }
    }
    assert_eq!(server.list(0).iter().filter(|l| l.state == State::Declined).count(), 32);
    lease(&mut server, 200, 0);
}

#[test]
fn reservations_hold_and_may_change() {
    let mut server = Server::new(Config {
        reservations: vec![reserve(1, 16, "mail"), reserve(2, 200, "web")],
        ..config(100)
    });
    assert_eq!(lease(&mut server, 1, 0), at(16));
    assert_eq!(lease(&mut server, 2, 0), at(200), "beyond the range");
    assert_eq!(request(3).requesting(at(16)).say(&mut server, 0), Said::Nak);
    assert_eq!(request(3).requesting(at(200)).say(&mut server, 0), Said::Nak);
    // Two identifiers of one machine: its firmware's and its system's.
    let duid = |ask: Ask| ask.with(option::CLIENT, b"\xffduid");
    assert_eq!(duid(discover(1)).say(&mut server, 1), Said::Offer(at(16)));
    assert_eq!(duid(request(1)).requesting(at(16)).towards(SERVER).say(&mut server, 1), Said::Ack(at(16)));

    // The address of one that has another already: it is told so when it renews, and then gets its own.
    let old = lease(&mut server, 4, 2);
    let Listing { hostname, .. } = server.list(2).into_iter().find(|l| l.address == at(16)).expect("mail's");
    assert_eq!(hostname.as_deref(), Some("mail"));
    server.configure(Config {
        reservations: vec![reserve(4, 50, "db"), reserve(5, 16, "mail")],
        ..config(100)
    });
    assert_eq!(server.list(2).len(), 3, "leases stay");
    assert_eq!(request(4).of(old).say(&mut server, 3), Said::Nak);
    assert_eq!(lease(&mut server, 4, 3), at(50));
    // An address that its former owner still has is not given twice.
    let Said::Offer(meanwhile) = discover(5).say(&mut server, 4) else { panic!("no offer") };
    assert_ne!(meanwhile, at(16));
    assert_eq!(duid(request(1)).of(at(16)).say(&mut server, 5), Said::Nak, "not mail's any more");
    assert_eq!(lease(&mut server, 5, 3601 + 1), at(16), "when the former owner's time is over");
    // Nobody outside a range that shrank may stay.
    assert_eq!(request(2).of(at(200)).say(&mut server, 6), Said::Nak);
}

#[test]
fn one_station_does_not_get_anothers_address_by_its_identifier() {
    let mut server = Server::new(config(254));
    let duid = |ask: Ask| ask.with(option::CLIENT, b"\xffduid");
    let Said::Offer(address) = duid(discover(1)).say(&mut server, 0) else { panic!("no offer") };
    assert_eq!(duid(request(1)).requesting(address).towards(SERVER).say(&mut server, 0), Said::Ack(address));
    for claim in [
        request(2).requesting(address),
        request(2).of(address),
        request(2).requesting(address).towards(SERVER),
    ] {
        assert_eq!(duid(claim).say(&mut server, 0), Said::Nak);
    }
    assert!(matches!(duid(discover(2)).say(&mut server, 0), Said::Offer(other) if other != address));
    assert_eq!(duid(request(1)).of(address).say(&mut server, 1), Said::Ack(address));
}

#[test]
fn a_client_may_move_but_not_be_in_two_places() {
    let mut server = Server::new(config(254));
    let address = lease(&mut server, 1, 0);
    server.effects();
    // Somebody at port 9 uses the client's MAC address, for whatever there is to ask, while the client answers.
    for ask in [discover(1), request(1).requesting(address), request(1).of(address)] {
        assert_eq!(Said::from(ask.clone().at(9).ask(&mut server, 1)), Said::Probe(address));
        assert_eq!(Said::from(ask.at(9).ask(&mut server, 1)), Said::Nothing(Silence::Probing));
        assert!(server.is_other(address, mac(1), 1) && !server.is_other(address, mac(1), 9));
        assert_eq!(
            Said::from(server.probed(1, address, Some((mac(1), 1)))),
            Said::Nothing(Silence::Elsewhere)
        );
    }
    assert!(server.effects().events.is_empty());
    // While it is being asked it renews: that is an answer, too.
    assert_eq!(Said::from(request(1).of(address).at(9).ask(&mut server, 1)), Said::Probe(address));
    assert_eq!(Said::from(request(1).of(address).ask(&mut server, 1)), Said::Ack(address));
    assert_eq!(Said::from(server.probed(1, address, None)), Said::Nothing(Silence::Done));
    // It has moved.
    assert_eq!(request(1).requesting(address).at(9).say(&mut server, 2), Said::Ack(address));
    let moved = [(1, false), (9, true)].map(|(port, bound)| match bound {
        true => Event::Bound { mac: mac(1), address, port: Some(port) },
        false => Event::Unbound { mac: mac(1), address, port: Some(port) },
    });
    assert_eq!(server.effects().events, moved);
    // Its port was removed: there is nobody to ask.
    server.port_gone(9);
    assert_eq!(Said::from(request(1).of(address).at(10).ask(&mut server, 3)), Said::Ack(address));
}

#[test]
fn leases_end_and_are_remembered_and_restored() {
    let mut server = Server::new(config(254));
    let address = lease(&mut server, 1, 1000);
    let saved = server.effects().changes.remove(0).lease.expect("a lease");
    assert_eq!(server.next_deadline(), Some(4600));
    server.tick(4599);
    assert!(server.effects().events.is_empty());
    server.tick(4600);
    assert_eq!(server.effects().events, [Event::Unbound { mac: mac(1), address, port: Some(1) }]);
    assert_eq!(server.list(4600)[0].state, State::Expired);
    assert_eq!(lease(&mut server, 1, 5000), address);
    server.tick(5000 + 3600 + REMEMBERED - 1);
    server.tick(5000 + 3600 + REMEMBERED);
    assert!(server.list(0).is_empty() && server.next_deadline().is_none());

    let saved = Lease { port: None, ..saved };
    let restored = |now| {
        let mut server = Server::new(config(254));
        server.restore(now, address, saved.clone());
        server
    };
    let mut again = restored(2000);
    assert_eq!(again.effects().events, [Event::Bound { mac: mac(1), address, port: None }]);
    assert_eq!(request(2).requesting(address).say(&mut again, 2001), Said::Nak);
    assert_eq!(request(1).of(address).say(&mut again, 2001), Said::Ack(address));
    assert_eq!(
        again.effects().events,
        [Event::Bound { mac: mac(1), address, port: Some(1) }],
        "now it is known where"
    );
    let mut late = restored(5000);
    assert!(late.effects().events.is_empty());
    assert_eq!(lease(&mut late, 1, 5001), address);
    let mut early = restored(10);
    assert_eq!(early.list(10)[0].expires, 3600, "no longer than the settings give, whatever the clock was");
    assert!(restored(1 << 30).list(1 << 30).is_empty());
    assert!(early.release(address) && !early.release(address));
    assert!(early.list(10).is_empty());
}

#[test]
fn who_is_told_routes_of_its_own_gets_those_alone() {
    let mut config = config(254);
    config.routes = vec![("10.9.0.0/16".parse().unwrap(), at(9))];
    let told = Told {
        mtu: Some(1400),
        routes: vec![("10.8.0.0/16".parse().unwrap(), at(8)), (Ipv4Net::default(), at(7))],
    };
    config.reservations = vec![Reservation { told: Some(told), ..reserve(1, 50, "box") }];
    const ASKED: [u8; 3] = [option::ROUTER, option::MTU, option::ROUTES];
    let all = |config: &Config, n: u16| {
        let mut server = Server::new(config.clone());
        let ask = discover(n).with(option::PARAMETERS, ASKED);
        let outcome = match ask.ask(&mut server, 1) {
            Outcome::Probe(address) => server.probed(1, address, None),
            outcome => outcome,
        };
        options(outcome)
    };
    let given = |config: &Config, n: u16| {
        let mut options = all(config, n);
        ASKED.map(|code| options.remove(&code))
    };
    // It asks again within a minute, for its routes may change; its lease is as long as others'.
    let times = |n: u16| [option::LEASE_TIME, option::RENEWAL].map(|code| all(&config, n)[&code].clone());
    assert_eq!(times(1), [vec![0, 0, 14, 16], vec![0, 0, 0, 60]]);
    assert_eq!(times(2), [vec![0, 0, 14, 16], vec![0, 0, 7, 8]]);
    let routes = vec![16, 10, 8, 10, 0, 3, 8, 0, 10, 0, 3, 7];
    assert_eq!(given(&config, 1), [Some(at(7).octets().to_vec()), Some(vec![5, 120]), Some(routes)]);
    // Without a default route there is no gateway, although the network has one.
    config.reservations[0].told = Some(Told::default());
    assert_eq!(given(&config, 1), [None, None, None]);
    assert_eq!(given(&config, 2)[0], Some(at(1).octets().to_vec()));
}
