//! DPDK's testpmd with two virtio-user ports: an independent, fast vhost-user front end with its own ring drivers.
//!
//! Both ports forward to each other's MAC address, so packets go round and round between the two ports of the switch:
//! whatever is received in a direction beyond the first bursts has passed both rings in both directions.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use crate::process::Process;
use crate::progress;
use crate::wait::{poll_for, wait_for};

const MACS: [&str; 2] = ["52:54:00:00:00:01", "52:54:00:00:00:02"];

/// Shape of the two virtio-user devices.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Queue pairs of each.
    pub queues: u32,
    /// Entries of each ring.
    pub queue_size: u32,
    /// Further options of the device (`mrg_rxbuf=0`, `in_order=1`, `vectorized=1`, `packed_vq=1`, `server=1`).
    pub options: &'static str,
}

impl Default for Shape {
    fn default() -> Self {
        Self { queues: 1, queue_size: 256, options: "" }
    }
}

/// Counters of one testpmd port.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counters {
    /// Packets received from the switch.
    pub received: u64,
    /// Packets sent to the switch.
    pub sent: u64,
    /// Receive errors and descriptors that did not make sense.
    pub errors: u64,
}

/// A running testpmd.
pub struct Testpmd {
    process: Process,
    _dir: TempDir,
    queues: u32,
}

impl Testpmd {
    /// Starts testpmd on two sockets and waits for its prompt.
    #[track_caller]
    pub fn start(sockets: [&Path; 2], shape: Shape) -> Self {
        let dir = tempfile::Builder::new().prefix("shunt-testpmd-").tempdir();
        let dir = dir.unwrap_or_else(|e| panic!("no temporary directory: {e}"));
        let log: PathBuf = dir.path().join("testpmd.log");
        // Ordinary memory from a memfd: works without hugepages and without root.
        let mut argv: Vec<String> = [
            "stdbuf",
            "-oL",
            "dpdk-testpmd",
            "--no-huge",
            "-m",
            "256",
            "--no-pci",
            "--log-level=pmd.net.virtio.init:info",
            "--no-shconf",
            "--lcores",
            "0@0-1,1@0-1",
        ]
        .map(str::to_owned)
        .to_vec();
        for (index, socket) in sockets.iter().enumerate() {
            let mut device = format!(
                "--vdev=net_virtio_user{index},path={},queues={},queue_size={},mac={}",
                socket.display(),
                shape.queues,
                shape.queue_size,
                MACS[index]
            );
            if !shape.options.is_empty() {
                device += &format!(",{}", shape.options);
            }
            argv.push(device);
        }
        if shape.options.contains("vectorized=1") {
            argv.push("--force-max-simd-bitwidth=512".to_owned()); // the driver takes its vector path only if allowed to
        }
        let (queues, ring) = (shape.queues, shape.queue_size);
        let per_port = format!("--rxq={queues} --txq={queues} --rxd={ring} --txd={ring}");
        let peers = format!("--eth-peer=0,{} --eth-peer=1,{}", MACS[1], MACS[0]);
        let rest = format!(
            "-- -i --nb-cores=1 --forward-mode=mac --total-num-mbufs=16384 --no-mlockall {per_port} {peers}"
        );
        argv.extend(rest.split_whitespace().map(str::to_owned));
        let process = Process::start("testpmd", &argv, &log, None);
        let mut testpmd = Self { process, _dir: dir, queues };
        wait_for("testpmd's prompt", Duration::from_secs(60), || {
            if !testpmd.process.alive() {
                panic!("testpmd ended:\n{}", testpmd.process.tail(60));
            }
            testpmd.process.output().contains("testpmd> ").then_some(())
        });
        testpmd
    }

    /// Sends one burst of 32 packets on every queue of both ports, whose packets are taken and not sent on.
    #[track_caller]
    pub fn burst(&mut self) {
        self.process.write("set fwd rxonly\nstart tx_first 1\n");
    }

    /// Sends first bursts on every queue of both ports and forwards from then on, round and round.
    #[track_caller]
    pub fn forward(&mut self) {
        self.process.write("stop\nset fwd mac\nstart tx_first 4\n");
    }

    /// Asks for the counters of both ports.
    #[track_caller]
    pub fn counters(&mut self) -> [Counters; 2] {
        let before = self.process.output().len();
        self.process.write("show port stats all\n");
        let text = wait_for("testpmd's counters", Duration::from_secs(20), || {
            let output = self.process.output();
            let new = output.get(before..)?;
            (new.matches("Tx-pps:").count() >= 2).then(|| new.to_owned())
        });
        let mut blocks = text.split("NIC statistics for port").skip(1);
        [0, 1].map(|_| {
            let block = blocks.next().unwrap_or_default();
            Counters {
                received: field(block, "RX-packets:"),
                sent: field(block, "TX-packets:"),
                errors: field(block, "RX-errors:") + field(block, "TX-errors:"),
            }
        })
    }

    /// Waits until both ports have received `packets`, and returns the counters.
    #[track_caller]
    pub fn wait_received(&mut self, packets: u64, limit: Duration) -> [Counters; 2] {
        let mut last = [Counters::default(); 2];
        let enough = poll_for(limit, || {
            last = self.counters();
            last.iter().all(|port| port.received >= packets).then_some(())
        });
        assert!(enough.is_some(), "testpmd did not receive {packets} packets on both ports: {last:?}");
        progress!("testpmd received {} and {} packets", last[0].received, last[1].received);
        last
    }

    /// Packets that port `port` received on each of its queues.
    #[track_caller]
    pub fn received_by_queue(&mut self, port: u32) -> Vec<u64> {
        let before = self.process.output().len();
        self.process.write(&format!("show port xstats {port}\n"));
        let last = format!("tx_q{}_size_1519_max_packets:", self.queues - 1);
        let text = wait_for("testpmd's extended counters", Duration::from_secs(20), || {
            let output = self.process.output();
            let new = output.get(before..)?;
            new.contains(&last).then(|| new.to_owned())
        });
        (0..self.queues).map(|queue| field(&text, &format!("rx_q{queue}_good_packets:"))).collect()
    }

    /// The code that the driver chose to receive with, as it names it: `mergeable buffer`, `standard`, `inorder`,
    /// `vectorized`.
    pub fn receive_path(&self) -> String {
        let output = self.process.output();
        let line = output.lines().find(|line| line.contains(" Rx path on port")).unwrap_or_default();
        let path = line.split("using ").nth(1).and_then(|rest| rest.split(" Rx path").next());
        path.unwrap_or_default().to_owned()
    }

    /// Ends it in order: rings are stopped, the sockets closed.
    #[track_caller]
    pub fn quit(mut self) {
        self.process.write("stop\nquit\n");
        let status = self.process.wait(Duration::from_secs(20));
        assert!(
            status.is_some_and(|s| s.success()),
            "testpmd ended with {status:?}\n{}",
            self.process.tail(40)
        );
    }

    /// SIGKILL in the middle of traffic.
    pub fn kill(mut self) {
        self.process.kill();
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.process.tail(60));
        }
    }
}

/// The number after `name` in `text`, 0 if there is none.
fn field(text: &str, name: &str) -> u64 {
    let rest = text.split(name).nth(1).unwrap_or_default();
    rest.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0)
}
