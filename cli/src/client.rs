//! The client's side of the control socket: one request at a time, one answer.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shunt_switch::control::api::Method;
use shunt_switch::control::paths;
use shunt_switch::control::rpc::{self, Id, LINE_MAX};

/// How long the daemon may take for an answer, or to take a request.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The daemon said no; to which element of a list, counted from 0, if it was one.
    #[error("{0}")]
    Refused(String, Option<u64>),
    /// The same, where the daemon says what kind of refusal it is.
    #[error("{message}")]
    Known {
        /// What it said.
        message: String,
        /// The kind, a word.
        kind: String,
        /// Which element of a list, counted from 0.
        index: Option<u64>,
    },
    /// There is no daemon, or it does not speak as it should.
    #[error("{0}")]
    Unreachable(String),
    /// The answer cannot be written.
    #[error("the answer cannot be written: {0}")]
    Output(std::io::Error),
}

/// A connection to the daemon.
pub struct Client {
    stream: BufReader<UnixStream>,
    path: PathBuf,
    asked: u64,
    /// Why the last request could not be sent.
    unsent: Option<std::io::Error>,
    patience: Duration,
}

#[derive(Serialize)]
struct Request<'a, M> {
    jsonrpc: &'static str,
    id: u64,
    method: &'static str,
    params: &'a M,
}

#[derive(Deserialize)]
struct Answer<T> {
    id: Id,
    #[serde(default = "Option::default")]
    result: Option<T>,
    error: Option<rpc::Error>,
}

impl Client {
    /// Connects to the daemon whose socket is at `path`, or where it is usually found.
    ///
    /// # Errors
    /// Nobody is there, or we may not.
    pub fn connect(path: Option<&Path>) -> Result<Self, Failure> {
        let path = match path.filter(|path| !path.as_os_str().is_empty()) {
            Some(path) => path.to_path_buf(),
            None => paths::client_socket(),
        };
        let unreachable = |why: &dyn std::fmt::Display, hint: &str| {
            Failure::Unreachable(format!("shuntd is not reachable at {}: {why}: {hint}", path.display()))
        };
        paths::check_private(&path).map_err(|why| unreachable(&why, "nobody was asked"))?;
        let connected = UnixStream::connect(&path).and_then(|stream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            Ok(stream)
        });
        let stream = connected.map_err(|error| match error.kind() {
            ErrorKind::NotFound => {
                unreachable(&"no such socket", "start it, or name its socket with --control or SHUNT_CONTROL")
            }
            ErrorKind::ConnectionRefused => unreachable(&"nobody listens there", "start it"),
            ErrorKind::PermissionDenied => unreachable(
                &"permission denied",
                "only root, its own user and members of the socket's group may",
            ),
            _ => unreachable(&error, "is this the path of its control socket?"),
        })?;
        Ok(Self { stream: BufReader::new(stream), path, asked: 0, unsent: None, patience: PATIENCE })
    }

    /// The same, for requests that may take longer.
    ///
    /// # Errors
    /// See [`Self::connect`].
    pub fn connect_patiently(path: Option<&Path>, patience: Duration) -> Result<Self, Failure> {
        let mut client = Self::connect(path)?;
        client.be_patient(patience)?;
        Ok(client)
    }

    /// Waits so long for answers from now on.
    ///
    /// # Errors
    /// Hardly ever.
    pub fn be_patient(&mut self, patience: Duration) -> Result<(), Failure> {
        self.patience = patience;
        let set = self.stream.get_ref().set_read_timeout(Some(patience));
        set.map_err(|error| self.lost(&error))
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// The daemon refuses, or goes away, or does not answer in time.
    pub fn ask<M: Method>(&mut self, request: &M) -> Result<M::Answer, Failure> {
        self.send(request)?;
        self.answer::<M>()
    }

    /// Asks. The answer is to be waited for, by [`Self::answer`], before anything else is asked.
    ///
    /// # Errors
    /// It cannot be written as JSON; what the connection says is told with the answer.
    pub fn send<M: Method>(&mut self, request: &M) -> Result<(), Failure> {
        self.asked += 1;
        let request = Request { jsonrpc: "2.0", id: self.asked, method: M::NAME, params: request };
        let mut line = serde_json::to_vec(&request).map_err(|e| self.lost(&e))?;
        line.push(b'\n');
        self.unsent = self.stream.get_mut().write_all(&line).err();
        Ok(())
    }

    /// Waits for the answer to what was sent.
    ///
    /// # Errors
    /// See [`Self::ask`].
    pub fn answer<M: Method>(&mut self) -> Result<M::Answer, Failure> {
        // A daemon that does not want us has said why before it closed: what it said counts, not that it closed.
        let sent = self.unsent.take().map_or(Ok(()), Err);
        let mut answer = Vec::new();
        let limit = LINE_MAX as u64 + 1;
        let read = self.stream.by_ref().take(limit).read_until(b'\n', &mut answer);
        if !answer.ends_with(b"\n") {
            return Err(match (sent, read) {
                (Err(error), _) | (_, Err(error)) if error.kind() == ErrorKind::WouldBlock => {
                    self.lost(&format_args!("no answer within {} s", self.patience.as_secs()))
                }
                (Err(error), _) | (_, Err(error)) => self.lost(&error),
                (Ok(()), Ok(_)) => self.lost(&"it closed the connection without an answer"),
            });
        }
        let answer: Answer<M::Answer> = serde_json::from_slice(&answer)
            .map_err(|e| self.lost(&format_args!("its answer is not understood: {e}")))?;
        match answer {
            Answer { error: Some(error), .. } => {
                let (index, kind) = error.data.map_or((None, None), |data| (data.index, data.kind));
                let message = error.message;
                Err(match kind {
                    Some(kind) => Failure::Known { message, kind, index },
                    None => Failure::Refused(message, index),
                })
            }
            Answer { result: Some(result), id, .. } if id == Id::Number(self.asked.into()) => Ok(result),
            _ => Err(self.lost(&"its answer belongs to no request")),
        }
    }

    fn lost(&self, why: &dyn std::fmt::Display) -> Failure {
        Failure::Unreachable(format!("shuntd at {}: {why}", self.path.display()))
    }
}
