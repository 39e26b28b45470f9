//! What is asked of a connection between two hosts: does it answer, how fast is it, do the bytes arrive unchanged.

use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::host::{Host, Job};
use crate::progress;
use crate::wait::{poll_for, wait_for};

/// Bytes that show that a connection carries data, however busy the machine is. How fast it is, `make bench` tells.
pub const MUCH: u64 = 1 << 20;

/// TCP and UDP ports of the servers started here; each takes a new one.
fn next_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(5201);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Waits until one ping from `host` to `address` is answered, and returns the time that took; panics after `limit`.
#[track_caller]
pub fn answers(host: &dyn Host, address: &str, limit: Duration) -> Duration {
    let start = Instant::now();
    let mut last = String::new();
    let answered = poll_for(limit, || {
        let output = host.run(&format!("ping -c1 -W1 {address}"));
        last = output.text.clone();
        output.ok().then_some(())
    });
    assert!(answered.is_some(), "{}: no answer from {address} in {} s: {last}", host.name(), limit.as_secs());
    progress!("{} reaches {address} after {:.1} s", host.name(), start.elapsed().as_secs_f64());
    start.elapsed()
}

/// Sends `count` pings with further `options` at once and returns how many were answered.
#[track_caller]
pub fn pings(host: &dyn Host, address: &str, count: u32, options: &str) -> u32 {
    let mut received = 0;
    // ping waits for the last answer no longer than for the others: on a machine that is busy with other things one of
    // them may come too late. What loses some of its packets does so again.
    for _ in 0..3 {
        received = pings_once(host, address, count, options);
        if received == count {
            break;
        }
    }
    received
}

/// The same, where no answer is to come: it is asked once.
#[track_caller]
pub fn pings_once(host: &dyn Host, address: &str, count: u32, options: &str) -> u32 {
    let output = host.run(&format!("ping -c{count} -i0.1 -W2 {options} {address}"));
    let text = output.text.split(" received").next().and_then(|text| text.split_whitespace().last());
    let received = text.and_then(|number| number.parse().ok()).unwrap_or(0);
    progress!("{} to {address}: {received} of {count} pings {options}", host.name());
    received
}

/// Result of one iperf3 run.
#[derive(Debug, Clone, Copy)]
pub struct Iperf {
    /// Received payload, bits a second.
    pub bits_per_second: f64,
    /// Received payload, bytes.
    pub bytes: u64,
    /// TCP segments sent again.
    pub retransmits: u64,
    /// UDP datagrams lost, percent.
    pub lost_percent: f64,
}

/// An iperf3 run in progress.
pub struct Running {
    what: String,
    client: Job,
    listener: Job,
}

/// Starts an iperf3 server on `server`, waits until it listens, and starts a client on `client` against `address` for
/// `seconds` with further `options` (`-R`, `-P4`, `-u -b 100M`).
#[track_caller]
pub fn start_iperf(
    client: &dyn Host,
    server: &dyn Host,
    address: &str,
    seconds: u64,
    options: &str,
) -> Running {
    let port = next_port();
    let limit = Duration::from_secs(seconds + 30);
    let listener = server.start(&format!("iperf3 -s -1 -p {port}"), limit);
    wait_listening(server, port);
    let what = format!("iperf3 {} to {} {options}", client.name(), server.name());
    let client = client.start(&format!("iperf3 -c {address} -p {port} -t {seconds} {options} -J"), limit);
    Running { what, client, listener }
}

impl Running {
    /// Waits for the end and takes the result apart.
    #[track_caller]
    pub fn finish(self) -> Iperf {
        let output = self.client.wait();
        let json: Value = output
            .text
            .find('{')
            .and_then(|at| serde_json::from_str(&output.text[at..]).ok())
            .unwrap_or_else(|| panic!("{}: {}", self.what, output.text));
        assert!(json.get("error").is_none(), "{}: {}", self.what, json["error"]);
        drop(self.listener);
        let end = &json["end"];
        let received = if end["sum_received"].is_object() { &end["sum_received"] } else { &end["sum"] };
        let result = Iperf {
            bits_per_second: received["bits_per_second"].as_f64().unwrap_or(0.0),
            bytes: received["bytes"].as_u64().unwrap_or(0),
            retransmits: end["sum_sent"]["retransmits"].as_u64().unwrap_or(0),
            lost_percent: end["sum"]["lost_percent"].as_f64().unwrap_or(0.0),
        };
        let rate = result.bits_per_second / 1e9;
        progress!("{}: {rate:.3} Gbit/s, {} sent again", self.what, result.retransmits);
        result
    }
}

/// A whole iperf3 run; see [`start_iperf`].
#[track_caller]
pub fn iperf(client: &dyn Host, server: &dyn Host, address: &str, seconds: u64, options: &str) -> Iperf {
    start_iperf(client, server, address, seconds, options).finish()
}

/// A TCP transfer that lasts until it is told to end.
pub struct Stream {
    sent: Job,
    received: Job,
    stop: String,
}

/// Starts to send random bytes, the same MiB numbered and repeated, over TCP from `sender` to `receiver` at `address`, for at most `limit`.
#[track_caller]
pub fn start_stream(sender: &dyn Host, receiver: &dyn Host, address: &str, limit: Duration) -> Stream {
    let port = next_port();
    let seconds = limit.as_secs();
    let received = receiver.start(&format!("timeout {seconds} nc -l {port} | sha256sum"), limit);
    wait_listening(receiver, port);
    let stop = format!("/tmp/shunt-stop-{}-{port}", std::process::id());
    // What is sent also goes through a FIFO to be summed up, since there is no room to keep it.
    let send = format!(
        "mkfifo {stop}.fifo; sha256sum <{stop}.fifo >{stop}.sum & \
         head -c 1048576 /dev/urandom >{stop}.mib; \
         {{ n=0; while [ ! -e {stop} ]; do echo $n; cat {stop}.mib; n=$((n + 1)); done; echo $n >{stop}.n; }} | \
         tee {stop}.fifo | timeout {seconds} nc -N {address} {port}; status=$?; wait; \
         cat {stop}.sum {stop}.n; rm -f {stop} {stop}.*; exit $status"
    );
    let sent = sender.start(&send, limit);
    Stream { sent, received, stop }
}

impl Stream {
    /// Ends the transfer between these two. The same bytes must have arrived; how many MiB there were.
    #[track_caller]
    pub fn finish(self, sender: &dyn Host, receiver: &dyn Host) -> u64 {
        sender.sh(&format!("touch {}", self.stop));
        let (from, to) = (sender.name(), receiver.name());
        let sent = self.sent.wait();
        assert!(sent.ok(), "{from}: nc ended with {}: {}", sent.status, sent.text);
        let (sum, mebibytes) = sent.text.trim().rsplit_once('\n').unwrap_or_else(|| panic!("{}", sent.text));
        let received = self.received.wait();
        assert_eq!(received.text.trim(), sum.trim(), "what came from {from} to {to} had changed");
        let mebibytes = mebibytes.trim().parse().unwrap_or_else(|_| panic!("{}", sent.text));
        progress!("{mebibytes} MiB {from} to {to} arrived unchanged");
        mebibytes
    }
}

#[track_caller]
pub(crate) fn wait_listening(server: &dyn Host, port: u16) {
    wait_for(&format!("{} to listen on TCP port {port}", server.name()), Duration::from_secs(20), || {
        (!server.sh(&format!("ss -Hltn sport = :{port}")).is_empty()).then_some(())
    });
}

/// Sends `mebibytes` of random bytes over TCP from `sender` to `receiver` at `address` and compares SHA-256 sums.
///
/// A checksum or a segment that the switch got wrong shows here: as other bytes, or as a transfer that does not end.
#[track_caller]
pub fn copy_intact(sender: &dyn Host, receiver: &dyn Host, address: &str, mebibytes: u32) {
    let port = next_port();
    let limit = Duration::from_secs(60);
    let family = if address.contains(':') { "-6" } else { "-4" };
    let listener = receiver.start(&format!("timeout 55 nc {family} -l {port} | sha256sum"), limit);
    wait_listening(receiver, port);
    let file = format!("/tmp/shunt-{}-{port}", std::process::id());
    let send = format!(
        "dd if=/dev/urandom of={file} bs=1M count={mebibytes} 2>/dev/null; sha256sum <{file}; \
         timeout 50 nc {family} -N {address} {port} <{file}; status=$?; rm {file}; exit $status"
    );
    let sent = sender.start(&send, limit).wait();
    let received = listener.wait();
    assert!(sent.ok(), "{}: nc ended with {}: {}", sender.name(), sent.status, sent.text);
    let (from, to) = (sender.name(), receiver.name());
    assert_eq!(received.text.trim(), sent.text.trim(), "{mebibytes} MiB from {from} to {to} arrived changed");
    progress!("{mebibytes} MiB {from} to {to} arrived unchanged");
}
