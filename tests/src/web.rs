//! A web server on a host, which gives away random bytes and tells callers what address they come from.

use std::time::Duration;

use tempfile::TempDir;

use crate::host::{Host, Job, Output};
use crate::measure::wait_listening;
use crate::progress;

/// A running server; it ends when dropped.
pub struct Web {
    /// TCP port.
    pub port: u16,
    sum: String,
    bytes: u32,
    _job: Job,
    _dir: TempDir,
}

impl Web {
    /// Serves `kibibytes` of random bytes as `/file`, and the caller's address as `/cgi-bin/who`, on every address of
    /// `host`.
    #[track_caller]
    pub fn serve(host: &dyn Host, port: u16, kibibytes: u32) -> Self {
        // A guest's own directory goes with the guest, a namespace's is this one.
        let held = tempfile::Builder::new().prefix("shunt-web-").tempdir();
        let held = held.unwrap_or_else(|e| panic!("no temporary directory: {e}"));
        let dir = held.path().display();
        let bytes = kibibytes * 1024;
        let sum = host.sh(&format!(
            "mkdir -p {dir}/cgi-bin; head -c {bytes} /dev/urandom >{dir}/file
             printf '#!/bin/sh\\nprintf \"\\\\r\\\\n%%s\" \"$REMOTE_ADDR\"\\n' >{dir}/cgi-bin/who
             chmod +x {dir}/cgi-bin/who; sha256sum <{dir}/file"
        ));
        let job = host.start(&format!("exec busybox httpd -f -p {port} -h {dir}"), Duration::from_secs(600));
        wait_listening(host, port);
        Self { port, sum, bytes, _job: job, _dir: held }
    }

    /// Fetches the file and compares its sum.
    #[track_caller]
    pub fn fetch_intact(&self, client: &dyn Host, address: &str) {
        let output = get(client, address, "file", &format!("-c {}", self.bytes), "| sha256sum");
        let name = client.name();
        assert_eq!(
            output.text.trim(),
            self.sum,
            "{name}: the file of {address} arrived changed, or not at all"
        );
        progress!("{name} fetched the file of {address} unchanged");
    }
}

/// A download whose client reads nothing before it is told to: the server waits with most of the file.
pub struct Held<'a> {
    job: Job,
    client: &'a dyn Host,
    gate: String,
    sum: String,
}

impl Web {
    /// Begins to fetch the file, which should be larger than what buffers hold.
    #[track_caller]
    pub fn hold<'a>(&self, client: &'a dyn Host, address: &str) -> Held<'a> {
        let (host, port) = address.rsplit_once(':').unwrap_or((address, "80"));
        let gate = format!("{}-{port}", self._dir.path().display());
        // In a guest nothing of this path is there yet.
        client.sh(&format!("mkdir -p {gate}; mkfifo {gate}/go"));
        let job = client.start(
            &format!(
                "printf 'GET /file HTTP/1.0\\r\\n\\r\\n' | nc -n -w 60 {host} {port} \
                 | {{ read go <{gate}/go; tail -c {}; }} | sha256sum",
                self.bytes
            ),
            Duration::from_secs(120),
        );
        Held { job, client, gate, sum: self.sum.clone() }
    }
}

impl Held<'_> {
    /// Reads the rest and compares the sum.
    #[track_caller]
    pub fn finish(self) {
        self.client.sh(&format!("echo >{0}/go; rm -r {0}", self.gate));
        let name = self.client.name();
        assert_eq!(self.job.wait().text.trim(), self.sum, "{name}: a download broke off, or was changed");
    }
}

/// The address from which the server at `address` (`host:port`) sees `client`; an IPv4 one without the prefix of
/// mapped addresses. `Err` holds the client's words when it does not answer.
#[track_caller]
pub fn seen_as(client: &dyn Host, address: &str) -> Result<String, String> {
    let output = get(client, address, "cgi-bin/who", "-n 1", "");
    let text = output.text.trim().trim_matches(['[', ']']);
    let text = text.strip_prefix("::ffff:").unwrap_or(text).to_owned();
    if output.ok() { Ok(text) } else { Err(text) }
}

/// Fetches `path` from the server at `address` with curl, or with nc where that is missing (in guests), of whose answer
/// the last `tail` (in tail(1)'s words) is the body.
#[track_caller]
fn get(client: &dyn Host, address: &str, path: &str, tail: &str, rest: &str) -> Output {
    let (host, port) = address.rsplit_once(':').unwrap_or((address, "80"));
    let host = host.trim_matches(['[', ']']);
    client.run(&format!(
        "if command -v curl >/dev/null; then curl -gsS --max-time 10 'http://{address}/{path}' {rest}; \
         else printf 'GET /{path} HTTP/1.0\\r\\n\\r\\n' | timeout 20 nc -n -w 10 {host} {port} | tail {tail} {rest}; fi"
    ))
}

/// What becomes of an attempt to open a TCP connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Knock {
    /// It was accepted.
    Open,
    /// Answered with a reset.
    Refused,
    /// Answered with an ICMP error.
    Unreachable,
    /// Not answered at all.
    Silent,
}

/// Tries to open a TCP connection from `client`; three seconds without an answer are silence.
#[track_caller]
pub fn knock(client: &dyn Host, address: &str, port: u16) -> Knock {
    let text = client.run(&format!("nc -z -v -n -w 3 {address} {port}")).text;
    let words = [
        ("succeeded", Knock::Open),
        ("refused", Knock::Refused),
        ("No route to host", Knock::Unreachable),
        ("unreachable", Knock::Unreachable),
        ("Permission denied", Knock::Unreachable),
        ("timed out", Knock::Silent),
    ];
    let found = words.iter().find(|(word, _)| text.contains(word));
    found.unwrap_or_else(|| panic!("{}: nc {address} {port}: {text}", client.name())).1
}
