//! Virtual services: clients, servers and the director between them, with real connections. What Linux 6.1 chose in the
//! same place is what is chosen here.

use std::time::Duration;

use shunt_tests::{Host, Job, NetNs, Shuntd, Web, answers, copy_intact, is_root, pings, seen_as, wait_for};

const SOON: Duration = Duration::from_secs(20);
/// What Linux 6.1 chose.
const GOLDEN: &str = include_str!("../../switch/src/ipvs/tests/scheduling.golden");

/// Runs `shuntctl ipvsadm ARGS`, which must succeed; what it prints.
#[track_caller]
fn ipvsadm(shuntd: &Shuntd, args: &str) -> String {
    let words: Vec<&str> = std::iter::once("ipvsadm").chain(args.split_whitespace()).collect();
    shuntd.ctl_text(&words).unwrap_or_else(|e| panic!("ipvsadm {args}: {}: {}", e.status, e.message))
}

/// The script of both ends.
fn balanced(args: &str) -> String {
    format!("exec /usr/bin/python3 {}/scripts/balanced.py {args}", env!("CARGO_MANIFEST_DIR"))
}

/// Runs its server on a host, on `port`.
#[track_caller]
fn serve(host: &NetNs, port: u16, name: &str) -> Job {
    let job = host.start(&balanced(&format!("serve {port} {name}")), Duration::from_secs(600));
    wait_for("the server", SOON, || {
        (!host.sh(&format!("ss -Hltn sport = :{port}")).is_empty()).then_some(())
    });
    job
}

/// A director between clients (10.0.1.0/24) and servers (10.0.2.0/24), with the service's address 10.9.9.9.
struct Director {
    shuntd: Shuntd,
    client: NetNs,
    server: NetNs,
}

impl Director {
    /// One host has all addresses of clients, another one those of the servers A to D.
    fn start() -> Self {
        let shuntd = Shuntd::start();
        shuntd.ctl("policy default forward accept");
        shuntd.network("clients", &["10.0.1.1/24", "10.9.9.9/32", "fd01::1/64", "fd09::9/128"]);
        shuntd.network("servers", &["10.0.2.1/24", "fd02::1/64"]);
        let client = shuntd.host("client", "clients");
        let server = shuntd.host("server", "servers");
        client.join("10.0.1.10/24", Some("10.0.1.1"));
        client.join("fd01::10/64", Some("fd01::1"));
        server.join("10.0.2.11/24", Some("10.0.2.1"));
        server.join("fd02::11/64", Some("fd02::1"));
        for n in 12..=14 {
            server.ip(&format!("address add 10.0.2.{n}/24 dev eth0"));
        }
        answers(&client, "10.0.2.11", SOON);
        answers(&client, "fd02::11", SOON);
        Self { shuntd, client, server }
    }

    fn call(&self, args: &str) -> String {
        self.client.sh(&balanced(&format!("call 10.9.9.9 {args}")))
    }
}

#[test]
fn connections_go_where_linux_sent_them() {
    if !is_root() {
        return;
    }
    let director = Director::start();
    let shuntd = &director.shuntd;
    for n in 11..=59 {
        director.client.ip(&format!("address add 10.0.1.{n}/24 dev eth0"));
    }
    let _server = serve(&director.server, 80, "");
    let mut played = 0;
    let mut lines = GOLDEN.lines();
    while let Some(line) = lines.next() {
        let Some((name, case)) = line.strip_prefix("case ").and_then(|case| case.split_once(": sched "))
        else {
            continue;
        };
        let expected = lines.next().and_then(|line| line.trim().strip_prefix("-> ")).expect("the letters");
        let (rules, traffic) = case.split_once(" | ").expect("rules and traffic");
        let (rules, options) = rules.split_once(" -- ").unwrap_or((rules, ""));
        let mut words = rules.split(' ');
        let scheduler = words.next().expect("a scheduler");
        ipvsadm(shuntd, "-C");
        // Held connections of the case before would hide where these go.
        shuntd.ctl("conntrack flush");
        ipvsadm(shuntd, &format!("-A -t 10.9.9.9:1039 -s {scheduler} {options}"));
        for (n, weight) in (11..).zip(words) {
            ipvsadm(shuntd, &format!("-a -t 10.9.9.9:1039 -r 10.0.2.{n}:80 -m -w {weight}"));
        }
        let value = |name: &str| {
            traffic.split(' ').find_map(|word| word.strip_prefix(name)).expect("given").to_owned()
        };
        let how = if traffic.contains(" close ") { "close" } else { "hold" };
        let (n, source, sources, port) = (value("n="), value("src="), value("nsrc="), value("sport="));
        let chosen = director.call(&format!("1039 {n} {how} {source} {sources} {port}"));
        assert_eq!(chosen, expected, "case {name}");
        played += 1;
    }
    assert!(played >= 30, "only {played} cases were found");

    // Datagrams: a socket stays where it was sent, sockets are spread; with -o every one of them is.
    ipvsadm(shuntd, "-C");
    let _datagrams = serve(&director.server, 53, "");
    let ask = |how: &str| director.client.sh(&balanced(&format!("ask 10.9.9.9 1040 6 {how}")));
    ipvsadm(shuntd, "-A -u 10.9.9.9:1040 -s rr");
    for n in 11..=13 {
        ipvsadm(shuntd, &format!("-a -u 10.9.9.9:1040 -r 10.0.2.{n}:53 -m"));
    }
    assert_eq!(ask("one"), "CCCCCC");
    shuntd.ctl("conntrack flush");
    ipvsadm(shuntd, "-E -u 10.9.9.9:1040 -s rr");
    let spread = ask("each");
    let mut sorted: Vec<char> = spread.chars().collect();
    sorted.sort_unstable();
    assert_eq!(sorted, ['A', 'A', 'B', 'B', 'C', 'C'], "{spread}");
}

#[test]
fn a_masqueraded_service_from_everywhere() {
    if !is_root() {
        return;
    }
    let Director { shuntd, client, server } = Director::start();
    let web = Web::serve(&server, 80, 4096);
    for (vip, real) in [("10.9.9.9:80", "10.0.2.11:80"), ("[fd09::9]:80", "[fd02::11]:80")] {
        ipvsadm(&shuntd, &format!("-A -t {vip} -s wlc"));
        ipvsadm(&shuntd, &format!("-a -t {vip} -r {real} -m"));
        for _ in 0..5 {
            web.fetch_intact(&client, vip);
        }
    }
    assert_eq!(seen_as(&client, "10.9.9.9:80").as_deref(), Ok("10.0.1.10"), "clients keep their address");
    assert_eq!(seen_as(&client, "[fd09::9]:80").as_deref(), Ok("fd01::10"));
    // On the server's own bridge, the server itself, and on a third bridge.
    let neighbour = shuntd.host("neighbour", "servers");
    neighbour.join("10.0.2.50/24", Some("10.0.2.1"));
    shuntd.network("others", &["10.0.4.1/24"]);
    let other = shuntd.host("other", "others");
    other.join("10.0.4.2/24", Some("10.0.4.1"));
    for host in [&neighbour, &other, &server] {
        web.fetch_intact(host, "10.9.9.9:80");
    }
    assert_eq!(seen_as(&neighbour, "10.9.9.9:80").as_deref(), Ok("10.0.2.1"), "hairpin");
    assert_eq!(seen_as(&other, "10.9.9.9:80").as_deref(), Ok("10.0.4.2"));
    // Large segments, and without offloads.
    client.without_offloads();
    web.fetch_intact(&client, "10.9.9.9:80");
    server.without_offloads();
    web.fetch_intact(&client, "10.9.9.9:80");
    assert_eq!(pings(&client, "10.9.9.9", 3, ""), 3, "the address is the switch's");
    // What was counted.
    let stats = ipvsadm(&shuntd, "-L -n --stats --exact -t 10.9.9.9:80");
    let line = stats.lines().find(|line| line.contains("10.0.2.11:80")).expect("the server");
    let numbers: Vec<u64> = line.split_whitespace().skip(2).map(|n| n.parse().expect("a number")).collect();
    assert!(numbers[0] >= 13 && numbers[1] > 100 && numbers[4] > 10 * 4096 * 1024, "{stats}");
    let listed = ipvsadm(&shuntd, "-L -n -c");
    assert!(listed.contains("TIME_WAIT") || listed.contains("CLOSE"), "{listed}");
    assert!(
        listed.lines().any(|line| line.contains("10.0.1.10:") && line.contains("10.9.9.9:80")),
        "{listed}"
    );
}

#[test]
fn full_translation_needs_no_way_back() {
    if !is_root() {
        return;
    }
    let Director { shuntd, client, server } = Director::start();
    // The server knows nobody but its own network.
    server.ip("route del default");
    let web = Web::serve(&server, 80, 1024);
    shuntd.ctl("interface del servers");
    shuntd.ctl("interface add servers --bridge br-servers --address 10.0.2.1/24 --address 10.0.2.100/24");
    ipvsadm(&shuntd, "-A -t 10.9.9.9:80 -s rr");
    ipvsadm(&shuntd, "-a -t 10.9.9.9:80 -r 10.0.2.11:80 --full-nat 10.0.2.100");
    web.fetch_intact(&client, "10.9.9.9:80");
    assert_eq!(seen_as(&client, "10.9.9.9:80").as_deref(), Ok("10.0.2.100"));
}

/// Client, director and two servers on one network, as the HOWTO for direct routing has it: 10.0.1.100 is the service's
/// address, which the servers have on their loopback and do not tell anybody.
struct OneNetwork {
    shuntd: Shuntd,
    client: NetNs,
    servers: [NetNs; 2],
}

impl OneNetwork {
    fn start() -> Self {
        let shuntd = Shuntd::start();
        shuntd.ctl("policy default forward accept");
        shuntd.network("lan", &["10.0.1.1/24", "10.0.1.100/32"]);
        let client = shuntd.host("client", "lan");
        client.join("10.0.1.10/24", None);
        let servers = [1, 2].map(|n| {
            let server = shuntd.host(&format!("real{n}"), "lan");
            server.join(&format!("10.0.1.2{n}/24"), None);
            server.sh(
                "echo 1 >/proc/sys/net/ipv4/conf/all/arp_ignore; echo 2 >/proc/sys/net/ipv4/conf/all/arp_announce",
            );
            server.ip("address add 10.0.1.100/32 dev lo");
            server
        });
        answers(&client, "10.0.1.1", SOON);
        answers(&client, "10.0.1.21", SOON);
        answers(&client, "10.0.1.22", SOON);
        Self { shuntd, client, servers }
    }

    /// Both servers serve, and the client meets both; downloads are intact and the client's address is its own.
    fn works(&self, forward: &str) {
        let Self { client, servers, shuntd } = self;
        let web = Web::serve(&servers[0], 80, 2048);
        ipvsadm(shuntd, &format!("-e -t 10.0.1.100:80 -r 10.0.1.22 {forward} -w 0"));
        for _ in 0..3 {
            web.fetch_intact(client, "10.0.1.100:80");
        }
        assert_eq!(seen_as(client, "10.0.1.100:80").as_deref(), Ok("10.0.1.10"));
        ipvsadm(shuntd, &format!("-e -t 10.0.1.100:80 -r 10.0.1.22 {forward} -w 1"));
        let _named = [serve(&servers[0], 81, "A"), serve(&servers[1], 81, "B")];
        let called = client.sh(&balanced("call 10.0.1.100 81 6 close 10.0.1.10 1 0"));
        assert!(["ABABAB", "BABABA"].contains(&called.as_str()), "{called}");
        // Answers go past the director: what it knows of the connections, it saw from one side.
        let listed = ipvsadm(shuntd, "-L -n -c");
        assert!(listed.contains("FIN_WAIT"), "{listed}");
        let counted = ipvsadm(shuntd, "-L -n --stats --exact");
        assert!(
            counted.lines().filter(|line| line.contains("->")).skip(1).all(|line| {
                let numbers: Vec<&str> = line.split_whitespace().collect();
                numbers[4] == "0" && numbers[6] == "0"
            }),
            "{counted}"
        );
    }
}

#[test]
fn direct_routing_to_servers_that_hide_the_address() {
    if !is_root() {
        return;
    }
    let net = OneNetwork::start();
    for port in [80, 81] {
        ipvsadm(&net.shuntd, &format!("-A -t 10.0.1.100:{port} -s rr"));
        for n in [1, 2] {
            ipvsadm(&net.shuntd, &format!("-a -t 10.0.1.100:{port} -r 10.0.1.2{n} -g"));
        }
    }
    net.works("-g");
    copy_intact(&net.client, &net.servers[0], "10.0.1.21", 4);
}

#[test]
fn tunnels_to_servers_that_unwrap() {
    if !is_root() {
        return;
    }
    for (kind, options) in [
        ("ipip", ""),
        ("gue", "--tun-type gue --tun-port 5555 --tun-csum"),
        ("gre", "--tun-type gre --tun-csum"),
    ] {
        shunt_tests::progress!("{kind}");
        let net = OneNetwork::start();
        let mut unwrapping = Vec::new();
        for server in &net.servers {
            let dir = net.shuntd.path(server.name());
            std::fs::create_dir_all(&dir).expect("a directory");
            let dir = dir.display();
            server.sh("echo 0 >/proc/sys/net/ipv4/conf/all/rp_filter");
            let script = format!("cd {dir}; {}", balanced(&format!("unwrap {kind}")));
            unwrapping.push(server.start(&script, Duration::from_secs(600)));
            wait_for("the tunnel's end", SOON, || {
                server.run(&format!("test -e {dir}/unwrapping")).ok().then_some(())
            });
        }
        for port in [80, 81] {
            ipvsadm(&net.shuntd, &format!("-A -t 10.0.1.100:{port} -s rr"));
            for n in [1, 2] {
                ipvsadm(&net.shuntd, &format!("-a -t 10.0.1.100:{port} -r 10.0.1.2{n} -i {options}"));
            }
        }
        net.works(&format!("-i {options}"));
    }
}

#[test]
fn clients_of_persistent_services_stay() {
    if !is_root() {
        return;
    }
    let director = Director::start();
    let shuntd = &director.shuntd;
    for n in 11..=20 {
        director.client.ip(&format!("address add 10.0.1.{n}/24 dev eth0"));
    }
    let _servers = [serve(&director.server, 80, ""), serve(&director.server, 81, "")];
    // All ports of the address.
    ipvsadm(shuntd, "-A -t 10.9.9.9:0 -s rr -p 300");
    for n in 11..=13 {
        ipvsadm(shuntd, &format!("-a -t 10.9.9.9:0 -r 10.0.2.{n}:0 -m"));
    }
    let first = director.call("80 6 close 10.0.1.10 3 0");
    assert_eq!(&first[..3], &first[3..], "each client the same again");
    assert_eq!(director.call("81 3 close 10.0.1.10 3 0"), &first[..3], "whatever the port");
    let listed = ipvsadm(shuntd, "-L -n -c");
    let templates = listed.lines().filter(|line| line.contains(":0 ") && line.contains("10.9.9.9:0")).count();
    assert_eq!(templates, 3, "{listed}");
    let counts = ipvsadm(shuntd, "-L -n --persistent-conn");
    assert_eq!(
        counts.lines().filter(|line| line.contains("->") && line.contains("10.0.2.1")).count(),
        3,
        "{counts}"
    );
}

#[test]
fn a_server_is_drained_while_it_serves_and_replaced_when_it_is_gone() {
    if !is_root() {
        return;
    }
    let Director { shuntd, client, server } = Director::start();
    let web = Web::serve(&server, 80, 4096);
    let _named = serve(&server, 81, "");
    for port in [80, 81] {
        ipvsadm(&shuntd, &format!("-A -t 10.9.9.9:{port} -s wlc"));
        ipvsadm(&shuntd, &format!("-a -t 10.9.9.9:{port} -r 10.0.2.11:{port} -m"));
    }
    // A slow download, and its server gets no new connections meanwhile.
    let slow = client.start(
        "exec curl -sS --limit-rate 1M --max-time 60 -o /dev/null -w '%{size_download}' http://10.9.9.9/file",
        Duration::from_secs(90),
    );
    let line = |port: u16| -> String {
        let listing = ipvsadm(&shuntd, &format!("-L -n -t 10.9.9.9:{port}"));
        listing.lines().find(|line| line.contains("10.0.2.11")).unwrap_or_default().to_owned()
    };
    let active = |port| line(port).split_whitespace().nth(4).map(str::to_owned);
    wait_for("the download", SOON, || (active(80).as_deref() == Some("1")).then_some(()));
    for port in [80, 81] {
        ipvsadm(&shuntd, &format!("-e -t 10.9.9.9:{port} -r 10.0.2.11:{port} -m -w 0"));
        ipvsadm(&shuntd, &format!("-a -t 10.9.9.9:{port} -r 10.0.2.12:{port} -m"));
    }
    assert_eq!(director_call(&client, "81 4 close 10.0.1.10 1 0"), "BBBB");
    web.fetch_intact(&client, "10.9.9.9:80");
    assert_eq!(slow.wait().text.trim(), (4096 * 1024).to_string(), "what was begun is finished");
    wait_for("no more connections", Duration::from_secs(5), || {
        (active(80).as_deref() == Some("0")).then_some(())
    });
    // Deleted: what it has is dropped in silence; with expire_nodest_conn it ends, and others go on.
    ipvsadm(&shuntd, "-d -t 10.9.9.9:81 -r 10.0.2.11:81");
    ipvsadm(&shuntd, "-d -t 10.9.9.9:81 -r 10.0.2.12:81");
    assert_eq!(director_call(&client, "81 2 close 10.0.1.10 1 0"), "xx", "nobody is left");
    ipvsadm(&shuntd, "-a -t 10.9.9.9:81 -r 10.0.2.13:81 -m");
    assert_eq!(director_call(&client, "81 3 close 10.0.1.10 1 0"), "CCC");
}

fn director_call(client: &NetNs, args: &str) -> String {
    client.sh(&balanced(&format!("call 10.9.9.9 {args}")))
}

#[test]
fn ftp_behind_a_service() {
    if !is_root() {
        return;
    }
    let Director { shuntd, client, server } = Director::start();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().display();
    server.sh(&format!("head -c 300000 /dev/urandom >{path}/file"));
    let sum = server.sh(&format!("sha256sum <{path}/file"));
    let _job = server
        .start(&format!("exec /usr/bin/python3 -m pyftpdlib -p 21 -d {path}"), Duration::from_secs(120));
    wait_for("the FTP server", SOON, || (!server.sh("ss -Hltn sport = :21").is_empty()).then_some(()));
    ipvsadm(&shuntd, "-A -t 10.9.9.9:21 -s rr");
    ipvsadm(&shuntd, "-a -t 10.9.9.9:21 -r 10.0.2.11:21 -m");
    // With nothing but what the helper allows.
    shuntd.ctl("policy default forward drop");
    for options in ["", "--disable-epsv", "--ftp-port - --disable-eprt"] {
        let got = client.run(&format!("curl -sS --max-time 20 {options} ftp://10.9.9.9/file | sha256sum"));
        assert_eq!(got.text.trim(), sum, "curl {options}");
        shunt_tests::progress!("FTP with `{options}` arrived unchanged");
    }
    let listed = ipvsadm(&shuntd, "-L -n -c");
    assert!(listed.lines().filter(|line| line.contains("10.0.2.11:")).count() >= 5, "{listed}");
}
