#![forbid(unsafe_code)]
//! A router of shunt's own parts with two guests of our own, driven turn by turn: what [`crate::bridge`] is for a
//! bridge. The addresses are those of [`crate::peers::layer3`].

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ipnet::IpNet;
use shunt_switch::config::Name;
use shunt_switch::conntrack::{Conntrack, Limits};
use shunt_switch::l2::fdb::{Fdb, Key};
use shunt_switch::l3::interface::{Address, Interface, Parts};
use shunt_switch::l3::neighbour::Neighbours;
use shunt_switch::l3::own::Own;
use shunt_switch::l3::route::rib::{Rib, Route, Terms};
use shunt_switch::l3::table::RouterTable;
use shunt_switch::l3::{Arrival, Stage};
use shunt_switch::members::{Verdict, interface_index, interface_number};
use shunt_switch::nat::rule::{AddressRange, Out, Rule, Selector, Snat};
use shunt_switch::nat::{self, RuleSet};
use shunt_switch::packet::ethernet::Mac;
use shunt_switch::pipeline::{Ingress, classify};
use shunt_switch::policy::{Numbers, PolicySet};
use shunt_switch::port::{Attachment, Port, Scratch};
use shunt_switch::services::mailbox::{Inject, Mailbox};
use shunt_switch::tables::BridgeTable;
use shunt_switch::worker::epoch::Epochs;
use shunt_tests::poll_for;
use tempfile::TempDir;
use vhost_backend::device::{Device, DeviceConfig, Role, State};
use vhost_backend::frame::Burst;
use vhost_backend::net_header::NetHeader;

use crate::guest::{Guest, Options};
use crate::peers::layer3::{ADDRESSES, GATEWAYS, GUESTS, LINKS, NETWORKS, TRANSLATED, guests, internet};

/// The tables' clock.
const NOW: u32 = 1;
/// Room for connections.
const CAPACITY: u32 = 16_384;

/// What the router does with packets from the inner guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Routes them, with as many routes in the table beside those that are needed.
    Route(u32),
    /// Translates their source.
    Snat,
}

/// Port and guest 0 on the inner, 1 on the outer network.
pub struct Router {
    ports: Vec<Port>,
    /// The guests.
    pub guests: Vec<Guest>,
    bridges: Vec<Arc<BridgeTable>>,
    table: RouterTable,
    epochs: Arc<Epochs>,
    stage: Stage,
    burst: Burst,
    verdict: Verdict,
    scratch: Scratch,
    devices: Vec<Arc<Device>>,
    _dir: TempDir,
}

fn parse<T: std::str::FromStr>(text: &str) -> Result<T> {
    text.parse().ok().with_context(|| format!("{text} is refused"))
}

impl Router {
    /// Makes ports, guests and tables, and waits until every ring runs.
    pub fn new(kind: Kind, options: &Options) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("shunt-router-").tempdir()?;
        let epochs = Arc::new(Epochs::new(2));
        epochs.arrive(0);
        let (mut ports, mut its_guests, mut devices, mut bridges) = (vec![], vec![], vec![], vec![]);
        let mut rib = Rib::new();
        let neighbours = Arc::new(Neighbours::new(epochs.clone()));
        let mut interfaces = Vec::new();
        let mut named = Vec::new();
        for (n, link) in LINKS.into_iter().enumerate() {
            let number = n as u16;
            let path = dir.path().join(link);
            let config = DeviceConfig {
                name: link.into(),
                path: path.clone(),
                role: Role::Server,
                queue_pairs: options.pairs,
            };
            let device = Device::start(config, Arc::new(|| ()))?;
            its_guests.push(Guest::connect(&path, options)?);
            poll_for(Duration::from_secs(10), || (device.state().0 == State::Up).then_some(()))
                .with_context(|| format!("port {n} does not come up: {:?}", device.state()))?;
            ports.push(Port::new(number, Attachment::Vhost(device.clone()), 9600, 1));
            devices.push(device);

            let fdb = Fdb::new(1024, 300, 2);
            fdb.learn(Key::new(guests()[n], 0), number, NOW);
            fdb.fix(Key::new(GATEWAYS[n], 0), interface_number(number), NOW);
            let members = vec![number, interface_number(number)].into_boxed_slice();
            let table = Arc::new(BridgeTable { number, filter: false, fdb: Arc::new(fdb), members });
            bridges.push(table.clone());

            let name: Name = parse(link)?;
            let address: IpNet = parse(ADDRESSES[n])?;
            let guest: IpAddr = parse(GUESTS[n])?;
            rib.add_interface(number, name, true)?;
            rib.add_address(number, address)?;
            let IpAddr::V4(v4) = guest else { anyhow::bail!("{guest} is not IPv4") };
            neighbours.fix(number, Address::v4(v4.to_bits()), Mac(guests()[n]), NOW)?;
            rib.add(Route { gateway: Some(guest), ..Route::to(parse(NETWORKS[n])?) }, Terms::New)?;
            let addresses = vec![address];
            named.push(nat::Interface { index: number, name, addresses: addresses.clone() });
            let mac = Mac(GATEWAYS[n]);
            let parts = Parts {
                index: number,
                name,
                bridge: name,
                table,
                vlan: 0,
                mac,
                mtu: 1500,
                addresses,
                up: true,
                clamp_mss: false,
            };
            interfaces.push(Some(Arc::new(Interface::new(parts))));
        }
        let mut rules = RuleSet::new(1);
        match kind {
            Kind::Route(count) => {
                let gateway: IpAddr = parse(GUESTS[1])?;
                let all = internet(count).into_iter().map(|(address, length)| {
                    let prefix = ipnet::Ipv4Net::new(address.into(), length)?;
                    Ok(Route { gateway: Some(gateway), ..Route::to(prefix.into()) })
                });
                let all: Vec<Route> = all.collect::<Result<_>>()?;
                rib.load(all.into_iter().map(Ok), Terms::New, false)
                    .map_err(|(at, refusal)| anyhow::anyhow!("route {at}: {refusal}"))?;
            }
            Kind::Snat => {
                let to: IpAddr = parse(TRANSLATED)?;
                let selector = Selector {
                    source: parse(NETWORKS[0])?,
                    out: Out::Only(parse(LINKS[1])?),
                    except: vec![],
                };
                rules.add(Rule::Snat(Snat {
                    selector,
                    to: AddressRange { first: to, last: to },
                    ports: None,
                    endpoint_independent: false,
                }))?;
            }
        }
        let conntrack = Arc::new(Conntrack::new(CAPACITY, 1, 4, epochs.clone()));
        conntrack.shared.set_limits(Limits { entries: CAPACITY, per_port: CAPACITY, half_open: CAPACITY });
        let nat = rules.compile(&named);
        let table = RouterTable {
            own: Own::new(&interfaces),
            interfaces,
            fib: rib.fib(),
            neighbours,
            conntrack,
            ipvs: Arc::default(),
            tracked: !nat.is_empty(),
            nat: Arc::new(nat),
            policy: Arc::new(PolicySet::new(1).compile(&Numbers::default())),
            reassembly: Arc::default(),
            log: Arc::default(),
            mailbox: Arc::new(Mailbox::default()),
            inject: Arc::new(Inject::default()),
        };
        Ok(Self {
            ports,
            guests: its_guests,
            bridges,
            table,
            epochs,
            stage: Stage::new(0),
            burst: Burst::new(),
            verdict: Verdict::default(),
            scratch: Scratch::default(),
            devices,
            _dir: dir,
        })
    }

    /// Guest `from` sends these frames. They wait in its ring.
    pub fn offer(&mut self, from: usize, frames: &[Vec<u8>]) -> Result<()> {
        for (n, frame) in frames.iter().enumerate() {
            let sent = self.guests[from].send_on(0, &NetHeader::default(), frame)?;
            ensure!(sent, "guest {from} has room for {n} frames only");
        }
        Ok(())
    }

    /// What a worker does for queue 0 of port `port` in one turn: fetch, classify, route, place, give back.
    #[inline(never)]
    pub fn turn(&mut self, port: usize) -> usize {
        self.epochs.quiesce(0);
        let bridge = &self.bridges[port];
        let from = Ingress {
            port: port as u16,
            fdb: &bridge.fdb,
            members: &bridge.members,
            guard: None,
            limit: None,
        };
        let (ports, verdict, scratch) = (&self.ports, &mut self.verdict, &mut self.scratch);
        let (stage, router) = (&mut self.stage, &self.table);
        let finisher = &mut scratch.finisher;
        let counted = ports[port].rx_counters(0);
        let received = ports[port].receive(0, 0, &mut scratch.buffer, &mut self.burst, |burst| {
            classify(burst, &from, NOW, counted, verdict);
            while let Some((member, frames)) = verdict.take() {
                if let Some(to) = ports.get(usize::from(member)) {
                    to.send(burst, frames, 0, 0, finisher);
                } else if let Some(interface) = interface_index(member).and_then(|i| router.interface(i)) {
                    let at = Arrival { router, interface, port: from.port, now: NOW, counted };
                    stage.receive(burst, frames, &at);
                }
            }
            while let Some((to, frames)) = stage.verdict.take() {
                if let Some(to) = ports.get(usize::from(to)) {
                    to.send(burst, frames, 0, 0, finisher);
                }
            }
        });
        received.unwrap_or(0)
    }

    /// Connections that there are.
    pub fn connections(&self) -> u32 {
        self.table.conntrack.shared.count()
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        for device in &self.devices {
            device.stop();
        }
    }
}
