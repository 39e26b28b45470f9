//! Ways through the gateway that others do not take: addresses for addresses, mappings for everybody, the host as the way
//! out, networks in VLANs, protocols without ports that are known, and bridges whose own frames are judged.

use std::time::Duration;

use shunt_tests::conntrack::entry;
use shunt_tests::tools::repository;
use shunt_tests::{
    GuestSpec, Host, Job, Knock, NetNs, Nic, Shuntd, Station, Web, answers, boot_all, copy_intact, is_root,
    knock, pings, pings_once, seen_as, wait_for,
};

const SOON: Duration = Duration::from_secs(15);

/// Two containers behind a gateway, and an outside host that has no route to anything.
struct Walk {
    web: NetNs,
    other: NetNs,
    outside: NetNs,
    shuntd: Shuntd,
}

impl Walk {
    fn start() -> Self {
        let shuntd = Shuntd::start();
        shuntd.network("cont", &["172.18.0.1/16", "fd18::1/64"]);
        shuntd.network("wan", &["10.0.2.15/24", "fd02::15/64"]);
        let [web, other] = ["web", "other"].map(|name| shuntd.host(name, "cont"));
        let outside = shuntd.host("outside", "wan");
        web.join("172.18.0.10/16", Some("172.18.0.1"));
        web.join("fd18::10/64", Some("fd18::1"));
        other.join("172.18.0.20/16", Some("172.18.0.1"));
        outside.join("10.0.2.2/24", None);
        outside.join("fd02::2/64", None);
        answers(&web, "172.18.0.1", SOON);
        answers(&web, "fd18::1", SOON);
        answers(&outside, "10.0.2.15", SOON);
        answers(&outside, "fd02::15", SOON);
        Self { web, other, outside, shuntd }
    }
}

/// The command line of a program of `tests/scripts/udp.py`.
fn udp(words: &str) -> String {
    format!("exec /usr/bin/python3 {}/tests/scripts/udp.py {words}", repository().display())
}

/// Starts a server of that script, and waits for it.
#[track_caller]
fn serve_udp(host: &NetNs, words: &str, port: u16) -> Job {
    let job = host.start(&udp(words), Duration::from_secs(120));
    let listening = format!("ss -Hlun sport = :{port}");
    wait_for("the server", SOON, || (!host.sh(&listening).is_empty()).then_some(()));
    job
}

#[test]
fn outside_addresses_stand_for_inside_ones_and_are_answered_for() {
    if !is_root() {
        return;
    }
    let Walk { web, other, outside, shuntd } = &Walk::start();
    shuntd.ctl("nat one-to-one add --outside 10.0.2.100/32 --inside 172.18.0.10/32 --out wan");
    shuntd.ctl("nat one-to-one add --outside 10.0.2.112/28 --inside 172.18.0.16/28 --out wan");
    shuntd.ctl("nat one-to-one add --outside fd02::100/128 --inside fd18::10/128 --out wan");
    // Nobody has told the outside where these addresses are: it asks on its link.
    for address in ["10.0.2.100", "10.0.2.116", "fd02::100"] {
        answers(outside, address, SOON);
    }
    let mac = shuntd.ctl("interface show wan")["mac"].as_str().unwrap_or_default().to_owned();
    for address in ["10.0.2.100", "fd02::100"] {
        let known = outside.sh(&format!("ip neighbour show {address}"));
        assert!(known.contains(&mac), "{address} is not at {mac}: {known}");
    }
    // Every port and protocol, in both directions.
    let inner = Web::serve(web, 8080, 256);
    inner.fetch_intact(outside, "10.0.2.100:8080");
    inner.fetch_intact(outside, "[fd02::100]:8080");
    assert_eq!(seen_as(outside, "10.0.2.100:8080").as_deref(), Ok("10.0.2.2"), "callers keep their address");
    let outer = Web::serve(outside, 80, 256);
    outer.fetch_intact(web, "10.0.2.2:80");
    assert_eq!(seen_as(web, "10.0.2.2:80").as_deref(), Ok("10.0.2.100"));
    assert_eq!(seen_as(other, "10.0.2.2:80").as_deref(), Ok("10.0.2.116"), "the same place in its network");
    assert_eq!(seen_as(web, "[fd02::2]:80").as_deref(), Ok("fd02::100"));
    // A pool is answered for as well; what no rule names is nobody's.
    shuntd.ctl("nat snat add --source 172.18.3.0/24 --out wan --to 10.0.2.70-10.0.2.71");
    web.ip("address add 172.18.3.1/16 dev eth0");
    assert_eq!(pings(web, "10.0.2.2", 2, "-I 172.18.3.1"), 2);
    let pool = outside.sh("ip neighbour show | awk '/10.0.2.7[01] / { print $5 }'");
    assert_eq!(pool, mac, "the pool's address has no other");
    assert_eq!(pings_once(outside, "10.0.2.99", 1, ""), 0);
    assert!(!outside.sh("ip neighbour show 10.0.2.99").contains("lladdr"));
    // On another network nobody asks for them, and nobody is answered.
    web.ip("route add 10.0.2.100/32 dev eth0");
    assert_eq!(pings_once(web, "10.0.2.100", 1, ""), 0);
}

#[test]
fn an_endpoint_independent_mapping_is_everybodys() {
    if !is_root() {
        return;
    }
    let Walk { web, other, outside, shuntd } = &Walk::start();
    for address in ["10.0.2.3/24", "10.0.2.4/24"] {
        outside.ip(&format!("address add {address} dev eth0"));
    }
    let server = serve_udp(outside, "tell 10.0.2.2:7000 10.0.2.3:7001", 7000);
    // Both guests use one port, so one of them cannot keep it.
    let mapped = |from: &NetNs, seconds: u32| {
        from.start(&udp(&format!("map 5555 {seconds} 10.0.2.2:7000 10.0.2.3:7001")), 2 * SOON)
    };
    let told = |job: Job| job.wait().text.lines().map(str::to_owned).collect::<Vec<_>>();
    let shown = |source: &str| {
        let all = shuntd.connections(&format!("--proto udp --source {source}"));
        let to = |place: &str| {
            entry(&all, &[("dst", place)]).map(|c| c["reply_dport"].as_str().map(str::to_owned))
        };
        Some((to("10.0.2.2")??, to("10.0.2.3")??))
    };
    let rule = |options: &str| {
        let rule = shuntd.ctl(&format!("nat masquerade add --source 172.18.0.0/16 --out wan {options}"));
        rule["id"].as_u64().unwrap_or_else(|| panic!("no number in {rule}"))
    };

    let id = rule("--endpoint-independent");
    let (first, second) = (mapped(web, 60), mapped(other, 60));
    for (guest, job) in [("172.18.0.10", first), ("172.18.0.20", second)] {
        let (one, two) = wait_for("both connections", SOON, || shown(guest));
        assert_eq!(one, two, "one mapping towards everybody");
        // Somebody to whom the guest never spoke calls it there.
        outside.sh(&udp(&format!("poke 9999 10.0.2.15:{one}")));
        assert_eq!(told(job), [one.as_str(), one.as_str(), "a call"]);
    }

    // Without it, the same caller reaches nobody.
    shuntd.ctl(&format!("nat masquerade del {id}"));
    shuntd.ctl("conntrack flush");
    rule("");
    let job = mapped(web, 5);
    let (port, _) = wait_for("both connections", SOON, || shown("172.18.0.10"));
    outside.sh(&udp(&format!("poke 9998 10.0.2.15:{port}")));
    assert_eq!(told(job).last().map(String::as_str), Some("nobody"));
    drop(server);
}

#[test]
fn a_stub_resolver_gets_its_answers_short_and_in_fragments() {
    if !is_root() {
        return;
    }
    let Walk { web, other, outside, shuntd } = &Walk::start();
    shuntd.ctl("nat masquerade add --source 172.18.0.0/16 --out wan");
    shuntd.ctl("nat masquerade add --source fd18::/64 --out wan");
    let servers = [serve_udp(outside, "answer 10.0.2.2", 53), serve_udp(outside, "answer fd02::2", 53)];
    assert_eq!(web.sh(&udp("resolve 10.0.2.2 60")), "60");
    assert_eq!(other.sh(&udp("resolve 10.0.2.2 15")), "15");
    assert_eq!(web.sh(&udp("resolve fd02::2 30")), "30");
    // Published, it answers the outside.
    let inner = serve_udp(web, "answer 172.18.0.10", 53);
    shuntd.ctl("nat publish add --proto udp --listen 10.0.2.15:53 --to 172.18.0.10:53");
    assert_eq!(outside.sh(&udp("resolve 10.0.2.15 30")), "30");
    drop((servers, inner));
}

#[test]
fn sctp_is_translated_by_its_addresses() {
    if !is_root() {
        return;
    }
    let shuntd = Shuntd::start();
    shuntd.network("red", &["10.1.0.1/24"]);
    shuntd.network("blue", &["10.2.0.1/24"]);
    shuntd.ctl("nat masquerade add --source 10.1.0.0/24 --out blue");
    let mut inside = Station::new(shuntd.host("inside", "red"), &["10.1.0.2"]);
    let mut outside = Station::new(shuntd.host("outside", "blue"), &["10.2.0.2"]);
    for (station, interface) in [(&mut inside, "red"), (&mut outside, "blue")] {
        let gateway = shuntd.ctl(&format!("interface show {interface}"))["mac"].clone();
        station.define(&format!("GW = {gateway}\nE = Ether(src=MAC, dst=GW)"));
    }
    // Its checksum covers no addresses, so it must be what it was.
    let sound = "p[SCTP].chksum == SCTP(bytes(p[SCTP])).chksum and good(p, IP)";
    inside.send(
        "E/IP(src='10.1.0.2', dst='10.2.0.2')/SCTP(sport=2905, dport=3868, tag=0)/SCTPChunkInit(init_tag=7)",
    );
    outside.expect(&format!(
        "SCTP in p and p[IP].src == '10.2.0.1' and p[SCTP].sport == 2905 and p[SCTP].dport == 3868 and {sound}"
    ));
    outside.send("E/IP(src='10.2.0.2', dst='10.2.0.1')/SCTP(sport=3868, dport=2905, tag=7)/SCTPChunkInitAck(init_tag=8)");
    inside.expect(&format!("SCTP in p and p[IP].dst == '10.1.0.2' and p[SCTP].tag == 7 and {sound}"));
    inside.send(
        "E/IP(src='10.1.0.2', dst='10.2.0.2')/SCTP(sport=2905, dport=3868, tag=8)/SCTPChunkData(data=b'over')",
    );
    outside.expect("SCTP in p and p[IP].src == '10.2.0.1' and b'over' in bytes(p)");
    let known = shuntd.connections("--proto 132");
    assert!(entry(&known, &[("src", "10.1.0.2"), ("reply_dst", "10.2.0.1")]).is_some(), "{known:?}");
    // Who was not called does not get in.
    outside.send("E/IP(src='10.2.0.9', dst='10.2.0.1')/SCTP(sport=1, dport=2905)/SCTPChunkInit(init_tag=9)");
    assert!(!inside.finds("SCTP in p and p[IP].src == '10.2.0.9'", Duration::from_secs(1)));
}

/// A machine with a device to an outside host, in which the daemon runs; and a guest behind that.
struct Machine {
    guest: NetNs,
    outside: NetNs,
    shuntd: Shuntd,
    host: NetNs,
}

impl Machine {
    fn start(arguments: &[&str]) -> Self {
        let (host, outside) = (NetNs::new("host"), NetNs::new("outside"));
        host.veth("out", &outside, "eth0");
        host.up("out", Some("198.51.100.1/24"));
        outside.up("eth0", Some("198.51.100.2/24"));
        let mut shuntd = Shuntd::new().within(&host).arguments(arguments);
        shuntd.launch();
        let guest = NetNs::new("guest");
        shuntd.ctl(&format!("port add guest --bridge shunt0 --tap eth0 --netns {}", guest.id()));
        guest.up("eth0", Some("10.0.3.10/24"));
        guest.ip("route add default via 10.0.3.1");
        answers(&guest, "10.0.3.1", SOON);
        Self { guest, outside, shuntd, host }
    }

    /// The guest is in the outside as the uplink's address; the host reaches what it publishes.
    #[track_caller]
    fn is_the_way_out(&self) {
        let Self { guest, outside, shuntd, host } = self;
        assert_eq!(shuntd.ctl("status")["host_commands"], serde_json::json!([]));
        // The outside's way back, which a router there would have, or the host's own translation.
        outside.ip("route add 10.0.4.0/30 via 198.51.100.1");
        answers(guest, "198.51.100.2", SOON);
        let server = Web::serve(outside, 80, 256);
        server.fetch_intact(guest, "198.51.100.2:80");
        assert_eq!(seen_as(guest, "198.51.100.2:80").as_deref(), Ok("10.0.4.2"));
        let inner = Web::serve(guest, 80, 256);
        shuntd.ctl("nat publish add --proto tcp --listen 10.0.4.2:8080 --to 10.0.3.10:80");
        inner.fetch_intact(host, "10.0.4.2:8080");
        inner.fetch_intact(outside, "10.0.4.2:8080");
    }
}

#[test]
fn the_host_is_made_the_way_out() {
    if !is_root() {
        return;
    }
    let machine = Machine::start(&["--host-setup"]);
    assert!(machine.host.sh("ip -4 -o address show dev shunt-up").contains("10.0.4.1/30"));
    assert_eq!(machine.host.sh("cat /proc/sys/net/ipv4/ip_forward"), "1");
    machine.is_the_way_out();
}

#[test]
fn what_the_host_lacks_is_told_as_commands_that_do_it() {
    if !is_root() {
        return;
    }
    let machine = Machine::start(&[]);
    let (shuntd, host) = (&machine.shuntd, &machine.host);
    host.sh("echo 0 >/proc/sys/net/ipv4/ip_forward");
    for command in [
        "bridge add uplink",
        "port add uplink --bridge uplink --tap shunt-up",
        "interface add uplink --bridge uplink --address 10.0.4.2/30",
        "route add default --via 10.0.4.1",
    ] {
        shuntd.ctl(command);
    }
    let told = shuntd.ctl("status")["host_commands"].clone();
    let told: Vec<&str> = told.as_array().into_iter().flatten().filter_map(|line| line.as_str()).collect();
    assert_eq!(told, ["ip address add 10.0.4.1/30 dev shunt-up", "sysctl -w net.ipv4.ip_forward=1"]);
    for command in told {
        host.sh(&command.replace("sysctl -w net.ipv4.ip_forward=1", "echo 1 >/proc/sys/net/ipv4/ip_forward"));
    }
    host.sh("ip link set shunt-up up");
    machine.is_the_way_out();
}

#[test]
fn networks_in_vlans_of_one_bridge_are_routed() {
    let shuntd = Shuntd::start();
    shuntd.ctl("bridge add trunk");
    for (vlan, name) in [(10, "ten"), (20, "twenty")] {
        shuntd.ctl(&format!(
            "interface add {name} --bridge trunk --vlan {vlan} --address 10.{vlan}.0.1/24 --address fd{vlan}::1/64"
        ));
    }
    let sockets = ["a", "b"].map(|name| {
        let socket = shuntd.path(&format!("{name}.sock"));
        shuntd.ctl(&format!("port add {name} --bridge trunk --vhost-user {}", socket.display()));
        socket
    });
    let guests = boot_all([
        GuestSpec::new("a").nic(Nic::connects(&sockets[0])),
        GuestSpec::new("b").nic(Nic::connects(&sockets[1]).without_tso()),
    ]);
    for (guest, vlan) in guests.iter().zip([10, 20]) {
        guest.sh(&format!(
            "modprobe 8021q; ip link set eth0 up; ip link add link eth0 name eth0.{vlan} type vlan id {vlan}; \
             ip link set eth0.{vlan} up; ip address add 10.{vlan}.0.2/24 dev eth0.{vlan}; \
             ip address add fd{vlan}::2/64 dev eth0.{vlan} nodad; \
             ip route add default via 10.{vlan}.0.1; ip -6 route add default via fd{vlan}::1"
        ));
    }
    let [a, b] = &guests;
    answers(a, "10.10.0.1", SOON);
    for address in ["10.20.0.2", "fd20::2"] {
        answers(a, address, SOON);
        copy_intact(a, b, address, 8);
    }
    copy_intact(b, a, "10.10.0.2", 8);
    assert!(a.sh("ping -c1 10.20.0.2").contains("ttl=63"), "routed, not bridged");
    // Neither network is on the wire without its tag, nor in the other one's.
    assert_eq!(pings(a, "10.20.0.1", 1, ""), 1, "all of the gateway's addresses are its own");
    a.sh("ip address add 10.20.0.9/24 dev eth0");
    assert_eq!(pings_once(a, "10.20.0.2", 1, "-I eth0"), 0);
    shuntd.ctl("nat masquerade add --source 10.10.0.0/24 --out twenty");
    let server = Web::serve(b, 80, 256);
    a.sh("ip address del 10.20.0.9/24 dev eth0");
    server.fetch_intact(a, "10.20.0.2:80");
    let known = shuntd.connections("--proto tcp");
    assert!(entry(&known, &[("src", "10.10.0.2"), ("reply_dst", "10.20.0.1")]).is_some(), "{known:?}");
}

#[test]
fn a_bridge_with_a_filter_judges_its_own_frames() {
    if !is_root() {
        return;
    }
    let Walk { web, other, shuntd, .. } = &Walk::start();
    let servers = [80, 81, 82].map(|port| Web::serve(other, port, 64));
    let back = Web::serve(web, 80, 64);
    for (id, rule) in [
        (10, "--from port:web --to port:other --proto tcp --dport 80 --action accept"),
        (20, "--from port:web --to port:other --proto tcp --dport 82 --action drop"),
        (30, "--from port:web --to port:other --action reject"),
    ] {
        shuntd.ctl(&format!("policy add --id {id} {rule}"));
    }
    servers[1].fetch_intact(web, "172.18.0.20:81");
    shuntd.ctl("bridge set br-cont --filter on");
    servers[0].fetch_intact(web, "172.18.0.20:80");
    assert_eq!(knock(web, "172.18.0.20", 81), Knock::Refused, "rejected with a reset");
    assert_eq!(knock(web, "172.18.0.20", 82), Knock::Silent, "dropped");
    let words = web.run("ping -c1 -W2 172.18.0.20").text;
    assert!(words.contains("From 172.18.0.1") && words.contains("Destination Port Unreachable"), "{words}");
    // What the other one opens is another matter, and is answered.
    back.fetch_intact(other, "172.18.0.10:80");
    assert_eq!(pings(other, "172.18.0.10", 3, ""), 3);
    shuntd.ctl("bridge set br-cont --filter off");
    servers[2].fetch_intact(web, "172.18.0.20:82");
    assert_eq!(pings(web, "172.18.0.20", 1, ""), 1);
}

#[test]
fn a_rule_about_the_way_out_holds_for_the_first_packet_too() {
    if !is_root() {
        return;
    }
    let Walk { web, other, outside, shuntd } = &Walk::start();
    shuntd.ctl("nat masquerade add --source 172.18.0.0/16 --out wan");
    // The outside has not been heard for a while, as far as the switch knows: nobody knows its port.
    shuntd.ctl("policy add --from bridge:br-cont --to port:outside --proto tcp --action reject");
    let server = Web::serve(outside, 80, 64);
    shuntd.ctl("neighbour flush");
    assert_eq!(knock(web, "10.0.2.2", 80), Knock::Refused);
    assert_eq!(knock(other, "10.0.2.2", 80), Knock::Refused);
    assert_eq!(shuntd.connections("--proto tcp").len(), 0, "nothing slipped through");
    shuntd.ctl("neighbour flush");
    assert_eq!(pings(web, "10.0.2.2", 2, ""), 2, "other protocols wait for the neighbour, and go on");
    shuntd.ctl("policy flush");
    server.fetch_intact(web, "10.0.2.2:80");
}
