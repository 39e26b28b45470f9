//! How the usual managers of virtual services go about it, with a download that must notice nothing of it: kube-proxy,
//! which takes the saved table as the truth and restores thousands of lines; keepalived, whose checks take servers out
//! and put them back; edit storms from several hands at once.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use shunt_tests::ipvsadm::sorted;
use shunt_tests::{Host, Job, NetNs, Shuntd, Web, answers, is_root, wait_for};

const SOON: Duration = Duration::from_secs(20);
/// Services of a middling cluster, beside the one that is used.
const SERVICES: u32 = 1000;
/// The service that is used, and its server.
const USED: &str = "-A -t 10.9.9.9:80 -s rr\n-a -t 10.9.9.9:80 -r 10.0.2.11:80 -m -w 1\n";

/// A client and a server behind a service; the server's file takes some seconds to download.
struct Cluster {
    shuntd: Shuntd,
    client: NetNs,
    web: Web,
    _server: NetNs,
}

impl Cluster {
    fn start() -> Self {
        let shuntd = Shuntd::start();
        shuntd.ctl("policy default forward accept");
        shuntd.network("clients", &["10.0.1.1/24", "10.9.9.9/32"]);
        shuntd.network("servers", &["10.0.2.1/24"]);
        let client = shuntd.host("client", "clients");
        let server = shuntd.host("server", "servers");
        client.join("10.0.1.10/24", Some("10.0.1.1"));
        server.join("10.0.2.11/24", Some("10.0.2.1"));
        server.ip("address add 10.0.2.12/24 dev eth0");
        answers(&client, "10.0.2.11", SOON);
        let web = Web::serve(&server, 80, 4096);
        Self { shuntd, client, web, _server: server }
    }

    #[track_caller]
    fn restore(&self, options: &[&str], text: &str) {
        let said = self.shuntd.ipvsadm(&[&["-R"], options].concat(), text.as_bytes());
        assert_eq!((said.status, said.err.as_str()), (0, ""));
    }

    /// A download that outlasts what follows, begun and at a server.
    fn download(&self) -> Job {
        let job = self.client.start(
            "exec curl -sS --limit-rate 700k --max-time 60 -o /dev/null -w '%{size_download}' http://10.9.9.9/file",
            Duration::from_secs(90),
        );
        wait_for("the download", SOON, || self.connections().contains("ESTABLISHED").then_some(()));
        job
    }

    fn connections(&self) -> String {
        self.shuntd.vs("-L -n -c")
    }
}

#[track_caller]
fn whole(job: Job) {
    assert_eq!(job.wait().text.trim(), (4096 * 1024).to_string(), "the download noticed something");
}

/// Endpoints by service, as a cluster has them after so many changes: some pods come, some go, some services are gone.
fn endpoints(turn: u32) -> BTreeMap<u32, Vec<u32>> {
    let mut state = 0x2545_f491_u32.wrapping_mul(turn + 1);
    let mut random = |below: u32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % below
    };
    let mut services = BTreeMap::new();
    for n in 0..SERVICES {
        if random(50) == 0 {
            continue;
        }
        // Mostly what it was.
        let changed = if random(10) == 0 { turn } else { 0 };
        services.insert(n, (0..1 + (n + changed) % 4).map(|m| m * 7 + changed).collect());
    }
    services
}

/// As `ipvsadm -S -n` prints them.
fn lines(services: &BTreeMap<u32, Vec<u32>>) -> String {
    let mut text = USED.to_owned();
    for (n, servers) in services {
        let service = format!("10.96.{}.{}:443", n >> 8, n & 0xff);
        let _ = writeln!(text, "-A -t {service} -s rr");
        for m in servers {
            let _ = writeln!(text, "-a -t {service} -r 10.{m}.{}.{}:8443 -m -w 1", n >> 8, n & 0xff);
        }
    }
    text
}

#[test]
fn a_table_is_brought_to_what_is_wanted_again_and_again() {
    if !is_root() {
        return;
    }
    let cluster = Cluster::start();
    cluster.restore(&[], &lines(&endpoints(0)));
    let download = cluster.download();
    for turn in 1..=10 {
        let wanted = lines(&endpoints(turn));
        let saved = cluster.shuntd.vs("-S -n");
        if turn % 2 == 0 {
            cluster.restore(&["--replace"], &wanted);
        } else {
            cluster.restore(&[], &difference(&saved, &wanted));
        }
        assert_eq!(sorted(&cluster.shuntd.vs("-S -n")), sorted(&wanted), "turn {turn}");
    }
    whole(download);
    cluster.web.fetch_intact(&cluster.client, "10.9.9.9:80");
}

/// What a manager restores to get from what is saved to what is wanted.
fn difference(saved: &str, wanted: &str) -> String {
    let service = |line: &str| line.split_whitespace().nth(2).unwrap_or_default().to_owned();
    let (had, wants) = (sorted(saved), sorted(wanted));
    let gone = |line: &&&str| wants.binary_search(line).is_err();
    let new = |line: &&&str| had.binary_search(line).is_err();
    let mut text = String::new();
    let deleted: Vec<String> =
        had.iter().filter(|line| line.starts_with("-A")).filter(gone).map(|line| service(line)).collect();
    for line in had.iter().filter(|line| line.starts_with("-a")).filter(gone) {
        if !deleted.contains(&service(line)) {
            let server = line.split_whitespace().nth(4).unwrap_or_default();
            let _ = writeln!(text, "-d -t {} -r {server}", service(line));
        }
    }
    for service in &deleted {
        let _ = writeln!(text, "-D -t {service}");
    }
    for kind in ["-A", "-a"] {
        for line in wants.iter().filter(|line| line.starts_with(kind)).filter(new) {
            let _ = writeln!(text, "{line}");
        }
    }
    text
}

#[test]
fn servers_that_fail_and_recover_leave_the_others_connections_alone() {
    if !is_root() {
        return;
    }
    let cluster = Cluster::start();
    cluster.restore(&[], USED);
    let download = cluster.download();
    cluster.shuntd.vs("-a -t 10.9.9.9:80 -r 10.0.2.12:80 -m -w 3");
    let before = cluster.shuntd.vs("-S -n");
    // Taken out and put back, as keepalived does it, and quiesced, as it does with inhibit_on_failure.
    for turn in 0..60 {
        if turn % 2 == 0 {
            cluster.shuntd.vs("-d -t 10.9.9.9:80 -r 10.0.2.12:80");
            cluster.shuntd.vs("-a -t 10.9.9.9:80 -r 10.0.2.12:80 -m -w 3");
        } else {
            cluster.shuntd.vs("-e -t 10.9.9.9:80 -r 10.0.2.12:80 -m -w 0");
            cluster.shuntd.vs("-e -t 10.9.9.9:80 -r 10.0.2.12:80 -m -w 3");
        }
    }
    assert_eq!(cluster.shuntd.vs("-S -n"), before);
    // The last server fails: the sorry server takes its place, and what the server was about it finishes.
    cluster.shuntd.vs("-d -t 10.9.9.9:80 -r 10.0.2.12:80");
    cluster.shuntd.vs("-e -t 10.9.9.9:80 -r 10.0.2.11:80 -m -w 0");
    cluster.shuntd.vs("-a -t 10.9.9.9:80 -r 10.0.2.12:80 -m -w 1");
    cluster.web.fetch_intact(&cluster.client, "10.9.9.9:80");
    whole(download);
    // kube-proxy's graceful end: gone when it has no connections any more.
    wait_for("no more active connections", SOON, || {
        let listing = cluster.shuntd.vs("-L -n");
        let line = listing.lines().find(|line| line.contains("10.0.2.11:80")).unwrap_or_default().to_owned();
        (line.split_whitespace().nth(4) == Some("0")).then_some(())
    });
    cluster.shuntd.vs("-d -t 10.9.9.9:80 -r 10.0.2.11:80");
    cluster.web.fetch_intact(&cluster.client, "10.9.9.9:80");
}

#[test]
fn an_edit_storm_from_several_hands_ends_as_each_has_left_it() {
    if !is_root() {
        return;
    }
    let cluster = Cluster::start();
    cluster.restore(&[], &lines(&(0..SERVICES).map(|n| (n, vec![1, 2, 3])).collect()));
    let download = cluster.download();
    const HANDS: u32 = 4;
    std::thread::scope(|scope| {
        for hand in 0..HANDS {
            let shuntd = &cluster.shuntd;
            scope.spawn(move || {
                let mut storm = String::new();
                for round in 1..=20 {
                    for n in (hand..SERVICES).step_by(HANDS as usize) {
                        let (high, low) = (n >> 8, n & 0xff);
                        let server = format!("-t 10.96.{high}.{low}:443 -r 10.1.{high}.{low}:8443");
                        let _ = writeln!(storm, "-e {server} -m -w {}", round + n % 7);
                    }
                }
                let said = shuntd.ipvsadm(&["-R", "--keep-going"], storm.as_bytes());
                assert_eq!((said.status, said.err.as_str()), (0, ""));
            });
        }
    });
    let saved = cluster.shuntd.vs("-S -n");
    for n in 0..SERVICES {
        let (high, low) = (n >> 8, n & 0xff);
        let line = format!("-a -t 10.96.{high}.{low}:443 -r 10.1.{high}.{low}:8443 -m -w {}", 20 + n % 7);
        assert!(saved.lines().any(|saved| saved == line), "{line}");
    }
    assert_eq!(saved.lines().count() as u32, 2 + 4 * SERVICES);
    whole(download);
}
