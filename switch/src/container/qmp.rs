//! A client of QEMU's machine protocol (QMP): one JSON object a line, each command answered in its turn, events between.
//!
//! Whoever answers may be anybody: lines are bounded, every wait has a deadline that counts from the command and not
//! from the last byte, and an answer must bear the number of its command.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde::Deserialize;
use serde_json::Value;

/// How long QEMU may take to greet, and to answer a command. A monitor that serves somebody else does not greet.
pub(super) const PATIENCE: Duration = Duration::from_secs(8);
/// Longest message, in bytes: the PCI devices of a large machine take some hundred thousand.
const LINE: usize = 8 << 20;
/// Events that are kept for later; older ones go.
const EVENTS: usize = 1024;
/// How often a wait looks whether it was called off.
const LOOK: Duration = Duration::from_millis(100);

/// Why QEMU did not do it.
#[derive(Debug, thiserror::Error)]
pub(super) enum QmpError {
    /// There is no monitor, or it is gone.
    #[error("QMP socket {path}: {why}")]
    Gone { path: String, why: String },
    /// It did not answer in time.
    #[error("QMP socket {path}: no answer to {to} within {} s{hint}", .after.as_secs())]
    Silent { path: String, to: String, after: Duration, hint: &'static str },
    /// What it says is not the protocol's.
    #[error("QMP socket {path}: the answer to {to} makes no sense: {why}")]
    Strange { path: String, to: String, why: String },
    /// It said no.
    #[error("QEMU refuses {command}: {message}")]
    Refused { command: &'static str, class: String, message: String },
    /// The daemon ends.
    #[error("called off, since the daemon ends")]
    CalledOff,
}

impl QmpError {
    /// Whether QEMU says that there is no such thing.
    pub(super) fn is_missing(&self) -> bool {
        match self {
            Self::Refused { class, message, .. } => {
                class == "DeviceNotFound" || message.contains("not found")
            }
            _ => false,
        }
    }

    /// What QEMU says, if it said no.
    pub(super) fn refusal(&self) -> Option<&str> {
        match self {
            Self::Refused { message, .. } => Some(message),
            _ => None,
        }
    }
}

/// Something that happened in QEMU.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Event {
    /// Its name.
    #[serde(rename = "event")]
    pub(super) name: String,
    /// More of it.
    #[serde(default)]
    pub(super) data: Value,
}

#[derive(Deserialize)]
struct Refusal {
    class: String,
    #[serde(default)]
    desc: String,
}

/// A connection to a monitor.
pub(super) struct Qmp {
    stream: UnixStream,
    path: PathBuf,
    /// What was read of lines that are not complete or not looked at yet.
    buffer: Vec<u8>,
    events: VecDeque<Event>,
    asked: u64,
    called_off: Arc<AtomicBool>,
}

impl Qmp {
    /// Connects, and leaves the negotiation.
    ///
    /// # Errors
    /// Nobody listens, or it is no QMP, or it serves somebody else.
    pub(super) fn connect(path: &Path, called_off: &Arc<AtomicBool>) -> Result<Self, QmpError> {
        let gone = |why: String| QmpError::Gone { path: path.display().to_string(), why };
        let stream = UnixStream::connect(path).map_err(|e| match e.kind() {
            ErrorKind::NotFound => {
                gone("no such socket: does QEMU run, with -qmp unix:PATH,server=on,wait=off?".into())
            }
            ErrorKind::ConnectionRefused => gone("nobody listens there: QEMU has ended".into()),
            _ => gone(e.to_string()),
        })?;
        let mut qmp = Self {
            stream,
            path: path.to_path_buf(),
            buffer: Vec::new(),
            events: VecDeque::new(),
            asked: 0,
            called_off: called_off.clone(),
        };
        let deadline = Instant::now() + PATIENCE;
        let hint = ": does somebody else use this monitor?";
        let Some(greeting) = qmp.message("the connection", deadline)? else {
            return Err(qmp.silent("the connection", PATIENCE, hint));
        };
        if greeting.get("QMP").is_none() {
            return Err(qmp.strange("the connection", "it is no greeting"));
        }
        qmp.command("qmp_capabilities", serde_json::json!({}))?;
        Ok(qmp)
    }

    fn silent(&self, to: &str, after: Duration, hint: &'static str) -> QmpError {
        QmpError::Silent { path: self.path.display().to_string(), to: to.to_owned(), after, hint }
    }

    fn strange(&self, to: &str, why: &str) -> QmpError {
        QmpError::Strange { path: self.path.display().to_string(), to: to.to_owned(), why: why.to_owned() }
    }

    fn gone(&self, why: impl std::fmt::Display) -> QmpError {
        QmpError::Gone { path: self.path.display().to_string(), why: why.to_string() }
    }

    /// The next message; `None` once the deadline is over.
    fn message(&mut self, to: &str, deadline: Instant) -> Result<Option<Value>, QmpError> {
        let mut searched = 0;
        loop {
            if let Some(end) = self.buffer[searched..].iter().position(|&b| b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=searched + end).collect();
                return match serde_json::from_slice(&line) {
                    Ok(message @ Value::Object(_)) => Ok(Some(message)),
                    _ => Err(self.strange(to, "it is no JSON object")),
                };
            }
            searched = self.buffer.len();
            if searched > LINE {
                return Err(self.strange(to, "it is longer than any message of QEMU"));
            }
            if self.called_off.load(Ordering::Relaxed) {
                return Err(QmpError::CalledOff);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let wait = left.min(LOOK).max(Duration::from_millis(1));
            self.stream.set_read_timeout(Some(wait)).map_err(|e| self.gone(e))?;
            let mut piece = [0; 16 << 10];
            match self.stream.read(&mut piece) {
                Ok(0) => return Err(self.gone(format!("closed before the answer to {to}"))),
                Ok(read) => self.buffer.extend_from_slice(&piece[..read]),
                Err(e)
                    if matches!(
                        e.kind(),
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                    ) => {}
                Err(e) => return Err(self.gone(e)),
            }
        }
    }

    fn keep(&mut self, message: Value) {
        if let Ok(event) = serde_json::from_value(message) {
            if self.events.len() >= EVENTS {
                self.events.pop_front();
            }
            self.events.push_back(event);
        }
    }

    /// Has QEMU do something, and waits for what came of it.
    ///
    /// # Errors
    /// QEMU refuses, or is gone, or does not answer in time.
    pub(super) fn command(&mut self, name: &'static str, arguments: Value) -> Result<Value, QmpError> {
        self.command_with(name, arguments, &[])
    }

    /// The same, with descriptors that go along.
    pub(super) fn command_with(
        &mut self,
        name: &'static str,
        arguments: Value,
        files: &[&File],
    ) -> Result<Value, QmpError> {
        self.asked += 1;
        let asked = self.asked;
        let line = format!("{}\n", serde_json::json!({"execute": name, "arguments": arguments, "id": asked}));
        self.send(line.as_bytes(), files).map_err(|e| self.gone(e))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let Some(mut answer) = self.message(name, deadline)? else {
                return Err(self.silent(name, PATIENCE, ""));
            };
            if answer.get("event").is_some() {
                self.keep(answer);
                continue;
            }
            if answer.get("id").and_then(Value::as_u64) != Some(asked) {
                return Err(self.strange(name, "it is the answer to something else"));
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            return match serde_json::from_value::<Refusal>(answer["error"].take()) {
                Ok(Refusal { class, desc }) => Err(QmpError::Refused { command: name, class, message: desc }),
                Err(_) => Err(self.strange(name, "it is neither a success nor an error")),
            };
        }
    }

    fn send(&mut self, line: &[u8], files: &[&File]) -> std::io::Result<()> {
        self.stream.set_write_timeout(Some(PATIENCE))?;
        if files.is_empty() {
            return self.stream.write_all(line);
        }
        let descriptors: Vec<RawFd> = files.iter().map(|file| file.as_raw_fd()).collect();
        let control = [ControlMessage::ScmRights(&descriptors)];
        let pieces = [IoSlice::new(line)];
        let fd = self.stream.as_raw_fd();
        let sent = sendmsg::<()>(fd, &pieces, &control, MsgFlags::MSG_NOSIGNAL, None)?;
        self.stream.write_all(&line[sent..])
    }

    /// Waits for an event that fits, which may have come already; `None` once the deadline is over.
    ///
    /// # Errors
    /// QEMU is gone.
    pub(super) fn event(
        &mut self,
        fits: impl Fn(&Event) -> bool,
        deadline: Instant,
    ) -> Result<Option<Event>, QmpError> {
        loop {
            if let Some(at) = self.events.iter().position(&fits) {
                return Ok(self.events.remove(at));
            }
            match self.message("nothing", deadline)? {
                None => return Ok(None),
                Some(message) if message.get("event").is_some() => self.keep(message),
                Some(_) => return Err(self.strange("nothing", "nothing was asked")),
            }
        }
    }
}
