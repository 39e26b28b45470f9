//! Two honest guests beside a hostile one: a ping between them goes on all the time, and loses nothing.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::vm::Vm;

/// A frame that has not come by then is lost.
const LOST: Duration = Duration::from_secs(10);
/// Round trips a second, about.
const PAUSE: Duration = Duration::from_millis(2);
/// Round trips that are needed to say anything about them.
const ENOUGH: usize = 30;
/// EtherType for local experiments (IEEE 802).
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];

/// MAC address of test station `n`.
pub fn mac(n: u8) -> [u8; 6] {
    [0x02, 0x5e, 0, 0, 0, n]
}

/// A frame of the least length, which says `number`.
pub fn frame(to: [u8; 6], from: [u8; 6], number: u64) -> Vec<u8> {
    let mut frame = [&to[..], &from, &ETHERTYPE, &number.to_le_bytes()].concat();
    frame.resize(60, 0);
    frame
}

/// The number in a frame that [`frame`] made.
pub fn number(frame: &[u8]) -> Option<u64> {
    let number = frame.get(14..22)?;
    let mut bytes = [0; 8];
    bytes.copy_from_slice(number);
    (frame[12..14] == ETHERTYPE).then_some(u64::from_le_bytes(bytes))
}

/// What the ping saw.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Round trips.
    pub round_trips: usize,
    /// Frames that did not come.
    pub lost: usize,
    /// Half of the round trips took less.
    pub median: Duration,
    /// 99 of 100 took less.
    pub p99: Duration,
    /// The longest.
    pub longest: Duration,
    /// Half of the times that as many changes of threads took without any switch between them: what this machine, with
    /// all that runs on it, makes of the same thing.
    pub machine: Duration,
}

impl Seen {
    /// Whether the switch added less than 2 ms to what the machine itself takes, for half of the round trips.
    pub fn is_quick(&self) -> bool {
        self.median < Duration::from_millis(2) + 3 * self.machine
    }
}

/// A thread that answers.
struct Echo {
    stream: UnixStream,
}

impl Echo {
    fn new() -> Self {
        let (stream, other) = UnixStream::pair().unwrap_or_else(|e| panic!("socketpair: {e}"));
        std::thread::spawn(move || {
            let mut byte = [0];
            while (&other).read_exact(&mut byte).is_ok() && (&other).write_all(&byte).is_ok() {}
        });
        Self { stream }
    }

    /// Goes there and back twice, as a ping does by way of the switch's worker.
    fn time(&self) -> Duration {
        let began = Instant::now();
        for _ in 0..2 {
            let mut byte = [0];
            let _ = (&self.stream).write_all(&byte).and_then(|()| (&self.stream).read_exact(&mut byte));
        }
        began.elapsed()
    }
}

/// The ping and its guests. Ends when dropped.
pub struct Neighbour {
    ending: Arc<AtomicBool>,
    asking: Sender<()>,
    seen: Receiver<Seen>,
    thread: Option<JoinHandle<()>>,
}

impl Neighbour {
    /// Boots two guests at these sockets and lets them talk, with broadcasts in between that reach every port.
    #[track_caller]
    pub fn start(one: &Path, other: &Path) -> Self {
        Self::between(one, other, [1, 2], PAUSE)
    }

    /// The same for stations of these numbers, with this pause between two round trips.
    #[track_caller]
    pub fn between(one: &Path, other: &Path, stations: [u8; 2], pause: Duration) -> Self {
        let ending = Arc::new(AtomicBool::new(false));
        let (asking, asked) = channel();
        let (seen_by, seen) = channel();
        let sockets = [one.to_owned(), other.to_owned()];
        let end = ending.clone();
        let thread =
            std::thread::spawn(move || ping(&sockets, stations.map(mac), pause, &end, &asked, &seen_by));
        Self { ending, asking, seen, thread: Some(thread) }
    }

    /// What was seen since the last time, and at least 30 round trips.
    #[track_caller]
    pub fn seen(&self) -> Seen {
        let asked = self.asking.send(());
        let seen = self.seen.recv_timeout(Duration::from_secs(60)).ok().filter(|_| asked.is_ok());
        seen.unwrap_or_else(|| panic!("the neighbours' ping has ended"))
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn ping(
    sockets: &[PathBuf; 2],
    [mac_one, mac_other]: [[u8; 6]; 2],
    pause: Duration,
    ending: &AtomicBool,
    asked: &Receiver<()>,
    seen: &Sender<Seen>,
) {
    // What is measured is the switch, and not who else wants this machine's processors.
    crate::process::favour(&[nix::unistd::gettid().as_raw().cast_unsigned()]);
    let boot = |path| Vm::boot(path).unwrap_or_else(|e| panic!("a neighbour does not come up: {e}"));
    let (mut one, mut other) = (boot(&sockets[0]), boot(&sockets[1]));
    let echo = Echo::new();
    let (mut times, mut machine) = (Vec::new(), Vec::new());
    let mut is_asked = false;
    let (mut lost, mut next) = (0, 0u64);
    while !ending.load(Ordering::Relaxed) {
        next += 1;
        let began = Instant::now();
        let is_this = |frame: &[u8]| number(frame) == Some(next);
        one.send(&frame(mac_other, mac_one, next));
        let there = other.receive_until(LOST, is_this).is_some();
        other.send(&frame(mac_one, mac_other, next));
        let back = one.receive_until(LOST, is_this).is_some();
        times.push(began.elapsed());
        lost += usize::from(!there) + usize::from(!back);
        one.send(&frame([0xff; 6], mac_one, u64::MAX));
        machine.push(echo.time());
        is_asked |= asked.try_recv().is_ok();
        if is_asked && times.len() >= ENOUGH {
            is_asked = false;
            times.sort_unstable();
            machine.sort_unstable();
            let at = |of_100: usize| times[(times.len() - 1) * of_100 / 100];
            let report = Seen {
                round_trips: times.len(),
                lost,
                median: at(50),
                p99: at(99),
                longest: at(100),
                machine: machine[machine.len() / 2],
            };
            (times, machine, lost) = (Vec::new(), Vec::new(), 0);
            if seen.send(report).is_err() {
                return;
            }
        }
        std::thread::sleep(pause);
    }
}
