//! Rules of policy, from requests to what [`crate::policy`] takes.
#![forbid(unsafe_code)]

use ipnet::IpNet;

use super::{Invalid, name, number, port_list, prefix, protocol, protocol_name};
use crate::control::api;
use crate::nat::rule::PortRange;
use crate::packet::ip::{ICMP, ICMPV6, SCTP, TCP, UDP};
use crate::policy::Verdict;
use crate::policy::rule::{Action, Addresses, Rule, Side, State, States, Zone};

/// Highest number of a rule.
pub const POLICY_ID_MAX: u32 = 1_000_000;

/// What bears a name: a port, a bridge, an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A port.
    Port,
    /// A bridge.
    Bridge,
    /// An interface of the switch.
    Interface,
}

const PLACES: [(Place, &str); 3] =
    [(Place::Port, "port"), (Place::Bridge, "bridge"), (Place::Interface, "interface")];

/// A rule to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicySpec {
    /// Its number, 1 to [`POLICY_ID_MAX`], which is its place among the others, too; `None`: behind all of them.
    pub id: Option<u32>,
    /// The rule. Its priority is not chosen yet.
    pub rule: Rule,
}

/// What is to change where no rule fits; what is `None` stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PolicyChange {
    /// What becomes of connections through the switch.
    pub forward: Option<Verdict>,
    /// Whether bridges are closed to each other.
    pub isolation: Option<bool>,
}

impl PolicyChange {
    /// What holds where nobody has said anything.
    pub fn usual() -> Self {
        Self { forward: Some(Verdict::Accept), isolation: Some(false) }
    }
}

/// Networks, `!` before those that are not meant.
fn networks(field: &'static str, text: &str, into: &mut Addresses) -> Result<(), Invalid> {
    for part in text.split(',') {
        match part.trim().strip_prefix('!') {
            Some(except) => into.except.push(prefix(field, except)?),
            None => into.within.push(prefix(field, part.trim())?),
        }
    }
    Ok(())
}

/// Reads `from` and `source`, or `to` and `destination`. `known` tells what bears a name.
fn side(
    field: &'static str,
    asked: Option<&str>,
    beside: &'static str,
    addresses: Option<&str>,
    known: &dyn Fn(&str) -> Vec<Place>,
) -> Result<(Side, Addresses), Invalid> {
    let mut within = Addresses::default();
    if let Some(text) = addresses {
        networks(beside, text, &mut within)?;
    }
    let Some(text) = asked else { return Ok((Side::default(), within)) };
    let (place, negated) = text.strip_prefix('!').map_or((text, false), |place| (place, true));
    let is_network = |text: &str| text.contains(['/', ',']) || text.parse::<std::net::IpAddr>().is_ok();
    if is_network(place) {
        if addresses.is_some() {
            let message = format!("{field} {text} says the same as {beside}: give one of them");
            return Err(Invalid::new(field, message));
        }
        networks(field, text, &mut within)?;
        return Ok((Side::default(), within));
    }
    if place == "switch" {
        return Ok((Side { zone: Zone::Switch, negated }, within));
    }
    let prefixed = place
        .split_once(':')
        .and_then(|(kind, name)| Some((PLACES.iter().find(|(_, word)| *word == kind)?, name)));
    let rule = "it must be a network, an address, switch, or a port, bridge or interface such as port:web";
    let bad = |_| Invalid::new(field, format!("{field} {text:?} is no place of packets: {rule}"));
    let zone = match prefixed {
        Some((&(kind, word), bare)) => {
            let name = name(field, bare).map_err(bad)?;
            if !known(bare).contains(&kind) {
                let message = format!(
                    "{field} {text}: {word} {bare:?} does not exist: '{word} list' shows those that do"
                );
                return Err(Invalid::new(field, message));
            }
            (kind, name)
        }
        None => {
            let name = name(field, place).map_err(bad)?;
            match known(place)[..] {
                [kind] => (kind, name),
                [] => {
                    let message = format!(
                        "{field} {text:?} does not exist: there is no port, bridge or interface of that name"
                    );
                    return Err(Invalid::new(field, message));
                }
                [kind, ..] => {
                    let word = word(kind);
                    let message = format!(
                        "{field} {text:?} is the name of several things: say which, such as {word}:{place}"
                    );
                    return Err(Invalid::new(field, message));
                }
            }
        }
    };
    let zone = match zone {
        (Place::Port, name) => Zone::Port(name),
        (Place::Bridge, name) => Zone::Bridge(name),
        (Place::Interface, name) => Zone::Interface(name),
    };
    Ok((Side { zone, negated }, within))
}

fn word(place: Place) -> &'static str {
    PLACES.iter().find(|(other, _)| *other == place).map_or("port", |(_, word)| word)
}

/// The word for what becomes of packets.
fn action(text: &str, mark: Option<i64>) -> Result<Action, Invalid> {
    match (text, mark) {
        ("mark", Some(mark)) => return Ok(Action::Mark(number("mark", mark, 1, u32::MAX)?)),
        ("mark", None) => return Err(Invalid::new("mark", "action \"mark\" needs a mark".to_owned())),
        (_, None) => {}
        (_, Some(mark)) => {
            return Err(Invalid::new("mark", format!("mark {mark} needs the action mark, not {text:?}")));
        }
    }
    let actions = [Action::Accept, Action::Drop, Action::Reject, Action::Log];
    actions.into_iter().find(|action| action.as_str() == text).ok_or_else(|| {
        let rule = "it must be accept, drop, reject, log or mark";
        Invalid::new("action", format!("action {text:?} is unknown: {rule}"))
    })
}

const STATES: [(State, &str); 4] = [
    (State::New, "new"),
    (State::Established, "established"),
    (State::Related, "related"),
    (State::Invalid, "invalid"),
];

fn states(text: &str) -> Result<States, Invalid> {
    let named = |part: &str| STATES.iter().find(|(_, name)| part.trim().eq_ignore_ascii_case(name));
    let found: Option<Vec<State>> =
        text.split(',').map(|part| named(part).map(|(state, _)| *state)).collect();
    found.map(States::from_iter).ok_or_else(|| {
        let rule = "it must be new, established, related or invalid, or a list of those";
        Invalid::new("state", format!("state {text:?} is unknown: {rule}"))
    })
}

/// Checks the number of a rule.
///
/// # Errors
/// Out of range.
pub fn policy_id(value: i64) -> Result<u32, Invalid> {
    number("id", value, 1, POLICY_ID_MAX)
}

impl PolicySpec {
    /// Checks a rule. `known` tells which things bear a name.
    ///
    /// # Errors
    /// A field breaks a rule, or names what is not there.
    pub fn new(asked: &api::PolicyAdd, known: &dyn Fn(&str) -> Vec<Place>) -> Result<Self, Invalid> {
        let mut rule = Rule::new(action(&asked.action, asked.mark)?);
        (rule.from, rule.source) =
            side("from", asked.from.as_deref(), "source", asked.source.as_deref(), known)?;
        (rule.to, rule.destination) =
            side("to", asked.to.as_deref(), "destination", asked.destination.as_deref(), known)?;
        rule.protocol = asked.proto.as_deref().map(|text| protocol("proto", text)).transpose()?;
        let ports = |field: &'static str, text: &Option<String>| match text {
            None => Ok(Vec::new()),
            Some(text) => match rule.protocol {
                Some(TCP | UDP | SCTP) => port_list(field, text),
                _ => Err(Invalid::new(field, format!("{field} {text:?} needs proto: tcp, udp or sctp"))),
            },
        };
        (rule.source_ports, rule.destination_ports) =
            (ports("sport", &asked.sport)?, ports("dport", &asked.dport)?);
        rule.icmp_type = match (asked.icmp_type, rule.protocol) {
            (None, _) => None,
            (Some(value), Some(ICMP | ICMPV6)) => Some(number("icmp_type", value, 0, 255)?),
            (Some(value), _) => {
                let message = format!("icmp_type {value} needs proto: icmp or icmpv6");
                return Err(Invalid::new("icmp_type", message));
            }
        };
        if let Some(text) = asked.state.as_deref() {
            rule.states = states(text)?;
        }
        rule.log = asked.log;
        let rule = rule.checked().map_err(|message| Invalid { field: "action", message })?;
        Ok(Self { id: asked.id.map(policy_id).transpose()?, rule })
    }
}

/// A rule as it is listed, under its number and with what it counted.
pub fn policy_view(id: u32, rule: &Rule, packets: u64, bytes: u64) -> api::PolicyRule {
    let place = |side: &Side| {
        let not = if side.negated { "!" } else { "" };
        match side.zone {
            Zone::Any => None,
            Zone::Switch => Some(format!("{not}switch")),
            Zone::Port(name) => Some(format!("{not}port:{name}")),
            Zone::Bridge(name) => Some(format!("{not}bridge:{name}")),
            Zone::Interface(name) => Some(format!("{not}interface:{name}")),
        }
    };
    let networks = |addresses: &Addresses| {
        let within = addresses.within.iter().map(IpNet::to_string);
        joined(within.chain(addresses.except.iter().map(|network| format!("!{network}"))))
    };
    let ports = |ranges: &[PortRange]| joined(ranges.iter().map(ToString::to_string));
    let named =
        STATES.iter().filter(|(state, _)| rule.states.contains(*state)).map(|(_, name)| (*name).to_owned());
    api::PolicyRule {
        id,
        from: place(&rule.from),
        to: place(&rule.to),
        source: networks(&rule.source),
        destination: networks(&rule.destination),
        proto: rule.protocol.map(protocol_name),
        sport: ports(&rule.source_ports),
        dport: ports(&rule.destination_ports),
        icmp_type: rule.icmp_type,
        state: if rule.states == States::ALL { None } else { joined(named) },
        action: rule.action.as_str().to_owned(),
        mark: if let Action::Mark(mark) = rule.action { Some(mark) } else { None },
        log: rule.log,
        packets,
        bytes,
    }
}

/// A list as one text; none for an empty one.
fn joined(texts: impl Iterator<Item = String>) -> Option<String> {
    let texts: Vec<_> = texts.collect();
    Some(texts.join(",")).filter(|text| !text.is_empty())
}

impl TryFrom<&api::PolicySet> for PolicyChange {
    type Error = Invalid;

    fn try_from(asked: &api::PolicySet) -> Result<Self, Invalid> {
        let verdicts = [Verdict::Accept, Verdict::Drop, Verdict::Reject];
        let verdict = |text: &str| verdicts.into_iter().find(|verdict| verdict.as_str() == text);
        let forward = match asked.forward.as_deref() {
            None => None,
            Some(text) => Some(verdict(text).ok_or_else(|| {
                let rule = "it must be accept, drop or reject";
                Invalid::new("forward", format!("forward {text:?} is unknown: {rule}"))
            })?),
        };
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

    fn known(name: &str) -> Vec<Place> {
        match name {
            "web" => vec![Place::Port],
            "br0" => vec![Place::Bridge, Place::Interface],
            _ => Vec::new(),
        }
    }

    fn rule(change: impl FnOnce(&mut api::PolicyAdd)) -> Result<api::PolicyRule, (&'static str, String)> {
        let mut asked = api::PolicyAdd { action: "accept".into(), ..api::PolicyAdd::default() };
        change(&mut asked);
        PolicySpec::new(&asked, &known)
            .map(|spec| policy_view(spec.id.unwrap_or(1), &spec.rule, 3, 180))
            .map_err(|invalid| (invalid.field, invalid.to_string()))
    }

    fn text(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn sides_are_places_and_networks() {
        let from = |from: &str| rule(|r| r.from = text(from)).map(|r| (r.from, r.source));
        for network in ["10.0.3.0/24", "fd00::1/128", "10.0.0.0/8,!10.0.3.0/24", "!10.0.3.0/24"] {
            assert_eq!(from(network).unwrap(), (None, text(network)));
        }
        assert_eq!(from("10.0.3.5").unwrap(), (None, text("10.0.3.5/32")));
        assert_eq!(from("web").unwrap(), (text("port:web"), None));
        for place in ["bridge:br0", "!bridge:br0", "interface:br0", "switch", "!switch"] {
            assert_eq!(from(place).unwrap(), (text(place), None));
        }
        assert!(from("br0").unwrap_err().1.contains("say which, such as bridge:br0"));
        assert!(from("none").unwrap_err().1.contains("from \"none\" does not exist"));
        assert!(from("port:br0").unwrap_err().1.contains("port \"br0\" does not exist"));
        assert!(from("host:br0").unwrap_err().1.contains("no place of packets"));
        assert!(from("10.0.3.1/24").unwrap_err().1.contains("write 10.0.3.0/24"));
        let both = rule(|r| {
            r.to = text("web");
            r.destination = text("10.0.3.5");
        });
        assert_eq!(both.unwrap().destination, text("10.0.3.5/32"));
        let twice = rule(|r| {
            r.to = text("10.0.3.5");
            r.destination = text("10.0.3.5");
        });
        assert!(twice.unwrap_err().1.contains("says the same as destination"));
    }

    #[test]
    fn what_does_not_go_together_is_named() {
        let families = rule(|r| {
            r.from = text("10.0.0.0/8");
            r.to = text("fd00::/8");
        });
        assert!(families.unwrap_err().1.contains("family"));
        assert!(rule(|r| r.dport = text("80")).unwrap_err().1.contains("dport \"80\" needs proto"));
        assert!(rule(|r| r.icmp_type = Some(8)).unwrap_err().1.contains("icmp_type 8 needs proto"));
        let icmp = |icmp_type| {
            rule(|r| {
                r.proto = text("icmp");
                r.icmp_type = Some(icmp_type);
            })
        };
        assert_eq!(icmp(8).unwrap().icmp_type, Some(8));
        assert_eq!(icmp(256).unwrap_err().0, "icmp_type");
    }

    #[test]
    fn a_rule_is_listed_as_it_was_asked() {
        let view = rule(|r| {
            r.id = Some(7);
            r.from = text("web");
            r.to = text("10.0.3.0/24");
            r.proto = text("tcp");
            r.sport = text("1024-65535");
            r.dport = text("80,443,8000-8100");
            r.state = text("NEW,related");
            r.action = "reject".into();
            r.log = true;
        })
        .unwrap();
        assert_eq!((view.proto.as_deref(), view.sport.as_deref()), (Some("tcp"), Some("1024-65535")));
        assert_eq!(
            (view.dport.as_deref(), view.state.as_deref()),
            (Some("80,443,8000-8100"), Some("new,related"))
        );
        assert_eq!(
            (view.id, view.packets, view.bytes, view.action.as_str(), view.log),
            (7, 3, 180, "reject", true)
        );
        assert_eq!(rule(|_| ()).unwrap().state, None);
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
        assert_eq!(change(Some("drop"), None).unwrap().forward, Some(Verdict::Drop));
        assert!(change(Some("log"), None).unwrap_err().contains("it must be accept, drop or reject"));
        assert!(change(None, None).unwrap_err().contains("give at least one"));
    }
}
