//! Guests and VMMs that lie, against a real daemon with one worker, beside two honest guests whose ping goes on.
//!
//! After each attack: the port says what was wrong, the ping has lost nothing and taken no longer, the next honest guest
//! is served, and nothing of the attack is left in the daemon.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;
use shunt_tests::hostile::attacks::{self, Attack, Outcome};
use shunt_tests::hostile::neighbour::{frame, mac, number};
use shunt_tests::hostile::vm::STEPS;
use shunt_tests::hostile::wire::message;
use shunt_tests::hostile::{Footprint, Neighbour, Vm, packed};
use shunt_tests::process::{favour, threads};
use shunt_tests::{Shuntd, poll_for, progress, wait_for};

const SOON: Duration = Duration::from_secs(30);
/// Ports that take turns: one that was hung up on waits longer each time before it listens to the next.
const PORTS: usize = 16;
/// Growth of the daemon that is allowed, KiB: caches of the allocator.
const SLACK: u64 = 4096;

/// A daemon with two honest guests and ports for others.
struct Stage {
    // Goes first: it must not wait for a daemon that has ended.
    neighbour: Neighbour,
    /// A guest that takes no frames.
    _sink: Vm,
    shuntd: Shuntd,
    sockets: Vec<PathBuf>,
    empty: Footprint,
    next: usize,
    slowest: Duration,
    round_trips: usize,
}

impl Stage {
    #[track_caller]
    fn new() -> Self {
        let mut shuntd = Shuntd::new().arguments(&["--workers", "1"]);
        shuntd.launch();
        // Addresses that are assigned cannot be taken over by who sends with any source, as some attacks do.
        let [one, other] = [("one", "02:5e:00:00:00:01"), ("other", "02:5e:00:00:00:02")]
            .map(|(name, mac)| shuntd.vhost_port(name, &format!("--mac {mac}")));
        let sockets: Vec<_> = (0..PORTS).map(|n| shuntd.vhost_port(&format!("h{n}"), "")).collect();
        favour(&threads(shuntd.pid().unwrap_or_else(|| panic!("no shuntd"))));
        let neighbour = Neighbour::start(&one, &other);
        let sink = shuntd.vhost_port("sink", &format!("--mac {}", attacks::SINK_MAC));
        let sink = Vm::boot(&sink).unwrap_or_else(|e| panic!("{e}"));
        let mut stage = Self {
            shuntd,
            neighbour,
            _sink: sink,
            sockets,
            empty: Footprint::default(),
            next: 0,
            slowest: Duration::ZERO,
            round_trips: 0,
        };
        // Everything that is made once has been made when each port has had a guest.
        for n in 0..PORTS {
            stage.serves(n);
        }
        stage.settle(|_| true, "the first guests");
        stage.empty = Footprint::of(stage.pid());
        stage.untouched("nobody");
        progress!("the daemon has {}", stage.empty);
        stage
    }

    fn pid(&self) -> u32 {
        self.shuntd.pid().unwrap_or_else(|| panic!("shuntd is gone\n{}", self.shuntd.log()))
    }

    fn port(&mut self) -> usize {
        self.next = (self.next + 1) % PORTS;
        self.next
    }

    fn state(&self, n: usize) -> (String, String) {
        let port = self.shuntd.port(&format!("h{n}"));
        let text = |key: &str| port[key].as_str().unwrap_or_default().to_owned();
        (text("state"), text("reason"))
    }

    /// The ping goes on as if nothing were.
    #[track_caller]
    fn untouched(&mut self, name: &str) {
        let seen = self.neighbour.seen();
        assert_eq!(seen.lost, 0, "{name}: the neighbours lost frames: {seen:?}");
        assert!(seen.is_quick(), "{name}: the neighbours' ping is slow: {seen:?}");
        self.slowest = self.slowest.max(seen.median);
        self.round_trips += seen.round_trips;
    }

    /// An honest guest comes up at port `n` and hears the neighbours.
    #[track_caller]
    fn serves(&self, n: usize) {
        let mut vm = wait_for(&format!("port h{n} to serve an honest guest"), SOON, || {
            Vm::boot(&self.sockets[n]).ok()
        });
        assert_eq!(self.state(n).0, "up", "{}", self.shuntd.port(&format!("h{n}")));
        vm.send(&frame(mac(1), mac(3), 0));
        let heard = vm.receive_until(SOON, |frame| number(frame) == Some(u64::MAX));
        assert!(heard.is_some(), "an honest guest at h{n} hears nothing");
    }

    /// Waits until all guests of the hostile ports are gone and nothing is left of them.
    #[track_caller]
    fn settle(&self, fits: impl Fn(&Footprint) -> bool, name: &str) {
        let mut now = Footprint::default();
        let settled = poll_for(SOON, || {
            let gone = (0..PORTS).all(|n| matches!(self.state(n).0.as_str(), "connecting" | "broken"));
            now = Footprint::of(self.pid());
            (gone && fits(&now)).then_some(())
        });
        assert!(settled.is_some(), "{name} leaves something behind: {now} instead of {}", self.empty);
    }

    /// Puts one attack on the stage.
    #[track_caller]
    fn attack(&mut self, begin: fn(&std::path::Path) -> Result<Vm, String>, &(name, run, outcome): &Attack) {
        let n = self.port();
        let port = format!("h{n}");
        let mut vm = wait_for(&format!("{port} to listen"), SOON, || begin(&self.sockets[n]).ok());
        let before = self.shuntd.port(&port);
        run(&mut vm);
        match outcome {
            Outcome::Broken(reason) => {
                let mut last = Value::Null;
                let broken = poll_for(SOON, || {
                    let _ = vm.wire.send(&[], &[]);
                    last = self.shuntd.port(&port);
                    let said = last["reason"].as_str().unwrap_or_default();
                    (last["state"] == "broken" && said.contains(reason)).then_some(())
                });
                assert!(broken.is_some(), "{name}: not broken with `{reason}`: {last}");
            }
            Outcome::GoesOn => assert_eq!(self.state(n).0, "up", "{name}: {}", self.state(n).1),
            Outcome::Drops(reason) => {
                let drops = |port: &Value| port["rx"]["drops"][reason].as_u64().unwrap_or(0);
                let dropped =
                    poll_for(SOON, || (drops(&self.shuntd.port(&port)) > drops(&before)).then_some(()));
                assert!(dropped.is_some(), "{name}: no drop as {reason}: {}", self.shuntd.port(&port));
                assert_eq!(self.state(n).0, "up", "{name}: {}", self.state(n).1);
            }
            Outcome::Either => {
                let state = self.state(n).0;
                assert!(state == "up" || state == "broken", "{name}: {state}");
            }
        }
        self.untouched(name);
        drop(vm);
        self.serves(n);
        let empty = self.empty;
        self.settle(|now| now.fits(&empty, SLACK), name);
    }

    #[track_caller]
    fn all(&mut self, begin: fn(&std::path::Path) -> Result<Vm, String>, attacks: &[Attack]) {
        for attack in attacks {
            self.attack(begin, attack);
        }
        let seen = self.neighbour.seen();
        progress!(
            "{} attacks, {} round trips beside them without a loss; slowest median {:?}, now {seen:?}",
            attacks.len(),
            self.round_trips,
            self.slowest
        );
    }
}

#[test]
fn guests_that_lie_in_their_rings() {
    let mut stage = Stage::new();
    stage.all(Vm::boot, attacks::RINGS);
    stage.all(Vm::boot, attacks::HEADERS);
}

#[test]
fn guests_that_lie_in_packed_rings() {
    let mut stage = Stage::new();
    stage.all(Vm::boot_packed, packed::RINGS);
}

#[test]
fn guests_that_change_things_meanwhile() {
    let mut stage = Stage::new();
    stage.all(Vm::boot, attacks::CIRCUMSTANCES);
}

#[test]
fn frontends_that_lie() {
    let mut stage = Stage::new();
    stage.all(Vm::connect, attacks::SESSIONS);
}

/// Messages that come too early, too late or twice, and noise, at each step of an honest start.
#[test]
fn messages_out_of_place() {
    let mut stage = Stage::new();
    let mut connections = 0;
    for state in 0..=STEPS.len() {
        let mut open: Option<(usize, Vm)> = None;
        // Every request with a body of zeroes, spread over the states; beyond the last one there are none.
        for request in (0..=48u32).filter(|request| (*request as usize + state).is_multiple_of(4)) {
            let (n, vm) = match open.take() {
                Some((n, vm)) if vm.wire.send(&message(3, 0, &[]), &[]).is_ok() => (n, vm),
                _ => {
                    connections += 1;
                    let n = stage.port();
                    let mut vm =
                        wait_for("a port that listens", SOON, || Vm::connect(&stage.sockets[n]).ok());
                    attacks::steps(&mut vm, state);
                    (n, vm)
                }
            };
            let length = [0, 8, 40][(request as usize + state) % 3];
            let _ = vm.wire.send(&message(request, 0, &vec![0; length]), &[]);
            open = Some((n, vm));
        }
        drop(open);
        for kind in 0..3 {
            connections += 1;
            let n = stage.port();
            let mut vm = wait_for("a port that listens", SOON, || Vm::connect(&stage.sockets[n]).ok());
            attacks::steps(&mut vm, state);
            match kind {
                0 if state > 0 => {
                    let _ = STEPS[state - 1](&mut vm);
                }
                1 => {
                    let _ = vm.wire.send(&[0x5a; 100], &[]);
                    assert!(vm.wire.is_hung_up(), "noise after {state} steps is listened to");
                }
                _ => {
                    let _ = vm.wire.send(&message(8, 0, &[0; 8])[..15], &[]);
                }
            }
        }
        stage.untouched("messages out of place");
    }
    for n in 0..PORTS {
        stage.serves(n);
    }
    let empty = stage.empty;
    stage.settle(|now| now.fits(&empty, SLACK), "messages out of place");
    progress!("{connections} connections, {} round trips without a loss", stage.round_trips);
}

/// A thousand frontends at once, and some that say nothing: ports serve one at a time, and the others do not notice.
#[test]
fn crowds_and_silence() {
    let mut stage = Stage::new();
    // Silent from the first byte, and in the midst of a message.
    let silent = Vm::connect(&stage.sockets[0]).unwrap_or_else(|e| panic!("{e}"));
    let halfway = Vm::connect(&stage.sockets[1]).unwrap_or_else(|e| panic!("{e}"));
    let _ = halfway.wire.send(&message(8, 0, &[0; 8])[..15], &[]);
    let begin = Instant::now();
    let crowd: Vec<_> = (0..PORTS)
        .map(|n| {
            let path = stage.sockets[n].clone();
            std::thread::spawn(move || {
                // Whoever finds the queue full tries again until its time is up.
                let end = Instant::now() + Duration::from_secs(2);
                let (mut came, mut turned_away) = (Vec::new(), 0);
                while came.len() < 63 && Instant::now() < end {
                    match try_connect(&path) {
                        Some(stream) => came.push(stream),
                        None => {
                            turned_away += 1;
                            std::thread::sleep(Duration::from_millis(1));
                        }
                    }
                }
                (came, turned_away)
            })
        })
        .collect();
    let crowd: Vec<_> =
        crowd.into_iter().map(|thread| thread.join().unwrap_or_else(|_| panic!("a thread"))).collect();
    let came: usize = crowd.iter().map(|(came, _)| came.len()).sum();
    let tries: usize = crowd.iter().map(|(came, away)| came.len() + away).sum();
    progress!("{tries} tries to connect, {came} waiting at once after {:?}", begin.elapsed());
    assert!(tries >= 1000, "only {tries} connections were tried");
    stage.untouched("a crowd");
    assert_eq!(stage.state(0).0, "down", "the silent one is connected");
    drop((silent, halfway, crowd));
    for n in 0..PORTS {
        stage.serves(n);
    }
    stage.untouched("silent peers");
    let empty = stage.empty;
    stage.settle(|now| now.fits(&empty, SLACK), "a crowd");
}

/// Connects if there is room in the queue.
fn try_connect(path: &std::path::Path) -> Option<std::os::fd::OwnedFd> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
    use std::os::fd::AsRawFd as _;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None).ok()?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path).ok()?).ok()?;
    Some(socket)
}
