//! Which connections are meant, and the bounds of their table.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Invalid, number, prefix, protocol};
use crate::control::api::{self, Connection};

/// Which connections are meant; what is `None` fits all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConntrackSelection {
    /// The protocol.
    pub protocol: Option<u8>,
    /// IPv4 (true) or IPv6 (false).
    pub v4: Option<bool>,
    /// Source of the first packet.
    pub source: Option<IpNet>,
    /// Destination of the first packet.
    pub dest: Option<IpNet>,
    /// Source of the answers.
    pub reply_source: Option<IpNet>,
    /// Destination of the answers.
    pub reply_dest: Option<IpNet>,
    /// Source port of the first packet.
    pub sport: Option<u16>,
    /// Destination port of the first packet.
    pub dport: Option<u16>,
    /// State, in the words of conntrack(8).
    pub state: Option<String>,
}

impl ConntrackSelection {
    /// Whether a connection is meant.
    pub fn fits(&self, connection: &Connection) -> bool {
        let within = |network: Option<IpNet>, address: IpAddr| network.is_none_or(|n| n.contains(&address));
        self.protocol.is_none_or(|number| connection.protonum == number)
            && self.v4.is_none_or(|v4| connection.source.is_ipv4() == v4)
            && within(self.source, connection.source)
            && within(self.dest, connection.dest)
            && within(self.reply_source, connection.reply_source)
            && within(self.reply_dest, connection.reply_dest)
            && self.sport.is_none_or(|port| connection.sport == Some(port))
            && self.dport.is_none_or(|port| connection.dport == Some(port))
            && self.state.as_ref().is_none_or(|state| connection.state.as_ref() == Some(state))
    }
}

/// The states of TCP as conntrack(8) names them.
const STATES: &[&str] = &[
    "SYN_SENT",
    "SYN_RECV",
    "ESTABLISHED",
    "FIN_WAIT",
    "CLOSE_WAIT",
    "LAST_ACK",
    "TIME_WAIT",
    "CLOSE",
    "SYN_SENT2",
];

impl TryFrom<&api::ConntrackFilter> for ConntrackSelection {
    type Error = Invalid;

    fn try_from(asked: &api::ConntrackFilter) -> Result<Self, Invalid> {
        let network =
            |field, text: &Option<String>| text.as_deref().map(|text| prefix(field, text)).transpose();
        let port = |field, value: Option<i64>| value.map(|value| number(field, value, 0, 65_535)).transpose();
        let v4 = match asked.family.as_deref() {
            None => None,
            Some("ipv4") => Some(true),
            Some("ipv6") => Some(false),
            Some(other) => {
                let message = format!("family {other:?} is unknown: it must be \"ipv4\" or \"ipv6\"");
                return Err(Invalid::new("family", message));
            }
        };
        if let Some(state) = asked.state.as_deref().filter(|state| !STATES.contains(state)) {
            let message = format!("state {state:?} is unknown: it must be one of {}", STATES.join(", "));
            return Err(Invalid::new("state", message));
        }
        Ok(Self {
            protocol: asked.proto.as_deref().map(|text| protocol("proto", text)).transpose()?,
            v4,
            source: network("source", &asked.source)?,
            dest: network("dest", &asked.dest)?,
            reply_source: network("reply_source", &asked.reply_source)?,
            reply_dest: network("reply_dest", &asked.reply_dest)?,
            sport: port("sport", asked.sport)?,
            dport: port("dport", asked.dport)?,
            state: asked.state.clone(),
        })
    }
}

/// What is to change at the bounds; what is `None` stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LimitChange {
    /// Most connections, 1 or more.
    pub limit: Option<u32>,
    /// Most connections that one port may have begun, 1 or more.
    pub port_quota: Option<u32>,
    /// Most TCP connections whose handshake is not complete, 1 or more.
    pub half_open: Option<u32>,
}

impl TryFrom<&api::ConntrackSetLimit> for LimitChange {
    type Error = Invalid;

    fn try_from(asked: &api::ConntrackSetLimit) -> Result<Self, Invalid> {
        let bound =
            |field, value: Option<i64>| value.map(|value| number(field, value, 1, u32::MAX)).transpose();
        let change = Self {
            limit: bound("limit", asked.limit)?,
            port_quota: bound("port_quota", asked.port_quota)?,
            half_open: bound("half_open", asked.half_open)?,
        };
        if change == Self::default() {
            let message = "no limit is to change: give at least one of limit, port_quota and half_open";
            return Err(Invalid::new("limit", message));
        }
        Ok(change)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection() -> Connection {
        Connection {
            proto: "tcp".into(),
            protonum: 6,
            timeout: 1,
            state: Some("ESTABLISHED".into()),
            source: [10, 0, 3, 2].into(),
            dest: [192, 0, 2, 1].into(),
            sport: Some(40_000),
            dport: Some(80),
            icmp_type: None,
            icmp_code: None,
            icmp_id: None,
            reply_source: [192, 0, 2, 1].into(),
            reply_dest: [198, 51, 100, 7].into(),
            reply_sport: Some(80),
            reply_dport: Some(40_000),
            reply_icmp_id: None,
            replied: true,
            assured: true,
            packets: 1,
            bytes: 1,
            reply_packets: 1,
            reply_bytes: 1,
        }
    }

    #[test]
    fn all_that_is_given_must_fit() {
        let fits = |change: &dyn Fn(&mut api::ConntrackFilter)| {
            let mut asked = api::ConntrackFilter::default();
            change(&mut asked);
            ConntrackSelection::try_from(&asked).unwrap().fits(&connection())
        };
        assert!(fits(&|_| ()));
        assert!(fits(&|f| f.proto = Some("tcp".into())) && !fits(&|f| f.proto = Some("17".into())));
        assert!(fits(&|f| f.family = Some("ipv4".into())) && !fits(&|f| f.family = Some("ipv6".into())));
        assert!(
            fits(&|f| f.source = Some("10.0.3.0/24".into()))
                && !fits(&|f| f.source = Some("10.0.3.3".into()))
        );
        assert!(fits(&|f| f.dest = Some("192.0.2.1".into())) && !fits(&|f| f.dest = Some("fd00::/8".into())));
        assert!(fits(&|f| f.reply_source = Some("192.0.2.1".into())));
        assert!(fits(&|f| f.reply_dest = Some("198.51.100.7".into())));
        assert!(!fits(&|f| f.reply_dest = Some("10.0.3.2".into())));
        assert!(fits(&|f| f.sport = Some(40_000)) && !fits(&|f| f.sport = Some(80)));
        assert!(fits(&|f| f.dport = Some(80)) && !fits(&|f| f.dport = Some(81)));
        assert!(
            fits(&|f| f.state = Some("ESTABLISHED".into())) && !fits(&|f| f.state = Some("CLOSE".into()))
        );
        assert!(!fits(&|f| {
            f.dport = Some(80);
            f.source = Some("10.0.3.9".into());
        }));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let field = |change: &dyn Fn(&mut api::ConntrackFilter)| {
            let mut asked = api::ConntrackFilter::default();
            change(&mut asked);
            ConntrackSelection::try_from(&asked).unwrap_err().field
        };
        assert_eq!(field(&|f| f.proto = Some("x".into())), "proto");
        assert_eq!(field(&|f| f.family = Some("4".into())), "family");
        assert_eq!(field(&|f| f.reply_source = Some("x".into())), "reply_source");
        assert_eq!(field(&|f| f.sport = Some(65_536)), "sport");
        assert_eq!(field(&|f| f.state = Some("established".into())), "state");
    }

    #[test]
    fn limits_that_change_nothing_are_refused() {
        let change = |limit, half_open| {
            let asked = api::ConntrackSetLimit { limit, port_quota: None, half_open };
            LimitChange::try_from(&asked).map_err(|e| e.to_string())
        };
        assert_eq!(change(Some(1), None).unwrap().limit, Some(1));
        assert!(change(None, None).unwrap_err().contains("give at least one"));
        assert!(change(None, Some(0)).unwrap_err().starts_with("half_open 0 is out of range"));
    }
}
