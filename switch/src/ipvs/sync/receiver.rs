//! The thread of a backup: takes messages from its socket and hands on what they hold.
#![forbid(unsafe_code)]

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::sync::Arc;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;

use super::daemons::{Adopted, Connections, Counters};
use super::message::{Fault, Message};
use super::spec::DaemonConfig;

/// Messages taken before it is looked whether to stop.
const AT_ONCE: usize = 64;

pub(super) struct Receiver {
    socket: UdpSocket,
    connections: Arc<dyn Connections>,
    counters: Arc<Counters>,
    stop: Arc<EventFd>,
    sync_id: u8,
    /// As long as a message may be, and a byte to see that one is longer.
    buffer: Vec<u8>,
}

impl Receiver {
    pub(super) fn new(
        config: &DaemonConfig,
        socket: UdpSocket,
        connections: Arc<dyn Connections>,
        counters: Arc<Counters>,
        stop: Arc<EventFd>,
    ) -> Self {
        let buffer = vec![0; usize::from(config.max_length) + 1];
        Self { socket, connections, counters, stop, sync_id: config.sync_id, buffer }
    }

    /// Until it is stopped.
    pub(super) fn run(mut self) {
        loop {
            let mut waits = [
                PollFd::new(self.stop.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.socket.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut waits, PollTimeout::NONE) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(error) => {
                    tracing::error!("the backup daemon hears no more: poll: {error}");
                    return;
                }
            }
            if waits[0].any().unwrap_or(false) {
                return;
            }
            for _ in 0..AT_ONCE {
                match self.socket.recv(&mut self.buffer) {
                    Ok(length) => self.take(length),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    // Errors of the interface are reported once, and over then.
                    Err(_) => {}
                }
            }
        }
    }

    fn take(&self, length: usize) {
        let counters = &self.counters;
        let bytes = &self.buffer[..length];
        let message = match Message::parse(bytes) {
            Ok(message) if length < self.buffer.len() => message,
            _ => return counters.malformed.add(1),
        };
        if self.sync_id != 0 && message.sync_id() != self.sync_id {
            return counters.foreign.add(1);
        }
        counters.messages.add(1);
        for connection in message.connections() {
            match connection {
                Ok(connection) => {
                    counters.connections.add(1);
                    if self.connections.adopt(connection) == Adopted::Refused {
                        counters.refused.add(1);
                    }
                }
                Err(Fault::Unknown) => counters.unknown.add(1),
                Err(Fault::Malformed(_)) => counters.malformed.add(1),
            }
        }
    }
}
