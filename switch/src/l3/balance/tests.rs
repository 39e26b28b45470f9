//! Connections balanced by a router without ports: packets go in as bytes and come out as bytes, so that a client's and
//! a server's view can be told to the byte.

mod bursts;
mod cases;
mod cost;
mod golden;
mod world;

use super::*;

#[test]
fn calls_are_told_by_their_header() {
    let text = b"INVITE sip:a@b SIP/2.0\r\nVia: x\r\nCall-ID: 843817637684230@998sdasdh09\r\n\r\ni: none\r\n";
    assert_eq!(call_id(text), Some(&b"843817637684230@998sdasdh09"[..]));
    assert_eq!(call_id(b"OK\r\ni:short\r\n"), Some(&b"short"[..]));
    for none in [&b""[..], b"Call-ID: first line", b"OK\r\n\r\ni: body\r\n", b"OK\r\nCall-ID: \r\n"] {
        assert_eq!(call_id(none), None);
    }
}

#[test]
fn masks_may_have_holes() {
    let masked = |address: &str, mask: &str| {
        let mask = mask.parse().expect("a mask");
        Persistence { timeout: 300, mask, sip: false }
            .client(address.parse().expect("an address"))
            .to_string()
    };
    assert_eq!(masked("10.0.1.37", "255.255.255.240"), "10.0.1.32");
    assert_eq!(masked("10.7.1.37", "255.0.255.0"), "10.0.1.0");
    assert_eq!(masked("fd00::1:2", "ffff:ffff:ffff:ffff::"), "fd00::");
}
