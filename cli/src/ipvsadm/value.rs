//! Numbers, addresses and services as ipvsadm(8) reads them: strtol(3), inet_aton(3), `host[:port]`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::names::Names;
use shunt_switch::ipvs::spec::Protocol;

/// A number as strtol(3) reads the whole of a text.
pub(crate) fn integer(text: &str) -> Option<i64> {
    let text = text.trim_start_matches([' ', '\t', '\n', '\x0b', '\x0c', '\r']);
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// A number within bounds.
pub(crate) fn number(text: &str, least: i64, most: i64) -> Option<i64> {
    integer(text).filter(|number| (least..=most).contains(number))
}

/// A number as atoi(3) reads the beginning of a text.
pub(crate) fn leading(text: &str) -> i64 {
    let text = text.trim_start();
    let sign = usize::from(text.starts_with(['+', '-']));
    let digits = text[sign..].bytes().take_while(u8::is_ascii_digit).count();
    text[..sign + digits].parse().unwrap_or(0)
}

/// The number at the beginning of a text, decimal, octal after 0, hexadecimal after 0x, and what follows.
fn part(text: &str) -> Option<(u64, &str)> {
    let count = |text: &str, radix| text.chars().take_while(|c| c.is_digit(radix)).count();
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) if count(hex, 16) > 0 => (hex, 16),
        _ if text.starts_with('0') => (text, 8),
        _ => (text, 10),
    };
    let length = count(digits, radix);
    let (number, rest) = digits.split_at(length);
    if number.is_empty() {
        return None;
    }
    // What overflows is beyond every bound, too.
    Some((u64::from_str_radix(number, radix).unwrap_or(u64::MAX), rest))
}

/// An address as inet_aton(3) reads it: one to four numbers, the last of which fills what is left.
pub(crate) fn inet_aton(text: &str) -> Option<Ipv4Addr> {
    let mut rest = text;
    let mut bits = 0;
    for place in 0..4 {
        let (number, after) = part(rest)?;
        match after.strip_prefix('.') {
            Some(next) if place < 3 && number <= 0xff => {
                bits |= (number as u32) << (24 - 8 * place);
                rest = next;
            }
            _ if after.starts_with(|c: char| !matches!(c, ' ' | '\t' | '\n' | '\x0b' | '\x0c' | '\r')) => {
                return None;
            }
            _ => {
                let room = u64::from(u32::MAX) >> (8 * place);
                return (number <= room).then(|| Ipv4Addr::from_bits(bits | number as u32));
            }
        }
    }
    None
}

/// An address, and a port if the text has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) address: IpAddr,
    pub(crate) port: Option<u16>,
}

/// Reads `host[:port]`, `[v6]:port` or `v6`.
pub(crate) fn place(text: &str, protocol: Option<Protocol>, names: &mut Names) -> Option<Place> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let (mut host, mut port) = (text, None);
    if let Some(inner) = text.strip_prefix('[') {
        let (inside, behind) = inner.split_once(']')?;
        (host, port) = (inside, Some(behind.strip_prefix(':')?));
    }
    let address = match host.parse::<Ipv6Addr>() {
        Ok(address) => address.into(),
        Err(_) => {
            (host, port) = match host.rsplit_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (host, None),
            };
            match inet_aton(host) {
                Some(address) => address.into(),
                None => names.address(host)?.into(),
            }
        }
    };
    let port = match port {
        None => None,
        Some(port) => Some(match number(port, 0, 65_535) {
            Some(number) => number as u16,
            None => names.port(port, protocol?)?,
        }),
    };
    Some(Place { address, port })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_strtol() {
        for (text, number) in [
            ("0", Some(0)),
            ("+3", Some(3)),
            (" \t3", Some(3)),
            ("-1", Some(-1)),
            ("010", Some(10)),
            ("3 ", None),
            ("", None),
            ("+", None),
            ("0x10", None),
            ("99999999999999999999", None),
            ("+-3", None),
        ] {
            assert_eq!(integer(text), number, "{text:?}");
        }
        for (text, number) in [("24", 24), ("24x", 24), ("x", 0), ("", 0), ("-1", -1), (" 1.2", 1), ("+", 0)]
        {
            assert_eq!(leading(text), number, "{text:?}");
        }
    }

    #[test]
    fn addresses_are_those_of_inet_aton() {
        for (text, address) in [
            ("10.0.0.1", Some([10, 0, 0, 1])),
            ("10.1", Some([10, 0, 0, 1])),
            ("10.1.2", Some([10, 1, 0, 2])),
            ("10", Some([0, 0, 0, 10])),
            ("0x0a000001", Some([10, 0, 0, 1])),
            ("012.0.0.1", Some([10, 0, 0, 1])),
            ("4294967295", Some([255; 4])),
            ("10.16777215", Some([10, 255, 255, 255])),
            ("10.0.0.1 x", Some([10, 0, 0, 1])),
            ("10.16777216", None),
            ("4294967296", None),
            ("99999999999999999999999", None),
            ("10.0.0.256", None),
            ("256.0.0.1", None),
            ("10.0.0.1.2", None),
            ("10.0.0.", None),
            ("08.0.0.1", None),
            ("0x", None),
            ("10.0.0.1x", None),
            ("", None),
            (" 10.0.0.1", None),
        ] {
            assert_eq!(inet_aton(text), address.map(Ipv4Addr::from), "{text:?}");
        }
    }
}
