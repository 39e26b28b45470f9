//! What an operator may say about who talks to whom: plain data, checked here.
#![forbid(unsafe_code)]

use std::fmt;

use ipnet::IpNet;

use crate::config::name::Name;
use crate::nat::rule::PortRange;
use crate::packet::ip::{ICMP, ICMPV6, SCTP, TCP, UDP};
use crate::refusal::Refusal;

/// The priority of a rule for which none is given.
pub const PRIORITY_DEFAULT: u32 = 1000;
/// Most rules of a policy.
pub const RULES_MAX: usize = 16_384;
/// Most prefixes of one rule, and most ranges of ports.
pub const RANGES_MAX: usize = 1024;

/// Most prefixes and ranges of ports of all rules together: what is compiled of them stays within some hundred
/// megabytes even if every one of them overlaps.
pub const RANGES_TOTAL_MAX: usize = 131_072;

/// One end of a conversation: where packets come from or go to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Zone {
    /// Anywhere.
    #[default]
    Any,
    /// A port of the switch.
    Port(Name),
    /// A bridge.
    Bridge(Name),
    /// An interface of the switch (iptables' `-i` and `-o`).
    Interface(Name),
    /// The switch itself: its own addresses.
    Switch,
}

/// A [`Zone`], or everything but it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Side {
    /// The zone.
    pub zone: Zone,
    /// Everything but the zone is meant.
    pub negated: bool,
}

impl From<Zone> for Side {
    fn from(zone: Zone) -> Self {
        Self { zone, negated: false }
    }
}

/// Addresses of packets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// Those that are meant; none: all of both families.
    pub within: Vec<IpNet>,
    /// Of these, those that are not.
    pub except: Vec<IpNet>,
}

/// What conntrack says of a packet that asks the policy, as `-m conntrack --ctstate`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// It begins a connection.
    New = 0,
    /// It belongs to a connection that was accepted before.
    Established = 1,
    /// It begins a connection that another one announced.
    Related = 2,
    /// It begins nothing and belongs to nothing.
    Invalid = 3,
}

/// A set of [`State`]s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct States(u8);

impl States {
    /// Every state.
    pub const ALL: Self = Self(0b1111);

    /// Whether `state` is in the set.
    pub fn contains(self, state: State) -> bool {
        self.0 >> state as u8 & 1 == 1
    }
}

impl Default for States {
    fn default() -> Self {
        Self::ALL
    }
}

impl FromIterator<State> for States {
    fn from_iter<I: IntoIterator<Item = State>>(states: I) -> Self {
        Self(states.into_iter().fold(0, |set, state| set | 1 << state as u8))
    }
}

/// What a rule does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Let it pass, and with it the connection that it begins.
    Accept,
    /// Drop it silently.
    Drop,
    /// Drop it and tell the sender: TCP by a reset, everything else by ICMP.
    Reject,
    /// Write it to the log and go on with the next rule.
    Log,
    /// Give it this mark, not 0, for services that are known by marks, and go on with the next rule. Asked before any
    /// address is translated and before it is known where the packet goes.
    Mark(u32),
}

impl Action {
    /// The word of commands and listings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Drop => "drop",
            Self::Reject => "reject",
            Self::Log => "log",
            Self::Mark(_) => "mark",
        }
    }
}

/// A rule. Whatever is not said matches everything.
///
/// Addresses and ports are those between the two ends: after the translation of the destination (the server inside,
/// not the address that was called) and before that of the source, as in iptables' FORWARD chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Rules are asked from the lowest number to the highest; equals in the order in which they were added.
    pub priority: u32,
    /// Where the packet came in.
    pub from: Side,
    /// Where it is to leave.
    pub to: Side,
    /// Who sends.
    pub source: Addresses,
    /// To whom.
    pub destination: Addresses,
    /// Protocol number.
    pub protocol: Option<u8>,
    /// Ports that it comes from; for TCP, UDP and SCTP.
    pub source_ports: Vec<PortRange>,
    /// Ports that it goes to; for TCP, UDP and SCTP.
    pub destination_ports: Vec<PortRange>,
    /// The type of an ICMP request (8, 13, 15, 17; ICMPv6: 128).
    pub icmp_type: Option<u8>,
    /// States of the packet.
    pub states: States,
    /// What is done.
    pub action: Action,
    /// Whether the log shall tell, too.
    pub log: bool,
}

impl Rule {
    /// A rule that matches everything.
    pub fn new(action: Action) -> Self {
        Self {
            priority: PRIORITY_DEFAULT,
            from: Side::default(),
            to: Side::default(),
            source: Addresses::default(),
            destination: Addresses::default(),
            protocol: None,
            source_ports: Vec::new(),
            destination_ports: Vec::new(),
            icmp_type: None,
            states: States::ALL,
            action,
            log: false,
        }
    }

    /// Checks what can be checked without other rules, and clears the host bits of prefixes.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn checked(mut self) -> Result<Self, Refusal> {
        for (field, side) in [("from", self.from), ("to", self.to)] {
            if side.negated && side.zone == Zone::Any {
                return Err(Refusal::new(format!("{field} anything but anywhere matches nothing")));
            }
        }
        self.source.check("source")?;
        self.destination.check("destination")?;
        if !(0..=1).any(|v6| self.source.has(v6 == 1) && self.destination.has(v6 == 1)) {
            return Err(Refusal::new(
                "source and destination have no family in common: no packet is IPv4 at one end and IPv6 at the other",
            ));
        }
        for (field, ports) in
            [("source-port", &self.source_ports), ("destination-port", &self.destination_ports)]
        {
            if !ports.is_empty() && !matches!(self.protocol, Some(TCP | UDP | SCTP)) {
                return Err(Refusal::new(format!("{field} needs the protocol tcp, udp or sctp")));
            }
            if ports.len() > RANGES_MAX {
                return Err(Refusal::new(format!(
                    "{field} has {} ranges: at most {RANGES_MAX}",
                    ports.len()
                )));
            }
            if let Some(wrong) = ports.iter().find(|range| range.first > range.last) {
                return Err(Refusal::new(format!(
                    "{field} {}-{}: the first must not be above the last",
                    wrong.first, wrong.last
                )));
            }
        }
        if let Some(kind) = self.icmp_type {
            let fits = match self.protocol {
                Some(ICMP) => matches!(kind, 8 | 13 | 15 | 17),
                Some(ICMPV6) => kind == 128,
                _ => return Err(Refusal::new("icmp-type needs the protocol icmp or icmpv6")),
            };
            if !fits {
                return Err(Refusal::new(format!(
                    "icmp-type {kind} is no request: it must be 8, 13, 15 or 17, for icmpv6 128; answers and errors \
                     pass with what they belong to"
                )));
            }
        }
        if let Action::Mark(mark) = self.action {
            if mark == 0 {
                return Err(Refusal::new("mark 0 is no mark: it must be 1 to 4294967295"));
            }
            if self.to != Side::default() {
                return Err(Refusal::new(
                    "a rule that marks cannot say where packets go: that is decided later; name destinations instead",
                ));
            }
        }
        if self.states.0 & 0b1111 == 0 {
            return Err(Refusal::new("a rule for no state matches nothing"));
        }
        if self.states == States::from_iter([State::Established]) && !matches!(self.action, Action::Accept) {
            return Err(Refusal::new(
                "a rule for state established alone decides nothing: what belongs to an accepted connection is not \
                 asked again; flush the connections instead",
            ));
        }
        Ok(self)
    }
}

impl Rule {
    /// Its prefixes and ranges of ports.
    pub(super) fn ranges(&self) -> usize {
        let addresses = |addresses: &Addresses| addresses.within.len() + addresses.except.len();
        let ports = self.source_ports.len() + self.destination_ports.len();
        addresses(&self.source) + addresses(&self.destination) + ports
    }
}

impl Addresses {
    fn check(&mut self, field: &str) -> Result<(), Refusal> {
        if self.within.len() + self.except.len() > RANGES_MAX {
            return Err(Refusal::new(format!(
                "{field} has {} prefixes: at most {RANGES_MAX}",
                self.within.len() + self.except.len()
            )));
        }
        for net in self.within.iter_mut().chain(&mut self.except) {
            *net = net.trunc();
        }
        let covered = |net: &IpNet| self.except.iter().any(|except| except.contains(net));
        if !self.within.is_empty() && self.within.iter().all(covered) {
            return Err(Refusal::new(format!("{field}: nothing is left, all of it is excepted")));
        }
        Ok(())
    }

    /// Whether addresses of a family can be among them.
    pub(super) fn has(&self, v6: bool) -> bool {
        self.within.is_empty() || self.within.iter().any(|net| net.addr().is_ipv6() == v6)
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::Port(name) => write!(f, "port {}", name.as_str()),
            Self::Bridge(name) => write!(f, "bridge {}", name.as_str()),
            Self::Interface(name) => write!(f, "interface {}", name.as_str()),
            Self::Switch => f.write_str("switch"),
        }
    }
}
