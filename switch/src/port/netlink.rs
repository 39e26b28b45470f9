//! Just enough of rtnetlink (rtnetlink(7)) for blocking questions about devices, addresses and routes.
//!
//! Objects are kept as the raw messages that the kernel sent: what is taken off a device is put back with every
//! attribute it had, also those that this code has never heard of, as `ip address save` and `restore` do.
#![forbid(unsafe_code)]

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use nix::{
    libc,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
    },
};

/// A message is at most this long; the kernel fills dumps in pieces of 32 KiB or less.
const BUFFER: usize = 64 << 10;
const HEADER: usize = 16;

/// A routing netlink socket; it belongs for ever to the namespace of the thread that opened it.
pub(super) struct Netlink {
    fd: OwnedFd,
    seq: u32,
    buffer: Vec<u8>,
}

/// One message, without its header.
pub(super) struct Message<'a> {
    /// `RTM_` type.
    pub(super) kind: u16,
    /// The fixed structure of the type, followed by the attributes.
    pub(super) body: &'a [u8],
}

impl Netlink {
    /// A socket in the namespace of this thread, subscribed to `groups` (`RTMGRP_` bits; 0 for questions).
    pub(super) fn open(groups: u32) -> io::Result<Self> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        Ok(Self { fd, seq: 0, buffer: vec![0; BUFFER] })
    }

    /// Sends `request` and waits for the kernel's yes or no.
    pub(super) fn change(&mut self, request: Request) -> io::Result<()> {
        self.transact(request, libc::NLM_F_ACK as u16, &mut |_| ())
    }

    /// Sends `request` for a single object or (`NLM_F_DUMP` in its flags) all of them; each goes to `each`.
    pub(super) fn query(&mut self, request: Request, each: &mut dyn FnMut(Message<'_>)) -> io::Result<()> {
        self.transact(request, libc::NLM_F_ACK as u16, each)
    }

    fn transact(
        &mut self,
        mut request: Request,
        flags: u16,
        each: &mut dyn FnMut(Message<'_>),
    ) -> io::Result<()> {
        self.seq = self.seq.wrapping_add(1);
        let seq = self.seq;
        let bytes = request.finish(seq, flags);
        send(self.fd.as_raw_fd(), bytes, MsgFlags::empty())?;
        loop {
            let len = match recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Err(nix::Error::EINTR) => continue,
                other => other?,
            };
            let mut done = None;
            each_message(&self.buffer[..len], |kind, message_seq, body| {
                if message_seq != seq || done.is_some() {
                    return;
                }
                match i32::from(kind) {
                    libc::NLMSG_ERROR | libc::NLMSG_DONE => {
                        let errno = body.first_chunk().map_or(0, |b| -i32::from_ne_bytes(*b));
                        done = Some(errno);
                    }
                    libc::NLMSG_NOOP => {}
                    _ => each(Message { kind, body }),
                }
            });
            match done {
                Some(0) => return Ok(()),
                Some(errno) => return Err(io::Error::from_raw_os_error(errno)),
                None => {}
            }
        }
    }

    /// Reads what is waiting on a subscribed socket, without blocking. False when nothing was there.
    pub(super) fn read(&mut self, each: &mut dyn FnMut(Message<'_>)) -> io::Result<bool> {
        let len = match recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_DONTWAIT) {
            Err(nix::Error::EAGAIN | nix::Error::EINTR) => return Ok(false),
            other => other?,
        };
        each_message(&self.buffer[..len], |kind, _, body| each(Message { kind, body }));
        Ok(true)
    }
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_ne_bytes(*b))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|b| u16::from_ne_bytes(*b))
}

fn each_message(mut bytes: &[u8], mut f: impl FnMut(u16, u32, &[u8])) {
    while let (Some(len), Some(kind), Some(seq)) = (word(bytes, 0), half(bytes, 4), word(bytes, 8)) {
        let len = len as usize;
        let Some(body) = bytes.get(HEADER..len) else { return };
        f(kind, seq, body);
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
}

/// The attributes in `bytes`: (type without its flag bits, value).
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let (len, kind) = (usize::from(half(rest, 0)?), half(rest, 2)?);
        let value = rest.get(4..len)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & 0x3fff, value))
    })
}

/// The attribute `kind` in `bytes`.
pub(super) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(k, _)| *k == kind).map(|(_, value)| value)
}

/// A value of 32 bits in host order.
pub(super) fn u32_value(value: &[u8]) -> Option<u32> {
    word(value, 0)
}

/// A message under construction.
pub(super) struct Request {
    bytes: Vec<u8>,
}

impl Request {
    /// A message of type `kind` (`RTM_`) with `flags` (`NLM_F_`, beside REQUEST) and the fixed structure `fixed`,
    /// perhaps already followed by attributes.
    pub(super) fn new(kind: u16, flags: i32, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags as u16 | libc::NLM_F_REQUEST as u16).to_ne_bytes());
        bytes.extend_from_slice(fixed);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        Self { bytes }
    }

    /// Appends an attribute.
    pub(super) fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        self.bytes.extend_from_slice(&(value.len() as u16 + 4).to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    /// Appends an attribute that holds the attributes which `fill` appends.
    pub(super) fn nested(mut self, kind: u16, fill: impl FnOnce(Self) -> Self) -> Self {
        let at = self.bytes.len();
        self = fill(self.attribute(kind, &[]));
        let len = (self.bytes.len() - at) as u16;
        self.bytes[at..at + 2].copy_from_slice(&len.to_ne_bytes());
        self
    }

    fn finish(&mut self, seq: u32, flags: u16) -> &[u8] {
        let len = self.bytes.len() as u32;
        self.bytes[..4].copy_from_slice(&len.to_ne_bytes());
        let all = half(&self.bytes, 6).unwrap_or_default() | flags;
        self.bytes[6..8].copy_from_slice(&all.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&seq.to_ne_bytes());
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_attributes_survive_truncation() {
        let mut request =
            Request::new(16, 0, &[7; 16]).attribute(3, b"eth0\0").nested(18, |r| r.attribute(1, b"tun"));
        let bytes = request.finish(9, 0).to_vec();
        let mut seen = 0;
        each_message(&bytes, |kind, seq, body| {
            assert_eq!((kind, seq), (16, 9));
            assert_eq!(attribute(&body[16..], 3), Some(&b"eth0\0"[..]));
            assert_eq!(attribute(attribute(&body[16..], 18).unwrap(), 1), Some(&b"tun"[..]));
            seen += 1;
        });
        assert_eq!(seen, 1);
        for cut in 0..bytes.len() {
            each_message(&bytes[..cut], |_, _, _| panic!("a message that is cut short is none"));
            assert!(attributes(&bytes[..cut]).count() < 64);
        }
    }
}
