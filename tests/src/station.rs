//! A station on a namespace's eth0 that sends any packet, however odd, and reports what it receives: scapy, driven by
//! `tests/scripts/station.py`, whose head describes the protocol.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::{Value, json};

use crate::netns::NetNs;
use crate::tools::repository;

/// How long a packet may take through the switch.
const LIMIT: Duration = Duration::from_secs(30);

/// A namespace that has no addresses of its own and a scapy that plays its hosts.
pub struct Station {
    /// The namespace; its stack keeps silent.
    pub netns: NetNs,
    /// MAC address of eth0.
    pub mac: String,
    child: Child,
    answers: Receiver<Value>,
}

impl Station {
    /// Takes over a namespace, whose eth0 is up, and answers there for `addresses`.
    #[track_caller]
    pub fn new(netns: NetNs, addresses: &[&str]) -> Self {
        use crate::host::Host as _;
        netns.sh("echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6; ip address flush dev eth0");
        // Debian's own Python, which has Debian's scapy; a user's may stand before it in PATH.
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--", "ip", "netns", "exec", netns.id(), "/usr/bin/python3"])
            .arg(repository().join("tests/scripts/station.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start a station: {e}"));
        let output = child.stdout.take().unwrap_or_else(|| panic!("a station without output"));
        let (sender, answers) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let answer = serde_json::from_str(&line).unwrap_or_else(|_| json!({ "error": line }));
                if sender.send(answer).is_err() {
                    return;
                }
            }
        });
        let mut station = Self { netns, mac: String::new(), child, answers };
        let ready = station.answer(Duration::from_secs(60));
        station.mac = ready["ready"].as_str().unwrap_or_default().to_owned();
        station.be(addresses);
        station
    }

    #[track_caller]
    fn answer(&mut self, limit: Duration) -> Value {
        let answer = self.answers.recv_timeout(limit);
        let answer = answer.unwrap_or_else(|e| panic!("the station does not answer: {e}"));
        assert!(
            answer.get("error").is_none(),
            "the station: {}",
            answer["error"].as_str().unwrap_or_default()
        );
        answer
    }

    #[track_caller]
    fn ask(&mut self, request: &Value) -> Value {
        let written = self.child.stdin.as_mut().map(|pipe| writeln!(pipe, "{request}"));
        assert!(matches!(written, Some(Ok(()))), "the station has ended");
        self.answer(LIMIT + Duration::from_secs(60))
    }

    /// Answers for further addresses.
    #[track_caller]
    pub fn be(&mut self, addresses: &[&str]) {
        self.ask(&json!({ "be": addresses }));
    }

    /// Executes Python statements, which give names to what later expressions are made of.
    #[track_caller]
    pub fn define(&mut self, statements: &str) {
        self.ask(&json!({ "let": statements }));
    }

    /// Forgets what was received and sends `packets`: a Python expression, a packet with its Ethernet header or a list.
    #[track_caller]
    pub fn send(&mut self, packets: &str) {
        self.ask(&json!({ "send": packets, "clear": true }));
    }

    /// As [`Station::send`], without forgetting.
    #[track_caller]
    pub fn send_more(&mut self, packets: &str) {
        self.ask(&json!({ "send": packets }));
    }

    /// Waits for a packet `p` for which the Python expression `condition` is true; says what it was.
    #[track_caller]
    pub fn expect(&mut self, condition: &str) -> String {
        let answer = self.ask(&json!({ "find": condition, "limit": LIMIT.as_secs_f64() }));
        let found = answer["found"].as_str();
        let others = &answer["others"];
        found.unwrap_or_else(|| panic!("no packet came with `{condition}`, but {others}")).to_owned()
    }

    /// Whether a packet comes for which `condition` is true, within `limit`.
    #[track_caller]
    pub fn finds(&mut self, condition: &str, limit: Duration) -> bool {
        self.ask(&json!({ "find": condition, "limit": limit.as_secs_f64() }))["found"].is_string()
    }

    /// How many packets have come so far for which `condition` is true.
    #[track_caller]
    pub fn count(&mut self, condition: &str) -> u64 {
        self.ask(&json!({ "count": condition }))["count"].as_u64().unwrap_or(0)
    }
}

impl Drop for Station {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
