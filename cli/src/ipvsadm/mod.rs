//! `ipvsadm`: the command line of ipvsadm 1.31 (ipvsadm(8)) in front of shuntd, with its listings, its messages and
//! its exit status, so that people and programs that know it need not learn another one.
//!
//! Its grammar is popt's and its checks have an order that messages depend on, which clap cannot be made to follow:
//! [`scan`] splits words, [`command`] reads them, `options` knows what goes together. Names of hosts and ports are
//! looked up here ([`names`]), since the daemon must not wait for a resolver. What shunt has beyond ipvsadm are long
//! options that ipvsadm does not have.

mod command;
mod help;
mod kata;
mod names;
mod options;
mod order;
mod print;
mod restore;
mod scan;
mod table;
#[cfg(test)]
mod tests;
mod value;

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, BufWriter, ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;
use shunt_switch::control::api::{self, IpvsChange, IpvsEntry, IpvsStats, Method};

use crate::client::{Client, Failure};
use command::{Command, Format, Line, Subject, Way};
use names::Names;
use table::Listed;

/// The status of a command line that ipvsadm would not take.
const USAGE: u8 = 2;
/// The status of what was refused (-1).
const FAILED: u8 = 255;
/// The status of a listing that was refused.
const NOT_LISTED: u8 = 1;
/// The status where there is no daemon.
const UNREACHABLE: u8 = 3;
/// How long `--rate` counts.
const RATE: Duration = Duration::from_secs(1);

/// Why it goes no further.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// With this status and message, whatever follows.
    Exit(u8, String),
    /// This line alone; what follows of a file is still done.
    Line(String),
}

impl Stop {
    fn usage(message: impl Into<String>) -> Self {
        Self::Exit(USAGE, message.into())
    }

    fn help(program: &str) -> Self {
        Self::Exit(FAILED, format!("Try `{program} -h' or '{program} --help' for more information."))
    }

    fn at_line(self, number: u32) -> Self {
        match self {
            Self::Exit(status, message) => Self::Exit(status, format!("line {number}: {message}")),
            Self::Line(message) => Self::Exit(FAILED, format!("line {number}: {message}")),
        }
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // Whoever read has read enough.
            ErrorKind::BrokenPipe => Self::Exit(0, String::new()),
            _ => Self::Exit(NOT_LISTED, format!("the answer cannot be written: {error}")),
        }
    }
}

/// Who has the services.
pub(crate) trait Director {
    /// Asks; the next thing to do is to wait for the answer.
    fn send<M: Method>(&mut self, request: &M) -> Result<(), Failure>;

    /// Waits for the answer to what was sent.
    fn answer<M: Method>(&mut self) -> Result<M::Answer, Failure>;

    /// Asks, and waits for the answer.
    fn ask<M: Method>(&mut self, request: &M) -> Result<M::Answer, Failure> {
        self.send(request)?;
        self.answer::<M>()
    }
}

/// A daemon that is connected to when there is something to ask.
struct Daemon {
    control: Option<PathBuf>,
    client: Option<Client>,
}

impl Director for Daemon {
    fn send<M: Method>(&mut self, request: &M) -> Result<(), Failure> {
        let client = match self.client.take() {
            Some(client) => client,
            None => Client::connect(self.control.as_deref())?,
        };
        self.client.insert(client).send(request)
    }

    fn answer<M: Method>(&mut self) -> Result<M::Answer, Failure> {
        match &mut self.client {
            Some(client) => client.answer::<M>(),
            None => Err(Failure::Unreachable("there is no connection".into())),
        }
    }
}

/// A refusal in the words of ipvsadm, where it has words for it. It names services differently to who changes servers.
fn words(kind: &str, of_server: bool) -> Option<&'static str> {
    Some(match kind {
        "service-exists" => "Service already exists",
        "no-such-scheduler" => "Scheduler or persistence engine not found",
        "no-such-service" if of_server => "Service not defined",
        "no-such-service" => "No such service",
        "server-exists" => "Destination already exists",
        "no-such-server" => "No such destination",
        "range" => "Numerical result out of range",
        "invalid" => "Invalid operation.  Possibly wrong module version, address not unicast, ...",
        "daemon-exists" => "Daemon has already run",
        "no-daemon" => "No daemon is running",
        "no-such-interface" => "No such device",
        _ => return None,
    })
}

/// The end of a command that failed.
fn failed(failure: Failure) -> Stop {
    match failure {
        Failure::Unreachable(why) => Stop::Exit(UNREACHABLE, format!("shuntctl: ipvsadm: {why}")),
        other => Stop::Exit(FAILED, other.to_string()),
    }
}

fn is_of_server(change: &IpvsChange) -> bool {
    use IpvsChange::{AddServer, DeleteServer, EditServer};
    matches!(change, AddServer(_) | EditServer(_) | DeleteServer(_))
}

/// A run of the program.
pub(crate) struct Session<'a, D> {
    director: D,
    names: Names,
    program: String,
    json: bool,
    container: Option<String>,
    /// Kata's bounds and defaults hold.
    kata: bool,
    out: &'a mut dyn Write,
    err: &'a mut dyn Write,
}

impl<D: Director> Session<'_, D> {
    /// Does what a command line says, which may read `input`. Returns the exit status.
    pub(crate) fn run(&mut self, words: &[String], input: &mut dyn BufRead) -> u8 {
        let done = if words.is_empty() {
            self.list(&Subject::All, Format::default()).map(|()| 0)
        } else {
            self.line(words, Some(input))
        };
        self.end(done)
    }

    /// Says what is to be said at the end. Returns the exit status.
    fn end(&mut self, done: Result<u8, Stop>) -> u8 {
        let done = done.and_then(|status| self.out.flush().map(|()| status).map_err(Stop::from));
        match done {
            Ok(status) => status,
            Err(Stop::Exit(status, message)) => {
                let _ = self.out.flush();
                if !message.is_empty() {
                    let _ = writeln!(self.err, "{message}");
                }
                status
            }
            Err(Stop::Line(message)) => {
                let _ = writeln!(self.err, "{message}");
                FAILED
            }
        }
    }

    /// Restores, with what `words` say beside it.
    fn run_restore(&mut self, words: &[String], input: &mut dyn BufRead) -> u8 {
        let replace = words.iter().any(|word| word == "--replace");
        let done = self.restore(input, replace);
        self.end(done)
    }

    /// Does what a line says; without `input` it is a line of what is being restored.
    fn line(&mut self, words: &[String], input: Option<&mut dyn BufRead>) -> Result<u8, Stop> {
        let Line { command, json, container } = match self.read(words) {
            Err(Stop::Line(message)) => {
                writeln!(self.err, "{message}")?;
                return Ok(FAILED);
            }
            other => other?,
        };
        if self.kata {
            if container.is_some() {
                return Err(Stop::usage(
                    "--container cannot stand in --parameters: the ID stands behind them",
                ));
            }
            kata::check(&command)?;
        }
        self.json |= json;
        self.container = container.or(self.container.take());
        let container = self.container.clone();
        match command {
            Command::Help => {
                self.out.write_all(help::HELP.as_bytes())?;
                Err(Stop::Exit(0, String::new()))
            }
            Command::Version => {
                self.out.write_all(print::VERSION.as_bytes())?;
                Err(Stop::Exit(0, String::new()))
            }
            Command::Change(change) => {
                let of_server = is_of_server(&change);
                let request =
                    api::IpvsApply { container, changes: vec![change], more: false, replace: false };
                self.ask(&request, of_server)
            }
            Command::Zero(service) => self.ask(&api::IpvsZero { container, service }, false),
            Command::StartDaemon(start) => self.ask(&start, false),
            Command::StopDaemon(role) => self.ask(&api::IpvsDaemonStop { role }, false),
            Command::List(subject, format) => self.list(&subject, format).map(|()| 0),
            Command::Save(format) => self.save(format).map(|()| 0),
            Command::Restore { keep_going, replace } => match input {
                None => Err(Stop::help(&self.program)),
                Some(_) if keep_going && replace => {
                    Err(Stop::usage("--replace and --keep-going exclude each other: leave one out"))
                }
                Some(input) if keep_going => self.restore_lines(input),
                Some(input) => self.restore(input, replace),
            },
        }
    }

    /// Reads a command line. For Kata a server that is added alone gets translated packets.
    fn read(&mut self, words: &[String]) -> Result<Line, Stop> {
        let usual = if self.kata { Way::Masquerade } else { Way::Route };
        command::read(words, &self.program, &mut self.names, usual)
    }

    /// Asks for something to be done. What is refused is said, and it goes on.
    fn ask<M: Method>(&mut self, request: &M, of_server: bool) -> Result<u8, Stop> {
        match self.director.ask(request) {
            Ok(_) => Ok(0),
            Err(Failure::Known { kind, message, .. }) => {
                writeln!(self.err, "{}", words(&kind, of_server).unwrap_or(&message))?;
                Ok(FAILED)
            }
            Err(Failure::Refused(message, _)) => {
                writeln!(self.err, "{message}")?;
                Ok(FAILED)
            }
            Err(other) => Err(failed(other)),
        }
    }

    /// Asks for something to be listed.
    fn wanted<M: Method>(&mut self, request: &M) -> Result<M::Answer, Stop> {
        self.director.ask(request).map_err(|failure| match failure {
            Failure::Known { kind, message, .. } => {
                Stop::Exit(NOT_LISTED, words(&kind, false).map_or(message, str::to_owned))
            }
            Failure::Refused(message, _) => Stop::Exit(NOT_LISTED, message),
            other => failed(other),
        })
    }

    fn entries(&mut self, service: Option<&str>) -> Result<Vec<IpvsEntry>, Stop> {
        let (container, service) = (self.container.clone(), service.map(str::to_owned));
        let mut request = api::IpvsList { container, service, next: None };
        let mut entries = Vec::new();
        loop {
            let page = self.wanted(&request)?;
            entries.extend(page.entries);
            if page.next.is_none() {
                return Ok(entries);
            }
            request.next = page.next;
        }
    }

    fn services(&mut self, service: Option<&str>, format: Format) -> Result<Vec<Listed>, Stop> {
        let mut entries = self.entries(service)?;
        if format.rate && !format.stats && !entries.is_empty() {
            std::thread::sleep(RATE);
            let later = self.entries(service)?;
            entries = rates(&entries, later);
        }
        let strange = || Stop::Exit(NOT_LISTED, "the daemon's answer makes no sense".into());
        // The last one added is the first of the daemon's answer, and the first that ipvsadm gets.
        let mut services = table::assemble(entries).ok_or_else(strange)?;
        if !format.unsorted {
            services = order::services(services);
            for service in &mut services {
                service.servers = order::servers(std::mem::take(&mut service.servers));
            }
        }
        Ok(services)
    }

    fn list(&mut self, subject: &Subject, format: Format) -> Result<(), Stop> {
        let container = self.container.clone();
        match subject {
            Subject::Connections => self.connections(format),
            Subject::Timeouts => {
                let timeouts = self.wanted(&api::IpvsShowTimeouts { container })?;
                self.shown(&timeouts, |out, timeouts| print::timeouts(out, timeouts))
            }
            Subject::Daemons => {
                let daemons = self.wanted(&api::IpvsDaemons {})?;
                self.shown(&daemons, |out, daemons| {
                    daemons.iter().try_for_each(|daemon| print::daemon(out, daemon))
                })
            }
            Subject::Service(service) => self.table(Some(service), format),
            Subject::All => {
                if !self.json {
                    self.out.write_all(print::HEAD.as_bytes())?;
                }
                self.table(None, format)
            }
        }
    }

    fn table(&mut self, service: Option<&str>, format: Format) -> Result<(), Stop> {
        let services = self.services(service, format)?;
        if self.json {
            return self.tree(&services);
        }
        print::title(self.out, format)?;
        for listed in &services {
            print::service(self.out, listed, format, &mut self.names)?;
        }
        Ok(())
    }

    /// Services with their servers within them, as JSON.
    fn tree(&mut self, services: &[Listed]) -> Result<(), Stop> {
        #[derive(Serialize)]
        struct Service<'a> {
            #[serde(flatten)]
            service: &'a api::IpvsServiceEntry,
            servers: Vec<&'a api::IpvsServerEntry>,
        }
        let tree: Vec<_> = services
            .iter()
            .map(|listed| Service {
                service: &listed.entry,
                servers: listed.servers.iter().map(|server| &server.entry).collect(),
            })
            .collect();
        self.document(&tree)
    }

    fn document<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Stop> {
        serde_json::to_writer_pretty(&mut *self.out, value)
            .map_err(|error| Stop::from(io::Error::from(error)))?;
        writeln!(self.out)?;
        Ok(())
    }

    fn shown<T: Serialize>(
        &mut self,
        value: &T,
        print: impl FnOnce(&mut dyn Write, &T) -> io::Result<()>,
    ) -> Result<(), Stop> {
        if self.json {
            return self.document(value);
        }
        Ok(print(self.out, value)?)
    }

    fn save(&mut self, format: Format) -> Result<(), Stop> {
        for listed in &self.services(None, format)? {
            print::rules(self.out, listed, format.numeric, &mut self.names)?;
        }
        Ok(())
    }

    /// Prints connections page by page; all together as JSON.
    fn connections(&mut self, format: Format) -> Result<(), Stop> {
        let mut request = api::IpvsConnections { container: self.container.clone(), next: None };
        let mut all = Vec::new();
        if !self.json {
            print::connection_title(self.out, format)?;
        }
        loop {
            let page = self.wanted(&request)?;
            if self.json {
                all.extend(page.entries);
            } else {
                for entry in &page.entries {
                    print::connection(self.out, entry, format, &mut self.names)?;
                }
            }
            match page.next {
                Some(_) => request.next = page.next,
                None if self.json => return self.document(&all),
                None => return Ok(()),
            }
        }
    }
}

/// What was counted between two listings, a second apart.
fn rates(before: &[IpvsEntry], mut after: Vec<IpvsEntry>) -> Vec<IpvsEntry> {
    /// Who an entry is: a service, or a server of the last service.
    fn name<'e>(entry: &'e mut IpvsEntry, service: &mut String) -> (String, &'e mut IpvsStats) {
        match entry {
            IpvsEntry::Service(entry) => {
                service.clone_from(&entry.service);
                (entry.service.clone(), &mut entry.stats)
            }
            IpvsEntry::Server(entry) => (format!("{service} {}", entry.address), &mut entry.stats),
        }
    }
    let mut service = String::new();
    let mut known = HashMap::new();
    for entry in before {
        let mut entry = entry.clone();
        let (name, stats) = name(&mut entry, &mut service);
        known.insert(name, *stats);
    }
    for entry in &mut after {
        let (name, stats) = name(entry, &mut service);
        // What is new since then began at 0.
        let old = known.get(&name).copied().unwrap_or_default();
        *stats = IpvsStats {
            connections: stats.connections.saturating_sub(old.connections),
            in_packets: stats.in_packets.saturating_sub(old.in_packets),
            out_packets: stats.out_packets.saturating_sub(old.out_packets),
            in_bytes: stats.in_bytes.saturating_sub(old.in_bytes),
            out_bytes: stats.out_bytes.saturating_sub(old.out_bytes),
        };
    }
    after
}

/// Does what `words` say, as a program of the name `program`.
pub(crate) fn run(words: &[String], program: &str, control: Option<PathBuf>, json: bool) -> ExitCode {
    let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
    let mut err = io::stderr();
    let mut session = Session {
        director: Daemon { control, client: None },
        names: Names::system(),
        program: program.to_owned(),
        json,
        container: None,
        kata: false,
        out: &mut out,
        err: &mut err,
    };
    let mut input = BufReader::with_capacity(1 << 16, io::stdin());
    ExitCode::from(session.run(words, &mut input))
}

/// Does what `words` say for a container, with Kata's bounds, or restores `input`. Whatever fails fails with 1.
pub(crate) fn run_for_kata(
    words: &[String],
    container: String,
    restore: bool,
    mut input: Box<dyn BufRead>,
    control: Option<PathBuf>,
    json: bool,
) -> ExitCode {
    let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
    let mut err = io::stderr();
    let mut session = Session {
        director: Daemon { control, client: None },
        names: Names::system(),
        program: "kata-ipvs ipvsadm".to_owned(),
        json,
        container: Some(container),
        kata: true,
        out: &mut out,
        err: &mut err,
    };
    let status = match restore {
        true => session.run_restore(words, &mut input),
        false if words.is_empty() => {
            let _ = writeln!(
                session.err,
                "--parameters says nothing: give what ipvsadm is to do, such as --list"
            );
            FAILED
        }
        false => session.run(words, &mut input),
    };
    ExitCode::from(match status {
        0 | UNREACHABLE => status,
        _ => 1,
    })
}
