//! A router with two networks: clients 10.0.1.0/24 and fd01::/64 on interface 0, servers 10.0.2.0/24 and fd02::/64 on
//! interface 1, and the service's addresses 10.9.9.9 and fd09::9.

use std::net::IpAddr;
use std::sync::Arc;

use crossbeam_utils::CachePadded;
use etherparse::{PacketBuilder, PacketBuilderStep};
use vhost_backend::frame::{Burst, SNAPSHOT};
use vhost_backend::net_header::NetHeader;

use crate::conntrack::Conntrack;
use crate::ipvs::Ipvs;
use crate::ipvs::connection::Listed;
use crate::ipvs::destination::Destination;
use crate::ipvs::spec::{
    DestinationSpec, Forward, Protocol, Scheduler, SchedulerFlags, ServiceKey, ServiceSpec,
};
use crate::l2::fdb::Fdb;
use crate::l3::interface::{Address, Interface, Parts};
use crate::l3::neighbour::Neighbours;
use crate::l3::own::Own;
use crate::l3::route::rib::Rib;
use crate::l3::table::RouterTable;
use crate::l3::{Arrival, Stage};
use crate::members::interface_number;
use crate::nat::{self, RuleSet};
use crate::packet::ethernet::Mac;
use crate::packet::headers::{Headers, tcp_flags};
use crate::packet::tuple::Tuple;
use crate::policy::{Numbers, PolicySet};
use crate::stats::PortCounters;
use crate::tables::BridgeTable;
use crate::worker::epoch::Epochs;

pub(super) const SYN: u8 = tcp_flags::SYN;
pub(super) const ACK: u8 = tcp_flags::ACK;
pub(super) const FIN: u8 = tcp_flags::FIN;
pub(super) const RST: u8 = tcp_flags::RST;

/// A frame that came out: by which port, and what it is.
#[derive(Clone, Debug)]
pub(super) struct Out {
    pub(super) port: u16,
    pub(super) bytes: Vec<u8>,
}

impl Out {
    pub(super) fn headers(&self) -> Headers {
        let v6 = self.bytes[12..14] == [0x86, 0xdd];
        Headers::parse(&self.bytes, self.bytes.len(), 14, v6).expect("a sound packet")
    }

    pub(super) fn tuple(&self) -> Tuple {
        self.headers().tuple(&self.bytes)
    }

    /// The last number of the Ethernet address that it goes to, as [`mac`] makes them.
    pub(super) fn to(&self) -> (u8, u8) {
        (self.bytes[4], self.bytes[5])
    }
}

/// Of the host with this number in network `network`.
pub(super) fn mac(network: u8, host: u8) -> [u8; 6] {
    [2, 0, 0, 0, network, host]
}

pub(super) fn v4(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub(super) const PORT: u16 = 1039;

pub(super) fn key(protocol: Protocol) -> ServiceKey {
    ServiceKey::Address { protocol, address: [10, 9, 9, 9].into(), port: PORT }
}

pub(super) fn key6(protocol: Protocol) -> ServiceKey {
    ServiceKey::Address { protocol, address: v4("fd09::9"), port: PORT }
}

pub(super) fn service(key: ServiceKey, scheduler: Scheduler) -> ServiceSpec {
    ServiceSpec {
        key,
        scheduler: Some(scheduler),
        flags: SchedulerFlags::default(),
        persistence: None,
        one_packet: false,
    }
}

/// A server 10.0.2.N.
pub(super) fn server(n: u8, port: u16, forward: Forward) -> DestinationSpec {
    DestinationSpec { address: [10, 0, 2, n].into(), port, forward, weight: 1, upper: 0, lower: 0 }
}

pub(super) struct World {
    pub(super) router: RouterTable,
    pub(super) stage: Stage,
    pub(super) now: u32,
    epochs: Arc<Epochs>,
    counters: [CachePadded<PortCounters>; 1],
    burst: Burst,
}

impl World {
    pub(super) fn new() -> Self {
        let epochs = Arc::new(Epochs::new(2));
        epochs.arrive(0);
        let neighbours = Arc::new(Neighbours::new(epochs.clone()));
        let mut rib = Rib::new();
        let (mut interfaces, mut named) = (Vec::new(), Vec::new());
        let addresses: [&[&str]; 2] =
            [&["10.0.1.1/24", "10.9.9.9/32", "fd01::1/64", "fd09::9/128"], &["10.0.2.1/24", "fd02::1/64"]];
        for (n, addresses) in (0..).zip(addresses) {
            let network = n as u8 + 1;
            let fdb = Fdb::new(1024, 300, 4);
            let members = vec![n, interface_number(n)].into_boxed_slice();
            let table = BridgeTable { number: n, filter: false, fdb: Arc::new(fdb), members };
            let name = format!("net{network}").parse().expect("a name");
            rib.add_interface(n, name, true).expect("an interface");
            let addresses: Vec<ipnet::IpNet> =
                addresses.iter().map(|text| text.parse().expect("an address")).collect();
            for &address in &addresses {
                rib.add_address(n, address).expect("an address");
            }
            for host in 2..=254 {
                let station = Mac(mac(network, host));
                table.fdb.fix(crate::l2::fdb::Key::new(station.0, 0), n, 1);
                let v4 = Address::v4(u32::from_be_bytes([10, 0, network, host]));
                neighbours.fix(n, v4, station, 1).expect("a neighbour");
                let v6 = Address::v6(0xfd << 120 | u128::from(network) << 112 | u128::from(host));
                neighbours.fix(n, v6, station, 1).expect("a neighbour");
            }
            named.push(nat::Interface { index: n, name, addresses: addresses.clone() });
            interfaces.push(Some(Arc::new(Interface::new(Parts {
                index: n,
                name,
                bridge: name,
                table: Arc::new(table),
                vlan: 0,
                mac: Mac(mac(network, 1)),
                mtu: 1500,
                addresses,
                up: true,
                clamp_mss: false,
            }))));
        }
        let conntrack = Arc::new(Conntrack::new(4096, 1, 4, epochs.clone()));
        let ipvs = Arc::<Ipvs>::default();
        conntrack.set_balancer(ipvs.clone());
        let fib = rib.fib();
        ipvs.on_withdrawal(Box::new(move || fib.bump()));
        let timed = conntrack.clone();
        ipvs.on_timeouts(Box::new(move || timed.retime()));
        let router = RouterTable {
            own: Own::new(&interfaces),
            interfaces,
            fib: rib.fib(),
            neighbours,
            conntrack,
            ipvs,
            tracked: false,
            nat: Arc::new(RuleSet::new(1).compile(&named)),
            policy: Arc::new(PolicySet::new(1).compile(&Numbers::default())),
            reassembly: Arc::default(),
            log: Arc::default(),
            mailbox: Arc::default(),
            inject: Arc::default(),
        };
        let (stage, burst) = (Stage::new(0), Burst::new());
        Self { router, stage, now: 1000, epochs, counters: Default::default(), burst }
    }

    /// With a TCP service on 10.9.9.9 and these servers.
    pub(super) fn with(spec: ServiceSpec, servers: impl IntoIterator<Item = DestinationSpec>) -> Self {
        let world = Self::new();
        let key = spec.key;
        world.router.ipvs.global().add_service(spec).expect("a service");
        for server in servers {
            world.router.ipvs.global().add_destination(key, server).expect("a server");
        }
        world
    }

    /// Puts a frame in at a network's interface; what came out of it.
    pub(super) fn put(&mut self, network: u8, frame: &[u8]) -> Vec<Out> {
        self.put_with(network, frame, NetHeader::default())
    }

    pub(super) fn put_with(&mut self, network: u8, frame: &[u8], header: NetHeader) -> Vec<Out> {
        self.put_all(network, &[(header, frame)])
    }

    /// The same with several frames, a burst.
    pub(super) fn put_all(&mut self, network: u8, frames: &[(NetHeader, &[u8])]) -> Vec<Out> {
        self.epochs.quiesce(0);
        let port = u16::from(network) - 1;
        let Self { router, stage, now, counters, burst, .. } = self;
        let (interface, now) = (router.interface(port).expect("there").clone(), *now);
        let mut out = Vec::new();
        let mut take = |burst: &mut Burst, port: u16, frames: u64| {
            for i in (0..64).filter(|i| frames >> i & 1 == 1) {
                let mut bytes = vec![0; burst.frame_len(i)];
                burst.linearise(i, &mut bytes).expect("room");
                out.push(Out { port, bytes });
            }
        };
        burst.with_slices(
            |filler| {
                for &(header, frame) in frames {
                    let (head, rest) = frame.split_at(frame.len().min(SNAPSHOT));
                    assert!(filler.push(header, head, rest));
                }
            },
            |burst| {
                let at = Arrival { router, interface: &interface, port, now, counted: &counters[0].rx };
                let all = burst.all();
                stage.receive(burst, all, &at);
                while let Some((port, frames)) = stage.verdict.take() {
                    take(burst, port, frames);
                }
            },
        );
        burst.clear();
        stage.flush(router, burst, now, |_| Some(&counters[0].rx), &mut take);
        out
    }

    /// Lets seconds pass, as a worker that has nothing else to do.
    pub(super) fn pass(&mut self, seconds: u32) {
        for _ in 0..seconds {
            self.now += 1;
            for _ in 0..3 {
                self.epochs.quiesce(0);
                self.stage.age(&self.router, self.now);
            }
            self.router.ipvs.tick(self.now);
        }
    }

    /// What was dropped, and why.
    pub(super) fn all_drops(&self) -> std::collections::BTreeMap<&'static str, u64> {
        crate::stats::total(&self.counters, |set| &set.rx).drops
    }

    /// How often something was dropped for this reason.
    pub(super) fn drops(&self, reason: &str) -> u64 {
        self.all_drops().get(reason).copied().unwrap_or(0)
    }

    pub(super) fn servers(&self, key: ServiceKey) -> Vec<Arc<Destination>> {
        let service = self.router.ipvs.global().table.get(&key).expect("a service");
        let view = service.view();
        let mut servers = view.destinations.to_vec();
        servers.sort_by_key(|server| server.address());
        servers
    }

    /// Active and inactive connections of each server, by address.
    pub(super) fn counts(&self, key: ServiceKey) -> Vec<(u32, u32)> {
        self.servers(key).iter().map(|server| (server.active(), server.inactive())).collect()
    }

    pub(super) fn list(&self) -> Vec<Listed> {
        let mut all = Vec::new();
        let (ipvs, mut from) = (&self.router.ipvs, Some(0));
        while let Some(place) = from {
            from = ipvs.connections(&self.router.conntrack, ipvs.global(), self.now, place, 1000, |listed| {
                all.push(listed);
            });
        }
        all
    }

    /// Whom a SYN reaches: the last number of the server's address, none if nobody.
    pub(super) fn call(&mut self, client: u8, port: u16) -> Option<u8> {
        let out = self.put(1, &tcp(client, port, SYN));
        let to = out.iter().find(|frame| frame.port == 1)?;
        assert_eq!(out.len(), 1);
        let host = to.to().1;
        assert_eq!(to.bytes[..6], mac(2, host));
        Some(host)
    }

    /// A connection, established; the server's number.
    pub(super) fn open(&mut self, client: u8, port: u16) -> Option<u8> {
        let server = self.call(client, port)?;
        let answer = self.put(2, &answer(server, client, port, SYN | ACK));
        assert_eq!(answer.len(), 1, "the answer");
        assert_eq!(answer[0].tuple().source, v4("10.9.9.9"));
        assert_eq!(answer[0].tuple().source_port, PORT);
        assert_eq!(self.put(1, &tcp(client, port, ACK)).len(), 1);
        Some(server)
    }

    /// Closed by the client, then by the server.
    pub(super) fn close(&mut self, server: u8, client: u8, port: u16) {
        assert_eq!(self.put(1, &tcp(client, port, FIN | ACK)).len(), 1);
        assert_eq!(self.put(2, &answer(server, client, port, FIN | ACK)).len(), 1);
        assert_eq!(self.put(1, &tcp(client, port, ACK)).len(), 1);
    }
}

/// Numbers that make a conversation of flags alone.
fn numbers(flags: u8, mine: u32, theirs: u32) -> (u32, u32) {
    (if flags & SYN != 0 { mine } else { mine + 1 }, theirs + 1)
}

fn finish(
    step: PacketBuilderStep<etherparse::IpHeaders>,
    ports: (u16, u16),
    flags: u8,
    n: (u32, u32),
) -> Vec<u8> {
    let mut step = step.tcp(ports.0, ports.1, n.0, 64_000);
    if flags & ACK != 0 {
        step = step.ack(n.1);
    }
    if flags & SYN != 0 {
        step = step.syn();
    }
    if flags & FIN != 0 {
        step = step.fin();
    }
    if flags & RST != 0 {
        step = step.rst();
    }
    let mut frame = Vec::new();
    step.write(&mut frame, &[]).expect("a packet");
    frame
}

/// From a client 10.0.1.N to the service.
pub(super) fn tcp(client: u8, port: u16, flags: u8) -> Vec<u8> {
    let step =
        PacketBuilder::ethernet2(mac(1, client), mac(1, 1)).ipv4([10, 0, 1, client], [10, 9, 9, 9], 64);
    finish(step, (port, PORT), flags, numbers(flags, 1000, 5000))
}

/// From the server's port 80 to the client.
pub(super) fn answer(server: u8, client: u8, port: u16, flags: u8) -> Vec<u8> {
    let step =
        PacketBuilder::ethernet2(mac(2, server), mac(2, 1)).ipv4([10, 0, 2, server], [10, 0, 1, client], 64);
    finish(step, (80, port), flags, numbers(flags, 5000, 1000))
}

/// From a client to the service, over IPv6.
pub(super) fn tcp6(client: u8, port: u16, flags: u8) -> Vec<u8> {
    let source = v6(1, client);
    let mut service = [0; 16];
    (service[0], service[1], service[15]) = (0xfd, 9, 9);
    let step = PacketBuilder::ethernet2(mac(1, client), mac(1, 1)).ipv6(source, service, 64);
    finish(step, (port, PORT), flags, numbers(flags, 1000, 5000))
}

fn v6(network: u8, host: u8) -> [u8; 16] {
    let mut address = [0; 16];
    (address[0], address[1], address[15]) = (0xfd, network, host);
    address
}

/// A datagram from a client to the service.
pub(super) fn udp(client: u8, port: u16, payload: &[u8]) -> Vec<u8> {
    let step =
        PacketBuilder::ethernet2(mac(1, client), mac(1, 1)).ipv4([10, 0, 1, client], [10, 9, 9, 9], 64);
    let mut frame = Vec::new();
    step.udp(port, PORT).write(&mut frame, payload).expect("a packet");
    frame
}

/// The letter of a server, A for 10.0.2.11.
pub(super) fn letter(server: Option<u8>) -> char {
    server.map_or('x', |n| char::from(b'A' + n - 11))
}
