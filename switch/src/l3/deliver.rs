//! The last steps of a routed packet: its change, its next link's addresses, and the port that it leaves by.
#![forbid(unsafe_code)]

use vhost_backend::frame::Burst;
use vhost_backend::net_header::{GSO_UDP, GSO_UDP_L4, NetHeader};

use super::family::Routed;
use super::forward::{Item, Refusal};
use super::icmp::Error;
use super::interface::Interface;
use super::next_hop::Hop;
use super::outbox::Outbox;
use super::split::{self, Piece, Split};
use super::{Arrival, Stage};
use crate::drops::DropReason;
use crate::l2::fdb::Key as FdbKey;
use crate::members::{Verdict, interface_index};
use crate::packet::ethernet::{ETHERTYPE_VLAN, Mac};
use crate::packet::headers::{Headers, tcp_flags};
use crate::packet::ip::{IPV4_LEN, IPV6_LEN};
use crate::packet::rewrite::{clamp_mss, is_partial, set_macs};
use crate::packet::{MAX_SEGMENTS, MIN_GSO_SIZE, ethernet, fits};

impl Stage {
    /// Changes a packet with `change` and sends it to its next hop.
    #[inline]
    pub(super) fn send_on<F: Routed>(
        &mut self,
        burst: &mut Burst,
        item: &Item<F>,
        hop: Hop,
        at: &Arrival<'_>,
        change: impl FnOnce(&mut [u8], &Headers, bool),
    ) -> Result<(), Refusal> {
        let i = item.i;
        if item.headers.ttl <= 1 {
            return Err(Refusal::Tell(DropReason::TtlExceeded, Error::TimeExceeded));
        }
        let way = self.way_to(hop, at);
        if way.takes(burst.frame_len(i), item.headers.tcp_flags & tcp_flags::SYN != 0) {
            let partial = is_partial(burst.header(i), &item.headers);
            let head = burst.head_mut(i);
            change(head, &item.headers, partial);
            way.take(1 << i, head);
            return Ok(());
        }
        self.send_specially(burst, item, hop, at, change)
    }

    /// As [`Stage::send_on`] for packets that do not go as they are, or to neighbours that are not known.
    #[cold]
    fn send_specially<F: Routed>(
        &mut self,
        burst: &mut Burst,
        item: &Item<F>,
        hop: Hop,
        at: &Arrival<'_>,
        change: impl FnOnce(&mut [u8], &Headers, bool),
    ) -> Result<(), Refusal> {
        let i = item.i;
        let slot = at.router.neighbours.slot(hop.adjacency).ok_or(DropReason::NoRoute)?;
        let interface = at.router.interface(slot.interface()).ok_or(DropReason::NoRoute)?;
        let whole = burst.frame_len(i) <= usize::from(interface.mtu) + ethernet::HEADER_LEN
            || shorten(burst, item, interface.mtu)?;
        let change = |burst: &mut Burst| {
            let partial = is_partial(burst.header(i), &item.headers);
            change(burst.head_mut(i), &item.headers, partial);
            if item.headers.tcp_flags & tcp_flags::SYN != 0 && (interface.clamp_mss || at.interface.clamp_mss)
            {
                clamp(burst.head_mut(i), &item.headers, partial, interface, at.interface);
            }
        };
        let Some(mac) = slot.usable_mac(at.now) else {
            self.ask_for(slot, at)?;
            let original = *burst.snapshot(i);
            change(burst);
            return self.wait(burst, item, hop, slot, &original, at);
        };
        change(burst);
        set_macs(burst.head_mut(i), mac, interface.mac);
        if !whole {
            return self.send_in_pieces(burst, i, &item.headers, interface);
        }
        if interface.vlan != 0 && !burst.insert_tag(i, tag(interface.vlan)) {
            return Err(DropReason::Oversized.into());
        }
        emit(interface, mac, 1 << i, at.now, &mut self.verdict);
        Ok(())
    }

    /// Sends a packet that is ready, and too long for its next link, in pieces.
    #[cold]
    fn send_in_pieces(
        &mut self,
        burst: &Burst,
        i: usize,
        headers: &Headers,
        interface: &Interface,
    ) -> Result<(), Refusal> {
        let len = burst.linearise(i, &mut self.scratch).ok_or(DropReason::Oversized)?;
        put_pieces(&mut self.outbox, interface, &mut self.scratch[..len], headers, burst.header(i))?;
        Ok(())
    }
}

/// Puts a whole frame that is too long for its link into the box, in pieces: all of them or none.
pub(super) fn put_pieces(
    outbox: &mut Outbox,
    interface: &Interface,
    frame: &mut [u8],
    headers: &Headers,
    metadata: &NetHeader,
) -> Result<(), DropReason> {
    put_each(outbox, frame, headers, metadata, interface.mtu, |outbox, piece| {
        let room = piece.head().len() + piece.payload.len();
        outbox.put(interface.index, NetHeader::default(), room, |space| piece.write(space))
    })
}

/// Cuts a whole frame into pieces for a link of this MTU and has `put` put each into the box: all of them or none.
pub(super) fn put_each(
    outbox: &mut Outbox,
    frame: &mut [u8],
    headers: &Headers,
    metadata: &NetHeader,
    mtu: u16,
    put: impl Fn(&mut Outbox, &Piece<'_>) -> bool,
) -> Result<(), DropReason> {
    let pieces = Split::new(frame, headers, metadata, mtu).ok_or(DropReason::FragmentationNeeded)?;
    let before = outbox.len();
    for piece in pieces {
        if !put(outbox, &piece) {
            outbox.truncate(before);
            return Err(DropReason::FragmentNoRoom);
        }
    }
    Ok(())
}

/// Whether a long frame may go as it is, made to fit if that is in its metadata alone. False if it has to be cut, which
/// its sender allows; where that is forbidden, the sender is told.
#[cold]
pub(super) fn shorten<F: Routed>(burst: &mut Burst, item: &Item<F>, mtu: u16) -> Result<bool, Refusal> {
    let i = item.i;
    let (len, metadata) = (burst.frame_len(i), *burst.header(i));
    if fits(burst.head(i), len, &metadata, mtu) {
        return Ok(true);
    }
    let told = Refusal::Tell(DropReason::FragmentationNeeded, Error::TooBig { mtu: mtu.into() });
    if !split::may(burst.head(i), &item.headers) {
        return Err(told);
    }
    if metadata.is_gso() {
        // Segments that are made by the switch need not be cut again: they are made smaller.
        let smaller = smaller_segments(&metadata, len, &item.headers, mtu).ok_or(told)?;
        burst.set_header(i, smaller);
    }
    Ok(metadata.is_gso())
}

/// Metadata with segments that fit a link of this MTU; `None` if that is too narrow.
fn smaller_segments(metadata: &NetHeader, len: usize, headers: &Headers, mtu: u16) -> Option<NetHeader> {
    if metadata.gso_kind() == GSO_UDP_L4 {
        // Each segment is a datagram of its sender's, whose bounds mean something to the receiver.
        return None;
    }
    // Fragments are cut behind the IP header, and in units of 8 bytes.
    let (hdr_len, unit) = match metadata.gso_kind() {
        GSO_UDP => (metadata.csum_start, 8),
        _ => (metadata.hdr_len, 1),
    };
    let payload = len.checked_sub(usize::from(hdr_len))?;
    let gso_size = mtu.checked_sub(hdr_len.checked_sub(headers.network)?)? / unit * unit;
    let few = gso_size >= MIN_GSO_SIZE && payload.div_ceil(usize::from(gso_size)) <= MAX_SEGMENTS;
    few.then_some(NetHeader { gso_size, ..*metadata })
}

/// Lets a SYN announce no longer segments than fit the MTU of whichever of the two interfaces wants that.
#[cold]
fn clamp(head: &mut [u8], headers: &Headers, partial: bool, to: &Interface, from: &Interface) {
    let fixed = if headers.v6 { IPV6_LEN } else { IPV4_LEN } + TCP_LEN;
    for interface in [to, from].into_iter().filter(|interface| interface.clamp_mss) {
        clamp_mss(head, headers, partial, interface.mtu.saturating_sub(fixed as u16));
    }
}

/// Bytes of a TCP header without options.
const TCP_LEN: usize = 20;

/// The tag of a VLAN as it goes on the wire.
pub(super) fn tag(vlan: u16) -> [u8; 4] {
    let ([a, b], [c, d]) = (ETHERTYPE_VLAN.to_be_bytes(), vlan.to_be_bytes());
    [a, b, c, d]
}

/// Lets frames leave by the port of `interface`'s bridge behind which `mac` is: by all ports if that is not known.
#[inline]
pub(super) fn emit(interface: &Interface, mac: Mac, frames: u64, now: u32, verdict: &mut Verdict) {
    let key = FdbKey::new(mac.0, interface.vlan);
    match if mac.is_multicast() { None } else { interface.table.fdb.lookup(key, now) } {
        Some(port) => verdict.send(frames, port),
        None => flood(interface, frames, verdict),
    }
}

#[cold]
pub(super) fn flood(interface: &Interface, frames: u64, verdict: &mut Verdict) {
    for &port in interface.table.members.iter().filter(|&&member| interface_index(member).is_none()) {
        verdict.send(frames, port);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::testing::{Checksum, Tcp};
    use crate::packet::validate;

    #[test]
    fn segments_are_made_to_fit() {
        for v6 in [false, true] {
            let tcp = Tcp::new(v6, 30_000);
            let frame = tcp.bytes(Checksum::Partial);
            let metadata = validate(&frame[..128], frame.len(), tcp.request(1448)).expect("good metadata");
            let headers = Headers::parse(&frame, frame.len(), 14, v6).expect("a good frame");
            let tcp_len = frame.len();
            for mtu in [1400, 1280, 576] {
                let smaller = smaller_segments(&metadata, frame.len(), &headers, mtu).expect("wide enough");
                assert!(fits(&frame, frame.len(), &smaller, mtu));
                assert!(!fits(&frame, frame.len(), &smaller, mtu - 1), "as long as may be");
                assert_eq!(validate(&frame[..128], frame.len(), smaller), Ok(smaller));
            }
            let udp = Tcp { payload: vec![0; 5000], ..Tcp::new(v6, 0) };
            let frame = udp.bytes_of_udp(Checksum::Partial);
            let headers = Headers::parse(&frame, frame.len(), 14, v6).expect("a good frame");
            let fragments = udp.request_of_datagrams(GSO_UDP, 1480);
            if !v6 {
                for (mtu, gso_size) in [(1400, 1376), (1399, 1376), (1396, 1376), (1395, 1368), (576, 552)] {
                    let smaller =
                        smaller_segments(&fragments, frame.len(), &headers, mtu).expect("wide enough");
                    assert_eq!(smaller.gso_size, gso_size);
                    assert!(fits(&frame, frame.len(), &smaller, mtu));
                    assert_eq!(validate(&frame[..128], frame.len(), smaller), Ok(smaller));
                }
                assert_eq!(smaller_segments(&fragments, frame.len(), &headers, 27), None);
            }
            let datagrams = udp.request_of_datagrams(GSO_UDP_L4, 1400);
            assert_eq!(
                smaller_segments(&datagrams, frame.len(), &headers, 1400),
                None,
                "datagrams stay whole"
            );
            let headers_len = metadata.hdr_len - 14;
            for mtu in [0, headers_len, headers_len + 7, headers_len + 14] {
                assert_eq!(smaller_segments(&metadata, tcp_len, &headers, mtu), None, "{mtu}");
            }
        }
    }
}
