//! Commands as they come over the socket, on a disk that tests look at.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use serde_json::Value;

use super::*;
use crate::config::document::Mark;
use crate::config::{Poll, Workers};
use crate::container::fake_qmp::Qmp;
use crate::control::dispatch::Dispatcher;
use crate::durable::simulated::{Dice, Fault, Simulated};
use crate::switch::Options;

/// A daemon without its process.
struct Daemon {
    switch: Rc<RefCell<Switch>>,
    dispatcher: Dispatcher,
    disk: Simulated,
    runtime: tokio::runtime::Runtime,
}

impl Daemon {
    fn on(disk: &Simulated, file: Option<&str>) -> Self {
        let options = Options { workers: Workers::Count(1), poll: Poll::Adaptive, state: None, handed: None };
        let mut switch = Switch::start(options).unwrap();
        let file = file.map(|text| Config::parse(text, None).unwrap());
        switch.begin_on(Box::new(disk.clone()), Path::new("/state"), file).unwrap();
        let switch = Rc::new(RefCell::new(switch));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self {
            dispatcher: Dispatcher::new(switch.clone(), Rc::default()),
            switch,
            disk: disk.clone(),
            runtime,
        }
    }

    /// What a request is answered.
    fn ask(&self, method: &str, params: &str) -> Result<Value, String> {
        let line = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{params}}}"#);
        let answer = self.runtime.block_on(self.dispatcher.answer(1, line.as_bytes())).unwrap();
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        match answer.get("error") {
            Some(error) => Err(error["message"].as_str().unwrap().to_owned()),
            None => Ok(answer["result"].clone()),
        }
    }

    fn says(&self, method: &str, params: &str) -> Value {
        self.ask(method, params).unwrap_or_else(|why| panic!("{method} {params}: {why}"))
    }

    fn configuration(&self) -> Document {
        self.switch.borrow().configuration()
    }

    /// What a start would find.
    fn saved(&self) -> Document {
        let bytes = self.disk.read(Path::new("/state/state")).unwrap().unwrap();
        let saved = crate::saved::read(&bytes);
        assert_eq!(saved.problems, [""; 0]);
        saved.document.unwrap()
    }

    #[track_caller]
    fn assert_saved(&self, what: &str) {
        let difference = self.saved().difference(&self.configuration());
        let lines: Vec<String> = difference.iter().map(Difference::line).collect();
        assert_eq!(lines, [""; 0], "not saved as it is after {what}");
    }

    /// What is shown is a file that describes the same.
    #[track_caller]
    fn assert_describable(&self, what: &str) {
        let document = self.configuration();
        let text = document.to_toml().unwrap();
        let again = Document::parse(&text, None).unwrap_or_else(|why| panic!("after {what}: {why}\n{text}"));
        let difference = document.difference(&again);
        let lines: Vec<String> = difference.iter().map(Difference::line).collect();
        assert_eq!(lines, [""; 0], "not shown as it is after {what}");
    }

    fn problems(&self) -> Vec<String> {
        self.switch.borrow().problems()
    }
}

/// A command of a great many.
fn command(dice: &mut Dice, dir: &Path) -> (String, String) {
    let n = dice.roll(3);
    let m = dice.roll(3);
    let on = ["true", "false"][dice.roll(2)];
    let dir = dir.display();
    let service = ["tcp:10.9.0.1:80", "udp:10.9.0.1:53", "mark:5"][n];
    let container = ["", r#""container":"c0ffee","#][dice.roll(2)];
    let commands = [
        ("bridge.add", format!(r#"{{"name":"b{n}","ageing":{m}00,"filter":{on}}}"#)),
        ("bridge.add", format!(r#"{{"name":"b{n}"}}"#)),
        ("bridge.set", format!(r#"{{"name":"b{n}","filter":{on}}}"#)),
        ("bridge.del", format!(r#"{{"name":"b{n}"}}"#)),
        (
            "port.add",
            format!(
                r#"{{"name":"p{n}","bridge":"b{m}","vhost_user":"{dir}/p{n}.sock","queues":2,"mac":"52:54:00:00:00:0{n}"}}"#
            ),
        ),
        (
            "port.add",
            format!(
                r#"{{"name":"q{n}","bridge":"b{m}","vhost_user":"{dir}/q{n}.sock","guard":{on},"ingress_rate":{m}000000}}"#
            ),
        ),
        ("port.set", format!(r#"{{"name":"p{n}","mtu":{m}400,"allow_address":["10.{m}.0.0/16"]}}"#)),
        ("port.set", format!(r#"{{"name":"q{n}","guard":{on},"egress_rate":{m}000}}"#)),
        ("port.del", format!(r#"{{"name":"p{n}"}}"#)),
        (
            "port.set",
            format!(
                r#"{{"name":"nic{n}","egress_rate":{m}000,"mtu":{m}400,"allow_address":["10.{m}.0.0/16"]}}"#
            ),
        ),
        ("port.set", format!(r#"{{"name":"nic{n}","guard":{on},"revoke_address":["10.{m}.0.0/16"]}}"#)),
        ("port.set", format!(r#"{{"name":"nic{n}","revoke_address":["10.9.0.{n}/32"],"mtu":1500}}"#)),
        ("fdb.add", format!(r#"{{"bridge":"b{m}","mac":"52:54:00:00:01:0{n}","port":"nic{n}","vlan":{m}}}"#)),
        ("fdb.add", format!(r#"{{"bridge":"b{m}","mac":"52:54:00:00:01:0{n}","port":"p{n}","vlan":{m}}}"#)),
        ("fdb.del", format!(r#"{{"bridge":"b{m}","mac":"52:54:00:00:01:0{n}","vlan":{m}}}"#)),
        (
            "interface.add",
            format!(r#"{{"name":"i{n}","bridge":"b{m}","address":["10.{n}.0.1/16","fd0{n}::1/64"]}}"#),
        ),
        ("interface.set", format!(r#"{{"name":"i{n}","mtu":{}400,"up":{on},"clamp_mss":{on}}}"#, m + 1)),
        (
            "interface.set",
            format!(r#"{{"name":"i{n}","add_address":["192.168.{n}.1/24"],"del_address":["fd0{n}::1/64"]}}"#),
        ),
        ("interface.set", format!(r#"{{"name":"i{n}","del_address":["10.{n}.0.1/16"]}}"#)),
        (
            "interface.set",
            format!(r#"{{"name":"i{n}","add_address":["10.{n}.0.{}/{}"]}}"#, m + 5, 16 + 8 * m),
        ),
        ("interface.set", format!(r#"{{"name":"i{n}","add_address":["172.{n}.0.1/16","172.3{n}.0.1/16"]}}"#)),
        ("interface.del", format!(r#"{{"name":"i{n}"}}"#)),
        ("route.add", format!(r#"{{"prefix":"default","via":"10.{n}.0.{}","metric":{m}}}"#, m + 5)),
        ("route.add", format!(r#"{{"prefix":"172.{n}.0.0/16","kind":"blackhole","metric":{m}}}"#)),
        ("route.del", r#"{"prefix":"default"}"#.to_owned()),
        (
            "route.load",
            format!(
                r#"{{"routes":[{{"prefix":"172.3{n}.0.0/16","via":"10.{n}.0.9"}},{{"prefix":"10.7{m}.0.0/16","kind":"prohibit"}}],"replace":{on}}}"#
            ),
        ),
        ("route.flush", "{}".to_owned()),
        (
            "neighbour.add",
            format!(r#"{{"interface":"i{n}","address":"10.{n}.0.4{m}","mac":"52:54:00:00:02:0{m}"}}"#),
        ),
        ("neighbour.del", format!(r#"{{"interface":"i{n}","address":"10.{n}.0.4{m}"}}"#)),
        ("nat.add-masquerade", format!(r#"{{"source":"10.{n}.0.0/16","out":"i{m}"}}"#)),
        ("nat.add-publish", format!(r#"{{"proto":"tcp","listen":"*:80{n}{m}","to":"10.{n}.0.8:80"}}"#)),
        ("nat.del", format!(r#"{{"id":{}}}"#, dice.roll(9))),
        (
            "policy.add",
            format!(
                r#"{{"from":"port:p{n}","to":"interface:i{m}","proto":"tcp","dport":"80,443","action":"drop"}}"#
            ),
        ),
        ("policy.del", format!(r#"{{"id":{}0}}"#, m + 1)),
        ("policy.flush", "{}".to_owned()),
        ("policy.set", format!(r#"{{"isolation":{on},"forward":"{}"}}"#, ["accept", "drop", "reject"][m])),
        (
            "dhcp.set",
            format!(r#"{{"interface":"i{n}","range":"10.{n}.0.100-10.{n}.0.20{m}","dns":["10.0.0.{n}"]}}"#),
        ),
        (
            "dhcp.reserve",
            format!(r#"{{"interface":"i{n}","mac":"52:54:00:00:03:0{m}","address":"10.{n}.0.{m}3"}}"#),
        ),
        ("dhcp.unreserve", format!(r#"{{"interface":"i{n}","mac":"52:54:00:00:03:0{m}"}}"#)),
        ("dhcp.del", format!(r#"{{"interface":"i{n}"}}"#)),
        ("conntrack.set-timeout", format!(r#"{{"kind":"udp","seconds":{}}}"#, m + 30)),
        ("conntrack.set-limit", format!(r#"{{"port_quota":{}000}}"#, m + 1)),
        (
            "ipvs.apply",
            format!(
                r#"{{{container}"changes":[{{"add-service":{{"service":"{service}","scheduler":"rr"}}}}]}}"#
            ),
        ),
        (
            "ipvs.apply",
            format!(
                r#"{{{container}"changes":[{{"add-server":{{"service":"{service}","address":"10.8.0.{m}:80","weight":{m}}}}},{{"add-server":{{"service":"{service}","address":"10.8.1.{m}:80"}}}}]}}"#
            ),
        ),
        (
            "ipvs.apply",
            format!(
                r#"{{{container}"changes":[{{"edit-server":{{"service":"{service}","address":"10.8.0.{m}:80","weight":7}}}}]}}"#
            ),
        ),
        (
            "ipvs.apply",
            format!(
                r#"{{{container}"changes":[{{"delete-server":{{"service":"{service}","address":"10.8.0.{m}:80"}}}}]}}"#
            ),
        ),
        (
            "ipvs.apply",
            format!(r#"{{{container}"changes":[{{"delete-service":{{"service":"{service}"}}}}]}}"#),
        ),
        (
            "ipvs.apply",
            format!(
                r#"{{{container}"replace":true,"changes":[{{"add-service":{{"service":"{service}"}}}},{{"add-server":{{"service":"{service}","address":"10.8.0.{m}:80"}}}}]}}"#
            ),
        ),
        (
            "ipvs.apply",
            format!(
                r#"{{{container}"changes":["flush",{{"set-timeouts":{{"tcp":{}00,"tcp_fin":0,"udp":0}}}}]}}"#,
                m + 1
            ),
        ),
        ("ipvs.set", format!(r#"{{{container}"name":"sloppy_tcp","value":{}}}"#, dice.roll(2))),
        ("check.set", format!(r#"{{"service":"{service}","kind":"tcp","port":80,"interval":86400}}"#)),
        ("check.del", format!(r#"{{"service":"{service}"}}"#)),
        ("container.add", format!(r#"{{"id":"c0ffee","bridge":"b{n}"}}"#)),
        (
            "container.add",
            format!(
                r#"{{"id":"a{n}","bridge":"b{m}","nic":[{{"device":"nic{n}","name":"eth0","hwAddr":"52:54:00:00:04:0{n}","mtu":1500,"queues":2,"vhostUserSocket":"{dir}/nic{n}.sock","IPAddresses":[{{"address":"10.9.0.{n}","mask":"16"}}]}}]}}"#
            ),
        ),
        ("container.del", format!(r#"{{"id":"a{n}"}}"#)),
        ("worker.set", format!(r#"{{"auto":{on},"interval":{m}0}}"#)),
        ("worker.set", r#"{"auto":false,"interval":60}"#.to_owned()),
        ("ipvs.start-daemon", r#"{"role":"master","interface":"lo"}"#.to_owned()),
        ("ipvs.stop-daemon", r#"{"role":"master"}"#.to_owned()),
    ];
    let (method, params) = &commands[dice.roll(commands.len())];
    ((*method).to_owned(), params.clone())
}

fn scratch() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::Builder::new().prefix("shunt-keep-").tempdir_in("/tmp").unwrap();
    let path = dir.path().to_path_buf();
    (dir, path)
}

#[test]
fn what_commands_make_is_saved_and_comes_back() {
    let (_dir, path) = scratch();
    for seed in 1..7_u64 {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let disk = Simulated::default();
        let mut daemon = Daemon::on(&disk, Some(""));
        let mut done = 0;
        for number in 0..400 {
            let (method, params) = command(&mut dice, &path);
            done += usize::from(daemon.ask(&method, &params).is_ok());
            daemon.assert_saved(&format!("{method} {params}"));
            if number % 8 == 0 {
                daemon.assert_describable(&format!("{method} {params}"));
            }
            if number % 100 == 99 {
                let before = daemon.configuration();
                drop(daemon);
                daemon = Daemon::on(&disk, Some(""));
                assert_eq!(daemon.problems(), [""; 0], "seed {seed}, {number}");
                assert_eq!(before.difference(&daemon.configuration()), []);
            }
        }
        assert!(done > 100, "only {done} commands did something");
        // What is shown makes the same of a fresh one.
        let shown = daemon.configuration();
        drop(daemon);
        let fresh = Daemon::on(&Simulated::default(), None);
        let text = shown.to_toml().unwrap();
        let params = serde_json::to_string(&serde_json::json!({ "text": text })).unwrap();
        fresh.says("config.apply", &params);
        assert_eq!(shown.difference(&fresh.configuration()), [], "{text}");
        fresh.assert_saved("config.apply");
        // And the way from one to the other and back leads through nothing else.
        fresh.says("config.apply", r#"{"text":"[[bridge]]\nname = \"b0\"\n"}"#);
        assert_eq!(fresh.configuration().entries.len(), 1);
        fresh.says("config.apply", &params);
        assert_eq!(shown.difference(&fresh.configuration()), []);
    }
}

#[test]
fn what_cannot_be_saved_is_undone() {
    let (_dir, path) = scratch();
    for seed in 1..4_u64 {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let disk = Simulated::default();
        let daemon = Daemon::on(&disk, Some(""));
        let mut undone = 0;
        for _ in 0..250 {
            let (method, params) = command(&mut dice, &path);
            let before = daemon.configuration();
            let full = dice.roll(2) == 0;
            let from = disk.tried() + dice.roll(3);
            disk.fail((dice.roll(3) == 0).then_some(Fault { from, count: 1 + dice.roll(4), full }));
            let answer = daemon.ask(&method, &params);
            disk.fail(None);
            if let Err(why) = &answer
                && why.contains("cannot be saved")
            {
                undone += usize::from(why.contains("it is undone"));
                assert!(!why.contains("not all"), "{why}");
                let left: Vec<_> =
                    before.difference(&daemon.configuration()).iter().map(Difference::line).collect();
                assert_eq!(left, [""; 0], "{method} {params}: {why}");
            }
            if answer.is_ok() {
                daemon.assert_saved(&format!("{method} {params}"));
            }
        }
        assert!(undone > 5, "only {undone} commands were undone");
    }
}

#[test]
fn a_route_whose_gateway_has_lost_its_network_comes_back_as_it_was() {
    let disk = Simulated::default();
    let daemon = Daemon::on(&disk, Some(""));
    daemon.says("bridge.add", r#"{"name":"b"}"#);
    daemon.says("interface.add", r#"{"name":"i","bridge":"b","address":["10.0.0.1/24"]}"#);
    daemon.says("route.add", r#"{"prefix":"default","via":"10.0.0.9"}"#);
    daemon.says("route.add", r#"{"prefix":"172.16.0.0/16","via":"10.0.0.8"}"#);
    daemon
        .says("interface.set", r#"{"name":"i","add_address":["10.1.0.1/24"],"del_address":["10.0.0.1/24"]}"#);
    let (before, routes) = (daemon.configuration(), daemon.says("route.list", "{}"));
    drop(daemon);
    let daemon = Daemon::on(&disk, Some(""));
    assert_eq!(daemon.problems(), [""; 0]);
    assert_eq!(before.difference(&daemon.configuration()), []);
    assert_eq!(daemon.says("route.list", "{}"), routes);
}

#[test]
fn what_is_set_at_the_port_of_a_nic_is_kept_with_it() {
    let (_dir, path) = scratch();
    let disk = Simulated::default();
    let daemon = Daemon::on(&disk, Some("[[bridge]]\nname = \"shunt0\"\n"));
    let nic = |device: &str, socket: &str| {
        format!(
            r#"{{"device":"{device}","name":"eth0","hwAddr":"52:54:00:00:00:01","mtu":1500,"queues":2{socket}}}"#
        )
    };
    let socket = format!(r#","vhostUserSocket":"{}/v.sock""#, path.display());
    daemon.says("container.add", &format!(r#"{{"id":"c0ffee","nic":[{}]}}"#, nic("vnic", &socket)));
    // One whose QEMU, and with that its device, is gone: it has no port, and still what was set.
    daemon.says("container.add", &format!(r#"{{"id":"dead","nic":[{}]}}"#, nic("shuntgone0", "")));
    let core = daemon.says("worker.list", "{}")[0]["core"].as_u64().unwrap();
    daemon.says(
        "port.set",
        &format!(r#"{{"name":"vnic","mtu":1400,"egress_rate":80000,"pins":[{{"queue":1,"core":{core}}}]}}"#),
    );
    let text = daemon.configuration().to_toml().unwrap() + "[[nic]]\ndevice = \"shuntgone0\"\nguard = true\n";
    let apply = |daemon: &Daemon, text: &str| {
        daemon.ask("config.apply", &serde_json::json!({ "text": text }).to_string())
    };
    apply(&daemon, &text).unwrap();
    daemon.assert_saved("config.apply");
    let (before, port) = (daemon.configuration(), daemon.says("port.show", r#"{"name":"vnic"}"#));
    assert_eq!((&port["mtu"], &port["pins"][0]["queue"]), (&Value::from(1400), &Value::from(1)));
    drop(daemon);
    let daemon = Daemon::on(&disk, None);
    assert_eq!(daemon.problems(), [""; 0]);
    assert_eq!(before.difference(&daemon.configuration()), []);
    assert_eq!(daemon.says("port.show", r#"{"name":"vnic"}"#), port);
    // A file that another switch begins with.
    let text = daemon.configuration().to_toml().unwrap();
    daemon.says("container.del", r#"{"id":"c0ffee"}"#);
    let fresh = Daemon::on(&Simulated::default(), Some(&text));
    assert_eq!(before.difference(&fresh.configuration()), []);
    // What cannot be saved is undone, there and in what the port does.
    disk.fail(None);
    fresh.disk.fail(Some(Fault { from: fresh.disk.tried() + 1, count: 1, full: false }));
    let refusal = fresh.ask("port.set", r#"{"name":"vnic","mtu":1300,"egress_rate":0}"#).unwrap_err();
    fresh.disk.fail(None);
    assert!(refusal.ends_with("it is undone"), "{refusal}");
    assert_eq!(fresh.says("port.show", r#"{"name":"vnic"}"#), port);
    // It goes with the NIC, and a queue that the NIC does not have is refused.
    let wrong = apply(&fresh, &text.replace("queue = 1", "queue = 2")).unwrap_err();
    assert!(wrong.contains("nic \"vnic\": pins: queue 2 does not exist"), "{wrong}");
    fresh.says("container.del", r#"{"id":"c0ffee"}"#);
    fresh.says("container.del", r#"{"id":"dead"}"#);
    assert_eq!(fresh.configuration().entries.len(), 1);
    fresh.assert_saved("container.del");
    assert!(fresh.ask("bridge.del", r#"{"name":"shunt0"}"#).is_ok());
}

#[test]
fn a_nic_that_cannot_be_saved_is_taken_out_of_its_guest_again() {
    let (_dir, path) = scratch();
    let disk = Simulated::default();
    let daemon = Daemon::on(&disk, Some("[[bridge]]\nname = \"shunt0\"\n"));
    let qmp = Qmp::start(&path.join("qmp.sock"));
    let monitor = qmp.path.display();
    daemon.says("container.add", &format!(r#"{{"id":"c0ffee","qmp":"{monitor}","bridge":"shunt0"}}"#));
    let empty = qmp.parts();
    let nic = format!(
        r#"{{"container":"c0ffee","interface":{{"device":"tap0","name":"eth0","IPAddresses":[{{"address":"172.16.0.3","mask":"16"}}],"hwAddr":"02:42:20:6f:a3:69","mtu":1500,"vhostUserSocket":"{}/nic.sock"}}}}"#,
        path.display()
    );
    let before = daemon.configuration();
    let mut refused = 0;
    for from in 0..6 {
        disk.fail(Some(Fault { from: disk.tried() + from, count: 1000, full: false }));
        let answer = daemon.ask("kata.add-iface", &nic);
        disk.fail(None);
        match answer {
            Err(why) => {
                refused += usize::from(why.ends_with("; it is undone"));
                assert!(why.contains("cannot be saved") && !why.contains("not all"), "{why}");
                assert_eq!(qmp.parts(), empty, "{why}");
                assert_eq!(before.difference(&daemon.configuration()), []);
                daemon.says("bridge.set", r#"{"name":"shunt0","filter":true}"#);
                daemon.says("bridge.set", r#"{"name":"shunt0","filter":false}"#);
                daemon.assert_saved("what came after a refusal");
            }
            Ok(_) => {
                assert_ne!(qmp.parts(), empty);
                daemon.assert_saved("a NIC");
                daemon.says("kata.del-iface", r#"{"container":"c0ffee","interface":{"name":"eth0"}}"#);
                assert_eq!(qmp.parts(), empty);
            }
        }
    }
    assert!(refused > 0, "nothing was refused after it was done");
}

#[test]
fn a_configuration_is_applied_wholly_or_not_at_all_and_what_stays_is_not_touched() {
    let (_dir, path) = scratch();
    let daemon = Daemon::on(&Simulated::default(), Some(""));
    let port = |name: &str| {
        format!(
            "[[port]]\nname = \"{name}\"\nbridge = \"b\"\nvhost_user = \"{}/{name}.sock\"\n",
            path.display()
        )
    };
    let interface = |name: &str, address: &str| {
        format!(
            "[[interface]]\nname = \"{name}\"\nbridge = \"b\"\nvlan = {}\naddress = [\"{address}\"]\n",
            if name == "i" { 5 } else { 6 }
        )
    };
    let apply = |text: &str| daemon.ask("config.apply", &serde_json::json!({ "text": text }).to_string());
    let base = format!(
        "[[bridge]]\nname = \"b\"\n{}{}[[dhcp]]\ninterface = \"i\"\nrange = \"10.0.0.10-10.0.0.20\"\n[[nat.masquerade]]\nsource = \"10.0.0.0/24\"\nout = \"i\"\n",
        interface("i", "10.0.0.1/24"),
        interface("j", "10.0.1.1/24")
    );
    apply(&(base.clone() + &port("one") + &port("two"))).unwrap();
    let numbers = || {
        let switch = daemon.switch.borrow();
        switch
            .ports
            .iter()
            .map(|(name, member)| (name.to_string(), std::sync::Arc::as_ptr(&member.port) as usize))
            .collect::<BTreeMap<_, _>>()
    };
    let before = numbers();
    let changes = apply(&(base.replace("10.0.0.20", "10.0.0.30") + &port("one") + &port("three"))).unwrap();
    let marks: Vec<_> = changes["changes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| format!("{} {}", one["change"].as_str().unwrap(), one["kind"].as_str().unwrap()))
        .collect();
    assert_eq!(marks, ["add port", "delete port", "change dhcp"]);
    assert_eq!(serde_json::to_value(Mark::Delete).unwrap(), "delete");
    assert_eq!(numbers()["one"], before["one"], "the port is the one that it was");
    // Two interfaces change their networks for each other's.
    let swapped =
        base.replace("10.0.0.", "10.0.9.").replace("10.0.1.", "10.0.0.").replace("10.0.9.", "10.0.1.");
    apply(&(swapped.clone() + &port("one"))).unwrap();
    assert_eq!(daemon.says("interface.show", r#"{"name":"i"}"#)["address"][0], "10.0.1.1/24");
    // A port that cannot be made has nothing changed.
    let now = daemon.configuration();
    std::fs::create_dir(path.join("bad.sock")).unwrap();
    let refusal = apply(&(base + &port("bad"))).unwrap_err();
    assert!(refusal.contains("port bad: ") && refusal.ends_with("; nothing was changed"), "{refusal}");
    assert_eq!(now.difference(&daemon.configuration()), []);
    assert_eq!(numbers()["one"], before["one"]);
    daemon.assert_saved("a refusal");
    let wrong = apply("[[bridge]]\nname = \"b\"\nageing = -1\n").unwrap_err();
    assert!(wrong.starts_with("configuration:3:10: bridge \"b\": ageing -1"), "{wrong}");
}

#[test]
fn a_file_that_is_another_one_begins_anew_and_what_was_is_kept() {
    let disk = Simulated::default();
    let file = "[[bridge]]\nname = \"b\"\n";
    let daemon = Daemon::on(&disk, Some(file));
    daemon.says("bridge.add", r#"{"name":"c"}"#);
    drop(daemon);
    // The same file, though it is written in another way.
    let daemon = Daemon::on(&disk, Some("# a comment\n[[bridge]]\nageing = 300\nname = \"b\"\n"));
    assert_eq!((daemon.configuration().entries.len(), daemon.problems().len()), (2, 0));
    drop(daemon);
    let daemon = Daemon::on(&disk, None);
    assert_eq!((daemon.configuration().entries.len(), daemon.problems().len()), (2, 0));
    // Who has saved the configuration to the file goes on as well.
    let saved = daemon.configuration().to_toml().unwrap();
    drop(daemon);
    let daemon = Daemon::on(&disk, Some(&saved));
    assert_eq!((daemon.configuration().entries.len(), daemon.problems().len()), (2, 0));
    drop(daemon);
    let daemon = Daemon::on(&disk, Some(file));
    assert_eq!(daemon.configuration().entries.len(), 1);
    assert!(daemon.problems()[0].contains("is kept as /state/state.replaced-20"), "{:?}", daemon.problems());
    daemon.assert_saved("a start");
}

#[test]
fn what_cannot_be_made_at_the_start_is_kept_and_tried_again() {
    let (_dir, path) = scratch();
    let disk = Simulated::default();
    let daemon = Daemon::on(&disk, Some(""));
    daemon.says("bridge.add", r#"{"name":"b"}"#);
    let socket = path.join("p.sock");
    daemon.says("port.add", &format!(r#"{{"name":"p","bridge":"b","vhost_user":"{}"}}"#, socket.display()));
    let before = daemon.configuration();
    drop(daemon);
    std::fs::create_dir(&socket).unwrap();
    let daemon = Daemon::on(&disk, Some(""));
    assert!(daemon.problems()[0].starts_with("port p: "), "{:?}", daemon.problems());
    assert_eq!(before.difference(&daemon.configuration()), []);
    daemon.assert_saved("a start");
    std::fs::remove_dir(&socket).unwrap();
    daemon.switch.borrow_mut().retry();
    assert_eq!(daemon.problems(), [""; 0]);
    daemon.says("port.show", r#"{"name":"p"}"#);
    daemon.assert_saved("a second try");
    // And it may be given up.
    drop(daemon);
    std::fs::create_dir(&socket).unwrap();
    let daemon = Daemon::on(&disk, Some(""));
    daemon.says("port.del", r#"{"name":"p"}"#);
    assert_eq!((daemon.problems().len(), daemon.configuration().entries.len()), (0, 1));
    daemon.assert_saved("giving up");
}

#[test]
fn a_full_disk_refuses_before_anything_is_done() {
    let disk = Simulated::default();
    let daemon = Daemon::on(&disk, Some(""));
    disk.fail(Some(Fault { from: 0, count: 1_000_000, full: true }));
    // What is reserved from the start is used up first.
    let mut refusal = None;
    for number in 0..100 {
        let name = format!("{{\"name\":\"b{number}\"}}");
        if let Err(why) = daemon.ask("bridge.add", &name) {
            refusal = Some(why);
            break;
        }
        daemon.assert_saved("a change for which there was room");
    }
    let refusal = refusal.unwrap();
    assert!(refusal.starts_with("it cannot be saved to /state/state: No space left"), "{refusal}");
    assert!(!refusal.contains("undone"), "{refusal}");
    assert!(daemon.ask("status.show", "{}").is_ok());
    disk.fail(None);
    daemon.says("bridge.add", r#"{"name":"again"}"#);
}
