//! Frames of any bytes and any claims, through everything that reads or rewrites them.

#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::net::IpAddr;

use shunt_switch::ipvs::sync::message::Message;
use shunt_switch::packet::embedded::Embedded;
use shunt_switch::packet::ethernet;
use shunt_switch::packet::headers::Headers;
use shunt_switch::packet::offload::{Capabilities, Finisher};
use shunt_switch::packet::rewrite::{self, Address, Ends, Rewrite};
use shunt_switch::packet::{MAX_SEGMENTS, fits, ip, ordinary, validate};
use shunt_switch::services::dhcp::message::Request;
use vhost_backend::frame::{Burst, MAX_FRAME, SNAPSHOT};
use vhost_backend::net_header::{NET_HEADER_LEN, NetHeader};

use crate::input::Input;

struct Bench {
    burst: Burst,
    finisher: Finisher,
    frame: Vec<u8>,
}

thread_local! {
    static BENCH: RefCell<Bench> = RefCell::new(Bench {
        burst: Burst::new(),
        finisher: Finisher::new(),
        frame: vec![0; MAX_FRAME],
    });
}

/// One frame: two bytes of length, a virtio-net header, then the frame, which repeats itself if it is longer.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let len = usize::from(input.word());
    let mut claims = [0; NET_HEADER_LEN];
    let bytes = input.bytes(NET_HEADER_LEN);
    claims[..bytes.len()].copy_from_slice(bytes);
    let rest = input.bytes(usize::MAX);
    let _ = Request::parse(rest).map(|request| request.identity());
    if let Ok(message) = Message::parse(rest) {
        assert!(message.connections().count() <= message.count());
    }
    if rest.len() < 14 {
        return;
    }
    let len = if len < 14 { rest.len() } else { len };
    BENCH.with_borrow_mut(|bench| {
        let frame = &mut bench.frame[..len];
        for chunk in frame.chunks_mut(rest.len()) {
            let len = chunk.len();
            chunk.copy_from_slice(&rest[..len]);
        }
        look(frame);
        offload(&bench.frame[..len], NetHeader::from_bytes(&claims), &mut bench.burst, &mut bench.finisher);
    });
}

/// Everything that reads a frame's head, and what is done with what it found.
fn look(frame: &[u8]) {
    let head = &frame[..frame.len().min(SNAPSHOT)];
    let (ethertype, at) = ethernet::payload(head);
    let _ = (ethernet::vlan(head), ip::parse(head, ethertype, at));
    let mut snapshot = [0; SNAPSHOT];
    snapshot[..head.len()].copy_from_slice(head);
    for v6 in [false, true] {
        let Ok(headers) = Headers::parse(head, frame.len(), at, v6) else { continue };
        assert!(usize::from(headers.network) + headers.len as usize <= frame.len(), "{headers:?}");
        assert!(headers.network <= headers.transport, "{headers:?}");
        if v6 { translate::<u128>(head, &headers) } else { translate::<u32>(head, &headers) }
    }
    if ordinary::is_ordinary::<u32>(&snapshot, head.len(), frame.len()) {
        let headers = Headers::parse(head, frame.len(), 14, false).expect("what is ordinary is right");
        assert_eq!(headers.protocol, ordinary::protocol::<u32>(&snapshot));
        assert_eq!((headers.v6, headers.network), (false, 14));
    }
    if ordinary::is_ordinary::<u128>(&snapshot, head.len(), frame.len()) {
        let headers = Headers::parse(head, frame.len(), 14, true).expect("what is ordinary is right");
        assert_eq!(headers.protocol, ordinary::protocol::<u128>(&snapshot));
    }
}

/// Translates there and back: what it was must come of it, but for the checksums that were zero or wrong.
fn translate<A: Address>(head: &[u8], headers: &Headers) {
    let tuple = headers.tuple(head);
    assert_eq!(tuple.reversed().reversed(), tuple);
    let Some(from) = Ends::<A>::of(&tuple) else { return };
    let v4 = IpAddr::from([10, 0, 0, 1]);
    let Some(other) = A::of(v4).or_else(|| A::of(IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1u16]))) else {
        return;
    };
    let to = Ends { source: other, source_port: from.source_port ^ 0x1234, ..from };
    let (there, back) =
        (Rewrite::new(headers.protocol, &from, &to), Rewrite::new(headers.protocol, &to, &from));
    let mut bytes = head.to_vec();
    for partial in [false, true] {
        there.translate(&mut bytes, headers, partial);
        back.translate(&mut bytes, headers, partial);
        there.forward(&mut bytes, headers, partial);
        rewrite::clamp_mss(&mut bytes, headers, partial, 536);
    }
    assert_eq!(bytes.len(), head.len());
    assert_eq!(bytes[..usize::from(headers.network)], head[..usize::from(headers.network)]);
    rewrite::decrement_ttl(&mut bytes, headers);
    rewrite::set_ttl(&mut bytes, headers, 64);
    if let Some(quoted) = Embedded::parse(head, headers) {
        let _ = quoted.reply_tuple(head);
        let mut bytes = head.to_vec();
        quoted.translate(&mut bytes, headers, false, &there);
        Embedded::translate_later(&mut bytes, headers, other, &there);
        assert_eq!(bytes[..usize::from(headers.network)], head[..usize::from(headers.network)]);
    }
}

/// Offload metadata that passes must be true: the frame can be finished for a receiver that takes nothing.
fn offload(frame: &[u8], claims: NetHeader, burst: &mut Burst, finisher: &mut Finisher) {
    let (head, rest) = frame.split_at(frame.len().min(SNAPSHOT));
    let checked =
        if claims.is_plain() { Ok(NetHeader::default()) } else { validate(head, frame.len(), claims) };
    let Ok(header) = checked else { return };
    for mtu in [46, 1500, 9600] {
        let _ = fits(head, frame.len(), &header, mtu);
    }
    let mut segments = 0;
    for caps in [Capabilities::NONE, Capabilities { checksum: true, ..Capabilities::NONE }, Capabilities::ALL]
    {
        let done = burst.with_slices(
            |filler| assert!(filler.push(header, head, rest)),
            |burst| {
                finisher.finish(burst, 0, caps, |made| {
                    for i in 0..made.len() {
                        assert!(caps.accepts(made.header(i)), "not finished: {:?}", made.header(i));
                        assert!(made.frame_len(i) <= frame.len());
                    }
                    segments += made.len();
                })
            },
        );
        assert!(done, "metadata that was found right cannot be carried out: {header:?}");
    }
    assert!(segments <= 3 * MAX_SEGMENTS, "{segments} segments");
}
