//! Rules of network address translation, from requests to what [`crate::nat`] takes.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use ipnet::IpNet;

use super::address::with_ports;
use super::{Invalid, address_range, host, name, number, port_range, prefix, protocol_name};
use crate::control::api::{self, NatKind};
use crate::nat::rule::{Masquerade, OneToOne, Out, PortRange, Publish, Rule, Selector, Snat};
use crate::packet::ip::{SCTP, TCP, UDP};

fn out(out: Option<&String>, not_out: Option<&String>) -> Result<Out, Invalid> {
    match (out, not_out) {
        (None, None) => Ok(Out::Any),
        (Some(text), None) => Ok(Out::Only(name("out", text)?)),
        (None, Some(text)) => Ok(Out::Except(name("not_out", text)?)),
        (Some(out), Some(not_out)) => {
            let message = format!("not_out {not_out:?} says nothing beside out {out:?}: choose one");
            Err(Invalid::new("not_out", message))
        }
    }
}

fn selector(
    source: &str,
    only: Option<&String>,
    not: Option<&String>,
    not_destination: &[String],
) -> Result<Selector, Invalid> {
    let source = prefix("source", source)?;
    let mut except = Vec::new();
    for text in not_destination {
        let network = prefix("not_destination", text)?;
        if is_v4(&network) != is_v4(&source) {
            return Err(families("not_destination", &network, "source", &source));
        }
        except.push(network);
    }
    Ok(Selector { source, out: out(only, not)?, except })
}

fn is_v4(network: &IpNet) -> bool {
    matches!(network, IpNet::V4(_))
}

fn families(
    field: &'static str,
    value: &dyn std::fmt::Display,
    beside: &str,
    other: &dyn std::fmt::Display,
) -> Invalid {
    let rule = "both must be IPv4, or both IPv6";
    Invalid::new(field, format!("{field} {value} is of another family than {beside} {other}: {rule}"))
}

impl TryFrom<&api::MasqueradeAdd> for Rule {
    type Error = Invalid;

    fn try_from(asked: &api::MasqueradeAdd) -> Result<Self, Invalid> {
        let api::MasqueradeAdd { source, out, not_out, not_destination, .. } = asked;
        Ok(Self::Masquerade(Masquerade {
            selector: selector(source, out.as_ref(), not_out.as_ref(), not_destination)?,
            ports: asked.to_ports.as_deref().map(|text| port_range("to_ports", text)).transpose()?,
            endpoint_independent: asked.endpoint_independent,
        }))
    }
}

impl TryFrom<&api::SnatAdd> for Rule {
    type Error = Invalid;

    fn try_from(asked: &api::SnatAdd) -> Result<Self, Invalid> {
        let api::SnatAdd { source, out, not_out, not_destination, .. } = asked;
        let selector = selector(source, out.as_ref(), not_out.as_ref(), not_destination)?;
        let (addresses, ports) = with_ports(&asked.to);
        let to = address_range("to", &addresses)?;
        if to.first.is_ipv4() != is_v4(&selector.source) {
            return Err(families("to", &to, "source", &selector.source));
        }
        let ports = ports.map(|text| port_range("to", text)).transpose()?;
        Ok(Self::Snat(Snat { selector, to, ports, endpoint_independent: asked.endpoint_independent }))
    }
}

/// Reads `ADDRESS:PORTS`.
fn socket(field: &'static str, text: &str) -> Result<(String, PortRange), Invalid> {
    let (address, ports) = with_ports(text);
    let ports = ports.ok_or_else(|| {
        let rule = "it must be ADDRESS:PORT or ADDRESS:PORT-PORT, an IPv6 address in brackets";
        Invalid::new(field, format!("{field} {text:?} has no port: {rule}"))
    })?;
    Ok((address, port_range(field, ports)?))
}

impl TryFrom<&api::PublishAdd> for Rule {
    type Error = Invalid;

    fn try_from(asked: &api::PublishAdd) -> Result<Self, Invalid> {
        let protocol = match asked.proto.as_str() {
            "tcp" => TCP,
            "udp" => UDP,
            "sctp" => SCTP,
            other => {
                let rule = "it must be \"tcp\", \"udp\" or \"sctp\"";
                let message = format!("proto {other:?} has no ports to publish: {rule}");
                return Err(Invalid::new("proto", message));
            }
        };
        let (address, to_ports) = socket("to", &asked.to)?;
        let to = host("to", &address)?;
        let (address, ports) = socket("listen", &asked.listen)?;
        let listen = match address.as_str() {
            "" | "*" => None,
            text => {
                let any = text.parse::<IpAddr>().ok().filter(IpAddr::is_unspecified);
                let listen = any.map_or_else(|| host("listen", text), Ok)?;
                if listen.is_ipv4() != to.is_ipv4() {
                    return Err(families("listen", &listen, "to", &to));
                }
                Some(listen).filter(|_| any.is_none())
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
        let ingress = asked.ingress.as_deref().map(|text| name("in", text)).transpose()?;
        Ok(Self::Publish(Publish { protocol, listen, ingress, ports, to, to_ports }))
    }
}

impl TryFrom<&api::OneToOneAdd> for Rule {
    type Error = Invalid;

    fn try_from(asked: &api::OneToOneAdd) -> Result<Self, Invalid> {
        let (outside, inside) = (prefix("outside", &asked.outside)?, prefix("inside", &asked.inside)?);
        if is_v4(&outside) != is_v4(&inside) {
            return Err(families("inside", &inside, "outside", &outside));
        }
        if outside.prefix_len() != inside.prefix_len() {
            let message =
                format!("inside {inside} is not as large as outside {outside}: one address stands for one");
            return Err(Invalid::new("inside", message));
        }
        let out = out(asked.out.as_ref(), None)?;
        Ok(Self::OneToOne(OneToOne { outside, inside, out }))
    }
}

/// Checks the number of a rule.
///
/// # Errors
/// Out of range.
pub fn nat_id(value: Option<i64>) -> Result<Option<u32>, Invalid> {
    value.map(|id| number("id", id, 1, u32::MAX)).transpose()
}

/// Checks the word for a kind of rule.
///
/// # Errors
/// There is none of that name.
pub fn nat_kind(text: &str) -> Result<NatKind, Invalid> {
    let kinds = [NatKind::Masquerade, NatKind::Snat, NatKind::Publish, NatKind::OneToOne];
    kinds.into_iter().find(|kind| kind.as_str() == text).ok_or_else(|| {
        let rule = "it must be \"masquerade\", \"snat\", \"publish\" or \"one-to-one\"";
        Invalid::new("kind", format!("kind {text:?} is unknown: {rule}"))
    })
}

/// An address and ports as they are written in requests.
fn written(address: &str, ports: Option<PortRange>) -> String {
    match ports {
        None => address.to_owned(),
        Some(ports) if address.contains(':') => format!("[{address}]:{ports}"),
        Some(ports) => format!("{address}:{ports}"),
    }
}

/// A rule as it is listed, in the words of the request that made it.
pub fn nat_view(id: u32, rule: &Rule, connections: u64, exhausted: u64) -> api::NatRule {
    let mut view = api::NatRule {
        id,
        kind: NatKind::Masquerade,
        source: None,
        out: None,
        not_out: None,
        not_destination: Vec::new(),
        proto: None,
        listen: None,
        ingress: None,
        to: None,
        to_ports: None,
        endpoint_independent: false,
        outside: None,
        inside: None,
        connections,
        exhausted,
    };
    let leaves = |view: &mut api::NatRule, out: &Out| match *out {
        Out::Any => (),
        Out::Only(name) => view.out = Some(name),
        Out::Except(name) => view.not_out = Some(name),
    };
    let selects = |view: &mut api::NatRule, selector: &Selector| {
        view.source = Some(selector.source);
        view.not_destination.clone_from(&selector.except);
        leaves(view, &selector.out);
    };
    match rule {
        Rule::Masquerade(rule) => {
            selects(&mut view, &rule.selector);
            view.to_ports = rule.ports.map(|ports| ports.to_string());
            view.endpoint_independent = rule.endpoint_independent;
        }
        Rule::Snat(rule) => {
            view.kind = NatKind::Snat;
            selects(&mut view, &rule.selector);
            view.to = Some(written(&rule.to.to_string(), rule.ports));
            view.endpoint_independent = rule.endpoint_independent;
        }
        Rule::Publish(rule) => {
            view.kind = NatKind::Publish;
            view.proto = Some(protocol_name(rule.protocol));
            let any = if rule.to.is_ipv4() { "0.0.0.0" } else { "::" };
            let listen = rule.listen.map_or_else(|| any.to_owned(), |address| address.to_string());
            view.listen = Some(written(&listen, Some(rule.ports)));
            view.ingress = rule.ingress;
            view.to = Some(written(&rule.to.to_string(), Some(rule.to_ports)));
        }
        Rule::OneToOne(rule) => {
            view.kind = NatKind::OneToOne;
            view.outside = Some(rule.outside);
            view.inside = Some(rule.inside);
            leaves(&mut view, &rule.out);
        }
    }
    view
}

#[cfg(test)]
mod tests {
    use super::*;

    type Answer = Result<api::NatRule, (&'static str, String)>;

    fn view<T>(asked: &T) -> Answer
    where
        Rule: for<'a> TryFrom<&'a T, Error = Invalid>,
    {
        let rule = Rule::try_from(asked).map_err(|invalid| (invalid.field, invalid.to_string()))?;
        // What was checked here is never refused later.
        let rule = rule.checked().map_err(|refusal| ("checked", refusal.to_string()))?;
        Ok(nat_view(1, &rule, 2, 3))
    }

    fn publish(proto: &str, listen: &str, to: &str) -> Answer {
        let asked = api::PublishAdd {
            proto: proto.into(),
            listen: listen.into(),
            to: to.into(),
            ..Default::default()
        };
        view(&asked)
    }

    #[test]
    fn published_ports_are_told_as_they_were_asked() {
        for (proto, listen, to) in [
            ("tcp", "10.0.2.15:5000", "172.18.0.10:80"),
            ("udp", "0.0.0.0:53", "172.18.0.10:53"),
            ("sctp", "10.0.2.15:36412", "172.18.0.10:36412"),
            ("tcp", "10.0.2.15:8000-8010", "172.18.0.10:9000-9010"),
            ("tcp", "[2001:db8::1]:443", "[fd00::10]:8443"),
            ("tcp", "[::]:443", "[fd00::10]:443"),
        ] {
            let rule = publish(proto, listen, to).unwrap();
            assert_eq!((rule.proto.as_deref(), rule.kind), (Some(proto), NatKind::Publish));
            assert_eq!((rule.listen.as_deref(), rule.to.as_deref()), (Some(listen), Some(to)));
        }
        for any in [":53", "*:53", "0.0.0.0:53"] {
            assert_eq!(publish("udp", any, "172.18.0.10:53").unwrap().listen.unwrap(), "0.0.0.0:53");
        }
        assert_eq!(publish("tcp", "*:443", "[fd00::10]:443").unwrap().listen.unwrap(), "[::]:443");
    }

    #[test]
    fn what_cannot_be_published_is_named() {
        for (proto, listen, to, field, why) in [
            ("icmp", "*:1", "10.0.0.1:1", "proto", "has no ports to publish"),
            ("tcp", "10.0.0.1", "10.0.0.2:80", "listen", "has no port"),
            ("tcp", "*:80", "10.0.0.2", "to", "has no port"),
            ("tcp", "*:0", "10.0.0.2:80", "listen", "is no port"),
            ("tcp", "*:80", "0.0.0.0:80", "to", "not the address of a host"),
            ("tcp", "127.0.0.1:80", "10.0.0.2:80", "listen", "not the address of a host"),
            ("tcp", "*:80-90", "10.0.0.2:80-91", "to", "has 12 ports"),
            ("tcp", "*:80-90", "10.0.0.2:80", "to", "has 1 ports"),
            ("tcp", "10.0.0.1:80", "[fd00::2]:80", "listen", "another family"),
            ("tcp", "[::]:80", "10.0.0.2:80", "listen", "another family"),
        ] {
            let (at, message) = publish(proto, listen, to).unwrap_err();
            assert!(at == field && message.contains(why), "{listen} {to}: {at}: {message}");
        }
    }

    fn snat(source: &str, to: &str) -> Answer {
        view(&api::SnatAdd { source: source.into(), to: to.into(), ..api::SnatAdd::default() })
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
            let rule = snat(source, to).unwrap();
            assert_eq!((rule.kind, rule.to.as_deref()), (NatKind::Snat, Some(to)));
            assert_eq!((rule.id, rule.connections, rule.exhausted), (1, 2, 3));
        }
        let bracketed = snat("fd00::/64", "[2001:db8::1]-[2001:db8::9]:80").unwrap();
        assert_eq!(bracketed.to.unwrap(), "[2001:db8::1-2001:db8::9]:80");
        for (source, to, field, why) in [
            ("10.0.3.1/24", "192.0.2.1", "source", "write 10.0.3.0/24"),
            ("10.0.3.0/24", "2001:db8::1", "to", "another family"),
            ("10.0.3.0/24", "192.0.2.9-192.0.2.1", "to", "ends before it begins"),
            ("10.0.3.0/24", "192.0.2.1:0", "to", "is no port"),
            ("10.0.3.0/24", "192.0.2.1:9-1", "to", "ends before it begins"),
            ("10.0.3.0/24", "", "to", "is no IP address"),
        ] {
            let (at, message) = snat(source, to).unwrap_err();
            assert!(at == field && message.contains(why), "{source} {to}: {at}: {message}");
        }
    }

    #[test]
    fn masquerading_takes_one_condition_on_the_way_out() {
        let masquerade = |change: &dyn Fn(&mut api::MasqueradeAdd)| {
            let mut asked =
                api::MasqueradeAdd { source: "10.0.3.0/24".into(), ..api::MasqueradeAdd::default() };
            change(&mut asked);
            view(&asked)
        };
        assert_eq!(masquerade(&|_| ()).unwrap().out, None);
        let lxc = masquerade(&|m| m.not_destination = vec!["10.0.3.0/24".into()]).unwrap();
        assert_eq!(lxc.not_destination, [lxc.source.unwrap()]);
        assert_eq!(masquerade(&|m| m.to_ports = Some("1-2".into())).unwrap().to_ports.unwrap(), "1-2");
        assert_eq!(masquerade(&|m| m.not_out = Some("gw".into())).unwrap().not_out.unwrap(), "gw");
        assert!(masquerade(&|m| m.endpoint_independent = true).unwrap().endpoint_independent);
        let both = masquerade(&|m| {
            m.out = Some("a".into());
            m.not_out = Some("b".into());
        });
        assert_eq!(both.unwrap_err().0, "not_out");
        let mixed = masquerade(&|m| m.not_destination = vec!["fd00::/64".into()]);
        assert!(mixed.unwrap_err().1.contains("another family"));
        assert_eq!(masquerade(&|m| m.source = "x".into()).unwrap_err().0, "source");
        assert_eq!(masquerade(&|m| m.out = Some("9".into())).unwrap_err().0, "out");
    }

    #[test]
    fn addresses_stand_for_as_many_others() {
        let one = |outside: &str, inside: &str| {
            view(&api::OneToOneAdd { outside: outside.into(), inside: inside.into(), ..Default::default() })
        };
        let rule = one("192.0.2.1", "172.18.0.10").unwrap();
        assert_eq!(
            (rule.kind, rule.outside.unwrap().to_string().as_str()),
            (NatKind::OneToOne, "192.0.2.1/32")
        );
        assert_eq!(one("192.0.2.0/28", "10.0.3.0/28").unwrap().inside.unwrap().prefix_len(), 28);
        assert_eq!(one("192.0.2.0/28", "10.0.3.0/29").unwrap_err().0, "inside");
        assert!(one("192.0.2.1", "fd00::1").unwrap_err().1.contains("another family"));
    }

    #[test]
    fn kinds_have_words() {
        for kind in [NatKind::Masquerade, NatKind::Snat, NatKind::Publish, NatKind::OneToOne] {
            assert_eq!(nat_kind(kind.as_str()), Ok(kind));
        }
        assert!(nat_kind("dnat").is_err());
    }
}
