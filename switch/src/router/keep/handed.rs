//! What is kept, in a planned restart: the new process makes what the old one had, and goes on with its state directory.
//!
//! The lock of the directory is handed over open, so that it is never free. The new process opens the file when the old
//! one has ended: what both have made by then is the same.
#![forbid(unsafe_code)]

use std::fs::File;

use crate::config::document::Key;
use crate::durable::{self, disk::Kernel};
use crate::handover::message::{Kept, Things};
use crate::refusal::Refusal;
use crate::router::reconcile::Wanted;
use crate::saved::{FILE, Store};
use crate::switch::Switch;

impl Switch {
    /// What another process has to know to go on with the state directory, and the lock of that.
    pub(crate) fn kept_state(&self) -> (Kept, Option<&File>) {
        let keeper = &self.keeper;
        let (lock, base) = keeper.store.as_ref().map(Store::held).unwrap_or_default();
        let unmade = keeper.unmade.iter().map(|(key, (_, why))| (key.clone(), why.to_string()));
        (Kept { base, unmade: unmade.collect(), problems: keeper.problems.clone() }, lock)
    }

    /// Makes what another process had, of what it hands over. What it could not make, and sync daemons, whose sockets it
    /// still uses, are made when it has ended.
    ///
    /// # Errors
    /// Something cannot be made here.
    pub(crate) fn make_handed(&mut self, things: Things, kept: &Kept) -> Result<(), Refusal> {
        let mut wanted = Wanted::new();
        for (key, entry) in things {
            let unmade = kept.unmade.iter().find(|(unmade, _)| *unmade == key);
            match (unmade, &key) {
                (Some((_, why)), _) => {
                    self.keeper.unmade.insert(key, (entry, Refusal::new(why.clone())));
                }
                (None, Key::Daemon(_)) => {
                    let why = Refusal::new(format!("{key}: the process before this one has not ended"));
                    self.keeper.unmade.insert(key, (entry, why));
                }
                (None, _) => {
                    wanted.insert(key, Some(entry));
                }
            }
        }
        if let Some((_, why)) = self.reconcile(wanted.clone(), false).into_iter().next() {
            return Err(why);
        }
        match wanted.iter().find(|(key, entry)| self.describe(key) != **entry) {
            Some((key, _)) => Err(Refusal::new(format!("{key}: it would not be as it is"))),
            None => Ok(()),
        }
    }

    /// Keeps what is configured in the state directory from now on, in the place of a process that has ended.
    pub(crate) fn keep_on(&mut self, kept: Kept, lock: Option<File>) {
        self.keeper.problems = kept.problems;
        self.keeper.starting = false;
        self.retry();
        let Some(directory) = self.state.clone() else { return };
        let opened = lock
            .map_or_else(|| durable::lock(&directory, FILE), Ok)
            .and_then(|lock| Store::open(Box::new(Kernel), &directory, Some(lock)));
        let (mut store, mut saved) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                let why = format!("state-dir {}: {error}", directory.display());
                tracing::error!("nothing is kept from here on: {why}");
                return self.keeper.problems.push(why);
            }
        };
        self.keeper.problems.append(&mut saved.problems);
        let document = self.configuration();
        let begun = store.begin(kept.base, &document).or_else(|error| match &saved.document {
            // What is there is as good, but for its length.
            Some(there) if *there == document => store.go_on(&saved).map_err(|_| error),
            _ => Err(error),
        });
        if let Err(error) = begun {
            self.note_failing(&store, &error);
        }
        self.keeper.store = Some(store);
    }
}
