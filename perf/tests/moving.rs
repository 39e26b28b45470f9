//! Queues change their workers, ports come and go, and nobody else loses a frame or gets one out of its turn.
//!
//! A real switch with two workers in this process. One thread plays two guests that exchange numbered frames over four
//! queue pairs; a flow keeps to its queue, and each frame of it must arrive in its turn. Meanwhile the test's main thread
//! does to the switch whatever may be done to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use shunt_perf::frames;
use shunt_perf::guest::{Guest, Options};
use shunt_switch::config::{Config, Poll, PortChange, PortSpec, Workers};
use shunt_switch::control::api::PortAdd;
use shunt_switch::switch::{self, Switch};
use tempfile::TempDir;
use vhost_backend::net_header::NetHeader;

/// Queue pairs of the two guests, and flows in each direction.
const PAIRS: u16 = 4;
/// Frames of a flow on their way: all flows together fit into one ring, so a guest never lacks buffers.
const WINDOW: u64 = 24;
/// Where a frame has the number of its flow and its own.
const MARK: usize = 42;
/// The guest that comes and goes.
const STRANGER: u8 = 77;
/// How long nothing may arrive before a frame counts as lost.
const LOST: Duration = Duration::from_secs(5);

/// One direction of the conversation.
struct Stream {
    /// For each flow, what its frames are like.
    frames: Vec<Vec<u8>>,
    sent: Vec<u64>,
    received: Vec<u64>,
    progress: Instant,
}

impl Stream {
    fn new(frames: Vec<Vec<u8>>) -> Self {
        let flows = frames.len();
        Self { frames, sent: vec![0; flows], received: vec![0; flows], progress: Instant::now() }
    }

    /// Sends what the windows allow. `base` tells the flows of both directions apart.
    fn send(&mut self, from: &mut Guest, base: u16) -> Result<()> {
        for (flow, frame) in self.frames.iter_mut().enumerate() {
            // A guest's few buffers, too, are reason to come again.
            while self.sent[flow] - self.received[flow] < WINDOW {
                frame[MARK..][..2].copy_from_slice(&(base + flow as u16).to_be_bytes());
                frame[MARK + 2..][..8].copy_from_slice(&self.sent[flow].to_be_bytes());
                if !from.send_on(flow as u16 % PAIRS, &NetHeader::default(), frame)? {
                    break;
                }
                self.sent[flow] += 1;
            }
        }
        Ok(())
    }

    /// Takes what has come and holds it against what is due. What others sent to everybody is not ours.
    fn receive(&mut self, to: &mut Guest, base: u16) -> Result<u64> {
        let mut count = 0;
        for frame in to.receive()? {
            if frame.len() < MARK + 10 || frame[12..14] != [8, 0] || frame[6..12] == frames::mac(STRANGER) {
                continue;
            }
            let flow = u16::from_be_bytes([frame[MARK], frame[MARK + 1]]).wrapping_sub(base);
            let Some(due) = self.received.get_mut(usize::from(flow)) else { continue };
            let number = u64::from_be_bytes(frame[MARK + 2..][..8].try_into()?);
            ensure!(number == *due, "flow {flow}: frame {number} came when {due} was due");
            *due += 1;
            count += 1;
        }
        if count > 0 {
            self.progress = Instant::now();
        }
        let lost = self.sent != self.received && self.progress.elapsed() > LOST;
        ensure!(!lost, "nothing came for {LOST:?}: sent {:?}, received {:?}", self.sent, self.received);
        Ok(count)
    }
}

/// Two guests in conversation, on a thread of their own.
struct Conversation {
    stop: Arc<AtomicBool>,
    exchanged: Arc<AtomicU64>,
    thread: JoinHandle<Result<()>>,
}

impl Conversation {
    fn start(mut left: Guest, mut right: Guest, there: Vec<Vec<u8>>, back: Vec<Vec<u8>>) -> Self {
        let (stop, exchanged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (stop.clone(), exchanged.clone());
        let thread = std::thread::spawn(move || {
            let (mut there, mut back) = (Stream::new(there), Stream::new(back));
            loop {
                let ending = stopped.load(Ordering::Relaxed);
                if !ending {
                    there.send(&mut left, 0)?;
                    back.send(&mut right, 100)?;
                }
                let new = there.receive(&mut right, 0)? + back.receive(&mut left, 100)?;
                count.fetch_add(new, Ordering::Relaxed);
                if new == 0 {
                    std::thread::yield_now();
                }
                if ending && there.sent == there.received && back.sent == back.received {
                    return Ok(());
                }
            }
        });
        Self { stop, exchanged, thread }
    }

    fn exchanged(&self) -> u64 {
        self.exchanged.load(Ordering::Relaxed)
    }

    /// Waits until so many more frames have been exchanged.
    fn wait_for(&self, more: u64) -> Result<()> {
        let until = self.exchanged() + more;
        while self.exchanged() < until {
            if self.thread.is_finished() {
                bail!("the conversation has ended");
            }
            std::thread::yield_now();
        }
        Ok(())
    }

    /// Lets everything arrive and ends; how many frames were exchanged.
    fn end(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the guests' thread panicked"))??;
        Ok(self.exchanged.load(Ordering::Relaxed))
    }
}

struct World {
    switch: Switch,
    cores: Vec<u32>,
    dir: TempDir,
}

impl World {
    /// A switch with two workers that is configured like this; `DIR` stands for a directory.
    fn new(config: &str) -> Result<Self> {
        Self::with(config, Workers::Count(2))
    }

    fn with(config: &str, workers: Workers) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("shunt-moving-").tempdir()?;
        let text = config.replace("DIR", &dir.path().display().to_string());
        let options = switch::Options { workers, poll: Poll::Adaptive, state: None, handed: None };
        let mut switch = Switch::start(options)?;
        switch.configure(Config::parse(&text, None)?)?;
        let cores = switch.workers().iter().filter_map(|w| w.core).map(|core| core as u32).collect();
        Ok(Self { switch, cores, dir })
    }

    fn guest(&self, name: &str, pairs: u16) -> Result<Guest> {
        let options = Options { pairs, ..Options::default() };
        Guest::connect(self.dir.path().join(name), &options)
    }

    /// A port comes, its guest says something to everybody, restarts, and both go.
    fn come_and_go(&mut self, name: &str) -> Result<()> {
        let path = self.dir.path().join(name).display().to_string();
        let asked = PortAdd {
            name: name.into(),
            bridge: "left".into(),
            vhost_user: Some(path),
            queues: Some(2),
            ..PortAdd::default()
        };
        self.switch.add_port(PortSpec::try_from(&asked)?)?;
        let mut guest = self.guest(name, 2)?;
        let word = frames::udp(STRANGER, 78, 64, 0);
        guest.send(&[&word, &word])?;
        let bases = guest.stop()?;
        guest.restart(&bases)?;
        guest.enable(1, false)?;
        drop(guest);
        self.switch.del_port(name)?;
        Ok(())
    }

    /// Has `queue` of `port` served by the worker number `worker`.
    fn place(&mut self, port: &str, queue: u16, worker: usize) -> Result<()> {
        let pins = vec![(queue, self.cores[worker])];
        Ok(self.switch.set_port(port, PortChange { pins, ..PortChange::default() })?)
    }

    fn drops(&self) -> String {
        let lines = self.switch.ports();
        lines.iter().map(|p| format!("{} rx {:?} tx {:?}; ", p.name, p.rx.drops, p.tx.drops)).collect()
    }
}

const BRIDGED: &str = r#"
    [[bridge]]
    name = "left"
    [[port]]
    name = "a"
    bridge = "left"
    vhost_user = "DIR/a"
    queues = 4
    [[port]]
    name = "b"
    bridge = "left"
    vhost_user = "DIR/b"
    queues = 4
"#;

/// Everything that moves queues, again and again, while the guests talk.
fn shake(world: &mut World, conversation: &Conversation, seconds: u64) -> Result<u32> {
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut round = 0u32;
    while Instant::now() < end {
        for queue in 0..PAIRS {
            let worker = (round as usize + usize::from(queue) / 2) % 2;
            world.place("a", queue, worker)?;
            conversation.wait_for(20)?;
            world.place("b", queue, 1 - worker)?;
        }
        conversation.wait_for(200)?;
        world.come_and_go(&format!("x{}", round % 3)).context("a port that comes and goes")?;
        world.switch.tick();
        round += 1;
    }
    Ok(round)
}

fn ended(world: &World, conversation: Conversation, rounds: Result<u32>) -> (u32, u64) {
    let exchanged = conversation.end().unwrap_or_else(|why| panic!("{why:#}; {}", world.drops()));
    (rounds.unwrap_or_else(|why| panic!("{why:#}; {}", world.drops())), exchanged)
}

#[test]
fn bridged_frames_keep_their_order_while_queues_move_and_ports_come_and_go() {
    let mut world = World::new(BRIDGED).expect("a switch");
    let (a, b) = (world.guest("a", PAIRS).expect("a guest"), world.guest("b", PAIRS).expect("a guest"));
    let frames = |from, to| (0..PAIRS).map(|flow| frames::udp(from, to, 96, flow)).collect();
    let conversation = Conversation::start(a, b, frames(1, 2), frames(2, 1));
    let rounds = shake(&mut world, &conversation, 6);
    let (rounds, exchanged) = ended(&world, conversation, rounds);
    println!("{rounds} rounds, {exchanged} frames");
    assert!(rounds >= 3 && exchanged > 1000, "{rounds} rounds, {exchanged} frames");
}

const ROUTED: &str = r#"
    [[bridge]]
    name = "left"
    [[bridge]]
    name = "right"
    [[port]]
    name = "a"
    bridge = "left"
    vhost_user = "DIR/a"
    queues = 4
    [[port]]
    name = "b"
    bridge = "right"
    vhost_user = "DIR/b"
    queues = 4
    [[interface]]
    name = "inner"
    bridge = "left"
    address = ["10.1.0.1/24"]
    mac = "02:00:00:00:01:01"
    [[interface]]
    name = "outer"
    bridge = "right"
    address = ["10.2.0.1/24"]
    mac = "02:00:00:00:02:01"
    [[neighbour]]
    interface = "inner"
    address = "10.1.0.2"
    mac = "52:54:00:be:00:01"
    [[neighbour]]
    interface = "outer"
    address = "10.2.0.2"
    mac = "52:54:00:be:00:02"
    [[fdb]]
    bridge = "left"
    mac = "52:54:00:be:00:01"
    port = "a"
    [[fdb]]
    bridge = "right"
    mac = "52:54:00:be:00:02"
    port = "b"
    [[nat.snat]]
    source = "10.1.0.0/24"
    out = "outer"
    to = "10.2.0.9"
"#;

/// A UDP frame without a checksum, which its numbers would spoil.
fn packet(to: [u8; 6], from: u8, source: [u8; 4], destination: [u8; 4], port: u16) -> Vec<u8> {
    let mut frame = frames::routed(to, frames::mac(from), source, destination, port, 96);
    frame[40..42].fill(0);
    frame
}

#[test]
fn translated_connections_go_on_while_queues_move_and_ports_come_and_go() {
    let mut world = World::new(ROUTED).expect("a switch");
    let (mut a, mut b) =
        (world.guest("a", PAIRS).expect("a guest"), world.guest("b", PAIRS).expect("a guest"));
    // As the daemon does when ports have told it that they are up.
    world.switch.follow_ports();
    let (inner, outer) = ([2, 0, 0, 0, 1, 1], [2, 0, 0, 0, 2, 1]);
    let there: Vec<_> =
        (0..PAIRS).map(|flow| packet(inner, 1, [10, 1, 0, 2], [10, 2, 0, 2], 10_000 + flow)).collect();
    // The first packet of each flow tells which port it has outside: answers go there.
    let mut back = Vec::new();
    for (flow, frame) in (0..PAIRS).zip(&there) {
        assert!(a.send_on(flow, &NetHeader::default(), frame).expect("a sound ring"));
        let end = Instant::now() + LOST;
        let first = loop {
            let came = b.receive().expect("frames").into_iter().find(|f| f[26..30] == [10, 2, 0, 9]);
            match came {
                Some(first) => break first,
                None => assert!(Instant::now() < end, "no packet of flow {flow}; {}", world.drops()),
            }
        };
        let mut answer = packet(outer, 2, [10, 2, 0, 2], [10, 2, 0, 9], 20_000);
        answer[36..38].copy_from_slice(&first[34..36]);
        back.push(answer);
    }
    let conversation = Conversation::start(a, b, there, back);
    let rounds = shake(&mut world, &conversation, 6);
    let (rounds, exchanged) = ended(&world, conversation, rounds);
    println!("{rounds} rounds, {exchanged} packets");
    assert!(rounds >= 3 && exchanged > 1000, "{rounds} rounds, {exchanged} packets");
    assert_eq!(world.switch.conntrack_size().count, u64::from(PAIRS), "no connection was begun anew");
}

#[test]
fn what_is_busy_on_one_worker_is_spread_by_what_it_costs() {
    let mut world = World::new(BRIDGED).expect("a switch");
    let (a, b) = (world.guest("a", PAIRS).expect("a guest"), world.guest("b", PAIRS).expect("a guest"));
    for port in ["a", "b"] {
        for queue in 0..PAIRS {
            world.place(port, queue, 0).expect("a worker");
        }
        let unpin = (0..PAIRS).collect();
        let change = PortChange { unpin, ..PortChange::default() };
        world.switch.set_port(port, change).expect("a port");
    }
    let workers = world.switch.workers();
    assert_eq!((workers[0].queues.len(), workers[1].queues.len()), (8, 0), "queues stay where they are");

    let frames = |from, to| (0..PAIRS).map(|flow| frames::udp(from, to, 96, flow)).collect();
    let conversation = Conversation::start(a, b, frames(1, 2), frames(2, 1));
    // A worker that lost its processor in the midst of a queue's turn thinks that queue dear; the next ones tell.
    let end = Instant::now() + LOST;
    let plan = loop {
        conversation.wait_for(20_000).expect("frames");
        let plan = world.switch.plan_rebalance();
        if (3..=5).contains(&plan.moves.len()) || Instant::now() > end {
            break plan;
        }
    };
    let moved = world.switch.workers().iter().map(|w| w.queues.len()).collect::<Vec<_>>();
    assert_eq!(moved, [8, 0], "a plan moves nothing");
    world.switch.carry_out(&plan);
    conversation.wait_for(2_000).expect("frames");
    let workers = world.switch.workers();
    conversation.end().unwrap_or_else(|why| panic!("{why:#}; {}", world.drops()));
    assert_eq!(plan.moves.len(), workers[1].queues.len());
    assert!((3..=5).contains(&plan.moves.len()), "{plan:?}");
    assert!(plan.improvement() > 80.0, "{plan:?}");
    assert!(workers[1].queues.iter().all(|queue| queue.load > 0.0));
}

#[test]
fn a_port_with_128_queue_pairs_goes_over_one_to_eight_workers() {
    const MANY: u16 = 128;
    let text = "[[bridge]]\nname = \"left\"\n\
        [[port]]\nname = \"a\"\nbridge = \"left\"\nvhost_user = \"DIR/a\"\nqueues = 128\n\
        [[port]]\nname = \"b\"\nbridge = \"left\"\nvhost_user = \"DIR/b\"\nqueues = 128\n";
    let cores: Vec<usize> =
        World::new(BRIDGED).expect("a switch").cores.iter().map(|&c| c as usize).collect();
    for workers in [1, 3, 8] {
        // Two processors play eight: workers that share one take turns, and everything else is as it would be.
        let list = (0..workers).map(|worker| cores[worker % cores.len()]).collect();
        let mut world = World::with(text, Workers::Cores(list)).expect("a switch");
        let mut guests = ["a", "b"].map(|name| world.guest(name, MANY).expect("a guest"));
        world.switch.follow_ports();
        let shown = world.switch.workers();
        let queues: Vec<usize> = shown.iter().map(|worker| worker.queues.len()).collect();
        let even = 2 * usize::from(MANY);
        assert_eq!(queues.iter().sum::<usize>(), even, "{queues:?}");
        assert!(queues.iter().all(|&n| n == even / workers || n == even / workers + 1), "{queues:?}");

        // One frame on each pair, three times, and back: each arrives, whichever worker carries it.
        for turn in 0..3u64 {
            for sender in [0, 1] {
                let (receiver, from) = (1 - sender, sender as u8 + 1);
                for pair in 0..MANY {
                    let mut frame = frames::udp(from, 3 - from, 96, pair);
                    frame[MARK..][..2].copy_from_slice(&pair.to_be_bytes());
                    frame[MARK + 2..][..8].copy_from_slice(&turn.to_be_bytes());
                    let sent = guests[sender].send_on(pair, &NetHeader::default(), &frame);
                    assert!(sent.expect("a sound ring"));
                }
                let end = Instant::now() + LOST;
                let mut seen = vec![false; usize::from(MANY)];
                while !seen.iter().all(|seen| *seen) {
                    assert!(Instant::now() < end, "{workers} workers: lost: {seen:?}; {}", world.drops());
                    for frame in guests[receiver].receive().expect("frames") {
                        let flow = u16::from_be_bytes([frame[MARK], frame[MARK + 1]]);
                        let number = u64::from_be_bytes(frame[MARK + 2..][..8].try_into().expect("eight"));
                        assert!(flow < MANY && number == turn, "frame {number} of {flow} in turn {turn}");
                        assert!(!seen[usize::from(flow)], "frame {number} of {flow} came twice");
                        seen[usize::from(flow)] = true;
                    }
                }
            }
        }
        // A worker counts what it has carried after the guest may have seen it.
        let end = Instant::now() + LOST;
        let carried = loop {
            let carried: Vec<u64> = world.switch.workers().iter().map(|worker| worker.packets).collect();
            if carried.iter().sum::<u64>() >= 6 * u64::from(MANY) || Instant::now() > end {
                break carried;
            }
            std::thread::yield_now();
        };
        assert_eq!(carried.iter().sum::<u64>(), 6 * u64::from(MANY), "{carried:?}");
        assert!(
            carried.iter().all(|&frames| frames >= 6 * u64::from(MANY) / workers as u64 - 12),
            "{carried:?}"
        );
        println!("{workers} workers carried {carried:?}");
    }
}
