//! The new process: begins in the place of the one that started it.
#![forbid(unsafe_code)]

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::{geteuid, getppid};
use vhost_backend::handover::Descriptors;

use super::Handed;
use super::hear::Heard;
use super::laps::Laps;
use super::message::{self, Control, Hello, Kept, Kind, Port, Reason, Record, Runs, Start, Things};
use super::wire::{Message, Wire, WireError};
use crate::clock;
use crate::config::arguments::Settings;
use crate::conntrack::handover::RECORD;
use crate::control::socket::ControlSocket;
use crate::refusal::Refusal;
use crate::switch::{Options, Switch};

/// How long the old process may take for anything.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long it may take to end after everything is ours.
const FAREWELL: Duration = Duration::from_secs(10);

fn refused(error: impl std::fmt::Display) -> Refusal {
    Refusal::new(format!("taking over: {error}"))
}

fn deadline() -> Instant {
    Instant::now() + PATIENCE
}

/// The conversation with the old process.
pub struct Successor {
    wire: Wire,
    told: Told,
}

/// What to start with.
struct Told {
    start: Start,
    /// The lock of the state directory.
    lock: Option<File>,
    things: Things,
    control: Option<(Control, Descriptors)>,
    ports: Vec<(Port, Descriptors)>,
}

impl Successor {
    /// Takes up the conversation on standard input, which is nobody else's from now on, and hears what to start with.
    ///
    /// # Errors
    /// Standard input is no socket of our parent's, it speaks another format, or says nothing.
    pub fn greet() -> Result<Self, Refusal> {
        let socket = std::io::stdin().as_fd().try_clone_to_owned().map_err(refused)?;
        let null = File::open("/dev/null").map_err(refused)?;
        nix::unistd::dup2_stdin(&null).map_err(refused)?;
        authenticate(&socket)?;
        let wire = Wire::new(UnixStream::from(socket));
        match hear_start(&wire) {
            Ok(told) => Ok(Self { wire, told }),
            Err(refusal) => Err(tell_refusal(&wire, refusal)),
        }
    }

    /// Tells the old process that it cannot be; returns the reason.
    pub fn refuse(&self, refusal: Refusal) -> Refusal {
        tell_refusal(&self.wire, refusal)
    }

    /// Takes over: when this returns, everything runs here, and the old process has ended.
    ///
    /// # Errors
    /// Whatever went wrong before everything was ours. Who calls is to end this process then: nothing of what was made
    /// is to be given back, since it is still the old one's.
    pub fn take_over(
        mut self,
        settings: &Settings,
        options: Options,
    ) -> Result<(ControlSocket, Switch), Refusal> {
        let state = options.state.clone();
        let lock = self.told.lock.take();
        let taken = self.converse(settings, options);
        let (mut socket, mut switch, heard, kept, mut laps) =
            taken.map_err(|refusal| self.refuse(refusal))?;
        socket.own();
        switch.go_on(|what| laps.lap(what));
        // Nobody is left who could be told of an error here.
        let since = switch.workers_went_on().as_nanos().min(u128::from(u64::MAX)) as u64;
        let _ = say(&self.wire, Kind::Runs, &Runs { since });
        laps.lap("they run");
        tracing::info!("took over: {laps}");
        if !self.wire.wait_for_end(Instant::now() + FAREWELL) {
            tracing::warn!("the old process does not end");
        }
        if let (Some(directory), Some(live)) = (&state, &switch.live) {
            live.services.settle(directory);
        }
        switch.keep_on(kept, lock);
        if heard.left_out() > 0 {
            tracing::warn!("{} connections, templates or leases could not be taken over", heard.left_out());
        }
        Ok((socket, switch))
    }

    fn converse(
        &mut self,
        settings: &Settings,
        options: Options,
    ) -> Result<(ControlSocket, Switch, Heard, Kept, Laps), Refusal> {
        let told = &mut self.told;
        let Some((control, mut descriptors)) = told.control.take() else {
            return Err(Refusal::new("the control socket was not handed over"));
        };
        if control.path != settings.control {
            return Err(Refusal::new(format!(
                "the control socket is {}, and {} is asked for",
                control.path.display(),
                settings.control.display()
            )));
        }
        let socket = ControlSocket::resume(&control.path, &mut descriptors)?;
        let ports = told.ports.drain(..).map(|(port, descriptors)| (port.name, (port.state, descriptors)));
        let numbers = std::mem::take(&mut told.start.numbers);
        let cores = std::mem::take(&mut told.start.cores);
        let handed = Handed { numbers, cores, ports: ports.collect() };
        let mut switch = Switch::start(Options { handed: Some(handed), ..options })?;
        switch.step_aside();
        switch.rebalancer.settings = told.start.rebalancing;
        switch.directors.expect_failed(std::mem::take(&mut told.start.failed));
        let kept = std::mem::take(&mut told.start.kept);
        switch.make_handed(std::mem::take(&mut told.things), &kept)?;
        if let Some(name) = switch.handed.as_ref().and_then(|handed| handed.ports.keys().next()) {
            return Err(Refusal::new(format!("port {:?} is not in the configuration", name.as_str())));
        }
        say(&self.wire, Kind::Done, &())?;
        let mut heard = Heard::new(switch.workers.len());
        let mut laps = Laps::start();
        loop {
            let message = next(&self.wire)?;
            match Kind::of(message.kind) {
                Some(Kind::Port) => {
                    let port: Port = message::read("port", &message.payload)?;
                    let (name, mut descriptors) = (port.name, message.descriptors);
                    switch
                        .replace_port(&port, &mut descriptors)
                        .map_err(|refusal| Refusal::new(format!("port {:?}: {refusal}", name.as_str())))?;
                }
                Some(Kind::Records) => {
                    let records: Vec<Record> = message::read("records", &message.payload)?;
                    records.into_iter().for_each(|record| heard.record(&switch, record));
                }
                Some(Kind::Connections) => heard.connections(&switch, &message.payload)?,
                Some(Kind::Gone) => heard.gone(&switch, &message.payload)?,
                Some(Kind::Sync) => {
                    heard.settle(&switch)?;
                    say(&self.wire, Kind::Done, &())?;
                }
                Some(Kind::Still) => {
                    laps = Laps::start();
                    switch.place_workers();
                    switch.use_workers_cores();
                    laps.lap("to the workers' cores");
                }
                Some(Kind::Final) => {
                    laps.lap("changes");
                    switch.publish_handed();
                    heard.last(&switch, message::read("end", &message.payload)?)?;
                    say(&self.wire, Kind::Done, &())?;
                    laps.lap("the end");
                    expect(&self.wire, Kind::Go)?;
                    laps.lap("go");
                    return Ok((socket, switch, heard, kept, laps));
                }
                _ => return Err(unexpected(&message)),
            }
        }
    }
}

/// Hears what to start with.
fn hear_start(wire: &Wire) -> Result<Told, Refusal> {
    let hello = expect(wire, Kind::Hello)?;
    message::read::<Hello>("greeting", &hello.payload)?.check()?;
    say(wire, Kind::Hello, &Hello::own())?;
    let begin = expect(wire, Kind::Start)?;
    let start: Start = message::read("start", &begin.payload)?;
    if start.connection != RECORD {
        return Err(Refusal::new(format!(
            "its connections are records of {} bytes, ours of {RECORD}",
            start.connection
        )));
    }
    if !clock::go_on_from(Duration::from_nanos(start.began)) {
        return Err(Refusal::new("the clock runs already"));
    }
    let lock = begin.descriptors.into_vec().pop().map(File::from);
    let mut told = Told { start, lock, things: Vec::new(), control: None, ports: Vec::new() };
    loop {
        let message = next(wire)?;
        match Kind::of(message.kind) {
            Some(Kind::Things) => {
                told.things.append(&mut message::read("configuration", &message.payload)?);
            }
            Some(Kind::ControlSocket) => {
                told.control =
                    Some((message::read("control socket", &message.payload)?, message.descriptors));
            }
            Some(Kind::Port) => {
                told.ports.push((message::read("port", &message.payload)?, message.descriptors));
            }
            Some(Kind::Configure) => return Ok(told),
            _ => return Err(unexpected(&message)),
        }
    }
}

/// Whether a socket is our parent's, and our parent our own user's: who started us is who hands over.
fn authenticate(socket: &impl AsFd) -> Result<(), Refusal> {
    let peer = getsockopt(socket, PeerCredentials)
        .map_err(|_| Refusal::new("--take-over is for shuntd itself: 'shuntctl upgrade' starts it"))?;
    let (parent, own) = (getppid().as_raw(), geteuid().as_raw());
    if peer.pid() != parent || peer.uid() != own {
        return Err(Refusal::new(format!(
            "process {} of user {} hands over, which is not the process {parent} of user {own} that started this one",
            peer.pid(),
            peer.uid()
        )));
    }
    Ok(())
}

fn next(wire: &Wire) -> Result<Message, Refusal> {
    let message = wire.receive(deadline()).map_err(refused)?;
    if message.kind == Kind::Refusal as u16 {
        let reason: Reason = message::read("refusal", &message.payload)?;
        return Err(Refusal::new(format!("the old process goes on: {}", reason.reason)));
    }
    Ok(message)
}

fn expect(wire: &Wire, kind: Kind) -> Result<Message, Refusal> {
    let message = next(wire)?;
    if message.kind == kind as u16 { Ok(message) } else { Err(unexpected(&message)) }
}

fn unexpected(message: &Message) -> Refusal {
    Refusal::new(format!("a hand-over message of kind {} was not expected", message.kind))
}

fn say(wire: &Wire, kind: Kind, what: &impl serde::Serialize) -> Result<(), Refusal> {
    wire.send(kind as u16, &message::write(what)?, &[], deadline()).map_err(refused)
}

/// Tells the other side why not, if it is still there.
fn tell_refusal(wire: &Wire, refusal: Refusal) -> Refusal {
    let told: Result<(), WireError> = message::write(&Reason { reason: refusal.to_string() })
        .map_err(|_| WireError::Closed)
        .and_then(|payload| wire.send(Kind::Refusal as u16, &payload, &[], deadline()));
    if let Err(error) = told {
        tracing::debug!("the old process was not told: {error}");
    }
    refusal
}
