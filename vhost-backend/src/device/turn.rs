//! Whose turn it is: the control thread's, or that of somebody who wants the port to stand still.
//!
//! The control thread has the turn whenever it does anything but wait. Who stops it waits for the turn, and keeps it.

#![forbid(unsafe_code)]

use std::{
    os::unix::net::UnixStream,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use crate::session::Session;

/// A connection that is being served.
pub(super) struct Serving {
    pub(super) connection: UnixStream,
    pub(super) session: Arc<Mutex<Session>>,
}

#[derive(Default)]
struct State {
    stopping: bool,
    /// The control thread has the turn.
    busy: bool,
    /// Nobody but who stopped the port may have it.
    still: bool,
    /// It was never let go: what was handed over is somebody else's yet.
    never_went: bool,
    serving: Option<Serving>,
    /// Messages handled, connections begun and ended.
    changes: u64,
}

/// The turn, and what goes with it.
#[derive(Default)]
pub(super) struct Turn {
    state: Mutex<State>,
    changed: Condvar,
}

impl Turn {
    /// Of a port that stands still, with what was handed over.
    pub(super) fn still(serving: Option<Serving>) -> Self {
        let state = State { still: true, never_went: true, serving, ..State::default() };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // ---- the control thread ------------------------------------------------------------------------------------

    /// Waits for the turn. Of a port that is to end nobody waits.
    pub(super) fn take(&self) {
        let mut state = self.lock();
        while state.still && !state.stopping {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.busy = true;
    }

    /// Lets go of the turn.
    pub(super) fn give(&self) {
        self.lock().busy = false;
        self.changed.notify_all();
    }

    pub(super) fn stopping(&self) -> bool {
        self.lock().stopping
    }

    /// A connection is being served from now on; false if the port is to end.
    pub(super) fn serve(&self, serving: Serving) -> bool {
        let mut state = self.lock();
        if !state.stopping {
            state.changes += 1;
            state.serving = Some(serving);
        }
        !state.stopping
    }

    /// It has ended.
    pub(super) fn served(&self) {
        let mut state = self.lock();
        state.changes += 1;
        state.serving = None;
    }

    /// A message was handled.
    pub(super) fn handled(&self) {
        self.lock().changes += 1;
    }

    // ---- others ------------------------------------------------------------------------------------------------

    /// The port is to end; `act` is shown the connection, unless it is somebody else's.
    pub(super) fn stop(&self, act: impl FnOnce(Option<&UnixStream>)) {
        let mut state = self.lock();
        state.stopping = true;
        act(state.serving.as_ref().filter(|_| !state.never_went).map(|serving| &serving.connection));
        self.changed.notify_all();
    }

    /// Has the port stand still; false if its control thread does not come to a halt before `deadline`.
    pub(super) fn halt(&self, deadline: Instant) -> bool {
        let mut state = self.lock();
        state.still = true;
        while state.busy {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Lets the port go on.
    pub(super) fn go_on(&self) {
        let mut state = self.lock();
        (state.still, state.never_went) = (false, false);
        self.changed.notify_all();
    }

    /// How often anything has changed.
    pub(super) fn changes(&self) -> u64 {
        self.lock().changes
    }

    /// Shows what is being served.
    pub(super) fn with<T>(&self, look: impl FnOnce(Option<&Serving>) -> T) -> T {
        look(self.lock().serving.as_ref())
    }
}
