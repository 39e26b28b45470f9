//! IP addresses, networks, ranges of addresses and of ports, as texts that people write.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use ipnet::IpNet;

use super::Invalid;
use crate::nat::rule::{AddressRange, PortRange};

/// Whether a host can have this address: unicast, of no reserved block (RFC 6890: 0/8, 127/8, 240/4; `::`, `::1`,
/// IPv4 in IPv6).
pub fn is_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !matches!(v4.octets()[0], 0 | 127 | 224..),
        IpAddr::V6(v6) => {
            !v6.is_unspecified() && !v6.is_loopback() && !v6.is_multicast() && v6.to_ipv4_mapped().is_none()
        }
    }
}

fn address(field: &'static str, text: &str) -> Result<IpAddr, Invalid> {
    text.parse().map_err(|_| {
        let rule = "it must be one such as 10.0.3.1 or fd00::1";
        Invalid::new(field, format!("{field} {text:?} is no IP address: {rule}"))
    })
}

/// Checks the IP address of a host in `field`.
///
/// # Errors
/// No address, or one that no host can have.
pub fn host(field: &'static str, text: &str) -> Result<IpAddr, Invalid> {
    let address = address(field, text)?;
    if is_host(address) {
        return Ok(address);
    }
    Err(Invalid::new(
        field,
        format!(
            "{field} {address} is not the address of a host: it must be a unicast address of no reserved block"
        ),
    ))
}

/// Checks a network, or a single address, in `field`.
///
/// # Errors
/// No network, or one with bits set beyond its length.
pub fn prefix(field: &'static str, text: &str) -> Result<IpNet, Invalid> {
    let network: IpNet = match text.parse::<IpAddr>() {
        Ok(address) => address.into(),
        Err(_) => text.parse().map_err(|_| {
            let rule = "it must be an address, or address and prefix length such as 10.0.3.0/24 or fd00::/64";
            Invalid::new(field, format!("{field} {text:?} is no network: {rule}"))
        })?,
    };
    if network.addr() == network.network() {
        return Ok(network);
    }
    let (length, right) = (network.prefix_len(), network.trunc());
    Err(Invalid::new(
        field,
        format!("{field} {network} has bits set beyond the {length} of its network: write {right}"),
    ))
}

/// Checks the address of an interface, with the length of its network's prefix, in `field`.
///
/// # Errors
/// No such text, or an address that no host of that network can have.
pub fn interface_address(field: &'static str, text: &str) -> Result<IpNet, Invalid> {
    if text.parse::<IpAddr>().is_ok() {
        let rule = "write it with its network's, such as 10.0.3.1/24 or fd00::1/64";
        return Err(Invalid::new(field, format!("{field} {text} has no prefix length: {rule}")));
    }
    let network: IpNet = text.parse().map_err(|_| {
        let rule = "it must be address and prefix length such as 10.0.3.1/24 or fd00::1/64";
        Invalid::new(field, format!("{field} {text:?} is no address with a network: {rule}"))
    })?;
    let refuse = |why: &str| Err(Invalid::new(field, format!("{field} {network} {why}")));
    if !is_host(network.addr()) {
        return refuse("is not the address of a host: it must be a unicast address of no reserved block");
    }
    if network.prefix_len() == 0 {
        return refuse("has a network of all addresses: the prefix length must be 1 or more");
    }
    if let IpNet::V4(v4) = network
        && v4.prefix_len() < 31
        && (v4.addr() == v4.network() || v4.addr() == v4.broadcast())
    {
        return refuse("is the first or the last address of its network, which no host can have");
    }
    Ok(network)
}

/// How many addresses a range has; at most 2^64 - 1 is told.
pub fn range_len(range: &AddressRange) -> u64 {
    let number = |address| match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    };
    u64::try_from(number(range.last).saturating_sub(number(range.first)))
        .unwrap_or(u64::MAX)
        .saturating_add(1)
}

/// Checks `ADDRESS` or `FIRST-LAST` in `field`.
///
/// # Errors
/// No addresses of hosts, of two families, or the last before the first.
pub fn address_range(field: &'static str, text: &str) -> Result<AddressRange, Invalid> {
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (host(field, first.trim())?, host(field, last.trim())?),
        None => (host(field, text)?, host(field, text)?),
    };
    if first.is_ipv4() != last.is_ipv4() {
        return Err(Invalid::new(field, format!("{field} {text} mixes IPv4 and IPv6: choose one")));
    }
    if last < first {
        return Err(Invalid::new(
            field,
            format!("{field} {text} ends before it begins: write the lower address first"),
        ));
    }
    Ok(AddressRange { first, last })
}

/// Checks `PORT` or `PORT-PORT` in `field`.
///
/// # Errors
/// No ports, or the last before the first.
pub fn port_range(field: &'static str, text: &str) -> Result<PortRange, Invalid> {
    let refuse = |rule: &str| Invalid::new(field, format!("{field} {text:?} {rule}"));
    let number = |text: &str| match text.parse::<u16>() {
        Ok(port) if port > 0 && text.bytes().all(|b| b.is_ascii_digit()) => Ok(port),
        _ => Err(refuse("is no port: it must be a number of 1 to 65535, or two such as 8000-8100")),
    };
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (number(first)?, number(last)?),
        None => (number(text)?, number(text)?),
    };
    match last < first {
        true => Err(refuse("ends before it begins: write the lower port first")),
        false => Ok(PortRange { first, last }),
    }
}

/// Checks a list of ports and ranges separated by commas in `field`: at most 64, none touched twice.
///
/// # Errors
/// Something else.
pub fn port_list(field: &'static str, text: &str) -> Result<Vec<PortRange>, Invalid> {
    let mut ranges: Vec<PortRange> = Vec::new();
    for part in text.split(',') {
        let range = port_range(field, part.trim())?;
        if ranges.iter().any(|other| other.first <= range.last && range.first <= other.last) {
            return Err(Invalid::new(field, format!("{field} {text:?} names a port twice: once is enough")));
        }
        ranges.push(range);
    }
    if ranges.len() > 64 {
        return Err(Invalid::new(field, format!("{field} has more than 64 parts: use several rules")));
    }
    ranges.sort_unstable_by_key(|range| range.first);
    Ok(ranges)
}

/// Cuts `ADDRESSES:PORTS` in two. Without brackets more than one colon means IPv6 without ports.
pub(super) fn with_ports(text: &str) -> (String, Option<&str>) {
    if text.contains('[') {
        let (addresses, ports) = match text.rsplit_once("]:") {
            Some((addresses, ports)) => (addresses, Some(ports)),
            None => (text, None),
        };
        return (addresses.replace(['[', ']'], ""), ports);
    }
    match text.split_once(':') {
        Some((addresses, ports)) if !ports.contains(':') => (addresses.to_owned(), Some(ports)),
        _ => (text.to_owned(), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message<T: std::fmt::Debug>(result: Result<T, Invalid>) -> String {
        let invalid = result.unwrap_err();
        assert_eq!(invalid.field, "f");
        let text = invalid.to_string();
        assert!(text.starts_with("f "), "{text}");
        text
    }

    #[test]
    fn hosts_have_unicast_addresses() {
        for good in ["10.0.3.1", "169.254.1.1", "223.255.255.255", "fd00::1", "fe80::1", "2001:db8::"] {
            assert_eq!(host("f", good).unwrap().to_string(), good);
        }
        for bad in ["", "10.0.3", "10.0.3.1/24", "010.0.0.1", "fe80::1%eth0", "host", "[::1]", " 10.0.0.1"] {
            assert!(message(host("f", bad)).contains("is no IP address"), "{bad}");
        }
        for bad in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "ff02::1",
            "::ffff:10.0.0.1",
        ] {
            assert!(message(host("f", bad)).contains("is not the address of a host"), "{bad}");
        }
    }

    #[test]
    fn networks_end_with_their_length() {
        for (text, network) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.0.0.1", "10.0.0.1/32"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("fd00::1", "fd00::1/128"),
            ("::/0", "::/0"),
        ] {
            assert_eq!(prefix("f", text).unwrap().to_string(), network);
        }
        for bad in
            ["", "10.0.0.0/33", "10.0.0.0/", "/8", "fd00::/129", "10/8", "10.0.0.0/255.0.0.0", "default"]
        {
            assert!(message(prefix("f", bad)).contains("is no network"), "{bad}");
        }
        assert!(message(prefix("f", "10.0.3.1/24")).ends_with("write 10.0.3.0/24"));
        assert!(message(prefix("f", "fd00::1/64")).ends_with("write fd00::/64"));
    }

    #[test]
    fn interfaces_have_addresses_of_hosts_of_their_network() {
        for good in ["10.0.3.1/24", "10.0.0.1/32", "10.0.0.0/31", "10.0.0.1/31", "fd00::/64", "fe80::1/64"] {
            assert_eq!(interface_address("f", good).unwrap().to_string(), good);
        }
        for (bad, why) in [
            ("10.0.3.1", "has no prefix length"),
            ("fd00::1", "has no prefix length"),
            ("10.0.3.1/33", "is no address with a network"),
            ("x/24", "is no address with a network"),
            ("127.0.0.1/8", "is not the address of a host"),
            ("224.0.0.1/24", "is not the address of a host"),
            ("10.0.3.0/24", "first or the last address"),
            ("10.0.3.255/24", "first or the last address"),
            ("10.0.3.1/0", "network of all addresses"),
        ] {
            assert!(message(interface_address("f", bad)).contains(why), "{bad}");
        }
    }

    #[test]
    fn ranges_of_addresses() {
        let range = address_range("f", "10.0.3.2-10.0.3.254").unwrap();
        assert_eq!((range_len(&range), range.to_string().as_str()), (253, "10.0.3.2-10.0.3.254"));
        assert_eq!(range_len(&address_range("f", "fd00::1").unwrap()), 1);
        assert_eq!(range_len(&address_range("f", "1::-2::").unwrap()), u64::MAX);
        assert!(message(address_range("f", "10.0.0.1-fd00::1")).contains("mixes IPv4 and IPv6"));
        assert!(message(address_range("f", "10.0.0.2-10.0.0.1")).contains("ends before it begins"));
        assert!(message(address_range("f", "10.0.0.2-")).contains("is no IP address"));
    }

    #[test]
    fn ranges_of_ports() {
        let range = port_range("f", "8000-8100").unwrap();
        assert_eq!((range.len(), range.to_string().as_str()), (101, "8000-8100"));
        assert_eq!(port_range("f", "65535").unwrap().to_string(), "65535");
        for bad in ["", "0", "65536", "-1", "+80", "80-", "-", "http", "1-2-3", "80 - 90"] {
            assert!(message(port_range("f", bad)).contains("is no port"), "{bad}");
        }
        assert!(message(port_range("f", "90-80")).contains("ends before it begins"));
        let list = port_list("f", "443, 80,8000-8100").unwrap();
        assert_eq!(list.iter().map(ToString::to_string).collect::<Vec<_>>(), ["80", "443", "8000-8100"]);
        assert!(message(port_list("f", "80,70-90")).contains("names a port twice"));
        let many = (1..=65).map(|n| (n * 2).to_string()).collect::<Vec<_>>().join(",");
        assert!(message(port_list("f", &many)).contains("more than 64"));
    }

    #[test]
    fn ports_follow_addresses() {
        for (text, addresses, ports) in [
            ("10.0.0.1:80", "10.0.0.1", Some("80")),
            ("10.0.0.1-10.0.0.2:80-90", "10.0.0.1-10.0.0.2", Some("80-90")),
            ("10.0.0.1", "10.0.0.1", None),
            ("*:80", "*", Some("80")),
            (":80", "", Some("80")),
            ("fd00::1", "fd00::1", None),
            ("fd00::1-fd00::2", "fd00::1-fd00::2", None),
            ("[fd00::1]:80", "fd00::1", Some("80")),
            ("[fd00::1]", "fd00::1", None),
            ("[fd00::1]-[fd00::2]:80-90", "fd00::1-fd00::2", Some("80-90")),
            ("[fd00::1-fd00::2]:80", "fd00::1-fd00::2", Some("80")),
        ] {
            assert_eq!(with_ports(text), (addresses.to_owned(), ports), "{text}");
        }
    }
}
