//! DHCP and router advertisements as they are configured on interfaces.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

use super::{Interface, Router};
use crate::config::spec::{DNS_MAX, DhcpChange};
use crate::config::{ClasslessRoute, Mac, Name};
use crate::control::api;
use crate::refusal::Refusal;
use crate::services::dhcp::{Config, LEASE_DEFAULT, PER_PORT, Reservation};

/// How an interface serves guests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DhcpServer {
    /// The interface.
    pub interface: Name,
    /// First and last address to give away; `None` for router advertisements only.
    pub range: Option<(Ipv4Addr, Ipv4Addr)>,
    /// Seconds for which an address is given.
    pub lease: u32,
    /// The gateway that guests are told: `None` for the interface's own address, `Some(None)` for none.
    pub router: Option<Option<Ipv4Addr>>,
    /// Name servers that guests are told.
    pub dns: Vec<IpAddr>,
    /// The domain that guests are told.
    pub domain: Option<String>,
    /// The MTU that guests are told; `None` for the interface's own.
    pub mtu: Option<u16>,
    /// Routes that guests are told.
    pub routes: Vec<ClasslessRoute>,
    /// Whether routers are advertised.
    pub ra: bool,
    /// Most addresses that guests behind one port may have.
    pub per_port: u32,
    /// Addresses that belong to guests, by address.
    pub reservations: Vec<Reservation>,
}

/// The network of an interface that holds an IPv4 address.
fn network_of(interface: &Interface, address: Ipv4Addr) -> Option<Ipv4Net> {
    match interface.network_of(IpAddr::V4(address)) {
        Some(IpNet::V4(network)) => Some(*network),
        _ => None,
    }
}

impl DhcpServer {
    fn new(interface: Name) -> Self {
        Self {
            interface,
            range: None,
            lease: LEASE_DEFAULT,
            router: None,
            dns: Vec::new(),
            domain: None,
            mtu: None,
            routes: Vec::new(),
            ra: false,
            per_port: PER_PORT,
            reservations: Vec::new(),
        }
    }

    /// What the DHCP server of the interface is to give; `None` where there are only router advertisements.
    ///
    /// # Errors
    /// No network of the interface holds the range.
    pub fn config(&self, interface: &Interface) -> Result<Option<Config>, Refusal> {
        let Some((first, last)) = self.range else { return Ok(None) };
        let server = network_of(interface, first).ok_or_else(|| {
            let name = interface.name.as_str();
            Refusal::new(format!(
                "range {first}-{last} lies in no network of interface {name:?}: give it an address there"
            ))
        })?;
        let mut config = Config::new(server, self.range);
        config.lease = self.lease;
        config.per_port = self.per_port;
        config.router = self.router.unwrap_or(config.router);
        config.dns = self
            .dns
            .iter()
            .filter_map(|server| match server {
                IpAddr::V4(v4) => Some(*v4),
                IpAddr::V6(_) => None,
            })
            .collect();
        config.domain.clone_from(&self.domain);
        config.mtu = Some(self.mtu.unwrap_or(interface.mtu));
        config.routes = self.routes.iter().map(|route| (route.prefix, route.via)).collect();
        config.reservations.clone_from(&self.reservations);
        config.own = interface
            .addresses
            .iter()
            .filter_map(|own| match own.addr() {
                IpAddr::V4(v4) if v4 != server.addr() => Some(v4),
                _ => None,
            })
            .collect();
        Ok(Some(config))
    }

    /// Refuses what does not fit the interface.
    ///
    /// # Errors
    /// A range, gateway or reserved address outside the interface's networks, or one of its own; nothing to serve.
    pub(super) fn check(&self, interface: &Interface) -> Result<(), Refusal> {
        let name = interface.name.as_str();
        match self.config(interface)? {
            Some(config) => config.check(name)?,
            None if !self.ra => {
                return Err(Refusal::new(format!(
                    "interface {name:?} has nothing to serve: give range, ra, or both"
                )));
            }
            None => {
                if let Some(one) = self.reservations.first() {
                    let address = one.address;
                    return Err(Refusal::new(format!(
                        "address {address} cannot be reserved without DHCP: give a range"
                    )));
                }
            }
        }
        if self.ra
            && !interface.addresses.iter().any(|own| matches!(own, IpNet::V6(v6) if v6.prefix_len() == 64))
        {
            return Err(Refusal::new(format!(
                "ra needs an IPv6 network of prefix length 64 on interface {name:?}: give it an address there"
            )));
        }
        if let Some(Some(router)) = self.router
            && network_of(interface, router).is_none()
        {
            return Err(Refusal::new(format!("router {router} lies in no network of interface {name:?}")));
        }
        Ok(())
    }

    fn reserve(&mut self, new: Reservation) -> Result<(), Refusal> {
        let taken =
            self.reservations.iter().find(|other| (other.address == new.address) != (other.mac == new.mac));
        if let Some(other) = taken {
            let (address, mac) = (other.address, other.mac);
            return Err(Refusal::new(format!(
                "address {address} is reserved for {mac} already: give that up first"
            )));
        }
        self.reservations.retain(|other| other.address != new.address);
        let at = self.reservations.partition_point(|other| other.address < new.address);
        self.reservations.insert(at, new);
        Ok(())
    }

    fn view(&self, interface: &Interface) -> api::Dhcp {
        let config = self.config(interface).ok().flatten();
        let reservation = |one: &Reservation| api::Reservation {
            mac: one.mac,
            address: one.address,
            hostname: one.hostname.clone(),
        };
        api::Dhcp {
            interface: self.interface,
            range: self.range.map(|(first, last)| format!("{first}-{last}")),
            lease: self.lease,
            router: config.as_ref().and_then(|config| config.router),
            dns: self.dns.clone(),
            domain: self.domain.clone(),
            mtu: self.mtu.unwrap_or(interface.mtu),
            route: self.routes.clone(),
            ra: self.ra,
            reservations: self.reservations.iter().map(reservation).collect(),
            capacity: config.map_or(0, |config| config.capacity()),
            leases: 0,
            per_port: self.per_port,
            counters: api::DhcpCounters::default(),
        }
    }
}

impl Router {
    fn find_dhcp(&self, interface: &str) -> Result<&DhcpServer, Refusal> {
        let name = self.find_interface(interface)?.name;
        self.dhcp.get(&name).ok_or_else(|| {
            Refusal::new(format!(
                "interface {interface:?} has no DHCP: 'shuntctl dhcp set {interface} --range' starts it"
            ))
        })
    }

    /// What the DHCP server of an interface is to give, if it has one.
    pub(crate) fn dhcp_config(&self, interface: &Interface) -> Option<Config> {
        self.dhcp.get(&interface.name)?.config(interface).ok().flatten()
    }

    /// Starts DHCP or router advertisements on an interface, or changes how they are.
    ///
    /// # Errors
    /// No such interface, or something does not fit its networks.
    pub fn set_dhcp(&mut self, change: DhcpChange) -> Result<(), Refusal> {
        let interface = self.find_interface(&change.interface)?;
        let mut server =
            self.dhcp.get(&interface.name).cloned().unwrap_or_else(|| DhcpServer::new(interface.name));
        server.range = change.range.or(server.range);
        server.lease = change.lease.unwrap_or(server.lease);
        server.router = change.router.or(server.router);
        server.dns = change.dns.unwrap_or(server.dns);
        for gone in &change.del_dns {
            let before = server.dns.len();
            server.dns.retain(|one| one != gone);
            if server.dns.len() == before {
                let name = interface.name.as_str();
                return Err(Refusal::new(format!(
                    "guests of interface {name:?} are not told of name server {gone}"
                )));
            }
        }
        for new in change.add_dns {
            if !server.dns.contains(&new) {
                server.dns.push(new);
            }
        }
        if server.dns.len() > DNS_MAX {
            let count = server.dns.len();
            return Err(Refusal::new(format!(
                "{count} name servers are too many: guests are told of at most {DNS_MAX}"
            )));
        }
        server.per_port = change.per_port.unwrap_or(server.per_port);
        server.domain = change.domain.unwrap_or(server.domain);
        server.mtu = change.mtu.or(server.mtu);
        server.routes = change.routes.unwrap_or(server.routes);
        server.ra = change.ra.unwrap_or(server.ra);
        for reservation in change.reserve {
            server.reserve(reservation)?;
        }
        server.check(interface)?;
        self.dhcp.insert(interface.name, server);
        Ok(())
    }

    /// Ends DHCP and router advertisements on an interface.
    ///
    /// # Errors
    /// There are none.
    pub fn del_dhcp(&mut self, interface: &str) -> Result<(), Refusal> {
        let name = self.find_dhcp(interface)?.interface;
        self.dhcp.remove(&name);
        Ok(())
    }

    /// How an interface serves guests.
    ///
    /// # Errors
    /// It does not.
    pub fn dhcp(&self, interface: &str) -> Result<api::Dhcp, Refusal> {
        Ok(self.find_dhcp(interface)?.view(self.find_interface(interface)?))
    }

    /// Reserves an address for a guest.
    ///
    /// # Errors
    /// No DHCP there, or the address or the guest has a reservation, or the address does not fit the interface.
    pub fn reserve(&mut self, interface: &str, spec: Reservation) -> Result<(), Refusal> {
        let mut server = self.find_dhcp(interface)?.clone();
        server.reserve(spec)?;
        server.check(self.find_interface(interface)?)?;
        self.dhcp.insert(server.interface, server);
        Ok(())
    }

    /// Gives a reservation up.
    ///
    /// # Errors
    /// There is none for that guest.
    pub fn unreserve(&mut self, interface: &str, mac: Mac) -> Result<(), Refusal> {
        let name = self.find_dhcp(interface)?.interface;
        let server = self.dhcp.get_mut(&name).ok_or("no DHCP")?;
        let before = server.reservations.len();
        server.reservations.retain(|reservation| reservation.mac != mac);
        match server.reservations.len() < before {
            true => Ok(()),
            false => Err(Refusal::new(format!("interface {interface:?} has no address reserved for {mac}"))),
        }
    }

    /// The interfaces that serve guests, or the one that is named.
    ///
    /// # Errors
    /// No such interface, or it serves nobody.
    pub fn dhcp_servers(&self, interface: Option<&str>) -> Result<Vec<Name>, Refusal> {
        match interface {
            Some(name) => Ok(vec![self.find_dhcp(name)?.interface]),
            None => Ok(self.dhcp.keys().copied().collect()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::router;
    use super::*;
    use crate::config::spec::reservation;

    fn set(router: &mut Router, change: impl FnOnce(&mut api::DhcpSet)) -> Result<(), String> {
        let mut asked = api::DhcpSet { interface: "gw".into(), ..api::DhcpSet::default() };
        change(&mut asked);
        router.set_dhcp(DhcpChange::try_from(&asked).unwrap()).map_err(|refusal| refusal.to_string())
    }

    fn served() -> Router {
        let mut router = router(&[("gw", &["10.0.3.1/24", "fd00::1/64"]), ("x", &["10.0.4.1/24"])]);
        set(&mut router, |d| d.range = Some("10.0.3.2-10.0.3.254".into())).unwrap();
        router
    }

    #[test]
    fn defaults_follow_the_interface() {
        let mut router = served();
        let dhcp = router.dhcp("gw").unwrap();
        assert_eq!((dhcp.capacity, dhcp.lease, dhcp.mtu, dhcp.ra), (253, 3600, 1500, false));
        assert_eq!(dhcp.router, Some(Ipv4Addr::new(10, 0, 3, 1)));
        set(&mut router, |d| d.router = Some("none".into())).unwrap();
        set(&mut router, |d| d.ra = Some(true)).unwrap();
        let dhcp = router.dhcp("gw").unwrap();
        assert_eq!((dhcp.router, dhcp.ra, dhcp.capacity), (None, true, 253));
        router.del_dhcp("gw").unwrap();
        assert!(router.dhcp("gw").unwrap_err().to_string().contains("has no DHCP"));
    }

    #[test]
    fn name_servers_come_and_go_one_by_one() {
        let mut router = served();
        let list = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        let dns = |router: &Router| {
            let told = router.dhcp("gw").unwrap().dns;
            told.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        set(&mut router, |d| d.dns = Some(list(&["10.0.3.1", "10.0.3.2"]))).unwrap();
        set(&mut router, |d| {
            d.del_dns = list(&["10.0.3.1"]);
            d.add_dns = list(&["fd00::1", "10.0.3.2"]);
        })
        .unwrap();
        assert_eq!(dns(&router), ["10.0.3.2", "fd00::1"]);
        let refusal = set(&mut router, |d| d.del_dns = list(&["10.0.3.1"])).unwrap_err();
        assert_eq!(refusal, "guests of interface \"gw\" are not told of name server 10.0.3.1");
        let many: Vec<_> = (10..17).map(|n| format!("10.0.3.{n}")).collect();
        let refusal = set(&mut router, |d| d.add_dns = many).unwrap_err();
        assert_eq!(refusal, "9 name servers are too many: guests are told of at most 8");
        assert_eq!(dns(&router), ["10.0.3.2", "fd00::1"]);
        set(&mut router, |d| d.per_port = Some(200)).unwrap();
        let server = &router.dhcp["gw"];
        let config = server.config(&router.interfaces["gw"]).unwrap().unwrap();
        assert_eq!((router.dhcp("gw").unwrap().per_port, config.per_port), (200, 200));
    }

    #[test]
    fn what_does_not_fit_the_interface_is_refused() {
        let mut router = served();
        let before = router.dhcp("gw").unwrap();
        let range = |range: &str| Some(range.to_owned());
        for (result, why) in [
            (
                set(&mut router, |d| d.range = range("10.0.4.2-10.0.4.9")),
                "lies in no network of interface \"gw\"",
            ),
            (set(&mut router, |d| d.range = range("10.0.3.2-10.0.4.9")), "is no station's address"),
            (set(&mut router, |d| d.range = range("10.0.3.1-10.0.3.9")), "includes 10.0.3.1"),
            (
                set(&mut router, |d| d.range = range("10.0.3.2-10.0.3.255")),
                "is no station's address in network 10.0.3.0/24",
            ),
            (set(&mut router, |d| d.router = Some("10.0.4.1".into())), "router 10.0.4.1 lies in no network"),
            (set(&mut router, |d| d.interface = "none".into()), "interface \"none\" does not exist"),
            (set(&mut router, |d| d.interface = "x".into()), "nothing to serve"),
            (
                set(&mut router, |d| {
                    d.interface = "x".into();
                    d.ra = Some(true);
                }),
                "ra needs an IPv6 network",
            ),
        ] {
            let refusal = result.unwrap_err();
            assert!(refusal.contains(why), "{refusal}");
        }
        assert_eq!(router.dhcp("gw").unwrap(), before);
        assert!(router.dhcp("x").is_err());
    }

    #[test]
    fn an_address_is_reserved_for_one_guest() {
        let mut router = served();
        let spec = |mac: &str, address: &str| reservation(mac, address, Some("mail")).unwrap();
        router.reserve("gw", spec("52:54:00:00:00:01", "10.0.3.16")).unwrap();
        router.reserve("gw", spec("52:54:00:00:00:01", "10.0.3.16")).unwrap();
        for (mac, address, why) in [
            ("52:54:00:00:00:02", "10.0.3.16", "is reserved for 52:54:00:00:00:01 already"),
            ("52:54:00:00:00:01", "10.0.3.17", "is reserved for 52:54:00:00:00:01 already"),
            ("52:54:00:00:00:02", "10.0.4.16", "is no station's address"),
            ("52:54:00:00:00:02", "10.0.3.1", "own"),
            ("52:54:00:00:00:02", "10.0.3.255", "is no station's address"),
        ] {
            let refusal = router.reserve("gw", spec(mac, address)).unwrap_err().to_string();
            assert!(refusal.contains(why), "{refusal}");
        }
        assert_eq!(router.dhcp("gw").unwrap().reservations.len(), 1);
        assert!(router.unreserve("gw", Mac([2, 0, 0, 0, 0, 9])).is_err());
        router.unreserve("gw", "52:54:00:00:00:01".parse().unwrap()).unwrap();
        assert!(router.dhcp("gw").unwrap().reservations.is_empty());
    }
}
