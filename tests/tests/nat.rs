//! Address translation: the hand-made container network (bridge, gateway, masquerade, published server) as one daemon's
//! work, and what goes through it.

use std::time::Duration;

use serde_json::Value;
use shunt_tests::conntrack::entry;
use shunt_tests::{
    Host, Knock, MUCH, NetNs, Shuntd, Web, answers, copy_intact, iperf, is_root, knock, pings, pings_once,
    seen_as, wait_for,
};

const SOON: Duration = Duration::from_secs(15);

/// Two containers behind a gateway, and an outside host that knows nothing of their network.
struct Walk {
    web: NetNs,
    other: NetNs,
    outside: NetNs,
    shuntd: Shuntd,
}

impl Walk {
    fn start() -> Self {
        let shuntd = Shuntd::start();
        shuntd.ctl("policy default forward accept");
        shuntd.network("cont", &["172.18.0.1/16", "fd18::1/64"]);
        shuntd.network("wan", &["10.0.2.15/24", "fd02::15/64"]);
        let [web, other] = ["web", "other"].map(|name| shuntd.host(name, "cont"));
        let outside = shuntd.host("outside", "wan");
        web.join("172.18.0.10/16", Some("172.18.0.1"));
        web.join("fd18::10/64", Some("fd18::1"));
        other.join("172.18.0.20/16", Some("172.18.0.1"));
        other.join("fd18::20/64", Some("fd18::1"));
        outside.join("10.0.2.2/24", None);
        outside.join("fd02::2/64", None);
        answers(&web, "172.18.0.1", SOON);
        answers(&other, "fd18::1", SOON);
        answers(&outside, "10.0.2.15", SOON);
        answers(&outside, "fd02::15", SOON);
        Self { web, other, outside, shuntd }
    }

    fn masqueraded() -> Self {
        let walk = Self::start();
        walk.shuntd.ctl("nat masquerade add --source 172.18.0.0/16 --out wan");
        walk.shuntd.ctl("nat masquerade add --source fd18::/64 --out wan");
        answers(&walk.web, "10.0.2.2", SOON);
        answers(&walk.web, "fd02::2", SOON);
        walk
    }

    fn publish(&self, what: &str) {
        self.shuntd.ctl(&format!("nat publish add {what}"));
    }
}

#[test]
fn the_hand_made_container_network_step_by_step() {
    if !is_root() {
        return;
    }
    let walk = Walk::start();
    let (shuntd, web, other, outside) = (&walk.shuntd, &walk.web, &walk.other, &walk.outside);
    assert_eq!(pings(web, "172.18.0.20", 5, ""), 5, "one network needs no gateway");
    assert_eq!(pings(web, "172.18.0.1", 5, ""), 5);
    assert_eq!(pings(web, "10.0.2.15", 5, ""), 5, "every address of the gateway answers");
    // Without translation the outside has no way back.
    assert_eq!(pings_once(web, "10.0.2.2", 2, ""), 0);

    shuntd.ctl("nat masquerade add --source 172.18.0.0/16 --out wan");
    answers(web, "10.0.2.2", SOON);
    assert_eq!(pings(other, "10.0.2.2", 5, ""), 5);
    let elsewhere = Web::serve(outside, 80, 512);
    elsewhere.fetch_intact(web, "10.0.2.2:80");
    assert_eq!(seen_as(web, "10.0.2.2:80").as_deref(), Ok("10.0.2.15"));
    assert_eq!(seen_as(other, "10.0.2.2:80").as_deref(), Ok("10.0.2.15"));
    assert_eq!(pings(web, "172.18.0.20", 5, ""), 5, "what stays inside is not translated");

    // Not published: refused. Published: from outside, from the same network, from the server itself.
    assert_eq!(knock(outside, "10.0.2.15", 5000), Knock::Refused);
    let server = Web::serve(web, 5000, 512);
    walk.publish("--proto tcp --listen 10.0.2.15:5000 --to 172.18.0.10:5000");
    for client in [outside, other, web] {
        server.fetch_intact(client, "10.0.2.15:5000");
    }
    assert_eq!(seen_as(outside, "10.0.2.15:5000").as_deref(), Ok("10.0.2.2"), "callers keep their address");
    assert_eq!(seen_as(other, "10.0.2.15:5000").as_deref(), Ok("172.18.0.1"), "hairpin");
    assert_eq!(seen_as(web, "10.0.2.15:5000").as_deref(), Ok("172.18.0.1"), "hairpin to itself");

    // From the host, on its own TAP, and from another bridge.
    shuntd.network("uplink", &["192.0.2.1/24"]);
    let host = shuntd.host("host", "uplink");
    host.join("192.0.2.2/24", Some("192.0.2.1"));
    server.fetch_intact(&host, "10.0.2.15:5000");
    assert_eq!(seen_as(&host, "10.0.2.15:5000").as_deref(), Ok("192.0.2.2"));

    // The table in conntrack's words.
    let connections = shuntd.connections("--proto tcp");
    let published = entry(
        &connections,
        &[("src", "10.0.2.2"), ("dst", "10.0.2.15"), ("dport", "5000"), ("reply_src", "172.18.0.10")],
    );
    assert!(published.is_some(), "{connections:?}");
    let masqueraded =
        entry(&connections, &[("src", "172.18.0.10"), ("dport", "80"), ("reply_dst", "10.0.2.15")]);
    assert!(masqueraded.is_some(), "{connections:?}");
    assert!(shuntd.connection_count() >= connections.len() as u64);
    let nat = shuntd.ctl("nat list");
    assert!(nat.to_string().contains("10.0.2.15:5000"), "{nat}");

    // Flushed, nothing is left; what goes on is tracked anew.
    shuntd.ctl("conntrack flush");
    assert_eq!(shuntd.connections("--proto tcp").len(), 0);
    server.fetch_intact(outside, "10.0.2.15:5000");
    assert_eq!(pings(web, "10.0.2.2", 3, ""), 3);
}

#[test]
fn bytes_arrive_unchanged_whatever_offloads_there_are() {
    if !is_root() {
        return;
    }
    let walk = Walk::masqueraded();
    let (web, outside) = (&walk.web, &walk.outside);
    walk.publish("--proto tcp --listen 10.0.2.15:8080 --to 172.18.0.10:80");
    walk.publish("--proto tcp --listen [fd02::15]:8080 --to [fd18::10]:80");
    let inside = Web::serve(web, 80, 8192);
    let beyond = Web::serve(outside, 81, 8192);
    for step in ["both with offloads", "the container without", "both without", "only the outside without"] {
        shunt_tests::progress!("{step}");
        match step {
            "the container without" => web.without_offloads(),
            "both without" => outside.without_offloads(),
            "only the outside without" => drop(web.sh("ethtool -K eth0 tx on rx on tso on gso on gro on")),
            _ => (),
        }
        inside.fetch_intact(outside, "10.0.2.15:8080");
        inside.fetch_intact(outside, "[fd02::15]:8080");
        beyond.fetch_intact(web, "10.0.2.2:81");
        beyond.fetch_intact(web, "[fd02::2]:81");
        inside.fetch_intact(&walk.other, "10.0.2.15:8080");
        copy_intact(web, outside, "10.0.2.2", 8);
        copy_intact(web, outside, "fd02::2", 8);
    }
    for options in ["", "-R", "-P4", "-u -b 20M"] {
        assert!(iperf(web, outside, "10.0.2.2", 2, options).bytes > MUCH);
    }
    assert_eq!(seen_as(web, "[fd02::2]:81").as_deref(), Ok("fd02::15"));
    // Receivers count what does not add up.
    for host in [web, outside] {
        let errors = host.sh("awk '/^Tcp:/ && $2 ~ /[0-9]/ { print $16 }' /proc/net/snmp");
        assert_eq!(errors, "0", "{}: TCP segments with wrong checksums", host.name());
    }
}

#[test]
fn large_segments_stay_whole_through_translation() {
    if !is_root() {
        return;
    }
    let walk = Walk::masqueraded();
    let before = walk.shuntd.counter("web", "rx", "packets");
    copy_intact(&walk.web, &walk.outside, "10.0.2.2", 32);
    let packets = walk.shuntd.counter("web", "rx", "packets") - before;
    // 32 MiB are 23,000 segments of 1448 bytes; large segments are up to 45 times fewer.
    assert!(packets < 8_000, "{packets} packets for 32 MiB: large segments did not reach the switch");
    let sent = walk.shuntd.counter("outside", "tx", "packets");
    assert!(sent < 8_000, "{sent} packets left for the outside: large segments were cut");
}

#[test]
fn port_ranges_other_ports_and_udp_are_published() {
    if !is_root() {
        return;
    }
    let walk = Walk::masqueraded();
    let (shuntd, web, outside) = (&walk.shuntd, &walk.web, &walk.outside);
    let servers = [7001, 7003].map(|port| Web::serve(web, port, 16));
    walk.publish("--proto tcp --listen 10.0.2.15:9001-9003 --to 172.18.0.10:7001-7003");
    servers[0].fetch_intact(outside, "10.0.2.15:9001");
    servers[1].fetch_intact(outside, "10.0.2.15:9003");
    assert_eq!(knock(outside, "10.0.2.15", 9002), Knock::Refused, "nobody listens on 7002");

    walk.publish("--proto udp --listen 10.0.2.15:5353 --to 172.18.0.10:53");
    let question = |client: &NetNs, address: &str| -> String {
        let server = web.start("echo an-answer | timeout 10 nc -4 -u -l -w 3 53", SOON);
        wait_for("the server", SOON, || (!web.sh("ss -Hlun sport = :53").is_empty()).then_some(()));
        let text = client.run(&format!("echo a-question | timeout 5 nc -4 -u -w 2 {address} 5353")).text;
        assert_eq!(server.wait().text.trim(), "a-question");
        text.trim().to_owned()
    };
    assert_eq!(question(outside, "10.0.2.15"), "an-answer");
    assert_eq!(question(&walk.other, "10.0.2.15"), "an-answer");
    let udp = shuntd.connections("--proto udp");
    assert!(
        entry(&udp, &[("src", "10.0.2.2"), ("reply_src", "172.18.0.10"), ("reply_sport", "53")]).is_some()
    );

    // Withdrawn, new callers are refused.
    let id = shuntd.ctl("nat list").to_string();
    let rules = shuntd.ctl("nat list");
    let rule = rules.as_array().into_iter().flatten().find(|r| r.to_string().contains("9001")).cloned();
    let rule = rule.unwrap_or_else(|| panic!("no rule with 9001 in {id}"));
    shuntd.ctl(&format!("nat publish del {}", text(&rule["id"])));
    assert_eq!(knock(outside, "10.0.2.15", 9001), Knock::Refused);
}

/// A number or a text without its quotes.
fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[test]
fn source_translation_keeps_to_its_addresses_and_ports() {
    if !is_root() {
        return;
    }
    let walk = Walk::start();
    let (shuntd, web, outside) = (&walk.shuntd, &walk.web, &walk.outside);
    shuntd.ctl("nat snat add --source 172.18.0.0/16 --out wan --to 10.0.2.15:40000-40003");
    let server = Web::serve(outside, 80, 16);
    assert_eq!(seen_as(web, "10.0.2.2:80").as_deref(), Ok("10.0.2.15"));
    server.fetch_intact(web, "10.0.2.2:80");

    // Four ports make four connections to one place; more are refused and counted, other places have four of their own.
    // What closes must have closed: a last segment after the flush would be tracked anew.
    wait_for("closed connections", SOON, || {
        shuntd.connections("--proto tcp").iter().all(|c| c["state"] == "TIME_WAIT").then_some(())
    });
    shuntd.ctl("conntrack flush");
    outside.ip("address add 10.0.2.3/24 dev eth0");
    // Nobody need accept: the kernel answers for as many as wait.
    let sink = outside.start(
        "exec /usr/bin/python3 -c \"import socket, time; \
         s = socket.create_server(('', 7777), backlog=64); time.sleep(120)\"",
        Duration::from_secs(120),
    );
    wait_for("the sink", SOON, || (!outside.sh("ss -Hltn sport = :7777").is_empty()).then_some(()));
    let connections = |to: &str| -> Vec<Value> {
        let all = shuntd.connections(&format!("--proto tcp --dest {to}"));
        all.into_iter().filter(|c| c["state"] == "ESTABLISHED").collect()
    };
    let hold = |to: &str, count: u32| {
        web.start(
            &format!("for n in $(seq {count}); do sleep 60 | nc -4 -w 60 {to} 7777 & done; wait"),
            Duration::from_secs(90),
        )
    };
    let first = hold("10.0.2.2", 6);
    wait_for("four connections", SOON, || (connections("10.0.2.2").len() == 4).then_some(()));
    let second = hold("10.0.2.3", 4);
    wait_for("four more to elsewhere", SOON, || (connections("10.0.2.3").len() == 4).then_some(()));
    let mut ports: Vec<String> = connections("10.0.2.2").iter().map(|c| text(&c["reply_dport"])).collect();
    ports.sort();
    assert_eq!(ports, ["40000", "40001", "40002", "40003"]);
    let dropped = shuntd.port("web")["rx"]["drops"].to_string();
    assert!(dropped.contains("exhausted"), "the drop has no name of its own: {dropped}");
    wait_for("a warning in the log", Duration::from_secs(30), || {
        shuntd
            .output()
            .lines()
            .any(|line| line.contains("nat snat rule") && line.contains("no port left"))
            .then_some(())
    });
    drop((first, second, sink));
}

#[test]
fn one_to_one_pools_and_exemptions() {
    if !is_root() {
        return;
    }
    let walk = Walk::start();
    let (shuntd, web, other, outside) = (&walk.shuntd, &walk.web, &walk.other, &walk.outside);
    let _server = Web::serve(outside, 80, 16);
    outside.ip("route add 10.0.2.64/28 via 10.0.2.15");
    shuntd.ctl("nat snat add --source 172.18.0.10/32 --out wan --to 10.0.2.66");
    shuntd.ctl("nat snat add --source 172.18.0.0/16 --out wan --to 10.0.2.70-10.0.2.71");
    assert_eq!(seen_as(web, "10.0.2.2:80").as_deref(), Ok("10.0.2.66"), "the longest source prefix decides");
    let pool = seen_as(other, "10.0.2.2:80").unwrap_or_default();
    assert!(["10.0.2.70", "10.0.2.71"].contains(&pool.as_str()), "{pool}");
}

#[test]
fn traceroute_path_mtu_and_errors_come_back_through_translation() {
    if !is_root() {
        return;
    }
    let walk = Walk::masqueraded();
    let (web, outside) = (&walk.web, &walk.outside);
    // The outside host is a router to a network with a smaller MTU.
    let far = NetNs::new("far");
    outside.veth("inner", &far, "eth0");
    for (host, device, v4, v6) in
        [(outside, "inner", "10.3.0.1/24", "fd03::1/64"), (&far, "eth0", "10.3.0.2/24", "fd03::2/64")]
    {
        host.ip(&format!("link set {device} mtu 1300"));
        host.up(device, Some(v4));
        host.ip(&format!("address add {v6} dev {device} nodad"));
    }
    outside.sh("echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding");
    far.ip("route add default via 10.3.0.1");
    far.ip("-6 route add default via fd03::1");
    walk.shuntd.ctl("route add 0.0.0.0/0 --via 10.0.2.2");
    walk.shuntd.ctl("route add ::/0 --via fd02::2");
    answers(web, "10.3.0.2", SOON);
    answers(web, "fd03::2", SOON);
    for options in ["", "-I"] {
        let hops = web.sh(&format!("traceroute -n -q1 -w2 {options} 10.3.0.2"));
        let seen: Vec<&str> = hops.lines().skip(1).filter_map(|l| l.split_whitespace().nth(1)).collect();
        assert_eq!(seen, ["172.18.0.1", "10.0.2.2", "10.3.0.2"], "{hops}");
        let hops = web.sh(&format!("traceroute -6 -n -q1 -w2 {options} fd03::2"));
        let seen: Vec<&str> = hops.lines().skip(1).filter_map(|l| l.split_whitespace().nth(1)).collect();
        assert_eq!(seen, ["fd18::1", "fd02::2", "fd03::2"], "{hops}");
    }
    let text = web.run("ping -c1 -W2 -M do -s 1400 10.3.0.2").text;
    assert!(text.contains("Frag needed and DF set (mtu = 1300)"), "{text}");
    let text = web.run("ping -c1 -W2 -M do -s 1400 fd03::2").text;
    assert!(text.contains("Packet too big: mtu=1300"), "{text}");
    web.ip("route flush cache");
    web.ip("-6 route flush cache");
    copy_intact(web, &far, "10.3.0.2", 4);
    copy_intact(web, &far, "fd03::2", 4);
    assert_eq!(pings(web, "10.3.0.2", 3, "-M dont -s 4000"), 3, "fragments are translated alike");
    // A closed UDP port's answer reaches the socket that asked, quoting what it had sent. Hosts answer so once a second.
    let refused = web.run(
        "/usr/bin/python3 -c \"
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.connect(('10.3.0.2', 9))
s.settimeout(1.5)
for n in range(10):
    s.send(b'x')
    try:
        s.recv(9)
    except TimeoutError:
        pass
\"",
    );
    assert!(refused.text.contains("ConnectionRefusedError"), "{}", refused.text);
}

#[test]
fn ftp_works_actively_and_passively_through_translation() {
    if !is_root() {
        return;
    }
    let walk = Walk::masqueraded();
    let (shuntd, web, outside) = (&walk.shuntd, &walk.web, &walk.outside);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().display();
    outside.sh(&format!("head -c 300000 /dev/urandom >{path}/file"));
    let server = |options: &str| {
        let job = outside.start(
            &format!("exec /usr/bin/python3 -m pyftpdlib -p 21 -d {path} {options}"),
            Duration::from_secs(120),
        );
        wait_for("the FTP server", SOON, || (!outside.sh("ss -Hltn sport = :21").is_empty()).then_some(()));
        job
    };
    let sum = outside.sh(&format!("sha256sum <{path}/file"));
    let _server = server("");
    // With nothing but what the helper allows: new connections inwards are refused.
    shuntd.ctl("policy default forward drop");
    shuntd.ctl("policy add --from interface:cont --to interface:wan --action accept");
    for options in ["", "--disable-epsv"] {
        let got = web.run(&format!("curl -sS --max-time 20 {options} ftp://10.0.2.2/file | sha256sum"));
        assert_eq!(got.text.trim(), sum, "curl {options}");
        shunt_tests::progress!("passive FTP with `{options}` arrived unchanged");
    }
    // The server opens the data connection, to the address that the client announces in the text.
    for announce in ["sendport", "sendeprt"] {
        let script = format!(
            "import ftplib, hashlib
class Active(ftplib.FTP):
    def sendport(self, host, port):
        return ftplib.FTP.{announce}(self, host, port)
ftp = Active('10.0.2.2', timeout=15)
ftp.login()
ftp.set_pasv(False)
digest = hashlib.sha256()
ftp.retrbinary('RETR file', digest.update)
ftp.quit()
print(digest.hexdigest(), ' -')"
        );
        let got = web.run(&format!("/usr/bin/python3 -c \"{script}\""));
        assert_eq!(got.text.trim(), sum, "{announce}");
        shunt_tests::progress!("active FTP with {announce} arrived unchanged");
    }
}

#[test]
fn the_table_and_its_filters_are_conntracks() {
    if !is_root() {
        return;
    }
    let walk = Walk::masqueraded();
    let (shuntd, web, other, outside) = (&walk.shuntd, &walk.web, &walk.other, &walk.outside);
    let server = Web::serve(outside, 80, 4);
    server.fetch_intact(web, "10.0.2.2:80");
    server.fetch_intact(other, "10.0.2.2:80");
    web.sh("echo x | nc -4 -u -w 1 10.0.2.2 999 || true");
    assert_eq!(pings(other, "10.0.2.2", 1, ""), 1);

    let tcp = shuntd.connections("--proto tcp");
    let from_web = entry(&tcp, &[("src", "172.18.0.10"), ("dport", "80")]).expect("web's connection");
    assert_eq!((&from_web["state"], &from_web["reply_src"]), (&"TIME_WAIT".into(), &"10.0.2.2".into()));
    assert_eq!(from_web["reply_sport"], "80");
    assert!(from_web["assured"].is_string());
    let timeout: u64 = text(&from_web["timeout"]).parse().expect("a number");
    assert!((100..=120).contains(&timeout), "TIME_WAIT lasts 120 s: {timeout}");
    let udp = shuntd.connections("--proto udp --source 172.18.0.10");
    let unanswered = entry(&udp, &[("dport", "999")]).expect("a UDP entry");
    assert!(unanswered["unreplied"].is_string(), "{unanswered}");
    let icmp = shuntd.connections("--proto icmp --source 172.18.0.20");
    let echo = entry(&icmp, &[("type", "8"), ("reply_type", "0")]).expect("an ICMP entry");
    assert_eq!(echo["id"], echo["reply_id"]);

    // A filtered flush takes those and no others.
    let everything = shuntd.connection_count();
    shuntd.ctl("conntrack flush --proto tcp --source 172.18.0.20");
    assert!(shuntd.connections("--proto tcp --source 172.18.0.20").is_empty());
    assert!(!shuntd.connections("--proto tcp --source 172.18.0.10").is_empty());
    assert!(shuntd.connection_count() < everything);
    // Timeouts are changed while it runs.
    shuntd.ctl("conntrack set-timeout udp 1");
    web.sh("echo x | nc -4 -u -w 1 10.0.2.2 998 || true");
    wait_for("a UDP entry to expire after its second", SOON, || {
        let udp = shuntd.connections("--proto udp --source 172.18.0.10");
        entry(&udp, &[("dport", "998")]).is_none().then_some(())
    });
    let stats = shuntd.ctl("conntrack stats").to_string();
    assert!(stats.contains("insert_failed") && stats.contains("early_drop"), "{stats}");
}

#[test]
fn wrong_rules_are_refused_in_one_line_and_change_nothing() {
    if !is_root() {
        return;
    }
    let walk = Walk::masqueraded();
    walk.publish("--proto tcp --listen 10.0.2.15:5000-5010 --to 172.18.0.10:5000-5010");
    let before = walk.shuntd.ctl("nat list").to_string();
    for (command, word) in [
        ("nat publish add --proto tcp --listen 10.0.2.15:5005 --to 172.18.0.20:80", "5005"),
        ("nat publish add --proto tcp --listen 10.0.2.15:6000-6002 --to 172.18.0.10:6000-6001", "600"),
        ("nat publish add --proto tcp --listen 10.0.2.15:6000 --to [fd18::10]:6000", "fd18::10"),
        ("nat publish add --proto tcp --listen 10.0.2.15:0 --to 172.18.0.10:80", "0"),
        ("nat masquerade add --source 172.18.0.0/16 --out missing", "missing"),
        ("nat snat add --source 172.18.0.0/16 --out wan --to 10.0.2.9-10.0.2.1", "10.0.2."),
        ("nat masquerade del 99999", "99999"),
    ] {
        let words: Vec<&str> = command.split_whitespace().collect();
        let refusal = match walk.shuntd.try_ctl(&words) {
            Ok(value) => panic!("`{command}` was carried out: {value}"),
            Err(refusal) => refusal,
        };
        assert!(refusal.status == 1 || refusal.status == 2, "`{command}`: {refusal:?}");
        assert!(refusal.message.contains(word), "`{command}` does not name {word}: {refusal:?}");
    }
    assert_eq!(walk.shuntd.ctl("nat list").to_string(), before);
}
