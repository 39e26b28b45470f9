//! Offloads at egress: what the sender left to do and the receiver did not offer to do is done here, in software.
//!
//! This is the slow way of frames between unlike ports. The frame is copied into scratch memory of the worker, which
//! also freezes what a guest could still change; its checksum is completed, or it is cut into segments, and the
//! result goes out in bursts like any other frame.
#![forbid(unsafe_code)]

use super::checksum::Sum;
use super::segment::Segments;
use vhost_backend::frame::{Burst, MAX_FRAME, SNAPSHOT};
use vhost_backend::net_header::{GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, NEEDS_CSUM, NetHeader};

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
}

impl Capabilities {
    /// Everything, as a TAP with all of TUNSETOFFLOAD takes it.
    pub const ALL: Self = Self { checksum: true, tso4: true, tso6: true, ecn: true };
    /// Finished frames only.
    pub const NONE: Self = Self { checksum: false, tso4: false, tso6: false, ecn: false };

    /// What a driver takes that acknowledged these feature bits: GUEST_CSUM (1), GUEST_TSO4 (7), GUEST_TSO6 (8),
    /// GUEST_ECN (9). A bit without the ones that it presumes counts for nothing.
    pub fn from_virtio_features(features: u64) -> Self {
        let has = |bit: u32| features & 1 << bit != 0;
        let checksum = has(1);
        let (tso4, tso6) = (checksum && has(7), checksum && has(8));
        Self { checksum, tso4, tso6, ecn: (tso4 || tso6) && has(9) }
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
                _ => false,
            }
            && (self.ecn || header.gso_type & GSO_ECN == 0)
    }
}

/// Finishes frames. Each worker has its own, with room for the longest frame and a burst of segments.
pub struct Finisher {
    linear: Box<[u8]>,
    out: Burst,
}

impl Default for Finisher {
    fn default() -> Self {
        Self::new()
    }
}

impl Finisher {
    /// A finisher with all its memory.
    pub fn new() -> Self {
        Self { linear: vec![0; MAX_FRAME].into_boxed_slice(), out: Burst::new() }
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
        let Self { linear, out } = self;
        let Some(len) = burst.linearise(i, linear) else { return false };
        let frame = &mut linear[..len];
        if header.is_gso() && !caps.accepts(&header) {
            return segment(frame, &header, caps.checksum, out, emit);
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
fn complete(frame: &mut [u8], header: &NetHeader) -> bool {
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

fn segment(
    frame: &[u8],
    header: &NetHeader,
    partial: bool,
    out: &mut Burst,
    mut emit: impl FnMut(&Burst),
) -> bool {
    let Some(mut segments) = Segments::new(frame, header) else { return false };
    let mut next = 0;
    while next < segments.count() {
        let before = next;
        out.with_slices(
            |filler| {
                while next < segments.count() {
                    let piece = segments.get(next, partial);
                    if !filler.push(piece.header, piece.head, piece.payload) {
                        break;
                    }
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
