//! Connections that announce others: FTP. Its control connection's packets come here.
//!
//! What an end announces becomes an expectation ([`crate::conntrack::expect`]); where its address is translated, so is
//! the announcement, whose text may change its length: all later sequence numbers are shifted then. An end can only
//! announce itself, at a port above 1023; anything else is text.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use vhost_backend::frame::Burst;
use vhost_backend::net_header::NetHeader;

use super::compose::pseudo;
use super::family::Routed;
use super::forward::{Item, Refusal};
use super::icmp::Error;
use super::{Arrival, Stage};
use crate::conntrack::expect::{Expectation, Unavailable};
use crate::conntrack::ftp::{self, Announcement};
use crate::conntrack::sequence::{self, Shift};
use crate::conntrack::{Key, Ref, Table};
use crate::drops::DropReason;
use crate::packet::checksum::Sum;
use crate::packet::ethernet::HEADER_LEN;
use crate::packet::headers::Headers;
use crate::packet::ip::{IPV4_LEN, IPV6_LEN, TCP};
use crate::packet::rewrite::{is_partial, set_macs};
use crate::packet::tuple::Tuple;

/// Longest frame whose text is read: headers with all their options, and what FTP says at a time.
const READ: usize = HEADER_LEN + IPV4_LEN + 40 + 60 + ftp::LONGEST;
/// Ports that are tried for an expected connection whose source is translated.
const PORTS: u16 = 128;

impl From<Unavailable> for Refusal {
    fn from(_: Unavailable) -> Self {
        Self::Drop(DropReason::CtBusy)
    }
}

/// Whether packets of a connection to this (translated) tuple are to be watched.
pub(super) fn watches(to: &Tuple) -> bool {
    to.protocol == TCP && to.destination_port == ftp::PORT
}

/// A source for an expected connection that comes from `from` for who receives it.
pub(super) fn source<F: Routed>(table: &Table<F>, from: IpAddr, to: &Tuple) -> Option<Tuple> {
    let free = |tuple: &Tuple| Key::answer(&tuple.reversed()).is_some_and(|key| table.is_free(&key));
    (0..PORTS)
        .map(|step| Tuple { source: from, source_port: to.source_port.wrapping_add(step).max(1), ..*to })
        .find(free)
}

/// A segment's text with another announcement in it.
struct Edited {
    frame: [u8; READ + ftp::TEXT],
    len: usize,
}

impl Stage {
    /// A packet of a control connection, which has been counted.
    #[cold]
    pub(super) fn watched<F: Routed>(
        &mut self,
        burst: &mut Burst,
        item: &Item<F>,
        of: Ref,
        at: &Arrival<'_>,
    ) -> Result<(), Refusal> {
        let conntrack = &at.router.conntrack;
        let table = conntrack.table::<F>();
        let (mine, others) = (table.half(of), table.half(of.other()));
        let original = if of.is_reply() { others } else { mine }.key().tuple();
        let mut frame = [0; READ];
        let mut edited = None;
        if let Some(len) = burst.linearise(item.i, &mut frame)
            && let Some(text) =
                text(&frame[..len], &item.headers, is_partial(burst.header(item.i), &item.headers))
            && let Some(found) = announced(&frame[text.clone()], of)
        {
            let (me, seen) = (F::to_ip(mine.key().source), F::to_ip(mine.translated().source));
            let (them, shown) = (F::to_ip(others.key().source), F::to_ip(others.translated().source));
            if found.port >= 1024 && found.address.is_none_or(|address| address == me) {
                let expectation = Expectation {
                    master: original,
                    source: them,
                    destination: seen,
                    protocol: TCP,
                    port: found.port,
                    to: (me, found.port),
                    from: (shown != them).then_some(shown),
                    since: at.now,
                };
                let port = conntrack.expectations.expect(expectation, seen != me, at.now)?;
                if (seen, port) != (me, found.port) {
                    let new = found.text(seen, port).ok_or(DropReason::CtInvalid)?;
                    let range = text.start + found.range.start..text.start + found.range.end;
                    let difference = new.bytes().len() as i32 - range.len() as i32;
                    let at = seq(&frame, &item.headers).wrapping_add(found.range.start as u32);
                    let packet = edit(&frame[..text.end], &item.headers, range, new.bytes());
                    edited = Some((packet.ok_or(DropReason::CtInvalid)?, at, difference));
                }
            }
        }
        let direction = usize::from(of.is_reply());
        let alive = |tuple: &Tuple| Key::request(tuple).is_some_and(|key: Key<F>| !table.is_free(&key));
        let shifts = conntrack.expectations.shifts(&original, alive, |shifts| {
            if let Some((_, at, difference)) = &edited {
                shifts[direction].change(*at, *difference);
            }
            [shifts[direction], shifts[1 - direction]]
        })?;
        match edited {
            Some((edited, ..)) => self.send_edited(item, of, edited, &shifts, at),
            None => {
                let hop = self.hop_of::<F>(of, item.hash, at)?;
                let rewrite = mine.rewrite();
                self.send_on(burst, item, hop, at, |head, headers, partial| {
                    sequence::adjust(head, headers, partial, &shifts[0], &shifts[1]);
                    rewrite.forward(head, headers, partial);
                })
            }
        }
    }

    /// Sends a segment whose text was changed, as a frame of the switch's own making.
    fn send_edited<F: Routed>(
        &mut self,
        item: &Item<F>,
        of: Ref,
        mut edited: Edited,
        shifts: &[Shift; 2],
        at: &Arrival<'_>,
    ) -> Result<(), Refusal> {
        if item.headers.ttl <= 1 {
            return Err(Refusal::Tell(DropReason::TtlExceeded, Error::TimeExceeded));
        }
        let half = at.router.conntrack.table::<F>().half(of);
        let hop = self.hop_of::<F>(of, item.hash, at)?;
        let slot = at.router.neighbours.slot(hop.adjacency).ok_or(DropReason::NoRoute)?;
        let interface = at.router.interface(slot.interface()).ok_or(DropReason::NoRoute)?;
        // A neighbour that does not answer at the moment: the segment will be sent again.
        let mac = slot.usable_mac(at.now).ok_or(DropReason::CtBusy)?;
        let frame = &mut edited.frame[..edited.len];
        let headers = Headers::parse(frame, frame.len(), usize::from(item.headers.network), F::V6)?;
        sequence::adjust(frame, &headers, true, &shifts[0], &shifts[1]);
        half.rewrite().forward(frame, &headers, true);
        finish(frame, &headers);
        set_macs(frame, mac, interface.mac);
        let put = self.outbox.put(interface.index, NetHeader::default(), frame.len(), |space| {
            space.copy_from_slice(frame);
            Some(frame.len())
        });
        if put { Ok(()) } else { Err(DropReason::CtBusy.into()) }
    }
}

/// What the sender of a half's segment announces with it.
fn announced(text: &[u8], of: Ref) -> Option<Announcement> {
    if of.is_reply() { Announcement::of_server(text) } else { Announcement::of_client(text) }
}

/// Where a segment's text is, if it has one and its checksum is right or still to be completed.
fn text(frame: &[u8], headers: &Headers, partial: bool) -> Option<std::ops::Range<usize>> {
    let (network, transport) = (usize::from(headers.network), usize::from(headers.transport));
    let end = network + headers.len as usize;
    let start = transport + usize::from(frame.get(transport + 12)? >> 4) * 4;
    if start >= end || end > frame.len() || !(partial || sum(frame, headers, end)? == [0xff; 2]) {
        return None;
    }
    Some(start..end)
}

/// The sum of a segment that ends at `end`, with its pseudo-header.
fn sum(frame: &[u8], headers: &Headers, end: usize) -> Option<[u8; 2]> {
    let (network, transport) = (usize::from(headers.network), usize::from(headers.transport));
    let addresses =
        if headers.v6 { network + 8..network + IPV6_LEN } else { network + 12..network + IPV4_LEN };
    let segment = frame.get(transport..end)?;
    Some((pseudo(Sum::of(frame.get(addresses)?), TCP, segment.len()) + Sum::of(segment)).folded())
}

fn seq(frame: &[u8], headers: &Headers) -> u32 {
    let at = usize::from(headers.transport) + 4;
    frame.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u32::from_be_bytes(*word))
}

/// A frame with other text in a range of it. Lengths and the IP header's checksum are right, that of TCP is not.
fn edit(frame: &[u8], headers: &Headers, range: std::ops::Range<usize>, new: &[u8]) -> Option<Edited> {
    let len = frame.len() - range.len() + new.len();
    let mut edited = Edited { frame: [0; READ + ftp::TEXT], len };
    let out = edited.frame.get_mut(..len)?;
    let behind = range.start + new.len();
    out.get_mut(..range.start)?.copy_from_slice(&frame[..range.start]);
    out.get_mut(range.start..behind)?.copy_from_slice(new);
    out.get_mut(behind..)?.copy_from_slice(&frame[range.end..]);
    let network = usize::from(headers.network);
    let packet = u16::try_from(len - network).ok()?;
    if headers.v6 {
        let payload = packet.checked_sub(IPV6_LEN as u16)?;
        out.get_mut(network + 4..network + 6)?.copy_from_slice(&payload.to_be_bytes());
    } else {
        let header = out.get_mut(network..usize::from(headers.transport))?;
        header.get_mut(2..4)?.copy_from_slice(&packet.to_be_bytes());
        header.get_mut(10..12)?.fill(0);
        let checksum = Sum::of(header).checksum();
        header[10..12].copy_from_slice(&checksum);
    }
    Some(edited)
}

/// Fills in the checksum of the TCP segment that is the rest of a frame.
fn finish(frame: &mut [u8], headers: &Headers) {
    let field = usize::from(headers.transport) + 16;
    if let Some(field) = frame.get_mut(field..field + 2) {
        field.fill(0);
    }
    let Some([a, b]) = sum(frame, headers, frame.len()) else { return };
    if let Some(field) = frame.get_mut(field..field + 2) {
        field.copy_from_slice(&[!a, !b]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(text: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        etherparse::PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([10, 0, 0, 2], [192, 0, 2, 1], 64)
            .tcp(2000, 21, 1000, 1000)
            .ack(5)
            .write(&mut frame, text)
            .expect("a packet");
        frame
    }

    fn headers(frame: &[u8]) -> Headers {
        Headers::parse(frame, frame.len(), HEADER_LEN, false).expect("good")
    }

    #[test]
    fn text_is_where_the_lengths_say_and_only_of_sound_segments() {
        let mut padded = frame(b"PORT 10,0,0,2,200,10\r\n");
        let end = padded.len();
        padded.extend([0; 9]);
        let all = headers(&padded);
        assert_eq!(text(&padded, &all, false), Some(54..end));
        padded[end - 3] ^= 1;
        assert_eq!((text(&padded, &all, false), text(&padded, &all, true)), (None, Some(54..end)));
        let empty = frame(b"");
        assert_eq!(text(&empty, &headers(&empty), false), None);
    }

    #[test]
    fn an_edited_segment_is_sound_again() {
        let old = frame(b"PORT 10,0,0,2,200,10\r\n");
        let found = Announcement::of_client(&old[54..]).expect("an announcement");
        let new = found.text([198, 51, 100, 77].into(), 51_210).expect("IPv4");
        let range = 54 + found.range.start..54 + found.range.end;
        let mut edited = edit(&old, &headers(&old), range, new.bytes()).expect("room");
        let bytes = &mut edited.frame[..edited.len];
        assert_eq!(&bytes[54..], b"PORT 198,51,100,77,200,10\r\n");
        let all = headers(bytes);
        finish(bytes, &all);
        assert_eq!(text(bytes, &all, false), Some(54..bytes.len()));
        assert_eq!(seq(bytes, &all), 1000);
    }
}
