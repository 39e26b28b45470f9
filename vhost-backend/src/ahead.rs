//! Messages that are handled ahead of the `vhost` crate, which would end the connection on them.
//!
//! SET_VRING_ENABLE before SET_FEATURES is what QEMU says of multiqueue devices, before the guest has even started.
//! SET_LOG_FD belongs to live migration; the crate does not know it.

#![forbid(unsafe_code)]

use std::{
    io::{Error as IoError, ErrorKind, Write},
    os::{fd::AsRawFd, unix::net::UnixStream},
    sync::{Mutex, PoisonError},
};

use nix::sys::socket::{MsgFlags, recv};
use tracing::debug;
use vhost::vhost_user::{Error, message::FrontendReq};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::session::Session;

/// Bytes of a message's header: request, flags, size of what follows.
const HEADER: usize = 12;
/// Bytes of the longest message that is handled here.
const LONGEST: usize = HEADER + 8;
/// Flags: the protocol's version, an answer, and whether one is asked for.
const VERSION: u32 = 1;
const REPLY: u32 = 4;
const NEED_REPLY: u32 = 8;

/// Handles the next message of the connection if it is one of ours. `None` if it is any other, or not all of it is there:
/// then nothing has been read.
pub(crate) fn handle(connection: &mut UnixStream, session: &Mutex<Session>) -> Option<Result<(), Error>> {
    let mut message = [0; LONGEST];
    let peek = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    let got = recv(connection.as_raw_fd(), &mut message, peek).ok()?;
    let word =
        |at: usize| u32::from_ne_bytes([message[at], message[at + 1], message[at + 2], message[at + 3]]);
    let [request, flags, size, index, enable] = [0, 4, 8, 12, 16].map(word);
    if got < HEADER || flags & (3 | REPLY) != VERSION {
        return None;
    }
    // A panic of the session's would have ended its thread, which is this one.
    let mut session = session.lock().unwrap_or_else(PoisonError::into_inner);
    let is_enable = request == FrontendReq::SET_VRING_ENABLE as u32
        && !session.protocol_features_negotiated()
        && (got, size) == (LONGEST, 8)
        && enable <= 1;
    let is_log_fd = request == FrontendReq::SET_LOG_FD as u32 && size == 0;
    if !is_enable && !is_log_fd {
        return None;
    }
    let len = HEADER + size as usize;
    let file = match connection.recv_with_fd(&mut message[..len]) {
        Ok((read, file)) if read == len => file,
        Ok(_) => return Some(Err(Error::SocketError(IoError::from(ErrorKind::UnexpectedEof)))),
        Err(e) => return Some(Err(Error::SocketError(e.into()))),
    };
    let result = if is_enable {
        debug!(index, enable, "SET_VRING_ENABLE before SET_FEATURES");
        session.enable(index, enable == 1)
    } else {
        session.set_log_fd(file)
    };
    if flags & NEED_REPLY != 0 && session.replies() {
        let status = u32::from(result.is_err());
        let answer = [request, VERSION | REPLY, 8, status, 0].map(u32::to_ne_bytes).concat();
        if let Err(e) = connection.write_all(&answer) {
            return Some(Err(Error::SocketError(e)));
        }
    }
    Some(result)
}
