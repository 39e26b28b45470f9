//! The packet that an ICMP error quotes, and its translation with the error's own (RFC 5508, section 4.2).
//!
//! The quoted packet went the other way: the error belongs to the connection whose packets have the quoted tuple
//! reversed, and the quoted addresses change like that direction's with the ends swapped. So whoever gets the error
//! finds in it the packet that it once sent. Only the headers and 8 bytes behind them are sure to be quoted.
#![forbid(unsafe_code)]

use super::checksum::Sum;
use super::headers::{Fragment, Headers, icmp_request, is_icmp_error};
use super::ip::{ICMP, ICMPV6, IPV4_LEN, IPV6_LEN, SCTP, TCP, UDP};
use super::rewrite::{Address, Ends, Rewrite, chunk, delta, fold, follow, follow_nonzero, load, store};
use super::tuple::Tuple;

/// Bytes of an ICMP error in front of the packet that it quotes.
const ERROR_LEN: usize = 8;

/// A quoted packet. Offsets in `headers` are from the frame's beginning, as ever; `headers.len` is what the packet
/// says, and no measure of the bytes that are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Embedded {
    /// What it says about itself. An error about an error (`icmp_error`), which nobody may send, is to be dropped;
    /// a later fragment has no ports.
    pub headers: Headers,
    /// Whether its IPv4 header's checksum is right. RFC 5508 (REQ-3) advises to drop the error if it is not.
    pub checksum_good: bool,
}

impl Embedded {
    /// Reads what the ICMP error of these (outer) headers quotes. `None` if too little is quoted to tell, if `head`
    /// ends before, or if the error does not go to the quoted packet's sender.
    pub fn parse(head: &[u8], outer: &Headers) -> Option<Self> {
        let end = (usize::from(outer.network) + outer.len as usize).min(head.len());
        let head = &head[..end];
        if !outer.icmp_error {
            return None;
        }
        let network = usize::from(outer.transport) + ERROR_LEN;
        let embedded = if outer.v6 { Self::parse_v6(head, network)? } else { Self::parse_v4(head, network)? };
        let came_back = if outer.v6 {
            embedded.headers.addresses_v6(head).0 == outer.addresses_v6(head).1
        } else {
            embedded.headers.addresses_v4(head).0 == outer.addresses_v4(head).1
        };
        came_back.then_some(embedded)
    }

    fn parse_v4(head: &[u8], network: usize) -> Option<Self> {
        let ip: &[u8; IPV4_LEN] = head.get(network..)?.first_chunk()?;
        let header_len = usize::from(ip[0] & 0xf) * 4;
        if ip[0] >> 4 != 4 || header_len < IPV4_LEN {
            return None;
        }
        let header = head.get(network..network + header_len)?;
        let fragment = match u16::from_be_bytes([ip[6], ip[7]]) & 0x3fff {
            0 => Fragment::None,
            word if word & 0x1fff == 0 => Fragment::First,
            _ => Fragment::Later,
        };
        let mut headers = Headers {
            v6: false,
            protocol: ip[9],
            ttl: ip[8],
            tcp_flags: 0,
            network: network as u16,
            transport: (network + header_len) as u16,
            len: u32::from(u16::from_be_bytes([ip[2], ip[3]])),
            fragment,
            source_port: 0,
            destination_port: 0,
            icmp_error: false,
        };
        read_transport(head, &mut headers)?;
        Some(Self { headers, checksum_good: Sum::of(header).folded() == [0xff; 2] })
    }

    fn parse_v6(head: &[u8], network: usize) -> Option<Self> {
        let ip: &[u8; IPV6_LEN] = head.get(network..)?.first_chunk()?;
        if ip[0] >> 4 != 6 {
            return None;
        }
        let (mut protocol, mut at, mut fragment) = (ip[6], network + IPV6_LEN, Fragment::None);
        // Ends: every extension header takes us at least 8 bytes on.
        while matches!(protocol, 0 | 43 | 44 | 60) && fragment != Fragment::Later {
            let &[next, words, high, low, ..] = head.get(at..)? else { return None };
            if protocol == 44 {
                fragment = match u16::from_be_bytes([high, low]) & 0xfff9 {
                    0 => Fragment::None,
                    1 => Fragment::First,
                    _ => Fragment::Later,
                };
                at += 8;
            } else {
                at += 8 * (usize::from(words) + 1);
            }
            protocol = next;
        }
        let mut headers = Headers {
            v6: true,
            protocol,
            ttl: ip[7],
            tcp_flags: 0,
            network: network as u16,
            transport: u16::try_from(at).ok()?,
            len: u32::from(u16::from_be_bytes([ip[4], ip[5]])) + IPV6_LEN as u32,
            fragment,
            source_port: 0,
            destination_port: 0,
            icmp_error: false,
        };
        read_transport(head, &mut headers)?;
        Some(Self { headers, checksum_good: true })
    }

    /// The tuple of packets that go the way the error goes: the quoted one's, reversed. Its connection is the
    /// error's, and that direction's [`Rewrite`] is for [`Embedded::translate`].
    pub fn reply_tuple(&self, head: &[u8]) -> Tuple {
        self.headers.tuple(head).reversed()
    }

    /// Translates the error and the packet in it. `outer` and this have been read from `head`; `rewrite` is what
    /// packets of the connection that go the error's way get; `partial` is about the error's own checksum.
    ///
    /// The error's source changes only where the connection hides the quoted destination behind another address:
    /// then the router that sent the error is hidden as well (RFC 5508, REQ-4 and REQ-5). The hop count stays.
    pub fn translate<A: Address>(
        &self,
        head: &mut [u8],
        outer: &Headers,
        partial: bool,
        rewrite: &Rewrite<A>,
    ) {
        if outer.v6 != A::V6 || self.headers.v6 != A::V6 {
            return;
        }
        let (network, transport) = (usize::from(self.headers.network), usize::from(self.headers.transport));
        let end = (usize::from(outer.network) + outer.len as usize).min(head.len());
        // The outer header.
        let (source, destination) = A::read(head, usize::from(outer.network));
        let (_, quoted_destination) = A::read(head, network);
        let ends = |source, destination| Ends { source, destination, source_port: 0, destination_port: 0 };
        let hidden = quoted_destination != rewrite.source;
        let to = ends(if hidden { rewrite.source } else { source }, rewrite.destination);
        let outer_change = Rewrite::new(outer.protocol, &ends(source, destination), &to);
        A::write::<false>(head, usize::from(outer.network), to.source, to.destination, outer_change.ip_delta);
        // The quoted headers. The text that changes begins at an even offset of the ICMP message.
        let changing = network..(transport + 20).min(end);
        let Some(before) = head.get(changing.clone()).map(Sum::of) else { return };
        A::write::<false>(head, network, rewrite.destination, rewrite.source, rewrite.ip_delta);
        if let Some(quoted) = head.get_mut(transport..changing.end) {
            self.translate_transport(quoted, rewrite);
        }
        let message = delta(before, Sum::of(&head[changing]));
        let Some(icmp) = chunk::<ERROR_LEN>(head, usize::from(outer.transport)) else { return };
        let field = load(icmp, 2);
        // ICMPv6's checksum covers the outer addresses, too; Rewrite::new knows (and no ports have changed).
        let field = match partial {
            true if A::V6 => fold(u32::from(field) + u32::from(outer_change.ip_delta)),
            true => field,
            false => follow(field, fold(u32::from(message) + u32::from(outer_change.l4_delta))),
        };
        store(icmp, 2, field);
    }

    /// Translates a later fragment of an error, which has nothing but its outer header to change. `quoted` is the
    /// destination of the quoted packet; for the rest see [`Embedded::translate`].
    pub fn translate_later<A: Address>(head: &mut [u8], outer: &Headers, quoted: A, rewrite: &Rewrite<A>) {
        if outer.v6 != A::V6 {
            return;
        }
        let (source, destination) = A::read(head, usize::from(outer.network));
        let ends = |source, destination| Ends { source, destination, source_port: 0, destination_port: 0 };
        let to = ends(if quoted == rewrite.source { source } else { rewrite.source }, rewrite.destination);
        let change = Rewrite::new(outer.protocol, &ends(source, destination), &to);
        A::write::<false>(head, usize::from(outer.network), to.source, to.destination, change.ip_delta);
    }

    /// The ends swapped: what the error's way changes at the source is the quoted packet's destination.
    fn translate_transport<A: Address>(&self, quoted: &mut [u8], rewrite: &Rewrite<A>) {
        if self.headers.fragment == Fragment::Later || quoted.len() < 8 {
            return;
        }
        match self.headers.protocol {
            TCP | UDP => {
                quoted[..2].copy_from_slice(&rewrite.destination_port.to_be_bytes());
                quoted[2..4].copy_from_slice(&rewrite.source_port.to_be_bytes());
                if self.headers.protocol == TCP {
                    if quoted.len() >= 18 {
                        store(quoted, 16, follow(load(quoted, 16), rewrite.l4_delta));
                    }
                } else if load(quoted, 6) != 0 {
                    store(quoted, 6, follow_nonzero(load(quoted, 6), rewrite.l4_delta));
                }
            }
            SCTP => {
                quoted[..2].copy_from_slice(&rewrite.destination_port.to_be_bytes());
                quoted[2..4].copy_from_slice(&rewrite.source_port.to_be_bytes());
            }
            ICMP | ICMPV6 if self.headers.destination_port != 0 => {
                quoted[4..6].copy_from_slice(&rewrite.source_port.to_be_bytes());
                store(quoted, 2, follow_nonzero(load(quoted, 2), rewrite.l4_delta));
            }
            _ => {}
        }
    }
}

/// Reads the ports of a quoted packet; `None` if they are not there and should be.
fn read_transport(head: &[u8], headers: &mut Headers) -> Option<()> {
    if headers.fragment == Fragment::Later || !matches!(headers.protocol, TCP | UDP | SCTP | ICMP | ICMPV6) {
        return Some(());
    }
    let transport: &[u8; 8] = head.get(usize::from(headers.transport)..)?.first_chunk()?;
    let word = |at: usize| u16::from_be_bytes([transport[at], transport[at + 1]]);
    if matches!(headers.protocol, TCP | UDP | SCTP) {
        (headers.source_port, headers.destination_port) = (word(0), word(2));
    } else if let Some(request) = icmp_request(headers.v6, transport[0]) {
        (headers.source_port, headers.destination_port) = (word(4), u16::from(request));
    } else {
        headers.icmp_error = is_icmp_error(headers.v6, transport[0]);
    }
    Some(())
}

#[cfg(test)]
mod tests;
