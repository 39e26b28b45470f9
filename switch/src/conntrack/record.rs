//! Connections for people and scripts: what a listing shows, and how it is filtered. Names follow conntrack(8).
#![forbid(unsafe_code)]

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::entry::Half;
use super::key::{ANSWER, Family};
use super::state::{Phase, State};
use super::table::{Slot, Table};
use crate::packet::ip::{ICMP, ICMPV6};

/// Protocols that have names.
const NAMES: [(&str, u8); 8] = [
    ("icmp", ICMP),
    ("tcp", 6),
    ("udp", 17),
    ("dccp", 33),
    ("gre", 47),
    ("icmpv6", ICMPV6),
    ("sctp", 132),
    ("udplite", 136),
];

/// A protocol number that is written as a name where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "NameOrNumber")]
pub struct Protocol(pub u8);

impl Protocol {
    /// Its name, `unknown` if it has none.
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(_, number)| *number == self.0).map_or("unknown", |(name, _)| name)
    }

    fn has_ports(self) -> bool {
        matches!(self.0, 6 | 17 | 132)
    }

    fn has_queries(self) -> bool {
        matches!(self.0, ICMP | ICMPV6)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            "unknown" => write!(f, "{}", self.0),
            name => f.write_str(name),
        }
    }
}

impl From<Protocol> for String {
    fn from(protocol: Protocol) -> Self {
        protocol.to_string()
    }
}

impl FromStr for Protocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let lower = text.to_ascii_lowercase();
        let lower = if lower == "ipv6-icmp" { "icmpv6" } else { &lower };
        let named = NAMES.iter().find(|(name, _)| *name == lower).map(|(_, number)| *number);
        named.or_else(|| lower.parse().ok()).map(Self).ok_or_else(|| {
            format!("protocol {text:?} is neither a number from 0 to 255 nor one of tcp, udp, icmp, icmpv6, sctp, gre, dccp, udplite")
        })
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum NameOrNumber {
    Name(String),
    Number(u8),
}

impl TryFrom<NameOrNumber> for Protocol {
    type Error = String;

    fn try_from(value: NameOrNumber) -> Result<Self, String> {
        match value {
            NameOrNumber::Name(name) => name.parse(),
            NameOrNumber::Number(number) => Ok(Self(number)),
        }
    }
}

/// One direction of a connection, as its packets come in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Side {
    /// Who sends.
    pub source: IpAddr,
    /// To whom.
    pub dest: IpAddr,
    /// Port that it comes from; protocols with ports only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sport: Option<u16>,
    /// Port that it goes to; protocols with ports only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dport: Option<u16>,
    /// Type of the message; ICMP only.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<u8>,
    /// Code of the message; ICMP only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<u8>,
    /// Identifier of the query; ICMP only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u16>,
    /// Packets so far.
    pub packets: u64,
    /// Their bytes, from the IP header on.
    pub bytes: u64,
}

/// A connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The protocol.
    pub proto: Protocol,
    /// Seconds until it ends if no more packets come.
    pub timeout: u32,
    /// State, of TCP only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// The direction of the first packet.
    #[serde(flatten)]
    pub original: Side,
    /// The way back, as answers come in.
    pub reply: Side,
    /// Packets have come both ways.
    pub replied: bool,
    /// It is not dropped early when room is needed.
    pub assured: bool,
    /// It belongs to another connection.
    pub related: bool,
    /// Number of the port by which the first packet came in.
    pub ingress: u16,
}

impl Record {
    pub(super) fn of<F: Family>(table: &Table<F>, slot: Slot, now: u32) -> Self {
        let state = table.state(slot.original(), now);
        let (first, second) = (table.first(slot), table.second(slot));
        let name = state.phase().name();
        Self {
            proto: Protocol(first.key().protocol),
            timeout: table.remaining(slot, now).unwrap_or(0),
            state: (!name.is_empty()).then(|| name.to_owned()),
            original: Side::of(first),
            reply: Side::of(second),
            replied: state.seen_reply(),
            assured: state.assured(),
            related: state.status() & State::RELATED != 0,
            ingress: table.ingress_port(slot.original()),
        }
    }

    /// Whether source or destination are translated.
    pub fn is_translated(&self) -> (bool, bool) {
        let (there, back) = (&self.original, &self.reply);
        (
            (there.source, there.sport, there.id) != (back.dest, back.dport, back.id),
            (there.dest, there.dport) != (back.source, back.sport),
        )
    }
}

impl Side {
    fn of<F: Family>(half: &Half<F>) -> Self {
        let key = half.key();
        let protocol = Protocol(key.protocol);
        let query = protocol.has_queries();
        let kind = (key.destination_port & !ANSWER) as u8;
        let kind = if key.destination_port & ANSWER == 0 { kind } else { answer_to(F::V6, kind) };
        Self {
            source: F::to_ip(key.source),
            dest: F::to_ip(key.destination),
            sport: protocol.has_ports().then_some(key.source_port),
            dport: protocol.has_ports().then_some(key.destination_port),
            kind: query.then_some(kind),
            code: query.then_some(0),
            id: query.then_some(key.source_port),
            packets: half.packets(),
            bytes: half.bytes(),
        }
    }
}

/// The type of the answer to an ICMP query.
fn answer_to(v6: bool, request: u8) -> u8 {
    match (v6, request) {
        (false, 8) => 0,
        (_, request) => request.saturating_add(1),
    }
}

/// Which connections are meant; what is not given matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Filter {
    /// Protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proto: Option<Protocol>,
    /// Source of the first packet, an address or a network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<IpNet>,
    /// Destination of the first packet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dest: Option<IpNet>,
    /// Source port of the first packet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sport: Option<u16>,
    /// Destination port of the first packet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dport: Option<u16>,
    /// Source of answers: whom the first packet reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply_source: Option<IpNet>,
    /// Destination of answers: whom the first packet seemed to come from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply_dest: Option<IpNet>,
    /// Source port of answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply_sport: Option<u16>,
    /// Destination port of answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply_dport: Option<u16>,
    /// State of TCP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Number of the port by which the first packet came in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress: Option<u16>,
    /// Only those whose source is translated.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub src_nat: bool,
    /// Only those whose destination is translated.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dst_nat: bool,
}

impl Filter {
    /// Whether a connection is meant.
    pub fn matches(&self, record: &Record) -> bool {
        fn is<T: PartialEq>(wanted: Option<T>, value: T) -> bool {
            wanted.is_none_or(|wanted| wanted == value)
        }
        let within = |net: &Option<IpNet>, address: IpAddr| net.is_none_or(|net| net.contains(&address));
        let (source_translated, destination_translated) = record.is_translated();
        is(self.proto, record.proto)
            && within(&self.source, record.original.source)
            && within(&self.dest, record.original.dest)
            && self.sport.is_none_or(|port| record.original.sport == Some(port))
            && self.dport.is_none_or(|port| record.original.dport == Some(port))
            && within(&self.reply_source, record.reply.source)
            && within(&self.reply_dest, record.reply.dest)
            && self.reply_sport.is_none_or(|port| record.reply.sport == Some(port))
            && self.reply_dport.is_none_or(|port| record.reply.dport == Some(port))
            && self.state.as_ref().is_none_or(|state| record.state.as_ref() == Some(state))
            && is(self.ingress, record.ingress)
            && (!self.src_nat || source_translated)
            && (!self.dst_nat || destination_translated)
    }

    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The names that [`Filter::state`] may have.
pub fn state_names() -> impl Iterator<Item = &'static str> {
    Phase::ALL.iter().map(|phase| phase.name()).filter(|name| !name.is_empty())
}
