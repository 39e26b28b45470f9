#![forbid(unsafe_code)]
//! DPDK's testpmd in both parts: as a forwarder between net_vhost devices, which is the least that a DPDK program
//! can do with a packet, and as two guests with virtio-user devices.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use shunt_tests::poll_for;
use shunt_tests::process::Process;

use super::{Candidate, Site, Wiring, await_start, program, promote};
use crate::frames::mac;
use crate::guest::features;

const PROGRAM: &str = "dpdk-testpmd";
const LIMIT: Duration = Duration::from_secs(60);

pub(super) fn missing() -> Option<String> {
    (!available()).then(|| format!("{PROGRAM} is not installed (dpdk-dev)"))
}

/// Whether testpmd can be started here.
pub fn available() -> bool {
    program(PROGRAM)
}

/// A testpmd with its prompt.
struct Prompt {
    process: Process,
}

impl Prompt {
    /// `lcores`: the core of the prompt, then the core that forwards.
    fn start(
        site: &Site,
        dir: &Path,
        name: &str,
        lcores: (usize, usize),
        devices: &[String],
        rest: &str,
    ) -> Result<Self> {
        let mut argv: Vec<String> = ["stdbuf", "-oL", PROGRAM, "--no-pci"].map(str::to_owned).into();
        argv.push(format!("--file-prefix=shunt{name}{}", std::process::id()));
        argv.extend(["--lcores".into(), format!("0@{},1@{}", lcores.0, lcores.1), "-m".into(), "512".into()]);
        if site.hugepages {
            argv.push("--in-memory".into());
        } else {
            argv.extend(["--no-huge".into(), "--no-shconf".into()]);
        }
        argv.extend(devices.iter().cloned());
        argv.extend(["--", "-i", "--nb-cores=1", "--no-mlockall"].map(str::to_owned));
        argv.extend(rest.split_whitespace().map(str::to_owned));
        let mut process = Process::start(name, &argv, &dir.join(format!("{name}.log")), None);
        await_start("testpmd's prompt", &mut process, LIMIT, |p| {
            p.output().contains("testpmd> ").then_some(())
        })?;
        Ok(Self { process })
    }

    /// Gives a command and returns what was written up to and with the line in which `until` is.
    fn command(&mut self, command: &str, until: &str, times: usize) -> Result<String> {
        ensure!(self.process.alive(), "testpmd has ended:\n{}", self.process.tail(20));
        let before = self.process.output().len();
        self.process.write(&format!("{command}\n"));
        let answer = poll_for(Duration::from_secs(20), || {
            let output = self.process.output();
            let new = output.get(before..)?;
            (new.matches(until).count() >= times).then(|| new.to_owned())
        });
        answer.with_context(|| format!("testpmd does not answer `{command}`:\n{}", self.process.tail(20)))
    }
}

pub(super) struct Forwarder {
    prompt: Prompt,
    sockets: Vec<PathBuf>,
}

impl Forwarder {
    pub(super) fn launch(site: &Site, dir: &Path, wiring: &Wiring) -> Result<Self> {
        let mut sockets = Vec::new();
        let mut devices = Vec::new();
        for n in 0..wiring.sockets {
            let path = dir.join(format!("v{n}"));
            let tso = if wiring.tso { ",tso=1" } else { "" };
            devices.push(format!(
                "--vdev=net_vhost{n},iface={},queues={}{tso}",
                path.display(),
                wiring.queues
            ));
            sockets.push(path);
        }
        ensure!(wiring.taps.is_empty(), "testpmd is not measured with TAP devices");
        let queues = wiring.queues;
        let rest = format!("--rxq={queues} --txq={queues} --forward-mode=io --record-core-cycles");
        let mut prompt =
            Prompt::start(site, dir, "io", (site.guest_core, site.switch_core), &devices, &rest)?;
        prompt.command("start", "packets/burst", 1)?;
        Ok(Self { prompt, sockets })
    }
}

impl Candidate for Forwarder {
    fn sockets(&self) -> &[PathBuf] {
        &self.sockets
    }

    fn process(&mut self) -> &mut Process {
        &mut self.prompt.process
    }

    fn reset(&mut self) -> Result<()> {
        // The command has no answer but the next prompt, which a later command's output follows.
        self.prompt.command("clear fwd stats all", "testpmd> ", 1).map(drop)
    }

    fn busy_cycles(&mut self) -> Result<Option<f64>> {
        let text = self.prompt.command("show fwd stats all", "MHz Clock", 1)?;
        let number = text.split("CPU cycles/packet=").nth(1);
        Ok(number.and_then(|rest| rest.split_whitespace().next()).and_then(|n| n.parse().ok()))
    }

    fn report(&mut self) -> String {
        self.prompt.command("show fwd stats all", "CPU cycles/packet", 1).unwrap_or_default()
    }
}

/// Two guests in one testpmd, which send each other's packets back for ever.
pub struct TestpmdGuests {
    prompt: Prompt,
    site: Site,
}

impl TestpmdGuests {
    /// Connects to two sockets, with packed rings if `negotiated` has that bit, in order or not as it says. The candidate
    /// must be running meanwhile.
    pub fn connect(
        site: &Site,
        dir: &Path,
        sockets: &[PathBuf],
        queues: u16,
        negotiated: u64,
    ) -> Result<Self> {
        let [first, second] = sockets else { bail!("{} sockets for two guests", sockets.len()) };
        let rings = if negotiated & features::RING_PACKED != 0 {
            format!(",packed_vq=1,in_order={}", u8::from(negotiated & features::IN_ORDER != 0))
        } else {
            String::new()
        };
        let text = |n: u8| mac(n).map(|b| format!("{b:02x}")).join(":");
        let devices: Vec<String> = [first, second]
            .iter()
            .enumerate()
            .map(|(n, path)| {
                let mac = text(n as u8 + 1);
                format!("--vdev=net_virtio_user{n},path={},queues={queues},mac={mac}{rings}", path.display())
            })
            .chain(["--single-file-segments".to_owned()])
            .collect();
        let rest = format!(
            "--rxq={queues} --txq={queues} --forward-mode=mac --eth-peer=0,{} --eth-peer=1,{}",
            text(2),
            text(1)
        );
        let prompt =
            Prompt::start(site, dir, "guests", (site.switch_core, site.guest_core), &devices, &rest)?;
        if site.realtime {
            promote(prompt.process.pid(), site.guest_core)?;
        }
        Ok(Self { prompt, site: site.clone() })
    }

    /// Sends 32 bursts of 32 frames of `size` bytes from each side and lets them go round.
    pub fn start(&mut self, size: usize) -> Result<()> {
        if self.site.realtime {
            promote(self.prompt.process.pid(), self.site.guest_core)?;
        }
        self.prompt.command(&format!("set txpkts {size}"), "testpmd> ", 1)?;
        self.prompt.command("start tx_first 32", "packets/burst", 1)?;
        self.received().map(drop)
    }

    /// Packets a second that each side has received since the last call.
    pub fn received(&mut self) -> Result<[f64; 2]> {
        let text = self.prompt.command("show port stats all", "Tx-pps:", 2)?;
        let mut rates = text
            .split("Rx-pps:")
            .skip(1)
            .filter_map(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
        match (rates.next(), rates.next()) {
            (Some(first), Some(second)) => Ok([first, second]),
            _ => bail!("testpmd's statistics have no rates:\n{text}"),
        }
    }

    /// Takes the frames off the way.
    pub fn stop(&mut self) -> Result<()> {
        self.prompt.command("stop", "Done.", 1).map(drop)
    }
}

/// Two guests in one testpmd that send packets of many flows (its `flowgen` mode) and take what they get.
pub struct Flowgen {
    prompt: Prompt,
}

/// Packets a second of [`Flowgen`].
#[derive(Clone, Copy, Debug)]
pub struct FlowgenRates {
    /// What the outer guest received: what was forwarded.
    pub forwarded: f64,
    /// What both guests sent. What the outer one sends goes to an address that nobody has.
    pub sent: f64,
}

impl Flowgen {
    /// Connects to the inner and the outer socket. The candidate must be running meanwhile.
    pub fn connect(site: &Site, dir: &Path, sockets: &[PathBuf], flows: u32) -> Result<Self> {
        let [inner, outer] = sockets else { bail!("{} sockets for two guests", sockets.len()) };
        let devices: Vec<String> = [inner, outer]
            .iter()
            .enumerate()
            .map(|(n, path)| format!("--vdev=net_virtio_user{n},path={},queues=1", path.display()))
            .chain(["--single-file-segments".to_owned()])
            .collect();
        let rest = format!("--forward-mode=flowgen --flowgen-flows={flows} --total-num-mbufs=32768");
        let prompt =
            Prompt::start(site, dir, "flowgen", (site.switch_core, site.guest_core), &devices, &rest)?;
        if site.realtime {
            promote(prompt.process.pid(), site.guest_core)?;
        }
        Ok(Self { prompt })
    }

    /// Lets the packets go.
    pub fn start(&mut self) -> Result<()> {
        self.prompt.command("start", "packets/burst", 1)?;
        self.rates().map(drop)
    }

    /// Rates since the last call.
    pub fn rates(&mut self) -> Result<FlowgenRates> {
        let text = self.prompt.command("show port stats all", "Tx-bps:", 2)?;
        let all = |name: &str| -> Vec<f64> {
            let numbers = text.split(name).skip(1);
            numbers.filter_map(|rest| rest.split_whitespace().next()?.parse().ok()).collect()
        };
        let (received, sent) = (all("Rx-pps:"), all("Tx-pps:"));
        ensure!(received.len() == 2 && sent.len() == 2, "testpmd's statistics have no rates:\n{text}");
        Ok(FlowgenRates { forwarded: received[1], sent: sent[0] + sent[1] })
    }

    /// Takes the packets off the way.
    pub fn stop(&mut self) -> Result<()> {
        self.prompt.command("stop", "Done.", 1).map(drop)
    }
}
