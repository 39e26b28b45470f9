//! The old process: starts the new one, hands over, and goes on if that fails.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::oneshot;
use vhost_backend::handover::Descriptors;

use super::laps::Laps;
use super::message::{self, Control, Hello, Kind, Numbers, Port, Reason, Runs, Start, Things};
use super::port::{self, PortState};
use super::tell::{self, RECORDS, Told};
use super::wire::Wire;
use crate::clock;
use crate::conntrack::handover::{Copies, RECORD};
use crate::control::socket::ControlSocket;
use crate::port::Attachment;
use crate::refusal::Refusal;
use crate::switch::Switch;
use crate::tables::QueueId;

/// How long the new process may take to say a word.
const GREETING: Duration = Duration::from_secs(20);
/// How long it may take to be configured: a million rules take a while.
const START: Duration = Duration::from_secs(120);
/// How long it may take for the first copy.
const COPY: Duration = Duration::from_secs(120);
/// How long everything may stand still: then it is given up.
const STILL: Duration = Duration::from_secs(2);
/// Rounds of the first copy, at most. Each tells what has changed during the one before, which took less time each time.
const ROUNDS: usize = 8;
/// So few connections that have changed during a round are left for the standstill.
const FEW: usize = 500;
/// How long the control threads of ports have to come to a halt. One whose frontend is in the midst of a message is not
/// waited for: that frontend has to connect anew.
const HALT: Duration = Duration::from_millis(5);

/// What came of it.
#[derive(Clone, Copy, Debug)]
pub struct HandedOver {
    /// The new process.
    pub pid: u32,
    /// How long no packet was carried.
    pub pause: Duration,
}

/// A message that is ready to be sent.
struct Outgoing {
    kind: Kind,
    payload: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl Outgoing {
    fn new(kind: Kind, what: &impl Serialize, descriptors: Descriptors) -> Result<Self, Refusal> {
        Ok(Self { kind, payload: message::write(what)?, descriptors: descriptors.into_vec() })
    }
}

/// The new process; it is ended when this is dropped before everything is its.
struct Heir {
    wire: Wire,
    child: Option<Child>,
}

impl Drop for Heir {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Before our workers go on: it must not have the rings as well.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Heir {
    /// Starts `binary` with our own arguments, and greets it.
    fn start(binary: &Path) -> Result<Self, Refusal> {
        let failed =
            |error: std::io::Error| Refusal::new(format!("cannot start {}: {error}", binary.display()));
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        let mut words: Vec<_> = std::env::args_os().skip(1).collect();
        words.retain(|word| word != "--take-over");
        let child = Command::new(binary)
            .args(words)
            .arg("--take-over")
            // It is not the process that the watchdog was promised for, but soon will be.
            .env_remove("WATCHDOG_PID")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .map_err(failed)?;
        let pid = child.id();
        let heir = Self { wire: Wire::new(ours), child: Some(child) };
        let deadline = Instant::now() + GREETING;
        heir.send(&Outgoing::new(Kind::Hello, &Hello::own(), Descriptors::default())?, deadline)?;
        let hello: Hello = message::read("greeting", &heir.expect(Kind::Hello, deadline)?)?;
        hello.check()?;
        if hello.pid != pid {
            return Err(Refusal::new(format!("process {} answered in place of {pid}", hello.pid)));
        }
        Ok(heir)
    }

    fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    fn send(&self, out: &Outgoing, deadline: Instant) -> Result<(), Refusal> {
        let sent = self.wire.send(out.kind as u16, &out.payload, &out.descriptors, deadline);
        // Why it ended says more than that it did.
        sent.map_err(|error| match self.expect(Kind::Done, Instant::now() + Duration::from_millis(100)) {
            Err(refusal) if !refusal.to_string().is_empty() => refusal,
            _ => Refusal::new(error.to_string()),
        })
    }

    fn expect(&self, kind: Kind, deadline: Instant) -> Result<Vec<u8>, Refusal> {
        let message = self.wire.receive(deadline).map_err(|error| Refusal::new(error.to_string()))?;
        match Kind::of(message.kind) {
            Some(got) if got == kind => Ok(message.payload),
            Some(Kind::Refusal) => {
                let Reason { reason } = message::read("refusal", &message.payload)?;
                Err(Refusal::new(reason))
            }
            _ => Err(Refusal::new(format!("it says something unexpected (kind {})", message.kind))),
        }
    }

    fn done(&self, deadline: Instant) -> Result<(), Refusal> {
        self.expect(Kind::Done, deadline).map(drop)
    }

    /// Waits until packets are carried again; since when they are, by the system's monotonic clock.
    fn runs(&self, deadline: Instant) -> Result<Duration, Refusal> {
        let runs: Runs = message::read("last word", &self.expect(Kind::Runs, deadline)?)?;
        Ok(Duration::from_nanos(runs.since))
    }

    /// Sends all, and waits until all is done.
    fn send_all(&self, messages: &[Outgoing], deadline: Instant) -> Result<(), Refusal> {
        messages.iter().try_for_each(|message| self.send(message, deadline))?;
        self.done(deadline)
    }
}

/// The path of our own program, also when the file was replaced meanwhile.
pub fn own_binary() -> PathBuf {
    let path = std::env::current_exe().unwrap_or_else(|_| "shuntd".into());
    let replaced = path.to_str().and_then(|text| text.strip_suffix(" (deleted)"));
    replaced.map_or_else(|| path.clone(), PathBuf::from)
}

/// Hands everything over to a new process. When this returns well, everything is that one's: who calls is to end
/// without giving anything back. `socket` and `switch` must not be changed by anybody else meanwhile.
///
/// # Errors
/// Why the new process could not take over. Everything goes on then as if nothing had been.
pub async fn hand_over(
    socket: &ControlSocket,
    switch: &Rc<RefCell<Switch>>,
    binary: PathBuf,
) -> Result<HandedOver, Refusal> {
    let mut told = Told::default();
    let start = start(socket, &switch.borrow(), &mut told)?;
    let heir = apart(move || {
        let heir = Heir::start(&binary)?;
        heir.send_all(&start, Instant::now() + START)?;
        Ok(heir)
    })
    .await?;
    let records = records(told.changed(&switch.borrow()))?;
    let conntrack = switch.borrow().live.as_ref().map(|live| live.conntrack.clone());
    let tracked = conntrack.clone();
    let (heir, mut copies) = apart(move || {
        let deadline = Instant::now() + COPY;
        let mut copies = Copies::default();
        records.iter().try_for_each(|message| heir.send(message, deadline))?;
        for round in 0..ROUNDS {
            let mut told = 0;
            if let Some(conntrack) = &tracked {
                told = connections(&heir, conntrack, &mut copies, deadline)?;
            }
            heir.send_all(&[Outgoing::new(Kind::Sync, &(), Descriptors::default())?], deadline)?;
            if round > 0 && told <= FEW {
                break;
            }
        }
        Ok((heir, copies))
    })
    .await?;
    let pid = heir.pid();
    let mut laps = Laps::start();
    let mut still = Still { switch, since: None, heir: Some(heir) };
    still.begin(&mut laps)?;
    let Some(heir) = still.heir.as_ref() else { return Err(Refusal::new("there is nobody to hand over to")) };
    let deadline = Instant::now() + STILL;
    heir.send(&Outgoing::new(Kind::Still, &(), Descriptors::default())?, deadline)?;
    let rest = Rest { told: &mut told, conntrack: conntrack.as_deref(), copies: &mut copies };
    finish(heir, &switch.borrow(), rest, &mut laps, deadline)?;
    heir.send(&Outgoing::new(Kind::Go, &(), Descriptors::default())?, deadline)?;
    still.step_back();
    // From here on nothing is ours. It says when it runs; if it cannot, nobody carries packets, and whoever started us
    // is to start another one.
    laps.lap("gone");
    let runs = heir.runs(Instant::now() + START);
    let since = still.commit();
    laps.lap("it runs");
    tracing::info!("stood still: {laps}");
    match runs {
        Ok(at) => Ok(HandedOver { pid, pause: at.saturating_sub(since) }),
        Err(refusal) => {
            tracing::error!("the new process {pid} has everything and says: {refusal}");
            std::process::exit(1);
        }
    }
}

/// Does something that waits for the new process, on a thread of its own. Whoever no longer waits for this does not
/// wait for that either: the new process is ended when the thread is done, or ends when it finds this process gone.
async fn apart<T: Send + 'static>(
    act: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    let (done, result) = oneshot::channel();
    std::thread::Builder::new()
        .name("hand-over".into())
        .spawn(move || {
            let _ = done.send(act());
        })
        .map_err(|error| Refusal::new(format!("no thread for the hand-over: {error}")))?;
    result.await.map_err(|_| Refusal::new("the hand-over's thread ended"))?
}

/// What the new process starts with.
fn start(socket: &ControlSocket, switch: &Switch, told: &mut Told) -> Result<Vec<Outgoing>, Refusal> {
    let place = |queue: &QueueId| (queue.port, queue.queue);
    let numbers = Numbers {
        ports: switch.ports.iter().map(|(name, member)| (*name, member.port.number())).collect(),
        interfaces: switch.router.interfaces.iter().map(|(name, one)| (*name, one.index)).collect(),
        up: switch.interfaces_up(),
        queues: switch.assignment().queues.iter().map(|list| list.iter().map(place).collect()).collect(),
    };
    let (kept, lock) = switch.kept_state();
    let cores =
        switch.cores().map_err(|error| Refusal::new(format!("cores for the new process: {error}")))?;
    let start = Start {
        numbers,
        cores,
        kept,
        failed: switch.directors.health().failed(),
        rebalancing: switch.rebalancer.settings,
        began: clock::began().as_nanos().min(u128::from(u64::MAX)) as u64,
        connection: RECORD,
    };
    let mut descriptors = Descriptors::default();
    let failed = |error: std::io::Error| Refusal::new(format!("no descriptors for the hand-over: {error}"));
    if let Some(lock) = lock {
        descriptors.add(lock).map_err(failed)?;
    }
    let mut messages = vec![Outgoing::new(Kind::Start, &start, descriptors)?];
    let mut descriptors = Descriptors::default();
    socket.export(&mut descriptors).map_err(failed)?;
    let control = Control { path: socket.path().to_path_buf() };
    messages.push(Outgoing::new(Kind::ControlSocket, &control, descriptors)?);
    let things: Things = switch.configuration().entries.into_iter().collect();
    for some in things.chunks(RECORDS) {
        messages.push(Outgoing::new(Kind::Things, &some, Descriptors::default())?);
    }
    for (name, member) in &switch.ports {
        let attachment = member.port.attachment();
        // Before: what changes meanwhile is told again.
        told.ports.insert(*name, port::changes(attachment));
        let mut descriptors = Descriptors::default();
        let failed = |error: std::io::Error| Refusal::new(format!("port {:?}: {error}", name.as_str()));
        let state = port::export(attachment, &mut descriptors).map_err(failed)?;
        messages.push(Outgoing::new(Kind::Port, &Port { name: *name, state }, descriptors)?);
    }
    messages.push(Outgoing::new(Kind::Configure, &(), Descriptors::default())?);
    Ok(messages)
}

fn records(records: Vec<message::Record>) -> Result<Vec<Outgoing>, Refusal> {
    let chunks = records.chunks(RECORDS);
    chunks.map(|some| Outgoing::new(Kind::Records, &some, Descriptors::default())).collect()
}

fn connections(
    heir: &Heir,
    conntrack: &crate::conntrack::Conntrack,
    copies: &mut Copies,
    deadline: Instant,
) -> Result<usize, Refusal> {
    let send = |kind: Kind, bytes: &[u8]| {
        heir.send(&Outgoing { kind, payload: bytes.to_vec(), descriptors: Vec::new() }, deadline)
    };
    tell::connections(
        conntrack,
        copies,
        |bytes| send(Kind::Connections, bytes),
        |bytes| send(Kind::Gone, bytes),
    )
}

/// What was told so far, and of what there is more.
struct Rest<'a> {
    told: &'a mut Told,
    conntrack: Option<&'a crate::conntrack::Conntrack>,
    copies: &'a mut Copies,
}

/// Tells what has changed since the first copy, and the rest; everything stands still.
fn finish(
    heir: &Heir,
    switch: &Switch,
    rest: Rest<'_>,
    laps: &mut Laps,
    deadline: Instant,
) -> Result<(), Refusal> {
    let Rest { told, conntrack, copies } = rest;
    let mut last = tell::last(switch);
    for (name, member) in &switch.ports {
        let attachment = member.port.attachment();
        let halted = match attachment {
            Attachment::Vhost(device) => device.halt(Instant::now()),
            _ => true,
        };
        if halted && told.ports.get(name) == Some(&port::changes(attachment)) {
            continue;
        }
        let mut descriptors = Descriptors::default();
        let failed = |error: std::io::Error| Refusal::new(format!("port {:?}: {error}", name.as_str()));
        let mut state = port::export(attachment, &mut descriptors).map_err(failed)?;
        if let (PortState::VhostUser(device), false) = (&mut state, halted) {
            tracing::warn!(
                port = name.as_str(),
                "its frontend is in the midst of a message: it has to connect anew"
            );
            device.session = None;
            if let Some(end) = last.ports.iter_mut().find(|end| end.name == *name) {
                end.positions = port::Positions::VhostUser(Vec::new());
            }
        }
        heir.send(&Outgoing::new(Kind::Port, &Port { name: *name, state }, descriptors)?, deadline)?;
    }
    laps.lap("ports");
    records(told.changed(switch))?.iter().try_for_each(|message| heir.send(message, deadline))?;
    laps.lap("records");
    if let Some(conntrack) = conntrack {
        connections(heir, conntrack, copies, deadline)?;
    }
    laps.lap("connections");
    heir.send_all(&[Outgoing::new(Kind::Final, &last, Descriptors::default())?], deadline)?;
    laps.lap("it is ready");
    Ok(())
}

/// Ports and workers that stand still; they go on when this is dropped, after the new process was ended.
struct Still<'a> {
    switch: &'a Rc<RefCell<Switch>>,
    /// By the system's monotonic clock.
    since: Option<Duration>,
    heir: Option<Heir>,
}

impl Still<'_> {
    fn begin(&mut self, laps: &mut Laps) -> Result<(), Refusal> {
        let switch = self.switch.borrow();
        // Of a port that stands still nobody notices as long as its frontend says nothing.
        let deadline = Instant::now() + HALT;
        self.since = Some(clock::monotonic());
        for member in switch.ports.values() {
            if let Attachment::Vhost(device) = member.port.attachment() {
                device.halt(deadline);
            }
        }
        laps.lap("control threads");
        self.since = Some(clock::monotonic());
        switch.hold_workers()?;
        laps.lap("workers");
        switch.use_workers_cores();
        laps.lap("to their cores");
        Ok(())
    }

    /// The cores are the new process' workers', also while this one ends.
    fn step_back(&self) {
        let switch = self.switch.borrow();
        switch.displace_workers();
        switch.step_back();
    }

    /// Nothing goes on here any more; since when.
    fn commit(&mut self) -> Duration {
        // It sees by the socket when this process has ended: that stays open as long as this does.
        std::mem::forget(self.heir.take());
        self.since.take().unwrap_or_default()
    }
}

impl Drop for Still<'_> {
    fn drop(&mut self) {
        self.heir = None;
        if self.since.is_none() {
            return;
        }
        let switch = self.switch.borrow();
        switch.let_workers_go();
        switch.step_back();
        for member in switch.ports.values() {
            if let Attachment::Vhost(device) = member.port.attachment() {
                device.go_on();
            }
        }
    }
}
