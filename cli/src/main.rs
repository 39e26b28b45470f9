//! `shuntctl`: one request to the daemon, one answer to whoever asked.
//!
//! The command line's grammar is judged here (exit status 2); every value is judged by the daemon (1), so that there
//! is one place for rules and their messages.
#![forbid(unsafe_code)]

mod arguments;
mod check;
mod config;
mod front;
mod ipvs;
mod ipvsadm;
mod kata;
mod l3;
mod manual;
mod routes;
mod rules;
mod sandbox;
mod show;

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use arguments::{Arguments, Bridge, Config, Fdb, Noun, Placement, Port, Worker};
use clap::{CommandFactory, Parser};
use serde::Serialize;
use shunt_client::client::{self, Client, Failure};
use shunt_switch::config::arguments::one_line;
use shunt_switch::control::api;

const REFUSED: u8 = 1;
const USAGE: u8 = 2;
const UNREACHABLE: u8 = 3;

fn main() -> ExitCode {
    if let Some(called) = front::ipvsadm(std::env::args_os()) {
        let front::Called { words, program, control, json } = called;
        return ipvsadm::run(&words, &program, control, json);
    }
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(wrong) if wrong.use_stderr() => return usage(&wrong),
        Err(help) => return print(&help.render().to_string()),
    };
    match arguments.noun {
        Noun::KataNetwork(command) => return kata::network(&command, arguments.control.as_deref()),
        Noun::KataIpvs(command) => return kata::ipvs(&command, arguments.control, arguments.json),
        _ => (),
    }
    let command = arguments.noun.words();
    match answer(&arguments) {
        Ok(text) => print(&text),
        Err(failure) => {
            if let Failure::Output(error) = &failure
                && error.kind() == ErrorKind::BrokenPipe
            {
                return ExitCode::SUCCESS;
            }
            eprintln!("shuntctl: {command}: {failure}");
            ExitCode::from(match failure {
                Failure::Refused(..) | Failure::Known { .. } | Failure::Output(_) => REFUSED,
                Failure::Unreachable(_) => UNREACHABLE,
            })
        }
    }
}

/// Says in one line what is wrong with the command line; without any command, what there is.
fn usage(wrong: &clap::Error) -> ExitCode {
    if wrong.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        eprint!("{}", wrong.render());
    } else {
        eprintln!("shuntctl: {} (see --help)", one_line(wrong));
    }
    ExitCode::from(USAGE)
}

/// Writes the answer; a reader that has gone has read enough.
fn print(text: &str) -> ExitCode {
    let mut output = std::io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            eprintln!("shuntctl: the answer cannot be written: {error}");
            ExitCode::from(REFUSED)
        }
        _ => ExitCode::SUCCESS,
    }
}

/// The answer as it is to be printed.
fn answer(arguments: &Arguments) -> Result<String, Failure> {
    match &arguments.noun {
        Noun::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Arguments::command(), "shuntctl", &mut script);
            return Ok(String::from_utf8_lossy(&script).into_owned());
        }
        Noun::Man { directory } => {
            return manual::write(directory).map(|()| String::new()).map_err(|e| {
                Failure::Refused(format!("cannot write to {}: {e}", directory.display()), None)
            });
        }
        Noun::Config(Config::Check { file }) => return config::check(file, arguments.json),
        Noun::Dan(command) => {
            if let Some(answer) = sandbox::answer(command) {
                return answer;
            }
        }
        _ => (),
    }
    let mut asker = Asker { client: Client::connect(arguments.control.as_deref())?, json: arguments.json };
    asker.answer(&arguments.noun)
}

struct Asker {
    client: Client,
    json: bool,
}

impl Asker {
    /// Asks, and shows the answer as JSON or in the way given.
    fn ask<M>(&mut self, request: &M, show: impl FnOnce(&M::Answer) -> String) -> Result<String, Failure>
    where
        M: api::Method,
    {
        let answer = self.client.ask(request)?;
        self.render(&answer, show)
    }

    /// Writes a part of the answer.
    fn write(&self, text: &str) -> Result<(), Failure> {
        std::io::stdout().lock().write_all(text.as_bytes()).map_err(Failure::Output)
    }

    fn render<T: Serialize>(&self, answer: &T, show: impl FnOnce(&T) -> String) -> Result<String, Failure> {
        if !self.json {
            return Ok(show(answer));
        }
        let mut text = serde_json::to_string_pretty(answer)
            .map_err(|e| Failure::Unreachable(format!("the answer cannot be written as JSON: {e}")))?;
        text.push('\n');
        Ok(text)
    }

    fn answer(&mut self, noun: &Noun) -> Result<String, Failure> {
        match noun {
            Noun::Status => self.ask(&api::StatusShow {}, show::status),
            Noun::Upgrade { binary } => {
                // The daemon's directory is another one.
                let binary =
                    binary.as_ref().map(|path| std::path::absolute(path).unwrap_or_else(|_| path.clone()));
                self.ask(&api::DaemonUpgrade { binary }, show::upgraded)
            }
            Noun::Bridge(command) => self.bridge(command),
            Noun::Port(command) => self.port(command),
            Noun::Fdb(command) => self.fdb(command),
            Noun::Interface(command) => self.interface(command),
            Noun::Route(command) => self.route(command),
            Noun::Neighbour(command) => self.neighbour(command),
            Noun::Nat(command) => self.nat(command),
            Noun::Conntrack(command) => self.conntrack(command),
            Noun::Policy(command) => self.policy(command),
            Noun::Dhcp(command) => self.dhcp(command),
            Noun::Check(command) => self.check(command),
            Noun::Config(command) => self.config(command),
            Noun::Worker(command) => self.worker(command),
            Noun::Dan(command) => self.dan(command),
            Noun::Stats { port, drops } => self.ask(&api::StatsShow { port: port.clone() }, |ports| {
                if *drops { show::drops(ports) } else { show::stats(ports) }
            }),
            Noun::Ipvs(command) => self.ipvs(command),
            Noun::Container(command) => self.container(command),
            // Answered without the daemon, or before.
            Noun::Completions { .. } | Noun::Man { .. } | Noun::Ipvsadm { .. } => Ok(String::new()),
            Noun::KataNetwork(_) | Noun::KataIpvs(_) => Ok(String::new()),
        }
    }

    fn bridge(&mut self, command: &Bridge) -> Result<String, Failure> {
        match command.clone() {
            Bridge::Add { name, ageing, fdb_limit, filter } => {
                self.ask(&api::BridgeAdd { name, ageing, fdb_limit, filter }, silent)
            }
            Bridge::Set { name, filter } => self.ask(&api::BridgeSet { name, filter: Some(filter) }, silent),
            Bridge::Del { name } => self.ask(&api::BridgeDel { name }, silent),
            Bridge::List => self.ask(&api::BridgeList {}, |bridges| show::bridges(bridges)),
            Bridge::Show { name } => self.ask(&api::BridgeShow { name }, show::bridge),
        }
    }

    fn worker(&mut self, command: &Worker) -> Result<String, Failure> {
        match *command {
            Worker::List { reset } => self.ask(&api::WorkerList { reset }, |workers| show::workers(workers)),
            Worker::Rebalance { dry_run } => self.ask(&api::WorkerRebalance { dry_run }, show::rebalance),
            Worker::Settings => self.ask(&api::WorkerSettings {}, show::worker_settings),
            Worker::Set { auto, interval, load_threshold, improvement_threshold } => {
                let set = api::WorkerSet { auto, interval, load_threshold, improvement_threshold };
                self.ask(&set, silent)
            }
        }
    }

    fn port(&mut self, command: &Port) -> Result<String, Failure> {
        match command.clone() {
            Port::Add(port) => {
                let (pins, unpin) = placements(&port.worker);
                if let Some(queue) = unpin.first() {
                    let rule = "a new port's queues go to any worker unless told otherwise, leave it out";
                    return Err(Failure::Refused(format!("worker {queue}=any: {rule}"), None));
                }
                let request = api::PortAdd {
                    name: port.name,
                    bridge: port.bridge,
                    vhost_user: port.vhost_user,
                    role: port.role,
                    tap: port.tap,
                    netns: port.netns,
                    persist: port.persist,
                    netdev: port.netdev,
                    queues: port.queues,
                    mtu: port.mtu,
                    mac: port.mac,
                    pins,
                    guard: port.guard,
                    allow_address: port.allow_address,
                    ingress_rate: port.limits.ingress_rate,
                    ingress_burst: port.limits.ingress_burst,
                    egress_rate: port.limits.egress_rate,
                    egress_burst: port.limits.egress_burst,
                };
                self.ask(&request, silent)
            }
            Port::Del { name } => self.ask(&api::PortDel { name }, silent),
            Port::List => self.ask(&api::PortList {}, |ports| show::ports(ports)),
            Port::Show { name } => self.ask(&api::PortShow { name }, show::port),
            Port::Set { name, mtu, worker, guard, allow_address, revoke_address, limits } => {
                let (pins, unpin) = placements(&worker);
                let request = api::PortSet {
                    name,
                    mtu,
                    pins,
                    unpin,
                    guard,
                    allow_address,
                    revoke_address,
                    ingress_rate: limits.ingress_rate,
                    ingress_burst: limits.ingress_burst,
                    egress_rate: limits.egress_rate,
                    egress_burst: limits.egress_burst,
                };
                self.ask(&request, silent)
            }
        }
    }

    fn fdb(&mut self, command: &Fdb) -> Result<String, Failure> {
        match command.clone() {
            Fdb::List { bridge } => {
                let mut entries = Vec::new();
                let mut next = None;
                loop {
                    let page = self.client.ask(&api::FdbList { bridge: bridge.clone(), next })?;
                    entries.extend(page.entries);
                    next = page.next;
                    if next.is_none() {
                        return self.render(&entries, |entries| show::fdb(entries));
                    }
                }
            }
            Fdb::Add { bridge, mac, port, vlan } => {
                self.ask(&api::FdbAdd { bridge, mac, port, vlan }, silent)
            }
            Fdb::Del { bridge, mac, vlan } => self.ask(&api::FdbDel { bridge, mac, vlan }, silent),
            Fdb::Flush { bridge, port } => self.ask(&api::FdbFlush { bridge, port }, show::flushed),
        }
    }
}

/// What was done is not worth a word.
fn silent<T>(_: &T) -> String {
    String::new()
}

fn placements(worker: &[Placement]) -> (Vec<api::Pin>, Vec<i64>) {
    let pin = |placement: &Placement| placement.core.map(|core| api::Pin { queue: placement.queue, core });
    let unpin = worker.iter().filter(|placement| placement.core.is_none()).map(|placement| placement.queue);
    (worker.iter().filter_map(pin).collect(), unpin.collect())
}
