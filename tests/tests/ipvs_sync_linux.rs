//! Sync daemons of shunt and of a Linux kernel, in a guest, tell each other of their connections.

use std::time::Duration;

use shunt_tests::conntrack::entry;
use shunt_tests::{GuestSpec, Host, NetNs, Nic, Shuntd, answers, is_root, wait_for};

const SOON: Duration = Duration::from_secs(30);
const SERVICES: [&str; 4] = [
    "-A -t 10.9.9.9:80 -s rr",
    "-a -t 10.9.9.9:80 -r 10.0.2.11:8080 -m",
    "-A -t 10.9.9.9:81 -s rr -p 300",
    "-a -t 10.9.9.9:81 -r 10.0.2.11:8080 -m",
];

/// A conversation of some small segments that goes on until its host ends it.
fn talk(port: u16) -> String {
    format!("while :; do echo x; sleep 0.2; done | nc -n 10.9.9.9 {port} >/dev/null")
}

/// A listener that says nothing and hears everybody.
const LISTEN: &str = "nc -n -l -k 8080 >/dev/null";

#[test]
fn each_tells_the_other() {
    if !is_root() {
        return;
    }
    let place = NetNs::new("director");
    let shuntd = Shuntd::start_within(&place);
    shuntd.network("wan", &["10.0.1.1/24"]);
    shuntd.network("lan", &["10.0.2.1/24"]);
    let (client, server) = (shuntd.host("client", "wan"), shuntd.host("server", "lan"));
    client.join("10.0.1.2/24", Some("10.0.1.1"));
    server.join("10.0.2.11/24", Some("10.0.2.1"));
    // The directors' own network: the daemon's side is a device of its namespace.
    shuntd.ctl("bridge add br-sync");
    shuntd.ctl("port add self --bridge br-sync --tap sync");
    place.up("sync", Some("10.0.9.1/24"));
    let socket = shuntd.path("linux.sock");
    shuntd.ctl(&format!("port add linux --bridge br-sync --vhost-user {}", socket.display()));
    let linux = GuestSpec::new("linux").nic(Nic::connects(&socket).address("10.0.9.2/24")).boot();
    answers(&place, "10.0.9.2", SOON);
    // In the guest a network like ours, of namespaces.
    linux.sh("modprobe -a veth ip_vs ip_vs_rr; mkdir -p /run/netns; echo 1 >/proc/sys/net/ipv4/ip_forward
         for net in 'c 1 2' 's 2 11'; do
             set -- $net
             ip netns add $1; ip link add v$1 type veth peer name eth0 netns $1
             ip address add 10.0.$2.1/24 dev v$1; ip link set v$1 up
             ip -n $1 link set lo up; ip -n $1 address add 10.0.$2.$3/24 dev eth0; ip -n $1 link set eth0 up
             ip -n $1 route add default via 10.0.$2.1
         done; ip address add 10.9.9.9/32 dev lo");
    for arguments in SERVICES {
        shuntd.ctl(&format!("ipvsadm {arguments}"));
        linux.sh(&format!("ipvsadm {arguments}"));
    }
    let listed = || shuntd.ctl_text(&["ipvsadm", "-Lnc"]).unwrap_or_default();
    let has = |listing: &str, words: &[&str]| {
        listing.lines().any(|line| words.iter().all(|word| line.contains(word)))
    };

    // Linux is master: a connection, one under a template, and their ends.
    shuntd.ctl("ipvsadm --start-daemon backup --mcast-interface sync --syncid 7");
    linux.sh("ipvsadm --start-daemon master --mcast-interface eth0 --syncid 7");
    let _listener = linux.start(&format!("ip netns exec s {LISTEN}"), Duration::from_secs(300));
    wait_for("the guest's server to listen", SOON, || {
        (!linux.sh("ip netns exec s ss -Hltn").is_empty()).then_some(())
    });
    let talks = [80, 81].map(|port| linux.start(&format!("ip netns exec c sh -c '{}'", talk(port)), SOON));
    wait_for("connections of Linux", SOON, || {
        let known = shuntd.connections("--state ESTABLISHED");
        let of = |port| {
            let fields =
                [("src", "10.0.1.2"), ("dst", "10.9.9.9"), ("dport", port), ("reply_src", "10.0.2.11")];
            entry(&known, &fields).is_some()
        };
        (of("80") && of("81")).then_some(())
    });
    wait_for("the template of Linux", SOON, || {
        has(&listed(), &["10.0.1.2:0", "10.9.9.9:81", "10.0.2.11:8080"]).then_some(())
    });
    drop(talks);
    linux.run("for pid in $(ip netns pids c); do kill -9 $pid; done");
    wait_for("their ends", SOON, || shuntd.connections("--state ESTABLISHED").is_empty().then_some(()));
    linux.sh("ipvsadm --stop-daemon master; ipvsadm -C");
    shuntd.ctl("ipvsadm --stop-daemon backup");

    // The other way round.
    for arguments in SERVICES {
        linux.sh(&format!("ipvsadm {arguments}"));
    }
    shuntd.ctl("conntrack flush");
    linux.sh("ipvsadm --start-daemon backup --mcast-interface eth0 --syncid 9");
    shuntd.ctl("ipvsadm --start-daemon master --mcast-interface sync --syncid 9");
    let _listener = server.start(LISTEN, Duration::from_secs(300));
    wait_for("the server to listen", SOON, || {
        (!server.sh("ss -Hltn sport = :8080").is_empty()).then_some(())
    });
    let talks = [80, 81].map(|port| client.start(&talk(port), SOON));
    let in_linux = || linux.run("ipvsadm -Lnc").text;
    wait_for("connections of shunt", SOON, || {
        let listing = in_linux();
        let of = |port| has(&listing, &["ESTABLISHED", "10.0.1.2:", port, "10.0.2.11:8080"]);
        (of("10.9.9.9:80") && of("10.9.9.9:81")).then_some(())
    });
    wait_for("the template of shunt", SOON, || {
        has(&in_linux(), &["ASSURED", "10.0.1.2:0", "10.9.9.9:81", "10.0.2.11:8080"]).then_some(())
    });
    // Linux counts them at its own servers.
    let active = linux.sh("ipvsadm -Ln | awk '$2 == \"10.0.2.11:8080\" { print $5 }'");
    assert_eq!(active.split_whitespace().collect::<Vec<_>>(), ["1", "1"], "active connections: {active}");
    drop(talks);
    client.run("for pid in $(pgrep -x nc); do grep -q 10.9.9.9 /proc/$pid/cmdline && kill -9 $pid; done");
    wait_for("their ends", SOON, || (!in_linux().contains("ESTABLISHED")).then_some(()));
}
