//! What a process holds: what attacks, connects and disconnects must not leave behind.

use std::fmt;

/// Counted from /proc.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Open descriptors.
    pub descriptors: usize,
    /// Threads.
    pub threads: usize,
    /// Mappings of files that guests share.
    pub guest_mappings: usize,
    /// Bytes of them.
    pub guest_bytes: u64,
    /// Resident memory of its own, KiB: what guests share is theirs.
    pub kib: u64,
}

impl Footprint {
    /// Of process `pid`; all zero if it has ended.
    pub fn of(pid: u32) -> Self {
        let count = |what: &str| std::fs::read_dir(format!("/proc/{pid}/{what}")).map_or(0, Iterator::count);
        let text = |what: &str| std::fs::read_to_string(format!("/proc/{pid}/{what}")).unwrap_or_default();
        let status = text("status");
        let anonymous = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = anonymous.and_then(|line| line.split_whitespace().next()).and_then(|kib| kib.parse().ok());
        let maps = text("maps");
        let mapped = |line: &str| {
            let (from, to) = line.split_once(' ')?.0.split_once('-')?;
            u64::from_str_radix(to, 16).ok()?.checked_sub(u64::from_str_radix(from, 16).ok()?)
        };
        let guests: Vec<u64> =
            maps.lines().filter(|line| line.contains("/memfd:")).filter_map(mapped).collect();
        Self {
            descriptors: count("fd"),
            threads: count("task"),
            guest_mappings: guests.len(),
            guest_bytes: guests.iter().sum(),
            kib: kib.unwrap_or(0),
        }
    }

    /// Whether nothing of this has become more than it was; memory by no more than `slack` KiB.
    pub fn fits(&self, before: &Self, slack: u64) -> bool {
        self.descriptors <= before.descriptors
            && self.threads <= before.threads
            && self.guest_mappings <= before.guest_mappings
            && self.kib <= before.kib + slack
    }
}

impl fmt::Display for Footprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { descriptors, threads, guest_mappings, kib, .. } = self;
        write!(
            f,
            "{descriptors} descriptors, {threads} threads, {guest_mappings} guests' mappings, {kib} KiB"
        )
    }
}
