//! ICMP and ICMPv6 of the switch itself: answers to echo requests, and errors about packets that go nowhere (RFC 792,
//! RFC 1122 section 3.2.2, RFC 1812 section 4.3, RFC 4443).
//!
//! An echo request becomes its own answer in place: its payload stays where it is, however long, and a wrong checksum
//! stays wrong. How many errors may be sent is for [`super::limit`] to say.
#![forbid(unsafe_code)]

use super::compose::{Compose, Ip, Link, TTL, finish_icmpv6, pseudo};
use crate::packet::checksum::Sum;
use crate::packet::ethernet;
use crate::packet::headers::{Fragment, Headers, is_icmp_error};
use crate::packet::ip::{ICMP, ICMPV6};
use crate::packet::rewrite::{
    Address, Ends, Rewrite, chunk, delta, fold, follow_nonzero, load, set_ttl, store,
};

/// Bytes of an ICMP error in front of what it quotes.
const ERROR_LEN: usize = 8;
/// Longest IPv4 packet that an error may be (RFC 1812, section 4.3.2.3).
const LONGEST_V4: usize = 576;
/// Longest IPv6 packet that an error may be: what passes everywhere (RFC 4443, section 2.4).
const LONGEST_V6: usize = 1280;
/// Room that any error's frame fits in, untagged.
pub const FRAME_LEN: usize = 14 + LONGEST_V6;
/// Precedence "internetwork control" (RFC 1812, section 4.3.2.5).
const CONTROL: u8 = 0xc0;

/// Type of an echo request.
pub const ECHO_V4: u8 = 8;
/// Type of an ICMPv6 echo request.
pub const ECHO_V6: u8 = 128;

/// The type of an ICMP message; `None` for other protocols and later fragments.
#[inline]
pub fn kind(head: &[u8], headers: &Headers) -> Option<u8> {
    let protocol = if headers.v6 { ICMPV6 } else { ICMP };
    let is_first = headers.protocol == protocol && headers.fragment != Fragment::Later;
    if is_first { head.get(usize::from(headers.transport)).copied() } else { None }
}

/// Whether the packet asks for an echo (or is the first fragment of one that does).
#[inline]
pub fn is_echo_request(head: &[u8], headers: &Headers) -> bool {
    kind(head, headers) == Some(if headers.v6 { ECHO_V6 } else { ECHO_V4 })
}

/// Makes the answer of an echo request, or of a later fragment of one: from `from`, which is the destination unless
/// that is a group, to the source. The frame's MACs are left for whoever knows the way.
///
/// Later fragments may be given only if their first one [`is_echo_request`]: others would be thrown back for ever.
pub fn echo_reply<A: Address>(head: &mut [u8], headers: &Headers, partial: bool, from: A) {
    let network = usize::from(headers.network);
    let (source, destination) = A::read(head, network);
    let ends = |source, destination| Ends { source, destination, source_port: 0, destination_port: 0 };
    let change = Rewrite::new(headers.protocol, &ends(source, destination), &ends(from, source));
    A::write::<false>(head, network, from, source, change.ip_delta);
    set_ttl(head, headers, TTL);
    if headers.fragment == Fragment::Later {
        return;
    }
    let Some(icmp) = chunk::<ERROR_LEN>(head, usize::from(headers.transport)) else { return };
    let before = Sum::of(&icmp[..2]);
    icmp[0] = if A::V6 { ECHO_V6 + 1 } else { 0 };
    let message = delta(before, Sum::of(&icmp[..2]));
    let field = load(icmp, 2);
    let field = match partial {
        true if A::V6 => fold(u32::from(field) + u32::from(change.ip_delta)),
        true => field,
        false => follow_nonzero(field, fold(u32::from(message) + u32::from(change.l4_delta))),
    };
    store(icmp, 2, field);
}

/// Whether the checksum of the ICMP message in a whole frame is right.
pub fn checksum_is_right(frame: &[u8], headers: &Headers) -> bool {
    let end = usize::from(headers.network) + headers.len as usize;
    let Some(message) = frame.get(usize::from(headers.transport)..end) else { return false };
    let sum = Sum::of(message);
    let sum = if headers.v6 {
        let (source, destination) = headers.addresses_v6(frame);
        pseudo(source.sum() + destination.sum(), ICMPV6, message.len()) + sum
    } else {
        sum
    };
    sum.folded() == [0xff; 2]
}

/// What an error says; each has its type and code in both families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// No route.
    NetUnreachable,
    /// The neighbour does not answer.
    HostUnreachable,
    /// The switch does not speak the protocol.
    ProtocolUnreachable,
    /// Nobody listens there; also what a policy's `reject` says.
    PortUnreachable,
    /// Forbidden by the administrator.
    Prohibited,
    /// Longer than the next link takes, and not to be fragmented.
    TooBig {
        /// The MTU of that link.
        mtu: u32,
    },
    /// Too many hops.
    TimeExceeded,
    /// The header's byte at `pointer` is wrong.
    ParameterProblem {
        /// Code: 0 in IPv4; in IPv6 0 for a field, 1 for an unknown next header, 2 for an unknown option.
        code: u8,
        /// Offset in the IP packet.
        pointer: u32,
    },
}

impl Error {
    /// Type, code, and the word behind the checksum.
    fn on_wire(self, v6: bool) -> (u8, u8, [u8; 4]) {
        let none = [0; 4];
        match (self, v6) {
            (Self::NetUnreachable, false) => (3, 0, none),
            (Self::HostUnreachable, false) => (3, 1, none),
            (Self::ProtocolUnreachable, false) => (3, 2, none),
            (Self::PortUnreachable, false) => (3, 3, none),
            (Self::Prohibited, false) => (3, 13, none),
            (Self::TooBig { mtu }, false) => (3, 4, mtu.min(0xffff).to_be_bytes()),
            (Self::TimeExceeded, false) => (11, 0, none),
            (Self::ParameterProblem { pointer, .. }, false) => (12, 0, [pointer.min(0xff) as u8, 0, 0, 0]),
            (Self::NetUnreachable, true) => (1, 0, none),
            (Self::Prohibited, true) => (1, 1, none),
            (Self::HostUnreachable, true) => (1, 3, none),
            (Self::PortUnreachable, true) => (1, 4, none),
            (Self::TooBig { mtu }, true) => (2, 0, mtu.to_be_bytes()),
            (Self::TimeExceeded, true) => (3, 0, none),
            // What is unknown is the first header: the extension headers in front of it are forwarded by anybody.
            (Self::ProtocolUnreachable, true) => (4, 1, 6_u32.to_be_bytes()),
            (Self::ParameterProblem { code, pointer }, true) => (4, code, pointer.to_be_bytes()),
        }
    }
}

/// Whether an error may be sent about the packet: never about another error, a later fragment, a packet to or from
/// anything but one host, or a frame to a group (RFC 1122, 3.2.2; RFC 4443, 2.4 (e)).
///
/// That its source or destination is the broadcast address of a network is for the caller to know.
pub fn may_report(head: &[u8], headers: &Headers, error: Error) -> bool {
    let to_group = ethernet::destination(head).is_multicast();
    if headers.v6 {
        let (source, destination) = headers.addresses_v6(head);
        // Path MTU discovery works for groups, too.
        let for_groups = matches!(error, Error::TooBig { .. } | Error::ParameterProblem { code: 2, .. });
        let is_error = match headers.protocol {
            // Unknown errors count; redirects are none, and forbidden all the same.
            ICMPV6 => kind(head, headers).is_none_or(|kind| kind < 128 || kind == 137),
            _ => false,
        };
        source > 1
            && source >> 120 != 0xff
            && !is_error
            && (for_groups || !to_group && destination >> 120 != 0xff)
    } else {
        let (source, destination) = headers.addresses_v4(head);
        let is_error = match headers.protocol {
            ICMP => kind(head, headers).is_none_or(|kind| kind > 18 || is_icmp_error(false, kind)),
            _ => false,
        };
        let one_host = |address: u32| !matches!(address >> 24, 0 | 127 | 224..);
        headers.fragment != Fragment::Later
            && !is_error
            && !to_group
            && one_host(source)
            && destination >> 28 < 0xe
    }
}

/// Writes the frame of an error from `source`, an address of ours, about the packet whose IP header `about` begins
/// with; `about` is as much of the packet as is at hand, and what fits of it is quoted. Its length, or `None` if
/// `out` is shorter than [`FRAME_LEN`] and too short, or `about` is no packet.
///
/// The packet is quoted as its sender sent it: with its own addresses, and before a hop was taken off.
pub fn error<A: Address + Compose>(
    out: &mut [u8],
    link: Link,
    source: A,
    about: &[u8],
    error: Error,
) -> Option<usize> {
    let fixed = A::TRANSPORT - 14;
    about.get(..fixed)?;
    let (destination, _) = A::read(about, 0);
    let longest = if A::V6 { LONGEST_V6 } else { LONGEST_V4 };
    let quoted = &about[..about.len().min(longest - fixed - ERROR_LEN)];
    let (protocol, class) = if A::V6 { (ICMPV6, 0) } else { (ICMP, about[1] & 0x1e | CONTROL) };
    let ip = Ip { source, destination, protocol, ttl: TTL, class };
    let len = A::TRANSPORT + ERROR_LEN + quoted.len();
    A::headers(out, link, ip, ERROR_LEN + quoted.len())?;
    let message = out.get_mut(A::TRANSPORT..len)?;
    let (kind, code, rest) = error.on_wire(A::V6);
    message[..4].copy_from_slice(&[kind, code, 0, 0]);
    message[4..8].copy_from_slice(&rest);
    message[8..].copy_from_slice(quoted);
    if A::V6 {
        finish_icmpv6(&mut out[..len])?;
    } else {
        let checksum = Sum::of(message).checksum();
        message[2..4].copy_from_slice(&checksum);
    }
    Some(len)
}

#[cfg(test)]
mod tests;
