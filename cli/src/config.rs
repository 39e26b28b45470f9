//! The commands of the whole configuration.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use shunt_switch::config::file::{FILE_MAX, TOO_LONG};
use shunt_switch::control::api;

use crate::Asker;
use crate::arguments::Config;
use crate::client::Failure;

/// Bytes of a file that one request carries: as JSON they are six times as many at most.
const PART: usize = 2 << 20;
/// How long the daemon may take for a file of many parts.
const PATIENCE: Duration = Duration::from_secs(600);
/// The name that standard input has in messages.
const STDIN: &str = "standard input";

/// What `config check` says, for which nobody else is needed.
pub(crate) fn check(file: &Path, as_json: bool) -> Result<String, Failure> {
    let (name, text) = read(file)?;
    let refused = |refusal: shunt_switch::refusal::Refusal| Failure::Refused(refusal.to_string(), None);
    let config = shunt_switch::config::Config::parse(&text, Some(Path::new(&name))).map_err(refused)?;
    let document = config.document().map_err(refused)?;
    if let Some((at, log)) = &config.log {
        shunt_switch::config::arguments::log(log).map_err(|refusal| refused(at.refuse(refusal)))?;
    }
    let notes = config.layer3.waiting;
    Ok(match as_json {
        true => format!("{:#}\n", json!({ "things": document.entries.len(), "notes": notes })),
        false => notes.iter().map(|note| format!("# {note}\n")).collect(),
    })
}

/// The text of a file, and its name for messages.
fn read(file: &Path) -> Result<(String, String), Failure> {
    let name = if file == Path::new("-") { STDIN.to_owned() } else { file.display().to_string() };
    let refuse = |why: &dyn std::fmt::Display| Failure::Refused(format!("{name}: {why}"), None);
    let mut from: Box<dyn Read> = match file == Path::new("-") {
        true => Box::new(std::io::stdin()),
        false => Box::new(File::open(file).map_err(|error| refuse(&error))?),
    };
    let mut bytes = Vec::new();
    from.by_ref().take(FILE_MAX + 1).read_to_end(&mut bytes).map_err(|error| refuse(&error))?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(refuse(&TOO_LONG));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let line = 1 + error.as_bytes()[..good].iter().filter(|&&byte| byte == b'\n').count();
        Failure::Refused(format!("{name}:{line}:1: the line is no UTF-8 text"), None)
    })?;
    Ok((name, text))
}

/// Writes a file that is there as a whole or not at all.
fn save(file: &Path, text: &str) -> std::io::Result<()> {
    // A link is followed, lest it become a file of its own.
    let file = std::fs::canonicalize(file).unwrap_or_else(|_| file.to_path_buf());
    let name = file.file_name().ok_or(std::io::ErrorKind::InvalidInput)?.to_string_lossy().into_owned();
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = directory.map_or_else(|| PathBuf::from("."), Path::to_path_buf);
    let beside = directory.join(format!(".{name}.{}", std::process::id()));
    let write = || {
        let mut new = OpenOptions::new().write(true).create_new(true).open(&beside)?;
        if let Ok(old) = std::fs::metadata(&file) {
            new.set_permissions(old.permissions())?;
        }
        new.write_all(text.as_bytes())?;
        new.sync_all()?;
        std::fs::rename(&beside, &file)?;
        File::open(&directory)?.sync_all()
    };
    write().inspect_err(|_| {
        let _ = std::fs::remove_file(&beside);
    })
}

impl Asker {
    pub(crate) fn config(&mut self, command: &Config) -> Result<String, Failure> {
        match command {
            Config::Show => {
                let text = self.configuration()?;
                if !self.json {
                    return Ok(text);
                }
                let value: serde_json::Value = toml::from_str(&text)
                    .map_err(|e| Failure::Unreachable(format!("its answer is not understood: {e}")))?;
                self.render(&value, |_| String::new())
            }
            // Answered without the daemon.
            Config::Check { .. } => Ok(String::new()),
            Config::Diff { file } => {
                let (file, text) = self.send(file)?;
                let difference = self.client.ask(&api::ConfigDiff { file: Some(file), text })?;
                self.render(&difference, differences)
            }
            Config::Apply { file } => {
                let (file, text) = self.send(file)?;
                let difference = self.client.ask(&api::ConfigApply { file: Some(file), text })?;
                self.render(&difference, differences)
            }
            Config::Save { file } => {
                let text = self.configuration()?;
                save(file, &text)
                    .map_err(|error| Failure::Refused(format!("{}: {error}", file.display()), None))?;
                Ok(String::new())
            }
        }
    }

    /// Sends the beginning of a file, where it is too long for one request; its name, and what is left of it.
    fn send(&mut self, file: &Path) -> Result<(String, String), Failure> {
        let (file, text) = read(file)?;
        let mut rest = text.as_str();
        if rest.len() > PART {
            self.client.be_patient(PATIENCE)?;
        }
        while rest.len() > PART {
            let (part, after) = rest.split_at(rest.floor_char_boundary(PART));
            self.client.ask(&api::ConfigPart { text: part.to_owned() })?;
            rest = after;
        }
        let rest = rest.to_owned();
        Ok((file, rest))
    }

    fn configuration(&mut self) -> Result<String, Failure> {
        let mut text = String::new();
        let mut next = None;
        loop {
            let page = self.client.ask(&api::ConfigShow { next })?;
            for line in page.entries {
                text.push_str(&line);
                text.push('\n');
            }
            next = page.next;
            if next.is_none() {
                return Ok(text);
            }
        }
    }
}

fn differences(difference: &api::ConfigDifference) -> String {
    let notes = difference.notes.iter().map(|note| format!("# {note}\n"));
    let changes = difference.changes.iter().map(|change| change.line() + "\n");
    let further = (difference.further > 0).then(|| format!("# and {} more\n", difference.further));
    notes.chain(changes).chain(further).collect()
}
