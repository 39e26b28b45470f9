//! Names and numbers of protocols (IANA), in the words of iptables and conntrack.
#![forbid(unsafe_code)]

use super::Invalid;
use crate::packet::ip::{ICMP, ICMPV6, SCTP, TCP, UDP};

const NAMES: &[(u8, &str)] = &[
    (ICMP, "icmp"),
    (2, "igmp"),
    (4, "ipencap"),
    (TCP, "tcp"),
    (UDP, "udp"),
    (33, "dccp"),
    (41, "ipv6"),
    (47, "gre"),
    (50, "esp"),
    (51, "ah"),
    (ICMPV6, "icmpv6"),
    (89, "ospf"),
    (SCTP, "sctp"),
    (136, "udplite"),
];

/// Checks the name or number of a protocol in `field`.
///
/// # Errors
/// Neither.
pub fn protocol(field: &'static str, text: &str) -> Result<u8, Invalid> {
    if text == "ipv6-icmp" {
        return Ok(ICMPV6);
    }
    let named = NAMES.iter().find(|(_, name)| *name == text).map(|(number, _)| *number);
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    named.or_else(|| text.parse().ok().filter(|_| digits)).ok_or_else(|| {
        let names = NAMES.iter().map(|(_, name)| *name).collect::<Vec<_>>().join(", ");
        let rule = format!("it must be a number of 0 to 255, or one of {names}");
        Invalid::new(field, format!("{field} {text:?} is no protocol: {rule}"))
    })
}

/// The name of a protocol, or its number where it has none.
pub fn protocol_name(number: u8) -> String {
    NAMES
        .iter()
        .find(|(known, _)| *known == number)
        .map_or_else(|| number.to_string(), |(_, name)| (*name).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for (text, number) in
            [("tcp", 6), ("icmpv6", 58), ("ipv6-icmp", 58), ("132", 132), ("0", 0), ("255", 255)]
        {
            assert_eq!(protocol("proto", text), Ok(number));
        }
        for bad in ["", "TCP", "256", "-1", "+6", "http"] {
            let message = protocol("proto", bad).unwrap_err().to_string();
            assert!(message.starts_with(&format!("proto {bad:?} is no protocol: it must be")), "{message}");
        }
        assert_eq!((protocol_name(6).as_str(), protocol_name(200).as_str()), ("tcp", "200"));
    }
}
