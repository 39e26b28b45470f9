//! What Kata's runtime-rs is told by DAN files, done by hand: a hypervisor with the NICs of the file, a guest configured as
//! the file says.

use std::time::Duration;

use serde_json::{Value, json};
use shunt_tests::cni::Cni;
use shunt_tests::{Guest, GuestSpec, Host, NetNs, Nic, Shuntd, Web, answers, boot_all, is_root, pings};

const SOON: Duration = Duration::from_secs(20);

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("no {pointer} in {value}"))
}

/// The only NIC of a sandbox's file, as `network_info_from_dan.rs` takes it.
fn nic(shuntd: &Shuntd, sandbox: &str) -> Value {
    let file = std::fs::read(shuntd.path("dans").join(format!("{sandbox}.json"))).expect("a file");
    let file: Value = serde_json::from_slice(&file).expect("JSON");
    assert!(file["netns"].is_null(), "the hypervisor finds devices in the host's namespace: {file}");
    assert_eq!(file["devices"].as_array().map(Vec::len), Some(1));
    file["devices"][0].clone()
}

/// Does what Kata's agent does: addresses, then routes without gateway, then the others.
fn configure(guest: &Guest, nic: &Value) {
    let info = &nic["network_info"];
    for address in info["interface"]["ip_addresses"].as_array().into_iter().flatten() {
        guest.sh(&format!("ip address add {} dev eth0 nodad", address.as_str().unwrap_or_default()));
    }
    for route in info["routes"].as_array().into_iter().flatten() {
        let (dest, gateway) = (text(route, "/dest"), text(route, "/gateway"));
        let family = if dest.contains(':') { "-6" } else { "-4" };
        guest.sh(&format!("ip {family} route add {dest} via {gateway} dev eth0"));
    }
}

#[test]
fn guests_come_up_as_the_files_say() {
    if !is_root() {
        return;
    }
    // A host of its own, where TAP devices may come and go.
    let host = NetNs::new("host");
    let shuntd = Shuntd::start_within(&host);
    shuntd.network("cont", &["10.88.0.1/16", "fd88::1/64"]);
    shuntd.network("wan", &["10.0.2.15/24"]);
    let outside = shuntd.host("outside", "wan");
    outside.join("10.0.2.2/24", Some("10.0.2.15"));
    let sandboxes = ["one", "two"].map(NetNs::new);

    let mut vhost = Cni::new(&shuntd, "kata", "br-cont").within(&host);
    vhost.config["dan"] = json!(shuntd.path("dans"));
    vhost.config["attachment"] = json!("vhost-user");
    vhost.config["queues"] = json!(2);
    let [one, two] = ["one", "two"].map(GuestSpec::new);
    vhost.config["runtimeConfig"] =
        json!({"mac": one.mac(0), "portMappings": [{"hostPort": 8080, "containerPort": 80}]});
    let mut tap = Cni::new(&shuntd, "kata-tap", "br-cont").within(&host);
    tap.config["dan"] = json!(shuntd.path("dans"));
    tap.config["attachment"] = json!("host-tap");
    tap.config["mtu"] = json!(1400);
    tap.config["runtimeConfig"] = json!({"mac": two.mac(0)});
    let first = vhost.add("sandbox-one", &sandboxes[0]);
    let second = tap.add("sandbox-two", &sandboxes[1]);

    let files = ["sandbox-one", "sandbox-two"].map(|sandbox| nic(&shuntd, sandbox));
    let socket = std::path::PathBuf::from(text(&files[0], "/device/path"));
    assert_eq!(
        (text(&files[0], "/device/type"), &files[0]["device"]["queue_num"]),
        ("vhost-user", &json!(2))
    );
    assert!(!socket.exists(), "the runtime refuses a socket that exists");
    assert_eq!(text(&first, "/interfaces/0/socketPath"), socket.display().to_string());
    let device = text(&files[1], "/device/tap_name");
    assert_eq!(
        (text(&files[1], "/device/type"), &files[1]["network_info"]["interface"]["mtu"]),
        ("host-tap", &json!(1400))
    );
    host.sh(&format!("ip link show {device}"));
    assert!(!sandboxes[0].run("ip link show eth0").ok(), "nothing in the sandbox's namespace");
    for (file, result) in files.iter().zip([&first, &second]) {
        assert_eq!(file["name"], "eth0");
        assert_eq!(file["network_info"]["interface"]["ip_addresses"][0], result["ips"][0]["address"]);
    }

    for (file, spec) in files.iter().zip([&one, &two]) {
        assert_eq!(text(file, "/guest_mac"), spec.mac(0));
    }
    let [one, two] =
        boot_all([one.nic(Nic::listens(&socket).queues(2)), two.nic(Nic::tap(device)).within(&host)]);
    configure(&one, &files[0]);
    configure(&two, &files[1]);
    two.sh("ip link set eth0 mtu 1400");
    for guest in [&one, &two] {
        for target in ["10.88.0.1", "fd88::1", "10.0.2.2"] {
            answers(guest, target, SOON);
        }
    }
    assert_eq!(pings(&one, "10.88.0.3", 10, ""), 10);
    assert_eq!(one.sh("ethtool -l eth0 | awk '/Combined/ { print $2 }' | head -1"), "2");
    let server = Web::serve(&one, 80, 256);
    server.fetch_intact(&outside, "10.0.2.15:8080");
    server.fetch_intact(&two, "10.88.0.1:8080");

    assert_eq!(vhost.check("sandbox-one", &sandboxes[0], &first), Ok(Value::Null));
    assert_eq!(tap.check("sandbox-two", &sandboxes[1], &second), Ok(Value::Null));
    std::fs::remove_file(shuntd.path("dans").join("sandbox-two.json")).expect("removed");
    assert_eq!(tap.check("sandbox-two", &sandboxes[1], &second).expect_err("the file is gone")["code"], 101);

    drop((server, one, two));
    vhost.del("sandbox-one", &sandboxes[0]);
    tap.del("sandbox-two", &sandboxes[1]);
    assert_eq!(std::fs::read_dir(shuntd.path("dans")).map(Iterator::count).ok(), Some(0));
    assert!(!host.run(&format!("ip link show {device}")).ok(), "the device is gone");
    assert!(!socket.exists() && vhost.records().is_empty());
    assert_eq!(shuntd.ctl("port list").as_array().map(Vec::len), Some(1), "the outside's");
}

#[test]
fn an_operator_writes_files_by_hand() {
    if !is_root() {
        return;
    }
    let host = NetNs::new("host");
    let shuntd = Shuntd::start_within(&host);
    let directory = shuntd.path("dans");
    let directory = directory.display();
    let socket = shuntd.vhost_port("web", "--role client --mac 52:54:00:00:00:01 --queues 4");
    shuntd.vhost_port("server", "--mac 52:54:00:00:00:02");
    host.sh("ip tuntap add qtap0 mode tap && ip link set qtap0 up");
    shuntd.ctl("port add tap --bridge shunt0 --netdev qtap0");
    shuntd.ctl(&format!("dan put box web --address 10.0.3.10/24 --gateway 10.0.3.1 --route 192.0.2.0/24=10.0.3.9 --directory {directory}"));
    shuntd.ctl(&format!("dan put box tap --name eth1 --mac 52:54:00:00:00:03 --directory {directory}"));
    let shown = shuntd.ctl(&format!("dan show box --directory {directory}"));
    assert_eq!(
        shown["devices"][0]["device"],
        json!({"type": "vhost-user", "path": socket, "queue_num": 4, "queue_size": 256})
    );
    assert_eq!(shown["devices"][0]["guest_mac"], "52:54:00:00:00:01");
    let routes = &shown["devices"][0]["network_info"]["routes"];
    assert_eq!((&routes[0]["gateway"], &routes[1]["dest"]), (&json!("10.0.3.9"), &json!("0.0.0.0/0")));
    assert_eq!(text(&shown, "/devices/1/device/tap_name"), "qtap0");
    for (command, why) in [
        ("dan put box server", "--role client"),
        ("dan put box tap", "--mac"),
        ("dan put box nowhere", "does not exist"),
        ("dan put ../box web", "no sandbox's id"),
        ("dan show nobody", "does not exist"),
        ("dan del box eth7", "has no NIC"),
    ] {
        let line = format!("{command} --directory {directory}");
        let refused = shuntd.try_ctl(&line.split(' ').collect::<Vec<_>>()).expect_err(why);
        assert_eq!(refused.status, 1);
        assert!(refused.message.contains(why), "{refused:?}");
    }
    shuntd.ctl(&format!("dan del box eth0 --directory {directory}"));
    shuntd.ctl(&format!("dan del box eth1 --directory {directory}"));
    assert!(!shuntd.path("dans").join("box.json").exists());
}
