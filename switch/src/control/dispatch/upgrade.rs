//! The wish for a planned restart: kept for who carries it out, while everybody else waits.
//!
//! It takes a second or two, during which nothing may change, so requests wait until it is over. If it succeeds this
//! process ends, and their connections with it; clients ask again and are served by the new one.
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::path::PathBuf;

use tokio::sync::{Notify, oneshot};

use super::super::api::{self, Method, Upgraded};
use super::super::rpc::{self, Error, Head};
use super::{At, Dispatcher, Handle};
use crate::refusal::Refusal;

/// What came of it, and who is to be told when that was passed on.
pub type Outcome = (Result<Upgraded, Refusal>, oneshot::Sender<()>);

/// Somebody's wish.
pub struct Wish {
    /// The program to start, or the daemon's own again.
    pub binary: Option<PathBuf>,
    /// Takes the outcome.
    pub done: oneshot::Sender<Outcome>,
}

/// The wish that is there, if one is.
#[derive(Default)]
pub struct Upgrades {
    wish: RefCell<Option<Wish>>,
    wished: Notify,
    under_way: Cell<bool>,
    over: Notify,
    /// Requests that are being answered.
    busy: Cell<usize>,
}

/// A request that is being answered.
pub struct Busy<'a>(&'a Upgrades);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.busy.set(self.0.busy.get() - 1);
        self.0.wished.notify_one();
    }
}

impl Upgrades {
    /// A request is being answered as long as this lives.
    pub fn busy(&self) -> Busy<'_> {
        self.busy.set(self.busy.get() + 1);
        Busy(self)
    }

    /// Waits for a wish, and until the requests before it have been answered. Further ones wait until
    /// [`Upgrades::end`].
    pub async fn next(&self) -> Wish {
        loop {
            let wish = if self.busy.get() == 0 { self.wish.borrow_mut().take() } else { None };
            if let Some(wish) = wish {
                return wish;
            }
            self.wished.notified().await;
        }
    }

    /// It was not to be; requests are answered again.
    pub fn end(&self) {
        self.under_way.set(false);
        self.over.notify_waiters();
    }

    /// Waits until no restart is under way.
    pub async fn idle(&self) {
        while self.under_way.get() {
            self.over.notified().await;
        }
    }
}

impl Handle for api::DaemonUpgrade {
    fn handle(self, _: &mut At<'_>) -> Result<Upgraded, Error> {
        Err(Error::new(
            rpc::INVALID_REQUEST,
            "daemon.upgrade needs an id, so that its answer can be waited for",
        ))
    }
}

impl Dispatcher {
    /// Takes a line that wishes for a restart; `None` if it asks for anything else. `trusted`: whether who asks may name
    /// a program, which runs with all rights of this one.
    pub async fn upgrade(
        &self,
        line: &[u8],
        trusted: bool,
    ) -> Option<(Vec<u8>, Option<oneshot::Sender<()>>)> {
        let head = rpc::head(line).ok().filter(|head| head.method == api::DaemonUpgrade::NAME)?;
        let id = head.id.clone()?;
        let (result, passed) = match self.wish(&head, line, trusted).await {
            Ok((result, passed)) => (result.map_err(Error::from), Some(passed)),
            Err(error) => (Err(error), None),
        };
        if let Err(error) = &result {
            tracing::warn!("not upgraded: {}", error.message);
        }
        let answer = result.and_then(|upgraded| rpc::success(&id, &upgraded));
        Some((answer.unwrap_or_else(|error| rpc::failure(&id, &error)), passed))
    }

    async fn wish(&self, head: &Head, line: &[u8], trusted: bool) -> Result<Outcome, Error> {
        let asked: api::DaemonUpgrade = rpc::params(head, line)?;
        if let Some(binary) = &asked.binary {
            if !trusted {
                return Err(
                    Refusal::new("only root and the daemon's own user may name a program to start").into()
                );
            }
            if !binary.is_absolute() {
                let invalid = format!("binary {:?} must be an absolute path", binary.display().to_string());
                return Err(Error::new(rpc::INVALID_PARAMS, invalid));
            }
        }
        let upgrades = &self.upgrades;
        if upgrades.under_way.replace(true) {
            return Err(Refusal::new("an upgrade is under way").into());
        }
        let (done, outcome) = oneshot::channel();
        *upgrades.wish.borrow_mut() = Some(Wish { binary: asked.binary, done });
        upgrades.wished.notify_one();
        outcome.await.map_err(|_| Refusal::new("the daemon ends").into())
    }
}
