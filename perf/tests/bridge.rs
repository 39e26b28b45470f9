//! Our own guest on shunt's own ports: what is sent arrives, byte for byte, whatever the guest is like.

use std::time::Duration;

use shunt_perf::bridge::Bridge;
use shunt_perf::frames;
use shunt_perf::guest::{Options, features};
use vhost_backend::net_header::NetHeader;

/// Frames of many lengths from guest 0 to guest 1, and an answer back.
fn exchange(options: &Options) {
    let mut bridge = Bridge::new(2, options).expect("a bridge");
    for len in (60..1600).step_by(37).chain([1518, 4000, 9014]) {
        let frame = frames::udp(1, 2, len, 1);
        bridge.offer(0, 3, &NetHeader::default(), &frame).expect("room");
        assert_eq!(bridge.turn(0), 3, "{len} bytes");
        let got = bridge.guests[1].receive_until(3, Duration::from_secs(5)).expect("frames");
        assert_eq!(got.len(), 3, "{len} bytes");
        assert!(got.iter().all(|f| f.bytes == frame && f.header.is_plain()), "{len} bytes");
        assert_eq!(bridge.guests[0].unfinished(0).expect("a sound ring"), 0);
    }
    let answer = frames::udp(2, 1, 77, 0);
    assert_eq!(bridge.guests[1].send(&[&answer]).expect("a sound ring"), 1);
    assert_eq!(bridge.turn(1), 1);
    assert_eq!(bridge.guests[0].receive().expect("frames"), [answer]);
}

#[test]
fn a_modern_guest_with_mergeable_buffers() {
    exchange(&Options::default());
}

#[test]
fn event_indexes_interrupt_when_asked_to() {
    exchange(&Options { features: features::PLAIN | features::EVENT_IDX, ..Options::default() });
}

#[test]
fn packed_rings_in_every_shape() {
    let packed = features::RING_PACKED;
    for features in [
        features::PLAIN | packed,
        features::PLAIN | packed | features::EVENT_IDX,
        features::PLAIN | packed | features::IN_ORDER,
        features::PLAIN | packed | features::IN_ORDER | features::EVENT_IDX,
    ] {
        let options = Options { features, required: features & !features::MQ, ..Options::default() };
        exchange(&options);
        exchange(&Options { piece: 163, split_header: true, ..options.clone() });
        exchange(&Options {
            features: features & !features::INDIRECT_DESC,
            required: packed,
            piece: 163,
            ..options
        });
    }
    let features = features::VERSION_1 | packed;
    exchange(&Options { features, buffer_len: 1024, receive_chain: 16, ..Options::default() });
}

#[test]
fn one_large_buffer_for_each_frame() {
    let features = features::VERSION_1 | features::INDIRECT_DESC;
    exchange(&Options { features, buffer_len: 10_000, ..Options::default() });
}

#[test]
fn chains_of_small_buffers() {
    let features = features::VERSION_1;
    exchange(&Options { features, buffer_len: 1024, receive_chain: 16, ..Options::default() });
}

#[test]
fn a_legacy_guest_with_the_short_header() {
    exchange(&Options { features: 0, buffer_len: 10_000, split_header: true, ..Options::default() });
}

#[test]
fn frames_in_many_pieces_direct_and_indirect() {
    for features in [features::PLAIN, features::PLAIN & !features::INDIRECT_DESC] {
        exchange(&Options { features, piece: 163, split_header: true, ..Options::default() });
    }
}

#[test]
fn a_ring_of_sixteen_holds_three_jumbo_frames() {
    exchange(&Options { ring_size: 16, ..Options::default() });
}

#[test]
fn a_broadcast_reaches_everybody_else_and_counters_say_so() {
    let mut bridge = Bridge::new(4, &Options::default()).expect("a bridge");
    let mut frame = frames::udp(1, 2, 100, 0);
    frame[..6].fill(0xff);
    bridge.offer(0, 5, &NetHeader::default(), &frame).expect("room");
    assert_eq!(bridge.turn(0), 5);
    for n in 1..4 {
        assert_eq!(bridge.guests[n].receive().expect("frames").len(), 5);
        assert_eq!(bridge.counted(n), (0, 5));
    }
    assert!(bridge.guests[0].receive().expect("frames").is_empty());
    assert_eq!(bridge.counted(0), (5, 0));
}

#[test]
fn segmentation_frames_pass_whole_between_guests_that_take_them() {
    let features = features::PLAIN | features::OFFLOADS;
    let mut bridge = Bridge::new(2, &Options { features, ..Options::default() }).expect("a bridge");
    let (header, frame) = frames::tcp_gso(1, 2, 54 + 45 * 1448, 1448, 0);
    bridge.offer(0, 2, &header, &frame).expect("room");
    assert_eq!(bridge.turn(0), 2);
    let got = bridge.guests[1].receive_frames().expect("frames");
    assert_eq!(got.len(), 2);
    for one in &got {
        assert_eq!(one.bytes, frame);
        assert_eq!((one.header.gso_type, one.header.gso_size), (header.gso_type, header.gso_size));
    }
}

/// A guest whose rings stop after seven frames and go on; `fresh` is where rings begin.
fn goes_on(options: &Options, fresh: u16) {
    let mut bridge = Bridge::new(2, options).expect("a bridge");
    let frame = frames::udp(1, 2, 64, 0);
    bridge.offer(0, 7, &NetHeader::default(), &frame).expect("room");
    assert_eq!(bridge.turn(0), 7);
    assert_eq!(bridge.guests[1].receive().expect("frames").len(), 7);
    for n in 0..2 {
        let bases = bridge.guests[n].stop().expect("bases");
        let bases_are = if n == 0 { [fresh, fresh + 7] } else { [fresh + 7, fresh] };
        assert_eq!(bases, bases_are);
        bridge.guests[n].restart(&bases).expect("a new start");
    }
    bridge.offer(0, 300 - 64, &NetHeader::default(), &frame).expect("room");
    let mut arrived = 0;
    while bridge.turn(0) > 0 {
        arrived += bridge.guests[1].receive().expect("frames").len();
    }
    assert_eq!(arrived, 300 - 64);
}

#[test]
fn a_stopped_guest_goes_on_where_it_was() {
    goes_on(&Options::default(), 0);
    let features = features::PLAIN | features::RING_PACKED;
    goes_on(&Options { features, required: features::RING_PACKED, ..Options::default() }, 1 << 15);
    let features = features | features::IN_ORDER;
    goes_on(&Options { features, required: features::RING_PACKED, ..Options::default() }, 1 << 15);
}
