//! How shuntd starts, refuses to start, and ends.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::process::Command;

use common::{Daemon, LONG, command, fails, wait_for};
use nix::sys::signal::Signal;
use serde_json::json;

/// The one line that a failing start leaves on standard error.
#[track_caller]
fn complaint(command: &mut Command, status: i32) -> String {
    let output = fails(command);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(status), "{text}");
    assert_eq!(output.stdout, b"");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.starts_with("shuntd: "), "{text}");
    text.trim_end().to_owned()
}

#[test]
fn it_starts_on_its_embedded_configuration_and_ends_cleanly() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let mut daemon = Daemon::start();
        assert_eq!(daemon.socket().metadata().unwrap().permissions().mode() & 0o777, 0o660);
        let mut client = daemon.connect();
        assert_eq!(client.ok("bridge.list", json!({}))[0]["name"], "shunt0");
        let port = daemon.dir.path().join("port.sock");
        client.ok("port.add", json!({"name": "p", "bridge": "shunt0", "vhost_user": port}));
        wait_for("the port's socket", || port.exists().then_some(()));
        assert!(daemon.end(signal).success(), "{signal}");
        assert_eq!(client.line(), None);
        let left: Vec<_> =
            std::fs::read_dir(daemon.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["state"], "{signal}");
    }
}

#[test]
fn a_second_daemon_is_turned_away_and_a_dead_ones_socket_is_taken_over() {
    let mut daemon = Daemon::start();
    let socket = daemon.socket();
    let mut second = command();
    second.arg("--control").arg(&socket).arg("--state-dir").arg(daemon.dir.path());
    let text = complaint(&mut second, 1);
    assert!(
        text.contains("another shuntd serves there") && text.contains(socket.to_str().unwrap()),
        "{text}"
    );
    daemon.connect().ok("status.show", json!({}));
    daemon.end(Signal::SIGKILL);
    assert!(socket.exists());
    daemon.restart();
    daemon.connect().ok("status.show", json!({}));
    assert!(daemon.end(Signal::SIGTERM).success());
}

#[test]
fn a_configuration_file_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("shunt.toml");
    let port = dir.path().join("vm.sock");
    let text = format!(
        "[daemon]\npoll = \"busy\"\n[[bridge]]\nname = \"lan\"\nageing = 60\n\
         [[port]]\nname = \"vm\"\nbridge = \"lan\"\nvhost_user = {port:?}\nqueues = 2\nmtu = 9000\n"
    );
    std::fs::write(&file, text).unwrap();
    let daemon = Daemon::start_with(|command| {
        command.arg("--config").arg(&file).args(["--poll", "adaptive"]);
    });
    let mut client = daemon.connect();
    assert_eq!(client.ok("status.show", json!({}))["poll"], "adaptive");
    assert_eq!(client.ok("bridge.show", json!({"name": "lan"}))["ageing"], 60);
    let shown = client.ok("port.show", json!({"name": "vm"}));
    assert_eq!(
        (&shown["mtu"], &shown["queues"], &shown["state"]),
        (&json!(9000), &json!(2), &json!("connecting"))
    );
    assert_eq!(client.refused("bridge.show", json!({"name": "shunt0"})).0, -32000);
}

#[test]
fn a_wrong_configuration_is_told_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("shunt.toml");
    let start = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let mut shuntd = command();
        shuntd.arg("--config").arg(&file);
        shuntd.arg("--control").arg(dir.path().join("c.sock")).arg("--state-dir").arg(dir.path());
        complaint(&mut shuntd, 1)
    };
    let at = |line: &str| format!("shuntd: {}:{line}", file.display());
    let text =
        start("[[bridge]]\nname = \"b\"\n[[port]]\nname = \"p\"\nbridge = \"b\"\ntap = \"t\"\nmtu = 45\n");
    assert_eq!(text, at("7:7: port \"p\": mtu 45 is out of range: it must be 46 to 9600"));
    let text = start("[[bridge]\n");
    assert!(text.starts_with(&at("1:")), "{text}");
    let text = start("[daemon]\nlog = \"loud\"\n");
    assert!(text.starts_with(&at("2:7: log \"loud\" is no level")), "{text}");
    // What only the machine can know is told with its line, too, and nothing is left.
    let busy = dir.path().join("busy.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&busy).unwrap();
    let ports = format!(
        "[[bridge]]\nname = \"b\"\n[[port]]\nname = \"a\"\nbridge = \"b\"\nvhost_user = {:?}\n\
         [[port]]\nname = \"p\"\nbridge = \"b\"\nvhost_user = {busy:?}\n",
        dir.path().join("free.sock")
    );
    let text = start(&ports);
    assert!(text.starts_with(&at("8:8: port \"p\": ")) && text.contains("busy.sock"), "{text}");
    assert!(!dir.path().join("free.sock").exists() && !dir.path().join("c.sock").exists());
    assert!(busy.exists());
}

#[test]
fn a_start_that_cannot_be_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let mut shuntd = command();
    assert!(complaint(shuntd.args(["--config", &path("none.toml")]), 1).contains("none.toml"));
    let mut shuntd = command();
    let text = complaint(shuntd.args(["--control", "relative.sock"]), 1);
    assert!(text.contains("\"relative.sock\" is not absolute"), "{text}");
    let mut shuntd = command();
    let long = format!("/tmp/{}", "x".repeat(120));
    assert!(complaint(shuntd.args(["--control", &long]), 1).contains("107 bytes"));
    let mut shuntd = command();
    std::fs::write(dir.path().join("file"), "").unwrap();
    let text = complaint(shuntd.args(["--state-dir", &path("file/state")]), 1);
    assert!(text.starts_with("shuntd: state-dir: ") && text.contains("file/state"), "{text}");
    let mut shuntd = command();
    let text =
        complaint(shuntd.args(["--cores", "1023", "--control", &path("c"), "--state-dir", &path("s")]), 1);
    assert!(text.contains("1023"), "{text}");
    for wrong in
        [&["--workers", "0"][..], &["--workers", "1", "--cores", "1"], &["--poll", "lazy"], &["extra"]]
    {
        let mut shuntd = command();
        complaint(shuntd.args(wrong), 2);
    }
    let mut shuntd = command();
    assert!(complaint(shuntd.env("SHUNT_LOG", "loud"), 2).contains("loud"));
}

#[test]
fn help_and_version_go_to_standard_output() {
    for (word, part) in [("--version", "shuntd 0."), ("--help", "SHUNT_CONTROL"), ("-h", "--state-dir")] {
        let output = command().arg(word).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty());
        assert!(String::from_utf8(output.stdout).unwrap().contains(part), "{word}");
    }
}

#[test]
fn systemd_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let notify = UnixDatagram::bind(dir.path().join("notify")).unwrap();
    notify.set_read_timeout(Some(LONG)).unwrap();
    let told = || {
        let mut buffer = [0; 4096];
        let length = notify.recv(&mut buffer).expect("systemd was not told");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let mut daemon = Daemon::start_with(|command| {
        command.env("NOTIFY_SOCKET", dir.path().join("notify")).env("WATCHDOG_USEC", "200000");
    });
    assert!(told().contains("READY=1"));
    assert!(told().contains("WATCHDOG=1"));
    assert!(told().contains("WATCHDOG=1"));
    assert!(daemon.end(Signal::SIGTERM).success());
    let mut last = told();
    while last.contains("WATCHDOG=1") {
        last = told();
    }
    assert!(last.contains("STOPPING=1"), "{last}");
}
