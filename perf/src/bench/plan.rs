#![forbid(unsafe_code)]
//! What a run measures: the command line of `shunt-perf bench`.

use std::path::PathBuf;

use clap::ValueEnum;

use crate::peers::Kind;

/// 2 MiB pages that the candidates take together: 512 MiB for each DPDK program, of which at most four run, and
/// the database of a TSO switch beside them.
pub(super) const HUGEPAGES: usize = 1600;

/// A part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Two vhost-user ports, guests of our own, frames of 64 to 1514 bytes (1518 with FCS), 1 to 4 queues
    Vhost,
    /// shunt with guests that have packed rings beside guests that have split ones
    Packed,
    /// Two vhost-user ports with testpmd's virtio-user guests
    Testpmd,
    /// 64 KiB segmentation frames between guests of our own
    Gso,
    /// Many flows routed between two networks: by one route, by a million; beside the same on one bridge
    Route,
    /// Many established flows with their source translated: 1,024 and 1,048,576 of them
    Snat,
    /// Many established flows to virtual services: one with 3 servers, 5,000 with 15,000; beside translated sources; new
    /// connections by scheduler
    Balance,
    /// New connections: each frame the first of another one; a full table at rest and while it empties
    Connections,
    /// 20,000 rules of virtual services: loaded, listed, packets meanwhile; beside iptables and the kernel's IPVS
    Rules,
    /// A planned restart with a hundred ports and 100,000 connections
    Takeover,
    /// `config apply` with a thousand ports: how long it takes, packets of others meanwhile
    Config,
    /// The table of connections alone: lookups, new connections, two workers that share it
    Table,
    /// A hundred silent ports, waking up, adaptive beside busy polling
    Idle,
    /// A port that comes and goes beside two that are busy
    Changes,
    /// Cycles a frame of two workers beside one, and of several queues beside one
    Workers,
    /// TCP between two TAP devices
    Tap,
    /// TCP between two Linux guests in QEMU
    Qemu,
    /// A NIC into a running Linux guest: the command, the first packet, the first answer
    Hotplug,
}

impl Part {
    const ALL: [Self; 18] = [
        Self::Vhost,
        Self::Packed,
        Self::Testpmd,
        Self::Gso,
        Self::Route,
        Self::Snat,
        Self::Balance,
        Self::Connections,
        Self::Rules,
        Self::Takeover,
        Self::Config,
        Self::Table,
        Self::Idle,
        Self::Changes,
        Self::Workers,
        Self::Tap,
        Self::Qemu,
        Self::Hotplug,
    ];
}

/// The candidates as they are named on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum CandidateArgument {
    Shunt,
    OvsDpdk,
    TestpmdIo,
}

/// Arguments of `shunt-perf bench`.
#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {
    /// Interleaved rounds of every measurement
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Go on for up to this many times the rounds, until that many found the two cores near each other (a virtual
    /// machine's cores move)
    #[arg(long, default_value_t = 1)]
    patience: u32,
    /// A short run: two rounds, short measurements, the smallest and the largest frame, one queue
    #[arg(long)]
    quick: bool,
    /// Only these parts
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Only these candidates
    #[arg(long, value_enum, value_delimiter = ',')]
    candidates: Vec<CandidateArgument>,
    /// Frame lengths without FCS
    #[arg(long, value_delimiter = ',')]
    sizes: Vec<usize>,
    /// Queue pairs of each port
    #[arg(long, value_delimiter = ',')]
    queues: Vec<u16>,
    /// Seconds of each measurement
    #[arg(long)]
    seconds: Option<f64>,
    /// Entries of each ring of our own guests
    #[arg(long, default_value_t = 256)]
    pub ring: u16,
    /// Frames that each queue of our own guests keeps on their way
    #[arg(long, default_value_t = 128)]
    pub window: u16,
    /// Core of the switch
    #[arg(long, default_value_t = 1)]
    pub switch_core: usize,
    /// Core of the guests
    #[arg(long, default_value_t = 0)]
    pub guest_core: usize,
    /// Run polling threads as SCHED_FIFO, so that other work on the machine is not measured (root)
    #[arg(long)]
    pub realtime: bool,
    /// Reserve 2 MiB pages for DPDK while it runs (root)
    #[arg(long, default_value_t = nix::unistd::geteuid().is_root(), action = clap::ArgAction::Set)]
    pub hugepages: bool,
    /// Directory with shuntd, if not beside this program
    #[arg(long)]
    pub programs: Option<PathBuf>,
    /// Directory for results.json, results.md and the plots
    #[arg(long, default_value = "target/bench")]
    pub output: PathBuf,
}

impl Arguments {
    /// Rounds of each measurement.
    pub fn rounds(&self) -> u32 {
        if self.quick { self.rounds.min(2) } else { self.rounds.max(1) }
    }

    /// Rounds of each measurement where the cores stay far from each other.
    pub(super) fn most_rounds(&self) -> u32 {
        self.rounds() * self.patience.max(1)
    }

    /// Seconds of each measurement, after a third of that to warm up.
    pub fn seconds(&self) -> f64 {
        self.seconds.unwrap_or(if self.quick { 0.5 } else { 1.0 })
    }

    /// Whether a short run was asked for.
    pub(super) fn is_quick(&self) -> bool {
        self.quick
    }

    /// Seconds of each TCP transfer.
    pub(super) fn iperf_seconds(&self) -> u64 {
        if self.quick { 2 } else { 5 }
    }

    pub(super) fn parts(&self) -> Vec<Part> {
        if self.only.is_empty() { Part::ALL.into() } else { self.only.clone() }
    }

    pub(super) fn candidates(&self) -> Vec<Kind> {
        if self.candidates.is_empty() {
            return Kind::ALL.into();
        }
        let kind = |c: &CandidateArgument| match c {
            CandidateArgument::Shunt => Kind::Shunt,
            CandidateArgument::OvsDpdk => Kind::Ovs,
            CandidateArgument::TestpmdIo => Kind::Testpmd,
        };
        self.candidates.iter().map(kind).collect()
    }

    /// Frame lengths for a number of queues: all with one queue, the ends with several.
    pub(super) fn sizes(&self, queues: u16) -> Vec<usize> {
        match () {
            () if !self.sizes.is_empty() => self.sizes.clone(),
            () if self.quick || queues > 1 => vec![64, 1514],
            () => vec![64, 128, 256, 512, 1024, 1514],
        }
    }

    pub(super) fn queues(&self) -> Vec<u16> {
        match () {
            () if !self.queues.is_empty() => self.queues.clone(),
            () if self.quick => vec![1],
            () => vec![1, 2, 4],
        }
    }
}
