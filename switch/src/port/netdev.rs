//! Netdev ports: shunt attaches to the kernel's side of a device that exists, through packet sockets.
//!
//! A TAP has two ends. When QEMU holds the descriptor, this is the other one; a veth or a NIC is reached the same way.
//! While attached the device belongs to the switch: the host's own stack is kept out of it (see [`super::host_stack`])
//! and comes back, with its addresses and routes, when the port goes.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    path::PathBuf,
};

use nix::libc;
use serde::{Deserialize, Serialize};
use vhost_backend::{frame::Burst, handover::Descriptors};

pub use super::device::{OpenError, ReceiveBuffer, Sent};
pub use super::packet_socket::Missed;
use super::{
    device::{NET_ADMIN, check_name},
    host_stack::{HostStack, HostStackState},
    link::{Changed, LinkInfo, LinkKept, LinkState},
    netlink::Netlink,
    netns::Netns,
    packet_socket::PacketSocket,
    watch::Watch,
};

/// Most queues: the kernel's fanout groups have 256 members.
const MAX_QUEUES: u16 = 256;
/// `ARPHRD_ETHER`.
const ETHERNET: u16 = 1;

/// A netdev port's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetdevConfig {
    /// Name of a device that exists.
    pub device: String,
    /// Queues, 1 to 256: received frames are shared among them by flow.
    pub queues: u16,
    /// Network namespace of the device: a name in `/run/netns`, or a path when it contains a `/`.
    pub netns: Option<PathBuf>,
}

/// An attached device with its queues. Dropping it gives the device back to the host's stack.
pub struct Netdev {
    name: String,
    queues: Box<[PacketSocket]>,
    watch: Watch,
    /// After the sockets: the host's stack returns when nobody listens any more.
    host_stack: Box<HostStack>,
}

/// A netdev port for another process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetdevState {
    /// The sockets of its queues, each with frames overrun and oversized so far.
    queues: Vec<(u32, u64, u64)>,
    /// What is known about the device.
    link: LinkKept,
    /// What is to be given back to the host some day.
    host: HostStackState,
}

impl Netdev {
    /// Attaches to the device, takes the host's stack off it and sets it up. Blocks for some milliseconds. When it
    /// fails, the device is as before.
    pub fn open(config: &NetdevConfig) -> Result<Self, OpenError> {
        check_name(&config.device)?;
        if !(1..=MAX_QUEUES).contains(&config.queues) {
            return Err(OpenError::Invalid {
                field: "queues",
                value: config.queues.to_string(),
                rule: "a netdev port has 1 to 256 queues".into(),
            });
        }
        let netns = Netns::open(config.netns.as_deref())?;
        let name = &config.device;
        let failed = |e: io::Error| OpenError::system(format!("attach to device {name}"), NET_ADMIN, e);
        let (netlink, link) = netns.run(|| {
            let mut netlink = Netlink::open(0).map_err(failed)?;
            let link = netlink.link_by_name(name).map_err(failed)?.ok_or_else(|| OpenError::Missing {
                what: format!("device {name}"),
                hint: "a netdev port attaches to a device that is there; `ip link` lists them",
            })?;
            check_existing(&link, &mut netlink)?;
            Ok::<_, OpenError>((netlink, link))
        })??;
        // Sockets first: they tell at once whether we may, before anything about the device is changed.
        let queues = netns
            .run(|| {
                (0..config.queues).map(|_| PacketSocket::bind(link.index)).collect::<io::Result<Box<[_]>>>()
            })?
            .map_err(|e| {
                OpenError::system(format!("attach to device {name}"), "CAP_NET_RAW and CAP_NET_ADMIN", e)
            })?;
        let index = link.index;
        let host_stack = HostStack::take(netns, netlink, link)?;
        let watch = Watch::start(host_stack.netns(), index, false)?;
        PacketSocket::share(&queues).map_err(failed)?;
        for queue in &queues {
            queue.listen().map_err(failed)?;
        }
        Ok(Self { name: config.device.clone(), queues, watch, host_stack: Box::new(host_stack) })
    }

    /// Describes the port for another process.
    ///
    /// # Errors
    /// No descriptors are to be had.
    pub fn export(&self, descriptors: &mut Descriptors) -> io::Result<NetdevState> {
        let mut queues = Vec::with_capacity(self.queues.len());
        for queue in &self.queues {
            let missed = queue.missed();
            queues.push((descriptors.add(&queue.fd)?, missed.overrun, missed.oversize));
        }
        Ok(NetdevState {
            queues,
            link: self.watch.cell().export(),
            host: self.host_stack.export(descriptors)?,
        })
    }

    /// Goes on with the sockets of another process. The device is that one's until [`Netdev::own`].
    ///
    /// # Errors
    /// What was handed over does not fit.
    pub fn resume(
        config: &NetdevConfig,
        state: &NetdevState,
        descriptors: &mut Descriptors,
    ) -> Result<Self, OpenError> {
        let unfit = |why: String| OpenError::Unfit { device: config.device.clone(), why };
        if state.queues.len() != usize::from(config.queues) {
            return Err(unfit(format!("has {} queues, {} are wanted", state.queues.len(), config.queues)));
        }
        let mut queues = Vec::with_capacity(state.queues.len());
        for &(place, overrun, oversize) in &state.queues {
            let fd = descriptors.take(place).map_err(|e| unfit(e.to_string()))?;
            let missed = Missed { overrun, oversize };
            let failed = |e| OpenError::system(format!("map the ring of {}", config.device), NET_ADMIN, e);
            queues.push(PacketSocket::adopt(fd, 0, missed).map_err(failed)?);
        }
        let (host_stack, index) =
            HostStack::resume(config.netns.as_deref(), &config.device, &state.host, descriptors)?;
        let watch = Watch::resume(host_stack.netns(), index, false, &state.link)?;
        Ok(Self {
            name: config.device.clone(),
            queues: queues.into(),
            watch,
            host_stack: Box::new(host_stack),
        })
    }

    /// Where each queue's ring was read up to, when nobody reads.
    pub fn positions(&self) -> Vec<u32> {
        self.queues.iter().map(|queue| queue.ring.position()).collect()
    }

    /// Reads on from there; false if that cannot be. For who alone has the port.
    pub fn set_positions(&self, positions: &[u32]) -> bool {
        positions.len() == self.queues.len()
            && self.queues.iter().zip(positions).all(|(queue, &position)| queue.ring.set_position(position))
    }

    /// The device is this process' from now on, and given back when the port goes.
    pub fn own(&self) {
        self.host_stack.own();
    }

    /// Number of queues.
    pub fn queues(&self) -> usize {
        self.queues.len()
    }

    /// The descriptor of `queue`, to wait for frames on.
    pub fn queue_fd(&self, queue: usize) -> BorrowedFd<'_> {
        self.queues[queue].as_fd()
    }

    /// Name of the device.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The device's own MAC address, as last seen.
    pub fn mac(&self) -> [u8; 6] {
        self.watch.cell().mac()
    }

    /// The device's MTU, as last seen; others may change it at any time.
    pub fn mtu(&self) -> u32 {
        self.watch.cell().mtu()
    }

    /// The link as last seen; never waits.
    pub fn link(&self) -> LinkState {
        self.watch.cell().state()
    }

    /// Has `changed` called, on the watcher's thread, after link state, MTU or MAC changed.
    pub fn on_change(&self, changed: Changed) {
        self.watch.cell().on_change(Some(changed));
    }

    /// Frames of `queue` that were lost before they could be read. A system call: not for the packet path.
    pub fn missed(&self, queue: usize) -> Missed {
        self.queues[queue].missed()
    }

    /// Reads up to a burst of frames from `queue`, lends it to `f` if there is any, and clears it.
    /// Returns the number of frames.
    ///
    /// # Errors
    /// The queue is dead, usually because the device was removed (ENODEV): do not poll it any more.
    pub fn receive(
        &self,
        queue: usize,
        buffer: &mut ReceiveBuffer,
        burst: &mut Burst,
        f: impl FnOnce(&mut Burst),
    ) -> io::Result<usize> {
        let frames = self.queues[queue].receive(buffer, burst, f)?;
        if frames == 0 && self.watch.cell().is_gone() {
            // The socket itself only falls silent.
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        Ok(frames)
    }

    /// Sends the frames of `mask`, each with its header as it stands in the burst, from `queue`.
    pub fn send(&self, queue: usize, burst: &Burst, mask: u64) -> Sent {
        self.queues[queue].send(burst, mask)
    }
}

fn check_existing(link: &LinkInfo, netlink: &mut Netlink) -> Result<(), OpenError> {
    let unfit = |why: String| Err(OpenError::Unfit { device: link.name.clone(), why });
    if link.hardware != ETHERNET || link.flags & libc::IFF_LOOPBACK as u32 != 0 {
        return unfit("is no Ethernet device".into());
    }
    if let Some(master) = link.master {
        let master = match netlink.link_by_index(master) {
            Ok(Some(master)) => master.name,
            _ => format!("the device with index {master}"),
        };
        return unfit(format!("belongs to {master}: release it first (ip link set {} nomaster)", link.name));
    }
    Ok(())
}
