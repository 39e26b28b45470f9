//! Packets without connections, in bursts: each goes its own way, whatever went before it.

use etherparse::PacketBuilder;
use vhost_backend::net_header::NetHeader;

use super::world::*;

/// A datagram of a client's.
fn datagram(to: [u8; 4], ttl: u8) -> Vec<u8> {
    let mut frame = Vec::new();
    let step = PacketBuilder::ethernet2(mac(1, 10), mac(1, 1)).ipv4([10, 0, 1, 10], to, ttl).udp(4000, 9);
    step.write(&mut frame, b"hello").expect("a packet");
    frame
}

#[test]
fn who_cannot_be_reached_does_not_go_where_the_one_before_went() {
    let mut world = World::new();
    let frames = [
        datagram([10, 0, 2, 11], 64),
        datagram([203, 0, 113, 1], 64),
        datagram([10, 0, 2, 12], 64),
        datagram([10, 0, 2, 12], 1),
        datagram([10, 0, 2, 11], 64),
    ];
    let burst: Vec<_> = frames.iter().map(|frame| (NetHeader::default(), &frame[..])).collect();
    let out = world.put_all(1, &burst);
    let forwarded: Vec<u8> = out.iter().filter(|frame| frame.port == 1).map(|frame| frame.to().1).collect();
    let sorted = |mut hosts: Vec<u8>| {
        hosts.sort_unstable();
        hosts
    };
    assert_eq!(sorted(forwarded), [11, 11, 12]);
    assert!(out.iter().filter(|frame| frame.port == 1).all(|frame| frame.headers().ttl == 63));
    // The sender is told of the other two.
    assert_eq!(out.iter().filter(|frame| frame.port == 0).count(), 2);
    assert_eq!((world.drops("no_route"), world.drops("ttl_exceeded")), (1, 1));
}
