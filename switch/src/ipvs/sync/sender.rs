//! The thread of a master: looks at all connections some times a second and tells of those that are due.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::io::ErrorKind;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;

use super::daemons::{Connections, Counters};
use super::message::{Encoder, SyncConnection};
use super::spec::DaemonConfig;
use super::timing::Told;

/// Between the beginnings of two looks; if they take long, half of the time is left to others. Linux keeps what it tells for up to two seconds.
const LOOK: Duration = Duration::from_millis(250);
/// How long the network is waited for, before a message is lost.
const PATIENCE: Duration = Duration::from_millis(500);

/// Identities are hashes already.
#[derive(Default)]
struct Known(u64);

impl Hasher for Known {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }
    fn write_u64(&mut self, id: u64) {
        self.0 = id;
    }
}

pub(super) struct Sender {
    socket: UdpSocket,
    connections: Arc<dyn Connections>,
    counters: Arc<Counters>,
    stop: Arc<EventFd>,
    encoder: Encoder,
    told: HashMap<u64, Told, BuildHasherDefault<Known>>,
    round: u32,
}

impl Sender {
    pub(super) fn new(
        config: &DaemonConfig,
        socket: UdpSocket,
        connections: Arc<dyn Connections>,
        counters: Arc<Counters>,
        stop: Arc<EventFd>,
    ) -> Self {
        let encoder = Encoder::new(config.sync_id, usize::from(config.max_length));
        Self { socket, connections, counters, stop, encoder, told: HashMap::default(), round: 0 }
    }

    /// Until it is stopped.
    pub(super) fn run(mut self) {
        let mut pause = LOOK;
        while !stopped(&self.stop, pause) {
            let began = Instant::now();
            self.look();
            let took = began.elapsed();
            pause = LOOK.saturating_sub(took).max(took);
        }
    }

    /// Tells of all that is due.
    fn look(&mut self) {
        self.round = self.round.wrapping_add(1);
        let (settings, now) = (self.connections.settings(), crate::clock::seconds());
        let Self { socket, encoder, told, counters, stop, round, .. } = self;
        let mut outlet = Outlet { socket, encoder, counters, stop };
        // Nobody waits for the network with a place in the tables held.
        let due = RefCell::new(Vec::new());
        self.connections.walk(
            &mut |look, describe| {
                let memory = told.entry(look.id).or_default();
                memory.round = *round;
                if memory.is_due(&settings, look, now)
                    && let Some(connection) = describe()
                {
                    due.borrow_mut().push(connection);
                }
            },
            &mut || due.borrow_mut().drain(..).for_each(|connection| outlet.tell(&connection)),
        );
        due.into_inner().into_iter().for_each(|connection| outlet.tell(&connection));
        outlet.flush();
        told.retain(|_, told| told.round == *round);
        if told.capacity() > 4 * told.len() + 1024 {
            told.shrink_to_fit();
        }
    }
}

struct Outlet<'a> {
    socket: &'a UdpSocket,
    encoder: &'a mut Encoder,
    counters: &'a Counters,
    stop: &'a EventFd,
}

impl Outlet<'_> {
    fn tell(&mut self, connection: &SyncConnection) {
        if !self.encoder.push(connection) {
            self.flush();
            if !self.encoder.push(connection) {
                self.counters.unknown.add(1);
                return;
            }
        }
        self.counters.connections.add(1);
    }

    fn flush(&mut self) {
        if self.encoder.is_empty() {
            return;
        }
        match self.send() {
            true => self.counters.messages.add(1),
            false => self.counters.lost.add(1),
        }
        self.encoder.clear();
    }

    /// Whether the network took it.
    fn send(&self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        let mut refused = false;
        loop {
            match self.socket.send(self.encoder.message()) {
                Ok(_) => return true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // That is what an earlier message met: nobody listens (yet) at the other director.
                Err(error) if error.kind() == ErrorKind::ConnectionRefused && !refused => refused = true,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() || !writable(self.socket, self.stop, left) {
                        return false;
                    }
                }
                // The interface is down, or has no address: the next look tries again.
                Err(_) => return false,
            }
        }
    }
}

fn milliseconds(time: Duration) -> PollTimeout {
    PollTimeout::try_from(time.as_millis()).unwrap_or(PollTimeout::MAX)
}

/// Waits for the stop.
fn stopped(stop: &EventFd, time: Duration) -> bool {
    let mut waits = [PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
    poll(&mut waits, milliseconds(time)).is_ok_and(|ready| ready > 0)
}

/// Waits until something can be sent; false if it is to stop before.
fn writable(socket: &UdpSocket, stop: &EventFd, time: Duration) -> bool {
    let mut waits =
        [PollFd::new(stop.as_fd(), PollFlags::POLLIN), PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    let _ = poll(&mut waits, milliseconds(time));
    !waits[0].any().unwrap_or(false)
}
