//! `kata-network` and `kata-ipvs` against a real daemon: outputs to the letter, what is refused, and a QEMU that fails.

mod common;
#[path = "../../switch/src/container/fake_qmp.rs"]
mod qmp;

use std::io::Write;
use std::process::{Child, Output, Stdio};

use common::{Daemon, SHUNTCTL, shuntctl};
use qmp::{Fault, Qmp};
use serde_json::{Value, json};

const ID: &str = "6ec7a98d1f7e4b0b9d0b0c6f5d8b3a2e";

/// `kata-runtime WORDS` with `input`.
fn kata(daemon: &Daemon, words: &[&str], input: &[u8]) -> Output {
    let link = daemon.dir.path().join("kata-runtime");
    if !link.exists() {
        std::os::unix::fs::symlink(SHUNTCTL, &link).unwrap();
    }
    let mut command = std::process::Command::new(link);
    command.env_remove("XDG_RUNTIME_DIR").env("SHUNT_CONTROL", daemon.path("c.sock")).args(words);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // Who has read enough closes.
            let _ = stdin.write_all(input);
        });
        child.wait_with_output().unwrap()
    })
}

/// Standard output of a command that must succeed without a word.
#[track_caller]
fn says(daemon: &Daemon, words: &[&str], input: &str) -> String {
    let output = kata(daemon, words, input.as_bytes());
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), error.as_str()), (Some(0), ""), "{words:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The one line of standard error of a command that must fail and print `document`.
#[track_caller]
fn fails(daemon: &Daemon, words: &[&str], input: &[u8], document: &str) -> String {
    let output = kata(daemon, words, input);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), document, "{words:?}: {error}");
    assert_eq!(output.status.code(), Some(1), "{words:?}: {error}");
    assert_eq!(error.lines().count(), 1, "{words:?}: {error}");
    error.trim_end().to_owned()
}

fn nic(daemon: &Daemon) -> Value {
    json!({
        "device": "tap-test", "name": "eth-test", "IPAddresses": [{"address": "10.0.3.77", "mask": "24"}],
        "hwAddr": "02:42:20:6f:a3:69", "mtu": 1500, "vhostUserSocket": daemon.path("vhost-user1"), "queues": 5
    })
}

const ADD: &[&str] = &["kata-network", "add-iface", "6ec7", "-"];
const DEL: &[&str] = &["kata-network", "del-iface", "6ec7", "-"];

struct World {
    daemon: Daemon,
    qmp: Qmp,
}

impl World {
    #[track_caller]
    fn new() -> Self {
        let daemon = Daemon::start();
        let qmp = Qmp::start(&daemon.dir.path().join("qmp.sock"));
        daemon.says(&["container", "add", ID, "--qmp", &qmp.path.display().to_string()]);
        Self { daemon, qmp }
    }

    #[track_caller]
    fn is_empty(&self) {
        assert_eq!(self.qmp.parts(), [] as [String; 0]);
        assert_eq!(self.daemon.json(&["port", "list"]), json!([]));
        assert_eq!(self.daemon.json(&["dhcp", "show", "shunt0"])["reservations"], json!([]));
        assert_eq!(says(&self.daemon, &["kata-network", "list-ifaces", ID], ""), "null\n");
        assert!(!self.daemon.dir.path().join("vhost-user1").exists());
    }

    fn add(&self) -> String {
        says(&self.daemon, ADD, &nic(&self.daemon).to_string())
    }
}

#[test]
fn what_is_added_is_printed_listed_and_removed_to_the_letter() {
    let world = World::new();
    let World { daemon, qmp } = &world;
    let socket = daemon.path("vhost-user1");
    let added = says(daemon, ADD, &nic(daemon).to_string());
    let expected = format!(
        "{{\"device\":\"tap-test\",\"name\":\"eth-test\",\"IPAddresses\":[{{\"Family\":2,\"Address\":\"10.0.3.77\",\"Mask\":\"24\"}}],\"mtu\":1500,\"hwAddr\":\"02:42:20:6f:a3:69\",\"pciAddr\":\"01.0/00\",\"vhostUserSocket\":\"{socket}\",\"queues\":5}}\n"
    );
    assert_eq!(added, expected);
    assert_eq!(qmp.parts(), ["shunt-chr-eth-test", "shunt-net-eth-test", "shunt-nic-eth-test"]);
    let list =
        "[{\"name\":\"eth-test\",\"mac\":\"02:42:20:6f:a3:69\",\"ip\":[\"10.0.3.77/24\"],\"mtu\":1500}]\n";
    assert_eq!(says(daemon, &["kata-network", "list-ifaces", "6e"], ""), list);
    let reservations = daemon.json(&["dhcp", "show", "shunt0"])["reservations"].clone();
    assert_eq!(reservations[0]["address"], "10.0.3.77");

    // Routes.
    let route = r#"{"dest":"177.17.0.0/24","gateway":"10.0.3.25","device":"eth-test"}"#;
    let output = kata(daemon, &["kata-network", "add-route", ID, "-"], route.as_bytes());
    assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("[{route}]\n"));
    assert_eq!(output.status.code(), Some(0));
    let note = String::from_utf8(output.stderr).unwrap();
    assert!(note.starts_with("kata-network add-route: note: the guest hears of the routes"), "{note}");
    let lo = r#"{"dest":"192.0.2.0/24","device":"lo"}"#;
    assert_eq!(
        String::from_utf8(kata(daemon, &["kata-network", "add-route", ID, "-"], lo.as_bytes()).stdout)
            .unwrap(),
        format!("[{lo}]\n")
    );
    assert_eq!(
        says(daemon, &["kata-network", "list-routes", ID], ""),
        format!("[{{\"dest\":\"10.0.3.0/24\",\"device\":\"eth-test\"}},{route},{lo}]\n")
    );
    for (again, why) in [
        (route, "is there already"),
        (r#"{"dest":"10.7.0.0/16","gateway":"10.9.0.1","device":"eth-test"}"#, "is unreachable"),
        (r#"{"dest":"10.7.0.0/16","device":"eth-none"}"#, "is no NIC of container"),
        // All or none: the first one alone would do.
        (r#"[{"dest":"10.7.0.0/16","device":"eth-test"},{"dest":"10.8.0.0/16","device":"x"}]"#, "is no NIC"),
    ] {
        let error = fails(daemon, &["kata-network", "add-route", ID, "-"], again.as_bytes(), "null\n");
        assert!(error.contains(why), "{error}");
    }
    let output = kata(daemon, &["kata-network", "del-route", ID, "-"], br#"{"dest":"177.17.0.0/24"}"#);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("[{route}]\n"));
    let error =
        fails(daemon, &["kata-network", "del-route", ID, "-"], br#"{"dest":"177.17.0.0/24"}"#, "null\n");
    assert!(error.contains("has no such route"), "{error}");

    // What belongs to a container is not removed behind its back.
    let refused = daemon.refuses(&["port", "del", "tap-test"]);
    assert!(
        refused.contains("is a NIC of container") && refused.contains("kata-network del-iface"),
        "{refused}"
    );
    for (field, why) in [("name", "name \"eth-test\" is taken"), ("device", "device \"tap-test\" is taken")] {
        let mut other = nic(daemon);
        other["name"] = "eth9".into();
        other["device"] = "tap9".into();
        other[field] = nic(daemon)[field].clone();
        let error = fails(daemon, ADD, other.to_string().as_bytes(), "null\n");
        assert!(error.contains(why), "{error}");
    }
    // A file that added it removes it.
    let file = daemon.dir.path().join("test-infs.json");
    std::fs::write(&file, nic(daemon).to_string()).unwrap();
    let file = file.display().to_string();
    assert_eq!(says(daemon, &["kata-network", "del-iface", "6ec7", &file], ""), "null\n");
    world.is_empty();
}

#[test]
fn json_that_is_none_is_refused_and_changes_nothing() {
    let world = World::new();
    let daemon = &world.daemon;
    let whole = nic(daemon).to_string();
    let huge = vec![b' '; 100 << 20];
    let unknown = whole.replace("\"mtu\"", "\"mtuu\"");
    let doubled = whole.replace("\"mtu\"", "\"mtu\":1400,\"MTU\"");
    let typed = whole.replace("1500", "\"1500\"");
    for (input, why) in [
        (whole.as_bytes()[..whole.len() - 1].to_vec(), "EOF while parsing"),
        (huge, "longer than 1048576 bytes"),
        (Vec::new(), "EOF while parsing"),
        (doubled.into_bytes(), "is there twice"),
        (typed.into_bytes(), "mtu: invalid type"),
        (unknown.into_bytes(), "\"mtuu\" of the NIC is unknown"),
        (b"\xff\xfe".to_vec(), "the JSON is refused"),
        (whole.replace("1500", "45").into_bytes(), "mtu 45 is out of range: it must be 46 to 9600"),
        (whole.replace("02:42", "03:42").into_bytes(), "hwAddr 03:42"),
    ] {
        let error = fails(daemon, ADD, &input, "null\n");
        assert!(error.starts_with("kata-network add-iface: ") && error.contains(why), "{error}");
    }
    for (words, why) in [
        (&["kata-network", "add-iface", "6ec7", "/nonexistent/file"][..], "No such file"),
        (&["kata-network", "add-iface", "6ec7", "/"], "Is a directory"),
        (&["kata-network", "add-iface", "7ec7", "-"], "container 7ec7 is not running"),
        (&["kata-network", "del-route", "7ec7", "-"], "dest is missing"),
        (&["kata-network", "list-ifaces", "7ec7"], "container 7ec7 is not running"),
        (&["kata-network", "list-routes", ""], "is not running"),
    ] {
        let error = fails(daemon, words, whole.replace("hwAddr", "hwaddr").as_bytes(), "null\n");
        assert!(error.contains(why) || error.contains("unknown"), "{words:?}: {error}");
    }
    daemon.says(&["container", "add", "6ec7a98ffff"]);
    let error = fails(daemon, ADD, whole.as_bytes(), "null\n");
    assert!(error.contains("container 6ec7 is ambiguous"), "{error}");
    let error = fails(daemon, &["kata-network", "add-iface", "6ec7a98f", "-"], whole.as_bytes(), "null\n");
    assert!(error.contains("has no QMP socket"), "{error}");
    world.is_empty();
    // Nobody there.
    let mut command = shuntctl();
    let output = command
        .env("SHUNT_CONTROL", "/nonexistent/c.sock")
        .args(["kata-network", "list-ifaces", "x"])
        .output();
    let output = output.unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(3), &b"null\n"[..]));
}

#[test]
fn a_qemu_that_fails_leaves_nothing_behind() {
    let world = World::new();
    for (fault, why) in [
        (Fault::Stranger, "it is no greeting"),
        (Fault::Closes("qmp_capabilities"), "closed before the answer to qmp_capabilities"),
        (Fault::Closes("chardev-add"), "closed before the answer to chardev-add"),
        (Fault::Closes("netdev_add"), "closed before the answer to netdev_add"),
        (Fault::Closes("device_add"), "closed before the answer to device_add"),
        (Fault::Garbage("netdev_add"), "the answer to netdev_add makes no sense: it is no JSON object"),
        (Fault::Mistaken("device_add"), "it is the answer to something else"),
        (
            Fault::Refuses("chardev-add", 1, "Failed to bind socket"),
            "QEMU refuses chardev-add: Failed to bind",
        ),
        (Fault::Refuses("netdev_add", 1, "Invalid parameter"), "QEMU refuses netdev_add: Invalid parameter"),
        (Fault::Refuses("device_add", 1, "Device is busy"), "QEMU refuses device_add: Device is busy"),
        (Fault::Refuses("device_add", 9, "slot 0 not available, in use by x"), "in use by x"),
        (Fault::Refuses("query-pci", 1, "no PCI"), "QEMU refuses query-pci: no PCI"),
        (Fault::Silent("device_add"), "no answer to device_add within 8 s"),
        (Fault::Mute, "does somebody else use this monitor?"),
    ] {
        world.qmp.fault(fault.clone());
        let error = fails(&world.daemon, ADD, nic(&world.daemon).to_string().as_bytes(), "null\n");
        assert!(error.contains(why), "{fault:?}: {error}");
        assert!(!error.contains("undone"), "{fault:?}: {error}");
        world.qmp.fault(Fault::None);
        world.is_empty();
    }
    // The second root port is taken where the first one is not what it seemed.
    world.qmp.fault(Fault::Refuses(
        "device_add",
        1,
        "PCI: slot 0 function 0 not available for x, in use by y",
    ));
    assert!(world.add().contains("\"pciAddr\":\"02.0/00\""));
    world.qmp.fault(Fault::None);
    assert_eq!(says(&world.daemon, DEL, &nic(&world.daemon).to_string()), "null\n");
    world.is_empty();
    // Older ones do not know the time between attempts in milliseconds.
    world.qmp.fault(Fault::Refuses("chardev-add", 1, "Parameter 'reconnect-ms' is unexpected"));
    world.add();
    let added = world.qmp.commands().iter().filter(|command| *command == "chardev-add").count();
    assert_eq!(added, 2);
}

#[test]
fn a_qemu_that_is_gone_is_said_to_be() {
    let world = World::new();
    world.qmp.fault(Fault::Dies("device_add"));
    let error = fails(&world.daemon, ADD, nic(&world.daemon).to_string().as_bytes(), "null\n");
    assert!(
        error.contains("closed before the answer to device_add") && error.contains("could not be undone"),
        "{error}"
    );
    assert_eq!(world.daemon.json(&["port", "list"]), json!([]));
    let error = fails(&world.daemon, ADD, nic(&world.daemon).to_string().as_bytes(), "null\n");
    assert!(error.contains("no such socket: does QEMU run"), "{error}");
    assert_eq!(world.daemon.json(&["port", "list"]), json!([]));
    // What is left of a container whose QEMU is gone goes all the same.
    world.daemon.says(&["container", "del", "6"]);
    assert_eq!(world.daemon.json(&["container", "list"]), json!([]));
}

#[test]
fn a_guest_that_does_not_let_go_keeps_its_nic() {
    let world = World::new();
    world.add();
    let left = "{\"device\":\"tap-test\",\"name\":\"eth-test\",\"IPAddresses\":[{\"Family\":0,\"Address\":\"10.0.3.77\",\"Mask\":\"24\"}],\"mtu\":1500,\"hwAddr\":\"02:42:20:6f:a3:69\",\"linkType\":\"vhost-user\",\"vhostUserSocket\":\"SOCKET\",\"queues\":5}\n";
    let left = left.replace("SOCKET", &world.daemon.path("vhost-user1"));
    let asked = nic(&world.daemon).to_string();
    for (fault, why) in [
        (Fault::Objects, "the guest did not let go of eth-test"),
        (Fault::Clings, "the guest did not let go of eth-test within 15 s"),
        (Fault::Closes("device_del"), "closed before the answer to device_del"),
        (
            Fault::Refuses("device_del", 1, "Bus 'rp0' does not support hotplugging"),
            "does not support hotplugging",
        ),
        // The device is gone then; the rest goes with the next attempt.
        (Fault::Refuses("netdev_del", 1, "busy"), "QEMU refuses netdev_del: busy"),
    ] {
        world.qmp.fault(fault.clone());
        let error = fails(&world.daemon, DEL, asked.as_bytes(), &left);
        assert!(error.contains(why), "{fault:?}: {error}");
        let list = says(&world.daemon, &["kata-network", "list-ifaces", ID], "");
        assert!(list.contains("eth-test"), "{fault:?}: it is still there");
    }
    world.qmp.fault(Fault::None);
    assert_eq!(says(&world.daemon, DEL, &asked), "null\n");
    world.is_empty();
}

#[test]
fn another_is_served_while_one_waits() {
    let world = World::new();
    let other = Qmp::start(&world.daemon.dir.path().join("other.sock"));
    let own = world.qmp.path.display().to_string();
    let taken = world.daemon.refuses(&["container", "add", "beef", "--qmp", &own]);
    assert!(taken.contains("is that of container 6ec7"), "{taken}");
    world.daemon.says(&["container", "add", "beef", "--qmp", &other.path.display().to_string()]);
    world.qmp.fault(Fault::Silent("device_add"));
    let begun = std::time::Instant::now();
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| kata(&world.daemon, ADD, nic(&world.daemon).to_string().as_bytes()));
        common::wait_for("the slow one to wait", || {
            world.qmp.commands().contains(&"device_add".to_owned()).then_some(())
        });
        let mut quick = nic(&world.daemon);
        quick["device"] = "tap2".into();
        quick["vhostUserSocket"] = world.daemon.path("v2").into();
        quick["IPAddresses"] = json!([]);
        quick["hwAddr"] = "02:42:20:6f:a3:70".into();
        let words = ["kata-network", "add-iface", "beef", "-"];
        assert!(says(&world.daemon, &words, &quick.to_string()).contains("\"device\":\"tap2\""));
        // One that is on its way is not shown, and its name is taken.
        let shown = world.daemon.json(&["container", "show", ID]);
        assert_eq!(shown["nics"], json!([]));
        let status = world.daemon.json(&["status"]);
        assert_eq!(status["ports"], 2);
        assert!(begun.elapsed() < std::time::Duration::from_secs(8), "nobody waited for the slow one");
        assert_eq!(slow.join().unwrap().status.code(), Some(1));
    });
    assert_eq!(world.daemon.json(&["status"])["ports"], 1);
}

const IPVS: &[&str] = &["kata-ipvs", "ipvsadm"];

#[track_caller]
fn ipvs(daemon: &Daemon, parameters: &str) -> String {
    says(daemon, &[IPVS, &["--parameters", parameters, "6ec7"]].concat(), "")
}

#[test]
fn the_documented_commands_of_kata_ipvs_work() {
    let World { daemon, .. } = &World::new();
    ipvs(daemon, "--add-service --tcp-service 172.17.0.7:80 --scheduler rr --persistent 3000");
    ipvs(daemon, "--edit-service --tcp-service 172.17.0.7:80 --scheduler rr --persistent 5000");
    ipvs(daemon, "--add-server --tcp-service 172.17.0.7:80 --real-server 172.17.0.4:80 --weight 100");
    ipvs(daemon, "--edit-server --tcp-service 172.17.0.7:80 --real-server 172.17.0.4:80 --weight 200");
    let list = ipvs(daemon, "--list -n");
    let line = "TCP  172.17.0.7:80 rr persistent 5000\n  -> 172.17.0.4:80                Masq    200    0          0         \n";
    assert!(list.ends_with(line), "{list}");
    ipvs(daemon, "--add-server --tcp-service 172.17.0.7:80 --real-server 172.17.0.5:80 -g");
    assert!(ipvs(daemon, "--list -n").contains("172.17.0.5:80                Route   1"));
    ipvs(daemon, "--set 100 100 200");
    assert_eq!(ipvs(daemon, "--list --timeout"), "Timeout (tcp tcpfin udp): 100 100 200\n");
    ipvs(daemon, "--delete-server --tcp-service 172.17.0.7:80 --real-server 172.17.0.4:80");
    let cleaned = says(
        daemon,
        &["kata-ipvs", "cleanup", "--parameters", "--orig-dst 172.17.0.4 --protonum tcp", "6ec7"],
        "",
    );
    assert_eq!(cleaned, "0 flow entries have been deleted\n");
    ipvs(daemon, "--delete-service --tcp-service 172.17.0.7:80");
    // The rules are the container's own.
    assert_eq!(daemon.says(&["ipvsadm", "-Ln"]).lines().count(), 3);

    let rules = "-A -t 10.10.11.12:100 -s rr -p  3000\n-a -t 10.10.11.12:100 -r  172.16.0.1:80 -m\n\
                 -a -t 10.10.11.12:100 -r  172.16.0.1:81 -m\n-a -t 10.10.11.12:100 -r  172.16.0.1:82  -m\n\
                 -a -t 10.10.11.12:100 -r 172.16.0.1:83\n";
    let restore = [IPVS, &["--restore", "-", "6ec7"]].concat();
    assert_eq!(says(daemon, &restore, rules), "");
    let list = ipvs(daemon, "--list -n");
    assert!(list.contains("172.16.0.1:82                Masq") && list.contains("Route"), "{list}");
    let error = fails(daemon, &restore, rules.as_bytes(), "");
    assert!(error.contains("has 5 rules already: clear them first"), "{error}");
    says(daemon, &[IPVS, &["--restore", "-", "--replace", "6ec7"]].concat(), "-A -u 10.10.11.12:53 -s sh\n");
    assert_eq!(daemon.json(&["container", "show", ID])["ipvs_rules"], 1);
    ipvs(daemon, "-C");
    // A wrong line: all or nothing.
    let wrong = format!("{rules}-a -t 10.10.11.13:1 -r 172.16.0.1:80 -m\n");
    let error = fails(daemon, &restore, wrong.as_bytes(), "");
    assert_eq!(error, "line 6: Service not defined");
    assert_eq!(daemon.json(&["container", "show", ID])["ipvs_rules"], 0);
    daemon.says(&["container", "del", ID]);
    let tables = daemon.json(&["ipvs", "tables"]);
    assert_eq!(tables.as_array().unwrap().len(), 1, "{tables}");
}

#[test]
fn katas_bounds_hold() {
    let World { daemon, .. } = &World::new();
    let service = "--add-service --tcp-service 10.0.0.1:80 --scheduler rr";
    let tried = |parameters: &str| {
        let output = kata(daemon, &[IPVS, &["--parameters", parameters, "6ec7"]].concat(), b"");
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code() == Some(0), error.is_empty(), "{parameters}: {error}");
        assert!(error.is_empty() || output.status.code() == Some(1), "{parameters}: {error}");
        assert!(error.lines().count() <= 1, "{error}");
        if error.is_empty() { Ok(()) } else { Err(error) }
    };
    for seconds in ["1", "2678400"] {
        tried(&format!("{service} --persistent {seconds}")).unwrap();
        tried("-C").unwrap();
    }
    for seconds in ["0", "2678401", "x"] {
        let error = tried(&format!("{service} --persistent {seconds}")).unwrap_err();
        assert!(error.contains(seconds), "{error}");
    }
    for scheduler in ["rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "sed", "nq"] {
        tried(&format!("-A -t 10.0.0.2:80 -s {scheduler}")).unwrap();
        tried("-D -t 10.0.0.2:80").unwrap();
    }
    for scheduler in ["mh", "fo", "ovf", "x"] {
        assert!(tried(&format!("-A -t 10.0.0.2:80 -s {scheduler}")).unwrap_err().contains("is unknown"));
    }
    tried(service).unwrap();
    for (number, weight) in ["0", "65535"].into_iter().enumerate() {
        tried(&format!("-a -t 10.0.0.1:80 -r 10.0.1.{number}:80 -w {weight}")).unwrap();
    }
    for weight in ["65536", "-1"] {
        assert!(tried(&format!("-a -t 10.0.0.1:80 -r 10.0.1.9:80 -w {weight}")).is_err(), "{weight}");
    }
    tried("--set 0 0 1296000").unwrap();
    for timeouts in ["1296001 0 0", "0 1296001 0", "0 0 1296001", "-1 0 0"] {
        assert!(tried(&format!("--set {timeouts}")).is_err(), "{timeouts}");
    }
    for parameters in
        ["--save", "--restore", "--start-daemon master", "-L --container x", "", "  ", "--nothing"]
    {
        assert!(tried(parameters).is_err(), "{parameters}");
    }
    for port in ["1", "65535"] {
        tried(&format!("-A -t 10.0.0.3:{port} -s rr")).unwrap();
    }
    assert!(tried("-A -t 10.0.0.3:65536 -s rr").is_err());
    for (parameters, why) in [
        ("--orig-dst 172.17.0.4", "protonum"),
        ("--protonum tcp", "orig-dst"),
        ("--orig-dst 172.17.0.4 --protonum icmp", "must be tcp or udp"),
        ("--orig-dst 172.17.0 --protonum tcp", "no IP address"),
        ("", "orig-dst"),
    ] {
        let words = ["kata-ipvs", "cleanup", "--parameters", parameters, "6ec7"];
        assert!(fails(daemon, &words, b"", "").contains(why), "{parameters}");
    }
    for words in [
        [IPVS, &["--parameters", "--list", "nobody"]].concat(),
        [IPVS, &["--restore", "-", "nobody"]].concat(),
    ] {
        assert!(fails(daemon, &words, b"", "").contains("container nobody is not running"));
    }
    let words = ["kata-ipvs", "cleanup", "--parameters", "--orig-dst 1.2.3.4 --protonum udp", "nobody"];
    assert!(fails(daemon, &words, b"", "").contains("container nobody is not running"));
}

#[test]
fn containers_come_and_go() {
    let daemon = Daemon::start();
    assert_eq!(daemon.json(&["container", "list"]), json!([]));
    daemon.says(&["container", "add", ID, "--qmp", "/run/q.sock", "--agent", "vsock:3", "--role", "client"]);
    let shown = daemon.json(&["container", "show", "6"]);
    assert_eq!(
        shown,
        json!({"id": ID, "qmp": "/run/q.sock", "bridge": "shunt0", "role": "client", "tap": "descriptor",
               "agent": "vsock:3:1024", "nics": [], "routes": [], "ipvs_rules": 0})
    );
    assert!(daemon.says(&["container", "list"]).contains(ID));
    assert!(daemon.says(&["container", "show", "6"]).contains("vsock:3:1024"));
    for (words, why) in [
        (&["container", "add", ID][..], "is registered already"),
        (&["container", "add", "-x"], ""),
        (&["container", "add", "b", "--bridge", "none"], "bridge \"none\" does not exist"),
        (&["container", "add", "b", "--qmp", "q"], "qmp \"q\" is not absolute"),
        (&["container", "show", "b"], "container b is not running"),
        (&["container", "del", "b"], "container b is not running"),
    ] {
        let output = daemon.run(words);
        assert_ne!(output.status.code(), Some(0), "{words:?}");
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.contains(why), "{error}");
    }
    daemon.says(&["container", "del", "6"]);
    assert_eq!(daemon.json(&["container", "list"]), json!([]));
}

/// A command that adds a NIC and waits for QEMU, which has its chardev and its netdev.
fn half_way(World { daemon, qmp }: &World) -> Child {
    let file = daemon.path("nic.json");
    std::fs::write(&file, nic(daemon).to_string()).unwrap();
    qmp.fault(Fault::Silent("device_add"));
    let mut asking = shuntctl();
    asking.arg("--control").arg(daemon.path("c.sock")).args(["kata-network", "add-iface", ID, &file]);
    let asking = asking.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    common::wait_for("the command to wait for QEMU", || {
        qmp.commands().contains(&"device_add".to_owned()).then_some(())
    });
    assert_eq!(qmp.parts().len(), 2);
    asking
}

#[test]
fn what_a_killed_daemon_left_in_qemu_is_no_obstacle() {
    let mut world = World::new();
    let asking = half_way(&world);
    world.daemon = world.daemon.revive();
    let output = asking.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(3), &b"null\n"[..]));
    // Nobody was told that it is there.
    assert_eq!(says(&world.daemon, &["kata-network", "list-ifaces", ID], ""), "null\n");
    assert_eq!(world.qmp.parts().len(), 2);
    world.qmp.fault(Fault::None);
    world.add();
    assert_eq!(world.qmp.parts().len(), 3);
    assert_eq!(says(&world.daemon, DEL, &nic(&world.daemon).to_string()), "null\n");
    world.is_empty();
}

#[test]
fn a_daemon_that_ends_in_the_middle_undoes_what_it_began() {
    let world = World::new();
    let asking = half_way(&world);
    let World { daemon, qmp } = world;
    // SIGTERM, and until it has ended.
    drop(daemon);
    assert_eq!(qmp.parts(), [] as [String; 0]);
    let output = asking.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(3), &b"null\n"[..]));
}
