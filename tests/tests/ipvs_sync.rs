//! Two directors, of which one tells the other of its connections: what goes on when the first one dies.

use std::time::Duration;

use shunt_tests::{GuestSpec, Host, Job, NetNs, Nic, Shuntd, answers, is_root, poll_for, wait_for};

const SOON: Duration = Duration::from_secs(20);
/// Longer than a transfer takes, with all retransmissions.
const LONG: Duration = Duration::from_secs(120);
/// What is fetched, and how fast: some ten seconds.
const KIBIBYTES: u32 = 20_480;
const RATE: &str = "2M";

/// A client and two servers on two wires, and on both wires two directors, the second one with its links down.
struct Pair {
    wires: NetNs,
    client: NetNs,
    servers: [NetNs; 2],
    master: Shuntd,
    backup: Shuntd,
    _places: [NetNs; 2],
    _web: Vec<Job>,
    sum: String,
    dir: tempfile::TempDir,
}

impl Pair {
    /// `services` are ipvsadm's arguments, the same for both; `group` and the peers' own groups are for the daemons.
    fn start(services: &[&str]) -> Self {
        let wires = NetNs::new("wires");
        for bridge in ["outside", "inside"] {
            wires.ip(&format!("link add {bridge} type bridge"));
            wires.up(bridge, None);
        }
        let host = |name: &str, bridge: &str, cidr: &str, gateway: &str| {
            let netns = NetNs::new(name);
            wires.veth(name, &netns, "eth0");
            wires.ip(&format!("link set {name} master {bridge}"));
            wires.up(name, None);
            netns.up("eth0", None);
            netns.join(cidr, Some(gateway));
            netns
        };
        let client = host("client", "outside", "10.0.1.2/24", "10.0.1.1");
        // Little waits in its buffers, so that a slow download is one.
        client.sh("echo 4096 65536 262144 >/proc/sys/net/ipv4/tcp_rmem");
        let servers =
            [1, 2].map(|n| host(&format!("s{n}"), "inside", &format!("10.0.2.1{n}/24"), "10.0.2.1"));
        let places = ["master", "backup"].map(NetNs::new);
        places[0].veth("sync", &places[1], "sync");
        let [master, backup] = [0, 1].map(|number| {
            let place = &places[number];
            place.sh("echo 0 >/proc/sys/net/ipv6/conf/sync/accept_dad");
            place.up("sync", Some(&format!("10.0.9.{}/24", number + 1)));
            let shuntd = Shuntd::start_within(place);
            for (name, device) in [("wan", "outside"), ("lan", "inside")] {
                place.veth(device, &wires, &format!("{device}-{number}"));
                wires.ip(&format!("link set {device}-{number} master {device}"));
                shuntd.ctl(&format!("bridge add br-{name}"));
                shuntd.ctl(&format!("port add {name}-port --bridge br-{name} --netdev {device}"));
            }
            shuntd.ctl("interface add wan --bridge br-wan --address 10.0.1.1/24");
            shuntd.ctl("interface add lan --bridge br-lan --address 10.0.2.1/24");
            for arguments in services {
                shuntd.ctl(&format!("ipvsadm {arguments}"));
            }
            shuntd
        });
        let dir = tempfile::Builder::new().prefix("shunt-sync-").tempdir().expect("a directory");
        let path = dir.path().display();
        let sum =
            servers[0].sh(&format!("head -c {KIBIBYTES}K /dev/urandom >{path}/file; sha256sum <{path}/file"));
        let web = servers.iter().map(|server| {
            server.start(&format!("exec busybox httpd -f -p 80 -h {path}"), Duration::from_secs(600))
        });
        let web = web.collect();
        let pair = Self { wires, client, servers, master, backup, _places: places, _web: web, sum, dir };
        pair.plug(0);
        for server in &pair.servers {
            wait_for("the server to listen", SOON, || {
                (!server.sh("ss -Hltn sport = :80").is_empty()).then_some(())
            });
        }
        answers(&pair.client, "10.0.1.1", SOON);
        pair
    }

    /// Plugs a director into both wires.
    fn plug(&self, number: usize) {
        for device in ["outside", "inside"] {
            self.wires.up(&format!("{device}-{number}"), None);
        }
    }

    /// Starts the daemons with these words each, on the wire between the directors.
    fn tell(&self, words: [&str; 2]) {
        self.backup.ctl(&format!("ipvsadm --start-daemon backup --mcast-interface sync {}", words[1]));
        self.master.ctl(&format!("ipvsadm --start-daemon master --mcast-interface sync {}", words[0]));
    }

    /// Starts a download that takes some ten seconds; it prints the sum.
    fn download(&self, address: &str) -> Job {
        let fetch = format!("curl -sS --limit-rate {RATE} --max-time 110 http://{address}/file | sha256sum");
        self.client.start(&fetch, LONG)
    }

    /// Waits until the backup knows of so many established connections.
    fn told_of(&self, count: usize) {
        let mut last = Vec::new();
        let told = poll_for(SOON, || {
            last = self.backup.connections("--state ESTABLISHED");
            (last.len() == count).then_some(())
        });
        assert!(told.is_some(), "the backup was not told of {count} connections: {last:?}");
    }

    /// The first director dies, the second one is plugged in.
    fn fail_over(&mut self) {
        self.master.kill();
        for device in ["outside", "inside"] {
            self.wires.ip(&format!("link set {device}-0 down"));
        }
        self.plug(1);
    }

    /// Waits for downloads to end. Their greater parts came by the backup.
    fn arrived<const N: usize>(&self, downloads: [Job; N]) {
        for download in downloads {
            let output = download.wait();
            assert_eq!(output.text.trim(), self.sum, "the file arrived changed, or not at all");
        }
        let bytes = self.backup.counter("wan-port", "tx", "bytes");
        assert!(bytes > N as u64 * u64::from(KIBIBYTES) * 512, "only {bytes} bytes came by the backup");
    }
}

const MASQUERADED: &[&str] = &[
    "-A -t 10.9.9.9:80 -s rr",
    "-a -t 10.9.9.9:80 -r 10.0.2.11:80 -m",
    "-a -t 10.9.9.9:80 -r 10.0.2.12:80 -m",
];

#[test]
fn a_transfer_goes_on_at_the_backup() {
    if !is_root() {
        return;
    }
    let mut pair = Pair::start(MASQUERADED);
    pair.tell(["--syncid 7", "--syncid 7"]);
    let downloads = [pair.download("10.9.9.9"), pair.download("10.9.9.9")];
    pair.told_of(2);
    pair.fail_over();
    pair.arrived(downloads);
    // And it is a director like any other.
    let fetched = pair.client.sh("curl -sS --max-time 20 http://10.9.9.9/file | sha256sum");
    assert_eq!(fetched, pair.sum);
}

/// Sends what is asked for piece by piece, to anybody, over some ten seconds: `PORT FILE`.
const SLOW_SERVER: &str = "
import socket, sys, threading, time
def serve(peer):
    with peer, open(sys.argv[2], 'rb') as file:
        while piece := file.read(64 << 10):
            peer.sendall(piece)
            time.sleep(0.03)
listener = socket.create_server(('', int(sys.argv[1])))
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
";

#[test]
fn a_guest_on_a_switch_of_its_own_does_not_notice() {
    if !is_root() {
        return;
    }
    let mut pair = Pair::start(&[
        "-A -t 10.9.9.9:90 -s wlc",
        "-a -t 10.9.9.9:90 -r 10.0.2.11:90 -m",
        "-a -t 10.9.9.9:90 -r 10.0.2.12:90 -m",
    ]);
    pair.tell(["--syncid 1", "--syncid 1"]);
    // A third daemon stands on the wire of the clients, and a Linux guest on it.
    let edge = Shuntd::start_within(&pair.wires);
    pair.wires.ip("link add edge type veth peer name edge-port");
    pair.wires.ip("link set edge master outside");
    pair.wires.up("edge", None);
    edge.ctl("bridge add clients");
    edge.ctl("port add uplink --bridge clients --netdev edge-port");
    let socket = edge.path("guest.sock");
    edge.ctl(&format!("port add guest --bridge clients --vhost-user {}", socket.display()));
    let guest = GuestSpec::new("guest").nic(Nic::connects(&socket).address("10.0.1.9/24")).boot();
    guest.sh("ip route add default via 10.0.1.1");
    answers(&guest, "10.0.1.1", SOON);
    let file = pair.dir.path().join("file");
    let _serving = pair.servers.each_ref().map(|server| {
        let job = server.start(
            &format!("exec python3 - 90 {} <<'END'{SLOW_SERVER}END", file.display()),
            Duration::from_secs(600),
        );
        wait_for("the server to listen", SOON, || {
            (!server.sh("ss -Hltn sport = :90").is_empty()).then_some(())
        });
        job
    });
    let downloads = [(); 2].map(|()| guest.start("nc -n 10.9.9.9 90 </dev/null | sha256sum", LONG));
    pair.told_of(2);
    pair.fail_over();
    pair.arrived(downloads);
}

#[test]
fn connections_that_servers_answer_past_the_director_go_on() {
    if !is_root() {
        return;
    }
    let mut pair = Pair::start(&[
        "-A -t 10.9.9.9:80 -s wlc",
        "-a -t 10.9.9.9:80 -r 10.0.2.11 -g",
        "-a -t 10.9.9.9:80 -r 10.0.2.12 -g",
    ]);
    for server in &pair.servers {
        // As the LVS documentation has it: the virtual address on loopback, and silence about it.
        server.sh("ip address add 10.9.9.9/32 dev lo
             for device in all eth0; do
                 echo 1 >/proc/sys/net/ipv4/conf/$device/arp_ignore
                 echo 2 >/proc/sys/net/ipv4/conf/$device/arp_announce
             done");
    }
    pair.tell(["--syncid 1 --mcast-group =10.0.9.2", "--mcast-group =10.0.9.2"]);
    let download = pair.download("10.9.9.9");
    pair.told_of(1);
    pair.fail_over();
    pair.arrived([download]);
}

#[test]
fn clients_stay_with_their_servers() {
    if !is_root() {
        return;
    }
    let mut pair = Pair::start(&[
        "-A -t 10.9.9.9:80 -s rr -p 300",
        "-a -t 10.9.9.9:80 -r 10.0.2.11:80 -m",
        "-a -t 10.9.9.9:80 -r 10.0.2.12:80 -m",
    ]);
    let groups = ["--mcast-group ff02::51 --mcast-port 9000 --mcast-ttl 2 --sync-maxlen 1400"; 2];
    pair.tell(groups);
    let which = |pair: &Pair, client: &str| {
        // A connection each; nobody else calls.
        let before = pair.servers.each_ref().map(requests);
        pair.client
            .sh(&format!("curl -sS --max-time 20 --interface {client} -o /dev/null http://10.9.9.9/file"));
        let after = pair.servers.each_ref().map(requests);
        usize::from(before[0] == after[0])
    };
    for last in 3..=6 {
        pair.client.ip(&format!("address add 10.0.1.{last}/24 dev eth0"));
    }
    let clients = ["10.0.1.2", "10.0.1.3", "10.0.1.4", "10.0.1.5", "10.0.1.6"];
    let before = clients.map(|client| which(&pair, client));
    assert!(before.contains(&0) && before.contains(&1), "both servers have clients: {before:?}");
    wait_for("the templates", SOON, || {
        let listed = pair.backup.ctl_text(&["ipvsadm", "-Lnc"]).unwrap_or_default();
        let templates = listed.lines().filter(|line| line.contains(":0 ")).count();
        (templates == clients.len()).then_some(())
    });
    pair.fail_over();
    answers(&pair.client, "10.0.1.1", SOON);
    // Their order is another one now, so that round robin alone would not do.
    for (number, client) in clients.iter().enumerate().rev() {
        assert_eq!(which(&pair, client), before[number], "{client} got another server");
    }
}

/// TCP connections that a server has accepted so far.
fn requests(server: &NetNs) -> String {
    server.sh("awk '/^Tcp:/ && $2 ~ /[0-9]/ { print $7 }' /proc/net/snmp")
}

#[test]
fn daemons_say_what_is_wrong_and_what_they_are() {
    if !is_root() {
        return;
    }
    let place = NetNs::new("director");
    place.sh("ip link add sync type veth peer name other; ip address add 10.0.9.1/24 dev sync; ip link set sync up");
    let shuntd = Shuntd::start_within(&place);
    let say = |words: &str| {
        let words: Vec<&str> = std::iter::once("ipvsadm").chain(words.split(' ')).collect();
        shuntd.ctl_text(&words)
    };
    assert_eq!(say("-L --daemon").expect("a listing"), "");
    say("--start-daemon backup --mcast-interface sync --syncid 3").expect("a backup");
    say("--start-daemon master --mcast-interface sync --sync-maxlen 1000").expect("a master");
    let listed = say("-L --daemon").expect("a listing");
    let expected = "master sync daemon (mcast=sync, syncid=0, maxlen=1000, group=224.0.0.81, port=8848, ttl=1)\n\
                    backup sync daemon (mcast=sync, syncid=3, maxlen=1472, group=224.0.0.81, port=8848, ttl=1)\n";
    assert_eq!(listed, expected);
    assert!(say("--start-daemon master --mcast-interface sync").is_err(), "one of a kind");
    say("--stop-daemon master").expect("stopped");
    assert!(say("--stop-daemon master").is_err(), "it does not run");
    assert!(say("--start-daemon master --mcast-interface none").is_err(), "no such interface");
    assert!(!say("-L --daemon").expect("a listing").contains("master"));
}
