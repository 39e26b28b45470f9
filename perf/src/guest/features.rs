#![forbid(unsafe_code)]
//! The virtio-net and vhost-user feature bits that the guest may ask for (virtio 1.3, sections 5.1.3 and 6;
//! vhost-user's own bit 30 is left to the session).

/// The device takes frames with unfinished checksums.
pub const CSUM: u64 = 1 << 0;
/// The driver takes frames with unfinished checksums.
pub const GUEST_CSUM: u64 = 1 << 1;
/// The device tells the MTU.
pub const MTU: u64 = 1 << 3;
/// The driver takes TCP over IPv4 frames larger than the MTU.
pub const GUEST_TSO4: u64 = 1 << 7;
/// The driver takes TCP over IPv6 frames larger than the MTU.
pub const GUEST_TSO6: u64 = 1 << 8;
/// The driver takes such frames with ECN's CWR.
pub const GUEST_ECN: u64 = 1 << 9;
/// The device takes TCP over IPv4 frames larger than the MTU.
pub const HOST_TSO4: u64 = 1 << 11;
/// The device takes TCP over IPv6 frames larger than the MTU.
pub const HOST_TSO6: u64 = 1 << 12;
/// The device takes such frames with ECN's CWR.
pub const HOST_ECN: u64 = 1 << 13;
/// A received frame may spread over several buffers.
pub const MRG_RXBUF: u64 = 1 << 15;
/// Several queue pairs.
pub const MQ: u64 = 1 << 22;
/// A legacy device takes the header and the frame in one descriptor.
pub const ANY_LAYOUT: u64 = 1 << 27;
/// Descriptors may point to tables of descriptors.
pub const INDIRECT_DESC: u64 = 1 << 28;
/// Notifications are suppressed by index instead of by flag.
pub const EVENT_IDX: u64 = 1 << 29;
/// Not a legacy device: little-endian, 12-byte header.
pub const VERSION_1: u64 = 1 << 32;
/// Packed rings instead of split ones.
pub const RING_PACKED: u64 = 1 << 34;
/// Descriptor chains come back in the order in which they were offered.
pub const IN_ORDER: u64 = 1 << 35;

/// What a plain modern guest asks for: no offloads, mergeable buffers, indirect descriptors.
pub const PLAIN: u64 = VERSION_1 | MRG_RXBUF | INDIRECT_DESC | MQ;
/// Checksum and TCP segmentation offload, both ways.
pub const OFFLOADS: u64 =
    CSUM | GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | HOST_TSO4 | HOST_TSO6 | HOST_ECN;
