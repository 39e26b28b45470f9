//! Real DHCP clients in namespaces: busybox' udhcpc, ISC's dhclient, systemd-networkd.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use crate::host::{Host, Job};
use crate::netns::NetNs;
use crate::process::read_lossy;
use crate::tools::repository;
use crate::wait::wait_for;

/// Longer than half of the shortest lease, when clients renew it.
const LIMIT: Duration = Duration::from_secs(45);
/// networkd's settings of eth0, in printf's words.
const NETWORK: &str = "[Match]\\nName=eth0\\n[Network]\\nDHCP=ipv4\\nIPv6AcceptRA=yes\\nLinkLocalAddressing=ipv6\\n\
                       [DHCPv4]\\nUseMTU=yes\\nUseRoutes=yes\\n";

/// Which client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    /// busybox' udhcpc; asks for the options that it asks for by itself, and MTU, routes and host name.
    Udhcpc,
    /// ISC dhclient.
    Dhclient,
    /// systemd-networkd, which also takes router advertisements.
    Networkd,
}

impl Client {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Udhcpc, Self::Dhclient, Self::Networkd];
}

/// A running client on a namespace's eth0.
pub struct Dhcp {
    dir: TempDir,
    _job: Job,
}

impl Dhcp {
    /// Starts a client; `options` are its own (none for networkd, whose [DHCPv4] section they are).
    #[track_caller]
    pub fn start(host: &NetNs, client: Client, options: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("shunt-dhcp-").tempdir();
        let dir = dir.unwrap_or_else(|e| panic!("no temporary directory: {e}"));
        let script = repository().join("tests/scripts/lease.sh");
        let script = script.display();
        let at = |file: &str| dir.path().join(file).display().to_string();
        let command = match client {
            Client::Udhcpc => format!(
                "exec busybox udhcpc -f -t 10 -T 1 -A 1 -i eth0 -s {script} -O mtu -O staticroutes -O hostname {options}"
            ),
            Client::Dhclient => format!(
                "exec dhclient -4 -d -v -sf {script} -e LEASE_LOG={} -lf {} -pf {} {options} eth0",
                at("log"),
                at("leases"),
                at("pid")
            ),
            // Without udev and with a read-only /sys it takes links as they are, as in containers.
            Client::Networkd => format!(
                "exec unshare -m sh -c 'mount -t tmpfs tmpfs /run && mount -o remount,ro /sys && \
                 mkdir -p /run/systemd/network && printf \"{NETWORK}{options}\" >/run/systemd/network/eth0.network && \
                 exec /lib/systemd/systemd-networkd'"
            ),
        };
        let script = format!("export LEASE_LOG={}; {{ {command}\n}} >{} 2>&1", at("log"), at("words"));
        let job = host.start(&script, Duration::from_secs(600));
        Self { dir, _job: job }
    }

    fn path(&self, file: &str) -> PathBuf {
        Path::new(self.dir.path()).join(file)
    }

    /// What the client has said.
    pub fn words(&self) -> String {
        read_lossy(&self.path("words"))
    }

    /// What [`lease.sh`](../scripts/lease.sh) was called for, an event a line; empty for networkd.
    pub fn events(&self) -> String {
        read_lossy(&self.path("log"))
    }

    /// Waits until eth0 of `host` has an IPv4 address, and returns it with its prefix length.
    #[track_caller]
    pub fn address(&self, host: &NetNs) -> String {
        let what = format!("{} to get an address", host.name());
        let mut last = String::new();
        let found = crate::wait::poll_for(LIMIT, || {
            last = host.sh("ip -4 -o address show dev eth0 | awk '{ print $4 }'");
            last.lines().next().filter(|line| !line.is_empty()).map(str::to_owned)
        });
        found.unwrap_or_else(|| panic!("waited in vain: {what}\n{}\n{}", self.words(), self.events()))
    }

    /// Waits for an event that starts with `event` and contains all of `words`.
    #[track_caller]
    pub fn event(&self, event: &str, words: &[&str]) -> String {
        let what = format!("{event} with {words:?}, not\n{}{}", self.words(), self.events());
        wait_for(&what, 2 * LIMIT, || {
            let events = self.events();
            let line = events.lines().find(|l| l.starts_with(event) && words.iter().all(|w| l.contains(w)));
            line.map(str::to_owned)
        })
    }
}
