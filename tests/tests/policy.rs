//! Who may open connections to whom: rules in order, states, isolation, and ports that may only speak for themselves.

use std::time::{Duration, Instant};

use serde_json::Value;
use shunt_tests::{
    Host, Knock, NetNs, Shuntd, Station, Web, answers, is_root, knock, pings, pings_once, start_iperf,
    wait_for,
};

const SOON: Duration = Duration::from_secs(15);

/// Networks red and blue with a host each, everything open.
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
    answers(&r, "10.2.0.2", SOON);
    answers(&r, "fd02::2", SOON);
    (shuntd, r, b)
}

/// The rule with this number, as `policy list` shows it.
#[track_caller]
fn rule(shuntd: &Shuntd, id: u64) -> Value {
    let policy = shuntd.ctl("policy list");
    let rules = policy["rules"].as_array().unwrap_or_else(|| panic!("no rules in {policy}"));
    rules.iter().find(|rule| rule["id"] == id).unwrap_or_else(|| panic!("no rule {id} in {policy}")).clone()
}

#[test]
fn closed_by_default_open_as_the_rules_say() {
    if !is_root() {
        return;
    }
    let (shuntd, r, b) = red_and_blue();
    let _web = [80, 81, 443, 8080].map(|port| Web::serve(&b, port, 64));
    let back = Web::serve(&r, 80, 64);
    shuntd.ctl("policy default forward drop");
    assert_eq!(knock(&r, "10.2.0.2", 80), Knock::Silent);
    assert_eq!(knock(&r, "fd02::2", 80), Knock::Silent);
    assert_eq!(pings_once(&r, "10.2.0.2", 1, ""), 0);
    assert_eq!(pings(&r, "10.1.0.1", 1, ""), 1, "the gateway itself is not forwarded to");

    // What one side opens is answered; the other side may not open.
    shuntd.ctl("policy add --id 100 --from interface:red --to interface:blue --proto tcp --dport 80,443 --action accept");
    for address in ["10.2.0.2", "fd02::2"] {
        assert_eq!(knock(&r, address, 80), Knock::Open);
        assert_eq!(knock(&r, address, 443), Knock::Open);
        assert_eq!(knock(&r, address, 81), Knock::Silent);
    }
    copy_refused_then_open(&shuntd, &b, &back);
    // The first rule that fits decides; a rule in front changes that.
    shuntd.ctl("policy add --id 50 --to 10.2.0.2/32 --proto tcp --dport 443 --action reject");
    assert_eq!(knock(&r, "10.2.0.2", 443), Knock::Refused);
    assert_eq!(knock(&r, "fd02::2", 443), Knock::Open, "the other family is another address");
    shuntd.ctl("policy add --id 60 --from port:r --proto tcp --dport 8000-8099 --action accept");
    assert_eq!(knock(&r, "10.2.0.2", 8080), Knock::Open);
    shuntd.ctl("policy add --id 70 --from 10.1.0.0/24 --proto icmp --icmp-type 8 --action accept");
    assert_eq!(pings(&r, "10.2.0.2", 3, ""), 3);
    assert_eq!(pings_once(&r, "fd02::2", 1, ""), 0);
    shuntd.ctl("policy del 70");
    // An entry that was let in goes on until it ends; a new echo is another connection.
    assert_eq!(pings_once(&r, "10.2.0.2", 1, ""), 0);

    // Counted where they were decided.
    assert!(rule(&shuntd, 50)["packets"].as_u64() >= Some(1));
    assert!(rule(&shuntd, 60)["packets"].as_u64() >= Some(1));
    assert!(shuntd.port("r")["rx"]["drops"].to_string().contains("policy_drop"), "{}", shuntd.port("r"));
}

/// Blue may not open to red; with a rule it may.
#[track_caller]
fn copy_refused_then_open(shuntd: &Shuntd, b: &NetNs, back: &Web) {
    assert_eq!(knock(b, "10.1.0.2", 80), Knock::Silent);
    shuntd.ctl("policy add --id 110 --from interface:blue --to interface:red --action accept");
    back.fetch_intact(b, "10.1.0.2:80");
    shuntd.ctl("policy del 110");
    assert_eq!(knock(b, "10.1.0.2", 80), Knock::Silent);
}

#[test]
fn an_established_connection_outlives_the_rule_that_let_it_in() {
    if !is_root() {
        return;
    }
    let (shuntd, r, b) = red_and_blue();
    shuntd.ctl("policy default forward drop");
    shuntd.ctl("policy add --id 10 --from interface:red --to interface:blue --action accept");
    let traffic = start_iperf(&r, &b, "10.2.0.2", 60, "");
    wait_for("the transfer to run", SOON, || (shuntd.counter("b", "tx", "bytes") > 1 << 20).then_some(()));
    let before = rule(&shuntd, 10)["packets"].as_u64().unwrap_or(0);
    shuntd.ctl("policy del 10");
    let bytes = shuntd.counter("b", "tx", "bytes");
    wait_for("more of it", SOON, || (shuntd.counter("b", "tx", "bytes") > bytes + (1 << 20)).then_some(()));
    drop(traffic);
    assert!(before < 100, "the rule was asked for {before} packets of a handful of connections");
    assert_eq!(knock(&r, "10.2.0.2", 5201), Knock::Silent);
}

#[test]
fn five_thousand_rules_are_set_and_the_right_one_decides() {
    if !is_root() {
        return;
    }
    let mut toml = String::new();
    for (name, number) in [("red", 1), ("blue", 2)] {
        toml += &format!(
            "[[bridge]]\nname = \"br-{name}\"\n[[interface]]\nname = \"{name}\"\nbridge = \"br-{name}\"\n\
             address = [\"10.{number}.0.1/24\"]\n"
        );
    }
    for n in 0..5000 {
        toml += &format!(
            "[[policy]]\nid = {}\nsource = \"10.{}.{}.0/24\"\ndestination = \"10.2.0.0/16\"\nproto = \"tcp\"\n\
             dport = \"{}\"\naction = \"drop\"\n",
            1000 + n,
            100 + n / 250,
            n % 250,
            1 + n
        );
    }
    toml += "[[policy]]\nid = 900000\nsource = \"10.1.0.0/24\"\nproto = \"tcp\"\ndport = \"81\"\naction = \"reject\"\n";
    let mut shuntd = Shuntd::new().config(&toml);
    let start = Instant::now();
    shuntd.launch();
    let seconds = start.elapsed().as_secs_f64();
    shunt_tests::progress!("5001 rules took {seconds:.2} s");
    assert!(seconds < 10.0, "{seconds} s for 5001 rules");
    let (r, b) = (shuntd.host("r", "red"), shuntd.host("b", "blue"));
    r.join("10.1.0.2/24", Some("10.1.0.1"));
    b.join("10.2.0.2/24", Some("10.2.0.1"));
    answers(&r, "10.2.0.2", SOON);
    let _web = [80, 81].map(|port| Web::serve(&b, port, 4));
    assert_eq!(shuntd.ctl("policy list")["rules"].as_array().map(Vec::len), Some(5001));
    assert_eq!(knock(&r, "10.2.0.2", 80), Knock::Open);
    assert_eq!(knock(&r, "10.2.0.2", 81), Knock::Refused);
    // The least of some: each writes to the disk.
    let one_more = |id: u32| {
        let start = Instant::now();
        shuntd
            .ctl(&format!("policy add --id {id} --from 10.1.0.0/24 --proto tcp --dport 81 --action accept"));
        start.elapsed()
    };
    let least = (5..10).map(one_more).min().unwrap_or_default();
    assert!(least < Duration::from_secs(1), "{least:?} for one more rule");
    assert_eq!(knock(&r, "10.2.0.2", 81), Knock::Open);
}

#[test]
fn isolation_closes_bridges_to_each_other_as_docker_does() {
    if !is_root() {
        return;
    }
    let (shuntd, r, b) = red_and_blue();
    shuntd.network("wan", &["192.0.2.1/24"]);
    let outside = shuntd.host("outside", "wan");
    outside.join("192.0.2.2/24", Some("192.0.2.1"));
    let server = Web::serve(&b, 80, 64);
    let beyond = Web::serve(&outside, 80, 64);
    // The way out is the bridge through which a gateway is reached.
    shuntd.ctl("route add default --via 192.0.2.2");
    shuntd.ctl("nat publish add --proto tcp --listen 10.1.0.1:8080 --to 10.2.0.2:80");
    shuntd.ctl("policy isolation on");
    for address in ["10.2.0.2", "fd02::2"] {
        assert_eq!(knock(&r, address, 80), Knock::Silent);
        assert_eq!(pings_once(&r, address, 1, ""), 0);
    }
    assert_eq!(pings_once(&b, "10.1.0.2", 1, ""), 0, "nor the other way round");
    assert!(shuntd.drops("r", "rx", "policy_isolation") >= 2, "{}", shuntd.port("r"));
    assert_eq!(
        pings(&r, "10.2.0.1", 1, ""),
        1,
        "the gateway's addresses are the switch, not the other bridge"
    );
    beyond.fetch_intact(&r, "192.0.2.2:80");
    server.fetch_intact(&r, "10.1.0.1:8080");
    let other = shuntd.host("r2", "red");
    other.join("10.1.0.3/24", Some("10.1.0.1"));
    answers(&other, "10.1.0.2", SOON);
    shuntd.ctl("policy isolation off");
    server.fetch_intact(&r, "10.2.0.2:80");
}

#[test]
fn a_guarded_port_speaks_only_for_itself() {
    if !is_root() {
        return;
    }
    let shuntd = Shuntd::start();
    shuntd.ctl("policy default forward accept");
    shuntd.network("lan", &["10.5.0.1/24", "fd05::1/64"]);
    let netns =
        shuntd.host_with("liar", "lan", "--guard on --allow-address 10.5.0.2 --allow-address fd05::2");
    let victim = shuntd.host("victim", "lan");
    victim.join("10.5.0.3/24", Some("10.5.0.1"));
    let mut liar = Station::new(netns, &["10.5.0.2", "fd05::2"]);
    let gateway = shuntd.ctl("interface show lan")["mac"].as_str().expect("a MAC").to_owned();
    liar.define(&format!("GW = '{gateway}'; V = '{}'", victim.mac()));
    // Its own addresses pass, at L2 and at L3.
    liar.send("Ether(src=MAC, dst=V)/IP(src='10.5.0.2', dst='10.5.0.3')/ICMP(id=1)");
    liar.expect("ICMP in p and p[ICMP].type == 0 and p[ICMP].id == 1");
    liar.send("Ether(src=MAC, dst=GW)/IP(src='10.5.0.2', dst='10.5.0.1')/ICMP(id=2)");
    liar.expect("ICMP in p and p[ICMP].type == 0 and p[ICMP].id == 2");
    liar.send("Ether(src=MAC, dst=GW)/IPv6(src='fd05::2', dst='fd05::1')/ICMPv6EchoRequest(id=3)");
    liar.expect("ICMPv6EchoReply in p and p[ICMPv6EchoReply].id == 3");
    // DHCP's and ND's first words come from nowhere.
    let drops = || -> u64 {
        let shown = shuntd.port("liar");
        let drops = shown["rx"]["drops"].as_object().cloned().unwrap_or_default();
        drops.iter().filter(|(name, _)| name.starts_with("guard_")).filter_map(|(_, n)| n.as_u64()).sum()
    };
    liar.send(
        "[Ether(src=MAC, dst='ff:ff:ff:ff:ff:ff')/IP(src='0.0.0.0', dst='255.255.255.255')/UDP(sport=68, dport=67)\
         /BOOTP(chaddr=bytes.fromhex(MAC.replace(':', '')), xid=7)/DHCP(options=[('message-type', 'discover'), 'end']), \
         Ether(src=MAC, dst='33:33:ff:00:00:02')/IPv6(src='::', dst='ff02::1:ff00:2', hlim=255)/ICMPv6ND_NS(tgt='fd05::2')]",
    );
    assert_eq!(drops(), 0, "{}", shuntd.port("liar"));
    // Anybody else's do not.
    let dhcp = "/UDP(sport=67, dport=68)/BOOTP(op=2, xid=7)/DHCP(options=[('message-type', 'offer'), 'end'])";
    let offer = format!("Ether(src=MAC, dst=V)/IP(src='10.5.0.2', dst='10.5.0.3'){dhcp}");
    for (reason, lie) in [
        ("guard_mac", "Ether(src='02:00:00:00:00:66', dst=V)/IP(src='10.5.0.2', dst='10.5.0.3')/ICMP()"),
        ("guard_address", "Ether(src=MAC, dst=V)/IP(src='10.5.0.4', dst='10.5.0.3')/ICMP()"),
        ("guard_address", "Ether(src=MAC, dst=GW)/IP(src='10.5.0.1', dst='10.5.0.3')/ICMP()"),
        ("guard_address", "Ether(src=MAC, dst=GW)/IPv6(src='fd05::3', dst='fd05::1')/ICMPv6EchoRequest()"),
        (
            "guard_arp",
            "Ether(src=MAC, dst='ff:ff:ff:ff:ff:ff')/ARP(op=2, hwsrc=MAC, psrc='10.5.0.1', pdst='10.5.0.3')",
        ),
        (
            "guard_arp",
            "Ether(src=MAC, dst='ff:ff:ff:ff:ff:ff')\
             /ARP(op=1, hwsrc='02:00:00:00:00:66', psrc='10.5.0.2', pdst='10.5.0.3')",
        ),
        (
            "guard_neighbour",
            "Ether(src=MAC, dst='33:33:00:00:00:01')/IPv6(src='fd05::2', dst='ff02::1', hlim=255)\
             /ICMPv6ND_NA(tgt='fd05::1', O=1)/ICMPv6NDOptDstLLAddr(lladdr=MAC)",
        ),
        ("guard_server", &offer),
        (
            "guard_server",
            "Ether(src=MAC, dst='33:33:00:00:00:01')/IPv6(src='fe80::' + in6_mactoifaceid(MAC).lower(), dst='ff02::1', hlim=255)\
             /ICMPv6ND_RA()",
        ),
    ] {
        let before = shuntd.drops("liar", "rx", reason);
        liar.send(lie);
        wait_for(&format!("{reason} for {lie}: {}", shuntd.port("liar")), Duration::from_secs(5), || {
            (shuntd.drops("liar", "rx", reason) > before).then_some(())
        });
    }
    assert!(!victim.sh("ip neighbour show 10.5.0.1").contains(&liar.mac), "the gateway was stolen");
    answers(&victim, "10.5.0.1", SOON);
    // The guard goes when it is told to.
    shuntd.ctl("port set liar --guard off");
    liar.send("Ether(src=MAC, dst=V)/IP(src='10.5.0.4', dst='10.5.0.3')/ICMP()");
    wait_for("the packet to pass", SOON, || {
        victim.sh("ip neighbour show 10.5.0.4").contains("10.5.0.4").then_some(())
    });
}

#[test]
fn a_port_with_a_leased_address_is_guarded_by_default() {
    if !is_root() {
        return;
    }
    let shuntd = Shuntd::start();
    shuntd.network("lan", &["10.5.0.1/24"]);
    shuntd.ctl("dhcp set lan --range 10.5.0.100-10.5.0.200");
    let host = shuntd.host("host", "lan");
    let dhcp = shunt_tests::dhcp::Dhcp::start(&host, shunt_tests::dhcp::Client::Udhcpc, "");
    let address = dhcp.address(&host);
    answers(&host, "10.5.0.1", SOON);
    host.ip("address add 10.5.0.9/24 dev eth0");
    assert_eq!(pings_once(&host, "10.5.0.1", 1, "-I 10.5.0.9"), 0, "an address that was not given to it");
    assert_eq!(pings(&host, "10.5.0.1", 1, &format!("-I {}", address.trim_end_matches("/24"))), 1);
    let drops = shuntd.port("host")["rx"]["drops"].to_string();
    assert!(drops.contains("guard_address"), "{drops}");
    // Other ports are free to use what they like.
    let free = shuntd.host("free", "lan");
    free.join("10.5.0.10/24", None);
    answers(&free, "10.5.0.1", SOON);
}

#[test]
fn logged_packets_are_told_of_and_go_on() {
    if !is_root() {
        return;
    }
    let (shuntd, r, b) = red_and_blue();
    let server = Web::serve(&b, 80, 4);
    shuntd.ctl("policy add --id 10 --from interface:red --proto tcp --dport 80 --action log");
    server.fetch_intact(&r, "10.2.0.2:80");
    wait_for("a line in the log", SOON, || {
        let log = shuntd.output();
        log.lines().any(|line| line.contains("10.1.0.2") && line.contains("10.2.0.2")).then_some(())
    });
}

#[test]
fn wrong_rules_are_refused_in_one_line_and_change_nothing() {
    let shuntd = Shuntd::start();
    shuntd.ctl("policy add --id 10 --proto tcp --dport 80 --action accept");
    let before = shuntd.ctl("policy list").to_string();
    for (command, word) in [
        ("policy add --id 10 --proto udp --action drop", "10"),
        ("policy add --proto tcp --dport 90-80 --action drop", "90"),
        ("policy add --proto icmp --dport 80 --action drop", "port"),
        ("policy add --from interface:missing --action drop", "missing"),
        ("policy add --action explode", "explode"),
        ("policy add --source fd00::/8 --destination 10.0.0.0/8 --action drop", "family"),
        ("policy del 11", "11"),
    ] {
        let words: Vec<&str> = command.split_whitespace().collect();
        let refusal = match shuntd.try_ctl(&words) {
            Ok(value) => panic!("`{command}` was carried out: {value}"),
            Err(refusal) => refusal,
        };
        assert!(refusal.status == 1 || refusal.status == 2, "`{command}`: {refusal:?}");
        assert!(refusal.message.contains(word), "`{command}` does not name {word}: {refusal:?}");
    }
    assert_eq!(shuntd.ctl("policy list").to_string(), before);
}
