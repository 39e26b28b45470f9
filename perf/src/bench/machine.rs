#![forbid(unsafe_code)]
//! The machine: what it is, and what must be put back when the benchmark ends, however it ends.

use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::{Context, Result};
use serde::Serialize;

use std::os::unix::process::CommandExt;

const PAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
const FREE_PAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";

/// What the results were measured on.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Model of the processor.
    pub processor: String,
    /// Cores that are online.
    pub cores: usize,
    /// Rate of the time-stamp counter, in MHz.
    pub tsc_mhz: f64,
    /// Kernel release.
    pub kernel: String,
    /// Whether it is a virtual machine.
    pub virtual_machine: bool,
    /// Versions of the candidates.
    pub versions: Vec<String>,
    /// Load average at the start.
    pub load: String,
}

impl Machine {
    /// Looks around.
    pub fn look() -> Self {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            let line = cpuinfo.lines().find(|l| l.starts_with(name)).unwrap_or_default();
            line.split(": ").nth(1).unwrap_or_default().to_owned()
        };
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let version = |package: &str| {
            let output =
                Command::new("dpkg-query").args(["-W", "-f", "${Package} ${Version}", package]).output();
            output
                .ok()
                .filter(|o| o.status.success())
                .map(|o| String::from_utf8_lossy(&o.stdout).into_owned())
        };
        Self {
            processor: field("model name"),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            tsc_mhz: (crate::clock::cycles_per_second() / 1e6).round(),
            kernel: read("/proc/sys/kernel/osrelease"),
            virtual_machine: field("flags").split(' ').any(|f| f == "hypervisor"),
            versions: revision()
                .into_iter()
                .chain(["openvswitch-switch-dpdk", "dpdk-dev"].into_iter().filter_map(version))
                .collect(),
            load: read("/proc/loadavg"),
        }
    }
}

/// The commit that was measured, with a `+` if there were changes beside it.
fn revision() -> Option<String> {
    let output = Command::new("git")
        .args(["-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always", "--dirty=+"])
        .stderr(Stdio::null())
        .output()
        .ok()?;
    output.status.success().then(|| format!("shunt {}", String::from_utf8_lossy(&output.stdout).trim()))
}

/// A shell that waits for our end, however it comes, then removes the scratch directory and gives hugepages back.
pub struct Guardian {
    child: Child,
    pipe: Option<ChildStdin>,
    hugepages: bool,
}

impl Guardian {
    /// Reserves at least `pages` free 2 MiB pages if asked, and stands guard.
    pub fn start(scratch: &Path, pages: Option<usize>) -> Result<Self> {
        let number =
            |path: &str| std::fs::read_to_string(path).ok().and_then(|s| s.trim().parse::<usize>().ok());
        let before = number(PAGES);
        // `read` ends when the other end of the pipe closes, that is, with us; TERM and INT are ours, not the shell's.
        let script = "trap '' INT TERM HUP; read _; rm -rf \"$1\"; [ -z \"$2\" ] || echo \"$2\" >\"$3\"";
        let restore = match (pages, before) {
            (Some(_), Some(before)) => before.to_string(),
            _ => String::new(),
        };
        let mut child = Command::new("sh")
            .args(["-c", script, "guardian"])
            .arg(scratch)
            .args([restore.as_str(), PAGES])
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .context("cannot start a shell")?;
        let pipe = child.stdin.take();
        let mut hugepages = false;
        if let (Some(pages), Some(before)) = (pages, before) {
            let free = number(FREE_PAGES).unwrap_or(0);
            let wanted = before + pages.saturating_sub(free);
            // The kernel reserves what it can: what counts is what is free afterwards.
            hugepages = std::fs::write(PAGES, wanted.to_string()).is_ok()
                && number(FREE_PAGES).is_some_and(|free| free >= pages);
        }
        if pages.is_some() && !hugepages {
            super::say("2 MiB pages cannot be reserved: DPDK runs without");
        }
        Ok(Self { child, pipe, hugepages })
    }

    /// Whether the pages are there.
    pub fn has_hugepages(&self) -> bool {
        self.hugepages
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        drop(self.pipe.take());
        let _ = self.child.wait();
    }
}
