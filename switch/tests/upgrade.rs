//! A planned restart: a new process in the place of the old one, and the old one if that cannot be.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Client, Daemon, LONG, command, fails, wait_for};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::{Value, json};
use shunt_switch::handover::message::{FORMAT, Hello, Kind};
use shunt_switch::handover::wire::Wire;
use tempfile::TempDir;

/// A daemon on a file with two bridges, a gateway and two ports; whoever goes on in its place is ours to end, too.
struct Lineage {
    daemon: Daemon,
    _config: TempDir,
    heirs: Vec<i32>,
}

impl Lineage {
    fn start() -> Self {
        // Orphans become our children.
        prctl::set_child_subreaper(true).unwrap();
        let config = tempfile::tempdir().unwrap();
        let file = config.path().join("shunt.toml");
        let socket = |name: &str| config.path().join(name);
        let text = format!(
            "[[bridge]]\nname = \"lan\"\n[[bridge]]\nname = \"wan\"\n\
             [[interface]]\nname = \"gw\"\nbridge = \"lan\"\naddress = [\"10.0.3.1/24\"]\n\
             [[dhcp]]\ninterface = \"gw\"\nrange = \"10.0.3.2-10.0.3.254\"\n\
             [[port]]\nname = \"a\"\nbridge = \"lan\"\nvhost_user = {:?}\n\
             [[port]]\nname = \"b\"\nbridge = \"wan\"\nvhost_user = {:?}\nrole = \"client\"\nqueues = 2\n",
            socket("a.sock"),
            socket("b.sock")
        );
        std::fs::write(&file, text).unwrap();
        let daemon = Daemon::start_with(|command| {
            command.arg("--config").arg(&file);
        });
        Self { daemon, _config: config, heirs: Vec::new() }
    }

    fn pid(client: &mut Client) -> i64 {
        client.ok("status.show", json!({}))["pid"].as_i64().unwrap()
    }

    /// Has the daemon hand over, and waits until it has ended.
    #[track_caller]
    fn upgrade(&mut self) -> Value {
        let mut client = self.daemon.connect();
        let before = Self::pid(&mut client);
        let done = client.ok("daemon.upgrade", json!({}));
        let pid = done["pid"].as_i64().unwrap();
        assert_ne!(pid, before);
        assert_eq!(client.line(), None, "the old process ends");
        self.heirs.push(pid as i32);
        assert_eq!(Self::pid(&mut self.daemon.connect()), pid);
        done
    }

    fn refused(&self, binary: &Path) -> String {
        let mut client = self.daemon.connect();
        let before = Self::pid(&mut client);
        let (code, message) = client.refused("daemon.upgrade", json!({"binary": binary}));
        assert_eq!(code, -32000, "{message}");
        assert_eq!(Self::pid(&mut client), before, "the old one goes on, on the same connection");
        message
    }
}

impl Drop for Lineage {
    fn drop(&mut self) {
        for &pid in &self.heirs {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

fn script(dir: &TempDir, text: &str) -> PathBuf {
    let path = dir.path().join("program");
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn one_process_after_the_other() {
    let mut lineage = Lineage::start();
    let described = |client: &mut Client| {
        let interface = client.ok("interface.show", json!({"name": "gw"}));
        let mut ports = client.ok("port.list", json!({}));
        for port in ports.as_array_mut().unwrap() {
            // How the last attempt to connect went is another matter.
            port["reason"] = Value::Null;
            // The switch announces its addresses.
            port["tx"] = Value::Null;
        }
        (ports, interface["mac"].clone(), client.ok("bridge.list", json!({})))
    };
    let before = described(&mut lineage.daemon.connect());
    for _ in 0..3 {
        let done = lineage.upgrade();
        let pause = Duration::from_micros(done["pause_microseconds"].as_u64().unwrap());
        assert!(pause > Duration::ZERO && pause < Duration::from_secs(2), "{pause:?}");
        assert_eq!(described(&mut lineage.daemon.connect()), before);
    }
    // The first one ended well, and so does the last, which gives everything back.
    let status = wait_for("the first process to end", || lineage.daemon.ended());
    assert!(status.success(), "{status}");
    let last = Pid::from_raw(lineage.heirs.pop().unwrap());
    kill(last, Signal::SIGTERM).unwrap();
    let status =
        wait_for("the last process to end", || match waitpid(last, Some(WaitPidFlag::WNOHANG)).unwrap() {
            WaitStatus::StillAlive => None,
            status => Some(status),
        });
    assert_eq!(status, WaitStatus::Exited(last, 0));
    assert!(!lineage.daemon.socket().exists());
    let left: Vec<_> =
        std::fs::read_dir(lineage.daemon.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["state"]);
}

#[test]
fn requests_wait_and_are_answered_by_the_new_process_or_the_old() {
    let mut lineage = Lineage::start();
    let mut asking = lineage.daemon.connect();
    let mut waiting = lineage.daemon.connect();
    asking.send(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"daemon.upgrade\",\"params\":{}}\n");
    waiting.send(b"{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"status.show\",\"params\":{}}\n");
    let done = asking.line().expect("an answer");
    lineage.heirs.push(done["result"]["pid"].as_i64().unwrap() as i32);
    // Answered before it began, or closed by the end of the old one: never half.
    let answer = waiting.line();
    assert!(answer.is_none_or(|answer| answer["result"]["pid"].is_i64()));
    let pid = wait_for("the new process", || Some(Lineage::pid(&mut lineage.daemon.connect())));
    assert_eq!(i64::from(lineage.heirs[0]), pid);
}

#[test]
fn whatever_goes_wrong_the_old_process_goes_on() {
    let lineage = Lineage::start();
    let dir = tempfile::tempdir().unwrap();
    let text = lineage.refused(&dir.path().join("none"));
    assert!(text.contains("cannot start") && text.contains("none"), "{text}");
    let text = lineage.refused(&script(&dir, "exit 3"));
    assert!(text.contains("the other process has ended"), "{text}");
    let text = lineage.refused(&script(&dir, "echo this is no message of ours >&0; exec sleep 60"));
    assert!(text.contains("no message of a hand-over"), "{text}");
    // Another version, as far as it can be told apart.
    let other = FORMAT + 1;
    let hello = format!(r#"{{"format":{other},"version":"9.9.9","pid":1}}"#);
    let header = format!(r"SHUH\001\000\000\000\{:03o}\000\000\000\000\000\000\000", hello.len());
    let text = lineage.refused(&script(&dir, &format!("printf '{header}%s' '{hello}' >&0; exec sleep 60")));
    assert!(
        text.contains(&format!("9.9.9 hands over in format {other}")) && text.contains("restart"),
        "{text}"
    );
    // It says why itself.
    let shuntd = env!("CARGO_BIN_EXE_shuntd");
    let other = dir.path().join("other.sock");
    let wrong = format!(
        "exec {shuntd} --take-over --control {} --state-dir {}",
        other.display(),
        dir.path().display()
    );
    let text = lineage.refused(&script(&dir, &wrong));
    assert!(text.contains("other.sock is asked for"), "{text}");
    let mut client = lineage.daemon.connect();
    let (code, text) = client.refused("daemon.upgrade", json!({"binary": "shuntd"}));
    assert!(code == -32602 && text.contains("absolute"), "{text}");
    // Nothing is left of all that, and everything works.
    client.ok("port.add", json!({"name": "c", "bridge": "lan", "vhost_user": dir.path().join("c.sock")}));
    assert_eq!(client.ok("port.list", json!({})).as_array().unwrap().len(), 3);
    let children =
        std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", lineage.daemon.pid())).unwrap();
    assert_eq!(children.trim(), "", "no process is left behind");
}

/// Tells a process of this test that it is a new daemon that fails, and how.
const FAILS: &str = "SHUNT_TEST_UPGRADE_FAILS";

/// Not a test: the new process of those below. It agrees to everything up to a point, and then ends or says no more.
#[test]
#[ignore = "the process that tests of failing upgrades start: cargo test -p shunt-switch --test upgrade"]
fn a_new_process_that_fails() {
    let Ok(how) = std::env::var(FAILS) else { return };
    let (end, steps) = how.split_once(' ').unwrap();
    let mut left: u32 = steps.parse().unwrap();
    let socket = std::os::fd::AsFd::as_fd(&std::io::stdin()).try_clone_to_owned().unwrap();
    let wire = Wire::new(socket.into());
    let deadline = std::time::Instant::now() + LONG;
    loop {
        let Ok(message) = wire.receive(deadline) else { return };
        let answer = match Kind::of(message.kind).unwrap() {
            Kind::Hello => (Kind::Hello, serde_json::to_vec(&Hello::own()).unwrap()),
            Kind::Configure | Kind::Sync | Kind::Final => (Kind::Done, b"null".to_vec()),
            Kind::Go => (Kind::Runs, br#"{"since":0}"#.to_vec()),
            _ => continue,
        };
        if left == 0 {
            match end {
                "dies" => kill(Pid::this(), Signal::SIGKILL).unwrap(),
                "kills" => kill(Pid::parent(), Signal::SIGKILL).unwrap(),
                // Until it is ended, or finds that nobody is there any more.
                _ => while wire.receive(deadline).is_ok() {},
            }
            return;
        }
        left -= 1;
        wire.send(answer.0 as u16, &answer.1, &[], deadline).unwrap();
    }
}

/// A program that fails in this way after so many steps: greeting, configuration, two copies, the end, going on.
fn failing(dir: &TempDir, how: &str, steps: u32) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let run = "--ignored --exact a_new_process_that_fails --nocapture >/dev/null";
    script(dir, &format!("{FAILS}='{how} {steps}' exec {} {run}", own.display()))
}

#[test]
fn wherever_the_new_process_fails_the_old_one_goes_on() {
    let lineage = Lineage::start();
    let dir = tempfile::tempdir().unwrap();
    let described = |client: &mut Client| client.ok("interface.list", json!({})).to_string();
    let before = described(&mut lineage.daemon.connect());
    for steps in 0..5 {
        let text = lineage.refused(&failing(&dir, "dies", steps));
        assert!(text.contains("the other process has ended"), "step {steps}: {text}");
        let mut client = lineage.daemon.connect();
        assert_eq!(described(&mut client), before);
        client.ok("port.add", json!({"name": "c", "bridge": "lan", "vhost_user": dir.path().join("c.sock")}));
        client.ok("port.del", json!({"name": "c"}));
    }
    // While everything stands still it is not waited for long.
    let began = std::time::Instant::now();
    let text = lineage.refused(&failing(&dir, "sleeps", 4));
    assert!(text.contains("did not answer in time"), "{text}");
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    let mut lineage = lineage;
    lineage.upgrade();
}

#[test]
fn an_end_of_both_is_like_a_crash_and_the_next_one_has_everything() {
    let dir = tempfile::tempdir().unwrap();
    // The old process is killed in the middle; or it has handed everything over, and the new one is.
    for (how, steps) in [("kills", 1), ("kills", 3), ("kills", 4), ("dies", 5)] {
        let mut lineage = Lineage::start();
        let socket = dir.path().join("c.sock");
        let mut client = lineage.daemon.connect();
        client.ok("port.add", json!({"name": "c", "bridge": "lan", "vhost_user": socket}));
        let before = client.ok("interface.list", json!({}));
        let request = json!({
            "jsonrpc": "2.0", "id": 1, "method": "daemon.upgrade", "params": {"binary": failing(&dir, how, steps)}
        });
        client.send(format!("{request}\n").as_bytes());
        assert_eq!(client.line(), None, "{how} {steps}: nobody answers any more");
        let status = wait_for("the old process to end", || lineage.daemon.ended());
        assert!(!status.success(), "{how} {steps}: {status}");
        lineage.daemon.restart();
        let mut client = lineage.daemon.connect();
        assert_eq!(client.ok("port.list", json!({})).as_array().unwrap().len(), 3);
        assert_eq!(client.ok("interface.list", json!({}))[0]["name"], before[0]["name"]);
        client.ok("port.del", json!({"name": "c"}));
        lineage.upgrade();
    }
}

#[test]
fn changes_after_an_upgrade_are_kept_as_those_before() {
    let mut lineage = Lineage::start();
    let dir = tempfile::tempdir().unwrap();
    let add = |lineage: &Lineage, name: &str| {
        let socket = dir.path().join(format!("{name}.sock"));
        let port = json!({"name": name, "bridge": "lan", "vhost_user": socket});
        lineage.daemon.connect().ok("port.add", port);
    };
    add(&lineage, "before");
    lineage.upgrade();
    add(&lineage, "between");
    lineage.upgrade();
    add(&lineage, "after");
    assert_eq!(lineage.daemon.connect().ok("status.show", json!({}))["problems"], json!([]));
    // The directory is never free meanwhile: somebody else is told so.
    let mut other = command();
    other.arg("--control").arg(dir.path().join("other.sock"));
    let output = fails(other.arg("--state-dir").arg(lineage.daemon.dir.path().join("state")));
    assert!(String::from_utf8_lossy(&output.stderr).contains("another shuntd uses it"));
    let last = Pid::from_raw(lineage.heirs.pop().unwrap());
    kill(last, Signal::SIGKILL).unwrap();
    waitpid(last, None).unwrap();
    lineage.daemon.restart();
    let ports = lineage.daemon.connect().ok("port.list", json!({}));
    let names: Vec<_> = ports.as_array().unwrap().iter().map(|port| port["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["a", "after", "b", "before", "between"]);
}

#[test]
fn nobody_else_can_hand_over() {
    let mut shuntd = command();
    let output = fails(shuntd.arg("--take-over").stdin(std::process::Stdio::null()));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && text.contains("'shuntctl upgrade' starts it"), "{text}");
    // A socket of ours, but nothing on it.
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut shuntd = command();
    shuntd.arg("--take-over").stdin(std::os::fd::OwnedFd::from(theirs));
    drop(ours);
    let text = String::from_utf8_lossy(&fails(&mut shuntd).stderr).into_owned();
    assert!(text.contains("has ended"), "{text}");
}

#[test]
fn systemd_is_told_of_its_new_main_process() {
    prctl::set_child_subreaper(true).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let notify = UnixDatagram::bind(dir.path().join("notify")).unwrap();
    notify.set_read_timeout(Some(LONG)).unwrap();
    let told = |word: &str| loop {
        let mut buffer = [0; 4096];
        let length = notify.recv(&mut buffer).unwrap_or_else(|e| panic!("systemd was not told {word}: {e}"));
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        if text.contains(word) {
            return text;
        }
    };
    let daemon = Daemon::start_with(|command| {
        command.env("NOTIFY_SOCKET", dir.path().join("notify")).env("WATCHDOG_USEC", "200000");
    });
    told("READY=1");
    let mut lineage = Lineage { daemon, _config: tempfile::tempdir().unwrap(), heirs: Vec::new() };
    let done = lineage.upgrade();
    // In this order: what a process says that is not the main one is not heard.
    assert!(told("MAINPID=").contains(&format!("MAINPID={}", done["pid"])));
    assert!(told("READY=1").contains("STATUS="));
    told("WATCHDOG=1");
}
