#![forbid(unsafe_code)]
//! How long it takes until a NIC that is added to a running guest carries its first packet: the command, the guest that
//! finds the device, its DHCP client, a ping. The guest is an emulated Linux under QEMU, which takes most of the time.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde::Serialize;
use serde_json::json;
use shunt_tests::{GuestSpec, Shuntd};

use super::report::median;
use super::{Arguments, Results, say};
use crate::peers::Kind;

const MAC: &str = "02:42:20:6f:a3:69";
const PATIENCE: Duration = Duration::from_secs(90);

/// What was found, in milliseconds; medians of the rounds.
#[derive(Clone, Debug, Serialize)]
pub struct Hotplug {
    /// `kata-network add-iface` from its start to its end: the NIC is in QEMU.
    pub add_ms: f64,
    /// From its start to the first frame that the guest sent.
    pub first_packet_ms: f64,
    /// From its start until the guest has its address by DHCP and a ping was answered.
    pub ping_ms: f64,
    /// `kata-network del-iface`: the guest has let go of the NIC.
    pub del_ms: f64,
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// Measures; the result goes into `results.hotplug`.
pub(super) fn run(arguments: &Arguments, kinds: &[Kind], results: &mut Results) -> Result<()> {
    if !kinds.contains(&Kind::Shunt) {
        return Ok(());
    }
    // What these need and cannot find they say in a panic, as tests do.
    let found = std::thread::scope(|scope| scope.spawn(|| measure(arguments.rounds())).join());
    let found = found.map_err(|_| anyhow::anyhow!("a guest or a daemon failed: see above"))??;
    say(&format!("{found:?}"));
    results.hotplug = Some(found);
    Ok(())
}

fn measure(rounds: u32) -> Result<Hotplug> {
    let shuntd = Shuntd::start();
    let guest = GuestSpec::new("box").spare_ports(1).boot();
    shuntd.container("box", &guest, "");
    let nic = json!({
        "device": "tap-box", "name": "eth-box", "IPAddresses": [{"address": "10.0.3.77", "mask": "24"}],
        "hwAddr": MAC, "mtu": 1500, "vhostUserSocket": shuntd.path("vhost-user1"), "queues": 1
    });
    let [mut add, mut first, mut ping, mut del] = [const { Vec::new() }; 4];
    for _ in 0..rounds {
        let waiting = guest.await_nic(MAC, "10.0.3.1", PATIENCE);
        let start = Instant::now();
        shuntd.kata("add-iface", "box", &nic.to_string());
        add.push(milliseconds(start));
        while shuntd.counter("tap-box", "rx", "packets") == 0 {
            ensure!(start.elapsed() < PATIENCE, "the guest sends nothing");
        }
        first.push(milliseconds(start));
        let answer = waiting.wait();
        ping.push(milliseconds(start));
        ensure!(answer.ok(), "{}", answer.text);
        let start = Instant::now();
        shuntd.kata("del-iface", "box", r#"{"name":"eth-box"}"#);
        del.push(milliseconds(start));
    }
    let [add_ms, first_packet_ms, ping_ms, del_ms] = [add, first, ping, del].map(median);
    Ok(Hotplug { add_ms, first_packet_ms, ping_ms, del_ms })
}

/// As Markdown.
pub(super) fn markdown(found: &Hotplug) -> String {
    let mut text = "\n### A NIC for a running guest\n\n| figure | value |\n|---|---|\n".to_owned();
    for (name, ms) in [
        ("`kata-network add-iface`", found.add_ms),
        ("from its start to the guest's first frame", found.first_packet_ms),
        ("from its start to the first answered ping, DHCP included", found.ping_ms),
        ("`kata-network del-iface`", found.del_ms),
    ] {
        let _ = writeln!(text, "| {name} | {ms:.0} ms |");
    }
    text
}
