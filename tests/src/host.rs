//! What can run commands and speak IP: a guest, or a network namespace of this machine.

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::process::Child;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::wait::poll_for;

/// Time limit of [`Host::sh`] and [`Host::run`].
pub const COMMAND_LIMIT: Duration = Duration::from_secs(30);

/// Result of a shell command.
#[derive(Debug, Clone)]
pub struct Output {
    /// Exit status; 137 when it was killed at its time limit.
    pub status: i32,
    /// Standard output and standard error together.
    pub text: String,
}

impl Output {
    /// Whether the exit status was 0.
    pub fn ok(&self) -> bool {
        self.status == 0
    }
}

/// A command that runs in the background on a [`Host`].
pub struct Job {
    what: String,
    limit: Duration,
    inner: Inner,
}

enum Inner {
    Guest(Receiver<Output>),
    Child(Child, File),
}

impl Job {
    pub(crate) fn in_guest(what: String, limit: Duration, answer: Receiver<Output>) -> Self {
        Self { what, limit, inner: Inner::Guest(answer) }
    }

    /// Of a process that leads a group.
    pub(crate) fn child(what: String, limit: Duration, child: Child, output: File) -> Self {
        Self { what, limit, inner: Inner::Child(child, output) }
    }

    /// Waits for the end. `Err` when the host went away or gave no answer in time.
    pub fn finish(mut self) -> Result<Output, String> {
        let grace = self.limit + Duration::from_secs(20);
        match &mut self.inner {
            Inner::Guest(answer) => answer
                .recv_timeout(grace)
                .map_err(|e| format!("{}: no answer from the guest: {e}", self.what)),
            Inner::Child(child, output) => {
                let status = poll_for(grace, || child.try_wait().ok().flatten());
                let status = status.ok_or_else(|| format!("{}: does not end", self.what))?;
                let mut bytes = Vec::new();
                output.rewind().and_then(|()| output.read_to_end(&mut bytes)).map_err(|e| e.to_string())?;
                let text = String::from_utf8_lossy(&bytes).into_owned();
                Ok(Output { status: status.code().unwrap_or(137), text })
            }
        }
    }

    /// As [`Job::finish`], but panics when there is no answer.
    #[track_caller]
    pub fn wait(self) -> Output {
        self.finish().unwrap_or_else(|e| panic!("{e}"))
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if let Inner::Child(child, _) = &mut self.inner {
            // With what it has started: it leads a group.
            if matches!(child.try_wait(), Ok(None)) {
                let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
            }
            let _ = child.wait();
        }
    }
}

/// A machine with a shell and an IP stack.
pub trait Host {
    /// Its name in messages.
    fn name(&self) -> &str;

    /// Starts a shell script that is killed after `limit`.
    #[track_caller]
    fn start(&self, script: &str, limit: Duration) -> Job;

    /// Runs a shell script to its end.
    #[track_caller]
    fn run(&self, script: &str) -> Output {
        self.start(script, COMMAND_LIMIT).wait()
    }

    /// Runs a shell script that must succeed and returns its output without white space at the ends.
    #[track_caller]
    fn sh(&self, script: &str) -> String {
        let output = self.run(script);
        assert!(output.ok(), "{}: `{script}` ended with {}: {}", self.name(), output.status, output.text);
        output.text.trim().to_owned()
    }
}
