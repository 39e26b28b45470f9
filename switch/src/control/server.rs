//! The server of the control socket: connections, their bounds, and nothing of what is asked.
//!
//! All connections and the switch's own housekeeping share one thread. A connection waits for its next line, for its
//! answer to be taken, and after each request for its turn; none of that makes another one wait. Workers never wait
//! for this thread.
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use super::dispatch::{Dispatcher, Upgrades};
use super::line::{Budget, LINE_TIME, Lines, Stop};
use super::peer::Access;
use super::rpc::{self, Error, Id, LINE_MAX};
use super::socket::ControlSocket;
use crate::switch::Switch;

/// Connections served at once; one more is told so and closed.
pub const CONNECTIONS_MAX: usize = 64;
/// Bytes that half-received long lines of all connections may occupy together.
pub const LONG_LINES_MAX: usize = 4 * LINE_MAX;
/// How long a client may take to take an answer.
pub const ANSWER_TIME: Duration = Duration::from_secs(30);

/// What connections have in common.
struct Server {
    dispatcher: Dispatcher,
    access: Access,
    open: Cell<usize>,
    budget: Budget,
}

/// Counts a connection for as long as it is open.
struct Open(Rc<Server>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
    }
}

/// Serves `switch` at `socket` until dropped. To be called in a [`tokio::task::LocalSet`], whose end closes the
/// connections; a request is never cut in half.
///
/// # Errors
/// The socket cannot be watched. Once serving, it goes on whatever clients do.
pub async fn serve(
    socket: &ControlSocket,
    switch: Rc<RefCell<Switch>>,
    upgrades: Rc<Upgrades>,
) -> io::Result<()> {
    let listener = UnixListener::from_std(socket.listener()?)?;
    let server = Rc::new(Server {
        dispatcher: Dispatcher::new(switch, upgrades),
        access: socket.access(),
        open: Cell::new(0),
        budget: Budget::new(LONG_LINES_MAX),
    });
    let mut number = 0u64;
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors or memory, most likely: the connection waits in the kernel until there are some.
                tracing::warn!("cannot accept a control connection: {error}");
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        number += 1;
        if let Err(refusal) = admit(&server, &stream) {
            tracing::warn!("control connection refused: {refusal}");
            // The kernel takes so few bytes at once; who is not served is not waited for.
            let _ = stream.try_write(&rpc::failure(&Id::Null, &Error::new(rpc::NOT_SERVED, refusal)));
            continue;
        }
        server.open.set(server.open.get() + 1);
        let open = Open(server.clone());
        tokio::task::spawn_local(async move {
            connection(&open.0, number, stream).await;
            open.0.dispatcher.forget(number);
        });
    }
}

fn admit(server: &Server, stream: &UnixStream) -> Result<(), String> {
    server.access.check(stream)?;
    if server.open.get() >= CONNECTIONS_MAX {
        return Err(format!(
            "{CONNECTIONS_MAX} connections are open, the most there may be: try again later"
        ));
    }
    Ok(())
}

async fn connection(server: &Server, number: u64, mut stream: UnixStream) {
    let trusted = server.access.is_trusted(&stream);
    let (from, mut to) = stream.split();
    let mut lines = Lines::new(from, server.budget.clone());
    loop {
        let line = match lines.next().await {
            Ok(line) => line,
            Err(stop) => {
                if let Some(message) = explain(stop) {
                    tracing::debug!("control connection {number} closed: {message}");
                    let error = Error::new(rpc::INVALID_REQUEST, message);
                    let _ = write(&mut to, &rpc::failure(&Id::Null, &error)).await;
                }
                return;
            }
        };
        server.dispatcher.upgrades.idle().await;
        if let Some((answer, passed)) = server.dispatcher.upgrade(line, trusted).await {
            let written = write(&mut to, &answer).await;
            if let Some(passed) = passed {
                // Nobody waits for it if nothing has come of it.
                let _ = passed.send(());
            }
            if written.is_err() {
                return;
            }
            continue;
        }
        let busy = server.dispatcher.upgrades.busy();
        let answer = server.dispatcher.answer(number, line).await;
        drop(busy);
        if let Some(answer) = answer
            && let Err(error) = write(&mut to, &answer).await
        {
            tracing::debug!("control connection {number} closed: {error}");
            return;
        }
        // Who sends many requests at once gets one answered at a time, in turn with the others.
        tokio::task::yield_now().await;
    }
}

fn explain(stop: Stop) -> Option<String> {
    match stop {
        Stop::Closed => None,
        Stop::TooLong => Some(format!("the line is longer than {LINE_MAX} bytes")),
        Stop::TooSlow => {
            let seconds = LINE_TIME.as_secs();
            Some(format!(
                "the line was not complete {seconds} s after its first byte: end it with a line feed"
            ))
        }
        Stop::NoRoom => Some("too many long requests at once: try again later".into()),
    }
}

async fn write(to: &mut (impl AsyncWrite + Unpin), answer: &[u8]) -> io::Result<()> {
    timeout(ANSWER_TIME, to.write_all(answer)).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}
