//! Planned restarts under load: a new process goes on in the old one's place. Real guests on both roles of vhost-user, a
//! host on a TAP device and one behind a netdev port; TCP transfers through NAT to each of these, and one through a
//! virtual service; no connection breaks, no byte is lost. And beside them crashes, after which guests come back by
//! themselves, and leases and configuration are as they were.

use std::time::{Duration, Instant};

use shunt_tests::dhcp::{self, Dhcp};
use shunt_tests::{
    Guest, GuestSpec, Host, Job, NetNs, Nic, Shuntd, answers, boot_all, is_root, pings, progress, wait_for,
};

const SOON: Duration = Duration::from_secs(20);
/// Planned restarts under load, and crashes; `SHUNT_RESTARTS` says otherwise.
const RESTARTS: u32 = 5;
/// Longer than all planned restarts take.
const LONG: Duration = Duration::from_secs(900);
/// Longest pause that is no failure on a machine that emulates guests beside.
const PAUSE: Duration = Duration::from_millis(500);

/// A client guest, a server guest behind a virtual service, two hosts outside that see the client translated: one by a
/// TAP device, one by a netdev port. And one that has its address by DHCP.
struct Scene {
    shuntd: Shuntd,
    client: Guest,
    server: Guest,
    outside: NetNs,
    far: NetNs,
    leased: NetNs,
    /// Holds the switch's end of the cable to `far`.
    _patch: NetNs,
}

fn restarts() -> u32 {
    std::env::var("SHUNT_RESTARTS").ok().and_then(|n| n.parse().ok()).unwrap_or(RESTARTS)
}

fn scene() -> Scene {
    let shuntd = Shuntd::new();
    let [outside, far, patch, leased] = ["outside", "far", "patch", "leased"].map(NetNs::new);
    far.veth("eth0", &patch, "cable");
    far.up("eth0", Some("198.51.100.2/24"));
    patch.up("cable", None);
    let [a, b] = ["client.sock", "server.sock"].map(|file| shuntd.path(file));
    let network = |name: &str, addresses: &str| {
        let bridge = format!("br-{name}");
        format!(
            "[[bridge]]\nname = \"{bridge}\"\n[[interface]]\nname = \"{name}\"\nbridge = \"{bridge}\"\naddress = [{addresses}]\n"
        )
    };
    let config = [
        network("clients", "\"10.0.1.1/24\", \"10.9.9.9/32\""),
        network("servers", "\"10.0.2.1/24\""),
        network("wan", "\"192.0.2.1/24\""),
        network("beyond", "\"198.51.100.1/24\""),
        format!("[[port]]\nname = \"client\"\nbridge = \"br-clients\"\nvhost_user = {a:?}\n"),
        format!("[[port]]\nname = \"server\"\nbridge = \"br-servers\"\nvhost_user = {b:?}\nrole = \"client\"\n"),
        format!(
            "[[port]]\nname = \"outside\"\nbridge = \"br-wan\"\ntap = \"eth0\"\nnetns = {:?}\npersist = true\n",
            outside.id()
        ),
        format!(
            "[[port]]\nname = \"far\"\nbridge = \"br-beyond\"\nnetdev = \"cable\"\nnetns = {:?}\n",
            patch.id()
        ),
        format!(
            "[[port]]\nname = \"leased\"\nbridge = \"br-clients\"\ntap = \"eth0\"\nnetns = {:?}\npersist = true\n",
            leased.id()
        ),
        "[[dhcp]]\ninterface = \"clients\"\nrange = \"10.0.1.100-10.0.1.200\"\n".to_owned(),
        "[[nat.masquerade]]\nsource = \"10.0.1.0/24\"\nout = \"beyond\"\n".to_owned(),
        "[[nat.masquerade]]\nsource = \"10.0.1.0/24\"\nout = \"wan\"\n".to_owned(),
        "[[ipvs.service]]\nservice = \"tcp:10.9.9.9:7000\"\nscheduler = \"rr\"\n\
         [[ipvs.server]]\nservice = \"tcp:10.9.9.9:7000\"\naddress = \"10.0.2.11:7000\"\nforward = \"masquerade\"\n"
            .to_owned(),
    ]
    .concat();
    let mut shuntd = shuntd.config(&config);
    shuntd.launch();
    outside.up("eth0", None);
    outside.join("192.0.2.2/24", None);
    let [client, server] = boot_all([
        GuestSpec::new("client").nic(Nic::connects(&a).address("10.0.1.10/24")),
        GuestSpec::new("server").nic(Nic::listens(&b).address("10.0.2.11/24")),
    ]);
    client.sh("ip route replace default via 10.0.1.1");
    server.sh("ip route replace default via 10.0.2.1");
    answers(&client, "192.0.2.2", SOON);
    answers(&client, "10.0.2.11", SOON);
    answers(&client, "198.51.100.2", SOON);
    Scene { shuntd, client, server, outside, far, leased, _patch: patch }
}

/// A TCP connection on which blocks of random bytes are sent at a pace, and compared at its end with what was sent.
struct Transfer {
    what: String,
    sender: Job,
    receiver: Job,
}

/// Sends from `client` to `address`, which leads to `server`, until `/tmp/stop` and the number of a round appear on the
/// client.
fn transfer(
    client: &dyn Host,
    server: &dyn Host,
    (address, port): (&str, u16),
    round: u32,
    limit: Duration,
) -> Transfer {
    let patience = limit.as_secs();
    let receiver = server.start(&format!("timeout {patience} nc -4 -l {port} | sha256sum"), 2 * limit);
    wait_for("the receiver to listen", SOON, || {
        (!server.sh(&format!("ss -Hltn sport = :{port}")).is_empty()).then_some(())
    });
    let script = format!(
        "name={address}-{port}-{round}; mkfifo /tmp/pipe$name
         (while [ ! -e /tmp/stop{round} ]; do dd if=/dev/urandom bs=8k count=8 2>/dev/null; sleep 0.05; done) \
           | tee /tmp/pipe$name | sha256sum >/tmp/sent$name &
         timeout {patience} nc -4 -N {address} {port} </tmp/pipe$name; status=$?
         wait; cat /tmp/sent$name; rm /tmp/pipe$name /tmp/sent$name; exit $status"
    );
    let sender = client.start(&script, 2 * limit);
    Transfer { what: format!("the transfer to {address}:{port}"), sender, receiver }
}

impl Transfer {
    /// Waits for the end, once the sender was told to stop.
    fn finish(self) {
        let sent = self.sender.wait();
        let received = self.receiver.wait();
        assert!(sent.ok(), "{}: {}", self.what, sent.text);
        assert_eq!(
            received.text.trim(),
            sent.text.trim(),
            "{}: what arrived is not what was sent",
            self.what
        );
        progress!("{} arrived whole", self.what);
    }
}

/// Segments that arrived on a port of the switch, for "it goes on".
fn flows(shuntd: &Shuntd, port: &str) {
    let before = shuntd.counter(port, "rx", "packets");
    wait_for("packets to flow", SOON, || (shuntd.counter(port, "rx", "packets") > before).then_some(()));
}

#[test]
fn connections_outlive_upgrades() {
    if !is_root() {
        return;
    }
    let Scene { shuntd, client, server, outside, far, .. } = &mut scene();
    let (client, server, outside, far) = (&*client, &*server, &*outside, &*far);
    let transfers = [
        transfer(client, outside, ("192.0.2.2", 6000), 0, LONG),
        transfer(client, far, ("198.51.100.2", 6001), 0, LONG),
        transfer(client, server, ("10.9.9.9", 7000), 0, LONG),
    ];
    flows(shuntd, "client");
    let established = |shuntd: &Shuntd| {
        let mut list: Vec<String> = shuntd
            .connections("--proto tcp")
            .iter()
            .map(|one| format!("{} {} {}", one["state"], one["sport"], one["reply_dport"]))
            .collect();
        list.sort();
        list
    };
    let before = wait_for("all connections", SOON, || {
        let list = established(shuntd);
        (list.len() == 3 && list.iter().all(|one| one.contains("ESTABLISHED"))).then_some(list)
    });
    let configured = shuntd.ctl("config show");
    let mut pauses = Vec::new();
    for round in 1..=restarts() {
        let done = shuntd.upgrade();
        let pause = Duration::from_micros(done["pause_microseconds"].as_u64().unwrap_or(u64::MAX));
        progress!("upgrade {round}: {pause:?}");
        assert!(pause < PAUSE, "no packet was carried for {pause:?}");
        pauses.push(pause);
        assert_eq!(established(shuntd), before, "the same connections, in the same state, by the same ports");
        assert_eq!(shuntd.ctl("config show"), configured);
        for port in ["client", "server", "outside", "far"] {
            assert_eq!(shuntd.port(port)["state"], "up", "{port}");
            flows(shuntd, port);
        }
    }
    pauses.sort();
    progress!("pauses from {:?} to {:?}", pauses.first(), pauses.last());
    let services = shuntd.ctl_text(&["ipvsadm", "-L", "-n"]).unwrap_or_else(|e| panic!("{}", e.message));
    let masq = services.lines().find(|line| line.contains("10.0.2.11:7000")).unwrap_or_default();
    assert!(masq.split_whitespace().nth(4) == Some("1"), "one active connection: {services}");
    client.sh("touch /tmp/stop0");
    transfers.into_iter().for_each(Transfer::finish);
    assert_eq!(pings(client, "192.0.2.2", 5, ""), 5);
}

/// What is to be the same after a crash: what is configured, and who has which address.
fn remembered(shuntd: &Shuntd) -> (serde_json::Value, Vec<(String, String)>) {
    let leases = shuntd.ctl("dhcp leases");
    let lease = |lease: &serde_json::Value| (lease["address"].to_string(), lease["mac"].to_string());
    (shuntd.ctl("config show"), leases.as_array().into_iter().flatten().map(lease).collect())
}

#[test]
fn guests_come_back_after_crashes_and_upgrades_in_turn() {
    if !is_root() {
        return;
    }
    let Scene { mut shuntd, client, server, outside, far, leased, _patch } = scene();
    leased.up("eth0", None);
    let dhcp = Dhcp::start(&leased, dhcp::Client::Udhcpc, "");
    dhcp.address(&leased);
    // Made by a command, not by the file.
    shuntd.ctl("nat publish add --proto tcp --listen 192.0.2.1:8080 --to 10.0.1.10:80");
    let before = remembered(&shuntd);
    assert_eq!(before.1.len(), 1, "one lease: {before:?}");
    for round in 1..=restarts() {
        let port = 8000 + 2 * round as u16;
        let load = [
            transfer(&client, &outside, ("192.0.2.2", port), round, SOON),
            transfer(&client, &server, ("10.9.9.9", 7000), round, SOON),
        ];
        flows(&shuntd, "outside");
        flows(&shuntd, "server");
        // With a crash right behind what was taken over, too.
        if round % 2 == 0 {
            shuntd.upgrade();
        }
        let began = Instant::now();
        shuntd.kill();
        shuntd.launch();
        answers(&client, "192.0.2.2", SOON);
        answers(&server, "10.0.1.10", SOON);
        answers(&client, "198.51.100.2", SOON);
        progress!("killed and started, round {round}: all is back after {:?}", began.elapsed());
        assert_eq!(remembered(&shuntd), before);
        for port in ["client", "server", "outside", "far", "leased"] {
            assert_eq!(shuntd.port(port)["state"], "up", "{port}");
        }
        // What was under way may have gone with its connections; new ones are carried at once.
        client.sh(&format!("touch /tmp/stop{round}"));
        drop(load);
        let again = 1000 + round;
        client.sh(&format!("touch /tmp/stop{again}"));
        transfer(&client, &outside, ("192.0.2.2", port + 1), again, SOON).finish();
        transfer(&client, &far, ("198.51.100.2", port), again, SOON).finish();
    }
    drop(dhcp);
    shuntd.upgrade();
    assert!(shuntd.end(nix::sys::signal::Signal::SIGTERM).success());
    for file in ["control.sock", "client.sock"] {
        assert!(!shuntd.path(file).exists(), "{file} is left behind");
    }
}
