#![forbid(unsafe_code)]
//! TCP between two real Linux guests in QEMU, with and without segmentation offload.
//!
//! The guests run under emulation, so both cores are theirs as well as the switch's: these figures say how the whole
//! feels, not what the switch can do. Candidates run as they are shipped: shunt's workers sleep when there is nothing
//! to do, Open vSwitch's never do.

use anyhow::Result;
use shunt_tests::{Guest, GuestSpec, Nic, boot_all, iperf, poll_for};

use super::{Arguments, Results, Sample, only, say};
use crate::peers::{Kind, Running, Site, Wiring};

const FRAME: usize = 1514;

/// Where scripts/setup-tests.sh puts the guest.
pub(super) fn tools() -> std::path::PathBuf {
    std::env::var_os("SHUNT_TEST_TOOLS")
        .map_or_else(|| shunt_tests::tools::repository().join("target/test-tools"), Into::into)
}

struct Pair {
    candidate: Running,
    guests: [Guest; 2],
}

fn launch(site: &Site, kind: Kind, tso: bool) -> Result<Pair> {
    let wiring = Wiring { tso, busy: false, ..Wiring::pair(1) };
    let mut candidate = kind.launch(site, &wiring)?;
    let spec = |n: usize| {
        let socket = &candidate.sockets()[n];
        let nic = if candidate.guests_listen() { Nic::listens(socket) } else { Nic::connects(socket) };
        let nic = nic.address(&format!("10.79.0.{}/24", n + 1));
        let nic = if tso { nic } else { nic.without_tso() };
        GuestSpec::new(&format!("{}{n}{tso}", kind.name())).nic(nic)
    };
    let guests = boot_all([spec(0), spec(1)]);
    use shunt_tests::Host as _;
    let reached = poll_for(std::time::Duration::from_secs(20), || {
        guests[0].run("ping -c1 -W1 10.79.0.2").ok().then_some(())
    });
    anyhow::ensure!(reached.is_some(), "10.79.0.2 is not reached from 10.79.0.1");
    candidate.pause()?;
    Ok(Pair { candidate, guests })
}

/// iperf3 from the first to the second guest, candidate after candidate.
pub(super) fn run(site: &Site, arguments: &Arguments, kinds: &[Kind], results: &mut Results) -> Result<()> {
    if !tools().join("initramfs.cpio").exists() {
        let why = format!("QEMU guests: {} is not set up (scripts/setup-tests.sh)", tools().display());
        say(&format!("SKIPPED {why}"));
        results.absent.push(why);
        return Ok(());
    }
    for (tso, label) in [(true, "TSO"), (false, "no TSO")] {
        let mut pairs = Vec::new();
        for kind in only(kinds, |kind| kind != Kind::Testpmd) {
            match launch(site, kind, tso) {
                Ok(pair) => pairs.push(pair),
                Err(why) => {
                    say(&format!("FAILED {} with QEMU guests: {why:#}", kind.name()));
                    results.failures.push(format!("{} with QEMU guests: {why:#}", kind.name()));
                }
            }
        }
        for round in 0..arguments.rounds() {
            for pair in &mut pairs {
                pair.candidate.resume()?;
                let [left, right] = &pair.guests;
                let measured = iperf(left, right, "10.79.0.2", arguments.iperf_seconds(), "");
                pair.candidate.pause()?;
                results.samples.push(Sample {
                    part: "qemu",
                    candidate: pair.candidate.kind.name(),
                    guests: label,
                    queues: 1,
                    size: FRAME,
                    round,
                    mpps: 0.0,
                    gbps: measured.bits_per_second / 1e9,
                    busy_cycles: None,
                    line_transfer: None,
                    generator_busy: None,
                });
            }
        }
    }
    Ok(())
}
