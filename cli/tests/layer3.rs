//! The commands of layer 3, against a real daemon: what is made, listed, refused and deleted.

mod common;

use std::io::Write;
use std::process::Stdio;

use common::{Daemon, failure, has, shuntctl};
use serde_json::{Value, json};

/// A gateway on the usual bridge, and a way out on another one.
fn routed() -> Daemon {
    let daemon = Daemon::start();
    // What the daemon starts with is not what these tests are about.
    for interface in daemon.json(&["interface", "list"]).as_array().unwrap() {
        clear(&daemon, interface["name"].as_str().unwrap());
    }
    daemon.says(&["bridge", "add", "up"]);
    let addresses = ["--address", "172.18.0.1/16", "--address", "fd00::1/64"];
    daemon.says(&[&["interface", "add", "gw", "--bridge", "shunt0"], &addresses[..]].concat());
    daemon.says(&["interface", "add", "wan", "--bridge", "up", "--address", "10.0.2.15/24"]);
    daemon
}

fn clear(daemon: &Daemon, interface: &str) {
    for rule in daemon.json(&["nat", "list"]).as_array().unwrap() {
        daemon.says(&["nat", rule["kind"].as_str().unwrap(), "del", &rule["id"].to_string()]);
    }
    daemon.says(&["interface", "del", interface]);
}

fn column<'a>(list: &'a Value, key: &str) -> Vec<&'a Value> {
    list.as_array().unwrap().iter().map(|entry| &entry[key]).collect()
}

#[test]
fn interfaces_come_and_go() {
    let daemon = routed();
    let gw = daemon.json(&["interface", "show", "gw"]);
    has(&gw, &["name", "bridge", "vlan", "mac", "mtu", "address", "state", "reason"]);
    assert_eq!(gw["address"], json!(["172.18.0.1/16", "fd00::1/64"]));
    assert_eq!((&gw["state"], &gw["mtu"]), (&json!("down"), &json!(1500)));
    assert_eq!(column(&daemon.json(&["interface", "list"]), "name"), ["gw", "wan"]);
    assert!(daemon.says(&["interface", "list"]).contains("172.18.0.1/16 fd00::1/64\n"));
    assert!(daemon.says(&["interface", "show", "wan"]).contains("down: bridge up has no port that is up"));
    assert_eq!(column(&daemon.json(&["bridge", "list"]), "interfaces"), [&json!(["gw"]), &json!(["wan"])]);

    for (words, expected) in [
        (&["interface", "add", "gw", "--bridge", "up"][..], "interface add: interface \"gw\" exists already"),
        (&["interface", "add", "x", "--bridge", "none"], "interface add: bridge \"none\" does not exist"),
        (
            &["interface", "add", "x", "--bridge", "up", "--address", "172.18.9.1/24"],
            "interface add: address 172.18.9.1/24 overlaps 172.18.0.1/16 of interface \"gw\"",
        ),
        (
            &["interface", "add", "x", "--bridge", "up", "--address", "10.0.0.0/24"],
            "interface add: address 10.0.0.0/24 is the first or the last address",
        ),
        (&["interface", "set", "gw", "--mtu", "67"], "interface set: mtu 67 is out of range"),
        (
            &["interface", "set", "gw", "--mtu", "1279"],
            "interface set: mtu 1279 is too small for address fd00::1/64",
        ),
        (
            &["interface", "set", "gw", "--del-address", "10.0.0.1/8"],
            "interface set: interface \"gw\" has no address",
        ),
        (&["interface", "show", "none"], "interface show: interface \"none\" does not exist"),
        (&["bridge", "del", "up"], "bridge del: bridge \"up\" still has interfaces"),
    ] {
        let message = daemon.refuses(words);
        assert!(message.starts_with(expected), "{words:?}: {message}");
    }
    assert_eq!(daemon.json(&["interface", "show", "gw"]), gw, "what was refused has changed nothing");

    let words = [
        "interface",
        "set",
        "gw",
        "--del-address",
        "fd00::1/64",
        "--add-address",
        "10.9.0.1/24",
        "--mtu",
        "9000",
    ];
    assert_eq!(daemon.json(&words)["address"], json!(["172.18.0.1/16", "10.9.0.1/24"]));
    daemon.says(&["interface", "set", "gw", "--down"]);
    assert_eq!(daemon.json(&["interface", "show", "gw"])["reason"], "is administratively down");
    daemon.says(&["interface", "del", "wan"]);
    daemon.says(&["bridge", "del", "up"]);
    assert!(daemon.refuses(&["interface", "del", "wan"]).contains("does not exist"));
}

#[test]
fn routes_come_and_go() {
    let daemon = routed();
    assert_eq!(daemon.says(&["route", "add", "default", "--via", "10.0.2.2"]), "");
    daemon.says(&["route", "add", "default", "--via", "10.0.2.3"]);
    daemon.says(&["route", "add", "default", "--via", "fd00::2", "--metric", "100"]);
    daemon.says(&["route", "add", "192.0.2.0/24", "--blackhole"]);
    daemon.says(&["route", "add", "198.51.100.1", "--via", "203.0.113.1", "--dev", "wan", "--onlink"]);
    let routes = daemon.json(&["route", "list"]);
    has(&routes[0], &["prefix", "via", "dev", "metric", "kind", "protocol", "source", "active"]);
    let prefixes =
        ["0.0.0.0/0", "0.0.0.0/0", "10.0.2.0/24", "172.18.0.0/16", "192.0.2.0/24", "198.51.100.1/32"];
    assert_eq!(column(&routes, "prefix")[..6], prefixes);
    assert_eq!((&routes[0]["via"], &routes[0]["dev"]), (&json!("10.0.2.2"), &json!("wan")));
    assert_eq!((&routes[2]["protocol"], &routes[2]["source"]), (&json!("kernel"), &json!("10.0.2.15")));
    assert!(daemon.says(&["route", "list"]).starts_with("PREFIX"));
    assert_eq!(daemon.json(&["route", "get", "192.0.2.77"])["kind"], "blackhole");
    assert_eq!(daemon.json(&["route", "get", "172.18.0.1"])["local"], true);
    assert!(daemon.says(&["route", "get", "192.0.2.77"]).contains("longest prefix"));

    for (words, expected) in [
        (
            &["route", "add", "default", "--via", "10.0.2.2"][..],
            "route add: route default via 10.0.2.2 dev wan proto static exists already",
        ),
        (
            &["route", "add", "10.1.0.0/16", "--via", "192.0.2.1"],
            "route add: gateway 192.0.2.1 is on no network of any interface",
        ),
        (
            &["route", "add", "10.1.0.0/16", "--via", "10.0.2.15"],
            "route add: gateway 10.0.2.15 is the switch's own address, of interface",
        ),
        (&["route", "add", "10.1.0.0/16", "--dev", "none"], "route add: interface \"none\" does not exist"),
        (
            &["route", "add", "10.1.0.1/16", "--dev", "wan"],
            "route add: prefix 10.1.0.1/16 has bits set beyond",
        ),
        (
            &["route", "add", "10.1.0.0/16", "--dev", "wan", "--metric", "-1"],
            "route add: metric -1 is out of range",
        ),
        (
            &["route", "del", "10.0.2.0/24"],
            "route del: route 10.0.2.0/24 dev wan proto kernel scope link src 10.0.2.15 comes with an address",
        ),
        (&["route", "del", "10.7.0.0/16"], "route del: no route to 10.7.0.0/16"),
        (&["route", "get", "0.0.0.0"], "route get: address 0.0.0.0 is not the address of a host"),
        (&["route", "flush", "--dev", "none"], "route flush: interface \"none\" does not exist"),
    ] {
        let message = daemon.refuses(words);
        assert!(message.starts_with(expected), "{words:?}: {message}");
    }
    assert_eq!(daemon.json(&["route", "del", "default", "--via", "10.0.2.2"]), json!({"removed": 1}));
    assert_eq!(daemon.json(&["route", "del", "default"]), json!({"removed": 2}));
    assert_eq!(daemon.says(&["route", "flush"]), "2 entries removed\n");
    assert_eq!(daemon.json(&["route", "list"]).as_array().unwrap().len(), 3);
}

#[test]
fn a_long_list_of_routes_is_loaded_whole_or_not_at_all() {
    const ROUTES: usize = 25_000;
    let daemon = routed();
    daemon.says(&["route", "add", "default", "--via", "10.0.2.2"]);
    let list = |bad: &str| {
        let mut text = String::from(
            "# as ip route prints it\n10.0.2.0/24 dev wan proto kernel scope link src 10.0.2.15\n",
        );
        for n in 0..ROUTES {
            text.push_str(&format!(
                "11.{}.{}.0/24 via 10.0.2.2 dev wan proto static metric 5\n",
                n >> 8,
                n & 0xff
            ));
        }
        text + bad
    };
    let file = daemon.path("routes");
    let load = |text: &str, words: &[&str]| {
        std::fs::write(&file, text).unwrap();
        daemon.run(&[&["route", "load", &file], words].concat())
    };
    let line = ROUTES + 3;
    for (bad, why) in [
        ("12.0.0.0/8 via\n", "via lacks its value"),
        ("12.0.0.1/8 via 10.0.2.2\n", "write 12.0.0.0/8"),
        ("12.0.0.0/8 via 192.0.2.1\n", "is on no network of any interface"),
        ("11.0.0.0/24 via 10.0.2.2 metric 5\n", "route 11.0.0.0/24"),
    ] {
        let message = failure(load(&list(bad), &[]), 1);
        assert!(
            message.starts_with(&format!("route load: {file}:{line}: ")) && message.contains(why),
            "{message}"
        );
        assert!(message.ends_with("nothing was changed"), "{message}");
    }
    assert_eq!(daemon.json(&["route", "list"]).as_array().unwrap().len(), 4);

    let output = load(&list(""), &["--replace"]);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("{ROUTES} routes loaded, 1 removed\n"));
    assert_eq!(daemon.json(&["route", "list"]).as_array().unwrap().len(), ROUTES + 3);
    let mut loading = shuntctl();
    loading.args(["--control", &daemon.path("c.sock"), "--json", "route", "load", "-", "--replace"]);
    let mut loading = loading.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    loading.stdin.take().unwrap().write_all(b"default via 10.0.2.2\n").unwrap();
    let answer: Value = serde_json::from_slice(&loading.wait_with_output().unwrap().stdout).unwrap();
    assert_eq!(answer, json!({"waiting": 0, "loaded": 1, "removed": ROUTES}));
    assert!(failure(daemon.run(&["route", "load", "/nonexistent"]), 1).contains("/nonexistent: "));
}

#[test]
fn neighbours_come_and_go() {
    let daemon = routed();
    daemon.says(&["neighbour", "add", "gw", "172.18.0.10", "52:54:00:00:00:01"]);
    let neighbour = json!({
        "interface": "gw", "address": "172.18.0.10", "mac": "52:54:00:00:00:01", "state": "PERMANENT", "age_seconds": 0
    });
    assert_eq!(daemon.json(&["neighbour", "list"]), json!([neighbour]));
    assert_eq!(daemon.json(&["neighbour", "list", "wan"]), json!([]));
    assert!(daemon.says(&["neighbour", "list", "gw"]).contains("172.18.0.10  52:54:00:00:00:01  PERMANENT"));
    assert_eq!(daemon.says(&["neighbour", "flush"]), "0 entries removed\n", "permanent entries stay");
    assert!(
        daemon
            .refuses(&["neighbour", "add", "none", "172.18.0.10", "52:54:00:00:00:01"])
            .contains("does not exist")
    );
    assert!(daemon.refuses(&["neighbour", "add", "gw", "172.18.0.1", "52:54:00:00:00:01"]).contains("own"));
    assert!(
        daemon.refuses(&["neighbour", "add", "gw", "172.18.0.9", "01:00:00:00:00:01"]).contains("mac 01:00")
    );
    daemon.says(&["neighbour", "del", "gw", "172.18.0.10"]);
    assert!(daemon.refuses(&["neighbour", "del", "gw", "172.18.0.10"]).contains("172.18.0.10"));
}

#[test]
fn rules_of_translation_come_and_go() {
    let daemon = routed();
    let masquerade = ["nat", "masquerade", "add", "--source", "172.18.0.0/16", "--out", "wan"];
    let first = daemon.says(&masquerade);
    let first = first.trim();
    let snat = daemon.json(&[
        "nat",
        "snat",
        "add",
        "--source",
        "172.18.9.0/24",
        "--to",
        "192.0.2.1-192.0.2.9:1024-65535",
    ]);
    assert_eq!((&snat["kind"], &snat["to"]), (&json!("snat"), &json!("192.0.2.1-192.0.2.9:1024-65535")));
    let publish = ["nat", "publish", "add", "--proto", "tcp", "--listen", "10.0.2.15:5000-5010"];
    daemon.says(&[&publish[..], &["--to", "172.18.0.10:80-90"]].concat());
    daemon.says(&["nat", "one-to-one", "add", "--outside", "192.0.2.16/28", "--inside", "172.18.1.0/28"]);
    let rules = daemon.json(&["nat", "list"]);
    assert_eq!(column(&rules, "kind"), ["masquerade", "snat", "publish", "one-to-one"]);
    has(&rules[0], &["id", "source", "out", "to", "proto", "listen", "connections", "exhausted"]);
    assert_eq!((&rules[0]["source"], &rules[0]["out"]), (&json!("172.18.0.0/16"), &json!("wan")));
    assert!(daemon.says(&["nat", "list"]).contains("from 172.18.0.0/16 out wan"));

    for (words, expected) in [
        (&masquerade[..], "nat masquerade add: "),
        (
            &["nat", "masquerade", "add", "--source", "172.18.0.0/16", "--out", "none"],
            "nat masquerade add: interface",
        ),
        (
            &["nat", "masquerade", "add", "--source", "172.18.0.1/16"],
            "nat masquerade add: source 172.18.0.1/16 has bits",
        ),
        (
            &["nat", "publish", "add", "--proto", "tcp", "--listen", "*:5005", "--to", "172.18.0.11:80"],
            "nat publish add: tcp 0.0.0.0:5005: already published",
        ),
        (
            &["nat", "publish", "add", "--proto", "tcp", "--listen", "*:1-9", "--to", "172.18.0.11:80"],
            "nat publish add: to \"172.18.0.11:80\" has 1 ports, listen \"*:1-9\" has 9",
        ),
        (
            &["nat", "publish", "add", "--proto", "icmp", "--listen", "*:1", "--to", "172.18.0.11:80"],
            "nat publish add: proto \"icmp\" has no ports",
        ),
        (&["nat", "publish", "del", first], "nat publish del: nat rule"),
        (&["nat", "snat", "del", "999"], "nat snat del: there is no nat rule 999"),
        (&["interface", "del", "wan"], "interface del: interface \"wan\" is named by nat masquerade rule"),
    ] {
        let message = daemon.refuses(words);
        assert!(message.starts_with(expected), "{words:?}: {message}");
    }
    assert_eq!(daemon.json(&["nat", "list"]), rules);
    daemon.says(&["nat", "masquerade", "del", first]);
    assert_eq!(daemon.json(&["nat", "list"]).as_array().unwrap().len(), 3);
}

#[test]
fn connections_are_told_as_conntrack_tells_them() {
    let daemon = routed();
    let output =
        daemon.run(&["conntrack", "list", "-p", "tcp", "--source", "172.18.0.0/16", "--dport", "80"]);
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b""[..]));
    let trailer = String::from_utf8(output.stderr).unwrap();
    assert!(
        trailer.starts_with("conntrack v") && trailer.ends_with(": 0 flow entries have been shown.\n"),
        "{trailer}"
    );
    assert_eq!(daemon.json(&["conntrack", "list", "--family", "ipv6"]), json!([]));
    assert_eq!(daemon.says(&["conntrack", "count"]), "0\n");
    let count = daemon.json(&["conntrack", "count"]);
    assert_eq!(count["count"], 0);
    assert!(daemon.says(&["conntrack", "flush"]).ends_with(": 0 flow entries have been deleted.\n"));
    assert_eq!(daemon.json(&["conntrack", "flush", "--proto", "udp"]), json!({"removed": 0}));
    assert!(
        daemon
            .says(&["conntrack", "stats"])
            .starts_with("cpu=0   \tfound=0 invalid=0 insert=0 insert_failed=0")
    );
    assert_eq!(daemon.json(&["conntrack", "stats"])[0]["cpu"], 0);

    assert_eq!(daemon.json(&["conntrack", "timeouts"])["tcp_timeout_established"], 432_000);
    daemon.says(&["conntrack", "set-timeout", "tcp_established", "86400"]);
    assert_eq!(daemon.json(&["conntrack", "timeouts"])["tcp_timeout_established"], 86_400);
    let limits = daemon.json(&["conntrack", "set-limit", "--limit", "1000", "--half-open", "10"]);
    assert_eq!((&limits["limit"], &limits["half_open"]), (&json!(1000), &json!(10)));
    assert_eq!(daemon.json(&["conntrack", "count"])["limit"], 1000);
    for (words, expected) in [
        (&["conntrack", "set-timeout", "tcp", "5"][..], "conntrack set-timeout: kind \"tcp\" is unknown"),
        (&["conntrack", "set-timeout", "udp", "0"], "conntrack set-timeout: seconds 0 is out of range"),
        (
            &["conntrack", "set-limit", "--limit", "100000000"],
            "conntrack set-limit: limit 100000000 is out of range",
        ),
        (&["conntrack", "list", "--proto", "x"], "conntrack list: proto \"x\" is no protocol"),
        (&["conntrack", "list", "--state", "open"], "conntrack list: state \"open\" is unknown"),
        (&["conntrack", "flush", "--port", "none"], "conntrack flush: port \"none\" does not exist"),
    ] {
        let message = daemon.refuses(words);
        assert!(message.starts_with(expected), "{words:?}: {message}");
    }
}

#[test]
fn rules_of_policy_come_and_go() {
    let daemon = routed();
    let web = ["--proto", "tcp", "--dport", "80,443", "--state", "new", "--action", "accept"];
    assert_eq!(
        daemon.says(&[&["policy", "add", "--from", "gw", "--to", "bridge:up"], &web[..]].concat()),
        "10\n"
    );
    assert_eq!(
        daemon.says(&["policy", "add", "--id", "5", "--from", "10.0.0.0/8,!10.1.0.0/16", "--action", "drop"]),
        "5\n"
    );
    let policy = daemon.json(&["policy", "list"]);
    assert_eq!((&policy["forward"], &policy["isolation"]), (&json!("accept"), &json!(false)));
    let rules = &policy["rules"];
    assert_eq!(column(rules, "id"), [5, 10]);
    has(
        &rules[0],
        &[
            "from",
            "to",
            "source",
            "destination",
            "proto",
            "sport",
            "dport",
            "state",
            "action",
            "packets",
            "bytes",
        ],
    );
    assert_eq!(
        (&rules[0]["source"], &rules[1]["from"]),
        (&json!("10.0.0.0/8,!10.1.0.0/16"), &json!("interface:gw"))
    );
    daemon.says(&["policy", "default", "forward", "drop"]);
    daemon.says(&["policy", "isolation", "on"]);
    let policy = daemon.json(&["policy", "list"]);
    assert_eq!((&policy["forward"], &policy["isolation"]), (&json!("drop"), &json!(true)));
    assert!(daemon.says(&["policy", "list"]).contains("other bridges"));

    for (words, expected) in [
        (&["policy", "add", "--id", "5", "--action", "drop"][..], "policy add: policy rule 5 exists already"),
        (&["policy", "add", "--id", "0", "--action", "drop"], "policy add: id 0 is out of range"),
        (
            &["policy", "add", "--from", "none", "--action", "drop"],
            "policy add: from \"none\" does not exist",
        ),
        (&["policy", "add", "--dport", "80", "--action", "drop"], "policy add: dport \"80\" needs proto"),
        (&["policy", "add", "--action", "allow"], "policy add: action \"allow\" is unknown"),
        (&["policy", "default", "forward", "log"], "policy default: forward \"log\" is unknown"),
        (&["policy", "del", "7"], "policy del: there is no policy rule 7"),
        (&["interface", "del", "gw"], "interface del: interface \"gw\" is named by policy rule 10"),
    ] {
        let message = daemon.refuses(words);
        assert!(message.starts_with(expected), "{words:?}: {message}");
    }
    daemon.says(&["policy", "del", "5"]);
    assert_eq!(daemon.says(&["policy", "flush"]), "1 entries removed\n");
    daemon.says(&["policy", "isolation", "off"]);
    assert_eq!(daemon.json(&["policy", "list"])["rules"], json!([]));
}

#[test]
fn addresses_are_served_and_reserved() {
    let daemon = routed();
    let range = ["dhcp", "set", "gw", "--range", "172.18.0.2-172.18.0.254"];
    daemon.says(
        &[&range[..], &["--lease", "600", "--dns", "172.18.0.1", "--dns", "fd00::1", "--ra", "on"]].concat(),
    );
    let dhcp = daemon.json(&["dhcp", "show", "gw"]);
    has(
        &dhcp,
        &[
            "interface",
            "range",
            "lease",
            "router",
            "dns",
            "mtu",
            "route",
            "ra",
            "reservations",
            "capacity",
            "leases",
        ],
    );
    assert_eq!(
        (&dhcp["router"], &dhcp["capacity"], &dhcp["leases"]),
        (&json!("172.18.0.1"), &json!(253), &json!(0))
    );
    assert_eq!(dhcp["dns"], json!(["172.18.0.1", "fd00::1"]));
    daemon.says(&["dhcp", "reserve", "gw", "52:54:00:00:00:01", "172.18.0.16", "--hostname", "mail"]);
    assert!(daemon.says(&["dhcp", "show", "gw"]).contains("reserved   172.18.0.16 52:54:00:00:00:01 mail\n"));
    assert_eq!(daemon.json(&["dhcp", "leases"]), json!([]));
    assert_eq!(daemon.says(&["dhcp", "leases", "gw"]), "INTERFACE  ADDRESS  MAC  HOSTNAME  STATE  EXPIRES\n");
    assert_eq!(daemon.json(&["dhcp", "release", "gw", "172.18.0.9"]), json!({"removed": 0}));

    for (words, expected) in [
        (
            &["dhcp", "set", "gw", "--range", "10.0.0.2-10.0.0.9"][..],
            "dhcp set: range 10.0.0.2-10.0.0.9 lies in no network",
        ),
        (
            &["dhcp", "set", "gw", "--range", "172.18.0.1-172.18.0.9"],
            "dhcp set: range 172.18.0.1-172.18.0.9 includes 172.18.0.1",
        ),
        (&["dhcp", "set", "gw", "--lease", "59"], "dhcp set: lease 59 is out of range"),
        (&["dhcp", "set", "wan", "--lease", "600"], "dhcp set: interface \"wan\" has nothing to serve"),
        (&["dhcp", "set", "wan", "--ra", "on"], "dhcp set: ra needs an IPv6 network"),
        (
            &["dhcp", "reserve", "gw", "52:54:00:00:00:02", "172.18.0.16"],
            "dhcp reserve: address 172.18.0.16 is reserved for 52:54:00:00:00:01 already",
        ),
        (
            &["dhcp", "unreserve", "gw", "52:54:00:00:00:02"],
            "dhcp unreserve: interface \"gw\" has no address reserved",
        ),
        (&["dhcp", "show", "wan"], "dhcp show: interface \"wan\" has no DHCP"),
        (&["interface", "set", "gw", "--del-address", "172.18.0.1/16"], "interface set: range"),
    ] {
        let message = daemon.refuses(words);
        assert!(message.starts_with(expected), "{words:?}: {message}");
    }
    daemon.says(&["dhcp", "unreserve", "gw", "52:54:00:00:00:01"]);
    daemon.says(&["dhcp", "set", "gw", "--router", "none", "--dns", "none"]);
    let dhcp = daemon.json(&["dhcp", "show", "gw"]);
    assert_eq!((&dhcp["router"], &dhcp["dns"], &dhcp["lease"]), (&Value::Null, &json!([]), &json!(600)));
    daemon.says(&["dhcp", "del", "gw"]);
    assert!(daemon.refuses(&["dhcp", "show", "gw"]).contains("has no DHCP"));
}

#[test]
fn bridges_filter_and_ports_are_guarded() {
    let daemon = routed();
    assert_eq!(daemon.json(&["bridge", "set", "shunt0", "--filter", "on"])["filter"], true);
    assert!(daemon.says(&["bridge", "show", "shunt0"]).contains("filter       on\n"));
    let add = ["port", "add", "vm", "--bridge", "shunt0", "--vhost-user", &daemon.path("vm")];
    let port = daemon.json(&[&add[..], &["--guard", "on", "--allow-address", "172.18.0.10"]].concat());
    assert_eq!((&port["guard"], &port["allow_address"]), (&json!(true), &json!(["172.18.0.10/32"])));
    let words = [
        "port",
        "set",
        "vm",
        "--guard",
        "off",
        "--allow-address",
        "fd00::/64",
        "--revoke-address",
        "172.18.0.10",
    ];
    let port = daemon.json(&words);
    assert_eq!((&port["guard"], &port["allow_address"]), (&json!(false), &json!(["fd00::/64"])));
    for (words, expected) in [
        (
            &["port", "set", "vm", "--allow-address", "172.18.0.1/16"][..],
            "port set: allow_address 172.18.0.1/16 has bits",
        ),
        (
            &["port", "set", "vm", "--revoke-address", "10.0.0.1"],
            "port set: port \"vm\" was not allowed to send from 10.0.0.1/32",
        ),
        (&["bridge", "set", "none", "--filter", "on"], "bridge set: bridge \"none\" does not exist"),
    ] {
        let message = daemon.refuses(words);
        assert!(message.starts_with(expected), "{words:?}: {message}");
    }
}

#[test]
fn wrong_usage_is_told_without_a_daemon() {
    for words in [
        &["interface", "add", "gw"][..],
        &["interface", "set", "gw"],
        &["interface", "set", "gw", "--up", "--down"],
        &["route", "add", "default"],
        &["route", "add", "default", "--blackhole", "--via", "10.0.0.1"],
        &["route", "add", "default", "--via", "10.0.0.1", "--onlink"],
        &["nat", "masquerade", "add"],
        &["nat", "masquerade", "del", "x"],
        &["nat", "masquerade", "add", "--source", "10.0.0.0/8", "--out", "a", "--not-out", "b"],
        &["policy", "add"],
        &["policy", "isolation", "maybe"],
        &["policy", "default", "forward"],
        &["conntrack", "set-timeout", "udp"],
        &["conntrack", "set-limit"],
        &["dhcp", "set", "gw"],
        &["bridge", "set", "br0", "--filter", "yes"],
    ] {
        let message = failure(shuntctl().args(words).output().unwrap(), 2);
        assert!(message.contains("--help"), "{words:?}: {message}");
    }
}
