//! The whole configuration.
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io::{self, Write};
use std::path::Path;

use super::super::api;
use super::super::rpc::Error;
use super::{At, Handle};
use crate::config::Config;
use crate::config::document::Difference;
use crate::config::file::{FILE_MAX, TOO_LONG};
use crate::refusal::Refusal;

/// Bytes of JSON for what differs, of the answer that is a line.
const NAMED: usize = 8 << 20;
/// Fields that are named of a thing.
const FIELDS: usize = 1000;

/// Beginnings of files of which more is to come.
#[derive(Default)]
pub(super) struct Parts {
    by_connection: RefCell<HashMap<u64, String>>,
    waiting: Cell<usize>,
}

impl Parts {
    /// What came of a file so far, with its end; it is kept no longer.
    pub(super) fn take(&self, connection: u64, end: String) -> Result<String, Refusal> {
        let Some(mut text) = self.by_connection.borrow_mut().remove(&connection) else { return Ok(end) };
        self.waiting.set(self.waiting.get() - text.len());
        if (text.len() + end.len()) as u64 > FILE_MAX {
            return Err(Refusal::new(TOO_LONG));
        }
        text.push_str(&end);
        Ok(text)
    }

    /// Forgets what came of a connection that has ended.
    pub(super) fn forget(&self, connection: u64) {
        let gone = self.by_connection.borrow_mut().remove(&connection).unwrap_or_default();
        self.waiting.set(self.waiting.get() - gone.len());
    }

    /// Keeps another part. All that wait are together no longer than one file may be.
    fn keep(&self, connection: u64, part: String) -> Result<u64, Refusal> {
        let text = self.take(connection, part)?;
        if (self.waiting.get() + text.len()) as u64 > FILE_MAX {
            let others = self.waiting.get();
            return Err(Refusal::new(format!(
                "{others} bytes of configurations of other connections wait for their ends: try again later"
            )));
        }
        let kept = text.len();
        self.waiting.set(self.waiting.get() + kept);
        self.by_connection.borrow_mut().insert(connection, text);
        Ok(kept as u64)
    }
}

/// Counts bytes.
struct Length(usize);

impl Write for Length {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What an answer names of what differs, and how many more things do.
fn named(mut changes: Vec<Difference>) -> (Vec<Difference>, u64) {
    let (mut length, mut fitting) = (Length(0), 0);
    for change in &mut changes {
        change.further = change.fields.len().saturating_sub(FIELDS) as u64;
        change.fields.truncate(FIELDS);
        // Texts, numbers and maps of them: there is nothing that JSON could not say.
        let _ = serde_json::to_writer(&mut length, change);
        if length.0 > NAMED {
            break;
        }
        fitting += 1;
    }
    let further = changes.len() - fitting;
    changes.truncate(fitting);
    (changes, further as u64)
}

fn parse(file: Option<&String>, text: &str) -> Result<Config, Refusal> {
    Config::parse(text, Some(Path::new(file.map_or("configuration", String::as_str))))
}

/// What of a file has no effect on a daemon that runs, or none for now.
fn notes(config: &Config) -> Vec<String> {
    let daemon = config.workers.is_some() || config.poll.is_some() || config.log.is_some();
    let note = "[daemon] says how a daemon starts: it changes nothing now";
    daemon.then(|| note.to_owned()).into_iter().chain(config.layer3.waiting.iter().cloned()).collect()
}

impl Handle for api::ConfigShow {
    fn handle(self, at: &mut At<'_>) -> Result<api::ConfigPage, Error> {
        at.dispatcher.listings.page(at.connection, self.next, || {
            let text = at.switch.configuration().to_toml()?;
            Ok(text.lines().map(str::to_owned).collect())
        })
    }
}

impl Handle for api::ConfigPart {
    fn handle(self, at: &mut At<'_>) -> Result<api::ConfigParts, Error> {
        let waiting = at.dispatcher.parts.keep(at.connection, self.text)?;
        Ok(api::ConfigParts { waiting })
    }
}

impl Handle for api::ConfigCheck {
    fn handle(self, at: &mut At<'_>) -> Result<api::ConfigChecked, Error> {
        let text = at.dispatcher.parts.take(at.connection, self.text)?;
        let config = parse(self.file.as_ref(), &text)?;
        let things = config.document()?.entries.len() as u64;
        Ok(api::ConfigChecked { things, notes: config.layer3.waiting })
    }
}

impl Handle for api::ConfigDiff {
    fn handle(self, at: &mut At<'_>) -> Result<api::ConfigDifference, Error> {
        let text = at.dispatcher.parts.take(at.connection, self.text)?;
        let config = parse(self.file.as_ref(), &text)?;
        let notes = notes(&config);
        let (present, wanted) = at.switch.wanted(&config)?;
        let (changes, further) = named(present.difference(&wanted));
        Ok(api::ConfigDifference { changes, further, notes })
    }
}

impl Handle for api::ConfigApply {
    fn handle(self, at: &mut At<'_>) -> Result<api::ConfigDifference, Error> {
        let text = at.dispatcher.parts.take(at.connection, self.text)?;
        // What came before the end of the file is to find room on the disk, too.
        at.switch.prepare_change(text.len())?;
        let config = parse(self.file.as_ref(), &text)?;
        drop(text);
        let changes = at.switch.apply_configuration(&config)?;
        tracing::info!("configuration applied: {} things changed", changes.len());
        let (changes, further) = named(changes);
        Ok(api::ConfigDifference { changes, further, notes: notes(&config) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::document::Mark;
    use crate::config::document::difference::Field;

    fn part(length: u64) -> String {
        "x".repeat(length as usize)
    }

    #[test]
    fn parts_become_one_text_and_share_their_bound() {
        let parts = Parts::default();
        assert_eq!(parts.take(1, "end".into()).unwrap(), "end");
        assert_eq!(parts.keep(1, "a".into()).unwrap(), 1);
        assert_eq!(parts.keep(1, "bc".into()).unwrap(), 3);
        assert_eq!(parts.keep(2, part(FILE_MAX - 3)).unwrap(), FILE_MAX - 3);
        let refusal = parts.keep(1, "d".into()).unwrap_err().to_string();
        assert!(refusal.ends_with("of other connections wait for their ends: try again later"), "{refusal}");
        assert_eq!(parts.take(1, "e".into()).unwrap(), "e", "what was refused is forgotten as a whole");
        assert_eq!(parts.take(2, "xyz".into()).unwrap().len() as u64, FILE_MAX);
        assert_eq!(parts.keep(2, part(FILE_MAX)).unwrap(), FILE_MAX);
        assert_eq!(parts.take(2, "x".into()).unwrap_err().to_string(), TOO_LONG);
        assert_eq!((parts.waiting.get(), parts.by_connection.borrow().len()), (0, 0));
    }

    #[test]
    fn an_answer_names_what_fits() {
        let field = |n: usize| Field { name: format!("f{n}"), from: n.into(), to: (n + 1).into() };
        let change = |fields: usize| Difference {
            change: Mark::Change,
            kind: "bridge".into(),
            name: "b".into(),
            fields: (0..fields).map(field).collect(),
            further: 0,
        };
        let (changes, further) = named(vec![change(FIELDS), change(FIELDS + 2)]);
        assert_eq!((changes.len(), further), (2, 0));
        assert_eq!((changes[0].further, changes[1].further, changes[1].fields.len()), (0, 2, FIELDS));
        assert!(changes[1].line().ends_with(", and 2 more"), "{}", changes[1].line());
        let (changes, further) = named(vec![change(FIELDS); 1000]);
        let length = serde_json::to_string(&changes).unwrap().len();
        assert!((NAMED / 2..NAMED + 2000).contains(&length), "{length}");
        assert_eq!(changes.len() as u64 + further, 1000);
    }
}
