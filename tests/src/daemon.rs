//! The daemon under test, driven by `shuntctl` as an operator would.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Mutex, Once, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::netns::NetNs;
use crate::process::Process;
use crate::progress;
use crate::tools;
use crate::wait::{poll_for, wait_for};

const START_LIMIT: Duration = Duration::from_secs(20);

/// A command that `shuntctl` did not carry out.
#[derive(Debug)]
pub struct Refusal {
    /// Exit status: 1 refused by the daemon, 2 wrong usage, 3 daemon not reachable.
    pub status: i32,
    /// What it wrote on standard error.
    pub message: String,
}

/// A `shuntd` with a directory of its own for its control socket, its state and the ports' sockets.
pub struct Shuntd {
    dir: TempDir,
    process: Option<Process>,
    arguments: Vec<String>,
    netns: Option<String>,
}

impl Shuntd {
    /// A daemon on its embedded default, with the bridge `shunt0`, started.
    #[track_caller]
    pub fn start() -> Self {
        let mut daemon = Self::new();
        daemon.launch();
        daemon
    }

    /// The same inside a namespace, where its TAP and netdev ports then live.
    #[track_caller]
    pub fn start_within(netns: &NetNs) -> Self {
        let mut daemon = Self::new().within(netns);
        daemon.launch();
        daemon
    }

    /// A daemon not started yet.
    #[track_caller]
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("shunt-test-").tempdir();
        let dir = dir.unwrap_or_else(|e| panic!("no temporary directory: {e}"));
        Self { dir, process: None, arguments: Vec::new(), netns: None }
    }

    /// Has it run inside a namespace from the next start on, where its TAP and netdev ports then live.
    pub fn within(mut self, netns: &NetNs) -> Self {
        self.netns = Some(netns.id().to_owned());
        self
    }

    /// Adds command line arguments for the next start.
    pub fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|&word| word.to_owned()));
        self
    }

    /// Gives it a configuration file for the next start.
    #[track_caller]
    pub fn config(self, toml: &str) -> Self {
        let path = self.path("shunt.toml");
        std::fs::write(&path, toml).unwrap_or_else(|e| panic!("cannot write {}: {e}", path.display()));
        self.arguments(&["--config", &path.display().to_string()])
    }

    /// A path in the daemon's directory, for the sockets of ports.
    pub fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    fn control(&self) -> PathBuf {
        self.path("control.sock")
    }

    /// Starts it, and waits until it answers.
    #[track_caller]
    pub fn launch(&mut self) {
        let mut argv = vec![tools::shuntd().display().to_string()];
        argv.extend(["--control".to_owned(), self.control().display().to_string()]);
        argv.extend(["--state-dir".to_owned(), self.path("state").display().to_string()]);
        argv.extend(self.arguments.iter().cloned());
        self.process = Some(Process::start("shuntd", &argv, &self.path("shuntd.log"), self.netns.as_deref()));
        report_on_panic(&self.control());
        wait_for("shuntd to answer on its control socket", START_LIMIT, || {
            if !self.process.as_mut().is_some_and(Process::alive) {
                panic!("shuntd ended at its start:\n{}", self.log());
            }
            self.try_ctl(&["status"]).ok()
        });
        progress!("shuntd is up");
    }

    /// Ends it with SIGKILL: no clean-up of its own.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Ends it with `signal` and returns its exit status.
    #[track_caller]
    pub fn end(&mut self, signal: Signal) -> ExitStatus {
        let mut process = self.process.take().unwrap_or_else(|| panic!("shuntd does not run"));
        let status = process.end(signal, Duration::from_secs(10));
        status.unwrap_or_else(|| panic!("shuntd does not end on {signal}\n{}", self.log()))
    }

    /// Has another process go on in its place; what `shuntctl upgrade` says.
    #[track_caller]
    pub fn upgrade(&mut self) -> Value {
        Process::adopt_orphans();
        let done = self.ctl("upgrade");
        let pid = done["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        let pid = pid.unwrap_or_else(|| panic!("no process goes on: {done}"));
        if let Some(process) = &mut self.process {
            process.follow(pid);
        }
        done
    }

    /// Whether it runs.
    pub fn alive(&mut self) -> bool {
        self.process.as_mut().is_some_and(Process::alive)
    }

    /// Process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// Runs `shuntctl WORDS` and returns what it printed.
    pub fn ctl_text(&self, words: &[&str]) -> Result<String, Refusal> {
        let output = Command::new(tools::shuntctl())
            .arg("--control")
            .arg(self.control())
            .args(words)
            .stdin(Stdio::null())
            .output()
            .map_err(|e| Refusal { status: -1, message: e.to_string() })?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(Refusal { status: output.status.code().unwrap_or(-1), message })
    }

    /// Runs `shuntctl --json WORDS`; `Null` stands for an empty answer.
    pub fn try_ctl(&self, words: &[&str]) -> Result<Value, Refusal> {
        let text = self.ctl_text(&[&["--json"], words].concat())?;
        if text.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text)
            .map_err(|e| Refusal { status: 0, message: format!("not JSON ({e}): {text}") })
    }

    /// As [`Shuntd::try_ctl`], for a command line in one string that must succeed.
    #[track_caller]
    pub fn ctl(&self, command: &str) -> Value {
        let words: Vec<&str> = command.split_whitespace().collect();
        self.try_ctl(&words)
            .unwrap_or_else(|e| panic!("shuntctl {command}: exit status {}: {}", e.status, e.message))
    }

    /// Adds a vhost-user port to `shunt0` and returns its socket; `options` as `port add` takes them.
    #[track_caller]
    pub fn vhost_port(&self, name: &str, options: &str) -> PathBuf {
        let path = self.path(&format!("{name}.sock"));
        self.ctl(&format!("port add {name} --bridge shunt0 --vhost-user {} {options}", path.display()));
        path
    }

    /// `port show`.
    #[track_caller]
    pub fn port(&self, name: &str) -> Value {
        self.ctl(&format!("port show {name}"))
    }

    /// Waits until a port is in `state`.
    #[track_caller]
    pub fn wait_state(&self, name: &str, state: &str, limit: Duration) {
        let mut last = Value::Null;
        let reached = poll_for(limit, || {
            last = self.port(name);
            (last["state"] == state).then_some(())
        });
        assert!(reached.is_some(), "port {name} is not {state} after {} s: {last}", limit.as_secs());
    }

    /// A counter of a port, `direction` being `rx` or `tx` and `counter` `packets` or `bytes`.
    #[track_caller]
    pub fn counter(&self, port: &str, direction: &str, counter: &str) -> u64 {
        let shown = self.port(port);
        shown[direction][counter].as_u64().unwrap_or_else(|| panic!("no {direction}.{counter} in {shown}"))
    }

    /// Drops of a port in one direction for one reason, as the port's counters name it.
    #[track_caller]
    pub fn drops(&self, port: &str, direction: &str, reason: &str) -> u64 {
        self.port(port)[direction]["drops"][reason].as_u64().unwrap_or(0)
    }

    /// Everything it has logged.
    pub fn output(&self) -> String {
        crate::process::read_lossy(&self.path("shuntd.log"))
    }

    /// The end of its log.
    pub fn log(&self) -> String {
        crate::process::tail("shuntd", &self.path("shuntd.log"), 60)
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

impl Default for Shuntd {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Shuntd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}

/// Shows what the daemon on this control socket knows as soon as anything panics: later its guests are gone.
fn report_on_panic(control: &Path) {
    static HOOK: Once = Once::new();
    static CONTROL: Mutex<Option<PathBuf>> = Mutex::new(None);
    *CONTROL.lock().unwrap_or_else(PoisonError::into_inner) = Some(control.to_path_buf());
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            usual(info);
            let control = CONTROL.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let Some(control) = control.filter(|path| path.exists()) else { return };
            for words in
                [["port", "list"].as_slice(), &["fdb", "list"], &["worker", "list"], &["stats", "--drops"]]
            {
                let output =
                    Command::new(tools::shuntctl()).arg("--control").arg(&control).args(words).output();
                let text =
                    output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
                eprintln!("---- shuntctl {} ----\n{text}", words.join(" "));
            }
        }));
    });
}
