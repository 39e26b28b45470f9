//! Rules of network address translation.
#![forbid(unsafe_code)]

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::address::with_ports;
use super::{AddressRange, Invalid, Name, PortRange, host, is_host, name, prefix};
use crate::control::api::{self, NatKind};
use crate::packet::ip::{TCP, UDP};

/// The protocols whose ports can be published, as messages name them.
pub const NAT_PROTOCOLS: &str = "\"tcp\" or \"udp\"";

/// Which packets a rule of translation of sources is for: all must hold that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaving {
    /// They come from this network.
    pub source: IpNet,
    /// They leave by this interface.
    pub out: Option<Name>,
    /// They leave by another interface than this one.
    pub not_out: Option<Name>,
    /// They do not go to this network.
    pub not_destination: Option<IpNet>,
}

/// Sources become an address of the interface by which they leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MasqueradeSpec {
    /// Which packets.
    pub leaving: Leaving,
    /// Ports to choose from; `None`: kept if free, or else of the same class.
    pub ports: Option<PortRange>,
    /// Whether a source has the same translation towards everybody (RFC 4787, 4.1).
    pub endpoint_independent: bool,
}

/// Sources become one of some addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnatSpec {
    /// Which packets.
    pub leaving: Leaving,
    /// The addresses, of the family of the packets.
    pub to: AddressRange,
    /// Ports to choose from; `None`: kept if free, or else of the same class.
    pub ports: Option<PortRange>,
    /// Whether a source has the same translation towards everybody.
    pub endpoint_independent: bool,
}

/// What is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Published {
    /// Ports: the n-th of those listened at becomes the n-th of those behind.
    Ports {
        /// TCP or UDP.
        protocol: u8,
        /// The address listened at; `None` for any of the switch's own of the family of `to`.
        listen: Option<IpAddr>,
        /// The ports listened at.
        ports: PortRange,
        /// The address behind.
        to: IpAddr,
        /// The ports behind, as many.
        to_ports: PortRange,
    },
    /// A whole address, and in the other direction the source of what comes from behind.
    Address {
        /// The address listened at.
        listen: IpAddr,
        /// The address behind, of the same family.
        to: IpAddr,
    },
}

/// Destinations become others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublishSpec {
    /// What is published.
    pub published: Published,
}

/// Packets whose source is not translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExemptSpec {
    /// They come from this network.
    pub source: IpNet,
    /// They go to this network, of the same family.
    pub destination: IpNet,
}

/// A rule to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NatSpec {
    /// Source address of the way out.
    Masquerade(MasqueradeSpec),
    /// Given source addresses.
    Snat(SnatSpec),
    /// Another destination.
    Publish(PublishSpec),
    /// Nothing.
    Exempt(ExemptSpec),
}

impl NatSpec {
    /// The word for this kind of rule.
    pub fn kind(&self) -> NatKind {
        match self {
            Self::Masquerade(_) => NatKind::Masquerade,
            Self::Snat(_) => NatKind::Snat,
            Self::Publish(_) => NatKind::Publish,
            Self::Exempt(_) => NatKind::Exempt,
        }
    }

    /// The packets that it is for, where it translates sources.
    pub fn leaving(&self) -> Option<&Leaving> {
        match self {
            Self::Masquerade(rule) => Some(&rule.leaving),
            Self::Snat(rule) => Some(&rule.leaving),
            Self::Publish(_) | Self::Exempt(_) => None,
        }
    }
}

impl Published {
    /// Whether something could be for both.
    pub fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Address { listen: a, .. }, Self::Address { listen: b, .. }) => a == b,
            (
                Self::Ports { protocol: p, listen: a, ports: m, to, .. },
                Self::Ports { protocol: q, listen: b, ports: n, to: other, .. },
            ) => {
                let address = match (a, b) {
                    (Some(a), Some(b)) => a == b,
                    // Any own address: of the family of what is behind.
                    _ => to.is_ipv4() == other.is_ipv4(),
                };
                p == q && address && m.overlaps(*n)
            }
            // A port of an address beside the whole of it is an exception from it, not a conflict.
            _ => false,
        }
    }

    /// What is listened at, as it is written in requests.
    pub fn listen(&self) -> String {
        match self {
            Self::Ports { listen: None, ports, to, .. } => match to {
                IpAddr::V4(_) => format!("0.0.0.0:{ports}"),
                IpAddr::V6(_) => format!("[::]:{ports}"),
            },
            Self::Ports { listen: Some(listen), ports, .. } => Socket(*listen, *ports).to_string(),
            Self::Address { listen, .. } => listen.to_string(),
        }
    }

    /// What is behind, as it is written in requests.
    pub fn to(&self) -> String {
        match self {
            Self::Ports { to, to_ports, .. } => Socket(*to, *to_ports).to_string(),
            Self::Address { to, .. } => to.to_string(),
        }
    }

    /// The name of the protocol; none for whole addresses.
    pub fn protocol(&self) -> Option<&'static str> {
        match self {
            Self::Ports { protocol: TCP, .. } => Some("tcp"),
            Self::Ports { .. } => Some("udp"),
            Self::Address { .. } => None,
        }
    }
}

impl SnatSpec {
    /// The addresses and ports, as they are written in requests.
    pub fn to(&self) -> String {
        match (self.ports, self.to.first) {
            (None, _) => self.to.to_string(),
            (Some(ports), IpAddr::V4(_)) => format!("{}:{ports}", self.to),
            (Some(ports), IpAddr::V6(_)) => format!("[{}]:{ports}", self.to),
        }
    }
}

struct Socket(IpAddr, PortRange);

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpAddr::V4(address) => write!(f, "{address}:{}", self.1),
            IpAddr::V6(address) => write!(f, "[{address}]:{}", self.1),
        }
    }
}

/// Checks the word for a kind of rule.
///
/// # Errors
/// There is none of that name.
pub fn nat_kind(text: &str) -> Result<NatKind, Invalid> {
    match text {
        "masquerade" => Ok(NatKind::Masquerade),
        "snat" => Ok(NatKind::Snat),
        "publish" => Ok(NatKind::Publish),
        "exempt" => Ok(NatKind::Exempt),
        _ => {
            let rule = "it must be \"masquerade\", \"snat\", \"publish\" or \"exempt\"";
            Err(Invalid::new("kind", format!("kind {text:?} is unknown: {rule}")))
        }
    }
}

fn is_v4(network: IpNet) -> bool {
    matches!(network, IpNet::V4(_))
}

fn leaving(
    source: &str,
    out: Option<&String>,
    not_out: Option<&String>,
    not_destination: Option<&String>,
) -> Result<Leaving, Invalid> {
    let leaving = Leaving {
        source: prefix("source", source)?,
        out: out.map(|text| name("out", text)).transpose()?,
        not_out: not_out.map(|text| name("not_out", text)).transpose()?,
        not_destination: not_destination.map(|text| prefix("not_destination", text)).transpose()?,
    };
    if let (Some(out), Some(not_out)) = (leaving.out, leaving.not_out) {
        let message = format!("not_out {not_out:?} says nothing beside out {out:?}: choose one");
        return Err(Invalid::new("not_out", message));
    }
    if let Some(other) = leaving.not_destination
        && is_v4(other) != is_v4(leaving.source)
    {
        return Err(families("not_destination", &other, "source", &leaving.source));
    }
    Ok(leaving)
}

fn families(
    field: &'static str,
    value: &dyn fmt::Display,
    beside: &str,
    other: &dyn fmt::Display,
) -> Invalid {
    let rule = "both must be IPv4, or both IPv6";
    Invalid::new(field, format!("{field} {value} is of another family than {beside} {other}: {rule}"))
}

impl TryFrom<&api::MasqueradeAdd> for MasqueradeSpec {
    type Error = Invalid;

    fn try_from(asked: &api::MasqueradeAdd) -> Result<Self, Invalid> {
        let api::MasqueradeAdd { source, out, not_out, not_destination, .. } = asked;
        Ok(Self {
            leaving: leaving(source, out.as_ref(), not_out.as_ref(), not_destination.as_ref())?,
            ports: asked.to_ports.as_deref().map(|text| PortRange::parse("to_ports", text)).transpose()?,
            endpoint_independent: asked.endpoint_independent,
        })
    }
}

impl TryFrom<&api::SnatAdd> for SnatSpec {
    type Error = Invalid;

    fn try_from(asked: &api::SnatAdd) -> Result<Self, Invalid> {
        let api::SnatAdd { source, out, not_out, not_destination, .. } = asked;
        let leaving = leaving(source, out.as_ref(), not_out.as_ref(), not_destination.as_ref())?;
        let (addresses, ports) = with_ports(&asked.to);
        let to = AddressRange::parse("to", &addresses)?;
        if to.first.is_ipv4() != is_v4(leaving.source) {
            return Err(families("to", &to, "source", &leaving.source));
        }
        if to.len() > 65_536 {
            let n = to.len();
            return Err(Invalid::new("to", format!("to {to} has {n} addresses: at most 65536 are taken")));
        }
        let ports = ports.map(|text| PortRange::parse("to", text)).transpose()?;
        Ok(Self { leaving, to, ports, endpoint_independent: asked.endpoint_independent })
    }
}

impl TryFrom<&api::PublishAdd> for PublishSpec {
    type Error = Invalid;

    fn try_from(asked: &api::PublishAdd) -> Result<Self, Invalid> {
        let protocol = match asked.proto.as_deref() {
            None => return whole(asked),
            Some("tcp") => TCP,
            Some("udp") => UDP,
            Some(other) => {
                let message = format!("proto {other:?} has no ports to publish: it must be {NAT_PROTOCOLS}");
                return Err(Invalid::new("proto", message));
            }
        };
        let split = |field: &'static str, text: &str| {
            let (address, ports) = with_ports(text);
            let ports = ports.ok_or_else(|| {
                let rule = "it must be ADDRESS:PORT or ADDRESS:PORT-PORT, an IPv6 address in brackets";
                Invalid::new(field, format!("{field} {text:?} has no port: {rule}"))
            })?;
            Ok((address, PortRange::parse(field, ports)?))
        };
        let (address, to_ports) = split("to", &asked.to)?;
        let to = host("to", &address)?;
        let (address, ports) = split("listen", &asked.listen)?;
        let listen = match address.as_str() {
            "" | "*" => None,
            text => {
                let any = text.parse::<IpAddr>().ok().filter(IpAddr::is_unspecified);
                let listen = any.map_or_else(|| host("listen", text), Ok)?;
                if listen.is_ipv4() != to.is_ipv4() {
                    return Err(families("listen", &listen, "to", &to));
                }
                Some(listen).filter(|address| is_host(*address))
            }
        };
        if ports.len() != to_ports.len() {
            let (m, n) = (ports.len(), to_ports.len());
            let message = format!(
                "to {:?} has {n} ports, listen {:?} has {m}: it must be as many",
                asked.to, asked.listen
            );
            return Err(Invalid::new("to", message));
        }
        Ok(Self { published: Published::Ports { protocol, listen, ports, to, to_ports } })
    }
}

/// Without a protocol: an address for an address.
fn whole(asked: &api::PublishAdd) -> Result<PublishSpec, Invalid> {
    let only = |field: &'static str, text: &str| match with_ports(text) {
        (_, Some(_)) => {
            let message = format!("{field} {text:?} has a port: give proto with it, {NAT_PROTOCOLS}");
            Err(Invalid::new(field, message))
        }
        (address, None) => host(field, &address),
    };
    let (listen, to) = (only("listen", &asked.listen)?, only("to", &asked.to)?);
    if listen.is_ipv4() != to.is_ipv4() {
        return Err(families("listen", &listen, "to", &to));
    }
    if listen == to {
        return Err(Invalid::new(
            "to",
            format!("to {to} is what is listened at: it must be another address"),
        ));
    }
    Ok(PublishSpec { published: Published::Address { listen, to } })
}

impl TryFrom<&api::ExemptAdd> for ExemptSpec {
    type Error = Invalid;

    fn try_from(asked: &api::ExemptAdd) -> Result<Self, Invalid> {
        let (source, destination) =
            (prefix("source", &asked.source)?, prefix("destination", &asked.destination)?);
        match is_v4(source) == is_v4(destination) {
            true => Ok(Self { source, destination }),
            false => Err(families("destination", &destination, "source", &source)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publish(proto: Option<&str>, listen: &str, to: &str) -> Result<Published, (&'static str, String)> {
        let asked = api::PublishAdd { proto: proto.map(str::to_owned), listen: listen.into(), to: to.into() };
        PublishSpec::try_from(&asked)
            .map(|spec| spec.published)
            .map_err(|invalid| (invalid.field, invalid.to_string()))
    }

    #[test]
    fn published_ports_are_told_as_they_were_asked() {
        for (proto, listen, to) in [
            (Some("tcp"), "10.0.2.15:5000", "172.18.0.10:80"),
            (Some("udp"), "0.0.0.0:53", "172.18.0.10:53"),
            (Some("tcp"), "10.0.2.15:8000-8010", "172.18.0.10:9000-9010"),
            (Some("tcp"), "[2001:db8::1]:443", "[fd00::10]:8443"),
            (Some("tcp"), "[::]:443", "[fd00::10]:443"),
            (None, "192.0.2.1", "172.18.0.10"),
            (None, "2001:db8::1", "fd00::10"),
        ] {
            let published = publish(proto, listen, to).unwrap();
            assert_eq!((published.listen().as_str(), published.to().as_str()), (listen, to));
            assert_eq!(published.protocol(), proto);
        }
        for any in [":53", "*:53", "0.0.0.0:53"] {
            assert_eq!(publish(Some("udp"), any, "172.18.0.10:53").unwrap().listen(), "0.0.0.0:53");
        }
        assert_eq!(publish(Some("tcp"), "*:443", "[fd00::10]:443").unwrap().listen(), "[::]:443");
    }

    #[test]
    fn what_cannot_be_published_is_named() {
        for (proto, listen, to, field, why) in [
            (Some("icmp"), "*:1", "10.0.0.1:1", "proto", "has no ports to publish"),
            (Some("tcp"), "10.0.0.1", "10.0.0.2:80", "listen", "has no port"),
            (Some("tcp"), "*:80", "10.0.0.2", "to", "has no port"),
            (Some("tcp"), "*:0", "10.0.0.2:80", "listen", "is no port"),
            (Some("tcp"), "*:80", "0.0.0.0:80", "to", "not the address of a host"),
            (Some("tcp"), "127.0.0.1:80", "10.0.0.2:80", "listen", "not the address of a host"),
            (Some("tcp"), "*:80-90", "10.0.0.2:80-91", "to", "has 12 ports"),
            (Some("tcp"), "*:80-90", "10.0.0.2:80", "to", "has 1 ports"),
            (Some("tcp"), "10.0.0.1:80", "[fd00::2]:80", "listen", "another family"),
            (Some("tcp"), "[::]:80", "10.0.0.2:80", "listen", "another family"),
            (None, "10.0.0.1:80", "10.0.0.2", "listen", "give proto"),
            (None, "10.0.0.1", "fd00::2", "listen", "another family"),
            (None, "10.0.0.1", "10.0.0.1", "to", "another address"),
        ] {
            let (at, message) = publish(proto, listen, to).unwrap_err();
            assert!(at == field && message.contains(why), "{listen} {to}: {at}: {message}");
        }
    }

    #[test]
    fn a_port_is_published_once() {
        let port = |listen: &str| publish(Some("tcp"), listen, "172.18.0.10:80").unwrap();
        let range = publish(Some("tcp"), "10.0.0.1:70-90", "172.18.0.10:70-90").unwrap();
        assert!(port("10.0.0.1:80").overlaps(&port("10.0.0.1:80")));
        assert!(port("10.0.0.1:80").overlaps(&port("*:80")) && port("*:80").overlaps(&port("10.0.0.1:80")));
        assert!(range.overlaps(&port("10.0.0.1:80")) && !range.overlaps(&port("10.0.0.1:91")));
        assert!(!port("10.0.0.1:80").overlaps(&port("10.0.0.2:80")));
        assert!(!port("*:80").overlaps(&publish(Some("udp"), "*:80", "172.18.0.10:80").unwrap()));
        assert!(!port("*:80").overlaps(&publish(Some("tcp"), "*:80", "[fd00::10]:80").unwrap()));
        let whole = |listen: &str| publish(None, listen, "172.18.0.10").unwrap();
        assert!(
            whole("10.0.0.1").overlaps(&whole("10.0.0.1")) && !whole("10.0.0.1").overlaps(&whole("10.0.0.2"))
        );
        assert!(!whole("10.0.0.1").overlaps(&port("10.0.0.1:80")));
    }

    fn snat(source: &str, to: &str) -> Result<SnatSpec, (&'static str, String)> {
        let asked = api::SnatAdd { source: source.into(), to: to.into(), ..api::SnatAdd::default() };
        SnatSpec::try_from(&asked).map_err(|invalid| (invalid.field, invalid.to_string()))
    }

    #[test]
    fn sources_become_addresses_and_ports() {
        for (source, to) in [
            ("10.0.3.0/24", "192.0.2.1"),
            ("10.0.3.0/24", "192.0.2.1-192.0.2.9"),
            ("10.0.3.0/24", "192.0.2.1:1024-65535"),
            ("10.0.3.0/24", "192.0.2.1-192.0.2.9:1024-65535"),
            ("fd00::/64", "2001:db8::1"),
            ("fd00::/64", "2001:db8::1-2001:db8::9"),
            ("fd00::/64", "[2001:db8::1]:1024-2047"),
        ] {
            assert_eq!(snat(source, to).unwrap().to(), to);
        }
        let bracketed = snat("fd00::/64", "[2001:db8::1]-[2001:db8::9]:80").unwrap();
        assert_eq!((bracketed.to.len(), bracketed.ports.unwrap().len()), (9, 1));
        for (source, to, field, why) in [
            ("10.0.3.1/24", "192.0.2.1", "source", "write 10.0.3.0/24"),
            ("10.0.3.0/24", "2001:db8::1", "to", "another family"),
            ("10.0.3.0/24", "192.0.2.9-192.0.2.1", "to", "ends before it begins"),
            ("10.0.3.0/24", "192.0.2.1:0", "to", "is no port"),
            ("10.0.3.0/24", "192.0.2.1:9-1", "to", "ends before it begins"),
            ("fd00::/64", "1::-2::", "to", "at most 65536"),
            ("10.0.3.0/24", "", "to", "is no IP address"),
        ] {
            let (at, message) = snat(source, to).unwrap_err();
            assert!(at == field && message.contains(why), "{source} {to}: {at}: {message}");
        }
    }

    #[test]
    fn masquerading_takes_one_condition_on_the_way_out() {
        let asked = api::MasqueradeAdd { source: "10.0.3.0/24".into(), ..api::MasqueradeAdd::default() };
        let masquerade = |change: &dyn Fn(&mut api::MasqueradeAdd)| {
            let mut asked = asked.clone();
            change(&mut asked);
            MasqueradeSpec::try_from(&asked).map_err(|invalid| (invalid.field, invalid.to_string()))
        };
        assert_eq!(masquerade(&|_| ()).unwrap().leaving.out, None);
        let lxc = masquerade(&|m| m.not_destination = Some("10.0.3.0/24".into())).unwrap();
        assert_eq!(lxc.leaving.not_destination, Some(lxc.leaving.source));
        assert_eq!(masquerade(&|m| m.to_ports = Some("1-2".into())).unwrap().ports.unwrap().len(), 2);
        let both = masquerade(&|m| {
            m.out = Some("a".into());
            m.not_out = Some("b".into());
        });
        assert_eq!(both.unwrap_err().0, "not_out");
        let mixed = masquerade(&|m| m.not_destination = Some("fd00::/64".into()));
        assert!(mixed.unwrap_err().1.contains("another family"));
        assert_eq!(masquerade(&|m| m.source = "x".into()).unwrap_err().0, "source");
        assert_eq!(masquerade(&|m| m.out = Some("9".into())).unwrap_err().0, "out");
    }

    #[test]
    fn exemptions_and_kinds() {
        let exempt = |source: &str, destination: &str| {
            let asked = api::ExemptAdd { source: source.into(), destination: destination.into() };
            ExemptSpec::try_from(&asked).map_err(|invalid| invalid.field)
        };
        assert!(exempt("10.0.3.0/24", "10.0.0.0/8").is_ok());
        assert_eq!(exempt("10.0.3.0/24", "fd00::/8"), Err("destination"));
        for kind in [NatKind::Masquerade, NatKind::Snat, NatKind::Publish, NatKind::Exempt] {
            assert_eq!(nat_kind(kind.as_str()), Ok(kind));
        }
        assert!(nat_kind("dnat").is_err());
    }
}
