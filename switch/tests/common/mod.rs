//! A daemon of a test's own, and a client that says what it is told.
#![allow(dead_code)]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

/// How long anything may take on a busy machine.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// Waits until `check` brings something.
#[track_caller]
pub(crate) fn wait_for<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LONG;
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A command that runs shuntd without the environment's wishes.
pub(crate) fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shuntd"));
    command.env_remove("SHUNT_CONTROL").env_remove("SHUNT_LOG").env_remove("NOTIFY_SOCKET");
    command
}

fn spawn(dir: &TempDir, change: impl FnOnce(&mut Command)) -> Child {
    let mut command = command();
    command.arg("--control").arg(dir.path().join("control.sock"));
    command.arg("--state-dir").arg(dir.path().join("state"));
    change(&mut command);
    command.stderr(Stdio::null()).spawn().unwrap()
}

/// A running daemon; killed when dropped.
pub(crate) struct Daemon {
    pub(crate) dir: TempDir,
    child: Child,
}

impl Daemon {
    pub(crate) fn start() -> Self {
        Self::start_with(|_| ())
    }

    /// Starts one that answers at [`Daemon::socket`].
    #[track_caller]
    pub(crate) fn start_with(change: impl FnOnce(&mut Command)) -> Self {
        let dir = tempfile::Builder::new().prefix("shunt-ctl-").tempdir().unwrap();
        let child = spawn(&dir, change);
        let mut daemon = Self { dir, child };
        daemon.wait();
        daemon
    }

    /// Starts it again where it ran before.
    #[track_caller]
    pub(crate) fn restart(&mut self) {
        self.child = spawn(&self.dir, |_| ());
        self.wait();
    }

    #[track_caller]
    fn wait(&mut self) {
        wait_for("the control socket", || {
            assert!(self.child.try_wait().unwrap().is_none(), "shuntd ended at its start");
            UnixStream::connect(self.socket()).ok()
        });
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("control.sock")
    }

    pub(crate) fn connect(&self) -> Client {
        Client::new(UnixStream::connect(self.socket()).unwrap())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, once it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    #[track_caller]
    pub(crate) fn end(&mut self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        wait_for("shuntd to end", || self.child.try_wait().unwrap())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs shuntd until it ends by itself, which it must.
#[track_caller]
pub(crate) fn fails(command: &mut Command) -> Output {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + LONG;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("shuntd runs, which it should not");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().unwrap()
}

/// A connection.
pub(crate) struct Client {
    pub(crate) stream: BufReader<UnixStream>,
}

impl Client {
    pub(crate) fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.set_write_timeout(Some(LONG)).unwrap();
        Self { stream: BufReader::new(stream) }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).unwrap();
    }

    /// The next line; `None` when the daemon closed.
    #[track_caller]
    pub(crate) fn line(&mut self) -> Option<Value> {
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"))),
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(e) => panic!("no answer: {e}"),
        }
    }

    /// Sends a line and returns the answer to it.
    #[track_caller]
    pub(crate) fn raw(&mut self, line: &str) -> Value {
        self.send(format!("{line}\n").as_bytes());
        self.line().expect("the daemon closed")
    }

    /// Calls a method; the result, or else the error.
    #[track_caller]
    pub(crate) fn call(&mut self, method: &str, params: Value) -> Result<Value, Value> {
        let answer =
            self.raw(&json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string());
        assert_eq!(answer["jsonrpc"], "2.0");
        match (answer.get("result"), answer.get("error")) {
            (Some(result), None) => Ok(result.clone()),
            (None, Some(error)) => Err(error.clone()),
            _ => panic!("neither result nor error, or both: {answer}"),
        }
    }

    #[track_caller]
    pub(crate) fn ok(&mut self, method: &str, params: Value) -> Value {
        self.call(method, params).unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    #[track_caller]
    pub(crate) fn refused(&mut self, method: &str, params: Value) -> (i64, String) {
        let error = self.call(method, params).unwrap_err();
        (error["code"].as_i64().unwrap(), error["message"].as_str().unwrap().to_owned())
    }
}
