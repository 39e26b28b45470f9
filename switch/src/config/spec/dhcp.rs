//! How guests get addresses.
#![forbid(unsafe_code)]

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{
    Invalid, MTU_MAX, MTU_MIN_IPV4, Name, address_range, host, mac, name, number, prefix, range_len,
};
use crate::control::api;
use crate::services::dhcp::{LEASES_MAX, Reservation};

/// Most addresses of a range: as many as the server keeps account of.
pub const RANGE_MAX: u64 = LEASES_MAX as u64;

/// Most name servers that guests are told.
pub const DNS_MAX: usize = 8;

/// A route that guests are told (RFC 3442), written `PREFIX=GATEWAY`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClasslessRoute {
    /// The destination.
    pub prefix: Ipv4Net,
    /// The gateway.
    pub via: Ipv4Addr,
}

impl fmt::Display for ClasslessRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.prefix, self.via)
    }
}

impl Serialize for ClasslessRoute {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ClasslessRoute {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        classless(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// What is to be, or to change, at how an interface serves guests; what is `None` stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DhcpChange {
    /// The interface.
    pub interface: Name,
    /// First and last address to give away; at most [`RANGE_MAX`].
    pub range: Option<(Ipv4Addr, Ipv4Addr)>,
    /// Seconds for which an address is given, 60 or more.
    pub lease: Option<u32>,
    /// The gateway that guests are told; `Some(None)` for none.
    pub router: Option<Option<Ipv4Addr>>,
    /// Name servers that guests are told; at most [`DNS_MAX`].
    pub dns: Option<Vec<IpAddr>>,
    /// Name servers to tell beside those of before.
    pub add_dns: Vec<IpAddr>,
    /// Name servers to tell no longer.
    pub del_dns: Vec<IpAddr>,
    /// The domain that guests are told; `Some(None)` for none.
    pub domain: Option<Option<String>>,
    /// The MTU that guests are told.
    pub mtu: Option<u16>,
    /// Routes that guests are told; at most 16.
    pub routes: Option<Vec<ClasslessRoute>>,
    /// Whether routers are advertised.
    pub ra: Option<bool>,
    /// Most addresses that guests behind one port may have.
    pub per_port: Option<u32>,
    /// Reservations to add: no MAC address and no address twice.
    pub reserve: Vec<Reservation>,
}

/// Checks the IPv4 address of a host in `field`.
///
/// # Errors
/// Anything else.
pub fn v4(field: &'static str, text: &str) -> Result<Ipv4Addr, Invalid> {
    match host(field, text)? {
        IpAddr::V4(address) => Ok(address),
        IpAddr::V6(address) => {
            Err(Invalid::new(field, format!("{field} {address} is an IPv6 address: DHCP here is for IPv4")))
        }
    }
}

fn classless(text: &str) -> Result<ClasslessRoute, Invalid> {
    let (network, via) = text.split_once('=').ok_or_else(|| {
        let rule = "it must be PREFIX=GATEWAY such as 10.0.0.0/8=10.0.3.5";
        Invalid::new("route", format!("route {text:?} is no route for guests: {rule}"))
    })?;
    match prefix("route", network)? {
        IpNet::V4(prefix) => Ok(ClasslessRoute { prefix, via: v4("route", via)? }),
        IpNet::V6(prefix) => {
            Err(Invalid::new("route", format!("route {prefix} is an IPv6 network: DHCP here is for IPv4")))
        }
    }
}

/// Checks a domain name, or the name of a host (RFC 1123, 2.1).
fn domain(field: &'static str, text: &str) -> Result<String, Invalid> {
    let label = |label: &str| {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        (1..=63).contains(&label.len())
            && label.bytes().all(allowed)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if text.len() <= 253 && text.split('.').all(label) {
        return Ok(text.to_owned());
    }
    let rule = "it must be labels of letters, digits and \"-\", separated by \".\"";
    Err(Invalid::new(field, format!("{field} {text:?} is no name of hosts: {rule}")))
}

/// Checks a reservation.
///
/// # Errors
/// A field breaks a rule. Whether a network of the interface holds the address is for the switch to find out.
pub fn reservation(mac_address: &str, address: &str, hostname: Option<&str>) -> Result<Reservation, Invalid> {
    Ok(Reservation {
        mac: mac("mac", mac_address)?,
        address: v4("address", address)?,
        hostname: hostname.map(|text| domain("hostname", text)).transpose()?,
        told: None,
    })
}

fn at_most<T>(field: &'static str, list: Vec<T>, most: usize) -> Result<Vec<T>, Invalid> {
    match list.len() {
        n if n > most => {
            Err(Invalid::new(field, format!("{field}: {n} are too many: at most {most} are taken")))
        }
        _ => Ok(list),
    }
}

impl TryFrom<&api::DhcpSet> for DhcpChange {
    type Error = Invalid;

    fn try_from(asked: &api::DhcpSet) -> Result<Self, Invalid> {
        let range = asked.range.as_deref().map(range).transpose()?;
        let router = match asked.router.as_deref() {
            None => None,
            Some("none") => Some(None),
            Some(text) => Some(Some(v4("router", text)?)),
        };
        let servers = |field: &'static str, list: &[String]| -> Result<Vec<IpAddr>, Invalid> {
            at_most(field, list.iter().map(|text| host(field, text)).collect::<Result<_, _>>()?, DNS_MAX)
        };
        let routes = asked.route.as_ref().map(|list| list.iter().map(|text| classless(text)).collect());
        let mut reserve: Vec<Reservation> = Vec::new();
        for one in &asked.reserve {
            let one = reservation(&one.mac, &one.address, one.hostname.as_deref())?;
            if reserve.iter().any(|other| other.mac == one.mac || other.address == one.address) {
                let message =
                    format!("reserve: {} or {} is reserved twice: once is enough", one.mac, one.address);
                return Err(Invalid::new("reserve", message));
            }
            reserve.push(one);
        }
        Ok(Self {
            interface: name("interface", &asked.interface)?,
            range,
            lease: asked.lease.map(|value| number("lease", value, 60, u32::MAX - 1)).transpose()?,
            router,
            dns: asked.dns.as_ref().map(|list| servers("dns", list)).transpose()?,
            add_dns: servers("add_dns", &asked.add_dns)?,
            del_dns: servers("del_dns", &asked.del_dns)?,
            domain: match asked.domain.as_deref() {
                None => None,
                Some("") => Some(None),
                Some(text) => Some(Some(domain("domain", text)?)),
            },
            mtu: asked
                .mtu
                .map(|value| number("mtu", value, MTU_MIN_IPV4.into(), MTU_MAX.into()))
                .transpose()?,
            routes: routes.transpose()?.map(|list| at_most("route", list, 16)).transpose()?,
            ra: asked.ra,
            per_port: asked
                .per_port
                .map(|value| number("per_port", value, 1, RANGE_MAX as u32))
                .transpose()?,
            reserve,
        })
    }
}

fn range(text: &str) -> Result<(Ipv4Addr, Ipv4Addr), Invalid> {
    let range = address_range("range", text)?;
    let (IpAddr::V4(first), IpAddr::V4(last)) = (range.first, range.last) else {
        return Err(Invalid::new(
            "range",
            format!("range {range} is of IPv6 addresses: DHCP here is for IPv4"),
        ));
    };
    match range_len(&range) {
        n if n > RANGE_MAX => Err(Invalid::new(
            "range",
            format!("range {range} has {n} addresses: at most {RANGE_MAX} are taken"),
        )),
        _ => Ok((first, last)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dhcp(change: impl FnOnce(&mut api::DhcpSet)) -> Result<DhcpChange, (&'static str, String)> {
        let mut asked = api::DhcpSet { interface: "gw".into(), ..api::DhcpSet::default() };
        change(&mut asked);
        DhcpChange::try_from(&asked).map_err(|invalid| (invalid.field, invalid.to_string()))
    }

    fn texts(list: &[&str]) -> Option<Vec<String>> {
        Some(list.iter().map(|&text| text.to_owned()).collect())
    }

    #[test]
    fn what_is_given_is_checked_and_the_rest_stays() {
        let none = dhcp(|_| ()).unwrap();
        assert_eq!((none.range, none.lease, none.router, none.ra), (None, None, None, None));
        let all = dhcp(|d| {
            d.range = Some("10.0.3.2-10.0.3.254".into());
            d.lease = Some(60);
            d.router = Some("none".into());
            d.dns = texts(&["10.0.3.1", "fd00::1"]);
            d.domain = Some("example.org".into());
            d.mtu = Some(1400);
            d.route = texts(&["10.0.0.0/8=10.0.3.5", "0.0.0.0/0=10.0.3.1"]);
            d.ra = Some(true);
        })
        .unwrap();
        assert_eq!(all.range.unwrap().1, Ipv4Addr::new(10, 0, 3, 254));
        assert_eq!((all.router, all.lease, all.mtu), (Some(None), Some(60), Some(1400)));
        let routes = all.routes.unwrap();
        assert_eq!(routes[0].to_string(), "10.0.0.0/8=10.0.3.5");
        let json = serde_json::to_string(&routes).unwrap();
        assert_eq!(serde_json::from_str::<Vec<ClasslessRoute>>(&json).unwrap(), routes);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (result, field, why) in [
            (dhcp(|d| d.interface = "9".into()), "interface", "no valid name"),
            (dhcp(|d| d.range = Some("10.0.3.9-10.0.3.2".into())), "range", "ends before it begins"),
            (dhcp(|d| d.range = Some("fd00::1-fd00::2".into())), "range", "for IPv4"),
            (dhcp(|d| d.range = Some("10.0.0.1-10.2.0.1".into())), "range", "at most 65536"),
            (dhcp(|d| d.lease = Some(59)), "lease", "it must be 60 to 4294967294"),
            (dhcp(|d| d.lease = Some(u32::MAX.into())), "lease", "out of range"),
            (dhcp(|d| d.router = Some("fd00::1".into())), "router", "an IPv6 address"),
            (dhcp(|d| d.dns = texts(&["x"])), "dns", "no IP address"),
            (dhcp(|d| d.dns = texts(&["10.0.0.1"; 9])), "dns", "9 are too many"),
            (dhcp(|d| d.add_dns = texts(&["x"]).unwrap()), "add_dns", "no IP address"),
            (dhcp(|d| d.del_dns = texts(&["0.0.0.0"]).unwrap()), "del_dns", "not the address of a host"),
            (dhcp(|d| d.per_port = Some(0)), "per_port", "it must be 1 to 65536"),
            (dhcp(|d| d.domain = Some("a..b".into())), "domain", "no name of hosts"),
            (dhcp(|d| d.mtu = Some(67)), "mtu", "it must be 68 to 9600"),
            (dhcp(|d| d.route = texts(&["10.0.0.0/8"])), "route", "PREFIX=GATEWAY"),
            (dhcp(|d| d.route = texts(&["fd00::/8=10.0.0.1"])), "route", "an IPv6 network"),
            (dhcp(|d| d.route = texts(&["10.0.0.1/8=10.0.0.1"])), "route", "write 10.0.0.0/8"),
        ] {
            let (at, message) = result.unwrap_err();
            assert!(at == field && message.contains(why), "{at}: {message}");
        }
    }

    #[test]
    fn reservations_belong_to_one_guest() {
        let reserve = |list: &[(&str, &str)]| {
            dhcp(|d| {
                d.reserve = list
                    .iter()
                    .map(|&(mac, address)| api::ReserveAdd {
                        mac: mac.into(),
                        address: address.into(),
                        hostname: None,
                    })
                    .collect();
            })
            .map(|d| d.reserve.len())
        };
        assert_eq!(reserve(&[("52:54:00:00:00:01", "10.0.3.16"), ("52:54:00:00:00:02", "10.0.3.17")]), Ok(2));
        for twice in [
            [("52:54:00:00:00:01", "10.0.3.16"), ("52:54:00:00:00:01", "10.0.3.17")],
            [("52:54:00:00:00:01", "10.0.3.16"), ("52:54:00:00:00:02", "10.0.3.16")],
        ] {
            assert_eq!(reserve(&twice).unwrap_err().0, "reserve");
        }
        let named = |hostname| reservation("52:54:00:00:00:01", "10.0.3.16", Some(hostname));
        assert_eq!(named("mail").unwrap().hostname.as_deref(), Some("mail"));
        let long = "a".repeat(64);
        for bad in ["", "-a", "a-", "a b", "a_b", ".", long.as_str()] {
            assert_eq!(named(bad).unwrap_err().field, "hostname", "{bad:?}");
        }
    }
}
