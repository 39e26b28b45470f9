//! shunt's own addresses: from the networks of the switch's interface on the bridge.
//!
//! What counts as taken: attachments of all networks of this directory, the switch's own addresses, and at the
//! interface's DHCP server leases and reservations. Where there is such a server, an IPv4 address is reserved there, too,
//! so that no guest gets it by DHCP, and a Kata guest that asks by DHCP gets the same one.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use shunt_client::client::{Client, Failure};
use shunt_switch::control::api;

use super::config::OwnIpam;
use super::error::{Error, UNAVAILABLE};
use super::result::{Dns, Ip, Route};
use super::store::Store;

/// Addresses at the beginning of an IPv6 network that are given away.
const V6_ADDRESSES: u128 = 65_536;

/// Addresses of one family that may be given.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Range {
    /// The switch's address, with the network's prefix length.
    gateway: IpNet,
    first: IpAddr,
    last: IpAddr,
}

/// An interface and what it can give.
pub(crate) struct Pool {
    /// Its name.
    pub(crate) interface: String,
    /// Its networks, for guards.
    pub(crate) networks: Vec<IpNet>,
    /// Whether it serves DHCP, so that addresses are to be reserved.
    pub(crate) dhcp: bool,
    /// Name service as its DHCP server tells it.
    pub(crate) dns: Dns,
    ranges: Vec<Range>,
    taken: HashSet<IpAddr>,
}

impl Pool {
    /// Finds the interface on the bridge and what of its networks is not taken.
    ///
    /// # Errors
    /// There is none, or several and none is named; it has no address; a range is none or lies elsewhere.
    pub(crate) fn find(client: &mut Client, bridge: &str, ipam: &OwnIpam) -> Result<Self, Error> {
        let all = client.ask(&api::InterfaceList {})?;
        let on_bridge: Vec<_> = all.iter().filter(|at| at.bridge == *bridge && at.vlan == 0).collect();
        let names = || on_bridge.iter().map(|at| at.name.to_string()).collect::<Vec<_>>().join(", ");
        let interface = match (&ipam.interface, on_bridge.as_slice()) {
            (Some(name), _) => {
                on_bridge.iter().find(|at| at.name == *name.as_str()).copied().ok_or_else(|| {
                    Error::config(format!(
                        "ipam.interface {name:?} is not on bridge {bridge:?}: there are {}",
                        names()
                    ))
                })?
            }
            (None, [one]) => one,
            (None, []) => {
                let hint = "\"shuntctl interface add\" makes one, or name another IPAM plugin";
                return Err(Error::config(format!(
                    "bridge {bridge:?} has no interface to take addresses from: {hint}"
                )));
            }
            (None, _) => {
                let all = names();
                return Err(Error::config(format!(
                    "bridge {bridge:?} has interfaces {all}: name one as ipam.interface"
                )));
            }
        };
        let name = interface.name.to_string();
        let dhcp = match client.ask(&api::DhcpShow { interface: name.clone() }) {
            Ok(dhcp) => Some(dhcp),
            Err(Failure::Refused(..)) => None,
            Err(failure) => return Err(failure.into()),
        };
        let served = dhcp.as_ref().filter(|dhcp| dhcp.range.is_some());
        let mut taken: HashSet<IpAddr> = interface.address.iter().map(IpNet::addr).collect();
        if let Some(dhcp) = served {
            taken.extend(dhcp.reservations.iter().map(|one| IpAddr::from(one.address)));
            let leases = client.ask(&api::DhcpLeases { interface: Some(name.clone()) })?;
            taken.extend(leases.iter().map(|lease| IpAddr::from(lease.address)));
        }
        let dns = dhcp.as_ref().map(|dhcp| Dns {
            nameservers: dhcp.dns.iter().map(IpAddr::to_string).collect(),
            domain: dhcp.domain.clone().unwrap_or_default(),
            ..Dns::default()
        });
        Ok(Self {
            ranges: ranges(&interface.address, &ipam.ranges, served.and_then(|dhcp| dhcp.range.as_deref()))?,
            interface: name,
            networks: interface.address.iter().map(IpNet::trunc).collect(),
            dhcp: served.is_some(),
            dns: dns.unwrap_or_default(),
            taken,
        })
    }

    /// Takes note of the addresses of attachments.
    pub(crate) fn take(&mut self, store: &Store) -> Result<(), Error> {
        self.taken.extend(store.all()?.iter().flat_map(|record| &record.addresses).map(IpNet::addr));
        Ok(())
    }

    /// Chooses an address of each family: the one that was asked for, or the first free one after `last`'s answer.
    ///
    /// # Errors
    /// What was asked for is taken or elsewhere, or none is left.
    pub(crate) fn choose(
        &self,
        asked: &[IpAddr],
        last: impl Fn(u8) -> Option<IpAddr>,
    ) -> Result<Vec<Ip>, Error> {
        let mut chosen = Vec::new();
        for &address in asked {
            if !self.ranges.iter().any(|range| range.gateway.contains(&address)) {
                let networks: Vec<_> =
                    self.ranges.iter().map(|range| range.gateway.trunc().to_string()).collect();
                let networks = networks.join(", ");
                return Err(Error::config(format!(
                    "ips: {address} is in no network of {:?} ({networks})",
                    self.interface
                )));
            }
            if self.taken.contains(&address) {
                return Err(Error::config(format!("ips: {address} is taken already")));
            }
        }
        for range in &self.ranges {
            let mut of_family = asked.iter().filter(|address| range.gateway.contains(*address));
            let address = match (of_family.next(), of_family.next()) {
                (Some(_), Some(other)) => {
                    return Err(Error::config(format!(
                        "ips: {other} is one too many: one address of a family is given"
                    )));
                }
                (Some(&address), None) => address,
                (None, _) => self.free(range, last(if range.first.is_ipv4() { 4 } else { 6 }))?,
            };
            let net = IpNet::new(address, range.gateway.prefix_len()).map_err(Error::io)?;
            chosen.push(Ip { address: net, gateway: Some(range.gateway.addr()), interface: None });
        }
        Ok(chosen)
    }

    fn free(&self, range: &Range, last: Option<IpAddr>) -> Result<IpAddr, Error> {
        let (first, end) = (bits(range.first), bits(range.last));
        let v4 = range.first.is_ipv4();
        let begin = match last.map(bits) {
            Some(last) if last >= first && last < end => last + 1,
            _ => first,
        };
        let edges = edges(&range.gateway);
        (begin..=end)
            .chain(first..begin)
            .map(|number| address(number, v4))
            .find(|candidate| !edges.contains(candidate) && !self.taken.contains(candidate))
            .ok_or_else(|| {
                let (first, last) = (range.first, range.last);
                Error::new(
                    UNAVAILABLE,
                    "no address is left",
                    format!("{first} to {last} of interface {:?} are all taken", self.interface),
                )
            })
    }
}

/// Routes to everywhere, by the addresses' gateways.
pub(crate) fn default_routes(ips: &[Ip]) -> Vec<Route> {
    let any = |v4: bool| match v4 {
        true => IpNet::V4(Ipv4Net::default()),
        false => IpNet::V6(Ipv6Net::default()),
    };
    ips.iter().map(|ip| Route::new(any(ip.address.addr().is_ipv4()), ip.gateway)).collect()
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn address(bits: u128, v4: bool) -> IpAddr {
    match v4 {
        true => Ipv4Addr::from_bits(bits as u32).into(),
        false => Ipv6Addr::from_bits(bits).into(),
    }
}

/// Addresses of a network that no host may have: its own (in IPv6 the routers' anycast address) and, in IPv4, everybody's.
fn edges(network: &IpNet) -> Vec<IpAddr> {
    match network {
        IpNet::V4(v4) if v4.prefix_len() < 31 => vec![v4.network().into(), v4.broadcast().into()],
        IpNet::V4(_) => Vec::new(),
        IpNet::V6(v6) if v6.prefix_len() < 127 => vec![v6.network().into()],
        IpNet::V6(_) => Vec::new(),
    }
}

/// What may be given: ranges that are asked for, or else the DHCP server's, or else whole networks (of IPv6 the first
/// addresses); of each family in the network of the interface's first address.
fn ranges(own: &[IpNet], asked: &[String], dhcp: Option<&str>) -> Result<Vec<Range>, Error> {
    let of = |text: &str| -> Result<Range, Error> {
        let ends = text.split_once('-').unwrap_or((text, text));
        let (Ok(first), Ok(last)) = (ends.0.trim().parse::<IpAddr>(), ends.1.trim().parse::<IpAddr>()) else {
            return Err(Error::config(format!("ipam.ranges: {text:?} is no range: write FIRST-LAST")));
        };
        let gateway = own.iter().find(|net| net.contains(&first) && net.contains(&last)).copied();
        let gateway = gateway.filter(|_| bits(first) <= bits(last)).ok_or_else(|| {
            let networks: Vec<_> = own.iter().map(|net| net.trunc().to_string()).collect();
            let networks = networks.join(", ");
            Error::config(format!(
                "ipam.ranges: {text:?} does not lie within a network of the interface ({networks})"
            ))
        })?;
        Ok(Range { gateway, first, last })
    };
    if !asked.is_empty() {
        let ranges = asked.iter().map(|text| of(text)).collect::<Result<Vec<_>, _>>()?;
        let v4 = ranges.iter().filter(|range| range.first.is_ipv4()).count();
        if v4 > 1 || ranges.len() - v4 > 1 {
            return Err(Error::config("ipam.ranges: one range of a family is enough"));
        }
        return Ok(ranges);
    }
    let mut ranges = Vec::new();
    for v4 in [true, false] {
        let Some(gateway) = own.iter().find(|net| net.addr().is_ipv4() == v4).copied() else { continue };
        let served = dhcp.filter(|_| v4).map(of).transpose()?;
        ranges.push(served.unwrap_or_else(|| {
            let first = bits(gateway.network());
            let last = bits(gateway.broadcast()).min(first.saturating_add(if v4 {
                u128::MAX
            } else {
                V6_ADDRESSES
            }));
            Range { gateway, first: address(first, v4), last: address(last, v4) }
        }));
    }
    match ranges.is_empty() {
        true => Err(Error::config("the interface has no address, and so no network to take addresses from")),
        false => Ok(ranges),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(own: &[&str], asked: &[&str], dhcp: Option<&str>) -> Result<Pool, Error> {
        let own: Vec<IpNet> = own.iter().map(|text| text.parse().unwrap()).collect();
        let asked: Vec<String> = asked.iter().map(|text| (*text).to_owned()).collect();
        Ok(Pool {
            interface: "gw".into(),
            networks: own.iter().map(IpNet::trunc).collect(),
            dhcp: dhcp.is_some(),
            dns: Dns::default(),
            ranges: ranges(&own, &asked, dhcp)?,
            taken: own.iter().map(IpNet::addr).collect(),
        })
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn chosen(pool: &Pool, asked: &[&str], last: Option<&str>) -> Result<Vec<String>, Error> {
        let asked: Vec<IpAddr> = asked.iter().map(|text| ip(text)).collect();
        let last = last.map(ip);
        let ips = pool.choose(&asked, |family| last.filter(|last| last.is_ipv4() == (family == 4)))?;
        Ok(ips.iter().map(|ip| ip.address.to_string()).collect())
    }

    #[test]
    fn each_family_gives_its_first_free_address() {
        let pool = pool(&["10.1.0.1/29", "fd00::1/64"], &[], None).unwrap();
        assert_eq!(chosen(&pool, &[], None).unwrap(), ["10.1.0.2/29", "fd00::2/64"]);
        assert_eq!(chosen(&pool, &[], Some("10.1.0.3")).unwrap()[0], "10.1.0.4/29");
        assert_eq!(chosen(&pool, &[], Some("10.1.0.6")).unwrap()[0], "10.1.0.2/29", "round, past .7 and .0");
        assert_eq!(chosen(&pool, &[], Some("192.0.2.1")).unwrap()[0], "10.1.0.2/29");
        let routes = default_routes(&pool.choose(&[], |_| None).unwrap());
        assert_eq!(routes[0].dst.to_string(), "0.0.0.0/0");
        assert_eq!((routes[0].gw, routes[1].gw), (Some(ip("10.1.0.1")), Some(ip("fd00::1"))));
    }

    #[test]
    fn none_is_given_twice_and_the_end_is_told() {
        let mut pool = pool(&["10.1.0.1/29"], &[], None).unwrap();
        let mut last = None;
        for _ in 0..5 {
            let given = chosen(&pool, &[], last.as_deref()).unwrap();
            let address = given[0].trim_end_matches("/29").to_owned();
            assert!(pool.taken.insert(ip(&address)), "{address}");
            last = Some(address);
        }
        let error = chosen(&pool, &[], last.as_deref()).unwrap_err();
        assert_eq!(error.code, UNAVAILABLE);
        assert!(!pool.taken.contains(&ip("10.1.0.0")) && !pool.taken.contains(&ip("10.1.0.7")));
    }

    #[test]
    fn what_is_asked_for_is_given_or_refused() {
        let pool = pool(&["10.1.0.1/16", "fd00::1/64"], &[], None).unwrap();
        assert_eq!(chosen(&pool, &["10.1.9.9"], None).unwrap(), ["10.1.9.9/16", "fd00::2/64"]);
        for (bad, why) in [
            (&["192.0.2.9"][..], "in no network"),
            (&["10.1.0.1"], "taken"),
            (&["10.1.0.5", "10.1.0.6"], "one too many"),
        ] {
            let error = chosen(&pool, bad, None).unwrap_err();
            assert!(error.details.contains(why), "{error:?}");
        }
    }

    #[test]
    fn ranges_lie_in_the_interfaces_networks() {
        let own = ["10.1.0.1/16", "fd00::1/64"];
        let first = |asked: &[&str], dhcp| chosen(&pool(&own, asked, dhcp).unwrap(), &[], None).unwrap();
        assert_eq!(first(&["10.1.7.0-10.1.7.9"], None), ["10.1.7.0/16"], "only what is named");
        assert_eq!(first(&["fd00::100-fd00::1ff", "10.1.7.1"], None), ["fd00::100/64", "10.1.7.1/16"]);
        assert_eq!(first(&[], Some("10.1.4.2-10.1.4.9")), ["10.1.4.2/16", "fd00::2/64"]);
        for bad in [
            &["x"][..],
            &["10.1.0.9-10.1.0.2"],
            &["10.2.0.1-10.2.0.9"],
            &["10.1.0.2", "10.1.0.3"],
            &["10.1.0.2-fd00::2"],
        ] {
            assert!(pool(&own, bad, None).is_err(), "{bad:?}");
        }
        assert!(pool(&[], &[], None).is_err());
        assert!(chosen(&pool(&["10.1.0.1/32"], &[], None).unwrap(), &[], None).is_err());
        assert_eq!(chosen(&pool(&["10.1.0.0/31"], &[], None).unwrap(), &[], None).unwrap(), ["10.1.0.1/31"]);
    }
}
