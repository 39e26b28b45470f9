//! TAP ports: shunt holds the descriptors, the device faces the stack of the host or of a network namespace.
//!
//! Follows the kernel's Documentation/networking/tuntap.rst and drivers/net/tun.c. Each queue is a descriptor; each
//! frame is one `read` or `writev` with a 12-byte virtio-net header in front (the kernel has no batched call for TAP
//! descriptors). All offloads towards us are on: egress does in software what the other port lacks.
//!
//! With one queue the device is made without `IFF_MULTI_QUEUE`, for the kernel reserves 256 transmit queues, each with
//! a queueing discipline, for every multi-queue device, and because `ip tuntap add` and QEMU do likewise, so that the
//! device can be handed over. An existing device keeps its kind: a multi-queue one serves any number of queues, a
//! single-queue one serves one.

use std::{
    ffi::{c_int, c_uint},
    fs::{File, OpenOptions},
    io,
    mem::MaybeUninit,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::fs::OpenOptionsExt,
    },
    path::PathBuf,
};

use nix::{libc, request_code_read, request_code_write};
use serde::{Deserialize, Serialize};
use vhost_backend::{
    frame::{BURST, Burst, MAX_FRAME},
    handover::Descriptors,
    net_header::{NET_HEADER_LEN, NetHeader},
};

pub use super::device::{OpenError, ReceiveBuffer, Sent};
use super::{
    device::{HEADROOM, Lent, NET_ADMIN, check_name},
    link::{Changed, LinkChange, LinkInfo, LinkKept, LinkState},
    netlink::Netlink,
    netns::Netns,
    watch::Watch,
};

/// Most queues that the kernel gives a device (`MAX_TAP_QUEUES`).
const MAX_QUEUES: u16 = 256;
/// Bytes that one queue's frames may occupy inside the kernel before it takes no more (`TUNSETSNDBUF`). By default
/// there is no limit, and what a guest sends into a congested host would pile up there; 4 MiB are 60 frames of 64 KiB.
const SEND_BUFFER: c_int = 4 << 20;
/// Pieces of one `writev` (`UIO_MAXIOV`).
const PIECES: usize = 1024;

pub(super) mod ioctl {
    use super::{c_int, c_uint, libc, request_code_read, request_code_write};
    const INT: usize = size_of::<c_int>();
    nix::ioctl_write_ptr_bad!(set_iff, request_code_write!(b'T', 202, INT), libc::ifreq);
    nix::ioctl_read_bad!(get_iff, request_code_read!(b'T', 210, size_of::<c_uint>()), libc::ifreq);
    nix::ioctl_write_int_bad!(set_persist, request_code_write!(b'T', 203, INT));
    nix::ioctl_write_int_bad!(set_offload, request_code_write!(b'T', 208, size_of::<c_uint>()));
    nix::ioctl_write_ptr_bad!(set_sndbuf, request_code_write!(b'T', 212, INT), c_int);
    nix::ioctl_write_ptr_bad!(set_vnet_hdr_size, request_code_write!(b'T', 216, INT), c_int);
    nix::ioctl_write_ptr_bad!(set_vnet_le, request_code_write!(b'T', 220, INT), c_int);
}

/// A TAP port's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapConfig {
    /// Name of the device, to be created or adopted.
    pub device: String,
    /// Queues, 1 to 256.
    pub queues: u16,
    /// MTU to set, 68 to 9600; `None` keeps the device's (1500 when new).
    pub mtu: Option<u16>,
    /// The device's own MAC address, that is the one of the host's side; `None` keeps it (random when new).
    pub mac: Option<[u8; 6]>,
    /// Network namespace: a name in `/run/netns`, or a path when it contains a `/`.
    pub netns: Option<PathBuf>,
    /// Let the device outlive the port. False leaves an adopted device as persistent as it was.
    pub persist: bool,
}

impl TapConfig {
    fn check(&self) -> Result<(), OpenError> {
        check_name(&self.device)?;
        let invalid =
            |field, value: String, rule: &str| Err(OpenError::Invalid { field, value, rule: rule.into() });
        if !(1..=MAX_QUEUES).contains(&self.queues) {
            return invalid("queues", self.queues.to_string(), "a TAP device has 1 to 256 queues");
        }
        self.mtu.map_or(Ok(()), check_mtu)?;
        if let Some(mac) = self.mac
            && (mac[0] & 1 == 1 || mac == [0; 6])
        {
            let hex = mac.map(|b| format!("{b:02x}")).join(":");
            return invalid("mac", hex, "a device's address is unicast (first byte even) and not zero");
        }
        Ok(())
    }
}

fn check_mtu(mtu: u16) -> Result<(), OpenError> {
    if (68..=9600).contains(&mtu) {
        return Ok(());
    }
    let rule = "a port's MTU is 46 to 9600, and the kernel sets 68 to 65521 on a TAP device";
    Err(OpenError::Invalid { field: "mtu", value: mtu.to_string(), rule: rule.into() })
}

/// A TAP port for another process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TapState {
    /// The device's index in its namespace.
    pub index: u32,
    /// What is known about it.
    pub(super) link: LinkKept,
    /// The descriptors of its queues.
    pub queues: Vec<u32>,
    /// The namespace's file, if it is another one than the process'.
    pub netns: Option<u32>,
}

/// A TAP device with its queues.
///
/// Queues are independent. `receive` and `send` may be called from any thread; frames of one queue keep their order
/// as long as one thread at a time receives from it. Dropping it removes the device unless it is persistent.
pub struct Tap {
    name: String,
    queues: Box<[File]>,
    netns: Netns,
    index: u32,
    watch: Watch,
}

impl Tap {
    /// Creates the device, or adopts it if it exists and nobody uses it, and sets it up (`ip link` shows it UP).
    /// Blocks for some milliseconds. When it fails nothing is left behind.
    pub fn open(config: &TapConfig) -> Result<Self, OpenError> {
        config.check()?;
        let netns = Netns::open(config.netns.as_deref())?;
        let (queues, mut netlink, link) = netns.run(|| attach(config))??;
        configure(config, &queues, &mut netlink, &link)?;
        let watch = Watch::start(&netns, link.index, true)?;
        Ok(Self { name: config.device.clone(), queues, index: link.index, netns, watch })
    }

    /// Describes the port for another process, which goes on with the same queues.
    ///
    /// # Errors
    /// No descriptors are to be had.
    pub fn export(&self, descriptors: &mut Descriptors) -> io::Result<TapState> {
        let queues = self.queues.iter().map(|queue| descriptors.add(queue)).collect::<io::Result<_>>()?;
        let netns = self.netns.file().map(|file| descriptors.add(file)).transpose()?;
        Ok(TapState { index: self.index, link: self.watch.cell().export(), queues, netns })
    }

    /// Goes on with the queues of another process, whose device it was.
    ///
    /// # Errors
    /// They are not this device's.
    pub fn resume(
        config: &TapConfig,
        state: &TapState,
        descriptors: &mut Descriptors,
    ) -> Result<Self, OpenError> {
        let unfit = |why: String| OpenError::Unfit { device: config.device.clone(), why };
        let mut take = |place| descriptors.take(place).map(File::from).map_err(|e| unfit(e.to_string()));
        if state.queues.len() != usize::from(config.queues) {
            return Err(unfit(format!("has {} queues, {} are wanted", state.queues.len(), config.queues)));
        }
        let queues = state.queues.iter().map(|&place| take(place)).collect::<Result<Box<[_]>, _>>()?;
        let file = state.netns.map(&mut take).transpose()?;
        for queue in queues.iter().filter(|_| !state.link.is_gone()) {
            let name =
                name_of(queue).map_err(|e| unfit(format!("is not what a descriptor stands for: {e}")))?;
            if name != config.device.as_bytes() {
                let name = String::from_utf8_lossy(&name).into_owned();
                return Err(unfit(format!("is not what a descriptor stands for, which is {name}")));
            }
        }
        let netns = Netns::adopt(config.netns.as_deref(), file)?;
        let watch = Watch::resume(&netns, state.index, true, &state.link)?;
        Ok(Self { name: config.device.clone(), queues, index: state.index, netns, watch })
    }

    /// Number of queues.
    pub fn queues(&self) -> usize {
        self.queues.len()
    }

    /// The descriptor of `queue`, to wait for frames on. It is level-triggered, and reports an error for ever once
    /// the device was removed.
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

    /// Changes the device's MTU.
    ///
    /// # Errors
    /// The MTU is not one that TAP devices can have, or the device is gone.
    pub fn set_mtu(&self, mtu: u16) -> Result<(), OpenError> {
        check_mtu(mtu)?;
        let doing = || format!("set the MTU of device {}", self.name);
        let failed = |e| OpenError::system(doing(), NET_ADMIN, e);
        let mut netlink = self.netns.run(|| Netlink::open(0))?.map_err(failed)?;
        netlink
            .change_link(self.index, LinkChange { mtu: Some(mtu.into()), ..LinkChange::default() })
            .map_err(failed)
    }

    /// The link as last seen; never waits.
    pub fn link(&self) -> LinkState {
        self.watch.cell().state()
    }

    /// Has `changed` called, on the watcher's thread, after link state, MTU or MAC changed.
    pub fn on_change(&self, changed: Changed) {
        self.watch.cell().on_change(Some(changed));
    }

    /// Reads up to a burst of frames from `queue`, lends it to `f` if there is any, and clears it.
    /// Returns the number of frames.
    ///
    /// # Errors
    /// The queue is dead, usually because the device was removed (EBADFD): do not poll it any more.
    pub fn receive(
        &self,
        queue: usize,
        buffer: &mut ReceiveBuffer,
        burst: &mut Burst,
        f: impl FnOnce(&mut Burst),
    ) -> io::Result<usize> {
        burst.clear();
        let lent = Lent(burst);
        let fd = self.queues[queue].as_raw_fd();
        let start = buffer.start();
        // Where the next Ethernet header goes, at a cache line; its virtio-net header stands right in front of it.
        let mut at = HEADROOM;
        let mut dead = None;
        for _ in 0..BURST {
            if at + MAX_FRAME > ReceiveBuffer::LEN {
                break;
            }
            // SAFETY: `at` is at least HEADROOM > NET_HEADER_LEN and `at + MAX_FRAME` is within the buffer, which is
            // ours alone as long as `buffer` is borrowed.
            let got = unsafe {
                let to = start.add(at - NET_HEADER_LEN);
                libc::read(fd, to.cast(), NET_HEADER_LEN + MAX_FRAME)
            };
            if got < 0 {
                match nix::errno::Errno::last_raw() {
                    libc::EAGAIN => break,
                    // EINTR; or EINVAL, a frame with offloads that the header cannot express, which is lost.
                    libc::EINTR | libc::EINVAL => continue,
                    errno => {
                        dead = Some(errno);
                        break;
                    }
                }
            }
            let Some(len) = (got as usize).checked_sub(NET_HEADER_LEN).filter(|len| *len > 0) else {
                continue;
            };
            // SAFETY: the kernel wrote the header and `len` bytes of frame there. They stay as they are until the
            // burst is cleared, when `lent` ends.
            let pushed = unsafe {
                let frame = start.add(at);
                let header = NetHeader::from_bytes(&*frame.sub(NET_HEADER_LEN).cast());
                lent.0.push_raw(header, frame, len)
            };
            debug_assert!(pushed, "neither full nor empty nor longer than MAX_FRAME");
            at = (at + len + NET_HEADER_LEN).next_multiple_of(64);
        }
        let frames = lent.0.len();
        if frames > 0 {
            f(lent.0);
        }
        // What was read before the end still counts: the error comes again with the next call.
        match dead {
            Some(errno) if frames == 0 => Err(io::Error::from_raw_os_error(errno)),
            _ => Ok(frames),
        }
    }

    /// Sends the frames of `mask`, each with its header as it stands in the burst, into `queue`.
    pub fn send(&self, queue: usize, burst: &Burst, mask: u64) -> Sent {
        let fd = self.queues[queue].as_raw_fd();
        let mut sent = Sent::default();
        let mut rest = mask & burst.all();
        sent.refused = mask & !rest;
        // Not initialised: the kernel is shown only the pieces that were filled in.
        let mut pieces = [const { MaybeUninit::<libc::iovec>::uninit() }; PIECES];
        while rest != 0 {
            let bit = rest & rest.wrapping_neg();
            rest ^= bit;
            let i = bit.trailing_zeros() as usize;
            let header = burst.header(i).meaningful().to_bytes();
            let head = burst.head(i);
            pieces[0]
                .write(libc::iovec { iov_base: header.as_ptr().cast_mut().cast(), iov_len: header.len() });
            pieces[1].write(libc::iovec { iov_base: head.as_ptr().cast_mut().cast(), iov_len: head.len() });
            let mut used = 2;
            let mut fits = true;
            for segment in burst.tail(i) {
                let Some(piece) = pieces.get_mut(used) else {
                    fits = false;
                    break;
                };
                piece
                    .write(libc::iovec { iov_base: segment.ptr().cast_mut().cast(), iov_len: segment.len() });
                used += 1;
            }
            if !fits {
                sent.refused |= bit;
                continue;
            }
            let wrote = loop {
                // SAFETY: the first `used` pieces are initialised and name the header (alive on this stack), the
                // snapshot and segments of the burst, which are readable while the burst is borrowed; the kernel
                // only reads from them.
                let wrote = unsafe { libc::writev(fd, pieces.as_ptr().cast(), used as c_int) };
                if wrote >= 0 || nix::errno::Errno::last_raw() != libc::EINTR {
                    break wrote;
                }
            };
            if wrote >= 0 {
                sent.sent |= bit;
            } else if !sent.refuse(nix::errno::Errno::last_raw(), bit, rest) {
                break;
            }
        }
        sent
    }
}

/// Opens the queues, in the namespace that this thread is in.
fn attach(config: &TapConfig) -> Result<(Box<[File]>, Netlink, LinkInfo), OpenError> {
    let name = &config.device;
    let netlink_failed = |e: io::Error| OpenError::system(format!("look up device {name}"), NET_ADMIN, e);
    let mut netlink = Netlink::open(0).map_err(netlink_failed)?;
    let existing = netlink.link_by_name(name).map_err(netlink_failed)?;
    if let Some(link) = &existing {
        check_unused(name, config.queues, link)?;
    }
    let multi_queue = existing.map_or(config.queues > 1, |link| link.tun.multi_queue);
    let queues =
        (0..config.queues).map(|_| open_queue(name, multi_queue)).collect::<Result<Box<[_]>, _>>()?;
    let link = netlink.link_by_name(name).map_err(netlink_failed)?.ok_or_else(|| OpenError::Missing {
        what: format!("device {name}"),
        hint: "it was removed while it was being opened",
    })?;
    Ok((queues, netlink, link))
}

/// Whether a device that is already there can be adopted, with so many queues.
pub(super) fn check_unused(device: &str, queues: u16, link: &LinkInfo) -> Result<(), OpenError> {
    let unfit = |why: String| Err(OpenError::Unfit { device: device.to_owned(), why });
    if link.kind != "tun" || !link.tun.tap {
        let kind = match link.kind.as_str() {
            "" => "a network interface",
            kind => kind,
        };
        return unfit(format!(
            "exists and is no TAP device ({kind}): choose another name, or attach it as a netdev"
        ));
    }
    if link.tun.queues > 0 {
        return unfit(format!(
            "is in use by another process ({} queues attached): to reach whoever holds it, attach it as a netdev",
            link.tun.queues
        ));
    }
    if queues > 1 && !link.tun.multi_queue {
        return unfit(format!(
            "exists and has a single queue, {queues} are wanted: ask for 1 queue, or remove it and let shunt create it"
        ));
    }
    Ok(())
}

/// The name of the device that a descriptor is a queue of.
fn name_of(queue: &File) -> nix::Result<Vec<u8>> {
    // SAFETY: an ifreq is plain data for which zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: TUNGETIFF writes an ifreq.
    unsafe { ioctl::get_iff(queue.as_raw_fd(), &mut request) }?;
    Ok(request.ifr_name.iter().take_while(|&&c| c != 0).map(|&c| c as u8).collect())
}

/// Opens a queue of a device, which is made if it is missing.
pub(super) fn open_queue(name: &str, multi_queue: bool) -> Result<File, OpenError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")
        .map_err(|e| match e.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => OpenError::Missing {
                what: "/dev/net/tun".into(),
                hint: "load the kernel's module (modprobe tun), or pass the device into this container",
            },
            _ => OpenError::system("open /dev/net/tun", "read and write permission on it", e),
        })?;
    // SAFETY: an ifreq is plain data for which zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if multi_queue {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    let (size, one) = (NET_HEADER_LEN as c_int, 1);
    let offload = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    let fd = file.as_raw_fd();
    // SAFETY: each ioctl is given what tun.c reads for it: an ifreq, a pointer to an int, or a number; all live here.
    let made: nix::Result<()> = unsafe {
        (|| {
            ioctl::set_iff(fd, &request)?;
            ioctl::set_vnet_hdr_size(fd, &size)?;
            ioctl::set_vnet_le(fd, &one)?;
            ioctl::set_offload(fd, offload as c_int)?;
            ioctl::set_sndbuf(fd, &SEND_BUFFER)?;
            Ok(())
        })()
    };
    match made {
        Ok(()) => Ok(file),
        Err(nix::Error::EBUSY) => Err(OpenError::Unfit {
            device: name.into(),
            why: "is in use by another process: to reach whoever holds it, attach it as a netdev".into(),
        }),
        Err(nix::Error::E2BIG) => {
            Err(OpenError::Unfit { device: name.into(), why: "has no room for so many queues".into() })
        }
        Err(e) => Err(OpenError::system(format!("attach TAP device {name}"), NET_ADMIN, e)),
    }
}

/// Gives the device what the configuration asks for. Persistence comes last: if anything fails, a device that was
/// created here goes away with its descriptors.
fn configure(
    config: &TapConfig,
    queues: &[File],
    netlink: &mut Netlink,
    link: &LinkInfo,
) -> Result<(), OpenError> {
    let up = libc::IFF_UP as u32;
    let steps = [
        ("set the MAC address of", LinkChange { mac: config.mac, ..LinkChange::default() }),
        ("set the MTU of", LinkChange { mtu: config.mtu.map(u32::from), ..LinkChange::default() }),
        ("set up", LinkChange { flags: Some((up, up)), ..LinkChange::default() }),
    ];
    for (doing, change) in steps {
        if change.mac.is_none() && change.mtu.is_none() && change.flags.is_none() {
            continue;
        }
        let failed = |e| OpenError::system(format!("{doing} device {}", config.device), NET_ADMIN, e);
        netlink.change_link(link.index, change).map_err(failed)?;
    }
    if config.persist && !link.tun.persist {
        // SAFETY: TUNSETPERSIST takes a number.
        unsafe { ioctl::set_persist(queues[0].as_raw_fd(), 1) }.map_err(|e| {
            OpenError::system(format!("make device {} persistent", config.device), NET_ADMIN, e)
        })?;
    }
    Ok(())
}
