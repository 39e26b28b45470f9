//! The fuzzers' targets on stable: what the corpora hold, and random bytes.

use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;
use shunt_fuzz::{frame, request, ring, session};

/// Runs every file of a corpus.
fn corpus(name: &str, run: fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let files = std::fs::read_dir(&directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
    let mut count = 0;
    for file in files.map(|file| file.expect("a directory").path()) {
        run(&std::fs::read(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display())));
        count += 1;
    }
    assert!(count > 0, "{} is empty", directory.display());
}

#[test]
fn corpora_hold() {
    corpus("session", session::run);
    corpus("split_ring", ring::run_split);
    corpus("packed_ring", ring::run_packed);
    corpus("frame", frame::run);
    corpus("request", request::run);
}

/// A frame that begins as one does.
fn begun() -> impl Strategy<Value = Vec<u8>> {
    let kinds = prop_oneof![
        Just(vec![8u8, 0, 0x45]),
        Just(vec![0x86, 0xdd, 0x60]),
        Just(vec![8, 6]),
        Just(vec![0x81, 0, 0, 5, 8, 0, 0x45])
    ];
    (vec(any::<u8>(), 14), vec(any::<u8>(), 12), kinds, vec(any::<u8>(), 0..300))
        .prop_map(|(claims, macs, kind, rest)| [claims, macs, kind, rest].concat())
}

/// Parameters of several methods.
const NAMES: &[&str] = &[
    "name",
    "bridge",
    "vhost_user",
    "queues",
    "mtu",
    "mac",
    "address",
    "interface",
    "prefix",
    "via",
    "proto",
    "listen",
    "to",
    "pins",
    "guard",
    "port",
    "vlan",
    "ageing",
    "limit",
    "service",
    "server",
    "weight",
];

/// A request with some of the words that requests have.
fn said() -> impl Strategy<Value = String> {
    let values = prop_oneof![
        Just("\"a\"".to_owned()),
        any::<i64>().prop_map(|n| n.to_string()),
        Just("\"10.0.0.0/8\"".to_owned()),
        Just("null".to_owned()),
        Just("[{}]".to_owned()),
        "\\PC{0,8}".prop_map(|text| format!("{text:?}"))
    ];
    let method = proptest::sample::select(shunt_switch::control::api::METHODS);
    (method, vec((proptest::sample::select(NAMES), values), 0..6)).prop_map(|(method, fields)| {
        let fields: Vec<_> = fields.into_iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
        format!(
            "{{\"jsonrpc\":\"2.0\",\"method\":\"{method}\",\"params\":{{{}}},\"id\":1}}",
            fields.join(",")
        )
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn sessions(data in vec(any::<u8>(), 0..1500)) {
        session::run(&data);
    }

    #[test]
    fn split_rings(data in vec(any::<u8>(), 0..1000)) {
        ring::run_split(&data);
    }

    #[test]
    fn packed_rings(data in vec(any::<u8>(), 0..1000)) {
        ring::run_packed(&data);
    }

    #[test]
    fn frames(data in begun()) {
        frame::run(&data);
    }

    #[test]
    fn noise_as_frames(data in vec(any::<u8>(), 0..400)) {
        frame::run(&data);
    }

    #[test]
    fn requests(line in said()) {
        request::run(line.as_bytes());
    }

    #[test]
    fn noise_as_requests(data in vec(any::<u8>(), 0..200)) {
        request::run(&data);
    }
}
