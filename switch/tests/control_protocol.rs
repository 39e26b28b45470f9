//! The examples of docs/control-protocol.md are true: each request on the page gets the answer that stands below it.

mod common;

use std::path::Path;

use common::Daemon;
use serde_json::Value;
use shunt_switch::control::api::{METHODS, OPERATIONS};

/// What differs from machine to machine or from second to second, and sentences for people: only the kind of value is compared.
const VOLATILE: &[&str] = &[
    "version",
    "pid",
    "uptime_seconds",
    "core",
    "idle_share",
    "busy_cycles_per_packet",
    "longest_turn_us",
    "longest_update_us",
    "window",
    "reason",
    "message",
];

/// Requests and answers of the page, in its order.
fn examples(page: &str) -> Vec<(String, Value)> {
    let blocks = page.split("```").skip(1).step_by(2).filter_map(|block| block.split_once("-> "));
    let examples = blocks.map(|(_, example)| {
        let (request, answer) = example.split_once("\n<- ").expect("a request without an answer");
        let answer = serde_json::from_str(answer).unwrap_or_else(|e| panic!("{e}: {answer}"));
        (request.to_owned(), answer)
    });
    examples.collect()
}

fn same_kind(a: &Value, b: &Value) -> bool {
    std::mem::discriminant(a) == std::mem::discriminant(b)
}

#[track_caller]
fn compare(request: &str, at: &str, page: &Value, real: &Value) {
    match (page, real) {
        (Value::Object(page), Value::Object(real)) => {
            let keys = |map: &serde_json::Map<String, Value>| map.keys().cloned().collect::<Vec<_>>();
            assert_eq!(keys(page), keys(real), "{request}: fields of {at}");
            for (key, value) in page {
                if VOLATILE.contains(&key.as_str()) {
                    assert!(same_kind(value, &real[key]), "{request}: {key}: {value}, really {}", real[key]);
                } else {
                    compare(request, key, value, &real[key]);
                }
            }
        }
        (Value::Array(page), Value::Array(real)) => {
            assert_eq!(page.len(), real.len(), "{request}: {at}");
            page.iter().zip(real).for_each(|(page, real)| compare(request, at, page, real));
        }
        _ => assert_eq!(page, real, "{request}: {at}"),
    }
}

#[test]
fn the_documented_examples_are_true() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/control-protocol.md");
    let examples = examples(&std::fs::read_to_string(page).unwrap());
    let daemon = Daemon::start();
    let here = format!("{}/", daemon.dir.path().display());
    let mut client = daemon.connect();
    // That one ends the daemon; `upgrade.rs` has it.
    let here_to_stay = |(request, _): &&(String, Value)| !request.contains("\"daemon.upgrade\"");
    for (request, page) in examples.iter().filter(here_to_stay) {
        let real = client.raw(&request.replace("/run/vm/", &here)).to_string().replace(&here, "/run/vm/");
        compare(request, "answer", page, &serde_json::from_str(&real).unwrap());
    }
    // A NIC is plugged into a real QEMU elsewhere.
    let plugging = ["kata.add-iface", "kata.del-iface"];
    for method in METHODS.iter().chain(OPERATIONS).filter(|method| !plugging.contains(method)) {
        let works = |(request, answer): &(String, Value)| {
            request.contains(&format!("\"method\": \"{method}\"")) && answer.get("result").is_some()
        };
        assert!(examples.iter().any(works), "{method} has no example");
    }
}
