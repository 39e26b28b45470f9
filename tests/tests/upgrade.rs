//! Planned restarts under load: a new process goes on in the old one's place. Real guests on both roles of vhost-user and
//! a host on a TAP device; one TCP transfer through NAT, one through a virtual service; no connection breaks, no byte is
//! lost. And beside them crashes, after which guests come back by themselves.

use std::time::{Duration, Instant};

use shunt_tests::{
    Guest, GuestSpec, Host, Job, NetNs, Nic, Shuntd, answers, boot_all, is_root, pings, progress, wait_for,
};

const SOON: Duration = Duration::from_secs(20);
/// Planned restarts under load; `SHUNT_UPGRADES` says otherwise.
const UPGRADES: u32 = 10;
/// Longest pause that is no failure on a machine that emulates guests beside.
const PAUSE: Duration = Duration::from_millis(500);

/// A client guest, a server guest behind a virtual service, a host outside that sees the client translated.
struct Scene {
    shuntd: Shuntd,
    client: Guest,
    server: Guest,
    outside: NetNs,
}

fn scene() -> Scene {
    let shuntd = Shuntd::new();
    let outside = NetNs::new("outside");
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
        format!("[[port]]\nname = \"client\"\nbridge = \"br-clients\"\nvhost_user = {a:?}\n"),
        format!("[[port]]\nname = \"server\"\nbridge = \"br-servers\"\nvhost_user = {b:?}\nrole = \"client\"\n"),
        format!(
            "[[port]]\nname = \"outside\"\nbridge = \"br-wan\"\ntap = \"eth0\"\nnetns = {:?}\npersist = true\n",
            outside.id()
        ),
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
    Scene { shuntd, client, server, outside }
}

/// A TCP connection on which blocks of random bytes are sent at a pace, and compared at its end with what was sent.
struct Transfer {
    what: String,
    sender: Job,
    receiver: Job,
}

/// Sends from `client` to `address`, which leads to `server`, until `/tmp/stop` appears on the client.
fn transfer(client: &dyn Host, server: &dyn Host, address: &str, port: u16) -> Transfer {
    let limit = Duration::from_secs(900);
    let receiver = server.start(&format!("timeout 880 nc -4 -l {port} | sha256sum"), limit);
    wait_for("the receiver to listen", SOON, || {
        (!server.sh(&format!("ss -Hltn sport = :{port}")).is_empty()).then_some(())
    });
    let script = format!(
        "mkfifo /tmp/pipe{port}
         (while [ ! -e /tmp/stop ]; do dd if=/dev/urandom bs=8k count=8 2>/dev/null; sleep 0.05; done) \
           | tee /tmp/pipe{port} | sha256sum >/tmp/sent{port} &
         timeout 880 nc -4 -N {address} {port} </tmp/pipe{port}; status=$?
         wait; cat /tmp/sent{port}; exit $status"
    );
    let sender = client.start(&script, limit);
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
fn connections_outlive_planned_restarts() {
    if !is_root() {
        return;
    }
    let Scene { mut shuntd, client, server, outside } = scene();
    let through_nat = transfer(&client, &outside, "192.0.2.2", 6000);
    let through_service = transfer(&client, &server, "10.9.9.9", 7000);
    flows(&shuntd, "client");
    let established = |shuntd: &Shuntd| {
        let mut list: Vec<String> = shuntd
            .connections("--proto tcp")
            .iter()
            .map(|one| format!("{} {} {}", one["state"], one["sport"], one["reply_dport"]))
            .collect();
        list.sort();
        list
    };
    let before =
        wait_for("both connections", SOON, || Some(established(&shuntd)).filter(|list| list.len() == 2));
    let upgrades = std::env::var("SHUNT_UPGRADES").ok().and_then(|n| n.parse().ok()).unwrap_or(UPGRADES);
    let mut pauses = Vec::new();
    for round in 1..=upgrades {
        let done = shuntd.upgrade();
        let pause = Duration::from_micros(done["pause_microseconds"].as_u64().unwrap_or(u64::MAX));
        progress!("upgrade {round}: {pause:?}");
        assert!(pause < PAUSE, "no packet was carried for {pause:?}");
        pauses.push(pause);
        assert_eq!(
            established(&shuntd),
            before,
            "the same connections, in the same state, by the same ports"
        );
        for port in ["client", "server", "outside"] {
            assert_eq!(shuntd.port(port)["state"], "up", "{port}");
        }
        flows(&shuntd, "client");
        flows(&shuntd, "server");
        flows(&shuntd, "outside");
    }
    pauses.sort();
    progress!("pauses from {:?} to {:?}", pauses.first(), pauses.last());
    let services = shuntd.ctl_text(&["ipvsadm", "-L", "-n"]).unwrap_or_else(|e| panic!("{}", e.message));
    let masq = services.lines().find(|line| line.contains("10.0.2.11:7000")).unwrap_or_default();
    assert!(masq.split_whitespace().nth(4) == Some("1"), "one active connection: {services}");
    client.sh("touch /tmp/stop");
    through_nat.finish();
    through_service.finish();
    assert_eq!(pings(&client, "192.0.2.2", 5, ""), 5);
}

#[test]
fn guests_come_back_after_crashes_and_upgrades_in_turn() {
    if !is_root() {
        return;
    }
    let Scene { mut shuntd, client, server, .. } = scene();
    for round in 1..=3 {
        shuntd.upgrade();
        let before = Instant::now();
        shuntd.kill();
        shuntd.launch();
        progress!("killed and started, round {round}");
        answers(&client, "192.0.2.2", SOON);
        answers(&server, "10.0.1.10", SOON);
        progress!("all is back after {:?}", before.elapsed());
    }
    shuntd.upgrade();
    assert!(shuntd.end(nix::sys::signal::Signal::SIGTERM).success());
    for file in ["control.sock", "client.sock"] {
        assert!(!shuntd.path(file).exists(), "{file} is left behind");
    }
}
