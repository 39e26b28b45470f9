//! The CNI plugin with real namespaces: what runtimes rely on, and what is left when things go wrong.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use shunt_tests::cni::{Cni, address};
use shunt_tests::{
    Host, Knock, NetNs, Shuntd, Web, answers, iperf, is_root, knock, pings, pings_once, seen_as, wait_for,
};

const SOON: Duration = Duration::from_secs(15);

/// A daemon with a network for containers and a host beyond it.
fn network() -> (Shuntd, NetNs) {
    let shuntd = Shuntd::start();
    shuntd.network("cont", &["10.88.0.1/16", "fd88::1/64"]);
    shuntd.network("wan", &["10.0.2.15/24"]);
    let outside = shuntd.host("outside", "wan");
    outside.join("10.0.2.2/24", None);
    answers(&outside, "10.0.2.15", SOON);
    (shuntd, outside)
}

/// What a failed or undone attachment must not change.
fn state(shuntd: &Shuntd, cni: &Cni<'_>) -> (Vec<String>, Value, Value, usize) {
    let names = |value: Value| {
        value.as_array().into_iter().flatten().map(|port| port["name"].to_string()).collect::<Vec<_>>()
    };
    let reservations =
        shuntd.try_ctl(&["dhcp", "show", "cont"]).map_or(Value::Null, |dhcp| dhcp["reservations"].clone());
    (names(shuntd.ctl("port list")), shuntd.ctl("nat list"), reservations, cni.records().len())
}

#[test]
fn containers_are_connected_published_checked_and_disconnected() {
    if !is_root() {
        return;
    }
    let (shuntd, outside) = network();
    let mut cni = Cni::new(&shuntd, "pods", "br-cont");
    cni.config["ipMasq"] = json!(true);
    let before = state(&shuntd, &cni);
    let [web, other] = ["web", "other"].map(NetNs::new);

    cni.config["runtimeConfig"] = json!({"portMappings": [
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 8081, "containerPort": 80, "protocol": "TCP", "hostIP": "10.0.2.15"}
    ]});
    let first = cni.add("web-0123456789abcdef", &web);
    cni.config.as_object_mut().map(|map| map.remove("runtimeConfig"));
    let second = cni.add("other-0123456789abcdef", &other);

    // What is told is so.
    assert_eq!(first["cniVersion"], "1.1.0");
    assert_eq!(
        (first["ips"][0]["address"].as_str(), second["ips"][0]["address"].as_str()),
        (Some("10.88.0.2/16"), Some("10.88.0.3/16"))
    );
    assert_eq!(
        (first["ips"][1]["address"].as_str(), first["ips"][1]["gateway"].as_str()),
        (Some("fd88::2/64"), Some("fd88::1"))
    );
    assert_eq!(
        first["routes"],
        json!([{"dst": "0.0.0.0/0", "gw": "10.88.0.1"}, {"dst": "::/0", "gw": "fd88::1"}])
    );
    let interface = &first["interfaces"][0];
    assert_eq!(
        (interface["name"].as_str(), interface["sandbox"].as_str()),
        (Some("eth0"), Some(web.path().as_str()))
    );
    assert_eq!(interface["mac"].as_str(), Some(web.mac().as_str()));
    assert_eq!(interface["mtu"], 1500);

    // And works.
    for target in ["10.88.0.1", "10.88.0.3", "fd88::1", "fd88::3", "10.0.2.2"] {
        answers(&web, target, SOON);
    }
    assert_eq!(pings(&other, "10.88.0.2", 5, ""), 5);
    let elsewhere = Web::serve(&outside, 80, 64);
    elsewhere.fetch_intact(&web, "10.0.2.2:80");
    assert_eq!(seen_as(&web, "10.0.2.2:80").as_deref(), Ok("10.0.2.15"), "masqueraded");
    let server = Web::serve(&web, 80, 64);
    for (client, at) in [
        (&outside, "10.0.2.15:8080"),
        (&outside, "10.0.2.15:8081"),
        (&other, "10.88.0.1:8080"),
        (&other, "[fd88::1]:8080"),
    ] {
        server.fetch_intact(client, at);
    }
    assert_eq!(seen_as(&outside, "10.0.2.15:8080").as_deref(), Ok("10.0.2.2"), "callers keep their address");

    // Nobody sends in another's name.
    web.ip("address add 10.88.0.99/16 dev eth0");
    assert_eq!(pings_once(&web, "10.88.0.3", 2, "-I 10.88.0.99"), 0);
    web.ip("address del 10.88.0.99/16 dev eth0");

    // CHECK sees what is missing.
    assert_eq!(cni.check("other-0123456789abcdef", &other, &second), Ok(Value::Null));
    let unchecked = |cni: &Cni<'_>, why: &str| {
        let error = cni.check("other-0123456789abcdef", &other, &second).expect_err(why);
        assert!(error["details"].as_str().is_some_and(|text| text.contains(why)), "{error}");
    };
    other.ip("address del 10.88.0.3/16 dev eth0");
    unchecked(&cni, "10.88.0.3/16");
    other.ip("address add 10.88.0.3/16 dev eth0");
    unchecked(&cni, "0.0.0.0/0");
    other.ip("route add default via 10.88.0.1");
    assert_eq!(cni.check("other-0123456789abcdef", &other, &second), Ok(Value::Null));
    other.ip("link set eth0 down");
    unchecked(&cni, "down");

    // A second time the same is refused; DEL is not, however often.
    let again = cni.try_add("web-0123456789abcdef", &web).expect_err("attached already");
    assert_eq!(again["code"], 4, "the device is there: {again}");
    for _ in 0..2 {
        cni.del("web-0123456789abcdef", &web);
        cni.del("other-0123456789abcdef", &other);
    }
    assert_eq!(state(&shuntd, &cni), before);
    assert!(!web.run("ip link show eth0").ok(), "the device is gone");
    assert_eq!(knock(&outside, "10.0.2.15", 8080), Knock::Refused);

    // An address rests before it is given again.
    let third = cni.add("third", &web);
    assert_eq!(address(&third, 0), "10.88.0.4");
    drop(web);
    cni.call("DEL", "third", "", &cni.config).expect("without a namespace, too");
    assert_eq!(state(&shuntd, &cni), before);
}

#[test]
fn an_add_that_fails_leaves_nothing() {
    if !is_root() {
        return;
    }
    let (shuntd, _outside) = network();
    shuntd.ctl("dhcp set cont --range 10.88.0.2-10.88.0.20");
    let mut cni = Cni::new(&shuntd, "pods", "br-cont");
    let before = state(&shuntd, &cni);
    let box1 = NetNs::new("box1");
    let good = cni.config.clone();
    for (change, code, why) in [
        (
            json!({"runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": 80, "hostIP": "127.0.0.1"}]}}),
            100,
            "127.0.0.1",
        ),
        (json!({"mtu": 10_000}), 100, "mtu 10000 is out of range"),
        (json!({"bridge": "nowhere"}), 7, "nowhere"),
        (json!({"bridge": "nowhere", "ipam": {}}), 100, "nowhere"),
        (json!({"runtimeConfig": {"ips": ["192.0.2.1"]}}), 7, "192.0.2.1"),
        (json!({"runtimeConfig": {"ips": ["10.88.0.1"]}}), 7, "taken"),
        (json!({"runtimeConfig": {"bandwidth": {"ingressRate": 1}}}), 100, "ingress_rate 1"),
        (
            json!({"ipam": {"type": "shunt", "routes": [{"dst": "192.0.2.0/24", "gw": "172.16.0.1"}]}}),
            5,
            "172.16.0.1",
        ),
        (json!({"ipam": {"type": "no-such-plugin"}}), 7, "no-such-plugin"),
    ] {
        cni.config = good.clone();
        for (key, value) in change.as_object().into_iter().flatten() {
            cni.config[key] = value.clone();
        }
        let error = cni.try_add("box1", &box1).expect_err(why);
        assert_eq!(error["code"], code, "{error}");
        assert!(error.to_string().contains(why), "{error}");
        assert_eq!(state(&shuntd, &cni), before, "{why}");
        assert!(!box1.run("ip link show eth0").ok(), "{why}");
    }
    // And afterwards it works, with the address reserved at the DHCP server.
    cni.config = good;
    let result = cni.add("box1", &box1);
    let reservations = shuntd.ctl("dhcp show cont")["reservations"].clone();
    assert_eq!(reservations[0]["address"].as_str(), Some(address(&result, 0).as_str()), "{reservations}");
    cni.del("box1", &box1);
    assert_eq!(state(&shuntd, &cni), before);
}

#[test]
fn whenever_the_plugin_is_killed_del_cleans_up() {
    if !is_root() {
        return;
    }
    let (shuntd, _outside) = network();
    shuntd.ctl("dhcp set cont --range 10.88.0.2-10.88.0.200");
    let mut cni = Cni::new(&shuntd, "pods", "br-cont");
    cni.config["ipMasq"] = json!(true);
    cni.config["runtimeConfig"] = json!({"portMappings": [{"hostPort": 8080, "containerPort": 80}]});
    let before = state(&shuntd, &cni);
    let netns = NetNs::new("victim");
    let mut finished = 0;
    for round in 0..40_u64 {
        let mut child = cni.start("ADD", "victim", &netns.path(), &cni.config, "victim.out");
        // Later and later, until it is done before it is killed: no moment is left out for long.
        std::thread::sleep(Duration::from_micros(round * 1500));
        let done = child.try_wait().ok().flatten().is_some_and(|status| status.success());
        finished += u32::from(done);
        let _ = child.kill();
        let _ = child.wait();
        cni.del("victim", &netns);
        // shuntd may still be at what it was asked when its client was killed.
        wait_for("nothing to be left", SOON, || {
            let same = state(&shuntd, &cni) == before;
            if !same {
                cni.del("victim", &netns);
            }
            same.then_some(())
        });
    }
    assert!(finished < 40, "it was never killed in the midst");
    cni.add("victim", &netns);
    cni.del("victim", &netns);
}

#[test]
fn many_at_once_get_addresses_of_their_own_and_gc_finds_the_stale() {
    if !is_root() {
        return;
    }
    let (shuntd, _outside) = network();
    let cni = Cni::new(&shuntd, "pods", "br-cont");
    let elsewhere = Cni::new(&shuntd, "others", "br-cont");
    let spaces: Vec<NetNs> = (0..12).map(|i| NetNs::new(&format!("n{i}"))).collect();
    let results: Vec<Value> = std::thread::scope(|scope| {
        let calls: Vec<_> = spaces
            .iter()
            .enumerate()
            .map(|(i, netns)| {
                let network = if i == 11 { &elsewhere } else { &cni };
                scope.spawn(move || network.add(&format!("box{i}"), netns))
            })
            .collect();
        calls.into_iter().map(|call| call.join().expect("added")).collect()
    });
    let addresses: BTreeSet<String> = results.iter().map(|result| address(result, 0)).collect();
    assert_eq!(addresses.len(), 12);
    answers(&spaces[0], &address(&results[11], 0), SOON);

    assert_eq!(cni.records().len(), 12);
    assert_eq!(cni.gc(&["box0", "box1"]), Ok(Value::Null));
    let names: Vec<String> =
        cni.records().iter().map(|path| std::fs::read_to_string(path).unwrap_or_default()).collect();
    assert_eq!(names.len(), 3, "box0, box1, and the other network's");
    answers(&spaces[0], &address(&results[1], 0), SOON);
    answers(&spaces[0], &address(&results[11], 0), SOON);
    assert_eq!(shuntd.ctl("port list").as_array().map(Vec::len), Some(4), "theirs, and the outside's");
    assert_eq!(cni.call("GC", "", "", &cni.config), Ok(Value::Null), "nobody says which are valid");
    assert_eq!(cni.records().len(), 3);
    assert_eq!(cni.gc(&[]), Ok(Value::Null));
    assert_eq!(cni.records().len(), 1);
}

#[test]
fn answers_are_to_the_letter() {
    if !is_root() {
        return;
    }
    let (mut shuntd, _outside) = network();
    {
        let cni = Cni::new(&shuntd, "pods", "br-cont");
        let call = |command: &str, config: &Value| cni.call(command, "box", "/nowhere", config);
        let version = call("VERSION", &json!({"cniVersion": "0.4.0"}));
        let spoken = json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
        assert_eq!(version, Ok(json!({"cniVersion": "0.4.0", "supportedVersions": spoken})));
        assert_eq!(call("STATUS", &cni.config), Ok(Value::Null));
        let code = |command: &str, change: &dyn Fn(&mut Value)| {
            let mut config = cni.config.clone();
            change(&mut config);
            let error = call(command, &config).expect_err(command);
            assert!(error["msg"].is_string() && error["cniVersion"].is_string(), "{error}");
            error["code"].as_u64()
        };
        assert_eq!(code("ADD", &|c| c["cniVersion"] = json!("2.0.0")), Some(1));
        assert_eq!(code("ADD", &|c| c["colour"] = json!("red")), Some(2));
        assert_eq!(code("CHECK", &|c| c["prevResult"] = json!({})), Some(3));
        assert_eq!(code("ADD", &|_| ()), Some(4), "/nowhere is no namespace");
        assert_eq!(code("FROBNICATE", &|_| ()), Some(4));
        assert_eq!(code("ADD", &|c| *c = json!([])), Some(6));
        assert_eq!(code("CHECK", &|_| ()), Some(7), "without prevResult");
        assert_eq!(code("CHECK", &|c| c["cniVersion"] = json!("0.3.1")), Some(1));
        assert_eq!(code("GC", &|c| c["cniVersion"] = json!("1.0.0")), Some(1));
        assert_eq!(code("STATUS", &|c| c["bridge"] = json!("nowhere")), Some(50));
        assert_eq!(code("STATUS", &|c| c["ipam"]["ranges"] = json!(["10.88.0.1"])), Some(50), "none is left");
        let own = cni.call("ADD", "box", "/proc/self/ns/net", &cni.config).expect_err("our own");
        assert_eq!(own["code"], 4);
    }
    shuntd.kill();
    let cni = Cni::new(&shuntd, "pods", "br-cont");
    let netns = NetNs::new("box");
    assert_eq!(cni.try_add("box", &netns).expect_err("no daemon")["code"], 11);
    assert_eq!(cni.call("STATUS", "", "", &cni.config).expect_err("no daemon")["code"], 51);
    assert_eq!(cni.call("DEL", "box", "", &cni.config), Ok(Value::Null), "nothing is known of it");
}

#[test]
fn other_plugins_give_addresses_in_every_version() {
    if !is_root() {
        return;
    }
    let (shuntd, _outside) = network();
    let mut cni = Cni::new(&shuntd, "legacy", "br-cont");
    cni.config["ipam"] = json!({
        "type": "host-local", "dataDir": shuntd.path("host-local"),
        "ranges": [[{"subnet": "10.88.0.0/16", "rangeStart": "10.88.7.2", "gateway": "10.88.0.1"}]],
        "routes": [{"dst": "0.0.0.0/0"}]
    });
    cni.config["dns"] = json!({"nameservers": ["10.88.0.1"]});
    for (expected, version) in (2..).zip(["0.3.0", "0.3.1", "0.4.0", "1.0.0"]) {
        cni.config["cniVersion"] = json!(version);
        let netns = NetNs::new("box");
        let result = cni.add("box", &netns);
        let mut ip =
            json!({"address": format!("10.88.7.{expected}/16"), "gateway": "10.88.0.1", "interface": 0});
        if version < "1.0.0" {
            ip["version"] = json!("4");
        }
        assert_eq!((&result["cniVersion"], &result["ips"]), (&json!(version), &json!([ip])));
        assert_eq!((&result["routes"], &result["dns"]), (&json!([{"dst": "0.0.0.0/0"}]), &cni.config["dns"]));
        assert_eq!(result["interfaces"][0]["mtu"], Value::Null, "not before 1.1.0");
        answers(&netns, "10.88.0.1", SOON);
        if version >= "0.4.0" {
            assert_eq!(cni.check("box", &netns, &result), Ok(Value::Null));
        }
        cni.del("box", &netns);
        cni.del("box", &netns);
    }
    // What the other plugin says when it cannot is passed on, and nothing stays.
    cni.config["ipam"]["ranges"] = json!([[{"subnet": "10.88.0.0/33"}]]);
    let netns = NetNs::new("box");
    let error = cni.try_add("box", &netns).expect_err("no such network");
    assert!(error["msg"].as_str().is_some_and(|msg| msg.contains("host-local")), "{error}");
    assert!(cni.records().is_empty());
}

#[test]
fn bandwidth_is_what_the_runtime_says() {
    if !is_root() {
        return;
    }
    let (shuntd, outside) = network();
    let mut cni = Cni::new(&shuntd, "pods", "br-cont");
    cni.config["runtimeConfig"] = json!({"bandwidth": {
        "ingressRate": 20_000_000, "ingressBurst": 2_000_000, "egressRate": 10_000_000, "egressBurst": 2_000_000
    }});
    let netns = NetNs::new("box");
    let result = cni.add("box", &netns);
    assert_eq!(cni.check("box", &netns, &result), Ok(Value::Null));
    outside.ip("route add 10.88.0.0/16 via 10.0.2.15");
    answers(&netns, "10.0.2.2", SOON);
    let port = shuntd.ctl("port list")[0]["name"].as_str().unwrap_or_default().to_owned();

    // The share of the limit that passes: never too much; too little once or twice if the machine pauses for longer than
    // the burst bridges, and always if the limit is wrong.
    let assert_share = |options: &str, seconds, limit: f64, least: f64, most: f64| {
        for last in [false, false, true] {
            let measured = iperf(&netns, &outside, "10.0.2.2", seconds, options);
            let share = measured.bits_per_second / limit;
            assert!(share < most, "{options}: {measured:?}");
            if share >= least {
                break;
            }
            assert!(!last, "{options}: {measured:?}");
        }
    };
    // Datagrams, three times as many as may pass: the rest is dropped and counted. Payload without headers, and with the
    // burst at the beginning.
    for (options, direction, limit) in [("-u -b 60M -R", "tx", 20e6), ("-u -b 30M", "rx", 10e6)] {
        assert_share(options, 4, limit, 0.85, 1.25);
        assert!(shuntd.drops(&port, direction, "rate_limit") > 1000);
    }
    // TCP finds its way below the limit, with a burst that bridges its silence after a loss.
    shuntd.ctl(&format!("port set {port} --ingress-rate 20M --egress-rate 10M"));
    for (options, limit) in [("-R", 20e6), ("", 10e6)] {
        assert_share(options, 6, limit, 0.7, 1.3);
    }
    shuntd.ctl(&format!("port set {port} --ingress-rate none --egress-rate none"));
    let different = cni.check("box", &netns, &result).expect_err("the limits are gone");
    assert_eq!(different["code"], 101);
    let dropped = shuntd.drops(&port, "tx", "rate_limit");
    let free = iperf(&netns, &outside, "10.0.2.2", 2, "-R");
    assert!(free.bits_per_second > 40e6, "{free:?}");
    assert_eq!(shuntd.drops(&port, "tx", "rate_limit"), dropped);
    cni.del("box", &netns);
}
