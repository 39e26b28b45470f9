//! Packet sockets (packet(7)) that take and give bursts of frames, each with a virtio-net header.
//!
//! All `unsafe` of netdev ports is here. `PACKET_VNET_HDR` puts a virtio-net header in front of each frame, so that
//! whole TSO frames and frames without checksum pass; its 12-byte form (`PACKET_VNET_HDR_SZ`) exists since Linux 6.6,
//! older kernels have the 10-byte one. The kernel takes the outer VLAN tag out of received frames and reports it
//! beside them (`PACKET_AUXDATA`): it is put back here.

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
    frame::{BURST, Burst, MAX_FRAME, SEGMENTS},
    net_header::{LEGACY_NET_HEADER_LEN, NEEDS_CSUM, NET_HEADER_LEN, NetHeader},
};

use super::device::{HEADROOM, ReceiveBuffer, STRIDE, Sent};

/// Bytes of frames that wait in one socket, by the kernel's count (a small frame counts 768, a 64 KiB one up to
/// 130 KiB), set as half of it because the kernel doubles it.
const RECEIVE_BUFFER: usize = 4 << 20;
/// The same for frames that a device has taken and not yet sent.
const SEND_BUFFER: usize = 2 << 20;
/// Bytes of a VLAN tag.
const TAG: usize = 4;
/// Pieces of all frames of a burst: header, snapshot and first segment of each, and all further segments.
const PIECES: usize = 3 * BURST + SEGMENTS;

/// What `recvmmsg` is given for a burst, prepared once. It lies behind the frames' places in a [`ReceiveBuffer`].
#[repr(C)]
pub(super) struct Messages {
    headers: [libc::mmsghdr; BURST],
    pieces: [libc::iovec; BURST],
    control: [Control; BURST],
    /// Length of the virtio-net header that the pieces are laid out for; 0 when they are not prepared at all.
    prepared_for: usize,
}

/// Room for one control message of a `tpacket_auxdata`.
#[repr(C)]
struct Control {
    header: libc::cmsghdr,
    data: libc::tpacket_auxdata,
}

/// Received bursts: what came, and what was lost on the way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Missed {
    /// Frames that came faster than they were read.
    pub overrun: u64,
    /// Frames longer than any port may bring ([`MAX_FRAME`]).
    pub oversize: u64,
}

/// One packet socket bound to a device.
pub(super) struct PacketSocket {
    fd: OwnedFd,
    header_len: usize,
    overrun: AtomicU64,
    oversize: AtomicU64,
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
        let mut socket =
            Self { fd, header_len: NET_HEADER_LEN, overrun: AtomicU64::new(0), oversize: AtomicU64::new(0) };
        let one: c_int = 1;
        if socket.set(libc::PACKET_VNET_HDR_SZ, &(NET_HEADER_LEN as c_int)).is_err() {
            socket.set(libc::PACKET_VNET_HDR, &one)?;
            socket.header_len = LEGACY_NET_HEADER_LEN;
        }
        socket.set(libc::PACKET_AUXDATA, &one)?;
        socket.set(libc::PACKET_IGNORE_OUTGOING, &one)?;
        // The switch keeps no queue of its own and neither shall a queueing discipline that nobody asked for: a full
        // device says so, and the drop is counted where it is seen.
        socket.set(libc::PACKET_QDISC_BYPASS, &one)?;
        setsockopt(&socket.fd, RcvBufForce, &RECEIVE_BUFFER)?;
        setsockopt(&socket.fd, SndBufForce, &SEND_BUFFER)?;

        let mut refuse_all =
            libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: 0 };
        let program = libc::sock_fprog { len: 1, filter: &raw mut refuse_all };
        socket.set_at(libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)?;

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
        socket.set(libc::PACKET_ADD_MEMBERSHIP, &member)?;
        Ok(socket)
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
        first.set(libc::PACKET_FANOUT, &(kind | libc::PACKET_FANOUT_FLAG_UNIQUEID << 16))?;
        let group: c_uint = first.get(libc::PACKET_FANOUT)?;
        for other in others {
            other.set(libc::PACKET_FANOUT, &(kind | (group & 0xffff)))?;
        }
        Ok(())
    }

    /// Begins to receive.
    pub(super) fn listen(&self) -> io::Result<()> {
        self.set_at(libc::SOL_SOCKET, libc::SO_DETACH_FILTER, &0)
    }

    fn set<T>(&self, option: c_int, value: &T) -> io::Result<()> {
        self.set_at(libc::SOL_PACKET, option, value)
    }

    fn set_at<T>(&self, level: c_int, option: c_int, value: &T) -> io::Result<()> {
        // SAFETY: the value is readable for its own length; each caller gives the type that the option reads.
        let done = unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                level,
                option,
                std::ptr::from_ref(value).cast(),
                size_of::<T>() as c_uint,
            )
        };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn get<T: zerocopy::FromZeros + zerocopy::FromBytes>(&self, option: c_int) -> io::Result<T> {
        let mut value = T::new_zeroed();
        let mut len = size_of::<T>() as c_uint;
        // SAFETY: the value is writable for the length that is given, and any bytes are valid for its type.
        let done = unsafe {
            libc::getsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_PACKET,
                option,
                (&raw mut value).cast::<c_void>(),
                &mut len,
            )
        };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
    }

    /// Frames lost before they reached a burst, since the start.
    pub(super) fn missed(&self) -> Missed {
        // `struct tpacket_stats`: packets, drops; reading clears it.
        if let Ok([_, drops]) = self.get::<[u32; 2]>(libc::PACKET_STATISTICS) {
            self.overrun.fetch_add(u64::from(drops), Relaxed);
        }
        Missed { overrun: self.overrun.load(Relaxed), oversize: self.oversize.load(Relaxed) }
    }

    /// Fills the (empty) burst with frames that wait. They lie in `buffer`, so the burst must be cleared before
    /// `buffer` is used again.
    ///
    /// # Safety
    /// `burst` is cleared before `buffer` is used for anything else or dropped.
    pub(super) unsafe fn fill(&self, buffer: &mut ReceiveBuffer, burst: &mut Burst) -> io::Result<()> {
        let start = buffer.start();
        let messages = buffer.messages();
        // SAFETY: `messages` is valid, for zeroes are, and nobody else's while `buffer` is borrowed.
        if unsafe { (*messages).prepared_for } != self.header_len {
            // SAFETY: as above, and `start` is the buffer's.
            unsafe { prepare(messages, start, self.header_len) };
        }
        let got = loop {
            // SAFETY: the headers were prepared: each names its own place in the buffer, within STRIDE, and its own
            // control buffer, all writable and unaliased.
            let got = unsafe {
                libc::recvmmsg(
                    self.fd.as_raw_fd(),
                    (&raw mut (*messages).headers).cast(),
                    BURST as c_uint,
                    libc::MSG_DONTWAIT,
                    std::ptr::null_mut(),
                )
            };
            if got >= 0 {
                break got as usize;
            }
            match nix::errno::Errno::last_raw() {
                // ENETDOWN is told once when the device goes down, in front of what still waits.
                libc::EINTR | libc::ENETDOWN => {}
                // Nothing there; or a frame with offloads that the header cannot express, which is lost.
                libc::EAGAIN | libc::EINVAL => return Ok(()),
                errno => return Err(io::Error::from_raw_os_error(errno)),
            }
        };
        for i in 0..got {
            // SAFETY: `i < BURST`, exclusive as above.
            let (message, control) = unsafe { (&mut (*messages).headers[i], &(*messages).control[i]) };
            let len = (message.msg_len as usize).saturating_sub(self.header_len);
            let truncated = message.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
            let tag = tag_of(message.msg_hdr.msg_controllen, control);
            message.msg_hdr.msg_controllen = size_of::<Control>() as _;
            if truncated {
                self.oversize.fetch_add(1, Relaxed);
                continue;
            }
            // SAFETY: the kernel wrote the virtio-net header right in front of the frame and `len` bytes of frame;
            // in front of that is room for a tag. It all stays until the caller clears the burst.
            let pushed = unsafe {
                let frame = start.add(i * STRIDE + HEADROOM);
                let mut header = [0; NET_HEADER_LEN];
                std::ptr::copy_nonoverlapping(
                    frame.sub(self.header_len),
                    header.as_mut_ptr(),
                    self.header_len,
                );
                let header = NetHeader::from_bytes(&header);
                match tag {
                    Some(tag) if len >= 12 => {
                        let frame = insert_tag(frame, tag);
                        burst.push_raw(shift(header), frame, len + TAG)
                    }
                    _ => burst.push_raw(header, frame, len),
                }
            };
            if !pushed && len > 0 {
                self.oversize.fetch_add(1, Relaxed);
            }
        }
        Ok(())
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
            add(header.as_ptr(), self.header_len);
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

/// Lays the messages out: frame `i` begins at `i * STRIDE + HEADROOM`, its virtio-net header right in front.
///
/// # Safety
/// `messages` is valid and exclusive; `start` is the buffer in front of it.
#[cold]
unsafe fn prepare(messages: *mut Messages, start: *mut u8, header_len: usize) {
    for i in 0..BURST {
        // SAFETY: `i < BURST`; the places lie within the buffer.
        unsafe {
            let piece = &raw mut (*messages).pieces[i];
            (*piece).iov_base = start.add(i * STRIDE + HEADROOM - header_len).cast();
            (*piece).iov_len = header_len + MAX_FRAME;
            let header = &raw mut (*messages).headers[i].msg_hdr;
            (*header).msg_iov = piece;
            (*header).msg_iovlen = 1;
            (*header).msg_control = (&raw mut (*messages).control[i]).cast();
            (*header).msg_controllen = size_of::<Control>() as _;
        }
    }
    // SAFETY: as above.
    unsafe { (*messages).prepared_for = header_len };
}

/// The VLAN tag (TPID, TCI) that the kernel took out of a frame.
#[inline]
fn tag_of(controllen: usize, control: &Control) -> Option<[u8; TAG]> {
    if controllen < size_of::<Control>()
        || control.header.cmsg_level != libc::SOL_PACKET
        || control.header.cmsg_type != libc::PACKET_AUXDATA
    {
        return None;
    }
    let data = &control.data;
    if data.tp_status & libc::TP_STATUS_VLAN_VALID == 0 {
        return None;
    }
    let tpid = if data.tp_status & libc::TP_STATUS_VLAN_TPID_VALID != 0 {
        data.tp_vlan_tpid
    } else {
        libc::ETH_P_8021Q as u16
    };
    let ([a, b], [c, d]) = (tpid.to_be_bytes(), data.tp_vlan_tci.to_be_bytes());
    Some([a, b, c, d])
}

/// Moves the MAC addresses at `frame` forward and puts the tag behind them; returns where the frame begins now.
///
/// # Safety
/// 12 bytes from `frame` on and TAG bytes before it are exclusively ours.
#[inline]
unsafe fn insert_tag(frame: *mut u8, tag: [u8; TAG]) -> *mut u8 {
    // SAFETY: within what the caller vouches for; the regions overlap, hence `copy`.
    unsafe {
        let tagged = frame.sub(TAG);
        std::ptr::copy(frame, tagged, 12);
        std::ptr::copy_nonoverlapping(tag.as_ptr(), tagged.add(12), TAG);
        tagged
    }
}

/// The header of a frame that has become longer by a tag near its start.
#[inline]
fn shift(mut header: NetHeader) -> NetHeader {
    if header.flags & NEEDS_CSUM != 0 {
        header.csum_start = header.csum_start.saturating_add(TAG as u16);
    }
    if header.hdr_len != 0 {
        header.hdr_len = header.hdr_len.saturating_add(TAG as u16);
    }
    header
}
