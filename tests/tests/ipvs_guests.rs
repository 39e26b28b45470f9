//! Virtual services with real Linux guests as client and servers: masquerading, direct routing and tunnels, the servers set
//! up as the HOWTOs of LVS say; persistence, and a server that is drained. The servers' gateway is the switch, on another bridge than the client.

use std::time::Duration;

use shunt_tests::tools;
use shunt_tests::{GuestSpec, Host, Nic, Shuntd, Web, answers, boot_all, is_root, seen_as, wait_for};

const SOON: Duration = Duration::from_secs(20);
/// Downloads in a loop.
const LOOPS: u32 = 3;

#[track_caller]
fn ipvsadm(shuntd: &Shuntd, args: &str) -> String {
    let words: Vec<&str> = std::iter::once("ipvsadm").chain(args.split_whitespace()).collect();
    shuntd.ctl_text(&words).unwrap_or_else(|e| panic!("ipvsadm {args}: {}: {}", e.status, e.message))
}

#[test]
fn guests_behind_services_of_all_kinds() {
    if !is_root() {
        return;
    }
    assert!(tools::tool("initramfs.cpio").exists());
    let shuntd = Shuntd::start();
    shuntd.ctl("policy default forward accept");
    shuntd.network("clients", &["10.0.1.1/24", "10.9.9.9/32"]);
    shuntd.network("servers", &["10.0.2.1/24"]);
    let socket = |name: &str, network: &str| {
        let path = shuntd.path(&format!("{name}.sock"));
        shuntd.ctl(&format!("port add {name} --bridge br-{network} --vhost-user {}", path.display()));
        path
    };
    let sockets =
        [("client", "clients"), ("real1", "servers"), ("real2", "servers")].map(|(n, net)| socket(n, net));
    let [client, real1, real2] = boot_all([
        GuestSpec::new("client").nic(Nic::connects(&sockets[0]).address("10.0.1.10/24")),
        GuestSpec::new("real1").nic(Nic::connects(&sockets[1]).address("10.0.2.11/24")),
        GuestSpec::new("real2").nic(Nic::connects(&sockets[2]).address("10.0.2.12/24")),
    ]);
    client.sh("ip route replace default via 10.0.1.1");
    let servers = [&real1, &real2];
    for (server, address) in servers.into_iter().zip(["10.0.2.11", "10.0.2.12"]) {
        let setup = format!(
            "ip route replace default via 10.0.2.1; ip address add 10.9.9.9/32 dev lo
             echo 1 >/proc/sys/net/ipv4/conf/all/arp_ignore; echo 2 >/proc/sys/net/ipv4/conf/all/arp_announce
             modprobe -a ipip ip_gre fou || exit 1
             ip link set tunl0 up
             ip link add gre1 type gre local {address}; ip link set gre1 up
             ip fou add port 5555 gue
             for f in all default tunl0 gre1 eth0; do echo 0 >/proc/sys/net/ipv4/conf/$f/rp_filter; done"
        );
        // An emulated guest takes its time for modules.
        let done = server.start(&setup, Duration::from_secs(180)).wait();
        assert!(done.ok(), "{}: {}", server.name(), done.text);
        answers(server, "10.0.2.1", SOON);
    }
    answers(&client, "10.0.1.1", SOON);
    let web = [0, 1].map(|n| Web::serve(servers[n], 80, 1024));
    let kinds = [
        ("masquerading", "-m"),
        ("direct routing", "-g"),
        ("IP in IP", "-i"),
        ("GUE", "-i --tun-type gue --tun-port 5555"),
        ("GRE", "-i --tun-type gre"),
    ];
    for (kind, forward) in kinds {
        ipvsadm(&shuntd, "-C");
        ipvsadm(&shuntd, "-A -t 10.9.9.9:80 -s rr");
        for (n, web) in web.iter().enumerate() {
            // One server alone, since each has another file.
            ipvsadm(&shuntd, &format!("-a -t 10.9.9.9:80 -r 10.0.2.1{}:80 {forward}", n + 1));
            for _ in 0..LOOPS {
                web.fetch_intact(&client, "10.9.9.9:80");
            }
            assert_eq!(seen_as(&client, "10.9.9.9:80").as_deref(), Ok("10.0.1.10"), "{kind}");
            ipvsadm(&shuntd, &format!("-d -t 10.9.9.9:80 -r 10.0.2.1{}:80", n + 1));
        }
        shunt_tests::progress!("{kind} works with both servers");
    }
    // A client of a persistent service stays with its server.
    let server = |n: usize| format!("10.0.2.1{}:80", n + 1);
    let connections = || {
        let listing = ipvsadm(&shuntd, "-L -n");
        [0, 1].map(|n| {
            let line = listing.lines().find(|line| line.contains(&server(n))).unwrap_or_default();
            line.split_whitespace().skip(4).map_while(|count| count.parse::<u32>().ok()).sum::<u32>()
        })
    };
    ipvsadm(&shuntd, "-C");
    ipvsadm(&shuntd, "-A -t 10.9.9.9:80 -s rr -p 300");
    for n in 0..2 {
        ipvsadm(&shuntd, &format!("-a -t 10.9.9.9:80 -r {} -m", server(n)));
    }
    // A server that comes back has what was left of its connections.
    let before = connections();
    for _ in 0..2 * LOOPS {
        seen_as(&client, "10.9.9.9:80").unwrap_or_else(|e| panic!("no answer: {e}"));
    }
    let after = connections();
    let mut more = [0, 1].map(|n| after[n] - before[n]);
    more.sort_unstable();
    assert_eq!(more, [0, 2 * LOOPS], "connections of the servers: {before:?}, {after:?}");
    shunt_tests::progress!("a client stays with its server");
    // A server that is drained finishes what it is about, while others get what is new.
    ipvsadm(&shuntd, "-C");
    ipvsadm(&shuntd, "-A -t 10.9.9.9:80 -s rr");
    let large = Web::serve(servers[0], 8080, 8192);
    ipvsadm(&shuntd, "-a -t 10.9.9.9:80 -r 10.0.2.11:8080 -m");
    let held = large.hold(&client, "10.9.9.9:80");
    wait_for("the download to begin", SOON, || {
        let listing = ipvsadm(&shuntd, "-L -n");
        let line = listing.lines().find(|line| line.contains("10.0.2.11:8080")).unwrap_or_default();
        (line.split_whitespace().nth(4) == Some("1")).then_some(())
    });
    ipvsadm(&shuntd, "-e -t 10.9.9.9:80 -r 10.0.2.11:8080 -m -w 0");
    ipvsadm(&shuntd, &format!("-a -t 10.9.9.9:80 -r {} -m", server(1)));
    for _ in 0..LOOPS {
        web[1].fetch_intact(&client, "10.9.9.9:80");
    }
    held.finish();
    shunt_tests::progress!("a drained server has finished its download");
    for guest in [&client, &real1, &real2] {
        let errors = guest.sh("awk '/^Tcp:/ && $2 ~ /[0-9]/ { print $16 }' /proc/net/snmp");
        assert_eq!(errors, "0", "{}: TCP segments with wrong checksums", guest.name());
    }
}
