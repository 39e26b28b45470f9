//! Ethernet: addresses and the fields of a frame's header (IEEE 802.3, with the tags of 802.1Q and 802.1ad).
//!
//! The accessors read a frame's head at fixed offsets. The switch drops frames of less than [`HEADER_LEN`] bytes
//! before anybody calls them; bytes that are missing all the same read as zero. Given a whole snapshot
//! (`&[u8; 128]`) they compile to plain loads.
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes of an untagged header: destination, source, ethertype.
pub const HEADER_LEN: usize = 14;
/// Bytes of one VLAN tag.
pub const TAG_LEN: usize = 4;

/// Ethertype of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// Ethertype of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
/// Tag protocol identifier of 802.1Q (C-tag).
pub const ETHERTYPE_VLAN: u16 = 0x8100;
/// Tag protocol identifier of 802.1ad (S-tag).
pub const ETHERTYPE_QINQ: u16 = 0x88a8;

/// A MAC address.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// `ff:ff:ff:ff:ff:ff`.
    pub const BROADCAST: Self = Self([0xff; 6]);
    /// `00:00:00:00:00:00`, no station's address.
    pub const ZERO: Self = Self([0; 6]);

    /// Whether it names a group of stations; broadcast does, too.
    #[inline]
    pub fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Whether it names all stations.
    #[inline]
    pub fn is_broadcast(self) -> bool {
        self == Self::BROADCAST
    }

    /// Whether it is all zeros.
    #[inline]
    pub fn is_zero(self) -> bool {
        self == Self::ZERO
    }

    /// Whether no bridge may forward frames to it: `01:80:c2:00:00:00` to `0f` (IEEE 802.1Q, table 8-1).
    #[inline]
    pub fn is_link_local_reserved(self) -> bool {
        self.to_u64() & !0xf == 0x0180_c200_0000
    }

    /// The address as a number: the first byte on the wire is the highest of the low 48 bits.
    #[inline]
    pub fn to_u64(self) -> u64 {
        let [a, b, c, d, e, f] = self.0;
        u64::from_be_bytes([0, 0, a, b, c, d, e, f])
    }

    /// The address of the low 48 bits of `number`; the others are ignored.
    #[inline]
    pub fn from_u64(number: u64) -> Self {
        let [_, _, a, b, c, d, e, f] = number.to_be_bytes();
        Self([a, b, c, d, e, f])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(to, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, to)
    }
}

/// A text that is no MAC address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a MAC address is six bytes in hexadecimal such as 52:54:00:12:34:56")]
pub struct BadMac;

impl FromStr for Mac {
    type Err = BadMac;

    /// Reads `52:54:00:12:34:56`, in either case; `-` separates, too.
    fn from_str(text: &str) -> Result<Self, BadMac> {
        let separator = if text.contains('-') { '-' } else { ':' };
        let mut mac = Self::ZERO;
        let mut parts = text.split(separator);
        for byte in &mut mac.0 {
            let part = parts.next().ok_or(BadMac)?;
            // from_str_radix would take "+5" as well.
            if part.len() != 2 || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(BadMac);
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| BadMac)?;
        }
        if parts.next().is_some() { Err(BadMac) } else { Ok(mac) }
    }
}

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[inline]
fn mac_at(head: &[u8], at: usize) -> Mac {
    match head.get(at..).and_then(|rest| rest.first_chunk()) {
        Some(bytes) => Mac(*bytes),
        None => Mac::ZERO,
    }
}

/// The big-endian 16-bit word at `at`; 0 if it is not there.
#[inline]
pub(crate) fn word_at(bytes: &[u8], at: usize) -> u16 {
    match bytes.get(at..).and_then(|rest| rest.first_chunk()) {
        Some(word) => u16::from_be_bytes(*word),
        None => 0,
    }
}

/// Where the frame goes.
#[inline]
pub fn destination(head: &[u8]) -> Mac {
    mac_at(head, 0)
}

/// Where the frame comes from.
#[inline]
pub fn source(head: &[u8]) -> Mac {
    mac_at(head, 6)
}

/// The type that follows the addresses: the outer tag's identifier if the frame is tagged; below 0x0600 the length
/// of an 802.3 frame.
#[inline]
pub fn ethertype(head: &[u8]) -> u16 {
    word_at(head, 12)
}

#[inline]
fn is_tag(ethertype: u16) -> bool {
    matches!(ethertype, ETHERTYPE_VLAN | ETHERTYPE_QINQ)
}

/// Whether the frame carries a VLAN tag.
#[inline]
pub fn is_tagged(head: &[u8]) -> bool {
    is_tag(ethertype(head))
}

/// The VLAN (0 to 4095) of the outer tag; 0 in a tag means that it carries a priority alone (802.1Q, 9.6).
#[inline]
pub fn vlan(head: &[u8]) -> Option<u16> {
    (is_tagged(head) && head.len() >= HEADER_LEN + TAG_LEN).then(|| word_at(head, HEADER_LEN) & 0x0fff)
}

/// The type of what the frame carries and the offset at which it begins, behind up to two tags. A third tag is
/// returned as a type like any other.
#[inline]
pub fn payload(head: &[u8]) -> (u16, usize) {
    let mut ethertype = ethertype(head);
    let mut offset = HEADER_LEN;
    for _ in 0..2 {
        if !is_tag(ethertype) {
            break;
        }
        ethertype = word_at(head, offset + 2);
        offset += TAG_LEN;
    }
    (ethertype, offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_is_read_and_written() {
        let mac: Mac = "52:54:00:aB:0c:ff".parse().unwrap();
        assert_eq!(mac, Mac([0x52, 0x54, 0, 0xab, 0x0c, 0xff]));
        assert_eq!(mac.to_string(), "52:54:00:ab:0c:ff");
        assert_eq!("52-54-00-AB-0C-FF".parse(), Ok(mac));
        assert_eq!(serde_json::to_string(&mac).unwrap(), "\"52:54:00:ab:0c:ff\"");
        assert_eq!(serde_json::from_str::<Mac>("\"52:54:00:ab:0c:ff\"").unwrap(), mac);
        assert!(serde_json::from_str::<Mac>("\"52:54\"").is_err());
        assert_eq!(mac.to_u64(), 0x5254_00ab_0cff);
        assert_eq!(Mac::from_u64(0xdead_5254_00ab_0cff), mac);
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "52:54:00:ab:0c",
            "52:54:00:ab:0c:ff:00",
            "52:54:00:ab:0c:f",
            "52:54:00:ab:0c:+f",
            "52-54-00:ab:0c:ff",
            "52-54-00-ab-0c",
            "52:54:00:ab:0c:fg",
            " 52:54:00:ab:0c:ff",
            "52:54:00:ab:0c:\u{e9}",
            "525400ab0cff",
        ] {
            assert_eq!(text.parse::<Mac>(), Err(BadMac), "{text:?}");
        }
    }

    #[test]
    fn kinds_of_address() {
        let mac = |text: &str| text.parse::<Mac>().unwrap();
        assert!(Mac::BROADCAST.is_multicast() && Mac::BROADCAST.is_broadcast());
        assert!(mac("01:00:5e:00:00:01").is_multicast() && !mac("01:00:5e:00:00:01").is_broadcast());
        assert!(!mac("52:54:00:12:34:56").is_multicast());
        assert!(Mac::ZERO.is_zero() && !mac("00:00:00:00:00:01").is_zero());
        assert!(mac("01:80:c2:00:00:00").is_link_local_reserved());
        assert!(mac("01:80:c2:00:00:0f").is_link_local_reserved());
        assert!(!mac("01:80:c2:00:00:10").is_link_local_reserved());
        assert!(!mac("01:80:c2:00:01:00").is_link_local_reserved());
        assert!(!mac("00:80:c2:00:00:00").is_link_local_reserved());
    }

    #[test]
    fn headers_with_and_without_tags() {
        let addresses = [[0x52, 0x54, 0, 0, 0, 1], [0x52, 0x54, 0, 0, 0, 2]].concat();
        let frame = |rest: &[u8]| [&addresses[..], rest].concat();

        let plain = frame(&[0x08, 0x00]);
        assert_eq!(destination(&plain), Mac([0x52, 0x54, 0, 0, 0, 1]));
        assert_eq!(source(&plain), Mac([0x52, 0x54, 0, 0, 0, 2]));
        assert_eq!((ethertype(&plain), vlan(&plain), payload(&plain)), (0x0800, None, (0x0800, 14)));

        let tagged = frame(&[0x81, 0x00, 0xe1, 0x23, 0x86, 0xdd]);
        assert_eq!(
            (ethertype(&tagged), vlan(&tagged), payload(&tagged)),
            (0x8100, Some(0x123), (0x86dd, 18))
        );

        let twice = frame(&[0x88, 0xa8, 0x0f, 0xff, 0x81, 0x00, 0x00, 0x05, 0x08, 0x00]);
        assert_eq!((vlan(&twice), payload(&twice)), (Some(0xfff), (0x0800, 22)));

        let thrice = frame(&[0x88, 0xa8, 0, 1, 0x81, 0, 0, 2, 0x81, 0, 0, 3, 8, 0]);
        assert_eq!(payload(&thrice), (0x8100, 22));

        let cut = frame(&[0x81, 0x00, 0xe1]);
        assert_eq!((vlan(&cut), payload(&cut)), (None, (0, 18)));
        assert_eq!((destination(&[1, 2]), source(&[]), ethertype(&[0; 13])), (Mac::ZERO, Mac::ZERO, 0));
    }
}
