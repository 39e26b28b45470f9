//! The lines of a state file.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use super::Change;
use crate::config::document::{Entry, Key};
use crate::durable;

/// The format that is written and read here.
pub(super) const FORMAT: u32 = 2;

/// A line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "there is never more than one at a time")]
#[serde(rename_all = "kebab-case")]
pub(super) enum Line {
    /// The first one: what comes next.
    Header {
        /// [`FORMAT`].
        format: u32,
        /// What the configuration began with.
        base: Option<u64>,
        /// How many things follow.
        things: u64,
        /// The number of the transaction that they include.
        number: u64,
    },
    /// A thing.
    Thing(Key, Entry),
    /// What one request changed.
    Transaction {
        /// One more than that of the one before.
        number: u64,
        /// The things.
        changes: Vec<Change>,
    },
}

impl Line {
    /// Its text, with the line feed.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        self.write(&mut text);
        text
    }

    /// Writes it behind others.
    pub(super) fn write(&self, to: &mut String) {
        // Texts, numbers and maps of them: there is nothing that JSON could not say.
        let json = serde_json::to_string(self).unwrap_or_default();
        durable::line::write(to, &json);
    }

    fn read(line: &[u8]) -> Option<Self> {
        serde_json::from_slice(durable::line::read(line)?).ok()
    }
}

/// A line of a file.
pub(super) struct Read {
    /// `None`: it is not what was written, or not all of it.
    pub(super) line: Option<Line>,
    /// Where it ends.
    pub(super) end: u64,
}

/// The lines of a file.
pub(super) fn lines(bytes: &[u8]) -> impl Iterator<Item = Read> {
    let mut end = 0;
    bytes.split_inclusive(|&byte| byte == b'\n').map(move |line| {
        end += line.len() as u64;
        Read { line: line.strip_suffix(b"\n").and_then(Line::read), end }
    })
}
