//! `shuntctl` as operators and scripts use it, against a real daemon: exit status, streams, JSON and messages.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Daemon, SHUNTCTL, failure, has, shuntctl, wait_for};
use nix::unistd::geteuid;
use serde_json::json;

#[test]
fn status_has_its_fields() {
    let daemon = Daemon::start();
    let status = daemon.json(&["status"]);
    has(&status, &["version", "uptime_seconds", "workers", "ports", "bridges", "poll"]);
    assert_eq!(
        (&status["bridges"], &status["ports"], &status["poll"]),
        (&json!(1), &json!(0), &json!("adaptive"))
    );
    assert!(daemon.says(&["status"]).contains("workers     1 (adaptive)\n"));
}

#[test]
fn bridges_come_and_go() {
    let daemon = Daemon::start();
    assert_eq!(daemon.says(&["bridge", "add", "br0", "--ageing", "0", "--fdb-limit", "1000"]), "");
    let bridge = daemon.json(&["bridge", "show", "br0"]);
    assert_eq!(
        (&bridge["name"], &bridge["ageing"], &bridge["fdb_limit"]),
        (&json!("br0"), &json!(0), &json!(1000))
    );
    let names: Vec<_> =
        daemon.json(&["bridge", "list"]).as_array().unwrap().iter().map(|b| b["name"].clone()).collect();
    assert_eq!(names, ["br0", "shunt0"]);
    assert!(daemon.says(&["bridge", "list"]).starts_with("NAME"));
    assert!(
        daemon.refuses(&["bridge", "add", "br0"]).starts_with("bridge add: bridge \"br0\" exists already")
    );
    assert_eq!(daemon.says(&["bridge", "del", "br0"]), "");
    assert!(daemon.refuses(&["bridge", "del", "br0"]).contains("bridge \"br0\" does not exist"));
    assert!(daemon.refuses(&["bridge", "show", "br0"]).contains("bridge \"br0\" does not exist"));
    assert_eq!(daemon.json(&["bridge", "add", "br1"])["name"], "br1");
    assert_eq!(daemon.json(&["bridge", "del", "br1"]), json!({}));
}

#[test]
fn ports_come_and_go() {
    let daemon = Daemon::start();
    let socket = daemon.path("vm.sock");
    let add = ["port", "add", "vm", "--bridge", "shunt0", "--vhost-user", &socket];
    assert_eq!(
        daemon.says(&[&add[..], &["--queues", "2", "--mtu", "9000", "--mac", "52:54:00:00:00:01"]].concat()),
        ""
    );
    let port = daemon.json(&["port", "show", "vm"]);
    has(
        &port,
        &["name", "kind", "bridge", "state", "reason", "mac", "mtu", "queues", "features", "rx", "tx"],
    );
    has(&port["rx"], &["packets", "bytes", "drops"]);
    assert_eq!(
        (&port["kind"], &port["bridge"], &port["state"]),
        (&json!("vhost-user"), &json!("shunt0"), &json!("connecting"))
    );
    assert_eq!(
        (&port["mtu"], &port["queues"], &port["mac"]),
        (&json!(9000), &json!(2), &json!("52:54:00:00:00:01"))
    );
    assert_eq!((&port["vhost_user"], &port["role"]), (&json!(socket), &json!("server")));
    assert_eq!(daemon.json(&["port", "list"]), json!([port]));
    assert!(daemon.says(&["port", "list"]).contains("vm    shunt0  vhost-user  connecting"));
    assert!(daemon.says(&["port", "show", "vm"]).contains("mtu       9000"));

    assert!(daemon.refuses(&add).starts_with("port add: port \"vm\" exists already"));
    assert!(daemon.refuses(&["bridge", "del", "shunt0"]).contains("vm"));
    assert_eq!(daemon.json(&["port", "set", "vm", "--mtu", "1400"])["mtu"], 1400);
    let worker = daemon.json(&["worker", "list"])[0].clone();
    has(
        &worker,
        &["id", "core", "poll", "queues", "packets", "batches", "busy_cycles_per_packet", "idle_share"],
    );
    let queue = |queue| json!({"port": "vm", "queue": queue, "load": 0.0, "pinned": false});
    assert_eq!(worker["queues"], json!([queue(0), queue(1)]));
    let core = worker["core"].as_u64().unwrap();
    let pinned = daemon.json(&["port", "set", "vm", "--worker", &format!("1={core}")]);
    assert_eq!(pinned["pins"], json!([{"queue": 1, "core": core}]));
    assert_eq!(daemon.json(&["worker", "list"])[0]["queues"][1]["pinned"], json!(true));
    assert!(daemon.says(&["worker", "list"]).contains("vm:0 vm:1,pinned\n"));
    assert_eq!(daemon.json(&["port", "set", "vm", "--worker", "1=any"])["pins"], json!([]));
    assert!(daemon.says(&["worker", "rebalance"]).starts_with("nothing to move"));
    assert_eq!(daemon.json(&["worker", "rebalance", "--dry-run"])["done"], json!(false));
    assert_eq!(daemon.says(&["worker", "set", "--auto", "on", "--interval", "7"]), "");
    let settings = daemon.says(&["worker", "settings"]);
    assert!(
        settings.contains("on\n") && settings.contains("7 s\n") && settings.contains("95%\n"),
        "{settings}"
    );
    assert!(daemon.refuses(&["worker", "set", "--load-threshold", "101"]).contains("load_threshold 101"));
    assert!(daemon.refuses(&["port", "set", "vm", "--worker", "1=1000"]).contains("core 1000"));
    assert!(daemon.refuses(&["port", "set", "vm", "--worker", "2=0"]).contains("queue 2"));

    assert_eq!(daemon.says(&["port", "del", "vm"]), "");
    assert!(!Path::new(&socket).exists());
    assert!(daemon.refuses(&["port", "show", "vm"]).contains("port \"vm\" does not exist"));
}

#[test]
fn addresses_come_and_go() {
    let daemon = Daemon::start();
    for name in ["a", "b"] {
        daemon.says(&["port", "add", name, "--bridge", "shunt0", "--vhost-user", &daemon.path(name)]);
    }
    assert_eq!(daemon.json(&["fdb", "list"]), json!([]));
    daemon.says(&["fdb", "add", "shunt0", "52:54:00:00:00:01", "a"]);
    daemon.says(&["fdb", "add", "shunt0", "52-54-00-00-00-02", "b", "--vlan", "100"]);
    let entry = json!({"bridge": "shunt0", "mac": "52:54:00:00:00:01", "vlan": 0, "port": "a", "static": true, "age_seconds": 0});
    let list = daemon.json(&["fdb", "list", "shunt0"]);
    assert_eq!(
        (&list[0], &list[1]["vlan"], &list[1]["mac"]),
        (&entry, &json!(100), &json!("52:54:00:00:00:02"))
    );
    let text = daemon.says(&["fdb", "list"]);
    assert!(text.contains("shunt0           52:54:00:00:00:02   100  b                static\n"), "{text}");
    assert_eq!(daemon.says(&["fdb", "flush"]), "0 entries removed\n", "static entries stay");
    assert_eq!(daemon.json(&["fdb", "flush", "shunt0", "--port", "a"]), json!({"removed": 0}));
    daemon.says(&["fdb", "del", "shunt0", "52:54:00:00:00:01"]);
    assert!(daemon.refuses(&["fdb", "del", "shunt0", "52:54:00:00:00:01"]).contains("52:54:00:00:00:01"));
    assert!(daemon.refuses(&["fdb", "del", "shunt0", "52:54:00:00:00:02"]).contains("52:54:00:00:00:02"));
    daemon.says(&["fdb", "del", "shunt0", "52:54:00:00:00:02", "--vlan", "100"]);
    for words in [
        &["fdb", "add", "none", "52:54:00:00:00:01", "a"][..],
        &["fdb", "list", "none"],
        &["fdb", "flush", "none"],
    ] {
        assert!(daemon.refuses(words).contains("bridge \"none\" does not exist"), "{words:?}");
    }
    assert!(daemon.refuses(&["fdb", "flush", "--port", "none"]).contains("port \"none\" does not exist"));
}

#[test]
fn statistics_have_their_fields() {
    let daemon = Daemon::start();
    daemon.says(&["port", "add", "vm", "--bridge", "shunt0", "--vhost-user", &daemon.path("vm")]);
    for words in [&["stats"][..], &["stats", "vm"], &["stats", "--drops"], &["stats", "vm", "--drops"]] {
        let stats = daemon.json(words);
        assert_eq!(stats[0]["port"], "vm");
        for direction in ["rx", "tx"] {
            has(&stats[0][direction], &["packets", "bytes", "errors", "drops"]);
        }
    }
    assert!(daemon.says(&["stats"]).starts_with("PORT  DIRECTION  PACKETS  BYTES  ERRORS  DROPS\nvm    rx"));
    assert!(daemon.says(&["stats", "--drops"]).starts_with("PORT  DIRECTION  REASON  DROPS\n"));
    assert!(daemon.refuses(&["stats", "none"]).starts_with("stats: port \"none\" does not exist"));
    assert_eq!(daemon.json(&["worker", "list", "--reset"]).as_array().unwrap().len(), 1);
}

#[test]
fn wrong_values_name_field_value_and_rule_and_leave_nothing() {
    let daemon = Daemon::start();
    let socket = daemon.path("vm.sock");
    let long = format!("/{}", "x".repeat(107));
    let add = |words: &[&'static str]| {
        [&["port", "add", "vm", "--bridge", "shunt0", "--vhost-user"], &[socket.as_str()][..], words].concat()
    };
    for (words, expected) in [
        (add(&["--mtu", "45"]), "port add: mtu 45 is out of range: it must be 46 to 9600"),
        (add(&["--mtu", "9601"]), "port add: mtu 9601 is out of range: it must be 46 to 9600"),
        (add(&["--mtu", "-1"]), "port add: mtu -1 is out of range: it must be 46 to 9600"),
        (add(&["--queues", "0"]), "port add: queues 0 is out of range: it must be 1 to 128"),
        (add(&["--queues", "129"]), "port add: queues 129 is out of range: it must be 1 to 128"),
        (add(&["--mac", "52:54"]), "port add: mac \"52:54\" is no MAC address: it must be"),
        (
            add(&["--mac", "01:00:00:00:00:00"]),
            "port add: mac 01:00:00:00:00:00 is not the address of a host",
        ),
        (add(&["--role", "boss"]), "port add: role \"boss\" is unknown: it must be"),
        (add(&["--worker", "1=0"]), "port add: pins: queue 1 does not exist"),
        (
            vec!["port", "add", "9vm", "--bridge", "shunt0", "--vhost-user", &socket],
            "port add: name \"9vm\" is no valid name: it must be 1 to 15",
        ),
        (
            vec!["port", "add", "vm", "--bridge", "br9", "--vhost-user", &socket],
            "port add: bridge \"br9\" does not exist: ",
        ),
        (
            vec!["port", "add", "vm", "--bridge", "shunt0", "--vhost-user", "vm.sock"],
            "port add: vhost_user \"vm.sock\" is not absolute",
        ),
        (vec!["port", "add", "vm", "--bridge", "shunt0", "--vhost-user", &long], "port add: vhost_user "),
        (
            vec!["port", "add", "vm", "--bridge", "shunt0", "--vhost-user", "/nonexistent/vm.sock"],
            "port add: ",
        ),
        (
            vec!["port", "add", "vm", "--bridge", "shunt0", "--tap", "a/b"],
            "port add: tap \"a/b\" is no valid name",
        ),
        (vec!["port", "add", "vm", "--bridge", "shunt0", "--netdev", "no-such-dev"], "port add: "),
        (
            vec!["bridge", "add", "bridge-of-sixteen"],
            "bridge add: name \"bridge-of-sixteen\" is no valid name",
        ),
        (
            vec!["bridge", "add", "b", "--ageing", "1000001"],
            "bridge add: ageing 1000001 is out of range: it must be 0 to",
        ),
        (
            vec!["bridge", "add", "b", "--fdb-limit", "0"],
            "bridge add: fdb_limit 0 is out of range: it must be 1 to 1048576",
        ),
        (vec!["fdb", "add", "shunt0", "52:54:00:00:00:01", "none"], "fdb add: port \"none\" does not exist"),
        (
            vec!["fdb", "del", "shunt0", "52:54:00:00:00:01", "--vlan", "4095"],
            "fdb del: vlan 4095 is out of range",
        ),
    ] {
        let message = daemon.refuses(&words);
        assert!(message.starts_with(expected), "{words:?}: {message}");
    }
    let status = daemon.json(&["status"]);
    assert_eq!((&status["ports"], &status["bridges"]), (&json!(0), &json!(1)));
    assert!(!Path::new(&socket).exists());
}

#[test]
fn wrong_usage_is_told_without_a_daemon() {
    let socket = "/tmp/x.sock";
    // Who says nothing is told what there is.
    for words in [&[][..], &["port"]] {
        let output = shuntctl().args(words).output().unwrap();
        assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(2), &b""[..]));
        assert!(String::from_utf8(output.stderr).unwrap().contains("Commands:"), "{words:?}");
    }
    for words in [
        &["nonsense"][..],
        &["status", "extra"],
        &["port", "add", "vm", "--bridge", "shunt0"],
        &["port", "add", "vm", "--vhost-user", socket],
        &["port", "add", "vm", "--bridge", "b", "--vhost-user", socket, "--tap", "t"],
        &["port", "add", "vm", "--bridge", "b", "--tap", "t", "--netdev", "n"],
        &["port", "add", "vm", "--bridge", "b", "--tap", "t", "--role", "server"],
        &["port", "add", "vm", "--bridge", "b", "--vhost-user", socket, "--persist"],
        &["port", "add", "vm", "--bridge", "b", "--vhost-user", "/s", "--netns", "x"],
        &["port", "add", "vm", "--bridge", "b", "--tap", "t", "--mtu", "big"],
        &["port", "set", "vm"],
        &["port", "set", "vm", "--worker", "0"],
        &["completions", "tcsh"],
        &["--control"],
    ] {
        let message = failure(shuntctl().args(words).output().unwrap(), 2);
        assert!(message.contains("--help"), "{words:?}: {message}");
    }
}

#[test]
fn a_daemon_that_is_not_there_is_status_3() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.sock").display().to_string();
    let message = failure(shuntctl().args(["--control", &path, "status"]).output().unwrap(), 3);
    assert!(
        message.starts_with(&format!("status: shuntd is not reachable at {path}: no such socket")),
        "{message}"
    );
    let message = failure(shuntctl().env("SHUNT_CONTROL", &path).arg("status").output().unwrap(), 3);
    assert!(message.contains(&path), "{message}");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let message = failure(shuntctl().args(["--control", &path, "status"]).output().unwrap(), 3);
    assert!(message.contains("nobody listens there"), "{message}");
    std::fs::remove_file(&path).unwrap();
    let deaf = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let closing = std::thread::spawn(move || drop(deaf.accept().unwrap()));
    failure(shuntctl().args(["--control", &path, "status"]).output().unwrap(), 3);
    closing.join().unwrap();
}

#[test]
fn who_may_not_is_refused() {
    if !geteuid().is_root() {
        eprintln!("skipped: only root can become somebody else");
        return;
    }
    let daemon = Daemon::start();
    // A copy in a place that everybody can reach.
    let program = daemon.dir.path().join("shuntctl");
    std::fs::copy(SHUNTCTL, &program).unwrap();
    let open = |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    open(daemon.dir.path(), 0o755);
    open(&program, 0o755);
    let status_as = |uid, gid| {
        let mut command = Command::new(&program);
        command.current_dir("/").env_clear().uid(uid).gid(gid);
        command.args(["--control", &daemon.path("c.sock"), "status"]);
        // While another test forks, its child may hold the copy open for writing.
        wait_for("the copy to be free", || match command.output() {
            Err(e) if e.kind() == std::io::ErrorKind::ExecutableFileBusy => None,
            output => Some(output.unwrap()),
        })
    };
    let message = failure(status_as(65534, 65534), 3);
    assert!(message.contains("permission denied"), "{message}");
    // The socket's group is the daemon's; its members may.
    assert!(status_as(65534, nix::unistd::getegid().as_raw()).status.success());
    // The daemon looks for itself, whatever became of the socket's mode.
    open(&daemon.dir.path().join("c.sock"), 0o666);
    let message = failure(status_as(65534, 65534), 1);
    assert!(message.starts_with("status: uid 65534, gid 65534 may not: only root, "), "{message}");
    daemon.says(&["status"]);
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let daemon = Daemon::start();
    let mut child = shuntctl()
        .args(["--control", &daemon.path("c.sock"), "completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output =
        shuntctl().args(["--control", &daemon.path("c.sock"), "status"]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn help_completions_and_manual_need_no_daemon() {
    let says = |words: &[&str]| {
        let output = shuntctl().args(words).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{words:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(says(&["--version"]).starts_with("shuntctl 0."));
    assert!(says(&["--help"]).contains("Exit status"));
    assert!(says(&["port", "add", "--help"]).contains("--vhost-user"));
    for shell in ["bash", "zsh", "fish"] {
        assert!(says(&["completions", shell]).contains("shuntctl"), "{shell}");
    }
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(says(&["man", dir.path().to_str().unwrap()]), "");
    for page in ["shuntctl.1", "shuntctl-port-add.1", "shuntctl-fdb-flush.1", "shuntd.1", "shunt-cni.1"] {
        assert!(std::fs::read_to_string(dir.path().join(page)).unwrap().contains(".TH"), "{page}");
    }
    assert_eq!(shuntctl().args(["man", "/nonexistent"]).output().unwrap().status.code(), Some(1));
}

#[test]
fn the_configuration_is_shown_saved_checked_and_compared() {
    let daemon = Daemon::start();
    daemon.says(&["bridge", "add", "br5", "--ageing", "7"]);
    daemon.says(&["port", "add", "web", "--bridge", "br5", "--vhost-user", &daemon.path("web.sock")]);
    let shown = daemon.says(&["config", "show"]);
    assert!(shown.contains("name = \"br5\"\nageing = 7\n"), "{shown}");
    assert_eq!(daemon.json(&["config", "show"])["port"][0]["name"], "web");
    let file = daemon.path("saved.toml");
    std::fs::write(&file, "what was there").unwrap();
    assert_eq!(daemon.says(&["config", "save", &file]), "");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), shown);
    assert_eq!(daemon.says(&["config", "check", &file]), "");
    assert_eq!(daemon.says(&["config", "diff", &file]), "");
    let left: Vec<_> =
        std::fs::read_dir(daemon.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with(".saved")), "{left:?}");
    std::fs::write(&file, shown.replace("ageing = 7", "ageing = 8\nfilter = true")).unwrap();
    assert_eq!(
        daemon.says(&["config", "diff", &file]),
        "~ bridge br5: ageing 7 -> 8, filter default -> true\n"
    );
    assert_eq!(daemon.json(&["config", "diff", &file])["changes"][0]["fields"][0]["to"], 8);
    std::fs::write(&file, shown.replace("ageing = 7", "ageing = -7")).unwrap();
    for command in ["check", "diff"] {
        let refusal = daemon.refuses(&["config", command, &file]);
        assert!(
            refusal.contains("saved.toml:") && refusal.contains("ageing -7 is out of range"),
            "{refusal}"
        );
    }
    // Without a daemon, too.
    let alone = shuntctl().args(["--control", "/nowhere/c.sock", "config", "check", &file]).output().unwrap();
    assert!(failure(alone, 1).contains("ageing -7"));
    let nowhere = daemon.path("none/saved.toml");
    assert!(daemon.refuses(&["config", "save", &nowhere]).contains("No such file"));
}
