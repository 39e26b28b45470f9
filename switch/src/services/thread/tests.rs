use std::sync::mpsc::{Receiver, channel};

use etherparse::PacketBuilder;
use tempfile::TempDir;
use vhost_backend::frame::Burst;
use vhost_backend::net_header::NetHeader;

use super::super::dhcp::message::Kind;
use super::*;

const GATEWAY: Mac = Mac([2, 0, 0, 0, 0, 1]);
const LIMIT: Duration = Duration::from_secs(20);

/// Services with somebody in the place of the workers.
struct World {
    services: Services,
    woken: Receiver<()>,
    notices: Receiver<Notice>,
    inject: Arc<Inject>,
    mailbox: Arc<Mailbox>,
}

struct Frame {
    interface: u16,
    port: Option<u16>,
    bytes: Vec<u8>,
}

fn station(n: u8) -> Mac {
    Mac([2, 0, 0, 0, 1, n])
}

fn served(ra: bool) -> Served {
    let range = ([10, 0, 3, 2].into(), [10, 0, 3, 9].into());
    let ra = ra.then(|| ra::Config {
        mac: GATEWAY,
        source: "fe80::1".parse().expect("an address"),
        mtu: None,
        prefixes: vec!["fd05::1/64".parse().expect("a network")],
        dns: Vec::new(),
    });
    let dhcp = dhcp::Config::new("10.0.3.1/24".parse().expect("a network"), Some(range));
    Served { index: 3, name: "lan".parse().expect("a name"), mac: GATEWAY, dhcp: Some(dhcp), ra }
}

impl World {
    fn new(state: Option<&TempDir>) -> Self {
        let ((wake, woken), (notify, notices)) = (channel(), channel());
        let services = Services::start(
            state.map(TempDir::path),
            // Nobody may listen any more at the end.
            Box::new(move || wake.send(()).unwrap_or_default()),
            Box::new(move |notice| notify.send(notice).unwrap_or_default()),
        );
        let services = services.expect("a thread");
        let (inject, mailbox) = (services.inject(), services.mailbox());
        Self { services, woken, notices, inject, mailbox }
    }

    fn punt(&self, port: u16, frame: &[u8]) {
        let (head, rest) = frame.split_at(frame.len().min(100));
        Burst::new().with_slices(
            |filler| assert!(filler.push(NetHeader::default(), head, rest)),
            |burst| assert!(self.mailbox.punt(3, port, burst, 0)),
        );
    }

    /// The next frame that is to be sent.
    fn sent(&self) -> Frame {
        let deadline = Instant::now() + LIMIT;
        loop {
            let mut frame = None;
            self.inject.drain(1, |letter| {
                let (interface, port) = (letter.interface(), letter.port());
                frame = Some(Frame { interface, port, bytes: letter.frame().to_vec() });
            });
            if let Some(frame) = frame {
                return frame;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            self.woken.recv_timeout(left).expect("nothing was sent");
        }
    }

    fn notice(&self) -> dhcp::Event {
        let notice = self.notices.recv_timeout(LIMIT).expect("a notice");
        assert_eq!(notice.interface, 3);
        notice.event
    }

    /// Discovers and requests as `n`, answering probes of addresses of which `used` is true; the address.
    fn lease(&self, n: u8, used: impl Fn(Ipv4Addr) -> bool) -> Ipv4Addr {
        self.punt(n.into(), &question(n, Kind::Discover, None));
        let offered = self.answer(n, &used, Kind::Offer);
        self.punt(n.into(), &question(n, Kind::Request, Some(offered)));
        let granted = self.answer(n, &used, Kind::Ack);
        assert_eq!(granted, offered);
        granted
    }

    fn answer(&self, n: u8, used: &impl Fn(Ipv4Addr) -> bool, kind: Kind) -> Ipv4Addr {
        loop {
            let Frame { interface, port, bytes } = self.sent();
            assert_eq!((interface, &bytes[6..12]), (3, &GATEWAY.0[..]));
            if let Some(probe) = Arp::parse(&bytes, 14) {
                assert!(probe.is_probe() && port.is_none());
                if used(probe.target.into()) {
                    self.punt(77, &probe.reply(station(77)).frame(None));
                }
                continue;
            }
            assert_eq!((port, &bytes[..6]), (Some(n.into()), &station(n).0[..]));
            let message = &bytes[14 + 20 + 8..];
            assert_eq!(message[240..243], [53, 1, kind as u8]);
            return Ipv4Addr::new(message[16], message[17], message[18], message[19]);
        }
    }
}

fn question(n: u8, kind: Kind, requested: Option<Ipv4Addr>) -> Vec<u8> {
    let mut message = vec![0; 240];
    message[..8].copy_from_slice(&[1, 1, 6, 0, 0, 0, 0, n]);
    message[28..34].copy_from_slice(&station(n).0);
    message[236..].copy_from_slice(&[99, 130, 83, 99]);
    message.extend([53, 1, kind as u8]);
    if let Some(address) = requested {
        message.extend([50, 4]);
        message.extend(address.octets());
    }
    message.push(255);
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2(station(n).0, [0xff; 6]).ipv4([0; 4], [255; 4], 64).udp(68, 67);
    builder.write(&mut frame, &message).expect("a packet");
    frame
}

#[test]
fn a_station_gets_an_address_that_nobody_uses() {
    let world = World::new(None);
    world.services.set(served(false));
    // Somebody else uses the address that is asked for first.
    let first = std::cell::Cell::new(None);
    let address = world.lease(5, |address| {
        let used = first.get().unwrap_or(address);
        first.set(Some(used));
        used == address
    });
    let used = first.get();
    assert_ne!(Some(address), used);
    assert_eq!(world.notice(), dhcp::Event::Bound { mac: station(5), address, port: Some(5) });
    let leases = world.services.leases(3);
    assert_eq!(leases.len(), 2, "{leases:?}");
    assert!(leases.iter().any(|l| l.mac.is_none() && Some(l.address) == used));
    assert!(leases.iter().any(|l| l.mac == Some(station(5)) && l.address == address));
    assert_eq!(world.services.counters(3).conflicts, 1);
    assert!(world.services.release(3, address) && !world.services.release(3, address));
    assert_eq!(world.notice(), dhcp::Event::Unbound { mac: station(5), address, port: Some(5) });
}

#[test]
fn leases_outlive_the_daemon_and_go_with_the_interface() {
    let directory = tempfile::tempdir().expect("a directory");
    let world = World::new(Some(&directory));
    world.services.set(served(false));
    let addresses = [world.lease(5, |_| false), world.lease(6, |_| false)];
    drop(world);

    let world = World::new(Some(&directory));
    world.services.set(served(false));
    for _ in 0..2 {
        assert!(matches!(world.notice(), dhcp::Event::Bound { port: None, .. }), "restored");
    }
    let bound = |world: &World| world.services.leases(3).into_iter().map(|l| l.address).collect::<Vec<_>>();
    let mut sorted = addresses;
    sorted.sort();
    assert_eq!(bound(&world), sorted);
    world.punt(6, &question(6, Kind::Request, Some(addresses[1])));
    assert_eq!(world.answer(6, &|_| false, Kind::Ack), addresses[1]);
    assert!(matches!(world.notice(), dhcp::Event::Bound { port: Some(6), .. }));
    // Without the interface nobody is answered, but its leases wait for it.
    world.services.remove(3);
    for _ in 0..2 {
        assert!(matches!(world.notice(), dhcp::Event::Unbound { .. }));
    }
    assert!(bound(&world).is_empty());
    world.services.set(served(false));
    assert_eq!(bound(&world), sorted);
    world.services.forget(3);
    assert!(bound(&world).is_empty());
    world.services.remove(3);
    world.services.set(served(false));
    assert!(bound(&world).is_empty());
    drop(world);
    let world = World::new(Some(&directory));
    world.services.set(served(false));
    assert!(bound(&world).is_empty());
}

#[test]
fn routers_are_advertised_until_the_end() {
    let world = World::new(None);
    world.services.set(served(true));
    let lifetime = |frame: &Frame| {
        assert_eq!((frame.interface, frame.port, frame.bytes[54]), (3, None, 134));
        u16::from_be_bytes([frame.bytes[60], frame.bytes[61]])
    };
    assert_eq!(lifetime(&world.sent()), 1800);
    let mut solicitation = Vec::new();
    let host: std::net::Ipv6Addr = "fe80::9".parse().expect("an address");
    let builder = PacketBuilder::ethernet2(station(9).0, [0x33, 0x33, 0, 0, 0, 2]);
    let builder = builder.ipv6(host.octets(), nd::ALL_ROUTERS.to_be_bytes(), 255).icmpv6_raw(133, 0, [0; 4]);
    builder.write(&mut solicitation, &[]).expect("a packet");
    world.punt(9, &solicitation);
    let answer = world.sent();
    assert_eq!((answer.port, &answer.bytes[..6]), (Some(9), &station(9).0[..]));
    world.services.set(served(false));
    assert_eq!(lifetime(&world.sent()), 0, "switched off");
    world.services.set(served(true));
    assert_eq!(lifetime(&world.sent()), 1800);
    let World { services, inject, .. } = world;
    drop(services);
    let mut last = None;
    inject.drain(usize::MAX, |letter| {
        last = Some(u16::from_be_bytes([letter.frame()[60], letter.frame()[61]]))
    });
    assert_eq!(last, Some(0), "at the end");
}

#[test]
fn own_addresses_are_announced() {
    let world = World::new(None);
    let addresses = [IpAddr::from([10, 0, 3, 1]), "fd05::1".parse().expect("an address")];
    world.services.announce(3, GATEWAY, addresses);
    for _ in 0..2 {
        let Frame { bytes, port, .. } = world.sent();
        let arp = Arp::parse(&bytes, 14).expect("ARP");
        assert!(
            arp.is_announcement() && arp.sender == 0x0a00_0301 && arp.sender_mac == GATEWAY && port.is_none()
        );
        let Frame { bytes, .. } = world.sent();
        assert_eq!((&bytes[..6], bytes[54]), (&[0x33, 0x33, 0, 0, 0, 1][..], 136));
    }
}

#[test]
fn a_port_that_floods_is_heard_again_a_second_later() {
    let world = World::new(None);
    world.services.set(served(false));
    let deadline = Instant::now() + LIMIT;
    let frame = question(5, Kind::Release, None);
    let mut refused = false;
    loop {
        let mut put = false;
        Burst::new().with_slices(
            |filler| assert!(filler.push(NetHeader::default(), &frame[..100], &frame[100..])),
            |burst| put = world.mailbox.punt(3, 5, burst, 0),
        );
        if refused && put {
            break;
        }
        if !put {
            refused = true;
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(Instant::now() < deadline, "never again");
    }
}
