//! vhost-user messages as bytes, right or wrong (the specification's "Message Specification").

use std::io::{IoSlice, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

/// How long the switch may take for an answer.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Numbers of requests.
#[allow(missing_docs)]
pub mod request {
    pub const GET_FEATURES: u32 = 1;
    pub const SET_FEATURES: u32 = 2;
    pub const SET_OWNER: u32 = 3;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const SET_VRING_BASE: u32 = 10;
    pub const GET_VRING_BASE: u32 = 11;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const SET_VRING_ERR: u32 = 14;
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    pub const SET_VRING_ENABLE: u32 = 18;
    pub const GET_MAX_MEM_SLOTS: u32 = 36;
    pub const ADD_MEM_REG: u32 = 37;
    pub const REM_MEM_REG: u32 = 38;
}

const VERSION: u32 = 1;
const NEED_REPLY: u32 = 8;
const HEADER: usize = 12;

/// Little-endian words, one behind the other.
pub fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// One message with its header; `flags` beside the version.
pub fn message(request: u32, flags: u32, body: &[u8]) -> Vec<u8> {
    let header = [request, VERSION | flags, body.len() as u32].map(u32::to_le_bytes).concat();
    [header, body.to_vec()].concat()
}

/// A connection to a port.
pub struct Wire {
    stream: UnixStream,
    /// Whether every request is answered (REPLY_ACK).
    pub acks: bool,
}

impl Wire {
    /// Connects to the port that listens at `path`.
    pub fn connect(path: &Path) -> Result<Self, String> {
        let stream = UnixStream::connect(path).map_err(|e| format!("{}: {e}", path.display()))?;
        for limit in [UnixStream::set_read_timeout, UnixStream::set_write_timeout] {
            limit(&stream, Some(PATIENCE)).map_err(|e| e.to_string())?;
        }
        Ok(Self { stream, acks: false })
    }

    /// Sends bytes, and descriptors with the first of them.
    pub fn send(&self, bytes: &[u8], fds: &[RawFd]) -> Result<(), String> {
        let control = if fds.is_empty() { vec![] } else { vec![ControlMessage::ScmRights(fds)] };
        let sent = sendmsg::<()>(
            self.stream.as_raw_fd(),
            &[IoSlice::new(bytes)],
            &control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )
        .map_err(|e| format!("sendmsg: {e}"))?;
        (&self.stream).write_all(&bytes[sent..]).map_err(|e| format!("send: {e}"))
    }

    /// Sends a request; if requests are answered, waits for its answer. An error if the switch refuses.
    pub fn request(&self, request: u32, body: &[u8], fds: &[RawFd]) -> Result<(), String> {
        self.send(&message(request, if self.acks { NEED_REPLY } else { 0 }, body), fds)?;
        if self.acks {
            match self.answer(request)? {
                0 => {}
                status => return Err(format!("request {request} was refused with {status}")),
            }
        }
        Ok(())
    }

    /// Sends a request that has an answer of its own, and returns its first word of 64 bits.
    pub fn ask(&self, request: u32, body: &[u8]) -> Result<u64, String> {
        self.send(&message(request, 0, body), &[])?;
        self.answer(request)
    }

    fn answer(&self, request: u32) -> Result<u64, String> {
        let mut header = [0; HEADER];
        (&self.stream).read_exact(&mut header).map_err(|e| format!("answer to request {request}: {e}"))?;
        let word =
            |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let mut body = vec![0; word(8) as usize];
        (&self.stream).read_exact(&mut body).map_err(|e| format!("answer to request {request}: {e}"))?;
        if word(0) != request {
            return Err(format!("the answer to request {request} is one to {}", word(0)));
        }
        let mut first = [0; 8];
        first.copy_from_slice(body.get(..8).ok_or("a short answer")?);
        Ok(u64::from_le_bytes(first))
    }

    /// Whether the switch hangs up before long.
    pub fn is_hung_up(&self) -> bool {
        let mut rest = Vec::new();
        match (&self.stream).read_to_end(&mut rest) {
            Ok(_) => true,
            Err(e) => e.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }

    /// Says that nothing more will come.
    pub fn finish(&self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
    }

    /// The connection itself.
    pub fn fd(&self) -> BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.stream)
    }
}
