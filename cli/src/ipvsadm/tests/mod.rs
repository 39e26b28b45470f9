//! Recordings of ipvsadm 1.31 with Linux 6.1 (commands, output, exit status), replayed on a switch in this process.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::Cursor;
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;

use serde::Deserialize;
use shunt_switch::config::{Poll, Workers};
use shunt_switch::control::api::Method;
use shunt_switch::control::dispatch::Dispatcher;
use shunt_switch::control::rpc;
use shunt_switch::switch::{Options, Switch};

use super::names::{Hosts, Names};
use super::{Director, Session};
use crate::client::Failure;

/// The services that the recordings name.
const SERVICES: &str = "tcpmux 1/tcp\nftp 21/tcp\ndomain 53/tcp\ndomain 53/udp\nhttp 80/tcp www\nsnmp 161/tcp\n\
    snmp 161/udp\nhttps 443/tcp\nhttps 443/udp\nsip 5060/tcp\nsip 5060/udp\nhttp-alt 8080/tcp webcache\n\
    http-alt 8080/udp\n";

/// The hosts that the recordings name.
struct Fixed(HashMap<String, Ipv4Addr>, HashMap<IpAddr, String>);

impl Fixed {
    fn new() -> Self {
        let mut fixed = Self(HashMap::new(), HashMap::new());
        let names = [
            ("127.0.0.1", "localhost"),
            ("10.5.5.5", "testhost"),
            ("10.6.6.6", "a-host-with-quite-a-long-name.and.domain.example.org"),
            ("2001:db8:5::5", "testhost6"),
            ("2001:db8:6::6", "another-host-with-quite-a-long-name.and.domain.example.org"),
            ("::1", "localhost"),
        ];
        for (address, name) in names {
            let address: IpAddr = address.parse().unwrap();
            if let IpAddr::V4(v4) = address {
                fixed.0.insert(name.to_owned(), v4);
            }
            fixed.1.insert(address, name.to_owned());
        }
        fixed
    }
}

impl Hosts for Fixed {
    fn address(&self, name: &str) -> Option<Ipv4Addr> {
        self.0.get(name).copied()
    }

    fn name(&self, address: IpAddr) -> Option<String> {
        self.1.get(&address).cloned()
    }
}

/// Asks a dispatcher of this process.
struct InProcess {
    dispatcher: Rc<Dispatcher>,
    answer: Option<Vec<u8>>,
}

#[derive(Deserialize)]
struct Answer<T> {
    #[serde(default = "Option::default")]
    result: Option<T>,
    error: Option<rpc::Error>,
}

impl Director for InProcess {
    fn send<M: Method>(&mut self, request: &M) -> Result<(), Failure> {
        let params = serde_json::to_string(request).unwrap();
        let line = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{}","params":{params}}}"#, M::NAME);
        let answer = std::pin::pin!(self.dispatcher.answer(1, line.as_bytes()));
        // Nothing of virtual services waits for others.
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let std::task::Poll::Ready(answer) = answer.poll(&mut context) else { panic!("{line} waits") };
        self.answer = answer;
        Ok(())
    }

    fn answer<M: Method>(&mut self) -> Result<M::Answer, Failure> {
        let answer = self.answer.take().unwrap();
        let answer: Answer<M::Answer> = serde_json::from_slice(&answer).unwrap();
        match answer.error {
            None => Ok(answer.result.unwrap()),
            Some(error) => {
                let (index, kind) = error.data.map_or((None, None), |data| (data.index, data.kind));
                Err(match kind {
                    Some(kind) => Failure::Known { message: error.message, kind, index },
                    None => Failure::Refused(error.message, index),
                })
            }
        }
    }
}

/// A switch of its own to run command lines on.
struct Bench(Rc<Dispatcher>);

impl Bench {
    fn new() -> Self {
        let options = Options { workers: Workers::Count(1), poll: Poll::Adaptive, state: None, handed: None };
        let switch = Switch::start(options).unwrap();
        Self(Rc::new(Dispatcher::new(Rc::new(RefCell::new(switch)), Rc::default())))
    }

    /// What a command line prints, in the form of the recordings.
    fn run(&self, words: &[String], input: &str) -> String {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut session = Session {
            director: InProcess { dispatcher: self.0.clone(), answer: None },
            names: Names::of(Box::new(Fixed::new()), SERVICES),
            program: "ipvsadm".into(),
            json: false,
            container: None,
            kata: false,
            out: &mut out,
            err: &mut err,
        };
        let status = session.run(words, &mut Cursor::new(input));
        let mut said = String::from_utf8(out).unwrap();
        for line in String::from_utf8(err).unwrap().lines() {
            writeln!(said, "stderr: {line}").unwrap();
        }
        writeln!(said, "[rc={status}]").unwrap();
        said
    }
}

/// Splits a line as a shell does, as far as the recordings need it.
fn split(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted) = (Vec::new(), None::<String>, false);
    for c in line.chars() {
        match c {
            '\'' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            ' ' if !quoted => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// Sorted lines, for listings without an order.
fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    lines
}

/// Replays a recording; returns what differs.
fn replay(recording: &str) -> Vec<String> {
    let bench = Bench::new();
    let mut differences = Vec::new();
    let mut lines = recording.lines().peekable();
    let mut commands = 0;
    while let Some(line) = lines.next() {
        if line == "### time of 20000 rules" {
            break;
        }
        let Some(command) = line.strip_prefix("$ ipvsadm") else { continue };
        commands += 1;
        let mut input = String::new();
        let mut command = command.trim_end().to_owned();
        if let Some(plain) = command.strip_suffix(" <<EOF").map(str::to_owned) {
            command = plain;
            while let Some(line) = lines.next().filter(|line| *line != "EOF") {
                input += line;
                input.push('\n');
            }
        } else if let Some((plain, json)) = command.clone().split_once(" <<< ") {
            command = plain.to_owned();
            input = serde_json::from_str(json).unwrap();
        }
        let mut words: Vec<_> = split(&command).into_iter().filter(|word| word != "</dev/null").collect();
        if words.first().is_some_and(|word| word == "-R") {
            // What was recorded is what ipvsadm does line by line.
            words.insert(1, "--keep-going".into());
        }
        let mut expected = String::new();
        for line in lines.by_ref() {
            expected += line;
            expected.push('\n');
            if line.starts_with("[rc=") {
                break;
            }
        }
        let got = bench.run(&words, &input);
        let same = match words.iter().any(|word| word == "--nosort") {
            true => sorted(&got) == sorted(&expected),
            false => got == expected,
        };
        if !same {
            differences.push(format!("$ ipvsadm{command}\n--- expected\n{expected}--- got\n{got}"));
        }
    }
    assert!(commands > 100, "{commands} commands are no recording");
    differences
}

#[test]
fn the_recording_is_replayed_to_the_byte() {
    let differences = replay(include_str!("control.golden"));
    assert!(differences.is_empty(), "{} differ:\n{}", differences.len(), differences.join("\n"));
}

#[test]
fn a_further_recording_is_replayed_to_the_byte() {
    let differences = replay(include_str!("further.golden"));
    assert!(differences.is_empty(), "{} differ:\n{}", differences.len(), differences.join("\n"));
}
