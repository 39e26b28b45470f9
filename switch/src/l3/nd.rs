//! Neighbour discovery (RFC 4861): what a message says if it is valid, what is to be done about it, and our own.
//!
//! Validation is sections 6.1 and 7.1: hop limit 255 (so it was never forwarded), checksum, code, lengths, targets and
//! options. A message that fails is dropped, whatever it says.
#![forbid(unsafe_code)]

use super::arp::{Learn, Verdict};
use super::checks::is_link_local;
use super::compose::{Compose, Ip, Link, finish_icmpv6, pseudo};
use crate::drops::DropReason;
use crate::packet::checksum::Sum;
use crate::packet::ethernet::Mac;
use crate::packet::headers::{Fragment, Headers};
use crate::packet::ip::{ICMPV6, IPV6_LEN};

/// ICMPv6 types of the messages.
pub mod kind {
    /// Router solicitation.
    pub const ROUTER_SOLICITATION: u8 = 133;
    /// Router advertisement.
    pub const ROUTER_ADVERTISEMENT: u8 = 134;
    /// Neighbour solicitation.
    pub const NEIGHBOUR_SOLICITATION: u8 = 135;
    /// Neighbour advertisement.
    pub const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    /// Redirect.
    pub const REDIRECT: u8 = 137;
}

/// ff02::1.
pub const ALL_NODES: u128 = 0xff02_0000_0000_0000_0000_0000_0000_0001;
/// ff02::2.
pub const ALL_ROUTERS: u128 = 0xff02_0000_0000_0000_0000_0000_0000_0002;
/// Hop limit of every message.
const HOP_LIMIT: u8 = 255;
const SOURCE_MAC: u8 = 1;
const TARGET_MAC: u8 = 2;
/// Bytes of a neighbour message with the one option it has.
const NEIGHBOUR_LEN: usize = 32;
/// Most bytes of a neighbour message's frame of our own, untagged.
pub const FRAME_LEN: usize = 14 + IPV6_LEN + NEIGHBOUR_LEN;

/// A frame of our own and the number of its bytes.
pub type Frame = ([u8; FRAME_LEN], usize);

/// A valid message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// "Where is `target`?"
    Solicitation {
        /// The address asked for.
        target: u128,
        /// Who asks; 0 asks whether the target is taken (duplicate address detection, RFC 4862).
        source: u128,
        /// The asker's MAC.
        mac: Option<Mac>,
    },
    /// "`target` is at `mac`."
    Advertisement {
        /// The address that it is about.
        target: u128,
        /// Where it is.
        mac: Option<Mac>,
        /// It is a router's.
        router: bool,
        /// It answers a question of ours.
        solicited: bool,
        /// It replaces what is known.
        replaces: bool,
    },
    /// "Routers, speak up."
    RouterSolicitation {
        /// Who asks, or 0.
        source: u128,
        /// The asker's MAC.
        mac: Option<Mac>,
    },
    /// Somebody else is a router.
    RouterAdvertisement {
        /// Who.
        source: u128,
        /// For how many seconds it is a default router; 0 means it is none.
        lifetime: u16,
    },
    /// "Take the other way." Routers do not (section 8.2).
    Redirect,
}

/// Whether the packet is one of these messages, valid or not.
#[inline]
pub fn is_message(head: &[u8], headers: &Headers) -> bool {
    headers.v6
        && headers.protocol == ICMPV6
        && headers.fragment != Fragment::Later
        && matches!(head.get(usize::from(headers.transport)), Some(133..=137))
}

/// The group in which the owner of `address` listens for solicitations: ff02::1:ffXX:XXXX.
#[inline]
pub fn solicited_node(address: u128) -> u128 {
    0xff02_0000_0000_0000_0000_0001_ff00_0000 | address & 0xff_ffff
}

/// The MAC of an IPv6 group: 33:33 and its last 32 bits (RFC 2464, section 7).
#[inline]
pub fn group_mac(group: u128) -> Mac {
    let [a, b, c, d] = (group as u32).to_be_bytes();
    Mac([0x33, 0x33, a, b, c, d])
}

/// Reads a message of which [`is_message`] is true. `head` holds the whole IP packet, or it is refused: neighbour
/// messages with the usual option fit in a snapshot. `partial`: the checksum is still to be completed.
///
/// # Errors
/// [`DropReason::NdInvalid`], or [`DropReason::IcmpChecksum`].
pub fn parse(head: &[u8], headers: &Headers, partial: bool) -> Result<Message, DropReason> {
    const INVALID: DropReason = DropReason::NdInvalid;
    let end = usize::from(headers.network) + headers.len as usize;
    let message = head.get(usize::from(headers.transport)..end).ok_or(INVALID)?;
    let (source, destination) = headers.addresses_v6(head);
    let to_group = destination >> 120 == 0xff;
    if headers.ttl != HOP_LIMIT || headers.fragment != Fragment::None || message.len() < 8 || message[1] != 0
    {
        return Err(INVALID);
    }
    let addresses = Sum::of(&source.to_be_bytes()) + Sum::of(&destination.to_be_bytes());
    if !partial && (pseudo(addresses, ICMPV6, message.len()) + Sum::of(message)).folded() != [0xff; 2] {
        return Err(DropReason::IcmpChecksum);
    }
    let target = |message: &[u8]| -> Result<u128, DropReason> {
        let target = message.get(8..24).and_then(|bytes| bytes.first_chunk()).ok_or(INVALID)?;
        let target = u128::from_be_bytes(*target);
        if target >> 120 == 0xff { Err(INVALID) } else { Ok(target) }
    };
    let options = |from| message.get(from..).ok_or(INVALID).and_then(macs);
    match message[0] {
        kind::NEIGHBOUR_SOLICITATION => {
            let (target, (mac, _)) = (target(message)?, options(24)?);
            if source == 0 && (mac.is_some() || destination != solicited_node(target)) {
                return Err(INVALID);
            }
            Ok(Message::Solicitation { target, source, mac })
        }
        kind::NEIGHBOUR_ADVERTISEMENT => {
            let (target, (_, mac)) = (target(message)?, options(24)?);
            let flag = |bit: u8| message[4] & bit != 0;
            if to_group && flag(0x40) {
                return Err(INVALID);
            }
            Ok(Message::Advertisement {
                target,
                mac,
                router: flag(0x80),
                solicited: flag(0x40),
                replaces: flag(0x20),
            })
        }
        kind::ROUTER_SOLICITATION => {
            let (mac, _) = options(8)?;
            if source == 0 && mac.is_some() {
                return Err(INVALID);
            }
            Ok(Message::RouterSolicitation { source, mac })
        }
        kind::ROUTER_ADVERTISEMENT => {
            options(16)?;
            if !is_link_local(source) {
                return Err(INVALID);
            }
            Ok(Message::RouterAdvertisement {
                source,
                lifetime: u16::from_be_bytes([message[6], message[7]]),
            })
        }
        kind::REDIRECT => Ok(Message::Redirect),
        _ => Err(INVALID),
    }
}

/// Source and target MAC of a list of options.
fn macs(mut options: &[u8]) -> Result<(Option<Mac>, Option<Mac>), DropReason> {
    let mut found = (None, None);
    while let [kind, words, rest @ ..] = options {
        let len = usize::from(*words) * 8;
        if len == 0 || len > options.len() {
            return Err(DropReason::NdInvalid);
        }
        // A station's address is one MAC; others are as good as none.
        let mac = rest.first_chunk().filter(|_| len == 8).map(|mac| Mac(*mac));
        let mac = mac.filter(|mac| !mac.is_multicast() && !mac.is_zero());
        match *kind {
            SOURCE_MAC => found.0 = mac,
            TARGET_MAC => found.1 = mac,
            _ => {}
        }
        options = &options[len..];
    }
    if options.is_empty() { Ok(found) } else { Err(DropReason::NdInvalid) }
}

impl Message {
    /// What the interface does, which has the addresses of which `owns` is true. As for ARP, only who asks for us may
    /// become a new neighbour. A solicitation with a conflict is somebody's duplicate address detection: the answer
    /// is an advertisement to all nodes.
    ///
    /// `own`: the frame was sent by the interface itself, and came back.
    pub fn verdict(&self, own: bool, owns: impl Fn(u128) -> bool) -> Verdict {
        let ignored = Verdict { reply: false, conflict: false, learn: Learn::Nothing };
        match *self {
            _ if own => ignored,
            Self::Solicitation { target, source, mac } if owns(target) => {
                let learn = if source != 0 && mac.is_some() && !owns(source) {
                    Learn::Create
                } else {
                    Learn::Nothing
                };
                Verdict { reply: true, conflict: source == 0 || owns(source), learn }
            }
            Self::Solicitation { source, mac: Some(_), .. } if source != 0 => {
                Verdict { learn: Learn::Update { confirmed: false, replaces: true }, ..ignored }
            }
            Self::Advertisement { target, .. } if owns(target) => Verdict { conflict: true, ..ignored },
            Self::Advertisement { solicited, replaces, .. } => {
                Verdict { learn: Learn::Update { confirmed: solicited, replaces }, ..ignored }
            }
            Self::RouterSolicitation { source, mac: Some(_) } if source != 0 => {
                Verdict { learn: Learn::Update { confirmed: false, replaces: true }, ..ignored }
            }
            _ => ignored,
        }
    }

    /// Whose MAC it tells: the address and, if it is told, the MAC.
    pub fn sender(&self) -> (u128, Option<Mac>) {
        match *self {
            Self::Solicitation { source, mac, .. } | Self::RouterSolicitation { source, mac } => {
                (source, mac)
            }
            Self::Advertisement { target, mac, .. } => (target, mac),
            Self::RouterAdvertisement { source, .. } => (source, None),
            Self::Redirect => (0, None),
        }
    }
}

/// "Where is `target`?", from the station of `mac` and `source`: to everybody who may own it, or to the one MAC `to`,
/// to see whether it is still there. A `source` of 0 asks whether the target is taken.
pub fn solicitation(mac: Mac, source: u128, target: u128, to: Option<Mac>) -> Frame {
    let (destination, to) = match to {
        Some(to) => (target, to),
        None => (solicited_node(target), group_mac(solicited_node(target))),
    };
    let option = (source != 0).then_some((SOURCE_MAC, mac));
    let link = Link { destination: to, source: mac };
    neighbour(link, source, destination, kind::NEIGHBOUR_SOLICITATION, 0, target, option)
}

/// "`target` is at `mac`", from a router. `to` are the asker's address and MAC; with none, or where the asker has no
/// address yet, it goes to all nodes.
pub fn advertisement(mac: Mac, target: u128, to: Option<(u128, Mac)>) -> Frame {
    // Router; solicited if somebody has asked; it replaces what is known.
    let (destination, to, flags) = match to {
        Some((address, to)) if address != 0 => (address, to, 0xe0),
        _ => (ALL_NODES, group_mac(ALL_NODES), 0xa0),
    };
    let link = Link { destination: to, source: mac };
    let option = Some((TARGET_MAC, mac));
    neighbour(link, target, destination, kind::NEIGHBOUR_ADVERTISEMENT, flags, target, option)
}

fn neighbour(
    link: Link,
    source: u128,
    destination: u128,
    kind: u8,
    flags: u8,
    target: u128,
    option: Option<(u8, Mac)>,
) -> Frame {
    let mut out = [0; FRAME_LEN];
    let payload = if option.is_some() { NEIGHBOUR_LEN } else { NEIGHBOUR_LEN - 8 };
    let len = u128::TRANSPORT + payload;
    let ip = Ip { source, destination, protocol: ICMPV6, ttl: HOP_LIMIT, class: 0 };
    // Both fit: the array has room for the longest.
    let _ = Compose::headers(&mut out, link, ip, payload);
    let message = &mut out[u128::TRANSPORT..];
    (message[0], message[4]) = (kind, flags);
    message[8..24].copy_from_slice(&target.to_be_bytes());
    if let Some((kind, mac)) = option {
        message[24..26].copy_from_slice(&[kind, 1]);
        message[26..].copy_from_slice(&mac.0);
    }
    let _ = finish_icmpv6(&mut out[..len]);
    (out, len)
}

/// A prefix that a router advertises (RFC 4861, section 4.6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// The network; bits beyond `length` are sent as zeros.
    pub network: u128,
    /// Bits of the prefix, at most 128.
    pub length: u8,
    /// Its addresses are on the link.
    pub on_link: bool,
    /// Stations may make addresses of it (SLAAC).
    pub autonomous: bool,
    /// Seconds for which it is valid; `u32::MAX` means for ever.
    pub valid: u32,
    /// Seconds for which it is preferred.
    pub preferred: u32,
}

/// What our router says about itself (RFC 4861, section 4.2; RFC 8106).
#[derive(Clone, Copy, Debug)]
pub struct RouterAdvertisement<'a> {
    /// The router's MAC.
    pub mac: Mac,
    /// Its link-local address.
    pub source: u128,
    /// Hop limit for hosts to use; 0 says nothing.
    pub hop_limit: u8,
    /// Addresses come by DHCPv6.
    pub managed: bool,
    /// Other configuration comes by DHCPv6.
    pub other: bool,
    /// Seconds for which it is a default router.
    pub lifetime: u16,
    /// Bytes of the link's MTU, if it is to be told.
    pub mtu: Option<u32>,
    /// Prefixes.
    pub prefixes: &'a [Prefix],
    /// Recursive DNS servers, and for how many seconds they hold.
    pub dns: (&'a [u128], u32),
}

impl RouterAdvertisement<'_> {
    /// Writes the frame to `to` (address and MAC) or, without, to all nodes. Its length, or `None` if `out` is too
    /// short.
    pub fn frame(&self, out: &mut [u8], to: Option<(u128, Mac)>) -> Option<usize> {
        let (destination, to) = to.unwrap_or((ALL_NODES, group_mac(ALL_NODES)));
        let (servers, dns_lifetime) = self.dns;
        let servers = &servers[..servers.len().min(127)];
        let dns_len = if servers.is_empty() { 0 } else { 8 + 16 * servers.len() };
        let payload = 16 + 8 + if self.mtu.is_some() { 8 } else { 0 } + 32 * self.prefixes.len() + dns_len;
        let len = u128::TRANSPORT + payload;
        let ip = Ip { source: self.source, destination, protocol: ICMPV6, ttl: HOP_LIMIT, class: 0 };
        Compose::headers(out, Link { destination: to, source: self.mac }, ip, payload)?;
        let message = out.get_mut(u128::TRANSPORT..len)?;
        message.fill(0);
        message[0] = kind::ROUTER_ADVERTISEMENT;
        message[4] = self.hop_limit;
        message[5] = if self.managed { 0x80 } else { 0 } | if self.other { 0x40 } else { 0 };
        message[6..8].copy_from_slice(&self.lifetime.to_be_bytes());
        message[16..18].copy_from_slice(&[SOURCE_MAC, 1]);
        message[18..24].copy_from_slice(&self.mac.0);
        let mut options = &mut message[24..];
        if let Some(mtu) = self.mtu {
            let option;
            (option, options) = options.split_at_mut(8);
            option[..2].copy_from_slice(&[5, 1]);
            option[4..].copy_from_slice(&mtu.to_be_bytes());
        }
        for prefix in self.prefixes {
            let option;
            (option, options) = options.split_at_mut(32);
            let length = prefix.length.min(128);
            let flags = if prefix.on_link { 0x80 } else { 0 } | if prefix.autonomous { 0x40 } else { 0 };
            option[..4].copy_from_slice(&[3, 4, length, flags]);
            option[4..8].copy_from_slice(&prefix.valid.to_be_bytes());
            option[8..12].copy_from_slice(&prefix.preferred.to_be_bytes());
            let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
            option[16..].copy_from_slice(&(prefix.network & mask).to_be_bytes());
        }
        if dns_len > 0 {
            options[..2].copy_from_slice(&[25, (dns_len / 8) as u8]);
            options[4..8].copy_from_slice(&dns_lifetime.to_be_bytes());
            for (field, server) in options[8..].chunks_exact_mut(16).zip(servers) {
                field.copy_from_slice(&server.to_be_bytes());
            }
        }
        finish_icmpv6(&mut out[..len])?;
        Some(len)
    }
}

#[cfg(test)]
mod tests;
