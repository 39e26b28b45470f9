//! Packet sockets (packet(7)) that take and give bursts of frames, each with a virtio-net header.
//!
//! `PACKET_VNET_HDR` puts a virtio-net header in front of each frame, so that whole TSO frames and frames without
//! checksum pass. It is the 10-byte one: with the 12-byte one (`PACKET_VNET_HDR_SZ`, Linux 6.6) the kernel still writes
//! 10 bytes at their old place into a mapped ring, and the further field means nothing here.
//! Frames are received from a mapped ring (see [`super::packet_ring`]) and sent by `sendmmsg`.

use std::{
    ffi::{c_int, c_uint, c_void},
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use nix::{
    libc,
    sys::socket::{
        setsockopt,
        sockopt::{RcvBufForce, SndBufForce},
    },
};
use vhost_backend::{
    frame::{BURST, Burst, SEGMENTS},
    net_header::{LEGACY_NET_HEADER_LEN, NET_HEADER_LEN},
};

use super::{device::Sent, packet_ring::Ring};

/// Bytes of frames too long for the ring that wait in one socket, by the kernel's count (a 64 KiB frame counts up to
/// 130 KiB), set as half of it because the kernel doubles it.
const RECEIVE_BUFFER: usize = 4 << 20;
/// The same for frames that a device has taken and not yet sent.
const SEND_BUFFER: usize = 2 << 20;
/// Bytes of the virtio-net header in front of each frame.
pub(super) const HEADER: usize = LEGACY_NET_HEADER_LEN;
/// Pieces of all frames of a burst: header, snapshot and first segment of each, and all further segments.
const PIECES: usize = 3 * BURST + SEGMENTS;

/// Frames that were lost before they could be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Missed {
    /// Frames that came faster than they were read.
    pub overrun: u64,
    /// Frames longer than any port may bring ([`vhost_backend::frame::MAX_FRAME`]).
    pub oversize: u64,
}

/// One packet socket bound to a device.
pub(super) struct PacketSocket {
    pub(super) fd: OwnedFd,
    pub(super) ring: Ring,
    pub(super) overrun: AtomicU64,
    pub(super) oversize: AtomicU64,
}

impl PacketSocket {
    /// A promiscuous socket on the device `index`, deaf until [`PacketSocket::listen`].
    pub(super) fn bind(index: u32) -> io::Result<Self> {
        // SAFETY: no memory is involved; a fresh descriptor becomes owned at once. Protocol 0: it hears nothing
        // before it is bound, in particular nothing of other devices.
        let fd = unsafe {
            let fd =
                libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        let one: c_int = 1;
        set(&fd, libc::PACKET_VNET_HDR, &one)?;
        set(&fd, libc::PACKET_IGNORE_OUTGOING, &one)?;
        // The switch keeps no queue of its own and neither shall a queueing discipline that nobody asked for: a full
        // device says so, and the drop is counted where it is seen.
        set(&fd, libc::PACKET_QDISC_BYPASS, &one)?;
        setsockopt(&fd, RcvBufForce, &RECEIVE_BUFFER)?;
        setsockopt(&fd, SndBufForce, &SEND_BUFFER)?;
        let ring = Ring::map(&fd)?;
        let socket = Self { fd, ring, overrun: AtomicU64::new(0), oversize: AtomicU64::new(0) };

        let mut refuse_all =
            libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: 0 };
        let program = libc::sock_fprog { len: 1, filter: &raw mut refuse_all };
        set_at(&socket.fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)?;

        // SAFETY: plain data for which zeroes are valid.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = index as c_int;
        // SAFETY: the address is a sockaddr_ll of the length that is given.
        let bound = unsafe {
            libc::bind(socket.fd.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as c_uint)
        };
        if bound < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: as above.
        let mut member: libc::packet_mreq = unsafe { std::mem::zeroed() };
        member.mr_ifindex = index as c_int;
        member.mr_type = libc::PACKET_MR_PROMISC as u16;
        set(&socket.fd, libc::PACKET_ADD_MEMBERSHIP, &member)?;
        Ok(socket)
    }

    /// A socket that another process has bound, shared and read up to slot `next`, and what it has missed so far.
    pub(super) fn adopt(fd: OwnedFd, next: u32, missed: Missed) -> io::Result<Self> {
        let ring = Ring::adopt(&fd, next)?;
        Ok(Self {
            fd,
            ring,
            overrun: AtomicU64::new(missed.overrun),
            oversize: AtomicU64::new(missed.oversize),
        })
    }

    /// Shares the device's frames among `sockets` by flow: the kernel's flow hash is the same in both directions and
    /// for all frames of a flow, so a flow stays in order on one queue. (Sharing by processor would leave all frames
    /// of a single-queue device on one queue and reorder flows when their sender moves.)
    pub(super) fn share(sockets: &[Self]) -> io::Result<()> {
        let [first, others @ ..] = sockets else { return Ok(()) };
        if others.is_empty() {
            return Ok(());
        }
        let kind = libc::PACKET_FANOUT_HASH << 16;
        set(&first.fd, libc::PACKET_FANOUT, &(kind | libc::PACKET_FANOUT_FLAG_UNIQUEID << 16))?;
        let group: c_uint = get(&first.fd, libc::SOL_PACKET, libc::PACKET_FANOUT)?;
        for other in others {
            set(&other.fd, libc::PACKET_FANOUT, &(kind | (group & 0xffff)))?;
        }
        Ok(())
    }

    /// Begins to receive.
    pub(super) fn listen(&self) -> io::Result<()> {
        set_at(&self.fd, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, &0)
    }

    /// Frames lost before they reached a burst, since the start.
    pub(super) fn missed(&self) -> Missed {
        // `struct tpacket_stats`: packets, drops; reading clears it.
        if let Ok([_, drops]) = get::<[u32; 2]>(&self.fd, libc::SOL_PACKET, libc::PACKET_STATISTICS) {
            self.overrun.fetch_add(u64::from(drops), Relaxed);
        }
        Missed { overrun: self.overrun.load(Relaxed), oversize: self.oversize.load(Relaxed) }
    }

    /// Sends the frames of `mask`, each with its header as it stands in the burst.
    pub(super) fn send(&self, burst: &Burst, mask: u64) -> Sent {
        let mut todo = mask & burst.all();
        let mut sent = Sent { refused: mask & !todo, ..Sent::default() };
        // Not initialised: the kernel is shown only what was filled in.
        let mut messages = [const { MaybeUninit::<libc::mmsghdr>::uninit() }; BURST];
        let mut pieces = [const { MaybeUninit::<libc::iovec>::uninit() }; PIECES];
        let mut headers = [const { MaybeUninit::<[u8; NET_HEADER_LEN]>::uninit() }; BURST];
        let mut bits = [0_u64; BURST];
        let (mut count, mut used) = (0, 0);
        let base: *mut libc::iovec = pieces.as_mut_ptr().cast();
        while todo != 0 {
            let bit = todo & todo.wrapping_neg();
            todo ^= bit;
            let i = bit.trailing_zeros() as usize;
            let first = used;
            let mut add = |ptr: *const u8, len: usize| {
                if used == PIECES {
                    return;
                }
                // SAFETY: `used` is less than PIECES.
                unsafe {
                    base.add(used).write(libc::iovec { iov_base: ptr.cast_mut().cast(), iov_len: len })
                };
                used += 1;
            };
            let header = headers[count].write(burst.header(i).meaningful().to_bytes());
            add(header.as_ptr(), HEADER);
            let head = burst.head(i);
            add(head.as_ptr(), head.len());
            for segment in burst.tail(i) {
                add(segment.ptr(), segment.len());
            }
            // SAFETY: plain data for which zeroes are valid.
            let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
            // SAFETY: `first <= PIECES`.
            message.msg_hdr.msg_iov = unsafe { base.add(first) };
            message.msg_hdr.msg_iovlen = (used - first) as _;
            messages[count].write(message);
            bits[count] = bit;
            count += 1;
        }
        let mut at = 0;
        while at < count {
            // SAFETY: messages `at..count` are initialised and name initialised pieces, which name headers on this
            // stack and snapshots and segments that are readable while the burst is borrowed; the kernel only reads
            // them, and writes the messages' lengths.
            let took = unsafe {
                libc::sendmmsg(
                    self.fd.as_raw_fd(),
                    messages[at..].as_mut_ptr().cast(),
                    (count - at) as c_uint,
                    libc::MSG_DONTWAIT,
                )
            };
            if took > 0 {
                let next = at + took as usize;
                sent.sent |= bits[at..next].iter().fold(0, |mask, bit| mask | bit);
                at = next;
                continue;
            }
            let errno = nix::errno::Errno::last_raw();
            if took < 0 && errno == libc::EINTR {
                continue;
            }
            let rest = bits[at + 1..count].iter().fold(0, |mask, bit| mask | bit);
            if !sent.refuse(errno, bits[at], rest) {
                break;
            }
            at += 1;
        }
        sent
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

pub(super) fn set<T>(fd: &OwnedFd, option: c_int, value: &T) -> io::Result<()> {
    set_at(fd, libc::SOL_PACKET, option, value)
}

fn set_at<T>(fd: &OwnedFd, level: c_int, option: c_int, value: &T) -> io::Result<()> {
    let (ptr, len) = (std::ptr::from_ref(value).cast(), size_of::<T>() as c_uint);
    // SAFETY: the value is readable for its own length; each caller gives the type that the option reads.
    let done = unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, ptr, len) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

pub(super) fn get<T: zerocopy::FromBytes>(fd: &OwnedFd, level: c_int, option: c_int) -> io::Result<T> {
    let mut value = T::new_zeroed();
    let mut len = size_of::<T>() as c_uint;
    // SAFETY: the value is writable for the length that is given, and any bytes are valid for its type.
    let done = unsafe {
        libc::getsockopt(fd.as_raw_fd(), level, option, (&raw mut value).cast::<c_void>(), &mut len)
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}
