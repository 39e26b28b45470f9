//! What is configured, kept over a restart: a file of lines in the state directory, each with its checksum.
//!
//! The file begins with all things as they were when it was written ([`Store::begin`]): it is written beside the old one
//! and takes its place (write, fsync, rename, fsync of the directory). Each transaction since then is one more line,
//! appended and synchronised before whoever asked for it hears of it ([`Store::commit`]); it names what has changed, each
//! thing with what it is now. What a crash left of a line was never promised to anybody and is cut off; a file that is
//! damaged otherwise is set aside under another name, and what stands before the damage is gone on with.
#![forbid(unsafe_code)]

pub(crate) mod line;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::config::document::{Document, Entry, Key};
use crate::durable::disk::{Disk, Output};
use crate::durable::{self, set_aside};
use line::{Line, Read};

/// The file's name in the state directory.
pub const FILE: &str = "state";
/// Bytes of transactions from which on the file is written anew, if they are more than twice the things.
const HISTORY: u64 = 4 << 20;
/// Bytes that are kept free for what comes next.
const AHEAD: u64 = 1 << 20;

/// A thing as it is now; `None`: it is gone.
pub(crate) type Change = (Key, Option<Entry>);

/// What a state directory holds.
#[derive(Debug, Default)]
pub struct Saved {
    /// What was configured; `None` if nothing was ever saved, or nothing of it can be read.
    pub document: Option<Document>,
    /// What it began with: see [`fingerprint`]. `None`: the configuration that is embedded in the program.
    pub base: Option<u64>,
    /// What was wrong with the file, a line for people each.
    pub problems: Vec<String>,
    /// Bytes that are right.
    length: u64,
    /// The number of the last transaction.
    number: u64,
    /// Whether the file is to be set aside, since more than its end is wrong.
    damaged: bool,
    /// Whether its end was cut off.
    cut: bool,
}

/// The file of a state directory.
#[derive(Debug)]
pub(crate) struct Store {
    disk: Box<dyn Disk>,
    path: PathBuf,
    /// Held as long as this lives, so that two daemons do not share a file.
    lock: Option<File>,
    base: Option<u64>,
    /// `None`: it must be written anew before anything can be appended.
    file: Option<Box<dyn Output>>,
    /// Whether what was read at the start has another file in its place.
    replaced: bool,
    number: u64,
    /// Bytes of the file, of them those of the things it begins with; bytes that are reserved.
    length: u64,
    things: u64,
    reserved: u64,
}

/// What tells one configuration from another, against accidents: equal for files that describe the same.
pub fn fingerprint(document: &Document) -> u64 {
    document.entries.iter().fold(durable::line::SEED, |hash, thing| {
        // Texts, numbers and maps of them: there is nothing that JSON could not say.
        durable::line::fnv(hash, &serde_json::to_vec(&thing).unwrap_or_default())
    })
}

impl Store {
    /// The store of a directory, and what it holds. A damaged file is set aside. Nothing can be committed before
    /// [`Store::begin`].
    pub(crate) fn open(
        disk: Box<dyn Disk>,
        directory: &Path,
        lock: Option<File>,
    ) -> io::Result<(Self, Saved)> {
        let path = directory.join(FILE);
        let mut saved = match disk.read(&path)? {
            Some(bytes) => read(&bytes),
            None => Saved::default(),
        };
        if saved.damaged {
            let aside = set_aside(&*disk, &path, "damaged")?;
            let rest = match &saved.document {
                Some(_) => "what stands before the damage is gone on with",
                None => "nothing of it could be read",
            };
            let what = saved.problems.join("; ");
            saved.problems =
                vec![format!("{} is damaged ({what}): kept as {}, {rest}", path.display(), aside.display())];
        }
        let store = Self {
            disk,
            path,
            lock,
            base: saved.base,
            file: None,
            replaced: saved.damaged,
            number: saved.number,
            length: 0,
            things: 0,
            reserved: 0,
        };
        Ok((store, saved))
    }

    /// Goes on with a file that is as it should be.
    ///
    /// # Errors
    /// It cannot be written to.
    pub(crate) fn go_on(&mut self, saved: &Saved) -> io::Result<()> {
        if self.replaced {
            return Err(io::Error::other("it is not what it was"));
        }
        let mut file = self.disk.open(&self.path)?;
        if saved.cut {
            file.truncate(saved.length)?;
        }
        // What was read need not be on the disk yet: who wrote it may have ended before it was.
        file.sync()?;
        self.file = Some(file);
        (self.length, self.things, self.reserved) = (saved.length, saved.length, 0);
        Ok(())
    }

    /// Sets the file aside under a name of this kind, for people.
    ///
    /// # Errors
    /// It cannot be renamed.
    pub(crate) fn set_aside(&mut self, kind: &str) -> io::Result<PathBuf> {
        (self.file, self.replaced) = (None, true);
        set_aside(&*self.disk, &self.path, kind)
    }

    /// The lock of the directory, and what the file's configuration began with.
    pub(crate) fn held(&self) -> (Option<&File>, Option<u64>) {
        (self.lock.as_ref(), self.base)
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the file anew: it holds this and nothing else.
    ///
    /// # Errors
    /// It cannot be written; the old one is as it was.
    pub(crate) fn begin(&mut self, base: Option<u64>, document: &Document) -> io::Result<()> {
        let things = document.entries.len() as u64;
        let mut text = Line::Header { format: line::FORMAT, base, things, number: self.number }.text();
        for (key, entry) in &document.entries {
            Line::Thing(key.clone(), entry.clone()).write(&mut text);
        }
        let file = durable::replace(&*self.disk, &self.path, text.as_bytes()).map_err(|why| {
            if why.renamed {
                // The old file is not to be written to any more, whether the new one's name is on the disk or not.
                (self.file, self.replaced) = (None, true);
            }
            why.error
        })?;
        self.replaced = true;
        self.base = base;
        (self.length, self.things, self.reserved) = (text.len() as u64, text.len() as u64, 0);
        self.file = Some(file);
        Ok(())
    }

    /// The same, on the base that the file has.
    ///
    /// # Errors
    /// As of [`Self::begin`].
    pub(crate) fn begin_anew(&mut self, document: &Document) -> io::Result<()> {
        self.begin(self.base, document)
    }

    /// Sees to it that a change of so many bytes can be committed.
    ///
    /// # Errors
    /// There is no room.
    pub(crate) fn reserve(&mut self, bytes: u64) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let needed = self.length + bytes;
        if needed > self.reserved {
            let room = bytes + AHEAD;
            file.reserve(self.length, room)?;
            self.reserved = self.length + room;
        }
        Ok(())
    }

    /// Whether the file must be written anew before anything can be committed.
    pub(crate) fn is_broken(&self) -> bool {
        self.file.is_none()
    }

    /// Whether the file has become mostly history.
    pub(crate) fn is_long(&self) -> bool {
        self.length - self.things > HISTORY.max(2 * self.things)
    }

    /// Commits a transaction: it is on the disk when this returns.
    ///
    /// # Errors
    /// It is not, nor will it be: what was written of it is taken back. Where that fails, too, [`Self::is_broken`].
    pub(crate) fn commit(&mut self, changes: Vec<Change>) -> io::Result<()> {
        let Some(file) = &mut self.file else {
            return Err(io::Error::other("it could not be written before"));
        };
        let number = self.number + 1;
        let text = Line::Transaction { number, changes }.text();
        match file.append(text.as_bytes()) {
            Ok(()) => {}
            Err(error) => {
                if file.truncate(self.length).and_then(|()| file.sync()).is_err() {
                    self.file = None;
                }
                return Err(error);
            }
        }
        if let Err(error) = file.sync() {
            // The kernel says so once: what it has not written it may have forgotten. The file is not to be trusted.
            self.file = None;
            return Err(error);
        }
        self.length += text.len() as u64;
        self.number = number;
        Ok(())
    }
}

/// Reads a file's lines.
pub(crate) fn read(bytes: &[u8]) -> Saved {
    let mut saved = Saved::default();
    let mut lines = line::lines(bytes);
    let damage = |saved: &mut Saved, what: String| {
        saved.problems.push(what);
        saved.damaged = true;
    };
    let Some(Read { line: Some(Line::Header { format, base, things, number }), end }) = lines.next() else {
        damage(&mut saved, "line 1 is not its header".to_owned());
        return saved;
    };
    if format != line::FORMAT {
        damage(&mut saved, format!("its format is {format}, and {} is known here", line::FORMAT));
        return saved;
    }
    let mut document = Document::default();
    (saved.base, saved.number, saved.length) = (base, number, end);
    for at in 0..things {
        match lines.next() {
            Some(Read { line: Some(Line::Thing(key, entry)), end }) => {
                document.set(key, Some(entry));
                saved.length = end;
            }
            // It takes its place only when all of it is on the disk.
            _ => {
                damage(&mut saved, format!("line {} is not what it was", at + 2));
                return saved;
            }
        }
    }
    let mut wrong = None;
    for (at, read) in lines.enumerate() {
        let expected = saved.number + 1;
        match (read.line, wrong) {
            (Some(Line::Transaction { number, changes }), None) if number == expected => {
                changes.into_iter().for_each(|(key, entry)| document.set(key, entry));
                (saved.number, saved.length) = (number, read.end);
            }
            (_, None) => wrong = Some(at),
            // One is written when the one before it is on the disk, and cut off it is where that failed.
            (Some(Line::Transaction { .. }), Some(wrong)) => {
                damage(&mut saved, format!("line {} is not what it was", wrong as u64 + things + 2));
                break;
            }
            (_, Some(_)) => {}
        }
    }
    saved.cut = saved.length < bytes.len() as u64;
    saved.document = Some(document);
    saved
}
