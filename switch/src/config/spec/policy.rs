//! Rules of policy.
#![forbid(unsafe_code)]

use std::fmt;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::protocol::SCTP;
use super::{Invalid, Name, PortRange, name, number, prefix, protocol, protocol_name};
use crate::control::api;
use crate::packet::ip::{ICMP, ICMPV6, TCP, UDP};

/// Highest number of a rule.
pub const POLICY_ID_MAX: u32 = 1_000_000;

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It goes on.
    Accept,
    /// It vanishes.
    Drop,
    /// It vanishes, and its sender is told: with a RST (TCP) or an ICMP error.
    Reject,
    /// It is logged, and the next rule is looked at.
    Log,
}

impl Action {
    /// The word of command line, configuration and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Drop => "drop",
            Self::Reject => "reject",
            Self::Log => "log",
        }
    }
}

/// What a packet can come from or go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PlaceKind {
    /// A port.
    Port,
    /// A bridge.
    Bridge,
    /// An interface of the switch.
    Interface,
}

impl PlaceKind {
    /// The word before the colon.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Port => "port",
            Self::Bridge => "bridge",
            Self::Interface => "interface",
        }
    }
}

/// A port, bridge or interface: `port:web`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Which of them.
    pub kind: PlaceKind,
    /// Its name.
    pub name: Name,
}

impl Place {
    /// Reads `KIND:NAME`; `None` if the text is not of this form.
    fn parse(text: &str) -> Option<Self> {
        let (kind, name) = text.split_once(':')?;
        let kind = match kind {
            "port" => PlaceKind::Port,
            "bridge" => PlaceKind::Bridge,
            "interface" => PlaceKind::Interface,
            _ => return None,
        };
        Some(Self { kind, name: name.parse().ok()? })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind.as_str(), self.name)
    }
}

impl Serialize for Place {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Place {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom(format!("{text:?} is no KIND:NAME")))
    }
}

/// States of connections, as a set of bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct States(u8);

impl States {
    /// The first packet of a connection.
    pub const NEW: Self = Self(1);
    /// A packet of one that was answered.
    pub const ESTABLISHED: Self = Self(2);
    /// The first of one that belongs to another, or an error that does.
    pub const RELATED: Self = Self(4);
    /// A packet that belongs nowhere.
    pub const INVALID: Self = Self(8);
    /// All of them.
    pub const ALL: Self = Self(15);

    const NAMED: [(Self, &'static str); 4] = [
        (Self::NEW, "new"),
        (Self::ESTABLISHED, "established"),
        (Self::RELATED, "related"),
        (Self::INVALID, "invalid"),
    ];

    /// Whether all of `other` are among these.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    fn parse(text: &str) -> Result<Self, Invalid> {
        let mut states = Self(0);
        for part in text.split(',') {
            let found = Self::NAMED.iter().find(|(_, name)| part.trim().eq_ignore_ascii_case(name));
            let (state, _) = found.ok_or_else(|| {
                let rule = "it must be new, established, related or invalid, or a list of those";
                Invalid::new("state", format!("state {text:?} is unknown: {rule}"))
            })?;
            states.0 |= state.0;
        }
        Ok(states)
    }
}

impl fmt::Display for States {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> =
            Self::NAMED.iter().filter(|(state, _)| self.contains(*state)).map(|(_, name)| *name).collect();
        f.write_str(&names.join(","))
    }
}

/// A rule to be: it is for packets for which all holds that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicySpec {
    /// Its number, 1 to [`POLICY_ID_MAX`]; `None`: behind all others.
    pub id: Option<u32>,
    /// Where they come from.
    pub from: Option<Place>,
    /// Where they go.
    pub to: Option<Place>,
    /// Their source.
    pub source: Option<IpNet>,
    /// Their destination, of the family of the source.
    pub destination: Option<IpNet>,
    /// Their protocol.
    pub protocol: Option<u8>,
    /// Their source port; empty for any. The protocol has ports then.
    pub source_ports: Vec<PortRange>,
    /// Their destination port; empty for any. The protocol has ports then.
    pub destination_ports: Vec<PortRange>,
    /// Their ICMP type; the protocol is ICMP or ICMPv6 then.
    pub icmp_type: Option<u8>,
    /// The state of their connection.
    pub states: Option<States>,
    /// What becomes of them.
    pub action: Action,
}

/// What is to change where no rule fits; what is `None` stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PolicyChange {
    /// What becomes of connections through the switch: accepted or dropped.
    pub forward: Option<Action>,
    /// Whether bridges are closed to each other.
    pub isolation: Option<bool>,
}

/// What one side of a rule is: a place, a network, or both.
type Side = (Option<Place>, Option<IpNet>);

/// Reads `from` and `source`, or `to` and `destination`. `known` tells what bears a name.
fn side(
    field: &'static str,
    asked: Option<&str>,
    beside: &'static str,
    network: Option<&str>,
    known: &dyn Fn(&str) -> Vec<PlaceKind>,
) -> Result<Side, Invalid> {
    let network = network.map(|text| prefix(beside, text)).transpose()?;
    let Some(text) = asked else { return Ok((None, network)) };
    if text.contains('/') || text.parse::<std::net::IpAddr>().is_ok() {
        let place = prefix(field, text)?;
        return match network {
            None => Ok((None, Some(place))),
            Some(_) => {
                let message = format!("{field} {place} says the same as {beside}: give one of them");
                Err(Invalid::new(field, message))
            }
        };
    }
    if let Some(place) = Place::parse(text) {
        return match known(&place.name).contains(&place.kind) {
            true => Ok((Some(place), network)),
            false => {
                let kind = place.kind.as_str();
                let message = format!(
                    "{field} {text}: {kind} {:?} does not exist: '{kind} list' shows those that do",
                    place.name
                );
                Err(Invalid::new(field, message))
            }
        };
    }
    let rule = "it must be a network, an address, or a port, bridge or interface such as port:web";
    let name = name(field, text)
        .map_err(|_| Invalid::new(field, format!("{field} {text:?} is no place of packets: {rule}")))?;
    match known(&name)[..] {
        [kind] => Ok((Some(Place { kind, name }), network)),
        [] => Err(Invalid::new(
            field,
            format!("{field} {text:?} does not exist: there is no port, bridge or interface of that name"),
        )),
        [kind, ..] => {
            let kind = kind.as_str();
            let message =
                format!("{field} {text:?} is the name of several things: say which, such as {kind}:{text}");
            Err(Invalid::new(field, message))
        }
    }
}

/// The word for what becomes of packets.
fn action(field: &'static str, text: &str, all: bool) -> Result<Action, Invalid> {
    match text {
        "accept" => Ok(Action::Accept),
        "drop" => Ok(Action::Drop),
        "reject" if all => Ok(Action::Reject),
        "log" if all => Ok(Action::Log),
        _ => {
            let rule = if all { "accept, drop, reject or log" } else { "accept or drop" };
            Err(Invalid::new(field, format!("{field} {text:?} is unknown: it must be {rule}")))
        }
    }
}

/// Checks the number of a rule.
pub fn policy_id(value: i64) -> Result<u32, Invalid> {
    number("id", value, 1, POLICY_ID_MAX)
}

impl PolicySpec {
    /// Checks a rule. `known` tells which things bear a name.
    ///
    /// # Errors
    /// A field breaks a rule, or names what is not there.
    pub fn new(asked: &api::PolicyAdd, known: &dyn Fn(&str) -> Vec<PlaceKind>) -> Result<Self, Invalid> {
        let (from, source) = side("from", asked.from.as_deref(), "source", asked.source.as_deref(), known)?;
        let (to, destination) =
            side("to", asked.to.as_deref(), "destination", asked.destination.as_deref(), known)?;
        let v4 = |network: &IpNet| matches!(network, IpNet::V4(_));
        if let (Some(source), Some(destination)) = (&source, &destination)
            && v4(source) != v4(destination)
        {
            let rule = "both must be IPv4, or both IPv6";
            let message =
                format!("destination {destination} is of another family than source {source}: {rule}");
            return Err(Invalid::new("destination", message));
        }
        let proto = asked.proto.as_deref().map(|text| protocol("proto", text)).transpose()?;
        let family = source.as_ref().or(destination.as_ref()).map(v4);
        if let (Some(ICMP), Some(false)) | (Some(ICMPV6), Some(true)) = (proto, family) {
            let message =
                "proto icmp belongs to IPv4 and icmpv6 to IPv6: the addresses are of the other family";
            return Err(Invalid::new("proto", message));
        }
        let ports = |field: &'static str, text: &Option<String>| match text {
            None => Ok(Vec::new()),
            Some(text) => match proto {
                Some(TCP | UDP | SCTP) => PortRange::list(field, text),
                _ => Err(Invalid::new(field, format!("{field} {text:?} needs proto: tcp, udp or sctp"))),
            },
        };
        let (source_ports, destination_ports) =
            (ports("sport", &asked.sport)?, ports("dport", &asked.dport)?);
        let icmp_type = match (asked.icmp_type, proto) {
            (None, _) => None,
            (Some(value), Some(ICMP | ICMPV6)) => Some(number("icmp_type", value, 0, 255)?),
            (Some(value), _) => {
                let message = format!("icmp_type {value} needs proto: icmp or icmpv6");
                return Err(Invalid::new("icmp_type", message));
            }
        };
        Ok(Self {
            id: asked.id.map(policy_id).transpose()?,
            from,
            to,
            source,
            destination,
            protocol: proto,
            source_ports,
            destination_ports,
            icmp_type,
            states: asked.state.as_deref().map(States::parse).transpose()?,
            action: action("action", &asked.action, true)?,
        })
    }

    /// The rule as it is listed, under its number and with what it counted.
    pub fn view(&self, id: u32, packets: u64, bytes: u64) -> api::PolicyRule {
        let ports = |ranges: &[PortRange]| {
            let texts: Vec<_> = ranges.iter().map(ToString::to_string).collect();
            Some(texts.join(",")).filter(|text| !text.is_empty())
        };
        api::PolicyRule {
            id,
            from: self.from,
            to: self.to,
            source: self.source,
            destination: self.destination,
            proto: self.protocol.map(protocol_name),
            sport: ports(&self.source_ports),
            dport: ports(&self.destination_ports),
            icmp_type: self.icmp_type,
            state: self.states.map(|states| states.to_string()),
            action: self.action,
            packets,
            bytes,
        }
    }
}

impl TryFrom<&api::PolicySet> for PolicyChange {
    type Error = Invalid;

    fn try_from(asked: &api::PolicySet) -> Result<Self, Invalid> {
        let forward = asked.forward.as_deref().map(|text| action("forward", text, false)).transpose()?;
        let change = Self { forward, isolation: asked.isolation };
        if change == Self::default() {
            let message = "nothing of the policy is to change: give at least one of forward and isolation";
            return Err(Invalid::new("forward", message));
        }
        Ok(change)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(name: &str) -> Vec<PlaceKind> {
        match name {
            "web" => vec![PlaceKind::Port],
            "br0" => vec![PlaceKind::Bridge, PlaceKind::Interface],
            _ => Vec::new(),
        }
    }

    fn rule(change: impl FnOnce(&mut api::PolicyAdd)) -> Result<PolicySpec, (&'static str, String)> {
        let mut asked = api::PolicyAdd { action: "accept".into(), ..api::PolicyAdd::default() };
        change(&mut asked);
        PolicySpec::new(&asked, &known).map_err(|invalid| (invalid.field, invalid.to_string()))
    }

    fn text(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn sides_are_places_and_networks() {
        let from =
            |from: &str| rule(|r| r.from = text(from)).map(|r| (r.from.map(|p| p.to_string()), r.source));
        let network = |text: &str| text.parse::<IpNet>().ok();
        assert_eq!(from("10.0.3.0/24").unwrap(), (None, network("10.0.3.0/24")));
        assert_eq!(from("fd00::1").unwrap(), (None, network("fd00::1/128")));
        assert_eq!(from("web").unwrap(), (text("port:web"), None));
        assert_eq!(from("bridge:br0").unwrap(), (text("bridge:br0"), None));
        assert!(from("br0").unwrap_err().1.contains("say which, such as bridge:br0"));
        assert!(from("none").unwrap_err().1.contains("from \"none\" does not exist"));
        assert!(from("port:br0").unwrap_err().1.contains("port \"br0\" does not exist"));
        assert!(from("host:br0").unwrap_err().1.contains("no place of packets"));
        assert!(from("10.0.3.1/24").unwrap_err().1.contains("write 10.0.3.0/24"));
        let both = rule(|r| {
            r.to = text("web");
            r.destination = text("10.0.3.5");
        });
        assert_eq!(both.unwrap().destination, network("10.0.3.5/32"));
        let twice = rule(|r| {
            r.to = text("10.0.3.5");
            r.destination = text("10.0.3.5");
        });
        assert!(twice.unwrap_err().1.contains("says the same as destination"));
    }

    #[test]
    fn what_does_not_go_together_is_named() {
        let both = |from: &str, to: &str, proto: &str| {
            rule(|r| {
                r.from = text(from);
                r.to = text(to);
                r.proto = text(proto);
            })
        };
        assert_eq!(both("10.0.0.0/8", "fd00::/8", "tcp").unwrap_err().0, "destination");
        assert_eq!(both("10.0.0.0/8", "10.0.0.0/8", "icmpv6").unwrap_err().0, "proto");
        assert_eq!(both("web", "fd00::/8", "icmp").unwrap_err().0, "proto");
        assert!(both("web", "fd00::/8", "icmpv6").is_ok());
        assert!(rule(|r| r.dport = text("80")).unwrap_err().1.contains("dport \"80\" needs proto"));
        assert!(rule(|r| r.icmp_type = Some(8)).unwrap_err().1.contains("icmp_type 8 needs proto"));
        let icmp = |icmp_type| {
            rule(|r| {
                r.proto = text("icmp");
                r.icmp_type = Some(icmp_type);
            })
        };
        assert_eq!(icmp(8).unwrap().icmp_type, Some(8));
        assert!(icmp(256).is_err());
    }

    #[test]
    fn a_rule_is_listed_as_it_was_asked() {
        let spec = rule(|r| {
            r.id = Some(7);
            r.from = text("web");
            r.to = text("10.0.3.0/24");
            r.proto = text("tcp");
            r.sport = text("1024-65535");
            r.dport = text("80,443,8000-8100");
            r.state = text("NEW,related");
            r.action = "reject".into();
        })
        .unwrap();
        let view = spec.view(7, 3, 180);
        assert_eq!((view.proto.as_deref(), view.sport.as_deref()), (Some("tcp"), Some("1024-65535")));
        assert_eq!(
            (view.dport.as_deref(), view.state.as_deref()),
            (Some("80,443,8000-8100"), Some("new,related"))
        );
        assert_eq!((view.id, view.packets, view.bytes, view.action), (7, 3, 180, Action::Reject));
        let json = serde_json::to_value(&view).unwrap();
        assert_eq!(json["from"], "port:web");
        assert_eq!(serde_json::from_value::<api::PolicyRule>(json).unwrap(), view);
    }

    #[test]
    fn numbers_states_and_actions_have_bounds() {
        assert!(
            rule(|r| r.id = Some(0))
                .unwrap_err()
                .1
                .starts_with("id 0 is out of range: it must be 1 to 1000000")
        );
        assert!(rule(|r| r.id = Some(1_000_001)).is_err() && rule(|r| r.id = Some(1_000_000)).is_ok());
        assert_eq!(rule(|r| r.state = text("old")).unwrap_err().0, "state");
        assert_eq!(rule(|r| r.action = "allow".into()).unwrap_err().0, "action");
        assert_eq!(rule(|r| r.proto = text("256")).unwrap_err().0, "proto");
        let change = |forward: Option<&str>, isolation| {
            let asked = api::PolicySet { forward: forward.map(str::to_owned), isolation };
            PolicyChange::try_from(&asked).map_err(|e| e.to_string())
        };
        assert_eq!(change(Some("drop"), None).unwrap().forward, Some(Action::Drop));
        assert!(change(Some("reject"), None).unwrap_err().contains("it must be accept or drop"));
        assert!(change(None, None).unwrap_err().contains("give at least one"));
    }
}
