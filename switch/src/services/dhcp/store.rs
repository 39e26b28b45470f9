//! Leases over a restart: a file of lines, one for each change, each with its checksum.
//!
//! Changes are appended and synchronised before the client hears of them. When the file has grown to be mostly history
//! it is written anew ([`durable::replace`]), as it is at every start. A last line that was cut off by a crash was never promised to anybody and is left out; a file that
//! is damaged otherwise is set aside under another name, and what can be read of it is kept. A disk that takes no more
//! does not keep the server from answering: that is said once, and everything is written when it takes some again.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::leases::{Lease, State};
use crate::config::Name;
use crate::durable::disk::{Disk, Kernel, Output};
use crate::durable::{self, line, set_aside};
use crate::packet::ethernet::Mac;

/// The file's name in the state directory.
pub const FILE: &str = "dhcp-leases";
const HEADER: &str = "shunt dhcp-leases 2";
/// Lines of history beyond which the file is written anew.
const HISTORY: usize = 4096;
/// Shortest time between two tries to write to a file that could not be written to.
const RETRY: Duration = Duration::from_secs(30);

/// A lease as it is written: times are seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Saved {
    interface: Name,
    address: Ipv4Addr,
    /// Absent in a line that says that nothing is known of the address any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lease: Option<SavedLease>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SavedLease {
    mac: Mac,
    #[serde(with = "hexadecimal")]
    client: Box<[u8]>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hostname: Option<String>,
    state: State,
    expires: u64,
}

/// What is known of an address, with `now` in the server's seconds and in those since 1970.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// The server's seconds.
    pub now: u64,
    /// The same moment.
    pub wall: SystemTime,
}

impl Clock {
    /// Seconds since 1970.
    pub fn unix(&self) -> u64 {
        self.wall.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
    }

    /// A second of the server's in those since 1970.
    pub fn wall_time(self, second: u64) -> u64 {
        if second >= self.now {
            self.unix().saturating_add(second - self.now)
        } else {
            self.unix().saturating_sub(self.now - second)
        }
    }

    /// A second since 1970 in the server's.
    pub fn since_start(self, second: u64) -> u64 {
        if second >= self.unix() {
            self.now.saturating_add(second - self.unix())
        } else {
            self.now.saturating_sub(self.unix() - second)
        }
    }
}

/// The leases of all interfaces, in memory and in the file.
#[derive(Debug, Default)]
pub struct Store {
    /// The disk, and the file's place on it; `None`: in memory only.
    place: Option<(Box<dyn Disk>, PathBuf)>,
    /// Held while the store lives, so that two daemons do not share a file.
    _lock: Option<File>,
    /// `None`: it must be written anew before anything can be appended.
    file: Option<Box<dyn Output>>,
    leases: BTreeMap<(Name, Ipv4Addr), SavedLease>,
    lines: usize,
    failed: Option<SystemTime>,
}

impl Store {
    /// A store that keeps nothing over a restart.
    pub fn in_memory() -> Self {
        Self::default()
    }

    /// The store of a state directory, with what it holds. Never fails: what is wrong is told to `tell`, a line for
    /// people each time.
    pub fn open(directory: &Path, clock: Clock, tell: &mut dyn FnMut(String)) -> Self {
        match durable::lock(directory, FILE) {
            Ok(lock) => Self::open_on(Box::new(Kernel), directory, Some(lock), clock, tell),
            Err(error) => {
                let path = directory.join(FILE);
                tell(format!("DHCP leases are not kept over a restart: {}: {error}", path.display()));
                Self::default()
            }
        }
    }

    /// The same on a file system that may be a test's own.
    fn open_on(
        disk: Box<dyn Disk>,
        directory: &Path,
        lock: Option<File>,
        clock: Clock,
        tell: &mut dyn FnMut(String),
    ) -> Self {
        let mut store = Self { _lock: lock, ..Self::default() };
        let path = directory.join(FILE);
        match disk.read(&path) {
            Ok(None) => {}
            Ok(Some(bytes)) => {
                if let Some(damage) = store.take_in(&bytes) {
                    let kept = store.leases.len();
                    match set_aside(&*disk, &path, "damaged") {
                        Ok(aside) => tell(format!(
                            "{} is damaged ({damage}): kept as {}, {kept} leases could be read and stay in force",
                            path.display(),
                            aside.display()
                        )),
                        Err(error) => tell(format!(
                            "{} is damaged ({damage}) and cannot be set aside: {error}; {kept} leases could be read",
                            path.display()
                        )),
                    }
                }
            }
            Err(error) => tell(format!("DHCP leases of before cannot be read: {}: {error}", path.display())),
        }
        store.place = Some((disk, path));
        store.write_anew(clock, tell);
        store
    }

    /// The leases of an interface, with times in the server's seconds.
    pub fn leases_of(&self, interface: Name, clock: Clock) -> Vec<(Ipv4Addr, Lease)> {
        let all = (interface, Ipv4Addr::UNSPECIFIED)..=(interface, Ipv4Addr::BROADCAST);
        let lease = |(&(_, address), saved): (&(Name, Ipv4Addr), &SavedLease)| {
            let lease = Lease {
                mac: saved.mac,
                identity: saved.client.clone(),
                hostname: saved.hostname.clone(),
                port: None,
                state: saved.state,
                expires: clock.since_start(saved.expires),
            };
            (address, lease)
        };
        self.leases.range(all).map(lease).collect()
    }

    /// Keeps leases in a state directory from now on: those in memory take the place of what the file holds.
    pub fn settle(&mut self, directory: &Path, clock: Clock, tell: &mut dyn FnMut(String)) {
        let leases = std::mem::take(&mut self.leases);
        *self = Self::open(directory, clock, tell);
        self.leases = leases;
        self.write_anew(clock, tell);
    }

    /// Takes changes in, and returns when they are on the disk, or when that has turned out not to be possible.
    pub fn keep(
        &mut self,
        changes: impl IntoIterator<Item = (Name, Ipv4Addr, Option<Lease>)>,
        clock: Clock,
        tell: &mut dyn FnMut(String),
    ) {
        let mut lines = String::new();
        for (interface, address, lease) in changes {
            let lease = lease.map(|lease| SavedLease {
                mac: lease.mac,
                client: lease.identity,
                hostname: lease.hostname,
                state: lease.state,
                expires: clock.wall_time(lease.expires),
            });
            match &lease {
                Some(lease) => self.leases.insert((interface, address), lease.clone()),
                None => self.leases.remove(&(interface, address)),
            };
            write_line(&mut lines, &Saved { interface, address, lease });
            self.lines += 1;
        }
        if lines.is_empty() || self.place.is_none() {
            return;
        }
        if let Some(since) = self.failed
            && clock.wall.duration_since(since).is_ok_and(|waited| waited < RETRY)
        {
            return;
        }
        if self.failed.is_some() || self.lines > 2 * self.leases.len() + HISTORY {
            return self.write_anew(clock, tell);
        }
        let written = match &mut self.file {
            Some(file) => file.append(lines.as_bytes()).and_then(|()| file.sync()),
            None => return self.write_anew(clock, tell),
        };
        if let Err(error) = written {
            // Perhaps half a line is there: it must not be written on behind it.
            self.fail(&error, clock, tell);
        }
    }

    /// Forgets the leases of an interface.
    pub fn forget(&mut self, interface: Name, clock: Clock, tell: &mut dyn FnMut(String)) {
        let before = self.leases.len();
        self.leases.retain(|(of, _), _| *of != interface);
        if self.leases.len() < before {
            self.write_anew(clock, tell);
        }
    }

    fn fail(&mut self, error: &io::Error, clock: Clock, tell: &mut dyn FnMut(String)) {
        self.file = None;
        if let Some((_, path)) = self.place.as_ref().filter(|_| self.failed.is_none()) {
            tell(format!("DHCP leases would be lost in a restart now: {}: {error}", path.display()));
        }
        self.failed = Some(clock.wall);
    }

    fn write_anew(&mut self, clock: Clock, tell: &mut dyn FnMut(String)) {
        let now = clock.unix();
        // What is over is remembered for its client for a while: see the server.
        self.leases.retain(|_, lease| {
            let remembered = if lease.state == State::Bound { super::server::REMEMBERED } else { 0 };
            lease.expires.saturating_add(remembered) > now
        });
        let Some((disk, path)) = &self.place else { return };
        let mut text = format!("{HEADER}\n");
        for (&(interface, address), lease) in &self.leases {
            write_line(&mut text, &Saved { interface, address, lease: Some(lease.clone()) });
        }
        match durable::replace(&**disk, path, text.as_bytes()) {
            Ok(file) => {
                (self.file, self.lines) = (Some(file), self.leases.len());
                if self.failed.take().is_some() {
                    tell(format!("{}: DHCP leases are kept again", path.display()));
                }
            }
            Err(why) => self.fail(&why.error, clock, tell),
        }
    }

    /// Reads a file's lines; what is wrong with it, if it is damaged.
    fn take_in(&mut self, bytes: &[u8]) -> Option<String> {
        let mut lines = bytes.split_inclusive(|&byte| byte == b'\n');
        let mut damage = None;
        match lines.next().map(|line| line.strip_suffix(b"\n").unwrap_or(line)) {
            None => return None,
            Some(header) if header == HEADER.as_bytes() => {}
            Some(_) => damage = Some("line 1 is not its header".to_owned()),
        }
        for (number, line) in lines.enumerate() {
            let Some(line) = line.strip_suffix(b"\n") else { continue };
            match saved(line) {
                Some(Saved { interface, address, lease: Some(lease) }) => {
                    self.leases.insert((interface, address), lease);
                }
                Some(Saved { interface, address, lease: None }) => {
                    self.leases.remove(&(interface, address));
                }
                None if damage.is_none() => {
                    damage = Some(format!("the checksum of line {} is wrong", number + 2));
                }
                None => {}
            }
        }
        damage
    }
}

fn write_line(to: &mut String, saved: &Saved) {
    // Strings, numbers and a map of them: there is nothing that JSON could not say.
    line::write(to, &serde_json::to_string(saved).unwrap_or_default());
}

fn saved(line: &[u8]) -> Option<Saved> {
    serde_json::from_slice(line::read(line)?).ok()
}

mod hexadecimal {
    use std::fmt::Write;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = String::new();
        for byte in bytes {
            let _ = write!(text, "{byte:02x}");
        }
        serializer.serialize_str(&text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Box<[u8]>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        let bytes: Option<Box<[u8]>> = pairs.iter().map(byte).collect();
        bytes.filter(|_| rest.is_empty()).ok_or_else(|| D::Error::custom("no bytes in hexadecimal"))
    }
}

#[cfg(test)]
mod tests;
