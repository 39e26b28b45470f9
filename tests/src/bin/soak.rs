//! `make soak`: hours of what a host goes through in months. Guests talk, among themselves and through translation, are
//! killed and come back; ports, routes, rules and connections come and go; 62 more ports have guests that ping each
//! other, lie, and change their memory; and the one shuntd underneath must neither end nor grow. SOAK_MINUTES says how
//! long (30).

#![forbid(unsafe_code)]

use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use shunt_tests::hostile::attacks::{self, Attack, SINK_MAC};
use shunt_tests::hostile::vm::memfd;
use shunt_tests::hostile::{Footprint, Neighbour, Vm};
use shunt_tests::process::{favour, threads};
use shunt_tests::{
    GuestSpec, Host, NetNs, Nic, Shuntd, answers, boot_all, copy_intact, iperf, poll_for, progress,
    start_iperf, wait_for,
};

const SOON: Duration = Duration::from_secs(30);
/// Rounds until everything that is made on demand has been made: each thread has its own part of the allocator, or shares
/// one with others, and each of them has seen its worst.
const WARM: u32 = 8;
/// Growth that is allowed afterwards, KiB.
const SLACK_KIB: u64 = 4096;

fn main() {
    let minutes = std::env::var("SOAK_MINUTES").ok().and_then(|text| text.parse().ok()).unwrap_or(30);
    let end = Instant::now() + Duration::from_secs(60 * minutes);
    let mut shuntd = Shuntd::new().arguments(&["--workers", "2"]);
    shuntd.launch();
    // Those who ping have the processor before others; workers that lose it to them in the midst of a burst would let
    // the other worker's frames wait for too long (`ring_busy`).
    favour(&threads(shuntd.pid().unwrap_or_else(|| panic!("no shuntd"))));
    let a = shuntd.vhost_port("a", "--queues 2");
    let b = shuntd.path("b.sock");
    shuntd.ctl(&format!("port add b --bridge shunt0 --vhost-user {} --role client --queues 2", b.display()));
    let outside = nix::unistd::geteuid().is_root().then(|| NetNs::new("soak"));
    let world = nix::unistd::geteuid().is_root().then(|| World::new(&shuntd));
    let [a, mut b] = boot_all([
        GuestSpec::new("a").nic(Nic::connects(&a).queues(2).address("10.0.3.101/24")),
        GuestSpec::new("b").nic(Nic::listens(&b).queues(2).address("10.0.3.102/24")),
    ]);

    let field = Field::new(&shuntd);
    let mut warm = None;
    let mut round = 0;
    while Instant::now() < end {
        round += 1;
        answers(&a, "10.0.3.102", SOON);
        let traffic = start_iperf(&a, &b, "10.0.3.102", 10, "-P2");
        for pairs in [1, 2] {
            a.sh(&format!("ethtool -L eth0 combined {pairs}"));
        }
        for port in 0..50 {
            shuntd.vhost_port(&format!("p{port}"), "--queues 4");
        }
        for port in 0..50 {
            shuntd.ctl(&format!("port del p{port}"));
        }
        if let Some(outside) = &outside {
            // The same address each time: nobody asks for it again.
            let device = format!("--tap tap0 --queues 2 --mac 02:00:00:00:00:09 --netns {}", outside.id());
            shuntd.ctl(&format!("port add out --bridge shunt0 {device}"));
            outside.up("tap0", Some("10.0.3.109/24"));
            answers(&a, "10.0.3.109", SOON);
            iperf(&a, outside, "10.0.3.109", 2, "");
            shuntd.ctl("port del out");
        }
        if let Some(world) = &world {
            world.visit(&shuntd, &a, round);
        }
        traffic.finish();
        copy_intact(&a, &b, "10.0.3.102", 16);
        let flood = a.start("ping -f -w 5 10.0.3.102", SOON);
        if round % 2 == 0 {
            b.restart();
        } else {
            b.reboot();
        }
        field.attack(round);
        field.change_memory();
        drop(flood.wait());
        wait_for("both ports up", SOON, || {
            ["a", "b"].iter().all(|port| shuntd.port(port)["state"] == "up").then_some(())
        });

        field.check(&shuntd);
        let footprint = || Footprint::of(shuntd.pid().unwrap_or_else(|| panic!("shuntd is gone")));
        if round <= WARM {
            warm = Some(footprint());
        }
        let before = warm.unwrap_or_default();
        // A worker lets go of a kick when it sleeps next, and freed memory is given back every few seconds.
        let settled = poll_for(SOON, || Some(footprint()).filter(|now| now.fits(&before, SLACK_KIB)));
        let now = settled.unwrap_or_else(footprint);
        progress!("round {round}: shuntd has {now}");
        assert!(settled.is_some(), "shuntd had {before} and has {now}");
    }
    assert!(shuntd.alive());
    println!("soak: {round} rounds in {minutes} minutes passed");
}

/// What is behind the gateway.
struct World {
    host: NetNs,
    routes: std::path::PathBuf,
}

impl World {
    fn new(shuntd: &Shuntd) -> Self {
        shuntd.network("wan", &["198.51.100.1/24"]);
        let host = shuntd.host("world", "wan");
        host.join("198.51.100.2/24", None);
        let list: String =
            (0..20_000).map(|n| format!("11.{}.{}.0/24 via 198.51.100.2\n", n >> 8, n & 0xff)).collect();
        let routes = shuntd.path("routes");
        std::fs::write(&routes, list).unwrap_or_else(|e| panic!("cannot write {}: {e}", routes.display()));
        Self { host, routes }
    }

    /// A guest goes out and is called, while routes and rules come and go.
    fn visit(&self, shuntd: &Shuntd, guest: &dyn Host, round: u32) {
        guest.sh("ip route replace default via 10.0.3.1");
        answers(guest, "198.51.100.2", SOON);
        let traffic = start_iperf(guest, &self.host, "198.51.100.2", 5, "-P2");
        shuntd.ctl(&format!("route load {} --replace", self.routes.display()));
        let publish = "nat publish add --proto tcp --listen 198.51.100.1:9000-9999 --to 10.0.3.101:9000-9999";
        let rule = shuntd.ctl(publish);
        for n in 0..200 {
            shuntd.ctl(&format!(
                "policy add --source 192.0.2.{n}/32 --proto tcp --dport {} --action drop",
                n + 1
            ));
        }
        let server = guest.start("exec nc -l -k -p 9100 >/dev/null", SOON);
        wait_for("the guest to listen", SOON, || {
            (!guest.sh("ss -Hltn sport = :9100").is_empty()).then_some(())
        });
        self.host.sh("head -c 1048576 /dev/zero | timeout 20 nc -N -w 10 198.51.100.1 9100");
        drop(server);
        shuntd.ctl("policy flush");
        shuntd.ctl(&format!("nat publish del {}", rule["id"]));
        shuntd.ctl("route flush");
        traffic.finish();
        if round.is_multiple_of(3) {
            shuntd.ctl("conntrack flush");
        }
    }
}

/// Ports whose guests are a few lines each: some talk, some lie.
struct Field {
    talking: Vec<Neighbour>,
    /// Takes what the attacks send, and no notice of it.
    _sink: Vm,
    lying: Vec<PathBuf>,
}

/// Pairs that ping each other.
const PAIRS: u8 = 21;
/// Ports for those that lie.
const LIARS: usize = 19;
/// Attacks in a round.
const ATTACKS: usize = 40;

impl Field {
    fn new(shuntd: &Shuntd) -> Self {
        // Those that lie flood their bridge with noise; those that talk look into their rings only now and then.
        shuntd.ctl("bridge add field");
        shuntd.ctl("bridge add wild");
        let add = |bridge: &str, name: String, options: &str| {
            let path = shuntd.path(&format!("{name}.sock"));
            shuntd
                .ctl(&format!("port add {name} --bridge {bridge} --vhost-user {} {options}", path.display()));
            path
        };
        let sink = add("wild", "sink".into(), &format!("--mac {SINK_MAC}"));
        let sink = wait_for("the sink to start", SOON, || Vm::boot(&sink).ok());
        let talking = (0..PAIRS).map(|n| {
            let (one, other) = (add("field", format!("t{n}a"), ""), add("field", format!("t{n}b"), ""));
            Neighbour::between(&one, &other, [20 + 2 * n, 21 + 2 * n], Duration::from_millis(100))
        });
        Self {
            talking: talking.collect(),
            _sink: sink,
            lying: (0..LIARS).map(|n| add("wild", format!("liar{n}"), "")).collect(),
        }
    }

    /// The next attacks of the tables, one port after the other.
    fn attack(&self, round: u32) {
        let booted = [attacks::RINGS, attacks::HEADERS, attacks::CIRCUMSTANCES];
        let mut all: Vec<(bool, &Attack)> =
            booted.into_iter().flatten().map(|attack| (true, attack)).collect();
        all.extend(attacks::SESSIONS.iter().map(|attack| (false, attack)));
        for n in 0..ATTACKS {
            let (boot, (name, run, _)) = all[(round as usize * ATTACKS + n) % all.len()];
            let path = &self.lying[n % LIARS];
            let mut vm = wait_for(name, SOON, || if boot { Vm::boot(path) } else { Vm::connect(path) }.ok());
            run(&mut vm);
        }
    }

    /// A guest gets and gives back memory a hundred times.
    fn change_memory(&self) {
        let vm = wait_for("a guest to start", SOON, || Vm::boot(&self.lying[0]).ok());
        let file = memfd(100 << 20);
        let region = |n: u64| [0x100_0000_0000 + (n << 20), 1 << 20, 0x5000_0000_0000 + (n << 20), n << 20];
        for n in 0..100 {
            vm.add_region(region(n), file.as_raw_fd()).unwrap_or_else(|e| panic!("region {n}: {e}"));
        }
        for n in (0..100).rev() {
            vm.remove_region(region(n)).unwrap_or_else(|e| panic!("region {n}: {e}"));
        }
    }

    /// Who talked has lost nothing, and those who lied are gone.
    fn check(&self, shuntd: &Shuntd) {
        for (n, pair) in self.talking.iter().enumerate() {
            let seen = pair.seen();
            let ports = || ["a", "b"].map(|side| shuntd.port(&format!("t{n}{side}")).to_string());
            assert_eq!(seen.lost, 0, "pair {n} lost frames: {seen:?}\n{}", ports().join("\n"));
        }
        wait_for("those who lied to be gone", SOON, || {
            let gone = |n| {
                matches!(shuntd.port(&format!("liar{n}"))["state"].as_str(), Some("connecting" | "broken"))
            };
            (0..LIARS).all(gone).then_some(())
        });
    }
}
