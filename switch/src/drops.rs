//! Every reason for which a frame is dropped, in the one place that names them all.
#![forbid(unsafe_code)]

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// Why a frame was dropped. Counted per port and direction: what came in is counted where it came from,
        /// what could not go out is counted at the port it should have left by.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum DropReason {
            $($(#[$doc])* $variant,)*
        }

        impl DropReason {
            /// All reasons, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The name in statistics, JSON and documentation.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

reasons! {
    /// Received: shorter than an Ethernet header, or a chain with nothing behind its virtio-net header.
    Runt = "runt",
    /// Received: longer than any frame may be (64 KiB and headers).
    Oversized = "oversized",
    /// Received: came to a netdev faster than the switch read it.
    DeviceOverrun = "device_overrun",
    /// Received: checksum or segmentation metadata that does not fit the frame.
    BadOffload = "bad_offload",
    /// Received: the source address is a group address or zero.
    BadSource = "bad_source",
    /// Received: to one of the addresses 01-80-C2-00-00-0X, which no bridge forwards (IEEE 802.1Q, 8.6.3).
    ReservedMulticast = "reserved_multicast",
    /// Received: the destination is at the port that the frame came from.
    SamePort = "same_port",
    /// Received: to be flooded, but the bridge has no other port.
    NoOtherPort = "no_other_port",
    /// Received by a guarded port: the Ethernet source, or the client's hardware address within DHCP, is not the port's.
    GuardMac = "guard_mac",
    /// Received by a guarded port: an ARP packet whose sender is not the port.
    GuardArp = "guard_arp",
    /// Received by a guarded port: an IPv4 or IPv6 source address that is not the port's.
    GuardAddress = "guard_address",
    /// Received by a guarded port: neighbour discovery that claims what is not the port's, or hides what it claims.
    GuardNeighbour = "guard_neighbour",
    /// Received by a guarded port: an answer of a DHCP server or of a router, which the port must not be.
    GuardServer = "guard_server",
    /// Received or to send: above the port's limit for this direction.
    RateLimit = "rate_limit",
    /// To route: the IP packet is longer than its frame, or its headers than the bytes that are looked at.
    IpTruncated = "ip_truncated",
    /// To route: version or lengths of the IP header contradict each other.
    IpHeader = "ip_header",
    /// To route: the IPv4 header's checksum is wrong.
    IpChecksum = "ip_checksum",
    /// To route: no room for the transport header that the packet says it has.
    TransportTruncated = "transport_truncated",
    /// To route: a source address that no packet on a wire may have (0/8, 127/8, 224/4, 240/4, ::, ::1, a group), or
    /// one of the switch's own.
    MartianSource = "martian_source",
    /// To route: a destination address that nobody behind a router may have, or a group's.
    MartianDestination = "martian_destination",
    /// To route: from or to a link-local address, which means nothing beyond its link.
    LinkLocal = "link_local",
    /// To route: the sender prescribes the route.
    IpSourceRoute = "ip_source_route",
    /// To route: the lengths of the IPv4 header's options contradict the header's.
    IpOptions = "ip_options",
    /// To route: a fragment that reaches beyond the longest packet there can be.
    FragmentTooLong = "fragment_too_long",
    /// To route: a fragment that is not the last, and no multiple of 8 bytes long; or two last ones.
    FragmentInvalid = "fragment_invalid",
    /// To route: a fragment of bytes that another one has brought already.
    FragmentOverlap = "fragment_overlap",
    /// To route: no room to wait for the first fragment of a packet, or none left in its port's share.
    FragmentNoRoom = "fragment_no_room",
    /// To route: the first fragment has not come in time.
    FragmentTimeout = "fragment_timeout",
    /// To the switch: a neighbour discovery message that is not valid.
    NdInvalid = "nd_invalid",
    /// To the switch, or to translate: the checksum of an ICMP message is wrong.
    IcmpChecksum = "icmp_checksum",
    /// To route: a rule of the policy, or its default, says drop.
    PolicyDrop = "policy_drop",
    /// To route: a rule of the policy, or its default, says reject; the sender is told.
    PolicyReject = "policy_reject",
    /// To route: from one isolated bridge to another.
    PolicyIsolation = "policy_isolation",
    /// To translate: every port of the outside address is in use towards this destination.
    NatExhausted = "nat_exhausted",
    /// To translate: the interface that the packet leaves by has no address of its family.
    NatNoAddress = "nat_no_address",
    /// To translate: other workers kept the table of mappings for too long.
    NatBusy = "nat_busy",
    /// To the switch: an ARP packet that says what nobody can say.
    ArpInvalid = "arp_invalid",
    /// To the switch: somebody else claims one of its addresses.
    AddressConflict = "address_conflict",
    /// To the switch: to a port or of a protocol at which nobody listens.
    NoListener = "no_listener",
    /// To the switch: an ICMP message that asks for nothing.
    LocalIcmp = "local_icmp",
    /// To the switch: a fragment; nothing that it answers is that long.
    LocalFragment = "local_fragment",
    /// To the switch: the services had no room for the message, or the port has sent more of them than its share.
    ServiceBusy = "service_busy",
    /// To the switch: there was no room for its answer.
    AnswerDropped = "answer_dropped",
    /// To route: neither IPv4 nor IPv6 nor ARP.
    UnknownProtocol = "unknown_protocol",
    /// To route: its hops are used up.
    TtlExceeded = "ttl_exceeded",
    /// To route: no route leads there.
    NoRoute = "no_route",
    /// To route: a blackhole route leads there.
    Blackhole = "blackhole",
    /// To route: an unreachable route leads there.
    Unreachable = "unreachable",
    /// To route: a prohibit route leads there.
    Prohibited = "prohibited",
    /// To route: to everybody on another network (RFC 2644).
    DirectedBroadcast = "directed_broadcast",
    /// To route: no room for another neighbour, or none left in its port's share.
    NeighbourTableFull = "neighbour_table_full",
    /// To a virtual service: none of its servers may get a connection.
    BalanceNoServer = "ipvs_no_server",
    /// To a virtual service: the connection's server was deleted.
    BalanceServerGone = "ipvs_server_gone",
    /// To a virtual service that is persistent: no room to remember another client.
    BalanceTemplates = "ipvs_templates_full",
    /// To a virtual service that tells clients apart by SIP's Call-ID: there is none.
    BalanceNoCall = "ipvs_no_call",
    /// To route: no room to wait for the neighbour's answer.
    NeighbourQueueFull = "neighbour_queue_full",
    /// To route: the neighbour does not answer.
    NeighbourFailed = "neighbour_failed",
    /// To route: longer than the next link takes, and not to be fragmented; its sender was told.
    FragmentationNeeded = "fragmentation_needed",
    /// To route: the packet fits no connection and begins none (state INVALID).
    CtInvalid = "ct_invalid",
    /// To route: the table of connections is full of assured ones.
    CtFull = "ct_full",
    /// To route: the port has its share of connections.
    CtPortQuota = "ct_port_quota",
    /// To route: too many connections are half-open.
    CtHalfOpen = "ct_half_open",
    /// To route: another worker was at the same place of a table for too long; the next try will do.
    CtBusy = "ct_busy",
    /// To send: the port is down or its guest has no receive ring running.
    LinkDown = "link_down",
    /// To send: the guest had no receive buffer left.
    NoBuffers = "no_buffers",
    /// To send: other workers held the guest's receive ring for too long.
    RingBusy = "ring_busy",
    /// To send: longer than the guest's receive buffers, which are not mergeable.
    BufferTooSmall = "buffer_too_small",
    /// To send: longer than the port's MTU, and no segmentation covers it.
    MtuExceeded = "mtu_exceeded",
    /// To send: the device's queue was full.
    DeviceFull = "device_full",
    /// To send: the kernel refused the frame.
    DeviceRefused = "device_refused",
    /// To send: cutting the burst's GSO frames, of unusually small segments, would have kept the worker for too long.
    TooManySegments = "too_many_segments",
    /// To send: the frame's offloads could not be finished in software.
    OffloadFailed = "offload_failed",
}

impl DropReason {
    /// Whether it is a fault of the sender, the guest or the device, and neither a decision of the switch nor lack
    /// of room: such drops are summed as errors.
    pub fn is_fault(self) -> bool {
        use DropReason::*;
        matches!(
            self,
            Runt | Oversized
                | BadOffload
                | BadSource
                | IpTruncated
                | IpHeader
                | IpChecksum
                | TransportTruncated
                | MartianSource
                | MartianDestination
                | LinkLocal
                | IpSourceRoute
                | IpOptions
                | FragmentTooLong
                | FragmentInvalid
                | FragmentOverlap
                | NdInvalid
                | IcmpChecksum
                | BufferTooSmall
                | DeviceRefused
                | TooManySegments
                | OffloadFailed
        )
    }
}

/// Number of reasons.
pub const REASONS: usize = DropReason::ALL.len();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_follow_the_list_and_names_are_unique() {
        let mut names: Vec<_> = DropReason::ALL.iter().map(|r| r.name()).collect();
        assert!(DropReason::ALL.iter().enumerate().all(|(i, r)| *r as usize == i));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), REASONS);
    }
}
