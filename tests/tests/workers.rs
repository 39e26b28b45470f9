//! Several workers: queues that move, when somebody says so and by themselves, while what they carry is numbered.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;
use shunt_tests::hostile::Vm;
use shunt_tests::hostile::neighbour::{frame, mac, number};
use shunt_tests::process::{favour, threads};
use shunt_tests::tools::repository;
use shunt_tests::{Host, NetNs, Shuntd, answers, is_root, progress, wait_for};

const SOON: Duration = Duration::from_secs(60);
/// How long nothing may come before a frame counts as lost.
const LOST: Duration = Duration::from_secs(10);
/// Frames of a conversation on their way: fewer than a ring has buffers.
const WINDOW: u64 = 128;

/// A guest that sends numbered frames and one that receives them, each in its turn.
struct Conversation {
    talking: Arc<AtomicBool>,
    ending: Arc<AtomicBool>,
    arrived: Arc<AtomicU64>,
    thread: JoinHandle<Result<u64, String>>,
}

impl Conversation {
    fn start(from: PathBuf, to: PathBuf, stations: [u8; 2]) -> Self {
        let [talking, ending] = [true, false].map(|on| Arc::new(AtomicBool::new(on)));
        let arrived = Arc::new(AtomicU64::new(0));
        let (talks, ends, count) = (talking.clone(), ending.clone(), arrived.clone());
        let thread = std::thread::spawn(move || {
            let mut sender = Vm::boot(&from)?;
            let mut receiver = Vm::boot(&to)?;
            let [from, to] = stations.map(mac);
            let (mut sent, mut due) = (0, 0);
            let mut heard = Instant::now();
            loop {
                let ending = ends.load(Ordering::Relaxed);
                while !ending && talks.load(Ordering::Relaxed) && sent - due < WINDOW {
                    if !sender.send(&frame(to, from, sent)) {
                        break;
                    }
                    sent += 1;
                }
                while let Some(came) = receiver.receive() {
                    if came[6..12] != from {
                        continue;
                    }
                    if number(&came) != Some(due) {
                        return Err(format!("{:?} came when {due} was due", number(&came)));
                    }
                    due += 1;
                    heard = Instant::now();
                }
                count.store(due, Ordering::Relaxed);
                if sent == due {
                    heard = Instant::now();
                    if ending {
                        return Ok(due);
                    }
                }
                if heard.elapsed() > LOST {
                    return Err(format!("of {sent} frames {due} came"));
                }
                std::thread::yield_now();
            }
        });
        Self { talking, ending, arrived, thread }
    }

    fn talk(&self, on: bool) {
        self.talking.store(on, Ordering::Relaxed);
    }

    #[track_caller]
    fn end(self) -> u64 {
        self.ending.store(true, Ordering::Relaxed);
        let outcome = self.thread.join().unwrap_or_else(|_| panic!("a conversation's thread panicked"));
        outcome.unwrap_or_else(|why| panic!("{why}"))
    }
}

/// The worker of a port's queue.
#[track_caller]
fn worker_of(shuntd: &Shuntd, port: &str, queue: u64) -> u64 {
    let workers = shuntd.ctl("worker list");
    let its = |worker: &Value| {
        worker["queues"].as_array().is_some_and(|queues| {
            queues.iter().any(|other| other["port"] == port && other["queue"].as_u64() == Some(queue))
        })
    };
    let found = workers.as_array().into_iter().flatten().find(|worker| its(worker));
    found.and_then(|worker| worker["id"].as_u64()).unwrap_or_else(|| panic!("{port} is nobody's: {workers}"))
}

#[track_caller]
fn cores(shuntd: &Shuntd) -> Vec<u64> {
    let workers = shuntd.ctl("worker list");
    workers.as_array().into_iter().flatten().filter_map(|worker| worker["core"].as_u64()).collect()
}

#[test]
fn load_shifts_and_queues_follow_by_themselves() {
    const PAIRS: u8 = 4;
    let mut shuntd = Shuntd::new().arguments(&["--workers", "2"]);
    shuntd.launch();
    favour(&threads(shuntd.pid().unwrap_or_else(|| panic!("no shuntd"))));
    let first = cores(&shuntd)[0];
    let conversations: Vec<Conversation> = (0..PAIRS)
        .map(|n| {
            let from = shuntd.vhost_port(&format!("from{n}"), "");
            // Known from the start: it never sends, and what is flooded fills the others' rings.
            let to =
                shuntd.vhost_port(&format!("to{n}"), &format!("--mac 02:5e:00:00:00:{:02x}", 11 + 2 * n));
            // All work is at one worker, and nothing keeps it there.
            shuntd.ctl(&format!("port set from{n} --worker 0={first}"));
            shuntd.ctl(&format!("port set from{n} --worker 0=any"));
            Conversation::start(from, to, [10 + 2 * n, 11 + 2 * n])
        })
        .collect();
    let settings = shuntd.ctl("worker settings");
    assert_eq!(settings["auto"], false, "{settings}");
    let places = || (0..PAIRS).map(|n| worker_of(&shuntd, &format!("from{n}"), 0)).collect::<Vec<_>>();
    let arrived =
        || conversations.iter().map(|talk| talk.arrived.load(Ordering::Relaxed)).collect::<Vec<_>>();
    wait_for("all to talk", SOON, || arrived().iter().all(|&n| n > 1000).then_some(()));
    assert_eq!(places(), [0; 4], "nothing moves unasked");
    // What was flooded while the ports' guests came may have met one that was half up.
    let drops = || {
        let ports = (0..PAIRS).map(|n| shuntd.port(&format!("to{n}"))["tx"]["drops"].clone());
        ports.collect::<Vec<_>>()
    };
    let before = drops();

    shuntd.ctl("worker set --auto on --interval 5 --load-threshold 1 --improvement-threshold 25");
    let spread = wait_for("the four to be spread", SOON, || {
        let places = places();
        (places.iter().sum::<u64>() == 2).then_some(places)
    });
    let settings = shuntd.ctl("worker settings");
    progress!("spread as {spread:?} after {:?} frames; {settings}", arrived());

    // The load shifts: only two go on, which are at the same worker.
    let busy: Vec<usize> = (0..usize::from(PAIRS)).filter(|&n| spread[n] == 1).collect();
    for (n, conversation) in conversations.iter().enumerate() {
        conversation.talk(busy.contains(&n));
    }
    let apart = wait_for("the two to be apart", SOON, || {
        let places = places();
        (places[busy[0]] != places[busy[1]]).then_some(places)
    });
    let meanwhile = arrived();
    wait_for("both to go on", SOON, || {
        busy.iter().all(|&n| arrived()[n] > meanwhile[n] + 1000).then_some(())
    });
    assert_eq!(drops(), before);
    let frames: Vec<u64> = conversations.into_iter().map(Conversation::end).collect();
    progress!("now {apart:?}; {frames:?} frames came, each in its turn");
    let settings = shuntd.ctl("worker settings");
    assert!(settings["rebalanced"].as_u64().is_some_and(|times| times >= 2), "{settings}");
}

/// Queues of TAP and other devices go from worker to worker.
#[test]
fn queues_of_devices_move_and_nothing_is_lost_or_late() {
    if !is_root() {
        return;
    }
    let [host, left, right] = ["host", "left", "right"].map(NetNs::new);
    host.veth("veth0", &right, "eth0");
    host.up("veth0", None);
    right.up("eth0", Some("10.0.0.2/24"));
    let mut shuntd = Shuntd::new().within(&host).arguments(&["--workers", "2"]);
    shuntd.launch();
    shuntd.ctl(&format!("port add left --bridge shunt0 --tap tap0 --queues 4 --netns {}", left.id()));
    shuntd.ctl("port add right --bridge shunt0 --netdev veth0");
    left.up("tap0", Some("10.0.0.1/24"));
    answers(&left, "10.0.0.2", SOON);
    let script = repository().join("tests/scripts/numbered.py");
    let python = format!("exec /usr/bin/python3 {}", script.display());
    let server = right.start(&format!("{python} serve 7000"), SOON);
    wait_for("the server to listen", SOON, || (!right.sh("ss -Hlun sport = :7000").is_empty()).then_some(()));
    let talk = left.start(&format!("{python} talk 10.0.0.2 7000 8 12"), SOON);

    let cores = cores(&shuntd);
    let end = Instant::now() + Duration::from_secs(10);
    let (mut moves, mut round) = (0, 0);
    while Instant::now() < end {
        for (port, queues) in [("left", 4), ("right", 1)] {
            for queue in 0..queues {
                let worker = (round + queue) % 2;
                let before = worker_of(&shuntd, port, queue as u64);
                shuntd.ctl(&format!("port set {port} --worker {queue}={}", cores[worker]));
                assert_eq!(worker_of(&shuntd, port, queue as u64), worker as u64);
                moves += u32::from(before != worker as u64);
            }
        }
        round += 1;
    }
    let outcome = talk.wait();
    assert!(outcome.ok(), "{} after {moves} moves\n{}", outcome.text, shuntd.ctl("port list"));
    drop(server);
    let came: u64 = outcome.text.trim().parse().unwrap_or_else(|_| panic!("no number: {}", outcome.text));
    progress!("{moves} moves beside {came} datagrams there and back");
    assert!(moves > 20 && came > 2000, "{moves} moves, {came} datagrams");
}
