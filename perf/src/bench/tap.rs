#![forbid(unsafe_code)]
//! TAP devices: TCP between two of them through the switch, the kernel's stack at both ends, each in a network
//! namespace of its own.

use anyhow::Result;
use shunt_tests::{NetNs, iperf, poll_for};

use super::{Arguments, Results, Sample, only, say};
use crate::peers::{Kind, Running, Site, Wiring};

/// Bytes on the wire of a full frame; what iperf3 reports is payload.
const FRAME: usize = 1514;

struct Pair {
    candidate: Running,
    left: NetNs,
    right: NetNs,
}

fn launch(site: &Site, kind: Kind, index: usize) -> Result<Pair> {
    let (left, right) = (NetNs::new(&format!("l{index}")), NetNs::new(&format!("r{index}")));
    let taps = vec![("tapl".to_owned(), left.id().to_owned()), ("tapr".to_owned(), right.id().to_owned())];
    let wiring = Wiring { sockets: 0, taps, tso: true, busy: false, ..Wiring::pair(1) };
    let mut candidate = kind.launch(site, &wiring)?;
    left.up("tapl", Some("10.78.0.1/24"));
    right.up("tapr", Some("10.78.0.2/24"));
    use shunt_tests::Host as _;
    let reached = poll_for(std::time::Duration::from_secs(20), || {
        left.run("ping -c1 -W1 10.78.0.2").ok().then_some(())
    });
    anyhow::ensure!(reached.is_some(), "10.78.0.2 is not reached from 10.78.0.1");
    candidate.pause()?;
    Ok(Pair { candidate, left, right })
}

/// iperf3 between two TAP devices, both directions, candidate after candidate.
pub(super) fn run(site: &Site, arguments: &Arguments, kinds: &[Kind], results: &mut Results) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        say("SKIPPED TAP: needs root");
        results.absent.push("TAP: needs root".into());
        return Ok(());
    }
    let mut pairs = Vec::new();
    for (index, kind) in only(kinds, |kind| kind != Kind::Testpmd).into_iter().enumerate() {
        match launch(site, kind, index) {
            Ok(pair) => pairs.push(pair),
            Err(why) => {
                say(&format!("FAILED {} with TAP: {why:#}", kind.name()));
                results.failures.push(format!("{} with TAP: {why:#}", kind.name()));
            }
        }
    }
    for round in 0..arguments.rounds() {
        for pair in &mut pairs {
            pair.candidate.resume()?;
            let measured = iperf(&pair.left, &pair.right, "10.78.0.2", arguments.iperf_seconds(), "");
            pair.candidate.pause()?;
            results.samples.push(Sample {
                part: "tap",
                candidate: pair.candidate.kind.name(),
                guests: "kernel",
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
    Ok(())
}
