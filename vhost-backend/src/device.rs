//! A vhost-user port's device side: its socket, its control thread, and the rings that workers use.
//!
//! Each port has one thread, which sleeps in `poll` but for the moments when its frontend says something. Reading a
//! message blocks, so a frontend that sends half of one stops only this thread, and [`Device::stop`] frees it by
//! shutting the connection down. One frontend is served at a time. When it leaves, for whatever reason, the rings
//! stop and the guest's memory is let go, and the port waits for the next one.

#![forbid(unsafe_code)]

mod handover;
mod turn;

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tracing::info;
use vhost::vhost_user::{BackendReqHandler, Error};

use crate::{
    ahead,
    ring::RingCell,
    session::{Handler, Session},
    shared::Shared,
    sigbus,
    socket::{self, Listener},
};
use handover::Resumed;
use turn::{Serving, Turn};

/// Most queue pairs of a port: vring indexes have eight bits in some messages.
pub const MAX_QUEUE_PAIRS: u16 = 128;
/// The control thread only passes on what it reads.
const STACK: usize = 256 << 10;
const FIRST_DELAY: Duration = Duration::from_millis(10);
const LAST_DELAY: Duration = Duration::from_secs(1);

/// Who makes the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// We listen and the VMM connects.
    Server,
    /// The VMM listens and we connect, again and again until it is there.
    Client,
}

/// What a port is made of.
#[derive(Clone, Debug)]
pub struct DeviceConfig {
    /// The port's name, for messages and as the thread's name.
    pub name: String,
    /// The socket: absolute, at most 107 bytes.
    pub path: PathBuf,
    /// Who makes it.
    pub role: Role,
    /// Receive and transmit queue pairs that a guest may use, 1 to [`MAX_QUEUE_PAIRS`].
    pub queue_pairs: u16,
}

/// How a port is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// No frontend is connected, and the last one, if there was one, left in peace.
    Connecting,
    /// A frontend is connected, but the guest uses no queue pair.
    Down,
    /// At least one queue pair is in use.
    Up,
    /// The guest or its frontend broke a ring, took memory away, or was hung up on for what it said; the port carries
    /// nothing until they start anew.
    Broken,
}

/// Why a port cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// Relative paths depend on where the daemon was started.
    #[error("socket path {} is not absolute", .0.display())]
    RelativePath(PathBuf),
    /// Longer than the kernel takes.
    #[error("socket path {} has {len} bytes; at most 107 are possible", .path.display())]
    LongPath {
        /// The path.
        path: PathBuf,
        /// Its bytes.
        len: usize,
    },
    /// The directory is missing.
    #[error("cannot make socket {}: there is no directory {}", .path.display(), .directory.display())]
    NoDirectory {
        /// The path.
        path: PathBuf,
        /// The part of it that is missing.
        directory: PathBuf,
    },
    /// Something else is there, and it may be precious.
    #[error("{} exists and is not a socket; remove it or choose another path", .0.display())]
    NotASocket(PathBuf),
    /// Somebody listens there.
    #[error("socket {} is in use by a running process", .0.display())]
    InUse(PathBuf),
    /// The kernel refused.
    #[error("cannot {what} socket {}: {source}", .path.display())]
    Socket {
        /// The path.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// Too few or too many queue pairs.
    #[error("{0} queue pairs are not possible; choose 1 to {MAX_QUEUE_PAIRS}")]
    QueuePairs(u16),
    /// No thread, no event descriptor, or no signal handler.
    #[error("cannot start the control thread: {0}")]
    Thread(io::Error),
}

/// A port's device side. It stops when it is dropped.
pub struct Device {
    shared: Arc<Shared>,
    turn: Arc<Turn>,
    /// Another descriptor of the listening socket.
    listening: Option<UnixListener>,
    wake: UnixStream,
    thread: Mutex<Option<JoinHandle<()>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Device {
    /// Makes the port's socket (in the server role) and starts its control thread. `changed` is called after every
    /// change of a ring or of [`Device::state`], from the control thread; it must not block and not stop the device.
    ///
    /// # Errors
    /// [`DeviceError`]; nothing is left behind then.
    pub fn start(
        config: DeviceConfig,
        changed: Arc<dyn Fn() + Send + Sync>,
    ) -> Result<Arc<Self>, DeviceError> {
        if config.queue_pairs == 0 || config.queue_pairs > MAX_QUEUE_PAIRS {
            return Err(DeviceError::QueuePairs(config.queue_pairs));
        }
        sigbus::install().map_err(DeviceError::Thread)?;
        let listener = match config.role {
            Role::Server => Some(Listener::bind(&config.path)?),
            Role::Client => {
                socket::check_path(&config.path)?;
                None
            }
        };
        let shared = Arc::new(Shared::new(config.queue_pairs, changed));
        shared.waiting(expecting(&config), false);
        Self::spawn(config, listener, shared, Arc::default(), None).map_err(DeviceError::Thread)
    }

    /// Starts the control thread, which begins with what was `resumed`, if anything.
    fn spawn(
        config: DeviceConfig,
        listener: Option<Listener>,
        shared: Arc<Shared>,
        turn: Arc<Turn>,
        resumed: Option<Resumed>,
    ) -> io::Result<Arc<Self>> {
        // Its end is what wakes: it cannot be missed, and stays.
        let (wake, woken) = UnixStream::pair()?;
        let listening = listener.as_ref().map(Listener::try_clone).transpose()?;
        let thread_name = config.name.replace('\0', "");
        let port = Port { config, listener, shared: shared.clone(), turn: turn.clone(), woken };
        let thread =
            thread::Builder::new().name(thread_name).stack_size(STACK).spawn(move || port.run(resumed))?;
        Ok(Arc::new(Self { shared, turn, listening, wake, thread: Mutex::new(Some(thread)) }))
    }

    /// A device without socket and thread, and what serves its connections on the caller's thread: for tests that must
    /// know what happens when. Of `config` only the name and the number of queue pairs count.
    ///
    /// # Errors
    /// As for [`Device::start`].
    pub fn attended(
        config: DeviceConfig,
        changed: Arc<dyn Fn() + Send + Sync>,
    ) -> Result<(Self, Attendant), DeviceError> {
        if config.queue_pairs == 0 || config.queue_pairs > MAX_QUEUE_PAIRS {
            return Err(DeviceError::QueuePairs(config.queue_pairs));
        }
        sigbus::install().map_err(DeviceError::Thread)?;
        let (wake, woken) = UnixStream::pair().map_err(DeviceError::Thread)?;
        let shared = Arc::new(Shared::new(config.queue_pairs, changed));
        let turn = Arc::<Turn>::default();
        let port = Port { config, listener: None, shared: shared.clone(), turn: turn.clone(), woken };
        Ok((Self { shared, turn, listening: None, wake, thread: Mutex::new(None) }, Attendant(port)))
    }

    /// Queue pairs that a guest may use.
    pub fn queue_pairs(&self) -> usize {
        self.shared.rings().len() / 2
    }

    /// The guest's transmit queue of a pair (vring 2i+1).
    ///
    /// # Panics
    /// This and the next: if `pair` is not below [`Device::queue_pairs`].
    #[inline]
    pub fn from_guest(&self, pair: usize) -> &RingCell {
        &self.shared.rings()[2 * pair + 1]
    }

    /// The guest's receive queue of a pair (vring 2i).
    #[inline]
    pub fn to_guest(&self, pair: usize) -> &RingCell {
        &self.shared.rings()[2 * pair]
    }

    /// Which pair's receive queue takes a frame: the same for the same key as long as the same queues run. `None` if
    /// none runs. A queue may stop at any time; what is delivered to it then is refused there.
    #[inline]
    pub fn steer(&self, key: usize) -> Option<usize> {
        self.shared.steer(key)
    }

    /// The features that are negotiated at the moment; 0 if there are none.
    #[inline]
    pub fn features(&self) -> u64 {
        self.shared.features()
    }

    /// How the port is doing, and a sentence about it for people.
    pub fn state(&self) -> (State, String) {
        self.shared.state()
    }

    /// Ends the control thread and everything with it: when this returns the rings are stopped, the guest's memory
    /// is let go, and the socket is closed and removed. Further calls do nothing.
    pub fn stop(&self) {
        self.turn.stop(|connection| {
            let _ = self.wake.shutdown(std::net::Shutdown::Both);
            if let Some(connection) = connection {
                let _ = connection.shutdown(std::net::Shutdown::Both);
            }
        });
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread.filter(|thread| thread.thread().id() != thread::current().id()) {
            // A panic of the control thread has been reported where it happened.
            let _ = thread.join();
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Serves the connections of a device that has no thread; see [`Device::attended`].
pub struct Attendant(Port);

impl Attendant {
    /// Serves a connection until the other side ends it, and says why it ended.
    pub fn serve(&self, stream: UnixStream) -> String {
        self.0.serve(stream).why
    }
}

/// How a connection ended.
struct End {
    why: String,
    /// By what the frontend or its guest did, and not because one of both sides wanted it.
    broken: bool,
}

impl End {
    fn peaceful(why: impl Into<String>) -> Self {
        Self { why: why.into(), broken: false }
    }

    fn broken(why: impl Into<String>) -> Self {
        Self { why: why.into(), broken: true }
    }
}

/// A delay that doubles from 10 ms to 1 s.
struct Backoff(Duration);

impl Backoff {
    fn next(&mut self) -> Duration {
        let delay = self.0;
        self.0 = (delay * 2).min(LAST_DELAY);
        delay
    }
}

fn expecting(config: &DeviceConfig) -> String {
    let path = config.path.display();
    match config.role {
        Role::Server => format!("waiting for a VMM at {path}"),
        Role::Client => format!("connecting to {path}"),
    }
}

/// What the control thread owns.
struct Port {
    config: DeviceConfig,
    listener: Option<Listener>,
    shared: Arc<Shared>,
    turn: Arc<Turn>,
    woken: UnixStream,
}

impl Port {
    fn expecting(&self) -> String {
        expecting(&self.config)
    }

    fn run(mut self, resumed: Option<Resumed>) {
        let mut backoff = Backoff(FIRST_DELAY);
        // Before anything is looked at: what was handed over must be ours first.
        self.turn.take();
        let ours = !self.stopping();
        if let Some(listener) = self.listener.as_mut().filter(|_| ours) {
            listener.own();
        }
        let mut broken = resumed.is_none() && self.shared.state().0 == State::Broken;
        if let Some(Resumed { stream, session, handler }) = resumed.filter(|_| ours) {
            let end = self.finish(stream, &session, handler);
            info!(port = self.config.name, "the frontend that was taken over disconnected: {}", end.why);
            broken = end.broken;
            self.shared.waiting(format!("{}; the last one left: {}", self.expecting(), end.why), broken);
        }
        while !self.stopping() {
            let stream = match self.next_stream() {
                Ok(Some(stream)) => stream,
                Ok(None) => continue,
                Err(e) => {
                    self.shared.waiting(format!("{}: {e}; trying again", self.expecting()), broken);
                    self.pause(backoff.next());
                    continue;
                }
            };
            let name = &self.config.name;
            let peer = socket::peer(&stream);
            info!(port = name, "{peer} connected");
            let began = Instant::now();
            let End { why, broken: by_fault } = self.serve(stream);
            broken = by_fault;
            info!(port = name, "{peer} disconnected: {why}");
            if self.stopping() {
                break;
            }
            self.shared.waiting(format!("{}; the last one left: {why}", self.expecting()), broken);
            if began.elapsed() >= LAST_DELAY {
                backoff = Backoff(FIRST_DELAY);
            }
            // A frontend that comes and goes for ever must not keep a processor busy.
            self.pause(backoff.next());
        }
        drop(self.listener);
        self.turn.give();
        self.shared.waiting("stopped".into(), false);
    }

    fn stopping(&self) -> bool {
        self.turn.stopping()
    }

    /// As [`socket::wait`]; meanwhile the port may be made to stand still.
    fn wait(&self, wanted: Option<BorrowedFd<'_>>, timeout: Option<Duration>) -> io::Result<(bool, bool)> {
        self.turn.give();
        let waited = socket::wait(wanted, self.woken.as_fd(), timeout);
        self.turn.take();
        waited
    }

    fn pause(&self, time: Duration) {
        let until = Instant::now() + time;
        while !self.stopping() {
            let left = until.saturating_duration_since(Instant::now());
            // An error of poll would come back at once: then the thread sleeps on without being woken.
            if left.is_zero() {
                return;
            }
            if self.wait(None, Some(left.max(Duration::from_millis(1)))).is_err() {
                thread::sleep(left);
            }
        }
    }

    /// The next frontend's connection. `None`: look whether to stop, and come again.
    fn next_stream(&self) -> io::Result<Option<UnixStream>> {
        match &self.listener {
            None => socket::connect_to(&self.config.path).map(Some),
            Some(listener) => match self.wait(Some(listener.as_fd()), None)? {
                (true, false) => listener.accept(),
                _ => Ok(None),
            },
        }
    }

    /// Serves one connection to its end, and says why it ended.
    fn serve(&self, stream: UnixStream) -> End {
        let session = Arc::new(Mutex::new(Session::new(&self.config.name, self.shared.clone())));
        let clones = stream.try_clone().and_then(|a| Ok((a, stream.try_clone()?)));
        let (clone, connection) = match clones {
            Ok(clones) => clones,
            Err(e) => return End::peaceful(format!("no descriptor for the connection: {e}")),
        };
        if !self.turn.serve(Serving { connection: clone, session: session.clone() }) {
            return End::peaceful("the port is being removed");
        }
        self.shared.connected();
        let handler = BackendReqHandler::from_stream(stream, session.clone());
        self.finish(connection, &session, handler)
    }

    /// Serves a connection to its end.
    fn finish(&self, connection: UnixStream, session: &Arc<Mutex<Session>>, handler: Handler) -> End {
        let mut end = self.converse(connection, handler, session);
        if let (State::Broken, reason) = self.shared.state()
            && !end.broken
        {
            end = End::broken(format!("{reason}; {}", end.why));
        }
        lock(session).end();
        self.turn.served();
        if self.stopping() { End::peaceful("the port is being removed") } else { end }
    }

    fn converse(
        &self,
        mut connection: UnixStream,
        mut handler: Handler,
        session: &Arc<Mutex<Session>>,
    ) -> End {
        loop {
            match self.wait(Some(connection.as_fd()), None) {
                Ok((_, true)) => return End::peaceful(""),
                Ok((false, false)) => continue,
                Ok((true, false)) => {}
                Err(e) => return End::peaceful(format!("poll: {e}")),
            }
            let result = match ahead::handle(&mut connection, session) {
                Some(result) => result,
                None => handler.handle_request(),
            };
            self.turn.handled();
            match result {
                Ok(()) => {}
                Err(Error::Disconnected) => return End::peaceful("closed by the other side"),
                Err(Error::PartialMessage) => return End::broken("closed in the midst of a message"),
                Err(e) => {
                    let why = lock(session).take_failure();
                    return End::broken(why.unwrap_or_else(|| e.to_string()));
                }
            }
        }
    }
}
