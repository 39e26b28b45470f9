//! The control socket against clients that err, hurry, dawdle or mean harm.

mod common;

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use common::{Client, Daemon, wait_for};
use serde_json::{Value, json};

const LINE_MAX: usize = 16 << 20;

#[track_caller]
fn alive(daemon: &Daemon) {
    let status = daemon.connect().ok("status.show", json!({}));
    assert_eq!(status["workers"], 1);
}

#[test]
fn malformed_requests_are_answered_and_the_connection_goes_on() {
    let daemon = Daemon::start();
    let mut client = daemon.connect();
    for (line, code) in [
        ("", -32700),
        ("nonsense", -32700),
        ("{\"jsonrpc\":\"2.0\"", -32700),
        ("[]", -32600),
        ("[{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"status.show\"}]", -32600),
        ("17", -32600),
        ("{\"jsonrpc\":\"1.0\",\"id\":1,\"method\":\"status.show\"}", -32600),
        ("{\"jsonrpc\":\"2.0\",\"id\":{},\"method\":\"status.show\"}", -32600),
        ("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"status.show\",\"params\":[]}", -32600),
        ("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"status\"}", -32601),
        ("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"status.show\",\"params\":{\"a\":1}}", -32602),
        ("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"bridge.add\",\"params\":{\"name\":5}}", -32602),
        ("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"bridge.add\",\"params\":{\"name\":\"9\"}}", -32602),
        ("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"bridge.show\",\"params\":{\"name\":\"none\"}}", -32000),
    ] {
        let answer = client.raw(line);
        assert_eq!(answer["error"]["code"], code, "{line}: {answer}");
        assert!(answer.get("result").is_none());
        let id = if matches!(code, -32700 | -32600) { Value::Null } else { json!(1) };
        assert_eq!(answer["id"], id, "{line}: {answer}");
    }
    client.send(b"\xff\xfe\n");
    assert_eq!(client.line().unwrap()["error"]["code"], -32700);
    assert_eq!(client.ok("status.show", json!({}))["bridges"], 1);
}

#[test]
fn a_rule_that_is_broken_names_its_field() {
    let daemon = Daemon::start();
    let error = daemon.connect().call("bridge.add", json!({"name": "b", "ageing": -1})).unwrap_err();
    assert_eq!(error["data"]["field"], "ageing");
    assert_eq!(error["message"], "ageing -1 is out of range: it must be 0 to 1000000");
}

#[test]
fn identifiers_come_back_as_they_were() {
    let daemon = Daemon::start();
    let mut client = daemon.connect();
    for id in ["7", "-1.5", "\"a\\nb\"", "null", "18446744073709551615"] {
        let answer = client.raw(&format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"status.show"}}"#));
        assert_eq!(answer["id"], serde_json::from_str::<Value>(id).unwrap());
        assert_eq!(answer["result"]["workers"], 1);
    }
}

#[test]
fn notifications_are_done_without_an_answer() {
    let daemon = Daemon::start();
    let mut client = daemon.connect();
    client.send(b"{\"jsonrpc\":\"2.0\",\"method\":\"bridge.add\",\"params\":{\"name\":\"quiet\"}}\n");
    client.send(b"{\"jsonrpc\":\"2.0\",\"method\":\"bridge.add\",\"params\":{\"name\":\"quiet\"}}\n");
    client.send(b"{\"jsonrpc\":\"2.0\",\"method\":\"no.such\"}\n");
    // The next answer is to the next request.
    assert_eq!(client.ok("bridge.show", json!({"name": "quiet"}))["name"], "quiet");
}

#[test]
fn the_longest_line_is_read_and_one_byte_more_is_not() {
    let daemon = Daemon::start();
    let mut client = daemon.connect();
    let frame = |length: usize| {
        let (head, tail) = (r#"{"jsonrpc":"2.0","id":9,"method":"bridge.show","params":{"name":""#, r#""}}"#);
        format!("{head}{}{tail}", "x".repeat(length - head.len() - tail.len()))
    };
    let answer = client.raw(&frame(LINE_MAX));
    assert_eq!((&answer["id"], &answer["error"]["code"]), (&json!(9), &json!(-32000)));
    // The daemon may close before all of it is written.
    let line = frame(LINE_MAX + 1);
    let _ = client.stream.get_mut().write_all(line.as_bytes());
    let answer = client.line().expect("closed without a word");
    assert_eq!((&answer["id"], &answer["error"]["code"]), (&Value::Null, &json!(-32600)));
    assert!(answer["error"]["message"].as_str().unwrap().contains("longer than 16777216 bytes"));
    assert_eq!(client.line(), None);
    alive(&daemon);
}

#[test]
fn half_a_request_is_dropped_and_an_idle_client_is_not() {
    let daemon = Daemon::start();
    let mut idle = daemon.connect();
    idle.ok("status.show", json!({}));
    let mut half = daemon.connect();
    half.send(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"bridge.add\",\"params\":{\"name\":\"half\"}}");
    let begun = Instant::now();
    alive(&daemon);
    assert!(begun.elapsed() < Duration::from_secs(5), "half a request held up another client");
    let answer = half.line().expect("closed without a word");
    assert_eq!(answer["error"]["code"], -32600);
    assert!(begun.elapsed() > Duration::from_secs(9));
    assert_eq!(half.line(), None);
    // What was not complete was not done, whether the daemon or the client closed.
    let mut gone = daemon.connect();
    gone.send(b"{\"jsonrpc\":\"2.0\",\"method\":\"bridge.add\",\"params\":{\"name\":\"gone\"}}");
    drop(gone);
    assert_eq!(idle.ok("bridge.list", json!({})).as_array().unwrap().len(), 1);
}

#[test]
fn many_requests_at_once_are_answered_in_order() {
    const REQUESTS: u64 = 20_000;
    let daemon = Daemon::start();
    let mut client = daemon.connect();
    let mut sender = client.stream.get_ref().try_clone().unwrap();
    let sending = std::thread::spawn(move || {
        let line = |id| format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"method\":\"status.show\"}}\n");
        let lines: String = (0..REQUESTS).map(line).collect();
        sender.write_all(lines.as_bytes()).unwrap();
    });
    for id in 0..REQUESTS {
        assert_eq!(client.line().unwrap()["id"], id);
    }
    sending.join().unwrap();
}

#[test]
fn a_client_that_does_not_read_holds_up_nobody() {
    let daemon = Daemon::start();
    let mut deaf = daemon.connect();
    // The socket's buffers fill up in both directions; then the daemon no longer reads from this client.
    deaf.stream.get_ref().set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let lines = "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"no.such\"}\n".repeat(1000);
    let mut written = 0;
    while deaf.stream.get_mut().write_all(lines.as_bytes()).is_ok() {
        written += lines.len();
        assert!(written < 1 << 30, "the daemon takes requests without end");
    }
    alive(&daemon);
}

#[test]
fn so_many_connections_and_no_more() {
    let daemon = Daemon::start();
    // The one with which the daemon's start was awaited may not be closed on its side yet.
    let (mut served, mut turned_away) = (Vec::new(), 0);
    for _ in 0..100 {
        let mut client = daemon.connect();
        let line = b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"status.show\"}\n";
        let _ = client.stream.get_mut().write_all(line);
        let answer = client.line().expect("closed without a word");
        if answer.get("result").is_some() {
            served.push(client);
        } else {
            assert_eq!((&answer["id"], &answer["error"]["code"]), (&Value::Null, &json!(-32001)));
            assert_eq!(client.line(), None);
            turned_away += 1;
        }
    }
    assert!((63..=64).contains(&served.len()) && turned_away >= 36, "{} served", served.len());
    for client in &mut served {
        client.ok("status.show", json!({}));
    }
    served.truncate(10);
    wait_for("room for another connection", || {
        let answer = Client::new(UnixStream::connect(daemon.socket()).ok()?).call("status.show", json!({}));
        answer.ok()
    });
}

#[test]
fn long_listings_come_in_pages() {
    const ENTRIES: u64 = 40_000;
    let daemon = Daemon::start();
    let mut client = daemon.connect();
    let port = json!({"name": "p", "bridge": "shunt0", "vhost_user": daemon.dir.path().join("p.sock")});
    client.ok("port.add", port);
    let mut sender = client.stream.get_ref().try_clone().unwrap();
    let sending = std::thread::spawn(move || {
        for n in 0..ENTRIES {
            let mac = format!("02:00:00:{:02x}:{:02x}:{:02x}", n >> 16, n >> 8 & 0xff, n & 0xff);
            let params = json!({"bridge": "shunt0", "mac": mac, "port": "p"});
            let line = json!({"jsonrpc": "2.0", "id": n, "method": "fdb.add", "params": params});
            sender.write_all(format!("{line}\n").as_bytes()).unwrap();
        }
    });
    for _ in 0..ENTRIES {
        assert_eq!(client.line().unwrap()["result"], json!({}));
    }
    sending.join().unwrap();

    let first = client.ok("fdb.list", json!({}));
    assert_eq!(first["total"], ENTRIES);
    let (mut entries, mut next) = (first["entries"].as_array().unwrap().clone(), first["next"].clone());
    let stranger = daemon.connect().refused("fdb.list", json!({"next": next}));
    assert!(stranger.0 == -32000 && stranger.1.contains("belongs to no listing"), "{stranger:?}");
    // What happens meanwhile does not disturb the listing.
    let flushed = daemon.connect().ok("fdb.del", json!({"bridge": "shunt0", "mac": "02:00:00:00:00:05"}));
    assert_eq!(flushed, json!({}));
    while !next.is_null() {
        let page = client.ok("fdb.list", json!({"next": next}));
        assert!(!page["entries"].as_array().unwrap().is_empty());
        entries.extend(page["entries"].as_array().unwrap().clone());
        next = page["next"].clone();
    }
    let macs: Vec<_> = entries.iter().map(|entry| entry["mac"].as_str().unwrap().to_owned()).collect();
    assert_eq!(macs.len() as u64, ENTRIES);
    assert!(macs.is_sorted_by(|a, b| a < b), "sorted, none twice");
    assert_eq!(client.ok("fdb.list", json!({}))["total"], ENTRIES - 1);
    assert_eq!(client.refused("fdb.list", json!({"next": 12345})).0, -32000);
    assert_eq!(client.refused("fdb.list", json!({"next": u64::MAX})).0, -32000);
}

#[test]
fn what_is_done_at_once_by_many_is_done_once() {
    let daemon = Daemon::start();
    let adding: Vec<_> = (0..16)
        .map(|_| {
            let mut client = daemon.connect();
            std::thread::spawn(move || client.call("bridge.add", json!({"name": "one"})).is_ok())
        })
        .collect();
    let done = adding.into_iter().map(|thread| thread.join().unwrap()).filter(|done| *done).count();
    assert_eq!(done, 1);
}
