//! Health checks by command: what is set, listed, refused and deleted, against a real daemon and a real server.

mod common;

use std::net::TcpListener;
use std::time::{Duration, Instant};

use common::{Daemon, failure, has};
use serde_json::{Value, json};

const SERVICE: &str = "tcp:10.9.9.9:80";

/// Waits until the only server's entry says so.
fn until(daemon: &Daemon, what: &str, true_: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let server = daemon.json(&["check", "list"])[0]["servers"][0].clone();
        if true_(&server) {
            return server;
        }
        assert!(Instant::now() < deadline, "{what}: {server}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn checks_come_and_go() {
    let daemon = Daemon::start();
    assert_eq!(daemon.json(&["check", "list"]), json!([]));
    for (words, expected) in [
        (&["check", "set", SERVICE, "tcp"][..], "check set: there is no service tcp 10.9.9.9:80"),
        (&["check", "set", "10.9.9.9:80", "tcp"], "check set: service \"10.9.9.9:80\" is none"),
        (
            &["check", "set", SERVICE, "ping"],
            "check set: kind \"ping\" is unknown: it must be tcp, http or udp",
        ),
        (&["check", "set", SERVICE, "tcp", "--path", "/"], "check set: path says nothing to a tcp check"),
        (&["check", "set", SERVICE, "http", "--interval", "0"], "check set: interval 0 is out of range"),
        (&["check", "del", SERVICE], "check del: service tcp:10.9.9.9:80 is not checked"),
    ] {
        let message = failure(daemon.run(words), 1);
        assert!(message.starts_with(expected), "{message}");
    }
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let server = listener.local_addr().expect("an address").to_string();
    daemon.says(&["ipvsadm", "-A", "-t", "10.9.9.9:80", "-s", "rr"]);
    daemon.says(&["ipvsadm", "-a", "-t", "10.9.9.9:80", "-r", &server, "-m", "-w", "5"]);
    daemon.says(&["check", "set", SERVICE, "tcp", "--interval", "1", "--fall", "1"]);
    let good = until(&daemon, "it is asked", |server| server["checks"].as_u64() > Some(0));
    has(&good, &["address", "port", "up", "since", "weight", "error", "checks", "failures", "took"]);
    assert_eq!((&good["up"], &good["failures"], &good["weight"]), (&json!(true), &json!(0), &Value::Null));
    drop(listener);
    let bad = until(&daemon, "it fails", |server| server["weight"] == 5);
    assert_eq!((&bad["up"], &bad["error"]), (&json!(false), &json!("connection refused")));
    assert!(daemon.says(&["ipvsadm", "-Ln"]).contains(" Masq    0 "));
    let table = daemon.says(&["check", "list"]);
    assert!(table.contains(&server) && table.contains("down") && table.contains("0 (5)"), "{table}");
    daemon.says(&["check", "del", SERVICE]);
    assert!(daemon.says(&["ipvsadm", "-Ln"]).contains(" Masq    5 "), "the weight is back");
    assert_eq!(daemon.json(&["check", "list"]), json!([]));
}
