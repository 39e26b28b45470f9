//! End-to-end tests of shunt with what its users have: real Linux guests in QEMU, network namespaces, DPDK's
//! virtio-user driver, and the `shuntd` and `shuntctl` programs as they are shipped.
//!
//! The scenarios are in `tests/tests/`, one file a topic. This library holds what they share: processes and namespaces
//! that vanish with the test, the daemon, guests with a command channel, and measurements. Everything here panics with
//! the whole reason when something fails, as assertions do, and prints the logs of the programs involved.
//! `scripts/setup-tests.sh` prepares QEMU, the guest kernel and the other programs.

#![forbid(unsafe_code)]

pub mod cni;
pub mod conntrack;
pub mod daemon;
pub mod dhcp;
pub mod guest;
pub mod host;
pub mod hostile;
pub mod hugepages;
pub mod ipvsadm;
pub mod kata;
pub mod lan;
pub mod measure;
pub mod netns;
pub mod nic;
pub mod process;
pub mod qmp;
pub mod station;
pub mod testpmd;
pub mod tools;
pub mod wait;
pub mod web;

pub use daemon::Shuntd;
pub use guest::{Guest, GuestSpec, Migration, Moved, boot_all};
pub use host::{Host, Job, Output};
pub use hugepages::Hugepages;
pub use measure::{Iperf, MUCH, answers, copy_intact, iperf, pings, pings_once, start_iperf, start_stream};
pub use netns::NetNs;
pub use nic::Nic;
pub use station::Station;
pub use wait::{poll_for, wait_for};
pub use web::{Knock, Web, knock, seen_as};

use std::io::Write as _;
use std::sync::OnceLock;
use std::time::Instant;

/// Writes one line of progress with the seconds since the first one, past the capture of the test harness: somebody
/// waits for these tests.
pub fn progress(line: &str) {
    static START: OnceLock<Instant> = OnceLock::new();
    let seconds = START.get_or_init(Instant::now).elapsed().as_secs_f64();
    let _ = writeln!(std::io::stderr(), "[{seconds:6.1} s] {line}");
}

/// Formats and writes one line of [`progress()`].
#[macro_export]
macro_rules! progress {
    ($($arg:tt)*) => { $crate::progress(&format!($($arg)*)) };
}

/// True for root. An ordinary user is told that the running test is skipped.
///
/// Namespaces, TAP and packet sockets need root; continuous integration runs as root, so nothing is skipped there.
pub fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        progress("SKIPPED: needs root (network namespaces, TAP)");
    }
    root
}
