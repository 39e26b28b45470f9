//! Child processes that cannot outlive the test: killed on drop, and by the kernel when the test itself is killed.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::wait::poll_for;

/// A running program with its output in a file.
pub struct Process {
    name: String,
    child: Child,
    /// Who goes on in its place.
    heir: Option<(Pid, Guard)>,
    log: PathBuf,
}

/// Kills a process when the test is killed that is no child of its own: what the kernel sees to for children.
struct Guard(Child);

impl Guard {
    fn of(pid: Pid) -> Self {
        // Its standard input ends when the test does.
        let script = "trap '' INT TERM HUP; read -r _; kill -KILL \"$0\"";
        let guard = Command::new("sh")
            .args(["-c", script, &pid.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Self(guard.unwrap_or_else(|e| panic!("cannot guard process {pid}: {e}")))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    /// Starts `argv` with both output streams appended to `log`, in the network namespace `netns` if one is named.
    /// Standard input is a pipe; see [`Process::write`].
    ///
    /// Must be called from the test's own thread: the kernel kills the child when the thread that made it ends.
    #[track_caller]
    pub fn start(name: &str, argv: &[String], log: &Path, netns: Option<&str>) -> Self {
        let mut words: Vec<&str> = vec!["--pdeathsig", "KILL", "--"];
        if let Some(netns) = netns {
            words.extend(["ip", "netns", "exec", netns]);
        }
        words.extend(argv.iter().map(String::as_str));
        let open = || {
            let file = File::options().create(true).append(true).open(log);
            file.unwrap_or_else(|e| panic!("cannot open {}: {e}", log.display()))
        };
        let child = Command::new("setpriv")
            .args(&words)
            .stdin(Stdio::piped())
            .stdout(open())
            .stderr(open())
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start {name}: {e}"));
        Self { name: name.to_owned(), child, heir: None, log: log.to_path_buf() }
    }

    /// Process id; `setpriv` and `ip netns exec` replace themselves, so it is the program's own.
    pub fn pid(&self) -> u32 {
        self.heir.as_ref().map_or(self.child.id(), |(pid, _)| pid.as_raw().cast_unsigned())
    }

    /// The program starts others that go on in its place: they are to be ours when it has ended.
    pub fn adopt_orphans() {
        if let Err(e) = nix::sys::prctl::set_child_subreaper(true) {
            panic!("cannot adopt orphans: {e}");
        }
    }

    /// Another process goes on in its place, which ends by itself, well, or has.
    #[track_caller]
    pub fn follow(&mut self, pid: u32) {
        let ended = self.wait(Duration::from_secs(20));
        assert!(
            ended.is_some_and(|status| status.success()),
            "{} ended with {ended:?}\n{}",
            self.name,
            self.tail(40)
        );
        let pid = Pid::from_raw(pid.cast_signed());
        self.heir = Some((pid, Guard::of(pid)));
    }

    fn try_wait(&mut self) -> std::io::Result<Option<ExitStatus>> {
        let Some((pid, _)) = &self.heir else { return self.child.try_wait() };
        match waitpid(*pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, code)) => Ok(Some(ExitStatus::from_raw(code << 8))),
            Ok(WaitStatus::Signaled(_, signal, _)) => Ok(Some(ExitStatus::from_raw(signal as i32))),
            Ok(_) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Whether it still runs.
    pub fn alive(&mut self) -> bool {
        matches!(self.try_wait(), Ok(None))
    }

    /// Writes `text` to its standard input.
    #[track_caller]
    pub fn write(&mut self, text: &str) {
        let written = self.child.stdin.as_mut().map(|pipe| pipe.write_all(text.as_bytes()));
        assert!(matches!(written, Some(Ok(()))), "{} does not read its input\n{}", self.name, self.tail(40));
    }

    /// SIGKILL, and gone on return.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some((pid, guard)) = self.heir.take() {
            drop(guard);
            let _ = kill(pid, Signal::SIGKILL);
            let _ = waitpid(pid, None);
        }
    }

    /// Sends `signal`, then waits up to `limit` for the end; `None` if it goes on.
    pub fn end(&mut self, signal: Signal, limit: Duration) -> Option<ExitStatus> {
        let _ = kill(Pid::from_raw(self.pid().cast_signed()), signal);
        self.wait(limit)
    }

    /// Waits up to `limit` for the end by itself.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        poll_for(limit, || self.try_wait().ok().flatten())
    }

    /// Everything it has written.
    pub fn output(&self) -> String {
        read_lossy(&self.log)
    }

    /// The last `lines` of its output, under a heading, for reports of failures.
    pub fn tail(&self, lines: usize) -> String {
        tail(&self.name, &self.log, lines)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Numbers of the threads of a process.
pub fn threads(pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks.filter_map(|task| task.file_name().to_str()?.parse().ok()).collect()
}

/// Has the processor come to these threads before others; only root can.
pub fn favour(threads: &[u32]) {
    let _ = Command::new("renice")
        .args(["-n", "-10", "-p"])
        .args(threads.iter().map(u32::to_string))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
}

/// A file's text, with an empty one for an absent file.
pub fn read_lossy(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}

/// The last `lines` of a file under a heading.
pub fn tail(name: &str, path: &Path, lines: usize) -> String {
    let text = read_lossy(path);
    let all: Vec<&str> = text.lines().collect();
    let from = all.len().saturating_sub(lines);
    format!(
        "---- {name}: last {} of {} lines ----\n{}\n",
        all.len() - from,
        all.len(),
        all[from..].join("\n")
    )
}

/// Runs a program to its end; `Err` holds its words when it fails.
pub fn run(argv: &[&str]) -> Result<String, String> {
    let output = Command::new(argv[0])
        .args(&argv[1..])
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("{}: {e}", argv[0]))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        Ok(text)
    } else {
        Err(format!("`{}`: {}{}", argv.join(" "), text, String::from_utf8_lossy(&output.stderr)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_test_leaves_is_killed() {
        let sleeper = || Command::new("sleep").arg("600").spawn().unwrap();
        let (mut followed, mut other) = (sleeper(), sleeper());
        let mut guard = Guard::of(Pid::from_raw(followed.id().cast_signed()));
        drop(Guard::of(Pid::from_raw(other.id().cast_signed())));
        // As the kernel does when the test is killed.
        drop(guard.0.stdin.take());
        let ended = poll_for(Duration::from_secs(10), || followed.try_wait().unwrap());
        let alive = other.try_wait().unwrap().is_none();
        for process in [&mut followed, &mut other] {
            let _ = process.kill();
            let _ = process.wait();
        }
        assert_eq!(ended.and_then(|status| status.signal()), Some(Signal::SIGKILL as i32));
        assert!(alive, "a guard that is dismissed kills nobody");
    }
}
