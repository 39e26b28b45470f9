//! The connection table as scripts see it: `conntrack list` through a parser that was written for conntrack(8).

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::daemon::Shuntd;
use crate::tools::repository;

impl Shuntd {
    /// What `conntrack list FILTERS` prints, parsed by `tests/scripts/conntrack.py`.
    #[track_caller]
    pub fn connections(&self, filters: &str) -> Vec<Value> {
        let command = format!("conntrack list {filters}");
        let words: Vec<&str> = command.split_whitespace().collect();
        let text = self.ctl_text(&words).unwrap_or_else(|e| panic!("shuntctl {command}: {}", e.message));
        parse(&text)
    }

    /// How many connections there are.
    #[track_caller]
    pub fn connection_count(&self) -> u64 {
        let count = self.ctl("conntrack count");
        count["count"].as_u64().unwrap_or_else(|| panic!("no count in {count}"))
    }
}

/// Entries of a listing in conntrack(8)'s format; panics, with the script's words, if it is not in that format.
#[track_caller]
pub fn parse(text: &str) -> Vec<Value> {
    let mut script = Command::new("/usr/bin/python3")
        .arg(repository().join("tests/scripts/conntrack.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("cannot start the parser: {e}"));
    let mut input = script.stdin.take().unwrap_or_else(|| panic!("a parser without input"));
    let bytes = text.as_bytes().to_vec();
    let writer = std::thread::spawn(move || input.write_all(&bytes));
    let output = script.wait_with_output().unwrap_or_else(|e| panic!("the parser: {e}"));
    let _ = writer.join();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let entries = serde_json::from_slice(&output.stdout);
    entries.unwrap_or_else(|e| panic!("the parser: {e}: {}", String::from_utf8_lossy(&output.stdout)))
}

/// The first entry in which every named field has this value.
pub fn entry<'a>(entries: &'a [Value], fields: &[(&str, &str)]) -> Option<&'a Value> {
    entries.iter().find(|entry| fields.iter().all(|(name, value)| entry[*name] == *value))
}

#[cfg(test)]
mod tests {
    use super::{entry, parse};

    /// Lines that conntrack 1.4.7 has printed.
    const REAL: &str = "\
tcp      6 431999 ESTABLISHED src=10.0.0.2 dst=10.0.0.1 sport=22 dport=49431 src=10.0.0.1 dst=10.0.0.2 sport=49431 dport=22 [ASSURED] mark=0 use=1
udp      17 28 src=10.0.0.2 dst=10.0.0.9 sport=5353 dport=53 [UNREPLIED] src=10.0.0.9 dst=10.0.0.2 sport=53 dport=5353 mark=0 use=1
icmp     1 29 src=10.0.0.2 dst=10.0.0.9 type=8 code=0 id=7 src=10.0.0.9 dst=10.0.0.2 type=0 code=0 id=7 mark=0 use=1
udp      17 170 src=fd00::2 dst=fd00::1 sport=1 dport=2 packets=3 bytes=180 src=fd00::1 dst=fd00::2 sport=2 dport=1 packets=1 bytes=60 [ASSURED] mark=0 use=1
";

    #[test]
    fn the_parser_reads_what_conntrack_prints() {
        let entries = parse(REAL);
        assert_eq!(entries.len(), 4);
        let ssh = entry(&entries, &[("protocol", "tcp"), ("sport", "22")]).expect("the first line");
        assert_eq!(
            (&ssh["state"], &ssh["reply_dport"], &ssh["timeout"]),
            (&"ESTABLISHED".into(), &"22".into(), &"431999".into())
        );
        assert!(entry(&entries, &[("unreplied", "[UNREPLIED] "), ("dport", "53")]).is_some());
        assert!(entry(&entries, &[("packets", "3"), ("reply_bytes", "60")]).is_some());
    }

    #[test]
    #[should_panic(expected = "not conntrack's format")]
    fn the_parser_refuses_what_conntrack_would_not_print() {
        parse("tcp 6 10 src=10.0.0.2 sport=22\n");
    }
}
