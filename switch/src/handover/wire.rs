//! The bytes of a hand-over: messages with a kind, a length and descriptors, over a Unix socket.
//!
//! A message begins with a header of 16 bytes: the word `SHUH`, the kind (16 bits), zeros (16 bits), the payload's
//! length and the number of descriptors (32 bits each), little-endian. The kernel passes at most 253 descriptors with
//! one piece of data, so those of a message come before it, in messages of kind 0 without payload. Kinds and lengths are
//! checked before anything is believed, and nobody waits beyond a deadline.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use vhost_backend::handover::Descriptors;

const MAGIC: [u8; 4] = *b"SHUH";
const HEADER: usize = 16;
/// Kind of what only carries descriptors.
const CARRIER: u16 = 0;
/// Descriptors in one piece of data: `SCM_MAX_FD` is 253.
const AT_ONCE: usize = 250;
/// Longest payload of a message.
pub const PAYLOAD_MAX: usize = 64 << 20;
/// Most descriptors of a message: a port of 128 queue pairs with 509 pieces of memory has some 1300.
pub const DESCRIPTORS_MAX: usize = 4096;

/// Why a message did not come, or go.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The other side is gone.
    #[error("the other process has ended")]
    Closed,
    /// It says nothing.
    #[error("the other process did not answer in time")]
    Late,
    /// What came is no message.
    #[error("what came is no message of a hand-over: {0}")]
    Nonsense(&'static str),
    /// The kernel refused.
    #[error("hand-over socket: {0}")]
    System(#[from] io::Error),
}

/// A message as it came.
#[derive(Debug)]
pub struct Message {
    /// Its kind.
    pub kind: u16,
    /// What it says.
    pub payload: Vec<u8>,
    /// What came with it.
    pub descriptors: Descriptors,
}

/// One end of the socket.
#[derive(Debug)]
pub struct Wire(UnixStream);

struct Header {
    kind: u16,
    len: usize,
    descriptors: usize,
}

impl Header {
    fn bytes(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&self.kind.to_le_bytes());
        bytes[8..12].copy_from_slice(&(self.len as u32).to_le_bytes());
        bytes[12..].copy_from_slice(&(self.descriptors as u32).to_le_bytes());
        bytes
    }

    fn parse(bytes: &[u8; HEADER]) -> Result<Self, WireError> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        if bytes[..4] != MAGIC || bytes[6..8] != [0; 2] {
            return Err(WireError::Nonsense("it does not begin as one"));
        }
        let header = Self {
            kind: u16::from_le_bytes([bytes[4], bytes[5]]),
            len: word(8) as usize,
            descriptors: word(12) as usize,
        };
        if header.len > PAYLOAD_MAX || header.descriptors > DESCRIPTORS_MAX {
            return Err(WireError::Nonsense("it is too long"));
        }
        Ok(header)
    }
}

/// What is left until `deadline`, as a time limit of a socket.
fn left(deadline: Instant) -> Result<Option<Duration>, WireError> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(WireError::Late) } else { Ok(Some(left)) }
}

fn failed(error: io::Error) -> WireError {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => WireError::Late,
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof => WireError::Closed,
        _ => error.into(),
    }
}

impl Wire {
    /// Over a connected stream.
    pub fn new(stream: UnixStream) -> Self {
        Self(stream)
    }

    /// The socket.
    pub fn stream(&self) -> &UnixStream {
        &self.0
    }

    /// Sends a message.
    ///
    /// # Errors
    /// The other side is gone, takes nothing until `deadline`, or the message is too long.
    pub fn send(
        &self,
        kind: u16,
        payload: &[u8],
        descriptors: &[OwnedFd],
        deadline: Instant,
    ) -> Result<(), WireError> {
        if payload.len() > PAYLOAD_MAX || descriptors.len() > DESCRIPTORS_MAX {
            return Err(WireError::Nonsense("it is too long"));
        }
        self.0.set_write_timeout(left(deadline)?)?;
        for some in descriptors.chunks(AT_ONCE) {
            let header = Header { kind: CARRIER, len: 0, descriptors: some.len() }.bytes();
            let raw: Vec<_> = some.iter().map(AsRawFd::as_raw_fd).collect();
            let control = [ControlMessage::ScmRights(&raw)];
            let flags = MsgFlags::MSG_NOSIGNAL;
            let sent = loop {
                match sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(&header)], &control, flags, None) {
                    Err(Errno::EINTR) => continue,
                    sent => break sent.map_err(|e| failed(e.into()))?,
                }
            };
            // The descriptors went with the first byte.
            self.write(&header[sent..])?;
        }
        let header = Header { kind, len: payload.len(), descriptors: descriptors.len() };
        self.write(&header.bytes())?;
        self.write(payload)
    }

    fn write(&self, bytes: &[u8]) -> Result<(), WireError> {
        (&self.0).write_all(bytes).map_err(failed)
    }

    /// Receives a message.
    ///
    /// # Errors
    /// The other side is gone, says nothing until `deadline`, or what came is no message.
    pub fn receive(&self, deadline: Instant) -> Result<Message, WireError> {
        let mut received = Vec::new();
        loop {
            let mut bytes = [0; HEADER];
            let before = received.len();
            let mut got = 0;
            while got < HEADER {
                self.0.set_read_timeout(left(deadline)?)?;
                match self.receive_some(&mut bytes[got..], &mut received)? {
                    0 => return Err(WireError::Closed),
                    some => got += some,
                }
                if received.len() > DESCRIPTORS_MAX {
                    return Err(WireError::Nonsense("too many descriptors"));
                }
            }
            let header = Header::parse(&bytes)?;
            if header.kind == CARRIER {
                if header.len != 0 || header.descriptors != received.len() - before {
                    return Err(WireError::Nonsense("descriptors got lost"));
                }
                continue;
            }
            if header.descriptors != received.len() {
                return Err(WireError::Nonsense("descriptors got lost"));
            }
            let mut payload = Vec::new();
            self.0.set_read_timeout(left(deadline)?)?;
            let read = (&self.0).take(header.len as u64).read_to_end(&mut payload).map_err(failed)?;
            if read < header.len {
                return Err(WireError::Closed);
            }
            return Ok(Message { kind: header.kind, payload, descriptors: Descriptors::new(received) });
        }
    }

    /// Waits until the other side is gone; false if it is not by `deadline`.
    pub fn wait_for_end(&self, deadline: Instant) -> bool {
        loop {
            let waited = left(deadline).and_then(|left| Ok(self.0.set_read_timeout(left)?));
            if waited.is_err() {
                return false;
            }
            match (&self.0).read(&mut [0; 64]) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(e) => {
                    if let WireError::Closed = failed(e) {
                        return true;
                    }
                }
            }
        }
    }

    /// Reads bytes, and owns the descriptors that came with them.
    fn receive_some(&self, bytes: &mut [u8], to: &mut Vec<OwnedFd>) -> Result<usize, WireError> {
        let mut control = nix::cmsg_space!([std::os::fd::RawFd; 253]);
        let mut slices = [IoSliceMut::new(bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = match recvmsg::<()>(self.0.as_raw_fd(), &mut slices, Some(&mut control), flags) {
            Err(Errno::EINTR) => return self.receive_some(bytes, to),
            message => message.map_err(|e| failed(e.into()))?,
        };
        let cut = message.flags.contains(MsgFlags::MSG_CTRUNC);
        for control in message.cmsgs().map_err(|_| WireError::Nonsense("descriptors got lost"))? {
            if let ControlMessageOwned::ScmRights(descriptors) = control {
                // SAFETY: the kernel has just made these descriptors for us, and nobody else knows of them.
                to.extend(descriptors.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        if cut { Err(WireError::Nonsense("descriptors got lost")) } else { Ok(message.bytes) }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Seek, Write};

    use proptest::prelude::*;

    use super::*;

    fn pair() -> (Wire, Wire) {
        let (a, b) = UnixStream::pair().unwrap();
        (Wire::new(a), Wire::new(b))
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[test]
    fn messages_and_descriptors_arrive_as_they_were_sent() {
        let (a, b) = pair();
        let files: Vec<OwnedFd> = (0..600u32)
            .map(|n| {
                let mut file = tempfile::tempfile().unwrap();
                file.write_all(&n.to_ne_bytes()).unwrap();
                file.into()
            })
            .collect();
        let payload = vec![7; 1 << 20];
        std::thread::scope(|scope| {
            scope.spawn(|| {
                a.send(3, b"first", &[], soon()).unwrap();
                a.send(4, &payload, &files, soon()).unwrap();
                a.send(5, b"", &files[..1], soon()).unwrap();
            });
            assert_eq!(b.receive(soon()).unwrap().payload, b"first");
            let message = b.receive(soon()).unwrap();
            assert_eq!((message.kind, message.payload == payload), (4, true));
            let received = message.descriptors.into_vec();
            assert_eq!(received.len(), 600);
            for (n, file) in (0u32..).zip(received) {
                let mut file = File::from(file);
                let mut bytes = [0; 4];
                file.rewind().unwrap();
                file.read_exact(&mut bytes).unwrap();
                assert_eq!(u32::from_ne_bytes(bytes), n);
            }
            assert_eq!(b.receive(soon()).unwrap().descriptors.len(), 1);
        });
        drop(a);
        assert!(matches!(b.receive(soon()), Err(WireError::Closed)));
        assert!(b.wait_for_end(soon()));
    }

    #[test]
    fn nobody_waits_for_ever() {
        let (a, b) = pair();
        let soon = Instant::now() + Duration::from_millis(20);
        assert!(matches!(b.receive(soon), Err(WireError::Late)));
        a.stream().write_all(b"SHU").unwrap();
        let soon = Instant::now() + Duration::from_millis(20);
        assert!(matches!(b.receive(soon), Err(WireError::Late)));
        let soon = Instant::now() + Duration::from_millis(20);
        assert!(matches!(a.send(1, &vec![0; 8 << 20], &[], soon), Err(WireError::Late)));
        assert!(!b.wait_for_end(Instant::now() + Duration::from_millis(20)));
    }

    #[test]
    fn what_is_too_long_or_cut_off_is_refused() {
        for (bytes, expected) in [
            (&b"SHUX\x01\0\0\0\0\0\0\0\0\0\0\0"[..], "does not begin"),
            (b"SHUH\x01\0\x01\0\0\0\0\0\0\0\0\0", "does not begin"),
            (b"SHUH\x01\0\0\0\xff\xff\xff\xff\0\0\0\0", "too long"),
            (b"SHUH\x01\0\0\0\0\0\0\0\xff\0\0\xff", "too long"),
            (b"SHUH\x01\0\0\0\0\0\0\0\x01\0\0\0", "got lost"),
            (b"SHUH\0\0\0\0\x01\0\0\0\0\0\0\0", "got lost"),
            (b"SHUH\x01\0\0\0\x09\0\0\0\0\0\0\0half", "has ended"),
            (b"SHUH", "has ended"),
        ] {
            let (a, b) = pair();
            a.stream().write_all(bytes).unwrap();
            drop(a);
            let text = b.receive(soon()).unwrap_err().to_string();
            assert!(text.contains(expected), "{text}");
        }
    }

    proptest! {
        #[test]
        fn noise_is_no_message(bytes in proptest::collection::vec(any::<u8>(), 0..200), good in any::<bool>()) {
            let (a, b) = pair();
            let mut bytes = bytes;
            if good && bytes.len() >= 4 {
                bytes[..4].copy_from_slice(&MAGIC);
            }
            a.stream().write_all(&bytes).unwrap();
            drop(a);
            let _ = b.receive(soon());
        }
    }
}
