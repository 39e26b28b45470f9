//! A port that another process goes on with, and one that goes on with another process' port.

#![forbid(unsafe_code)]

use std::{
    io,
    net::Shutdown,
    os::{
        fd::AsFd,
        unix::net::{UnixListener, UnixStream},
    },
    sync::{Arc, Mutex},
    time::Instant,
};

use tracing::warn;

use super::{
    Device, DeviceConfig, Role, lock,
    turn::{Serving, Turn},
};
use crate::{
    handover::{Descriptors, DeviceState, HandoverError, SessionState},
    session::{self, Handler, Session},
    shared::Shared,
    sigbus,
    socket::Listener,
};

/// What the control thread of a port that was taken over begins with.
pub(super) struct Resumed {
    pub(super) stream: UnixStream,
    pub(super) session: Arc<Mutex<Session>>,
    pub(super) handler: Handler,
}

impl Resumed {
    fn new(
        port: &str,
        shared: &Arc<Shared>,
        state: &SessionState,
        descriptors: &mut Descriptors,
    ) -> Result<Self, HandoverError> {
        let stream = UnixStream::from(descriptors.take(state.connection)?);
        let session = Session::resume(port, shared.clone(), state, descriptors)?;
        let session = Arc::new(Mutex::new(session));
        let handler = session::handler(&stream, &session, state.features, state.protocol_features)?;
        Ok(Self { stream, session, handler })
    }
}

impl Device {
    /// Has the control thread stand still between two messages, until [`Device::go_on`]. False if it does not come to
    /// a halt before `deadline`, as when its frontend has sent half a message: then it does as soon as it can.
    pub fn halt(&self, deadline: Instant) -> bool {
        self.turn.halt(deadline)
    }

    /// A number that changes whenever the frontend has said anything, has come or gone.
    pub fn changes(&self) -> u64 {
        self.turn.changes()
    }

    /// Describes the port. What changes while this is called may or may not be in it: rings are where they stand only
    /// if nobody uses them, everything else only if [`Device::changes`] stays what it was.
    ///
    /// # Errors
    /// No descriptors are to be had.
    pub fn export(&self, descriptors: &mut Descriptors) -> io::Result<DeviceState> {
        let listener = self.listening.as_ref().map(|listener| descriptors.add(listener)).transpose()?;
        let session = self.turn.with(|serving| {
            let export =
                |serving: &Serving| lock(&serving.session).export(serving.connection.as_fd(), descriptors);
            serving.map(export).transpose()
        })?;
        let waiting = self.shared.waits().filter(|_| session.is_none());
        Ok(DeviceState { listener, session, waiting })
    }

    /// Makes a port as it was described. It stands still until [`Device::go_on`]; if it is dropped before, everything
    /// stays as it is, for whoever described it.
    ///
    /// # Errors
    /// [`HandoverError`].
    pub fn resume(
        config: DeviceConfig,
        state: &DeviceState,
        descriptors: &mut Descriptors,
        changed: Arc<dyn Fn() + Send + Sync>,
    ) -> Result<Arc<Self>, HandoverError> {
        let system = |what| move |source| HandoverError::System { what, source };
        sigbus::install().map_err(system("sigaction"))?;
        let listener = match (config.role, state.listener) {
            (Role::Server, Some(place)) => {
                let listener = UnixListener::from(descriptors.take(place)?);
                Some(Listener::adopt(listener, &config.path).map_err(system("listening socket"))?)
            }
            (Role::Client, None) => None,
            (Role::Server, None) => {
                return Err(HandoverError::Invalid("its listening socket is missing".into()));
            }
            (Role::Client, Some(_)) => {
                return Err(HandoverError::Invalid("it connects and has a listening socket".into()));
            }
        };
        let shared = Arc::new(Shared::new(config.queue_pairs, changed));
        let begin = |turn, resumed| {
            Self::spawn(config.clone(), listener, shared.clone(), Arc::new(turn), resumed)
                .map_err(system("thread"))
        };
        let alone = |(reason, broken)| {
            shared.waiting(reason, broken);
            Turn::still(None)
        };
        let Some(at) = &state.session else {
            return begin(alone(state.waiting.clone().unwrap_or_default()), None);
        };
        match Resumed::new(&config.name, &shared, at, descriptors) {
            Ok(resumed) => {
                shared.connected();
                let connection = resumed.stream.try_clone().map_err(system("dup"))?;
                let serving = Serving { connection, session: resumed.session.clone() };
                begin(Turn::still(Some(serving)), Some(resumed))
            }
            // What its guest or its frontend has spoilt, such as memory that is gone, must not stop everybody's restart.
            Err(error) if at.rings.iter().any(|ring| ring.fault.is_some()) => {
                warn!(port = config.name, "its frontend has to connect anew: {error}");
                begin(alone((format!("its frontend has to connect anew: {error}"), true)), None)
            }
            Err(error) => Err(error),
        }
    }

    /// Where each ring stands between two bursts; nothing without a connection.
    pub fn positions(&self) -> Vec<Option<u32>> {
        self.turn
            .with(|serving| serving.map(|serving| lock(&serving.session).positions()))
            .unwrap_or_default()
    }

    /// Corrects where rings stand, of a port that has not gone on yet.
    ///
    /// # Errors
    /// They are not as many as there are rings, or one cannot be.
    pub fn set_positions(&self, positions: &[Option<u32>]) -> Result<(), HandoverError> {
        self.turn.with(|serving| match serving {
            Some(serving) => lock(&serving.session).set_positions(positions),
            None if positions.is_empty() => Ok(()),
            None => Err(HandoverError::Invalid("there is no connection".into())),
        })
    }

    /// Starts the rings of a port that was handed over. Its control thread still stands still, and nobody is told that the
    /// port has changed.
    pub fn start_rings(&self) {
        self.turn.with(|serving| {
            let Some(serving) = serving else { return };
            if let Err(error) = lock(&serving.session).go_on() {
                tracing::warn!("a guest's connection cannot be gone on with: {error}");
                let _ = serving.connection.shutdown(Shutdown::Both);
            }
        });
    }

    /// Goes on after [`Device::halt`], or with what was handed over: its rings run when this returns.
    pub fn go_on(&self) {
        self.start_rings();
        self.turn.go_on();
    }
}
