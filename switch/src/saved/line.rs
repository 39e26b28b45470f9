//! The lines of a state file: a checksum, a blank, JSON.
#![forbid(unsafe_code)]

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::Change;
use crate::config::document::{Entry, Key};

/// The format that is written and read here.
pub(super) const FORMAT: u32 = 2;
/// What [`fnv`] begins with.
pub(super) const SEED: u64 = 0xcbf2_9ce4_8422_2325;

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

/// FNV-1a over eight bytes at a time: against accidents, not against people.
pub(super) fn fnv(seed: u64, bytes: &[u8]) -> u64 {
    let step = |hash: u64, word: u64| (hash ^ word).wrapping_mul(0x100_0000_01b3).rotate_left(23);
    let (words, rest) = bytes.as_chunks::<8>();
    let hash = words.iter().fold(seed, |hash, word| step(hash, u64::from_le_bytes(*word)));
    rest.iter().fold(step(hash, bytes.len() as u64), |hash, &byte| step(hash, byte.into()))
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
        let _ = writeln!(to, "{:016x} {json}", fnv(SEED, json.as_bytes()));
    }

    fn read(line: &[u8]) -> Option<Self> {
        let (sum, json) = line.split_at_checked(17)?;
        let sum = u64::from_str_radix(std::str::from_utf8(sum).ok()?.strip_suffix(' ')?, 16).ok()?;
        if sum != fnv(SEED, json) {
            return None;
        }
        serde_json::from_slice(json).ok()
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
