//! Fragmentation of a routed IPv4 packet that is longer than the next link takes, where its sender allows it (RFC 791,
//! section 3.2; RFC 1812, section 4.2.2.7). IPv6 routers never fragment.
#![forbid(unsafe_code)]

use vhost_backend::net_header::{NEEDS_CSUM, NetHeader};

use crate::packet::checksum::Sum;
use crate::packet::headers::Headers;
use crate::packet::ip::IPV4_LEN;
use crate::packet::offload::complete;

/// Longest headers of a piece: Ethernet with two tags, IPv4 with all its options.
const HEAD: usize = 14 + 8 + 60;
const DONT_FRAGMENT: u16 = 0x4000;
const MORE: u16 = 0x2000;
const OFFSET: u16 = 0x1fff;

/// A frame in pieces, from first to last.
pub struct Split<'a> {
    head: [u8; HEAD],
    network: usize,
    head_len: usize,
    payload: &'a [u8],
    /// Payload bytes of each piece but the last.
    step: usize,
    /// Payload bytes that are done with.
    done: usize,
    /// Flags and offset of the packet, which may be a fragment itself.
    word: u16,
}

/// A piece: a frame whose bytes lie in two places. It carries no offload metadata.
pub struct Piece<'a> {
    head: [u8; HEAD],
    head_len: usize,
    /// What follows the headers.
    pub payload: &'a [u8],
}

impl Piece<'_> {
    /// The headers.
    pub fn head(&self) -> &[u8] {
        &self.head[..self.head_len]
    }

    /// Writes the piece; its length, or `None` if `out` is too short.
    pub fn write(&self, out: &mut [u8]) -> Option<usize> {
        let len = self.head_len + self.payload.len();
        let (head, payload) = out.get_mut(..len)?.split_at_mut(self.head_len);
        head.copy_from_slice(self.head());
        payload.copy_from_slice(self.payload);
        Some(len)
    }
}

impl<'a> Split<'a> {
    /// Cuts the frame, whole and in one place, into pieces for a link of this `mtu` (bytes from the IP header on). A
    /// checksum that its sender left to others is completed first.
    ///
    /// `None` if it may not be fragmented ([`may`]), if the link takes less than a header and 8 bytes, or if `frame`
    /// is not what `headers` and `metadata` say.
    pub fn new(frame: &'a mut [u8], headers: &Headers, metadata: &NetHeader, mtu: u16) -> Option<Self> {
        if !may(frame, headers) || metadata.is_gso() {
            return None;
        }
        let (network, transport) = (usize::from(headers.network), usize::from(headers.transport));
        let packet_end = network + headers.len as usize;
        let frame = frame.get_mut(..packet_end)?;
        if metadata.flags & NEEDS_CSUM != 0 && !complete(frame, metadata) {
            return None;
        }
        let frame: &'a [u8] = frame;
        let mut head = [0; HEAD];
        head.get_mut(..transport)?.copy_from_slice(frame.get(..transport)?);
        let payload = &frame[transport..];
        let step = usize::from(mtu).checked_sub(transport.checked_sub(network)?)? & !7;
        let word = u16::from_be_bytes([head[network + 6], head[network + 7]]);
        let end = usize::from(word & OFFSET) * 8 + payload.len();
        let fits = step > 0 && end <= usize::from(u16::MAX);
        fits.then_some(Self { head, network, head_len: transport, payload, step, done: 0, word })
    }

    /// Options that are not for every fragment become padding once the first piece is made.
    fn drop_options(&mut self) {
        let Some(mut options) = self.head.get_mut(self.network + IPV4_LEN..self.head_len) else { return };
        while let Some(&kind) = options.first() {
            let len = match (kind, options.get(1)) {
                (0, _) => break,
                (1, _) => 1,
                (_, Some(&len)) if (2..=options.len()).contains(&usize::from(len)) => usize::from(len),
                _ => break,
            };
            let option;
            (option, options) = options.split_at_mut(len);
            if kind & 0x80 == 0 {
                option.fill(1);
            }
        }
    }
}

/// Whether the packet may be fragmented on its way.
#[inline]
pub fn may(head: &[u8], headers: &Headers) -> bool {
    let at = usize::from(headers.network) + 6;
    !headers.v6 && head.get(at).is_some_and(|byte| byte & (DONT_FRAGMENT >> 8) as u8 == 0)
}

impl<'a> Iterator for Split<'a> {
    type Item = Piece<'a>;

    fn next(&mut self) -> Option<Piece<'a>> {
        let rest = self.payload.get(self.done..).filter(|rest| !rest.is_empty())?;
        let payload = &rest[..rest.len().min(self.step)];
        let last = payload.len() == rest.len();
        let offset = (self.word & OFFSET) + (self.done / 8) as u16;
        let more = if last { self.word & MORE } else { MORE };
        if self.done > 0 {
            self.drop_options();
        }
        let mut head = self.head;
        let ip = &mut head[self.network..self.head_len];
        let len = (ip.len() + payload.len()) as u16;
        ip[2..4].copy_from_slice(&len.to_be_bytes());
        ip[6..8].copy_from_slice(&(offset | more).to_be_bytes());
        ip[10..12].fill(0);
        let checksum = Sum::of(ip).checksum();
        ip[10..12].copy_from_slice(&checksum);
        self.done += payload.len();
        Some(Piece { head, head_len: self.head_len, payload })
    }
}

#[cfg(test)]
mod tests {
    use etherparse::defrag::IpDefragPool;
    use etherparse::{LaxSlicedPacket, SlicedPacket};
    use proptest::prelude::*;

    use super::*;
    use crate::packet::testing::{Checksum, Tcp};

    fn headers(frame: &[u8]) -> Headers {
        let (_, network) = crate::packet::ethernet::payload(frame);
        Headers::parse(frame, frame.len(), network, false).expect("a good frame")
    }

    /// The frame with "don't fragment" set or cleared.
    fn with_df(mut frame: Vec<u8>, df: bool) -> Vec<u8> {
        let (_, at) = crate::packet::ethernet::payload(&frame);
        let header = at..at + usize::from(frame[at] & 0xf) * 4;
        frame[at + 6] = if df { 0x40 } else { 0 };
        frame[at + 10..at + 12].fill(0);
        let sum = Sum::of(&frame[header]).checksum();
        frame[at + 10..at + 12].copy_from_slice(&sum);
        frame
    }

    fn pieces(frame: &[u8], metadata: &NetHeader, mtu: u16) -> Option<Vec<Vec<u8>>> {
        let mut frame = frame.to_vec();
        let read = headers(&frame);
        let split = Split::new(&mut frame, &read, metadata, mtu)?;
        Some(
            split
                .map(|piece| {
                    let mut out = vec![0; 2000];
                    let len = piece.write(&mut out).expect("room");
                    assert_eq!(piece.write(&mut out[..len - 1]), None);
                    out.truncate(len);
                    out
                })
                .collect(),
        )
    }

    /// The payload as another implementation puts it together again.
    fn reassembled(pieces: &[Vec<u8>]) -> Vec<u8> {
        let mut pool = IpDefragPool::<(), ()>::new();
        for (i, piece) in pieces.iter().enumerate() {
            let sliced = SlicedPacket::from_ethernet(piece).expect("a packet");
            let whole = pool.process_sliced_packet(&sliced, (), ()).expect("no contradiction");
            if let Some(whole) = whole {
                assert_eq!(i, pieces.len() - 1, "whole before its last piece");
                return whole.payload;
            }
        }
        panic!("pieces are missing");
    }

    proptest! {
        #[test]
        fn pieces_fit_and_make_up_the_packet(
            payload in proptest::collection::vec(any::<u8>(), 100..4000), words in 0..5_usize, tags in 0..3_usize,
            mtu in 100..1000_u16, partial: bool, odd in proptest::collection::vec(any::<u8>(), 0..20)
        ) {
            let tcp = Tcp { payload, ip_options: 8 * words, tags, ..Tcp::new(false, 0) };
            let whole = with_df(tcp.bytes_of_udp(Checksum::Whole), false);
            let (frame, metadata) = if partial {
                (with_df(tcp.bytes_of_udp(Checksum::Partial), false), tcp.request_of_udp())
            } else {
                ([&whole[..], &odd].concat(), NetHeader::default())
            };
            let pieces = pieces(&frame, &metadata, mtu).expect("may be fragmented");
            for piece in &pieces {
                let read = headers(piece);
                prop_assert!(read.len <= u32::from(mtu));
                prop_assert_eq!(usize::from(read.network) + read.len as usize, piece.len());
                prop_assert!(LaxSlicedPacket::from_ethernet(piece).is_ok());
                prop_assert_eq!(piece[..14 + 4 * tags].to_vec(), frame[..14 + 4 * tags].to_vec());
            }
            prop_assert!(pieces[..pieces.len() - 1].iter().all(|piece| headers(piece).len > u32::from(mtu) - 8));
            if pieces.len() > 1 {
                let at = tcp.tcp_at();
                prop_assert_eq!(&reassembled(&pieces)[..], &whole[at..]);
                // Pieces of a piece are pieces of the whole.
                let again: Vec<_> = pieces.iter()
                    .flat_map(|piece| super::tests::pieces(piece, &NetHeader::default(), 92).expect("may be"))
                    .collect();
                prop_assert_eq!(&reassembled(&again)[..], &whole[at..]);
            }
            let frame = with_df(frame, true);
            prop_assert!(super::tests::pieces(&frame, &metadata, mtu).is_none(), "must not be fragmented");
        }
    }

    #[test]
    fn options_for_the_whole_packet_are_in_the_first_piece_only() {
        let mut frame = Tcp { ip_options: 16, ..Tcp::new(false, 400) }.bytes(Checksum::Whole);
        // Record route (not copied), router alert (copied), padding, something cut off.
        let options = [7, 7, 4, 0, 0, 0, 0, 148, 4, 0, 0, 1, 68, 9, 5, 0];
        frame[34..50].copy_from_slice(&options);
        let frame = with_df(frame, false);
        let pieces = pieces(&frame, &NetHeader::default(), 200).expect("may be fragmented");
        assert_eq!(pieces.len(), 3);
        assert_eq!(pieces[0][34..50], options);
        for piece in &pieces[1..] {
            assert_eq!(piece[34..50], [1, 1, 1, 1, 1, 1, 1, 148, 4, 0, 0, 1, 68, 9, 5, 0]);
        }
    }

    #[test]
    fn what_cannot_be_cut_is_refused() {
        let frame = with_df(Tcp::new(false, 400).bytes(Checksum::Whole), false);
        let plain = NetHeader::default();
        assert!(pieces(&frame, &plain, 28).is_some());
        assert!(pieces(&frame, &plain, 27).is_none(), "no room for 8 bytes");
        assert!(pieces(&frame, &plain, 10).is_none());
        let gso = Tcp::new(false, 400).request(100);
        assert!(pieces(&frame, &gso, 200).is_none(), "to be segmented first");
        let mut frame = Tcp::new(true, 400).bytes(Checksum::Whole);
        let read = Headers::parse(&frame, frame.len(), 14, true).expect("a good frame");
        assert!(Split::new(&mut frame, &read, &plain, 200).is_none(), "IPv6");
    }
}
