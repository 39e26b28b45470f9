//! What an operator may say about translation: plain data, checked one by one here and against each other by
//! [`super::RuleSet`].
#![forbid(unsafe_code)]

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::config::name::Name;
use crate::config::spec::protocol_name;
use crate::packet::ip::{SCTP, TCP, UDP};
use crate::refusal::Refusal;

/// Ports from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    /// The lowest, at least 1.
    pub first: u16,
    /// The highest, at least `first`.
    pub last: u16,
}

/// Addresses from `first` to `last`, both included, of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRange {
    /// The lowest.
    pub first: IpAddr,
    /// The highest, at least `first`.
    pub last: IpAddr,
}

/// By which interface a packet must leave for a rule to apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Out {
    /// Whichever.
    Any,
    /// This one (iptables' `-o`).
    Only(Name),
    /// Any but this one (iptables' `! -o`).
    Except(Name),
}

/// Which packets a rule about sources is for: those from `source` that leave by `out`.
///
/// Of several rules for a packet the one with the longest source prefix counts, then one with [`Out::Only`], then the
/// one that was added first. If that one excepts the destination, the packet is not translated at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    /// Where the packet comes from; 0.0.0.0/0 or ::/0 for anywhere.
    pub source: IpNet,
    /// By which interface it leaves.
    pub out: Out,
    /// Destinations to which nothing is translated (iptables' `! -d`).
    pub except: Vec<IpNet>,
}

/// The source becomes the address of the interface that the packet leaves by: of its addresses the first on the next
/// hop's network, or else the first (IPv6: the one most like the destination).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Masquerade {
    /// For which packets.
    pub selector: Selector,
    /// The ports to use; all if `None`. The port stays as it is if it is among them and free.
    pub ports: Option<PortRange>,
    /// Whether a client's port is translated to the same port whatever it talks to (RFC 4787, REQ-1).
    pub endpoint_independent: bool,
}

/// The source becomes an address of a pool. A client keeps its address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snat {
    /// For which packets.
    pub selector: Selector,
    /// The pool.
    pub to: AddressRange,
    /// As with [`Masquerade`].
    pub ports: Option<PortRange>,
    /// As with [`Masquerade`].
    pub endpoint_independent: bool,
}

/// A service inside, reached by an address and port of the switch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    /// TCP (6) or UDP (17).
    pub protocol: u8,
    /// The address that clients call; `None`: every address of every interface (of the family of `to`).
    pub listen: Option<IpAddr>,
    /// The interface that calls must come in by; `None`: whichever.
    pub ingress: Option<Name>,
    /// The ports that clients call.
    pub ports: PortRange,
    /// Who answers.
    pub to: IpAddr,
    /// On which ports, as many as `ports`, in the same order.
    pub to_ports: PortRange,
}

/// Addresses outside that stand for addresses inside, one for one and in both directions.
///
/// Whatever calls an outside address reaches the inside one, unless that port is published otherwise; what an inside
/// address sends is from the outside one when it leaves by `out`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OneToOne {
    /// The addresses outside.
    pub outside: IpNet,
    /// The addresses inside, as many.
    pub inside: IpNet,
    /// Where outside is; [`Out::Any`]: behind every interface but the one that the packet came in by.
    pub out: Out,
}

/// A rule of translation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    /// See [`Masquerade`].
    Masquerade(Masquerade),
    /// See [`Snat`].
    Snat(Snat),
    /// See [`Publish`].
    Publish(Publish),
    /// See [`OneToOne`].
    OneToOne(OneToOne),
}

impl Rule {
    /// The word of commands and listings.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Masquerade(_) => "masquerade",
            Self::Snat(_) => "snat",
            Self::Publish(_) => "publish",
            Self::OneToOne(_) => "one-to-one",
        }
    }

    /// The interface that the rule names, if it names one.
    pub fn interface(&self) -> Option<Name> {
        match self {
            Self::Masquerade(rule) => rule.selector.out.name(),
            Self::Snat(rule) => rule.selector.out.name(),
            Self::Publish(rule) => rule.ingress,
            Self::OneToOne(rule) => rule.out.name(),
        }
    }

    /// Checks what can be checked without other rules, and clears the host bits of prefixes.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn checked(mut self) -> Result<Self, Refusal> {
        match &mut self {
            Self::Masquerade(rule) => {
                rule.selector.check()?;
                check_ports(rule.ports)?;
            }
            Self::Snat(rule) => {
                rule.selector.check()?;
                check_ports(rule.ports)?;
                rule.to.check("to")?;
                same_family("to", rule.to.first, "source", rule.selector.source.addr())?;
            }
            Self::Publish(rule) => rule.check()?,
            Self::OneToOne(rule) => {
                (rule.outside, rule.inside) = (rule.outside.trunc(), rule.inside.trunc());
                same_family("outside", rule.outside.addr(), "inside", rule.inside.addr())?;
                if rule.outside.prefix_len() != rule.inside.prefix_len() {
                    return Err(Refusal::new(format!(
                        "outside {} and inside {} are of unequal length: one address stands for one",
                        rule.outside, rule.inside
                    )));
                }
                if overlap(&rule.outside, &rule.inside) {
                    return Err(Refusal::new(format!(
                        "outside {} and inside {} overlap: an address cannot stand for itself",
                        rule.outside, rule.inside
                    )));
                }
            }
        }
        Ok(self)
    }
}

impl Publish {
    fn check(&self) -> Result<(), Refusal> {
        if !matches!(self.protocol, TCP | UDP | SCTP) {
            return Err(Refusal::new(format!(
                "protocol {} has no ports to publish: it must be tcp, udp or sctp",
                self.protocol
            )));
        }
        self.ports.check("listen")?;
        self.to_ports.check("to")?;
        if self.ports.len() != self.to_ports.len() {
            return Err(Refusal::new(format!(
                "ports {} are {} and ports {} are {}: there must be as many to listen on as to go to",
                self.ports,
                self.ports.len(),
                self.to_ports,
                self.to_ports.len()
            )));
        }
        if !is_host(self.to) {
            return Err(Refusal::new(format!("to {}: it must be the address of one host", self.to)));
        }
        if let Some(listen) = self.listen {
            if !is_host(listen) {
                return Err(Refusal::new(format!(
                    "listen {listen}: it must be the address of one host, or left out for every own address"
                )));
            }
            same_family("listen", listen, "to", self.to)?;
            if listen == self.to && self.ports == self.to_ports {
                return Err(Refusal::new(format!(
                    "{listen} port {} is published as itself: there is nothing to translate",
                    self.ports
                )));
            }
        }
        Ok(())
    }

    /// What it listens on, for people.
    pub fn listening(&self) -> String {
        let protocol = protocol_name(self.protocol);
        let address = match self.listen {
            Some(IpAddr::V6(v6)) => format!("[{v6}]"),
            Some(IpAddr::V4(v4)) => v4.to_string(),
            None if self.to.is_ipv6() => "[::]".to_owned(),
            None => "0.0.0.0".to_owned(),
        };
        format!("{protocol} {address}:{}", self.ports)
    }

    /// Whether some packet would be for both.
    pub(super) fn clashes(&self, other: &Self) -> bool {
        let either = |mine: Option<Name>, theirs: Option<Name>| {
            mine.zip(theirs).is_none_or(|(mine, theirs)| mine == theirs)
        };
        self.protocol == other.protocol
            && self.to.is_ipv4() == other.to.is_ipv4()
            && self.ports.first <= other.ports.last
            && other.ports.first <= self.ports.last
            && self.listen.zip(other.listen).is_none_or(|(mine, theirs)| mine == theirs)
            && either(self.ingress, other.ingress)
    }
}

impl Selector {
    fn check(&mut self) -> Result<(), Refusal> {
        self.source = self.source.trunc();
        for except in &mut self.except {
            *except = except.trunc();
            same_family("except", except.addr(), "source", self.source.addr())?;
        }
        Ok(())
    }
}

impl Out {
    /// The interface that it names.
    pub fn name(&self) -> Option<Name> {
        match *self {
            Self::Any => None,
            Self::Only(name) | Self::Except(name) => Some(name),
        }
    }
}

impl fmt::Display for Out {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any interface"),
            Self::Only(name) => f.write_str(name),
            Self::Except(name) => write!(f, "any interface but {}", name.as_str()),
        }
    }
}

impl PortRange {
    /// A range of one.
    pub fn single(port: u16) -> Self {
        Self { first: port, last: port }
    }

    /// How many.
    #[expect(clippy::len_without_is_empty, reason = "there is no empty range")]
    pub fn len(&self) -> u32 {
        u32::from(self.last.saturating_sub(self.first)) + 1
    }

    /// Whether `port` is one of them.
    #[inline]
    pub fn contains(&self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    fn check(&self, field: &str) -> Result<(), Refusal> {
        if self.first == 0 || self.first > self.last {
            return Err(Refusal::new(format!(
                "{field} ports {}-{}: the first must be at least 1 and not above the last",
                self.first, self.last
            )));
        }
        Ok(())
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            return write!(f, "{}", self.first);
        }
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl AddressRange {
    /// Whether `address` is one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.first.is_ipv4() && (self.first..=self.last).contains(&address)
    }

    fn check(&self, field: &str) -> Result<(), Refusal> {
        same_family(field, self.first, field, self.last)?;
        if self.first > self.last {
            return Err(Refusal::new(format!(
                "{field} {self}: the first address must not be above the last"
            )));
        }
        if !is_host(self.first) || !is_host(self.last) {
            return Err(Refusal::new(format!("{field} {self}: these must be addresses of hosts")));
        }
        Ok(())
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            return write!(f, "{}", self.first);
        }
        write!(f, "{}-{}", self.first, self.last)
    }
}

fn check_ports(ports: Option<PortRange>) -> Result<(), Refusal> {
    ports.map_or(Ok(()), |ports| ports.check("to"))
}

fn is_host(address: IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    !address.is_unspecified() && !address.is_multicast() && !broadcast
}

fn same_family(field: &str, address: IpAddr, other: &str, with: IpAddr) -> Result<(), Refusal> {
    if address.is_ipv4() == with.is_ipv4() {
        return Ok(());
    }
    Err(Refusal::new(format!(
        "{field} {address} and {other} {with}: both must be IPv4 or both IPv6, addresses are not translated between them"
    )))
}

pub(super) fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}
