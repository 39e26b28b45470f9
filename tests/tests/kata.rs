//! Secure containers: NICs that come and go while their guests run, as the documentation of openEuler's `kata-network`
//! describes it, on QEMUs that were started by hand with a QMP socket.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use shunt_tests::{
    Guest, GuestSpec, Host, Knock, NetNs, Shuntd, Web, is_root, knock, pings, poll_for, progress,
    start_iperf, wait_for,
};

const ID: &str = "6ec7a98d1f7e4b0b9d0b0c6f5d8b3a2e6ec7a98d1f7e4b0b9d0b0c6f5d8b3a2e";
const MAC: &str = "02:42:20:6f:a3:69";
/// Emulated guests on a busy machine take their time.
const PATIENCE: Duration = Duration::from_secs(90);

/// What QEMU has of shunt's: character devices, and devices by identifier.
fn in_qemu(guest: &Guest) -> (Vec<String>, Vec<String>) {
    let names = |list: Value, key: &str| -> Vec<String> {
        let list = list.as_array().cloned().unwrap_or_default();
        let names = list.iter().filter_map(|one| one[key].as_str().map(str::to_owned));
        names.filter(|name| name.contains("shunt-")).collect()
    };
    let chardevs = names(guest.qmp("query-chardev", json!({})), "label");
    let devices = names(guest.qmp("qom-list", json!({"path": "/machine/peripheral"})), "name");
    (chardevs, devices)
}

#[track_caller]
fn nothing_left(shuntd: &Shuntd, guest: &Guest) {
    assert_eq!(in_qemu(guest), (Vec::new(), Vec::new()));
    assert_eq!(shuntd.ctl("port list"), json!([]));
    assert_eq!(shuntd.ctl("dhcp show shunt0")["reservations"], json!([]));
}

fn vhost_nic(shuntd: &Shuntd, mtu: u32, queues: u32, address: &str) -> String {
    let socket = shuntd.path("vhost-user1");
    json!({
        "device": "tap-test", "name": "eth-test", "IPAddresses": [{"address": address, "mask": "24"}],
        "hwAddr": MAC, "mtu": mtu, "vhostUserSocket": socket, "queues": queues
    })
    .to_string()
}

#[test]
fn a_nic_with_four_queue_pairs_comes_and_goes() {
    if !is_root() {
        return;
    }
    let shuntd = Shuntd::start();
    let guest = GuestSpec::new("box").cpus(4).spare_ports(2).boot();
    shuntd.container(ID, &guest, "");
    assert_eq!(shuntd.kata("list-ifaces", "6ec7", ""), Value::Null);

    let waiting = guest.await_nic(MAC, "10.0.3.1", PATIENCE);
    let start = Instant::now();
    let said = shuntd.kata_network("add-iface", "6ec7a98", &vhost_nic(&shuntd, 1400, 4, "10.0.3.77"));
    progress!("add-iface took {:.2} s", start.elapsed().as_secs_f64());
    assert_eq!((said.status, said.err.as_str()), (0, ""), "{said:?}");
    let socket = shuntd.path("vhost-user1");
    let pci = serde_json::from_str::<Value>(&said.out).unwrap()["pciAddr"].as_str().unwrap().to_owned();
    assert_eq!(
        said.out,
        format!(
            "{{\"device\":\"tap-test\",\"name\":\"eth-test\",\"IPAddresses\":[{{\"Family\":2,\"Address\":\"10.0.3.77\",\"Mask\":\"24\"}}],\
             \"mtu\":1400,\"hwAddr\":\"{MAC}\",\"pciAddr\":\"{pci}\",\"vhostUserSocket\":\"{}\",\"queues\":4}}\n",
            socket.display()
        )
    );
    assert!(pci.ends_with(".0/00"), "slot and function of the root port, slot of the device: {pci}");
    let found = waiting.wait();
    assert!(found.ok(), "{}", found.text);
    progress!("add-iface to first ping: {:.2} s", start.elapsed().as_secs_f64());

    let nic = found.text.lines().last().unwrap().to_owned();
    assert_eq!(guest.sh(&format!("ls -d /sys/class/net/{nic}/queues/rx-* | wc -l")), "4");
    let channels = guest.sh(&format!("ethtool -l {nic} | awk '/Combined/ {{ print $2 }}' | head -1"));
    assert_eq!(channels, "4");
    assert_eq!(guest.sh(&format!("cat /sys/class/net/{nic}/mtu")), "1400");
    assert!(guest.sh(&format!("ip -4 -o address show dev {nic}")).contains("10.0.3.77/24"));
    assert_eq!(
        shuntd.kata("list-ifaces", "6ec7", ""),
        json!([{"name": "eth-test", "mac": MAC, "ip": ["10.0.3.77/24"], "mtu": 1400}])
    );
    assert_eq!(shuntd.port("tap-test")["queues"], 4);

    // Unplugged while it carries a transfer.
    let host = NetNs::new("host");
    shuntd.ctl(&format!("port add host --bridge shunt0 --tap eth0 --netns {}", host.id()));
    host.up("eth0", Some("10.0.3.90/24"));
    let transfer = start_iperf(&guest, &host, "10.0.3.90", 60, "");
    let much = shunt_tests::MUCH;
    wait_for("the transfer", PATIENCE, || (shuntd.counter("tap-test", "rx", "bytes") > much).then_some(()));
    let start = Instant::now();
    let removed = shuntd.kata("del-iface", "6ec7", &vhost_nic(&shuntd, 1400, 4, "10.0.3.77"));
    assert_eq!(removed, Value::Null);
    progress!("del-iface under load took {:.2} s", start.elapsed().as_secs_f64());
    drop(transfer);
    shuntd.ctl("port del host");
    nothing_left(&shuntd, &guest);
    assert!(!guest.run(&format!("test -e /sys/class/net/{nic}")).ok(), "the guest still has it");
    // What is gone cannot be removed: the NIC as it was asked for.
    let again = shuntd.kata_network("del-iface", "6ec7", r#"{"name":"eth-test"}"#);
    assert_eq!((again.status, again.out.as_str()), (1, "{\"name\":\"eth-test\",\"linkType\":\"tap\"}\n"));
    assert_eq!(again.err.lines().count(), 1, "{again:?}");
}

#[test]
fn routes_reach_the_guest_with_its_lease() {
    let shuntd = Shuntd::start();
    let guest = GuestSpec::new("box").spare_ports(1).boot();
    shuntd.container(ID, &guest, "");
    let plug = |target: &str| {
        let waiting = guest.await_nic(MAC, target, PATIENCE);
        shuntd.kata("add-iface", "6ec7", &vhost_nic(&shuntd, 1500, 0, "10.0.3.77"));
        let found = waiting.wait();
        assert!(found.ok(), "{}", found.text);
    };
    plug("10.0.3.1");
    assert!(!guest.sh("ip route").contains("default"), "no default route but by add-route");
    // Heard of at the next lease.
    let routes = r#"[{"dest":"default","gateway":"10.0.3.1","device":"eth-test"},
                     {"dest":"177.17.0.0/24","gateway":"10.0.3.9","device":"eth-test"},
                     {"dest":"10.77.0.0/16","device":"eth-test"}]"#;
    let added = shuntd.kata("add-route", "6ec7", routes);
    assert_eq!(added, serde_json::from_str::<Value>(&routes.replace("\"gateway\":\"\",", "")).unwrap());
    guest.sh(
        "ip -4 address flush dev eth0; busybox udhcpc -i eth0 -n -q -s /tmp/lease.sh -O mtu -O staticroutes",
    );
    let table = guest.sh("ip route");
    for line in
        ["default via 10.0.3.1 dev eth0", "177.17.0.0/24 via 10.0.3.9 dev eth0", "10.77.0.0/16 dev eth0"]
    {
        assert!(table.contains(line), "{line} is not in\n{table}");
    }
    assert_eq!(shuntd.kata("list-routes", "6ec7", "").as_array().unwrap().len(), 4, "with the connected one");
    assert_eq!(pings(&guest, "10.0.3.1", 5, ""), 5);
}

/// A TAP whose descriptors QEMU gets, or which it opens by name, in a namespace of the test's own.
#[test]
fn a_nic_on_a_tap_is_made_and_vanishes() {
    if !is_root() {
        return;
    }
    let netns = NetNs::new("kata");
    let mut shuntd = Shuntd::start_within(&netns);
    let guest = GuestSpec::new("box").cpus(2).spare_ports(1).within(&netns).boot();
    let pc = GuestSpec::new("old").machine("pc").within(&netns).boot();
    for (guest, options, queues) in [(&guest, "", 2), (&guest, "--tap name", 0), (&pc, "--tap descriptor", 0)]
    {
        shuntd.container(ID, guest, options);
        let nic = json!({
            "device": "tap_test", "name": "eth-test", "IPAddresses": [{"address": "10.0.3.78", "mask": 24}],
            "hwAddr": MAC, "mtu": 1500, "queues": queues
        });
        assert!(!netns.ip("link").contains("tap_test"));
        let waiting = guest.await_nic(MAC, "10.0.3.1", PATIENCE);
        let start = Instant::now();
        let added = shuntd.kata("add-iface", ID, &nic.to_string());
        assert!(added["pciAddr"].is_string(), "{added}");
        let found = waiting.wait();
        assert!(found.ok(), "{options}: {}", found.text);
        progress!("{options} add-iface to first ping: {:.2} s", start.elapsed().as_secs_f64());
        assert!(netns.ip("link").contains("tap_test"));
        assert_eq!(shuntd.port("tap_test")["kind"], "netdev");
        let nic = found.text.lines().last().unwrap().to_owned();
        let rings = if queues == 0 { "1" } else { "2" };
        assert_eq!(guest.sh(&format!("ls -d /sys/class/net/{nic}/queues/rx-* | wc -l")), rings);
        if guest.name() == "box" {
            // Its only root port is taken: what was begun for a second NIC is undone.
            let second = r#"{"device":"tap_two","name":"eth2","hwAddr":"02:42:20:6f:a3:70","mtu":1500}"#;
            let said = shuntd.kata_network("add-iface", ID, second);
            assert_eq!((said.status, said.out.as_str()), (1, "null\n"));
            assert!(said.err.contains("no free PCI slot"), "{said:?}");
            assert!(!netns.ip("link").contains("tap_two"), "{options}");
            assert_eq!(in_qemu(guest).1, ["shunt-nic-eth-test"]);
        }
        // It was made by a daemon that is no more, and is this one's to remove.
        shuntd.kill();
        shuntd.launch();
        assert_eq!(shuntd.port("tap_test")["kind"], "netdev");
        assert_eq!(shuntd.kata("del-iface", ID, r#"{"name":"eth-test"}"#), Value::Null);
        wait_for("the TAP to vanish", PATIENCE, || (!netns.ip("link").contains("tap_test")).then_some(()));
        nothing_left(&shuntd, guest);
        shuntd.ctl(&format!("container del {ID}"));
    }
}

#[test]
fn qemu_may_listen() {
    let shuntd = Shuntd::start();
    let guest = GuestSpec::new("box").spare_ports(1).boot();
    shuntd.container(ID, &guest, "--role client");
    let waiting = guest.await_nic(MAC, "10.0.3.1", PATIENCE);
    shuntd.kata("add-iface", "6", &vhost_nic(&shuntd, 1500, 0, "10.0.3.77"));
    let found = waiting.wait();
    assert!(found.ok(), "{}", found.text);
    // Forgotten with everything that belongs to it.
    shuntd.kata("add-route", "6", r#"{"dest":"default","gateway":"10.0.3.1","device":"eth-test"}"#);
    shuntd.said(
        &shuntd.kata_runtime(),
        &["kata-ipvs", "ipvsadm", "--parameters", "-A -t 10.9.9.9:80 -s rr", "6"],
        b"",
    );
    shuntd.ctl("container del 6");
    assert_eq!(shuntd.ctl("container list"), json!([]));
    assert_eq!(shuntd.ctl("ipvs tables").as_array().unwrap().len(), 1);
    nothing_left(&shuntd, &guest);
}

/// File descriptors, threads and resident memory of a process.
fn held(pid: u32) -> (usize, usize, u64) {
    let count = |what: &str| std::fs::read_dir(format!("/proc/{pid}/{what}")).map_or(0, Iterator::count);
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = resident.and_then(|text| text.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0);
    (count("fd"), count("task"), kib)
}

#[test]
fn sixty_four_nics_come_and_go_without_a_trace() {
    const PORTS: u64 = 4;
    const ROUNDS: u64 = 16;
    let shuntd = Shuntd::start();
    let guest = GuestSpec::new("box").spare_ports(PORTS as u32).boot();
    shuntd.container(ID, &guest, "");
    let (daemon, qemu) = (shuntd.pid().unwrap(), guest.pid().unwrap());
    let mut before = None;
    for round in 0..ROUNDS {
        for n in 0..PORTS {
            let nic = json!({
                "device": format!("tap{n}"), "name": format!("eth{n}"),
                "IPAddresses": [{"address": format!("10.0.3.{}", 50 + n), "mask": "24"}],
                "hwAddr": format!("02:42:20:6f:a3:{n:02x}"), "mtu": 1500,
                "vhostUserSocket": shuntd.path(&format!("v{n}.sock")), "queues": 1 + n
            });
            shuntd.kata("add-iface", ID, &nic.to_string());
        }
        assert_eq!(shuntd.kata("list-ifaces", ID, "").as_array().unwrap().len() as u64, PORTS);
        for n in (0..PORTS).rev() {
            shuntd.kata("del-iface", ID, &format!("{{\"name\":\"eth{n}\"}}"));
        }
        nothing_left(&shuntd, &guest);
        // The first rounds fill caches, among them those of the allocator.
        if round == 3 {
            // When the last command's connections are closed: two looks that agree.
            before = Some(wait_for("everything to be closed", PATIENCE, || {
                let [one, other] = [(); 2].map(|()| (held(daemon), held(qemu)));
                ((one.0.0, one.1.0) == (other.0.0, other.1.0)).then_some(other)
            }));
        }
    }
    let ((fds, threads, memory), (qemu_fds, ..)) = before.unwrap();
    // What is compared below; connections of the last command are closed a little later than it ends.
    let gone = || held(daemon).0 <= fds && held(daemon).1 <= threads && held(qemu).0 <= qemu_fds;
    let _ = poll_for(PATIENCE, || gone().then_some(()));
    let (after, qemu_after) = (held(daemon), held(qemu));
    progress!(
        "after {} NICs: daemon {fds} -> {} descriptors, {threads} -> {} threads, {memory} -> {} KiB; QEMU {qemu_fds} -> {} descriptors",
        PORTS * ROUNDS,
        after.0,
        after.1,
        after.2,
        qemu_after.0
    );
    assert!(after.0 <= fds && after.1 <= threads, "descriptors or threads are left");
    assert!(after.2 < memory + 2048, "{memory} KiB became {}", after.2);
    assert!(qemu_after.0 <= qemu_fds, "QEMU's descriptors");
}

#[test]
fn twenty_thousand_rules_are_restored_beside_anothers_traffic() {
    if !is_root() {
        return;
    }
    let shuntd = Shuntd::start();
    shuntd.ctl("policy default forward accept");
    shuntd.network("servers", &["10.0.2.1/24"]);
    let real = shuntd.host("real", "servers");
    real.join("10.0.2.11/24", Some("10.0.2.1"));
    let web = Web::serve(&real, 80, 256);
    let [a, b] =
        shunt_tests::boot_all([GuestSpec::new("a").spare_ports(1), GuestSpec::new("b").spare_ports(1)]);
    for (id, guest, last) in [("aaaa", &a, 11), ("bbbb", &b, 12)] {
        shuntd.container(id, guest, "");
        let mac = format!("02:42:20:6f:a3:{last:02x}");
        let waiting = guest.await_nic(&mac, "10.0.3.1", PATIENCE);
        let nic = json!({
            "device": id, "name": "eth0", "IPAddresses": [{"address": format!("10.0.3.{last}"), "mask": "24"}],
            "hwAddr": mac, "mtu": 1500, "vhostUserSocket": shuntd.path(id)
        });
        shuntd.kata("add-iface", id, &nic.to_string());
        let found = waiting.wait();
        assert!(found.ok(), "{}", found.text);
        guest.sh("ip route add 10.9.9.9 via 10.0.3.1");
    }
    let kata_ipvs = |id: &str, words: &[&str], input: &[u8]| {
        shuntd.said(&shuntd.kata_runtime(), &[&["kata-ipvs", "ipvsadm"], words, &[id]].concat(), input)
    };
    let done =
        |said: shunt_tests::ipvsadm::Said| assert_eq!((said.status, said.err.as_str()), (0, ""), "{said:?}");
    done(kata_ipvs("aaaa", &["--parameters", "-A -t 10.9.9.9:80 -s rr"], b""));
    done(kata_ipvs("aaaa", &["--parameters", "-a -t 10.9.9.9:80 -r 10.0.2.11:80"], b""));
    web.fetch_intact(&a, "10.9.9.9:80");
    assert_ne!(knock(&b, "10.9.9.9", 80), Knock::Open, "a's services are for what a sends");
    let mut rules = String::new();
    for service in 0..5000u32 {
        let (high, low) = (service / 250, 1 + service % 250);
        rules += &format!("-A -t 10.10.{high}.{low}:100 -s rr -p  3000\n");
        for server in 1..=3 {
            rules += &format!("-a -t 10.10.{high}.{low}:100 -r  172.16.{server}.{low}:80  -m\n");
        }
    }
    let flow = start_iperf(&a, &b, "10.0.3.12", 12, "");
    let start = Instant::now();
    done(kata_ipvs("bbbb", &["--restore", "-"], rules.as_bytes()));
    progress!("20,000 rules restored in {:.2} s", start.elapsed().as_secs_f64());
    let result = flow.finish();
    assert!(result.bytes > shunt_tests::MUCH, "{result:?}");
    assert_eq!(shuntd.ctl("container show bbbb")["ipvs_rules"], 20_000);
    let more = kata_ipvs("bbbb", &["--parameters", "-A -t 10.99.0.1:80 -s rr"], b"");
    assert_eq!(more.status, 1, "{more:?}");
    let over = kata_ipvs("bbbb", &["--restore", "-"], rules.as_bytes());
    assert!(over.status == 1 && over.err.contains("clear them first"), "{over:?}");
    done(kata_ipvs("bbbb", &["--restore", "-", "--replace"], rules.as_bytes()));
    web.fetch_intact(&a, "10.9.9.9:80");
    let cleaned = shuntd.said(
        &shuntd.kata_runtime(),
        &["kata-ipvs", "cleanup", "--parameters", "--orig-dst 10.0.2.11 --protonum tcp", "aaaa"],
        b"",
    );
    assert!(
        cleaned.out.ends_with(" flow entries have been deleted\n") && !cleaned.out.starts_with('0'),
        "{cleaned:?}"
    );
    assert_eq!(shuntd.ctl("container show aaaa")["ipvs_rules"], 2);
    let list = kata_ipvs("aaaa", &["--parameters", "--list -n"], b"");
    assert!(list.out.contains("TCP  10.9.9.9:80 rr\n  -> 10.0.2.11:80                 Masq"), "{}", list.out);
}

/// The documentation's examples, one after the other, with its JSON. What only QEMU knows is taken from its answer.
#[test]
fn the_documentations_examples_give_its_answers() {
    if !is_root() {
        return;
    }
    let netns = NetNs::new("kata");
    let shuntd = Shuntd::start_within(&netns);
    let guest = GuestSpec::new("box").spare_ports(3).within(&netns).boot();
    shuntd.container(ID, &guest, "");
    let socket = shuntd.path("vhost-user1").display().to_string();
    let documented = "/usr/local/var/run/openvswitch/vhost-user1";
    let run = |verb: &str, input: &str| {
        let said = shuntd.kata_network(verb, "6ec7a98", &input.replace(documented, &socket));
        (said.status, said.out.replace(&socket, documented))
    };
    let failing = |verb: &str, input: &str| {
        let said = shuntd.kata_network(verb, "6ec7a98", input);
        assert_eq!((said.status, said.err.lines().count()), (1, 1), "{said:?}");
        said.out
    };
    let pci = |out: &str| serde_json::from_str::<Value>(out).unwrap()["pciAddr"].as_str().unwrap().to_owned();

    assert_eq!(run("list-ifaces", ""), (0, "null\n".to_owned()));
    let first = r#"{"device":"tap-test","name":"eth-test","IPAddresses":[{"address":"172.16.0.3","mask":"16"}],"hwAddr":"02:42:20:6f:a3:69","mtu":1500,"vhostUserSocket":"/usr/local/var/run/openvswitch/vhost-user1","queues":5}"#;
    let (status, out) = run("add-iface", first);
    let place = pci(&out);
    let answer = r#"{"device":"tap-test","name":"eth-test","IPAddresses":[{"Family":2,"Address":"172.16.0.3","Mask":"16"}],"mtu":1500,"hwAddr":"02:42:20:6f:a3:69","pciAddr":"PLACE","vhostUserSocket":"/usr/local/var/run/openvswitch/vhost-user1","queues":5}"#;
    assert_eq!((status, out), (0, answer.replace("PLACE", &place) + "\n"));
    assert_eq!(failing("add-iface", first), "null\n");
    assert_eq!(
        run("list-ifaces", ""),
        (
            0,
            r#"[{"name":"eth-test","mac":"02:42:20:6f:a3:69","ip":["172.16.0.3/16"],"mtu":1500}]"#.to_owned()
                + "\n"
        )
    );
    let second = r#"{"device":"tap_test","name":"eth-tap","IPAddresses":[{"address":"173.85.100.1","mask":"24"}],"mtu":1500,"hwAddr":"02:42:20:6e:03:01"}"#;
    let (status, out) = run("add-iface", second);
    let answer = r#"{"device":"tap_test","name":"eth-tap","IPAddresses":[{"Family":2,"Address":"173.85.100.1","Mask":"24"}],"mtu":1500,"hwAddr":"02:42:20:6e:03:01","pciAddr":"PLACE"}"#;
    assert_eq!((status, out.clone()), (0, answer.replace("PLACE", &pci(&out)) + "\n"));
    let third = r#"{"device":"tapname_fun_012","name":"netport_test_1","IPAddresses":[{"Address":"177.17.0.1","Mask":"8"}],"mtu":1500,"hwAddr":"02:42:20:6e:a2:59"}"#;
    assert_eq!(run("add-iface", third).0, 0);

    let default = r#"{"dest":"default","gateway":"172.16.0.1","device":"eth-test"}"#;
    let network = r#"{"dest":"177.17.0.0/24","gateway":"177.17.25.1","device":"netport_test_1"}"#;
    assert_eq!(run("add-route", default), (0, format!("[{default}]\n")));
    assert_eq!(run("add-route", network), (0, format!("[{network}]\n")));
    assert_eq!(failing("add-route", network), "null\n");
    let (status, routes) = run("list-routes", "");
    let connected = r#"{"dest":"172.16.0.0/16","device":"eth-test"}"#;
    assert!(status == 0 && routes.contains(connected) && routes.contains(network), "{routes}");
    assert_eq!(run("del-route", network), (0, format!("[{network}]\n")));
    assert_eq!(failing("del-route", network), "null\n");

    // A guest whose processors stand still lets go of nothing.
    guest.qmp("stop", json!({}));
    let left = r#"{"device":"tapname_fun_012","name":"netport_test_1","IPAddresses":[{"Family":0,"Address":"177.17.0.1","Mask":"8"}],"mtu":1500,"hwAddr":"02:42:20:6e:a2:59","linkType":"tap"}"#;
    assert_eq!(failing("del-iface", third), format!("{left}\n"));
    guest.qmp("cont", json!({}));
    for nic in [first, second, third] {
        assert_eq!(run("del-iface", nic), (0, "null\n".to_owned()));
    }
    assert_eq!(run("list-ifaces", ""), (0, "null\n".to_owned()));
    nothing_left(&shuntd, &guest);
}
