//! ADD: addresses, the port, the device in the container, published ports, the file for Kata.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt;

use ipnet::IpNet;
use shunt_client::client::{Client, Failure};
use shunt_client::dan::{self, Nic};
use shunt_switch::config::Mac;
use shunt_switch::control::api;
use shunt_switch::port::assign;
use shunt_switch::port::netns::Netns;
use shunt_switch::port::tap::{Tap, TapConfig};

use super::call::Call;
use super::config::{Attachment, OwnIpam};
use super::error::{ENVIRONMENT, Error, REFUSED};
use super::pool::{Pool, default_routes};
use super::result::{Dns, Interface, Route, Success};
use super::store::{Record, Store};

/// How often an address that shuntd refuses to reserve is replaced by another one.
const TRIES: usize = 16;
/// `RT_SCOPE_LINK`: a route without next hop.
const SCOPE_LINK: u8 = 253;

impl Call<'_> {
    /// Connects the container.
    ///
    /// # Errors
    /// It cannot be; everything that was made for it is removed again, and addresses are given back.
    pub(crate) fn add(&self) -> Result<Success, Error> {
        let previous = self.config.previous()?.unwrap_or_default();
        // Before anything is made: what can be wrong with the call.
        let netns = match self.config.attachment {
            Attachment::Tap => Some(self.free_netns()?),
            Attachment::VhostUser | Attachment::HostTap => None,
        };
        let ipam = self.ipam()?;
        let mac = self.config.mac(self.environment);
        let mac = mac.map(|text| {
            text.parse::<Mac>().map_err(|_| Error::config(format!("mac {text:?} is no MAC address")))
        });
        let mut client = self.connect()?;
        let store = self.store()?;
        if store.get(&self.port())?.is_some() {
            let (container, ifname) = (&self.environment.container, &self.environment.ifname);
            let details = format!(
                "{ifname} of container {container:?} is attached to {:?}: DEL it first",
                self.config.name
            );
            return Err(Error::new(REFUSED, "attached already", details));
        }
        let mut record = self.record(mac.transpose()?);
        // From here on there is a record, and what it names is undone if anything fails.
        let made = (|| {
            let (mut success, networks) = match &self.config.own_ipam {
                Some(own) => self.give(own, &mut record, &store, &mut client)?,
                None => {
                    store.put(&record)?;
                    (Success::default(), Vec::new())
                }
            };
            drop(store);
            if let Some(ipam) = &ipam {
                success = ipam.add()?;
            }
            if let Err(error) = self.make(&mut record, &mut success, networks, netns.as_ref(), &mut client) {
                if let Some(ipam) = &ipam {
                    let _ = ipam.have("DEL");
                }
                return Err(error);
            }
            Ok(success)
        })();
        match made {
            Ok(success) => Ok(joined(previous, success)),
            Err(error) => {
                // If not even that succeeds, the record stays, for the DEL that runtimes owe us.
                if super::undo::undo(&record, &mut client).is_ok() {
                    let _ = self.store().and_then(|store| store.forget(&record.port));
                }
                Err(error)
            }
        }
    }

    /// The container's namespace, in which there is no device of that name yet.
    fn free_netns(&self) -> Result<Netns, Error> {
        let (netns, ifname) = (self.netns()?, self.environment.ifname.as_str());
        let wrong = |why: String| {
            let what = "invalid environment variable CNI_IFNAME";
            Err(Error::new(ENVIRONMENT, what, format!("CNI_IFNAME is {ifname:?}: {why}")))
        };
        if ifname.parse::<shunt_switch::config::Name>().is_err() {
            return wrong(format!("for a TAP device {}", shunt_switch::config::name::BadName));
        }
        match assign::look_up(&netns, ifname).map_err(Error::io)? {
            Some(_) => wrong("the container has a device of that name already".into()),
            None => Ok(netns),
        }
    }

    fn record(&self, mac: Option<Mac>) -> Record {
        let port = self.port();
        let socket = match self.config.attachment {
            Attachment::VhostUser => Some(self.config.socket_dir().join(format!("{port}.sock"))),
            Attachment::Tap | Attachment::HostTap => None,
        };
        Record {
            network: self.config.name.clone(),
            container: self.environment.container.clone(),
            ifname: self.environment.ifname.clone(),
            port,
            bridge: self.config.bridge().to_owned(),
            attachment: self.config.attachment,
            mac,
            addresses: Vec::new(),
            interface: None,
            reserved: false,
            publish: Vec::new(),
            masquerade: Vec::new(),
            socket,
            dan: self.config.dan.clone(),
        }
    }

    /// Gives addresses from the interface's networks; what they are and the networks for the guard.
    fn give(
        &self,
        own: &OwnIpam,
        record: &mut Record,
        store: &Store,
        client: &mut Client,
    ) -> Result<(Success, Vec<IpNet>), Error> {
        let asked = self.config.ips(self.environment)?;
        let asked_mac = record.mac;
        let mut refused: Option<Failure> = None;
        for _ in 0..TRIES {
            // Looked at anew: a guest may have got the address by DHCP in the meantime.
            let mut pool = Pool::find(client, self.config.bridge(), own)?;
            pool.take(store)?;
            let ips = pool.choose(&asked, |family| store.last(&pool.interface, family))?;
            record.addresses = ips.iter().map(|ip| ip.address).collect();
            record.mac = Some(asked_mac.unwrap_or_else(|| invented(record)));
            record.interface = Some(pool.interface.clone());
            let v4 = record.addresses.iter().map(IpNet::addr).find(IpAddr::is_ipv4);
            record.reserved = pool.dhcp && v4.is_some();
            store.put(record)?;
            ips.iter().for_each(|ip| store.set_last(&pool.interface, ip.address.addr()));
            if let (true, Some(address), Some(mac)) = (record.reserved, v4, record.mac) {
                let reserve = api::DhcpReserve {
                    interface: pool.interface.clone(),
                    mac: mac.to_string(),
                    address: address.to_string(),
                    hostname: self.config.hostname(self.environment),
                };
                if let Err(failure) = client.ask(&reserve) {
                    record.reserved = false;
                    match failure {
                        Failure::Refused(..) if asked.is_empty() => refused = Some(failure),
                        _ => return Err(failure.into()),
                    }
                    continue;
                }
            }
            let routes = own.routes.clone().unwrap_or_else(|| default_routes(&ips));
            let success = Success { ips, routes, dns: pool.dns, ..Success::default() };
            return Ok((success, pool.networks));
        }
        Err(refused.map_or_else(|| Error::config("no address could be reserved"), Error::from))
    }

    /// Makes the port and what belongs to it, and completes the result.
    fn make(
        &self,
        record: &mut Record,
        success: &mut Success,
        networks: Vec<IpNet>,
        netns: Option<&Netns>,
        client: &mut Client,
    ) -> Result<(), Error> {
        record.addresses = success.ips.iter().map(|ip| ip.address).collect();
        record.mac = Some(record.mac.unwrap_or_else(|| invented(record)));
        record.publish = self.publishes(&record.addresses);
        if self.config.masquerade {
            record.masquerade = record.addresses.iter().map(|net| IpNet::from(net.addr())).collect();
        }
        self.store()?.put(record)?;

        if record.attachment == Attachment::HostTap {
            self.host_device(record)?;
        }
        if let Some(directory) = record.socket.as_ref().and_then(|socket| socket.parent()) {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(directory)
                .map_err(|error| Error::io(format!("cannot make {}: {error}", directory.display())))?;
        }
        let port = client.ask(&self.port_request(record, &networks)?)?;
        // TAP and guest: the address that was asked for; a device on the host has one of its own.
        let mac = record.mac.map(|mac| mac.to_string()).unwrap_or_default();
        let sandbox = self.environment.netns.clone().unwrap_or_default();
        if record.attachment == Attachment::HostTap {
            success.interfaces.push(Interface { name: record.port.clone(), ..Interface::default() });
        }
        let index = success.interfaces.len();
        success.interfaces.push(Interface {
            name: record.ifname.clone(),
            mac,
            mtu: Some(port.mtu.into()),
            sandbox,
            socket_path: record.socket.as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
            pci_id: String::new(),
        });
        success.ips.iter_mut().for_each(|ip| ip.interface = Some(index));
        if let Some(dns) = self.config.dns() {
            success.dns = Dns {
                domain: if dns.domain.is_empty() { success.dns.domain.clone() } else { dns.domain },
                ..dns
            };
        }
        let routes = by_gateways(success);
        if let Some(netns) = netns {
            let routes: Vec<_> = routes.iter().map(in_kernel).collect();
            assign::assign(netns, &record.ifname, &record.addresses, &routes).map_err(Error::io)?;
        }
        self.rules(record, client)?;
        match &record.dan {
            Some(directory) => {
                let nic = self.nic(record, port.mtu, &routes)?;
                dan::put(&dan::path(directory, &record.container), nic).map_err(Error::io)
            }
            None => Ok(()),
        }
    }

    fn port_request(&self, record: &Record, networks: &[IpNet]) -> Result<api::PortAdd, Error> {
        let config = self.config;
        let path = |path: &std::path::PathBuf| path.display().to_string();
        let is = |attachment| record.attachment == attachment;
        let bandwidth = config.bandwidth();
        let some = |bits: i64| Some(bits).filter(|&bits| bits != 0);
        // Who gets addresses sends from these; in IPv6 also from what it makes of router advertisements.
        let v6 = |net: &&IpNet| net.addr().is_ipv6();
        let own = record.addresses.iter().map(|net| net.addr().to_string());
        let made_up = networks.iter().filter(v6).map(IpNet::to_string);
        let link_local = std::iter::once("fe80::/10".to_owned());
        let guard = config.guard.or(Some(true).filter(|_| !record.addresses.is_empty()));
        Ok(api::PortAdd {
            name: record.port.clone(),
            bridge: record.bridge.clone(),
            vhost_user: record.socket.as_ref().map(path),
            role: record.socket.as_ref().map(|_| config.role().as_str().to_owned()),
            tap: Some(record.ifname.clone()).filter(|_| is(Attachment::Tap)),
            netns: self.environment.netns.clone().filter(|_| is(Attachment::Tap)),
            netdev: Some(record.port.clone()).filter(|_| is(Attachment::HostTap)),
            queues: config.queues,
            mtu: config.mtu.filter(|_| !is(Attachment::HostTap)),
            mac: record.mac.map(|mac| mac.to_string()).filter(|_| !is(Attachment::HostTap)),
            guard,
            allow_address: match guard {
                Some(true) => own.chain(made_up).chain(link_local).collect(),
                _ => Vec::new(),
            },
            ingress_rate: some(bandwidth.ingress_rate),
            ingress_burst: some(bandwidth.ingress_burst),
            egress_rate: some(bandwidth.egress_rate),
            egress_burst: some(bandwidth.egress_burst),
            ..api::PortAdd::default()
        })
    }

    /// Makes a TAP device on the host that waits for its hypervisor.
    fn host_device(&self, record: &Record) -> Result<(), Error> {
        let wrong = |key: &str, value: i64| Error::config(format!("{key} {value} is out of range"));
        let of = |key: &str, value: Option<i64>| {
            value.map(|value| u16::try_from(value).map_err(|_| wrong(key, value))).transpose()
        };
        let config = TapConfig {
            device: record.port.clone(),
            queues: of("queues", self.config.queues)?.unwrap_or(1),
            mtu: of("mtu", self.config.mtu)?,
            mac: None,
            netns: None,
            persist: true,
        };
        Tap::open(&config).map(drop).map_err(Error::io)
    }

    fn rules(&self, record: &Record, client: &mut Client) -> Result<(), Error> {
        for publish in &record.publish {
            client.ask(&api::PublishAdd {
                proto: publish.proto.clone(),
                listen: publish.listen.clone(),
                to: publish.to.clone(),
                ..api::PublishAdd::default()
            })?;
        }
        for source in &record.masquerade {
            let own = client.ask(&api::InterfaceList {})?;
            let same = own.iter().find(|at| at.bridge == *record.bridge.as_str() && at.vlan == 0);
            client.ask(&api::MasqueradeAdd {
                source: source.to_string(),
                not_out: same.map(|at| at.name.to_string()),
                ..api::MasqueradeAdd::default()
            })?;
        }
        Ok(())
    }

    /// The NIC as Kata is to make it.
    fn nic(&self, record: &Record, mtu: u16, routes: &[Route]) -> Result<Nic, Error> {
        let queues = self.config.queues.and_then(|queues| usize::try_from(queues).ok()).unwrap_or(1);
        let device = match &record.socket {
            Some(path) => dan::Device::VhostUser {
                path: path.display().to_string(),
                queue_num: queues,
                queue_size: dan::QUEUE_SIZE,
            },
            None => dan::Device::HostTap {
                tap_name: record.port.clone(),
                queue_num: queues,
                queue_size: dan::QUEUE_SIZE,
            },
        };
        let route = |route: &Route| dan::Route {
            dest: route.dst.to_string(),
            gateway: route.gw.map(|gw| gw.to_string()).unwrap_or_default(),
            scope: route.scope.unwrap_or(if route.gw.is_some() { 0 } else { SCOPE_LINK }).into(),
            mtu: route.mtu.unwrap_or(0),
            ..dan::Route::default()
        };
        Ok(Nic {
            name: record.ifname.clone(),
            guest_mac: record.mac.ok_or_else(|| Error::config("there is no MAC address"))?,
            device,
            network_info: dan::NetworkInfo {
                interface: dan::Interface {
                    ip_addresses: record.addresses.clone(),
                    mtu: mtu.into(),
                    ..dan::Interface::default()
                },
                routes: routes.iter().map(route).collect(),
                neighbors: Vec::new(),
            },
        })
    }
}

/// A MAC address for who was given none: made of the IPv4 address, so that a neighbour who knows the address of a
/// container that is gone reaches the one that has it now; else of the port's name.
fn invented(record: &Record) -> Mac {
    let v4 = record.addresses.iter().find_map(|net| match net {
        IpNet::V4(v4) => Some(v4.addr().octets()),
        IpNet::V6(_) => None,
    });
    match v4 {
        Some([a, b, c, d]) => Mac([0x02, 0x42, a, b, c, d]),
        None => {
            let mut bytes = [0_u8; 5];
            for (i, byte) in record.port.bytes().enumerate() {
                bytes[i % 5] = bytes[i % 5].wrapping_mul(31).wrapping_add(byte);
            }
            let [a, b, c, d, e] = bytes;
            Mac([0x06, a, b, c, d, e])
        }
    }
}

/// The routes with their next hops: where none is given and the destinations are not on the link, a gateway of the
/// addresses.
fn by_gateways(success: &Success) -> Vec<Route> {
    let gateway = |dst: &IpNet| {
        let of_family = |ip: &&super::result::Ip| ip.address.addr().is_ipv4() == dst.addr().is_ipv4();
        success.ips.iter().filter(of_family).find_map(|ip| ip.gateway)
    };
    let complete = |route: &Route| match route.scope {
        Some(SCOPE_LINK) => route.clone(),
        _ => Route { gw: route.gw.or_else(|| gateway(&route.dst)), ..route.clone() },
    };
    success.routes.iter().map(complete).collect()
}

fn in_kernel(route: &Route) -> assign::Route {
    assign::Route {
        to: route.dst,
        via: route.gw,
        mtu: route.mtu,
        advmss: route.advmss,
        priority: route.priority,
        table: route.table,
        scope: route.scope,
    }
}

/// What other plugins made before, and what is made now.
fn joined(mut previous: Success, mut success: Success) -> Success {
    let before = previous.interfaces.len();
    success.ips.iter_mut().for_each(|ip| ip.interface = ip.interface.map(|index| index + before));
    previous.interfaces.append(&mut success.interfaces);
    previous.ips.append(&mut success.ips);
    previous.routes.append(&mut success.routes);
    if success.dns != Dns::default() {
        previous.dns = success.dns;
    }
    previous
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::Ip;

    fn ip(address: &str, gateway: Option<&str>) -> Ip {
        Ip {
            address: address.parse().unwrap(),
            gateway: gateway.map(|text| text.parse().unwrap()),
            interface: Some(0),
        }
    }

    #[test]
    fn routes_take_the_gateway_of_their_family() {
        let success = Success {
            ips: vec![ip("10.1.0.5/16", Some("10.1.0.1")), ip("fd00::5/64", None)],
            routes: vec![
                Route::new("0.0.0.0/0".parse().unwrap(), None),
                Route::new("192.0.2.0/24".parse().unwrap(), Some("10.1.0.9".parse().unwrap())),
                Route { scope: Some(SCOPE_LINK), ..Route::new("198.51.100.0/24".parse().unwrap(), None) },
                Route::new("::/0".parse().unwrap(), None),
            ],
            ..Success::default()
        };
        let gateways: Vec<_> =
            by_gateways(&success).iter().map(|route| route.gw.map(|gw| gw.to_string())).collect();
        assert_eq!(gateways, [Some("10.1.0.1".to_owned()), Some("10.1.0.9".to_owned()), None, None]);
    }

    #[test]
    fn what_was_made_before_stays_in_the_result() {
        let interface = |name: &str| Interface { name: name.into(), ..Interface::default() };
        let one = |name: &str, address: &str| Success {
            interfaces: vec![interface(name)],
            ips: vec![ip(address, None)],
            ..Success::default()
        };
        let both = joined(one("eth0", "10.0.0.1/8"), one("eth1", "10.0.0.2/8"));
        assert_eq!(both.interfaces.iter().map(|at| at.name.as_str()).collect::<Vec<_>>(), ["eth0", "eth1"]);
        assert_eq!(both.ips.iter().map(|ip| ip.interface).collect::<Vec<_>>(), [Some(0), Some(1)]);
    }
}
