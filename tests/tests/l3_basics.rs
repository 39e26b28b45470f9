//! The switch as gateway and router between its bridges: what ping, traceroute and tracepath see, which route is taken.

use std::time::Duration;

use serde_json::Value;
use shunt_tests::{
    Host, Knock, MUCH, NetNs, Shuntd, answers, copy_intact, iperf, is_root, knock, pings, pings_once,
    wait_for,
};

const SOON: Duration = Duration::from_secs(15);

/// A daemon that forwards, with the networks red and blue and the host `r` and `b` on them.
fn red_and_blue() -> (Shuntd, NetNs, NetNs) {
    let shuntd = Shuntd::start();
    shuntd.ctl("policy default forward accept");
    shuntd.network("red", &["10.1.0.1/24", "fd01::1/64"]);
    shuntd.network("blue", &["10.2.0.1/24", "fd02::1/64"]);
    let (r, b) = (shuntd.host("r", "red"), shuntd.host("b", "blue"));
    r.join("10.1.0.2/24", Some("10.1.0.1"));
    r.join("fd01::2/64", Some("fd01::1"));
    b.join("10.2.0.2/24", Some("10.2.0.1"));
    b.join("fd02::2/64", Some("fd02::1"));
    answers(&r, "10.1.0.1", SOON);
    answers(&r, "10.2.0.2", SOON);
    answers(&r, "fd02::2", SOON);
    (shuntd, r, b)
}

/// The objects of a listing in which `field` is `value`.
fn with<'a>(list: &'a Value, field: &str, value: &str) -> Vec<&'a Value> {
    list.as_array().into_iter().flatten().filter(|object| object[field] == value).collect()
}

#[test]
fn a_gateway_answers_and_networks_reach_each_other() {
    if !is_root() {
        return;
    }
    let (shuntd, r, b) = red_and_blue();
    for (host, own, other) in [(&r, "10.1.0.1", "10.2.0.2"), (&b, "10.2.0.1", "10.1.0.2")] {
        for options in ["", "-s 0", "-s 1472 -M do"] {
            assert_eq!(pings(host, own, 5, options), 5);
            assert_eq!(pings(host, other, 5, options), 5);
        }
    }
    for (host, own, other) in [(&r, "fd01::1", "fd02::2"), (&b, "fd02::1", "fd01::2")] {
        assert_eq!(pings(host, own, 5, "-s 1452 -M do"), 5);
        assert_eq!(pings(host, other, 5, "-s 1452 -M do"), 5);
    }
    // One hop takes one from the time to live; the switch itself is no hop, whichever of its addresses is asked.
    assert!(r.sh("ping -c1 10.1.0.1").contains("ttl=64"));
    assert!(r.sh("ping -c1 10.2.0.1").contains("ttl=64"));
    assert!(r.sh("ping -c1 10.2.0.2").contains("ttl=63"));
    assert!(r.sh("ping -c1 fd02::2").contains("ttl=63"));

    copy_intact(&r, &b, "10.2.0.2", 16);
    copy_intact(&b, &r, "fd01::2", 16);
    for options in ["", "-R", "-P4"] {
        assert!(iperf(&r, &b, "10.2.0.2", 2, options).bytes > MUCH);
    }
    b.without_offloads();
    copy_intact(&r, &b, "10.2.0.2", 8);
    copy_intact(&b, &r, "10.1.0.2", 8);
    copy_intact(&r, &b, "fd02::2", 8);

    // What the switch knows of it.
    let routes = shuntd.ctl("route list");
    for (prefix, dev) in
        [("10.1.0.0/24", "red"), ("10.2.0.0/24", "blue"), ("fd01::/64", "red"), ("fd02::/64", "blue")]
    {
        let found = with(&routes, "prefix", prefix);
        assert!(found.iter().any(|route| route["dev"] == dev && route["protocol"] == "kernel"), "{routes}");
    }
    let neighbours = shuntd.ctl("neighbour list");
    for (address, host) in [("10.1.0.2", &r), ("10.2.0.2", &b), ("fd01::2", &r), ("fd02::2", &b)] {
        let found = with(&neighbours, "address", address);
        assert!(found.iter().any(|n| n["mac"] == host.mac().as_str()), "{address} in {neighbours}");
    }
}

#[test]
fn whoever_cannot_be_reached_is_reported_as_unreachable() {
    if !is_root() {
        return;
    }
    let (shuntd, r, _b) = red_and_blue();
    // No route; nobody there; routes that refuse.
    shuntd.ctl("route add 10.66.0.0/16 --blackhole");
    shuntd.ctl("route add 10.67.0.0/16 --unreachable");
    shuntd.ctl("route add 10.68.0.0/16 --prohibit");
    for (address, words) in [
        ("198.51.100.1", "Destination Net Unreachable"),
        ("10.2.0.77", "Destination Host Unreachable"),
        ("10.67.0.1", "Destination Host Unreachable"),
        ("10.68.0.1", "Packet filtered"),
    ] {
        let text = r.run(&format!("ping -c1 -W5 {address}")).text;
        assert!(text.contains(words) && text.contains("From 10.1.0.1"), "{address}: {text}");
    }
    let silent = r.run("ping -c1 -W1 10.66.0.1").text;
    assert!(!silent.contains("From ") && silent.contains("100% packet loss"), "{silent}");
    for (address, words) in [("2001:db8::1", "No route"), ("fd02::77", "Address unreachable")] {
        let text = r.run(&format!("ping -c1 -W5 {address}")).text;
        assert!(text.contains(words) && text.contains("From fd01::1"), "{address}: {text}");
    }
    // A port of the switch's own address that nobody listens on is refused, not silent.
    assert_eq!(knock(&r, "10.1.0.1", 81), Knock::Refused);
    assert_eq!(knock(&r, "fd01::1", 81), Knock::Refused);
    assert_eq!(knock(&r, "10.67.0.1", 81), Knock::Unreachable);
}

#[test]
fn traceroute_and_tracepath_see_every_hop_and_the_path_mtu() {
    if !is_root() {
        return;
    }
    let (shuntd, r, b) = red_and_blue();
    // b is a router to a network behind it, which takes smaller packets only.
    let far = NetNs::new("far");
    b.veth("inner", &far, "eth0");
    for (host, device, v4, v6) in
        [(&b, "inner", "10.3.0.1/24", "fd03::1/64"), (&far, "eth0", "10.3.0.2/24", "fd03::2/64")]
    {
        host.ip(&format!("link set {device} mtu 1300"));
        host.up(device, Some(v4));
        host.ip(&format!("address add {v6} dev {device} nodad"));
    }
    b.sh("echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding");
    far.ip("route add default via 10.3.0.1");
    far.ip("-6 route add default via fd03::1");
    shuntd.ctl("route add 10.3.0.0/24 --via 10.2.0.2");
    shuntd.ctl("route add fd03::/64 --via fd02::2");
    answers(&r, "10.3.0.2", SOON);
    answers(&r, "fd03::2", SOON);

    for options in ["", "-I"] {
        let hops = r.sh(&format!("traceroute -n -q1 -w2 {options} 10.3.0.2"));
        let seen: Vec<&str> = hops.lines().skip(1).filter_map(|l| l.split_whitespace().nth(1)).collect();
        assert_eq!(seen, ["10.1.0.1", "10.2.0.2", "10.3.0.2"], "{hops}");
        let hops = r.sh(&format!("traceroute -6 -n -q1 -w2 {options} fd03::2"));
        let seen: Vec<&str> = hops.lines().skip(1).filter_map(|l| l.split_whitespace().nth(1)).collect();
        assert_eq!(seen, ["fd01::1", "fd02::2", "fd03::2"], "{hops}");
    }
    assert!(r.sh("tracepath -n 10.3.0.2").contains("pmtu 1300"));
    assert!(r.sh("tracepath -6 -n fd03::2").contains("pmtu 1300"));
    r.ip("route flush cache");
    copy_intact(&r, &far, "10.3.0.2", 4);
    copy_intact(&r, &far, "fd03::2", 4);
}

#[test]
fn what_is_too_long_for_the_next_network_is_cut_or_reported() {
    if !is_root() {
        return;
    }
    let shuntd = Shuntd::start();
    shuntd.ctl("policy default forward accept");
    shuntd.network("red", &["10.1.0.1/24", "fd01::1/64"]);
    shuntd.ctl("bridge add br-blue");
    shuntd.ctl("interface add blue --bridge br-blue --mtu 1400 --address 10.2.0.1/24 --address fd02::1/64");
    let (r, b) = (shuntd.host("r", "red"), shuntd.host("b", "blue"));
    r.join("10.1.0.2/24", Some("10.1.0.1"));
    r.join("fd01::2/64", Some("fd01::1"));
    b.join("10.2.0.2/24", Some("10.2.0.1"));
    b.join("fd02::2/64", Some("fd02::1"));
    b.ip("link set eth0 mtu 1400");
    answers(&r, "10.2.0.2", SOON);
    answers(&r, "fd02::2", SOON);

    assert_eq!(pings(&r, "10.2.0.2", 3, "-M do -s 1372"), 3, "1400 bytes fit");
    let text = r.run("ping -c1 -W2 -M do -s 1373 10.2.0.2").text;
    assert!(text.contains("Frag needed and DF set (mtu = 1400)"), "{text}");
    let text = r.run("ping -c1 -W2 -M do -s 1353 fd02::2").text;
    assert!(text.contains("Packet too big: mtu=1400"), "{text}");
    r.ip("route flush cache");
    r.ip("-6 route flush cache");
    // Without the don't-fragment flag the switch cuts, in both directions, also what came in pieces.
    assert_eq!(pings(&r, "10.2.0.2", 3, "-M dont -s 1472"), 3);
    assert_eq!(pings(&r, "10.2.0.2", 3, "-M dont -s 8000"), 3);
    assert_eq!(pings(&b, "10.1.0.2", 3, "-M dont -s 8000"), 3);

    r.ip("route flush cache");
    r.ip("-6 route flush cache");
    copy_intact(&r, &b, "10.2.0.2", 8);
    copy_intact(&r, &b, "fd02::2", 8);
    copy_intact(&b, &r, "10.1.0.2", 8);
    r.without_offloads();
    r.ip("route flush cache");
    copy_intact(&r, &b, "10.2.0.2", 8);
}

#[test]
fn a_gateway_answers_on_its_link_to_groups_and_in_pieces() {
    if !is_root() {
        return;
    }
    let (shuntd, r, _b) = red_and_blue();
    let mac = shuntd.ctl("interface show red")["mac"].as_str().unwrap_or_default().to_owned();
    let octets: Vec<u8> = mac.split(':').filter_map(|octet| u8::from_str_radix(octet, 16).ok()).collect();
    let [a, b, c, d, e, f] = octets[..] else { panic!("the MAC address {mac}") };
    let own = format!("fe80::{:02x}{b:02x}:{c:02x}ff:fe{d:02x}:{e:02x}{f:02x}", a ^ 2);
    let own: std::net::Ipv6Addr = own.parse().unwrap_or_else(|e| panic!("{own}: {e}"));
    // With and without connections to be followed.
    for rule in [None, Some("nat masquerade add --source 10.1.0.0/24 --out blue")] {
        rule.map(|rule| shuntd.ctl(rule));
        for address in ["10.1.0.1", "fd01::1", "10.2.0.1", &format!("{own}%eth0")] {
            assert_eq!(pings(&r, address, 3, ""), 3);
            assert_eq!(pings(&r, address, 3, "-s 3000"), 3);
            assert_eq!(pings(&r, address, 3, "-s 20000"), 3);
        }
        for group in ["ff02::1", "ff02::2"] {
            let text = r.run(&format!("ping -c3 -i0.2 -W2 {group}%eth0")).text;
            assert!(text.contains(&format!("bytes from {own}")), "{text}");
        }
        let drops = shuntd.port("r")["rx"]["drops"].to_string();
        assert!(!drops.contains("fragment") && !drops.contains("ct_invalid"), "{drops}");
    }
}

#[test]
fn a_narrow_interface_lets_nobody_announce_long_segments() {
    if !is_root() {
        return;
    }
    let (shuntd, r, b) = red_and_blue();
    shuntd.ctl("interface set blue --mtu 1400 --clamp-mss on");
    let ways = [(&r, &b, "10.2.0.2"), (&b, &r, "10.1.0.2"), (&r, &b, "fd02::2"), (&b, &r, "fd01::2")];
    for (port, (from, to, address)) in (7000..).zip(ways) {
        let (announced, family) = if address.contains(':') { (1340, "-6") } else { (1360, "-4") };
        let listener = to.start(&format!("sleep 12 | timeout 12 nc {family} -l {port}"), SOON);
        wait_for("the listener", SOON, || {
            (!to.sh(&format!("ss -Hltn sport = :{port}")).is_empty()).then_some(())
        });
        let caller = from.start(&format!("sleep 12 | timeout 12 nc {family} {address} {port}"), SOON);
        let ends = [listener, caller];
        for host in [from, to] {
            let connection = format!("ss -Htin state established '( sport = :{port} or dport = :{port} )'");
            let mss: u32 = wait_for("the connection", SOON, || {
                let text = host.sh(&connection);
                text.split_whitespace()
                    .find_map(|word| word.strip_prefix("mss:"))
                    .map(|mss| mss.parse().unwrap_or(0))
            });
            assert_eq!(mss, announced - 12, "{address} (12 bytes are the time stamp's)");
        }
        drop(ends);
    }
}

#[test]
fn the_lowest_metric_wins_and_the_next_takes_over() {
    if !is_root() {
        return;
    }
    let (shuntd, r, b) = red_and_blue();
    shuntd.network("green", &["10.4.0.1/24"]);
    let g = shuntd.host("g", "green");
    g.join("10.4.0.2/24", Some("10.4.0.1"));
    // Both know the service address; which of them answers is seen in its counters.
    for host in [&b, &g] {
        host.ip("address add 10.9.0.1/32 dev lo");
    }
    shuntd.ctl("route add 10.9.0.0/16 --via 10.2.0.2 --metric 10");
    shuntd.ctl("route add 10.9.0.0/16 --via 10.4.0.2 --metric 20");
    let echoes = |host: &NetNs| -> u64 {
        let text = host.sh("awk '/^Icmp:/ && $2 ~ /[0-9]/ { print $10 }' /proc/net/snmp");
        text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
    };
    // All of them, and those that were asked again since an answer was late.
    let taken_by = |host: &NetNs, other: &NetNs| {
        let before = [host, other].map(echoes);
        assert_eq!(pings(&r, "10.9.0.1", 5, ""), 5);
        let after = [host, other].map(echoes);
        assert!(after[0] >= before[0] + 5 && after[1] == before[1], "{before:?} became {after:?}");
    };
    taken_by(&b, &g);
    let explained = shuntd.ctl("route get 10.9.0.1");
    assert_eq!(explained["paths"][0]["via"], "10.2.0.2", "{explained}");
    assert_eq!(explained["paths"][0]["dev"], "blue", "{explained}");
    assert_eq!((&explained["prefix"], &explained["metric"]), (&"10.9.0.0/16".into(), &10.into()));

    b.ip("link set eth0 down");
    shuntd.wait_state("b", "down", SOON);
    wait_for("the second route to take over", SOON, || {
        (shuntd.ctl("route get 10.9.0.1")["paths"][0]["via"] == "10.4.0.2").then_some(())
    });
    answers(&r, "10.9.0.1", SOON);
    taken_by(&g, &b);
    b.ip("link set eth0 up");
    b.ip("route replace default via 10.2.0.1");
    shuntd.wait_state("b", "up", SOON);
    wait_for("the first route to come back", SOON, || {
        (shuntd.ctl("route get 10.9.0.1")["paths"][0]["via"] == "10.2.0.2").then_some(())
    });
    answers(&r, "10.9.0.1", SOON);
    taken_by(&b, &g);
    // More specific goes before metric; a deleted route gives way at once.
    shuntd.ctl("route add 10.9.0.1/32 --via 10.4.0.2 --metric 900");
    taken_by(&g, &b);
    shuntd.ctl("route del 10.9.0.1/32");
    taken_by(&b, &g);
}

#[test]
fn equal_metrics_share_the_flows_and_a_flow_keeps_its_path() {
    if !is_root() {
        return;
    }
    let (shuntd, r, b) = red_and_blue();
    let c = shuntd.host("c", "blue");
    c.join("10.2.0.3/24", Some("10.2.0.1"));
    for host in [&b, &c] {
        host.ip("route add local 10.9.0.0/16 dev lo");
    }
    shuntd.ctl("route add 10.9.0.0/16 --via 10.2.0.2 --metric 10");
    shuntd.ctl("route add 10.9.0.0/16 --via 10.2.0.3 --metric 10");
    let received = |host: &NetNs| -> u64 {
        let text = host.sh("awk '/^Ip:/ && $2 ~ /[0-9]/ { print $4 }' /proc/net/snmp");
        text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
    };
    answers(&r, "10.9.0.1", SOON);
    answers(&r, "10.9.0.2", SOON);
    let before = [received(&b), received(&c)];
    r.sh("for n in $(seq 100); do ping -c1 -W2 10.9.1.$n >/dev/null || exit 1; done");
    let shares = [received(&b) - before[0], received(&c) - before[1]];
    assert!(shares.iter().all(|&share| share >= 25), "of 100 flows: {shares:?}");
    for address in ["10.9.2.1", "10.9.2.2", "10.9.2.3"] {
        let before = [received(&b), received(&c)];
        assert_eq!(pings(&r, address, 10, ""), 10);
        let shares = [received(&b) - before[0], received(&c) - before[1]];
        assert!(shares.contains(&0), "one flow took both paths: {shares:?}");
    }
    let explained = shuntd.ctl("route get 10.9.2.1");
    assert_eq!(explained["paths"].as_array().map(Vec::len), Some(2), "{explained}");
}

#[test]
fn addresses_come_and_go_while_hosts_use_them() {
    if !is_root() {
        return;
    }
    let (shuntd, r, b) = red_and_blue();
    // A new address is announced: a host that knew another owner learns the new one.
    r.ip("neighbour replace 10.1.0.9 lladdr 02:00:00:00:00:99 dev eth0 nud reachable");
    shuntd.ctl("interface set red --add-address 10.1.0.9/24");
    answers(&r, "10.1.0.9", SOON);
    let mac = shuntd.ctl("interface show red")["mac"].as_str().unwrap_or_default().to_owned();
    let neighbour = r.sh("ip neighbour show 10.1.0.9");
    assert!(neighbour.contains(&mac), "{neighbour} is to be {mac}");

    // Deleted, it neither answers nor routes, and what depends on it says so or goes with it.
    shuntd.ctl("interface del blue");
    assert_eq!(pings_once(&b, "10.2.0.1", 2, ""), 0);
    assert_eq!(pings_once(&r, "10.2.0.2", 2, ""), 0);
    assert!(with(&shuntd.ctl("route list"), "prefix", "10.2.0.0/24").is_empty());
    shuntd.ctl("interface add blue --bridge br-blue --address 10.2.0.1/24");
    answers(&r, "10.2.0.2", SOON);
}

#[test]
fn wrong_commands_are_refused_in_one_line_and_change_nothing() {
    if !is_root() {
        return;
    }
    let (shuntd, _r, _b) = red_and_blue();
    let all = || ["interface list", "route list", "nat list"].map(|command| shuntd.ctl(command).to_string());
    let before = all();
    for (command, word) in [
        ("interface add dup --bridge br-red --address 10.1.0.1/24", "10.1.0.1"),
        ("interface add over --bridge br-red --address 10.2.0.128/25", "10.2.0"),
        ("interface add nobr --bridge missing --address 10.8.0.1/24", "missing"),
        ("interface add bad --bridge br-red --address 10.8.0.0/24", "10.8.0.0"),
        ("interface add two --bridge br-red --address 10.8.0.1/24 --address 10.1.0.5/16", "10.1.0.5"),
        ("route add 10.8.0.0/16 --via 192.0.2.1", "192.0.2.1"),
        ("route add 10.8.0.0/16 --dev missing", "missing"),
        ("route add 10.8.0.0/16 --via fd01::9", "fd01::9"),
        ("route add 10.8.0.1/16 --via 10.1.0.2", "10.8.0.1"),
        ("route del 10.8.0.0/16", "10.8.0.0"),
        ("neighbour add missing 10.1.0.7 02:00:00:00:00:07", "missing"),
        ("neighbour add red 10.1.0.7 01:00:5e:00:00:07", "01:00:5e"),
        ("bridge del br-red", "red"),
    ] {
        let words: Vec<&str> = command.split_whitespace().collect();
        let refusal = match shuntd.try_ctl(&words) {
            Ok(value) => panic!("`{command}` was carried out: {value}"),
            Err(refusal) => refusal,
        };
        assert!(refusal.status == 1 || refusal.status == 2, "`{command}`: {refusal:?}");
        assert_eq!(refusal.message.lines().count(), 1, "`{command}`: {refusal:?}");
        assert!(refusal.message.contains(word), "`{command}` does not name {word}: {refusal:?}");
    }
    assert_eq!(all(), before);
}
