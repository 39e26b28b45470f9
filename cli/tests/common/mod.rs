//! A daemon of a test's own, and `shuntctl` as operators and scripts use it.
#![allow(dead_code)]

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

pub(crate) const SHUNTCTL: &str = env!("CARGO_BIN_EXE_shuntctl");

/// The daemon that was built beside `shuntctl`; built now when only this crate's tests were asked for.
pub(crate) fn shuntd() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let directory = Path::new(SHUNTCTL).parent().unwrap();
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["build", "--quiet", "--package", "shunt-switch", "--bin", "shuntd", "--target-dir"]);
        cargo.arg(directory.parent().unwrap());
        if directory.file_name().is_some_and(|name| name != "debug") {
            cargo.arg("--profile").arg(directory.file_name().unwrap());
        }
        assert!(cargo.status().unwrap().success(), "shuntd cannot be built");
        directory.join("shuntd")
    })
}

#[track_caller]
pub(crate) fn wait_for<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) struct Daemon {
    pub(crate) dir: TempDir,
    child: Child,
}

impl Daemon {
    #[track_caller]
    pub(crate) fn start() -> Self {
        // Not below TMPDIR, which may be closed to the users that a test becomes.
        Self::start_in(tempfile::Builder::new().prefix("shuntctl-").tempdir_in("/tmp").unwrap())
    }

    fn start_in(dir: TempDir) -> Self {
        let mut command = Command::new(shuntd());
        command
            .arg("--control")
            .arg(dir.path().join("c.sock"))
            .arg("--state-dir")
            .arg(dir.path().join("state"));
        let child = command.env_remove("SHUNT_LOG").stderr(Stdio::null()).spawn().unwrap();
        let mut daemon = Self { dir, child };
        wait_for("the control socket", || {
            assert!(daemon.child.try_wait().unwrap().is_none(), "shuntd ended at its start");
            UnixStream::connect(daemon.path("c.sock")).ok()
        });
        daemon
    }

    /// Kills it (SIGKILL) and starts another one on what it left.
    pub(crate) fn revive(mut self) -> Self {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let dir = std::mem::replace(&mut self.dir, tempfile::tempdir().unwrap());
        Self::start_in(dir)
    }

    pub(crate) fn path(&self, file: &str) -> String {
        self.dir.path().join(file).display().to_string()
    }

    pub(crate) fn run(&self, words: &[&str]) -> Output {
        shuntctl().arg("--control").arg(self.path("c.sock")).args(words).output().unwrap()
    }

    /// What a command that must succeed prints.
    #[track_caller]
    pub(crate) fn says(&self, words: &[&str]) -> String {
        let output = self.run(words);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), error.as_str()), (Some(0), ""), "{words:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The JSON document that a command prints.
    #[track_caller]
    pub(crate) fn json(&self, words: &[&str]) -> Value {
        let text = self.says(&[&["--json"], words].concat());
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
    }

    /// The line with which a command is refused.
    #[track_caller]
    pub(crate) fn refuses(&self, words: &[&str]) -> String {
        failure(self.run(words), 1)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_some()) {
            return;
        }
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

pub(crate) fn shuntctl() -> Command {
    let mut command = Command::new(SHUNTCTL);
    command.env_remove("SHUNT_CONTROL").env_remove("XDG_RUNTIME_DIR");
    command
}

/// The one line on standard error of a command that must end with `status`.
#[track_caller]
pub(crate) fn failure(output: Output, status: i32) -> String {
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(status), "{text}");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "");
    assert_eq!(text.lines().count(), 1, "{text}");
    text.strip_prefix("shuntctl: ").unwrap_or_else(|| panic!("{text}")).trim_end().to_owned()
}

/// The keys of an object, all of which scripts may count on.
#[track_caller]
pub(crate) fn has(object: &Value, keys: &[&str]) {
    for key in keys {
        assert!(object.get(key).is_some(), "{key} is missing in {object}");
    }
}
