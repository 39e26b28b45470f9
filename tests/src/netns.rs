//! Network namespaces of this machine as hosts beside the switch, and as a place for a daemon of its own.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::host::{Host, Job};
use crate::process::run;

const PREFIX: &str = "shunt-test-";

/// A namespace with loopback up. Removed on drop, with every process in it and every device that only it holds.
pub struct NetNs {
    /// As people call it.
    name: String,
    /// As `ip netns` calls it.
    id: String,
}

impl NetNs {
    /// Makes a namespace; `label` is for people, the name becomes unique.
    #[track_caller]
    pub fn new(label: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        sweep();
        let serial = NEXT.fetch_add(1, Ordering::Relaxed);
        let id = format!("{PREFIX}{}-{serial}-{label}", std::process::id());
        run(&["ip", "netns", "add", &id]).unwrap_or_else(|e| panic!("{e}"));
        let netns = Self { name: label.to_owned(), id };
        netns.ip("link set lo up");
        netns
    }

    /// The name as `ip netns` knows it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Runs `ip -n THIS ARGS`, which must succeed.
    #[track_caller]
    pub fn ip(&self, args: &str) -> String {
        let mut argv = vec!["ip", "-n", &self.id];
        argv.extend(args.split_whitespace());
        run(&argv).unwrap_or_else(|e| panic!("{e}"))
    }

    /// Brings `device` up, with `address` (CIDR) if one is given.
    #[track_caller]
    pub fn up(&self, device: &str, address: Option<&str>) {
        if let Some(address) = address {
            self.ip(&format!("address replace {address} dev {device}"));
        }
        self.ip(&format!("link set {device} up"));
    }

    /// Makes a veth pair: `device` here, `peer_device` in `peer`; both down.
    #[track_caller]
    pub fn veth(&self, device: &str, peer: &NetNs, peer_device: &str) {
        self.ip(&format!("link add {device} type veth peer name {peer_device} netns {}", peer.id));
    }
}

impl Host for NetNs {
    fn name(&self) -> &str {
        &self.name
    }

    #[track_caller]
    fn start(&self, script: &str, limit: Duration) -> Job {
        let output = tempfile::tempfile().unwrap_or_else(|e| panic!("no temporary file: {e}"));
        let stream = || output.try_clone().map_or_else(|_| Stdio::null(), Stdio::from);
        let seconds = limit.as_secs_f64().to_string();
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--", "timeout", "-s", "KILL", &seconds, "ip", "netns", "exec"])
            .args([&self.id, "sh", "-c", script])
            .stdin(Stdio::null())
            .stdout(stream())
            .stderr(stream())
            .process_group(0)
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start a command in {}: {e}", self.name));
        Job::child(format!("{}: `{script}`", self.name), limit, child, output)
    }
}

impl Drop for NetNs {
    fn drop(&mut self) {
        remove(&self.id);
    }
}

fn remove(name: &str) {
    for pid in run(&["ip", "netns", "pids", name]).unwrap_or_default().split_whitespace() {
        let _ = run(&["kill", "-KILL", pid]);
    }
    let _ = run(&["ip", "netns", "del", name]);
}

/// Removes namespaces of test processes that were killed before they could do it themselves.
fn sweep() {
    for line in run(&["ip", "netns", "list"]).unwrap_or_default().lines() {
        let name = line.split_whitespace().next().unwrap_or_default();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !std::path::Path::new("/proc").join(pid).exists()) {
            remove(name);
        }
    }
}
