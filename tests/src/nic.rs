//! A guest's virtio-net device, as QEMU's command line describes it.

use std::path::{Path, PathBuf};

/// Who holds the other end of a NIC.
#[derive(Debug, Clone)]
enum Backend {
    /// A vhost-user socket; `listens`: QEMU makes it and the switch connects.
    VhostUser { path: PathBuf, listens: bool },
    /// QEMU's own TAP device, which it makes and whose frames it moves itself.
    Tap { device: String },
}

/// One NIC. Options not set are QEMU's defaults, that is, every offload on.
#[derive(Debug, Clone)]
pub struct Nic {
    backend: Backend,
    address: Option<String>,
    queues: u32,
    properties: Vec<(String, String)>,
}

impl Nic {
    fn new(backend: Backend) -> Self {
        Self { backend, address: None, queues: 1, properties: Vec::new() }
    }

    /// A vhost-user NIC for a port with role `server`: the switch listens, QEMU connects and connects again.
    pub fn connects(path: &Path) -> Self {
        Self::new(Backend::VhostUser { path: path.to_path_buf(), listens: false })
    }

    /// A vhost-user NIC for a port with role `client`: QEMU listens and does not boot before the switch connects.
    pub fn listens(path: &Path) -> Self {
        Self::new(Backend::VhostUser { path: path.to_path_buf(), listens: true })
    }

    /// A NIC on a TAP of QEMU's own, without any vhost.
    pub fn tap(device: &str) -> Self {
        Self::new(Backend::Tap { device: device.to_owned() })
    }

    /// IPv4 or IPv6 address (CIDR) that the guest gets once it is up.
    pub fn address(mut self, cidr: &str) -> Self {
        self.address = Some(cidr.to_owned());
        self
    }

    /// Number of queue pairs.
    pub fn queues(mut self, queues: u32) -> Self {
        self.queues = queues;
        self
    }

    /// Offers VIRTIO_NET_F_MTU, which the guest's driver takes over.
    pub fn mtu(self, mtu: u32) -> Self {
        self.property("host_mtu", &mtu.to_string())
    }

    /// Sets any property of `virtio-net-pci`.
    pub fn property(mut self, name: &str, value: &str) -> Self {
        self.properties.push((name.to_owned(), value.to_owned()));
        self
    }

    fn without(self, names: &[&str]) -> Self {
        names.iter().fold(self, |nic, name| nic.property(name, "off"))
    }

    /// Neither sends nor takes TCP segments larger than the MTU.
    pub fn without_tso(self) -> Self {
        self.without(&["host_tso4", "host_tso6", "host_ecn", "guest_tso4", "guest_tso6", "guest_ecn"])
            .without(&["host_ufo", "guest_ufo", "host_uso", "guest_uso4", "guest_uso6"])
    }

    /// No offload at all: the guest computes and verifies every checksum itself.
    pub fn without_offloads(self) -> Self {
        self.without_tso().without(&["csum", "guest_csum", "gso"])
    }

    /// Only the virtio 0.9.5 interface, so that the legacy driver and its byte order and header rules are used.
    pub fn legacy(self) -> Self {
        self.property("disable-modern", "on").property("disable-legacy", "off")
    }

    pub(crate) fn cidr(&self) -> Option<&str> {
        self.address.as_deref()
    }

    pub(crate) fn queue_pairs(&self) -> u32 {
        self.queues
    }

    pub(crate) fn listening_path(&self) -> Option<&Path> {
        match &self.backend {
            Backend::VhostUser { path, listens: true } => Some(path),
            _ => None,
        }
    }

    /// QEMU's arguments for this NIC as the `index`th of the guest, on its own PCI Express root port.
    pub(crate) fn arguments(&self, index: usize, mac: &str) -> Vec<String> {
        let mut argv: Vec<String> = Vec::new();
        let mut add = |option: &str, value: String| argv.extend([option.to_owned(), value]);
        let queues = self.queues;
        match &self.backend {
            Backend::VhostUser { path, listens } => {
                let mode = if *listens { "server=on,wait=off" } else { "reconnect-ms=500" };
                add("-chardev", format!("socket,id=chr{index},path={},{mode}", path.display()));
                add("-netdev", format!("vhost-user,id=net{index},chardev=chr{index},queues={queues}"));
            }
            Backend::Tap { device } => add(
                "-netdev",
                format!(
                    "tap,id=net{index},ifname={device},queues={queues},vhost=off,script=no,downscript=no"
                ),
            ),
        }
        let mut device =
            format!("virtio-net-pci,id=nic{index},netdev=net{index},bus=rp{index},mac={mac},romfile=");
        if queues > 1 {
            device += &format!(",mq=on,vectors={}", 2 * queues + 2);
        }
        for (name, value) in &self.properties {
            device += &format!(",{name}={value}");
        }
        add("-device", format!("pcie-root-port,id=rp{index},chassis={0},slot={0}", index + 1));
        add("-device", device);
        argv
    }
}
