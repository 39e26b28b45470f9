//! Offloads at egress: what the sender left to do and the receiver did not offer to do is done here, in software.
//!
//! This is the slow way of frames between unlike ports. The frame is copied into scratch memory of the worker, which
//! also freezes what a guest could still change; its checksum is completed, or it is cut into segments, and the
//! result goes out in bursts like any other frame.
#![forbid(unsafe_code)]

use super::checksum::Sum;
use super::datagram::Fragments;
use super::segment::{Piece, Segments};
use std::hash::{BuildHasher, RandomState};
use vhost_backend::frame::{Burst, MAX_FRAME, SNAPSHOT};
use vhost_backend::net_header::{
    GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP, GSO_UDP_L4, NEEDS_CSUM, NetHeader,
};

/// What a receiver takes. TSO presumes the checksum, and ECN presumes TSO, as in virtio 1.3, 5.1.3.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Frames whose checksum is partial (or vouched for).
    pub checksum: bool,
    /// TCP over IPv4, not segmented yet.
    pub tso4: bool,
    /// TCP over IPv6, not segmented yet.
    pub tso6: bool,
    /// The same with CWR set, which only the first segment may repeat.
    pub ecn: bool,
    /// UDP datagrams, not fragmented yet.
    pub ufo: bool,
    /// Several UDP datagrams over either version of IP, not segmented yet.
    pub uso: bool,
}

impl Capabilities {
    /// Everything.
    pub const ALL: Self = Self { ufo: true, uso: true, ..Self::KERNEL };
    /// What devices of all kernels take. Those before Linux 6.2 refuse USO, and none makes UFO any more.
    pub const KERNEL: Self =
        Self { checksum: true, tso4: true, tso6: true, ecn: true, ufo: false, uso: false };
    /// Finished frames only.
    pub const NONE: Self =
        Self { checksum: false, tso4: false, tso6: false, ecn: false, ufo: false, uso: false };

    /// What a driver takes that acknowledged these feature bits: GUEST_CSUM (1), GUEST_TSO4 (7), GUEST_TSO6 (8),
    /// GUEST_ECN (9), GUEST_UFO (10), GUEST_USO4 (54), GUEST_USO6 (55). A bit without the ones that it presumes counts for
    /// nothing; USO's two count together, since a frame's metadata does not say which it is.
    pub fn from_virtio_features(features: u64) -> Self {
        let has = |bit: u32| features >> bit & 1 == 1;
        let checksum = has(1);
        let (tso4, tso6) = (checksum && has(7), checksum && has(8));
        let (ufo, uso) = (checksum && has(10), checksum && has(54) && has(55));
        Self { checksum, tso4, tso6, ecn: (tso4 || tso6) && has(9), ufo, uso }
    }

    /// Whether a frame with this metadata may go as it is.
    #[inline]
    pub fn accepts(self, header: &NetHeader) -> bool {
        header.is_plain() || self.accepts_offload(header)
    }

    #[inline]
    fn accepts_offload(self, header: &NetHeader) -> bool {
        self.checksum
            && match header.gso_kind() {
                GSO_NONE => true,
                GSO_TCPV4 => self.tso4,
                GSO_TCPV6 => self.tso6,
                GSO_UDP => self.ufo,
                GSO_UDP_L4 => self.uso,
                _ => false,
            }
            && (self.ecn || header.gso_type & GSO_ECN == 0)
    }
}

/// Finishes frames. Each worker has its own, with room for the longest frame and a burst of segments.
pub struct Finisher {
    linear: Box<[u8]>,
    out: Burst,
    /// Numbers of IPv6 fragments: random, so that nobody can guess them (RFC 7739), and never the same soon.
    numbers: RandomState,
    fragmented: u32,
}

impl Default for Finisher {
    fn default() -> Self {
        Self::new()
    }
}

impl Finisher {
    /// A finisher with all its memory.
    pub fn new() -> Self {
        Self {
            linear: vec![0; MAX_FRAME].into_boxed_slice(),
            out: Burst::new(),
            numbers: RandomState::new(),
            fragmented: 0,
        }
    }

    /// Turns frame `i` of `burst` into frames that a receiver of these capabilities takes, and hands them to `emit`
    /// in order, in bursts of at most 64. The frame's metadata has passed [`super::validate`]; then the result is
    /// true. Otherwise it may be false, with nothing emitted.
    ///
    /// - Segments go with a partial checksum where the receiver takes that: it saves reading the payload.
    /// - A completed checksum of 0 is stored as 0xffff whatever the protocol, as `skb_checksum_help` does: UDP
    ///   demands it, and to others it is the same number.
    pub fn finish(
        &mut self,
        burst: &Burst,
        i: usize,
        caps: Capabilities,
        mut emit: impl FnMut(&Burst),
    ) -> bool {
        let header = *burst.header(i);
        let Self { linear, out, numbers, fragmented } = self;
        let Some(len) = burst.linearise(i, linear) else { return false };
        let frame = &mut linear[..len];
        if header.is_gso() && !caps.accepts(&header) {
            if header.gso_kind() == GSO_UDP {
                *fragmented = fragmented.wrapping_add(1);
                let number = numbers.hash_one(*fragmented) as u32;
                if !complete(frame, &header) {
                    return false;
                }
                let Some(mut fragments) = Fragments::new(frame, &header, number) else { return false };
                return push_all(out, fragments.count(), |n, push| push(fragments.get(n)), emit);
            }
            let Some(mut segments) = Segments::new(frame, &header) else { return false };
            let partial = caps.checksum;
            return push_all(out, segments.count(), |n, push| push(segments.get(n, partial)), emit);
        }
        let header = if caps.accepts(&header) {
            header
        } else {
            if header.flags & NEEDS_CSUM != 0 && !complete(frame, &header) {
                return false;
            }
            NetHeader::default()
        };
        let (head, rest) = frame.split_at(len.min(SNAPSHOT));
        let mut filled = false;
        out.with_slices(|filler| filled = filler.push(header, head, rest), |burst| emit(burst));
        filled
    }
}

/// Completes a partial checksum in place; false if it does not lie within the frame.
pub(crate) fn complete(frame: &mut [u8], header: &NetHeader) -> bool {
    let Some(covered) = frame.get_mut(usize::from(header.csum_start)..) else { return false };
    // The field counts, too: the pseudo-header's sum is in it.
    let checksum = match Sum::of(covered).checksum() {
        [0, 0] => [0xff, 0xff],
        checksum => checksum,
    };
    let at = usize::from(header.csum_offset);
    let Some(field) = covered.get_mut(at..at + 2) else { return false };
    field.copy_from_slice(&checksum);
    true
}

/// Emits `count` pieces of a frame in bursts; `piece` gives each to its argument, which tells whether it fits.
fn push_all<'a>(
    out: &mut Burst,
    count: usize,
    mut piece: impl FnMut(usize, &mut dyn FnMut(Piece<'_, 'a>) -> bool) -> bool,
    mut emit: impl FnMut(&Burst),
) -> bool {
    let mut next = 0;
    while next < count {
        let before = next;
        out.with_slices(
            |filler| {
                while next < count
                    && piece(next, &mut |piece| filler.push(piece.header, piece.head, piece.payload))
                {
                    next += 1;
                }
            },
            |burst| {
                if !burst.is_empty() {
                    emit(burst);
                }
            },
        );
        if next == before {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::super::testing::{ACK, CWR, Checksum, FIN, PSH, Tcp, noise};
    use super::super::{fits, validate};
    use super::*;
    use proptest::prelude::*;

    const CHECKSUM: Capabilities = Capabilities { checksum: true, ..Capabilities::NONE };

    /// Header and bytes of each frame that came out, and how many frames each burst had.
    type Finished = (Vec<(NetHeader, Vec<u8>)>, Vec<usize>);

    /// What comes out for `frame`.
    fn finished(frame: &[u8], header: NetHeader, caps: Capabilities) -> Option<Finished> {
        let (mut burst, mut finisher) = (Burst::new(), Finisher::new());
        let (mut frames, mut bursts) = (Vec::new(), Vec::new());
        let (head, rest) = frame.split_at(frame.len().min(SNAPSHOT));
        let done = burst.with_slices(
            |filler| {
                // Not the first of its burst.
                assert!(filler.push(NetHeader::default(), &[0; 60], &[]));
                assert!(filler.push(header, head, rest));
            },
            |burst| {
                finisher.finish(burst, 1, caps, |out| {
                    bursts.push(out.len());
                    for i in 0..out.len() {
                        let mut bytes = vec![0; out.frame_len(i)];
                        out.linearise(i, &mut bytes).unwrap();
                        frames.push((*out.header(i), bytes));
                    }
                })
            },
        );
        done.then_some((frames, bursts))
    }

    fn partial(tcp: &Tcp) -> NetHeader {
        NetHeader {
            flags: NEEDS_CSUM,
            csum_start: tcp.tcp_at() as u16,
            csum_offset: 16,
            ..NetHeader::default()
        }
    }

    /// Compares every byte of the segments with frames that etherparse made of the same pieces.
    fn check_segments(tcp: &Tcp, gso_size: u16, caps: Capabilities, ecn: bool) {
        let frame = tcp.bytes(Checksum::Partial);
        let mut header = tcp.request(gso_size);
        header.gso_type |= if ecn { GSO_ECN } else { 0 };
        let header = validate(&frame[..frame.len().min(SNAPSHOT)], frame.len(), header).unwrap();
        assert!(!caps.accepts(&header));
        let (frames, bursts) = finished(&frame, header, caps).unwrap();
        let expected = tcp.segments(gso_size.into());
        assert_eq!(frames.len(), expected.len());
        for (n, ((header, bytes), segment)) in frames.iter().zip(&expected).enumerate() {
            let (want, want_header) = if caps.checksum {
                (segment.bytes(Checksum::Partial), partial(segment))
            } else {
                (segment.bytes(Checksum::Whole), NetHeader::default())
            };
            assert_eq!(bytes, &want, "segment {n}");
            assert_eq!(header, &want_header, "segment {n}");
        }
        let payload: Vec<u8> =
            frames.iter().flat_map(|(_, bytes)| &bytes[tcp.headers()..]).copied().collect();
        assert!(payload == tcp.payload);
        assert!(bursts[..bursts.len() - 1].iter().all(|&n| n == 64) && *bursts.last().unwrap() > 0);
    }

    #[test]
    fn features_become_capabilities() {
        let of = Capabilities::from_virtio_features;
        assert_eq!(of(1 << 1 | 1 << 7 | 1 << 8 | 1 << 9), Capabilities::KERNEL);
        assert_eq!(of(1 << 1 | 0xf << 7 | 3 << 54), Capabilities::ALL);
        assert_eq!(of(1 << 1 | 1 << 54), CHECKSUM, "USO over one version of IP only");
        assert_eq!(of(1 << 1 | 1 << 10), Capabilities { ufo: true, ..CHECKSUM });
        assert_eq!(of(!(1 << 1)), Capabilities::NONE, "everything presumes GUEST_CSUM");
        assert_eq!(of(1 << 1 | 1 << 9), CHECKSUM, "ECN alone means nothing");
        assert_eq!(of(1 << 1 | 1 << 7), Capabilities { tso4: true, ..CHECKSUM });
        assert_eq!(of(1 << 1 | 1 << 8 | 1 << 9), Capabilities { tso4: false, ..Capabilities::KERNEL });
    }

    #[test]
    fn what_a_receiver_accepts() {
        let gso4 = Tcp::new(false, 100).request(50);
        let gso6 = Tcp::new(true, 100).request(50);
        let with_ecn = NetHeader { gso_type: gso4.gso_type | GSO_ECN, ..gso4 };
        let checksum = NetHeader { flags: NEEDS_CSUM, ..NetHeader::default() };
        let only_v4 = Capabilities { tso4: true, ..CHECKSUM };
        let plain = NetHeader::default();
        let accepts = |caps: Capabilities| [plain, checksum, gso4, gso6, with_ecn].map(|h| caps.accepts(&h));
        assert_eq!(accepts(Capabilities::ALL), [true; 5]);
        assert_eq!(accepts(Capabilities::NONE), [true, false, false, false, false]);
        assert_eq!(accepts(CHECKSUM), [true, true, false, false, false]);
        assert_eq!(accepts(only_v4), [true, true, true, false, false]);
        let udp = [3, 5].map(|gso_type| NetHeader { gso_type, ..gso4 });
        assert_eq!(udp.map(|header| Capabilities::ALL.accepts(&header)), [true; 2]);
        assert_eq!(udp.map(|header| Capabilities::KERNEL.accepts(&header)), [false; 2]);
        let uso = Capabilities { uso: true, ..CHECKSUM };
        assert_eq!(udp.map(|header| uso.accepts(&header)), [false, true]);
        assert!(!Capabilities::ALL.accepts(&NetHeader { gso_type: 6, ..gso4 }));
    }

    #[test]
    fn a_frame_of_64_kib_leaves_in_several_bursts() {
        for v6 in [false, true] {
            // The longest packet that Linux's own segmentation offload makes.
            let mut tcp = Tcp::new(v6, 65535 - if v6 { 40 } else { 20 } - 20 - 12);
            tcp.flags = ACK | PSH | FIN;
            tcp.sequence = u32::MAX - 5000;
            tcp.identification = u16::MAX - 3;
            for caps in [Capabilities::NONE, CHECKSUM] {
                check_segments(&tcp, 1448, caps, false);
                check_segments(&tcp, 101, caps, false);
            }
        }
    }

    #[test]
    fn cwr_stays_with_the_first_segment() {
        let mut tcp = Tcp::new(false, 5000);
        tcp.flags = ACK | CWR | PSH;
        let tso = Capabilities { ecn: false, ..Capabilities::ALL };
        check_segments(&tcp, 1448, tso, true);
        check_segments(&tcp, 1448, Capabilities::NONE, true);
    }

    /// Compares datagrams or fragments with what etherparse makes of the same pieces.
    fn check_datagrams(udp: &Tcp, gso_type: u8, size: u16, caps: Capabilities) {
        let frame = udp.bytes_of_udp(Checksum::Partial);
        let request = udp.request_of_datagrams(gso_type, size);
        let header = validate(&frame[..frame.len().min(SNAPSHOT)], frame.len(), request).unwrap();
        assert_eq!(header, request);
        let (frames, _) = finished(&frame, header, caps).unwrap();
        let fragments = gso_type == GSO_UDP;
        // The number is the finisher's own choice, and the same for all.
        let at = udp.tcp_at() + 4;
        let number = u32::from_be_bytes(frames[0].1[at..at + 4].try_into().unwrap());
        let checksum = if caps.checksum && !fragments { Checksum::Partial } else { Checksum::Whole };
        let expected = udp.datagrams(gso_type, size.into(), checksum, number);
        assert_eq!(frames.len(), expected.len());
        for (n, ((header, bytes), want)) in frames.iter().zip(&expected).enumerate() {
            assert_eq!(bytes, want, "piece {n}");
            let partial = checksum == Checksum::Partial;
            let want = if partial { udp.request_of_udp() } else { NetHeader::default() };
            assert_eq!(header, &want, "piece {n}");
            assert!(fits(bytes, bytes.len(), header, (request_longest(udp, gso_type, size) - 14) as u16));
        }
        let longest = frames.iter().map(|(_, bytes)| bytes.len()).max().unwrap();
        assert_eq!(longest, request_longest(udp, gso_type, size));
        let mtu = (longest - 14 - 4 * udp.tags.min(1)) as u16;
        assert!(fits(&frame, frame.len(), &header, mtu) && !fits(&frame, frame.len(), &header, mtu - 1));
    }

    /// Bytes of the longest piece.
    fn request_longest(udp: &Tcp, gso_type: u8, size: u16) -> usize {
        let size = usize::from(size);
        match (gso_type, udp.v6) {
            (GSO_UDP, v6) => udp.tcp_at() + if v6 { 8 } else { 0 } + size / 8 * 8,
            _ => udp.tcp_at() + 8 + size,
        }
    }

    #[test]
    fn datagrams_leave_as_datagrams_or_fragments() {
        for v6 in [false, true] {
            for caps in [Capabilities::NONE, CHECKSUM, Capabilities::KERNEL] {
                for (payload, uso, ufo) in [(5000, 1400, 1480), (1001, 1000, 1000), (65_000, 700, 1477)] {
                    let udp = Tcp { identification: u16::MAX, ..Tcp::new(v6, payload) };
                    check_datagrams(&udp, GSO_UDP_L4, uso, caps);
                    check_datagrams(&udp, GSO_UDP, ufo, caps);
                    let with_options = Tcp { ip_options: 16, tags: 1, routing: v6, ..udp };
                    check_datagrams(&with_options, GSO_UDP_L4, uso, caps);
                    check_datagrams(&with_options, GSO_UDP, ufo, caps);
                }
            }
        }
    }

    #[test]
    fn the_numbers_of_ipv6_fragments_differ() {
        let udp = Tcp::new(true, 3000);
        let frame = udp.bytes_of_udp(Checksum::Partial);
        let (mut burst, mut finisher) = (Burst::new(), Finisher::new());
        let mut numbers = std::collections::HashSet::new();
        for _ in 0..100 {
            burst.with_slices(
                |filler| {
                    assert!(filler.push(
                        udp.request_of_datagrams(GSO_UDP, 1000),
                        &frame[..100],
                        &frame[100..]
                    ))
                },
                |burst| {
                    assert!(finisher.finish(burst, 0, Capabilities::NONE, |out| {
                        numbers.insert(out.head(0)[58..62].to_vec());
                    }));
                },
            );
        }
        assert!(numbers.len() > 95, "{} different numbers", numbers.len());
    }

    #[test]
    fn what_the_receiver_accepts_goes_unchanged() {
        let tcp = Tcp::new(true, 9000);
        let frame = tcp.bytes(Checksum::Partial);
        let header = tcp.request(1000);
        assert_eq!(
            finished(&frame, header, Capabilities::ALL),
            Some((vec![(header, frame.clone())], vec![1])),
            "GSO"
        );
        let plain = NetHeader::default();
        assert_eq!(finished(&frame, plain, Capabilities::NONE), Some((vec![(plain, frame)], vec![1])));
    }

    #[test]
    fn a_udp_checksum_that_comes_to_zero_is_sent_as_ones() {
        for v6 in [false, true] {
            let mut udp = Tcp::new(v6, 100);
            udp.payload[..2].fill(0);
            let at = udp.tcp_at() + 6;
            // Adding the checksum to the text brings the sum to 0xffff, and the checksum to 0.
            let whole = udp.bytes_of_udp(Checksum::Whole);
            udp.payload[..2].copy_from_slice(&whole[at..at + 2]);
            let frame = udp.bytes_of_udp(Checksum::Partial);
            let (frames, _) = finished(&frame, udp.request_of_udp(), Capabilities::NONE).unwrap();
            assert_eq!(frames[0].1[at..at + 2], [0xff, 0xff]);
            assert_eq!(frames[0].1, udp.bytes_of_udp(Checksum::Whole));
        }
    }

    #[test]
    fn metadata_that_was_never_checked_is_refused() {
        let tcp = Tcp::new(false, 3000);
        let frame = tcp.bytes(Checksum::Partial);
        let good = tcp.request(1000);
        for bad in [
            NetHeader { hdr_len: 0, ..good },
            NetHeader { hdr_len: 129, ..good },
            NetHeader { gso_size: 0, ..good },
            NetHeader { csum_start: 60, ..good },
            NetHeader { csum_start: 0, ..good },
            NetHeader { gso_type: GSO_TCPV6, ..good },
            NetHeader { gso_type: 3, csum_start: 8, ..good },
            NetHeader { gso_type: 3, csum_start: 130, ..good },
            NetHeader { gso_type: 3, gso_size: 7, ..good },
            NetHeader { gso_type: 5, csum_start: 60, ..good },
            NetHeader { gso_type: 6, ..good },
            NetHeader { gso_type: 0, csum_start: frame.len() as u16 - 17, ..good },
            NetHeader { gso_type: 0, csum_start: u16::MAX, csum_offset: u16::MAX, ..good },
        ] {
            assert_eq!(finished(&frame, bad, Capabilities::NONE), None, "{bad:?}");
        }
        assert!(finished(&frame, good, Capabilities::NONE).is_some());
    }

    fn any_tcp() -> impl Strategy<Value = Tcp> {
        let shape = (any::<bool>(), 0..3_usize, 0..3_usize, any::<bool>(), 0..11_usize);
        let fields = (any::<u8>(), any::<u32>(), any::<u16>(), 1..20000_usize);
        (shape, fields)
            .prop_map(
                |((v6, tags, ip_options, routing, options), (flags, sequence, identification, payload))| {
                    Tcp {
                        v6,
                        tags,
                        ip_options: 8 * ip_options,
                        routing,
                        options: 4 * options,
                        flags: flags & (FIN | PSH | ACK | CWR),
                        sequence,
                        identification,
                        payload: noise(payload),
                    }
                },
            )
            .prop_filter("headers within the snapshot", |tcp| tcp.headers() <= SNAPSHOT)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        #[test]
        fn segments_are_what_etherparse_makes_of_the_pieces(
            tcp in any_tcp(),
            share in 2..40_usize,
            checksum: bool,
            ecn: bool,
        ) {
            let gso_size = (tcp.payload.len() / share).max(8);
            prop_assume!(gso_size < tcp.payload.len());
            let caps = Capabilities { checksum, ..Capabilities::NONE };
            check_segments(&tcp, gso_size as u16, caps, ecn);
        }

        #[test]
        fn checksums_are_what_etherparse_computes(tcp in any_tcp(), udp: bool) {
            let (frame, request, want) = if udp {
                let whole = tcp.bytes_of_udp(Checksum::Whole);
                (tcp.bytes_of_udp(Checksum::Partial), tcp.request_of_udp(), whole)
            } else {
                (tcp.bytes(Checksum::Partial), partial(&tcp), tcp.bytes(Checksum::Whole))
            };
            let header = validate(&frame[..frame.len().min(SNAPSHOT)], frame.len(), request).unwrap();
            prop_assert_eq!(header, request);
            let (frames, _) = finished(&frame, header, Capabilities::NONE).unwrap();
            prop_assert_eq!(&frames[..], &[(NetHeader::default(), want)]);
        }

        #[test]
        fn whatever_passes_the_check_can_be_finished(
            tcp in any_tcp(),
            gso_size in prop_oneof![0..100_u16, any::<u16>()],
            flags in prop_oneof![Just(NEEDS_CSUM), any::<u8>()],
            gso_type in prop_oneof![4 => Just(None), 1 => any::<u8>().prop_map(Some)],
            place in prop_oneof![3 => Just(None), 1 => (0..200_u16, 0..70_u16).prop_map(Some), 1 => any::<(u16, u16)>().prop_map(Some)],
            spoiled in proptest::collection::vec((0..SNAPSHOT, any::<u8>()), 0..4),
            cut in prop_oneof![Just(usize::MAX), 14..200_usize],
            caps in any::<(bool, bool, bool, bool, bool, bool)>(),
            datagram: bool,
        ) {
            let udp = datagram.then(|| tcp.bytes_of_udp(Checksum::Partial));
            let mut frame = udp.unwrap_or_else(|| tcp.bytes(Checksum::Partial));
            for (at, byte) in spoiled {
                if at < frame.len() {
                    frame[at] = byte;
                }
            }
            frame.truncate(cut);
            let mut header = NetHeader { flags, hdr_len: gso_size, num_buffers: gso_size, ..tcp.request(gso_size) };
            if datagram {
                header = NetHeader { flags, ..tcp.request_of_datagrams(if gso_size % 2 == 0 { GSO_UDP } else { GSO_UDP_L4 }, gso_size) };
            }
            header.gso_type = gso_type.unwrap_or(header.gso_type);
            if let Some((start, offset)) = place {
                (header.csum_start, header.csum_offset) = (start, offset);
            }
            let (checksum, tso4, tso6, ecn, ufo, uso) = caps;
            let caps = Capabilities { checksum, tso4, tso6, ecn, ufo, uso };
            if let Ok(header) = validate(&frame[..frame.len().min(SNAPSHOT)], frame.len(), header) {
                prop_assert_eq!(header.num_buffers, 0);
                let (frames, _) = finished(&frame, header, caps).expect("it has passed the check");
                prop_assert!(frames.len() <= super::super::MAX_SEGMENTS);
                let whole = frames.len() == 1;
                prop_assert!(frames.iter().all(|(header, _)| caps.accepts(header)));
                let (headers, before) = match header.gso_kind() {
                    _ if whole || !header.is_gso() => (0, 0),
                    GSO_UDP => {
                        let before = usize::from(header.csum_start);
                        (before + if tcp.v6 { 8 } else { 0 }, before)
                    }
                    _ => (usize::from(header.hdr_len), usize::from(header.hdr_len)),
                };
                let bytes: usize = frames.iter().map(|(_, bytes)| bytes.len() - headers).sum();
                prop_assert_eq!(bytes + before, frame.len());
                // Addresses are never overwritten.
                prop_assert!(frames.iter().all(|(_, bytes)| bytes[..14] == frame[..14]));
            }
        }
    }
}
