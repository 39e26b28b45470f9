//! The virtio-net header (virtio 1.3, section 5.1.6) in its 12-byte form.
//!
//! TAP devices and packet sockets speak the same header (`TUNSETVNETHDRSZ`, `PACKET_VNET_HDR`), so it is the one
//! form in which offload metadata travels through the switch. Values come from guests: nothing here is trusted
//! before [`crate::frame`]'s user has checked it against the frame.

/// `flags`: the checksum from `csum_start` to the end has still to be filled in at `csum_start + csum_offset`.
pub const NEEDS_CSUM: u8 = 1;
/// `flags`: the sender vouches for the checksum.
pub const DATA_VALID: u8 = 2;

/// `gso_type`: not a segmentation offload frame.
pub const GSO_NONE: u8 = 0;
/// `gso_type`: TCP over IPv4.
pub const GSO_TCPV4: u8 = 1;
/// `gso_type`: a UDP datagram to be cut into IP fragments (UFO).
pub const GSO_UDP: u8 = 3;
/// `gso_type`: TCP over IPv6.
pub const GSO_TCPV6: u8 = 4;
/// `gso_type`: several UDP datagrams in one (USO).
pub const GSO_UDP_L4: u8 = 5;
/// `gso_type` flag: the TCP header carries ECN's CWR, which only the first segment may repeat.
pub const GSO_ECN: u8 = 0x80;

/// Bytes of the header that every modern device and every mergeable legacy device uses.
pub const NET_HEADER_LEN: usize = 12;
/// Bytes of the header of a legacy device without mergeable buffers: `num_buffers` is missing.
pub const LEGACY_NET_HEADER_LEN: usize = 10;

/// A virtio-net header, little-endian on the wire, in the order of the specification.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct NetHeader {
    /// [`NEEDS_CSUM`], [`DATA_VALID`].
    pub flags: u8,
    /// One of the `GSO_` values, perhaps with [`GSO_ECN`].
    pub gso_type: u8,
    /// Bytes of all headers, Ethernet to TCP; a hint where it comes from a guest.
    pub hdr_len: u16,
    /// Payload bytes of each segment.
    pub gso_size: u16,
    /// First byte that the checksum covers, counted from the Ethernet header.
    pub csum_start: u16,
    /// Where the checksum is stored, counted from `csum_start`.
    pub csum_offset: u16,
    /// Receive buffers that the frame takes (mergeable buffers only).
    pub num_buffers: u16,
}

impl NetHeader {
    /// No offload at all: neither checksum nor segmentation left to do, nothing vouched for.
    #[inline]
    pub fn is_plain(&self) -> bool {
        self.flags == 0 && self.gso_type == GSO_NONE
    }

    /// The header without the leftovers that a sender may put beside no offload at all: a kernel refuses a frame for
    /// a `hdr_len` beyond its end even then.
    #[inline]
    pub fn meaningful(self) -> Self {
        if self.is_plain() { Self::default() } else { self }
    }

    /// The GSO kind without the ECN flag.
    #[inline]
    pub fn gso_kind(&self) -> u8 {
        self.gso_type & !GSO_ECN
    }

    /// Whether the frame is larger than what goes on a wire and has to be cut for a receiver without TSO.
    #[inline]
    pub fn is_gso(&self) -> bool {
        self.gso_kind() != GSO_NONE
    }

    /// The metadata of the same frame with `by` more bytes in front of what it points to; `None` if that is beyond a
    /// frame's bounds.
    pub fn moved(mut self, by: i16) -> Option<Self> {
        if self.flags & NEEDS_CSUM != 0 {
            self.csum_start = self.csum_start.checked_add_signed(by)?;
        }
        if self.hdr_len != 0 {
            self.hdr_len = self.hdr_len.checked_add_signed(by)?;
        }
        Some(self)
    }

    /// The header as it lies in memory.
    #[inline]
    pub fn to_bytes(self) -> [u8; NET_HEADER_LEN] {
        let mut bytes = [0; NET_HEADER_LEN];
        bytes[0] = self.flags;
        bytes[1] = self.gso_type;
        bytes[2..4].copy_from_slice(&self.hdr_len.to_le_bytes());
        bytes[4..6].copy_from_slice(&self.gso_size.to_le_bytes());
        bytes[6..8].copy_from_slice(&self.csum_start.to_le_bytes());
        bytes[8..10].copy_from_slice(&self.csum_offset.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.num_buffers.to_le_bytes());
        bytes
    }

    /// The header from its bytes in memory.
    #[inline]
    pub fn from_bytes(bytes: &[u8; NET_HEADER_LEN]) -> Self {
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
            num_buffers: word(10),
        }
    }
}
