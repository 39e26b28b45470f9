//! Packets that a router must not forward, whatever their table says: addresses that no packet on a wire may have,
//! routes that the sender wants to prescribe (RFC 1122, section 3.2.1.3; RFC 1812, section 5.3.7; RFC 4291; RFC 6890).
//!
//! [`crate::packet::headers`] has already seen to lengths and the header's checksum. An established connection needs
//! none of this again: its addresses passed when its first packet did.
#![forbid(unsafe_code)]

use crate::drops::DropReason;
use crate::packet::headers::{Fragment, Headers};
use crate::packet::ip::{IPV4_LEN, IPV6_LEN};

/// Loose source routing, and strict.
const SOURCE_ROUTES: [u8; 2] = [131, 137];

/// Whether these addresses may be those of a packet to be routed. Multicast is not routed.
///
/// The caller knows what else makes a martian: an own address as the source (with the same destination, "land"), the
/// broadcast address of a network.
#[inline]
pub fn addresses_v4(source: u32, destination: u32) -> Result<(), DropReason> {
    if matches!(source >> 24, 0 | 127 | 224..) || source == destination {
        Err(DropReason::MartianSource)
    } else if matches!(destination >> 24, 0 | 127 | 224..) {
        Err(DropReason::MartianDestination)
    } else {
        Ok(())
    }
}

/// First bytes of IPv4 addresses that are no host's: this network, loopback, multicast and reserved ones.
static NO_HOST: [bool; 256] = {
    let mut table = [false; 256];
    (table[0], table[127]) = (true, true);
    let mut first = 224;
    while first < table.len() {
        table[first] = true;
        first += 1;
    }
    table
};

/// Whether [`addresses_v4`] has nothing against these addresses, in fewer instructions.
#[inline(always)]
pub fn are_routable_v4(source: u32, destination: u32) -> bool {
    let is_no_host = |address: u32| NO_HOST[(address >> 24) as usize];
    !(is_no_host(source) | is_no_host(destination) | (source == destination))
}

/// As [`addresses_v4`]. Link-local addresses stay on their link (RFC 4291, section 2.5.6): a packet to the switch
/// itself is judged by [`host_v6`] instead.
#[inline]
pub fn addresses_v6(source: u128, destination: u128) -> Result<(), DropReason> {
    host_v6(source, destination)?;
    if source == 0 || source == destination {
        Err(DropReason::MartianSource)
    } else if destination >> 120 == 0xff {
        Err(DropReason::MartianDestination)
    } else if is_link_local(source) || is_link_local(destination) {
        Err(DropReason::LinkLocal)
    } else {
        Ok(())
    }
}

/// Whether these addresses may be those of an IPv6 packet to the switch itself.
#[inline]
pub fn host_v6(source: u128, destination: u128) -> Result<(), DropReason> {
    let mapped = |address: u128| address >> 32 == 0xffff;
    // Groups of no host or of the sender alone.
    let narrow = destination >> 120 == 0xff && destination >> 112 & 0xf <= 1;
    if source == 1 || source >> 120 == 0xff || mapped(source) {
        Err(DropReason::MartianSource)
    } else if destination <= 1 || mapped(destination) || narrow {
        Err(DropReason::MartianDestination)
    } else {
        Ok(())
    }
}

/// Whether the address is of use on its own link only: fe80::/10.
#[inline]
pub fn is_link_local(address: u128) -> bool {
    address >> 118 == 0x3fa
}

/// Whether the packet may go where its sender's options or extension headers want it to go. Costs nothing where
/// there are none. `source_route` allows prescribed routes, which Linux refuses by default, too.
#[inline]
pub fn options(head: &[u8], headers: &Headers, source_route: bool) -> Result<(), DropReason> {
    let fixed = if headers.v6 { IPV6_LEN } else { IPV4_LEN };
    let extra = usize::from(headers.transport) - usize::from(headers.network);
    if extra == fixed { Ok(()) } else { cold_options(head, headers, source_route) }
}

#[cold]
fn cold_options(head: &[u8], headers: &Headers, source_route: bool) -> Result<(), DropReason> {
    if headers.v6 { extensions(head, headers, source_route) } else { options_v4(head, headers, source_route) }
}

/// RFC 791, section 3.1: each option is a type, and but for two of them a length that covers both.
fn options_v4(head: &[u8], headers: &Headers, source_route: bool) -> Result<(), DropReason> {
    let (from, to) = (usize::from(headers.network) + IPV4_LEN, usize::from(headers.transport));
    let mut options = head.get(from..to).ok_or(DropReason::IpTruncated)?;
    while let [kind, rest @ ..] = options {
        options = match (kind, rest) {
            (0, _) => break,
            (1, _) => rest,
            (kind, &[len, ..]) if len >= 2 => {
                if SOURCE_ROUTES.contains(kind) && !source_route {
                    return Err(DropReason::IpSourceRoute);
                }
                options.get(usize::from(len)..).ok_or(DropReason::IpOptions)?
            }
            _ => return Err(DropReason::IpOptions),
        };
    }
    Ok(())
}

/// Routing headers of type 0 may not be used by anybody any more (RFC 5095).
fn extensions(head: &[u8], headers: &Headers, source_route: bool) -> Result<(), DropReason> {
    let network = usize::from(headers.network);
    let mut next = head.get(network + 6).copied().ok_or(DropReason::IpTruncated)?;
    let mut at = network + IPV6_LEN;
    while at < usize::from(headers.transport) {
        let Some(&[after, words, kind, left, ..]) = head.get(at..) else {
            return Err(DropReason::IpTruncated);
        };
        if next == 43 && kind == 0 && left > 0 && !source_route {
            return Err(DropReason::IpSourceRoute);
        }
        at += if next == 44 { 8 } else { 8 * (usize::from(words) + 1) };
        if next == 44 && headers.fragment == Fragment::Later {
            break;
        }
        next = after;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;
    use crate::packet::testing::{Checksum, Tcp};

    #[test]
    fn martians_of_ipv4_have_names() {
        let check = |source: &str, destination: &str| {
            let address = |text: &str| u32::from(text.parse::<Ipv4Addr>().expect("an address"));
            addresses_v4(address(source), address(destination))
        };
        assert_eq!(check("10.0.0.1", "192.0.2.1"), Ok(()));
        assert_eq!(check("223.255.255.255", "1.0.0.0"), Ok(()));
        for source in
            ["127.0.0.1", "0.0.0.0", "0.1.2.3", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255"]
        {
            assert_eq!(check(source, "192.0.2.1"), Err(DropReason::MartianSource), "{source}");
        }
        for destination in ["127.1.2.3", "0.0.0.0", "224.0.0.251", "240.0.0.1", "255.255.255.255"] {
            assert_eq!(check("10.0.0.1", destination), Err(DropReason::MartianDestination));
        }
        assert_eq!(check("192.0.2.1", "192.0.2.1"), Err(DropReason::MartianSource), "land");
    }

    proptest! {
        #[test]
        fn the_short_check_agrees_with_the_one_that_names(
            source in prop_oneof![any::<u32>(), (0..=255_u32).prop_map(|first| first << 24 | 1)],
            destination in prop_oneof![any::<u32>(), (0..=255_u32).prop_map(|first| first << 24 | 1)],
        ) {
            prop_assert_eq!(are_routable_v4(source, destination), addresses_v4(source, destination).is_ok());
        }
    }

    #[test]
    fn martians_of_ipv6_have_names() {
        let address = |text: &str| u128::from(text.parse::<Ipv6Addr>().expect("an address"));
        let check = |source: &str, destination: &str| addresses_v6(address(source), address(destination));
        assert_eq!(check("fd00::1", "2001:db8::1"), Ok(()));
        assert_eq!(check("fec0::1", "fe00::1"), Ok(()), "neighbours of fe80::/10");
        for (source, reason) in [
            ("::", DropReason::MartianSource),
            ("ff02::1", DropReason::MartianSource),
            ("::ffff:10.0.0.1", DropReason::MartianSource),
            ("::1", DropReason::MartianSource),
            ("2001:db8::1", DropReason::MartianSource),
            ("fe80::1", DropReason::LinkLocal),
            ("febf::1", DropReason::LinkLocal),
        ] {
            assert_eq!(check(source, "2001:db8::1"), Err(reason), "{source}");
        }
        for (destination, reason) in [
            ("::", DropReason::MartianDestination),
            ("ff01::1", DropReason::MartianDestination),
            ("ff10::1", DropReason::MartianDestination),
            ("::ffff:10.0.0.1", DropReason::MartianDestination),
            ("::1", DropReason::MartianDestination),
            ("ff02::1", DropReason::MartianDestination),
            ("ff0e::1", DropReason::MartianDestination),
            ("fe80::1", DropReason::LinkLocal),
        ] {
            assert_eq!(check("fd00::1", destination), Err(reason), "{destination}");
        }
        assert_eq!(host_v6(address("fe80::1"), address("ff02::1")), Ok(()));
        assert_eq!(host_v6(0, address("ff02::1:ff00:1")), Ok(()));
    }

    fn with_options(options: &[u8]) -> (Vec<u8>, Headers) {
        let mut frame = Tcp { ip_options: options.len(), ..Tcp::new(false, 10) }.bytes(Checksum::Whole);
        frame[34..34 + options.len()].copy_from_slice(options);
        frame[24..26].fill(0);
        let sum = crate::packet::checksum::Sum::of(&frame[14..34 + options.len()]).checksum();
        frame[24..26].copy_from_slice(&sum);
        let headers = Headers::parse(&frame, frame.len(), 14, false).expect("a good frame");
        (frame, headers)
    }

    #[test]
    fn prescribed_routes_are_refused_unless_wanted() {
        let check = |bytes: &[u8], wanted| {
            let (frame, headers) = with_options(bytes);
            options(&frame, &headers, wanted)
        };
        for kind in [131, 137] {
            let route = [1, kind, 7, 4, 10, 0, 0, 9];
            assert_eq!(check(&route, false), Err(DropReason::IpSourceRoute));
            assert_eq!(check(&route, true), Ok(()));
        }
        assert_eq!(check(&[7, 7, 4, 0, 0, 0, 0, 0], false), Ok(()), "record route");
        assert_eq!(check(&[0, 131, 7, 4], false), Ok(()), "behind the end");
        assert_eq!(check(&[7, 1, 4, 0], false), Err(DropReason::IpOptions));
        assert_eq!(check(&[7, 5, 4, 0], false), Err(DropReason::IpOptions));
        assert_eq!(check(&[1, 1, 1, 7], false), Err(DropReason::IpOptions));
        assert_eq!(check(&[], false), Ok(()));
    }

    #[test]
    fn routing_headers_of_type_0_are_refused() {
        let tcp = Tcp { routing: true, ip_options: 8, ..Tcp::new(true, 10) };
        let mut frame = tcp.bytes(Checksum::Whole);
        let headers = Headers::parse(&frame, frame.len(), 14, true).expect("a good frame");
        assert_eq!(options(&frame, &headers, false), Err(DropReason::IpSourceRoute));
        assert_eq!(options(&frame, &headers, true), Ok(()));
        frame[14 + 40 + 8 + 2] = 2;
        assert_eq!(options(&frame, &headers, false), Ok(()), "type 2");
        frame[14 + 40 + 8 + 2] = 0;
        frame[14 + 40 + 8 + 3] = 0;
        assert_eq!(options(&frame, &headers, false), Ok(()), "nothing left of the route");
    }

    proptest! {
        #[test]
        fn no_options_hurt(words in proptest::collection::vec(any::<[u8; 4]>(), 1..10), wanted: bool) {
            let (frame, headers) = with_options(&words.concat());
            let _ = options(&frame, &headers, wanted);
            let _ = options(&frame[..frame.len().min(40)], &headers, wanted);
        }

        #[test]
        fn no_extension_headers_hurt(rest in proptest::collection::vec(any::<u8>(), 40..110), first in prop_oneof![Just(0_u8), Just(43), Just(44), Just(60)]) {
            let mut frame = [&[0; 14][..], &rest].concat();
            let len = (frame.len() - 54) as u16;
            frame[14] = 0x60;
            frame[18..20].copy_from_slice(&len.to_be_bytes());
            frame[20] = first;
            if let Ok(headers) = Headers::parse(&frame, frame.len(), 14, true) {
                let _ = options(&frame, &headers, false);
            }
        }
    }
}
