//! What tells one conversation from another: addresses, protocol and ports of a packet.
//!
//! The form for first packets, rules and listings; established packets are found by keys made of the same fields.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::ip::{ICMP, ICMPV6};

/// Addresses, protocol and ports as one side sends them. Both addresses are of one family.
///
/// A query of ICMP has its identifier as `source_port` and the type of the *request* as `destination_port`, in both
/// directions. Protocols without ports of their own have zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tuple {
    /// Who sends.
    pub source: IpAddr,
    /// To whom.
    pub destination: IpAddr,
    /// Protocol number (IANA).
    pub protocol: u8,
    /// Port that it comes from.
    pub source_port: u16,
    /// Port that it goes to.
    pub destination_port: u16,
}

impl Tuple {
    /// The tuple of an answer.
    #[must_use]
    pub fn reversed(&self) -> Self {
        let ports = match self.protocol {
            ICMP | ICMPV6 => (self.source_port, self.destination_port),
            _ => (self.destination_port, self.source_port),
        };
        Self {
            source: self.destination,
            destination: self.source,
            protocol: self.protocol,
            source_port: ports.0,
            destination_port: ports.1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_swaps_addresses_and_ports_but_not_those_of_icmp() {
        let tuple = |protocol| Tuple {
            source: [10, 0, 0, 1].into(),
            destination: [10, 0, 0, 2].into(),
            protocol,
            source_port: 7,
            destination_port: 8,
        };
        let tcp = tuple(6).reversed();
        assert_eq!((tcp.source, tcp.source_port, tcp.destination_port), (tuple(6).destination, 8, 7));
        let icmp = tuple(ICMP).reversed();
        assert_eq!((icmp.source, icmp.source_port, icmp.destination_port), (tuple(6).destination, 7, 8));
        assert_eq!(icmp.reversed(), tuple(ICMP));
    }
}
