//! What the device side offers, and the names of feature bits.
//!
//! Virtio bits: virtio 1.3, sections 5.1.3 (network device) and 6; `VHOST_USER_F_PROTOCOL_FEATURES` and the protocol
//! bits: the vhost-user specification. Bits of the control queue, of the link status and the like are the frontend's
//! own business: they are offered where frontends ask the backend for leave, and nothing here implements them.

#![forbid(unsafe_code)]

use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use virtio_bindings::{
    virtio_config::{
        VIRTIO_F_ANY_LAYOUT, VIRTIO_F_IN_ORDER, VIRTIO_F_NOTIFY_ON_EMPTY, VIRTIO_F_RING_PACKED,
        VIRTIO_F_VERSION_1,
    },
    virtio_net::{
        VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_GUEST_CSUM,
        VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN,
        VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF,
        VIRTIO_NET_F_MTU,
    },
    virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC},
};

/// `VHOST_USER_F_PROTOCOL_FEATURES`, as a mask: not a virtio feature, but it travels in the same word.
pub const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// `VHOST_F_LOG_ALL`, as a mask: buffers that are written are noted in the dirty log. Guests never see it.
pub const LOG_ALL: u64 = VhostUserVirtioFeatures::LOG_ALL.bits();

/// Bits that are offered, with the names that operators see.
const OFFERED: [(u32, &str); 22] = [
    (VIRTIO_NET_F_CSUM, "CSUM"),
    (VIRTIO_NET_F_GUEST_CSUM, "GUEST_CSUM"),
    (VIRTIO_NET_F_MTU, "MTU"),
    (VIRTIO_NET_F_GUEST_TSO4, "GUEST_TSO4"),
    (VIRTIO_NET_F_GUEST_TSO6, "GUEST_TSO6"),
    (VIRTIO_NET_F_GUEST_ECN, "GUEST_ECN"),
    (VIRTIO_NET_F_HOST_TSO4, "HOST_TSO4"),
    (VIRTIO_NET_F_HOST_TSO6, "HOST_TSO6"),
    (VIRTIO_NET_F_HOST_ECN, "HOST_ECN"),
    (VIRTIO_NET_F_MRG_RXBUF, "MRG_RXBUF"),
    (VIRTIO_NET_F_CTRL_VQ, "CTRL_VQ"),
    (VIRTIO_NET_F_GUEST_ANNOUNCE, "GUEST_ANNOUNCE"),
    (VIRTIO_NET_F_MQ, "MQ"),
    (VIRTIO_F_NOTIFY_ON_EMPTY, "NOTIFY_ON_EMPTY"),
    (LOG_ALL.trailing_zeros(), "LOG_ALL"),
    (VIRTIO_F_ANY_LAYOUT, "ANY_LAYOUT"),
    (VIRTIO_RING_F_INDIRECT_DESC, "INDIRECT_DESC"),
    (VIRTIO_RING_F_EVENT_IDX, "EVENT_IDX"),
    (PROTOCOL_FEATURES.trailing_zeros(), "PROTOCOL_FEATURES"),
    (VIRTIO_F_VERSION_1, "VERSION_1"),
    (VIRTIO_F_RING_PACKED, "RING_PACKED"),
    (VIRTIO_F_IN_ORDER, "IN_ORDER"),
];

/// The feature word that GET_FEATURES answers.
///
/// IN_ORDER: rings give buffers back in the order they were made available. MTU: the frontend may tell its guest one.
/// LOG_ALL: live migration. UDP segmentation is not there.
pub fn offered() -> u64 {
    OFFERED.iter().fold(0, |word, (bit, _)| word | 1 << bit)
}

/// The word that GET_PROTOCOL_FEATURES answers. Further bits would let the frontend send messages that the `vhost`
/// crate answers by closing the connection (NET_SET_MTU, SEND_RARP, SET_STATUS). LOG_SHMFD is what QEMU asks for before it
/// migrates a guest; those who announce themselves after it (GUEST_ANNOUNCE) need nothing of us.
pub fn offered_protocol() -> VhostUserProtocolFeatures {
    VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
        | VhostUserProtocolFeatures::RESET_DEVICE
        | VhostUserProtocolFeatures::LOG_SHMFD
        | VhostUserProtocolFeatures::INFLIGHT_SHMFD
}

/// The names of the bits of a feature word, in the order of the bits: `MRG_RXBUF`, ...; a bit that is never offered
/// appears as `BIT_n`.
pub fn names(word: u64) -> Vec<String> {
    (0..u64::BITS)
        .filter(|bit| word >> bit & 1 == 1)
        .map(|bit| match OFFERED.iter().find(|(offered, _)| *offered == bit) {
            Some((_, name)) => (*name).to_owned(),
            None => format!("BIT_{bit}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_offered_bit_has_its_own_name() {
        let names = names(offered());
        assert_eq!(names.len(), OFFERED.len(), "a bit is listed twice");
        assert!(names.iter().all(|name| !name.starts_with("BIT_")));
        assert_eq!(LOG_ALL, 1 << 26);
    }

    #[test]
    fn names_follow_the_bits() {
        assert_eq!(names(1 << 15 | 1 << 32 | 1 << 63), ["MRG_RXBUF", "VERSION_1", "BIT_63"]);
        assert!(names(0).is_empty());
    }
}
