//! Directly attachable networks (DAN): the file by which Kata Containers' runtime-rs learns of a sandbox's NICs.
//!
//! The form is that of kata-containers' `src/runtime-rs/crates/resource/src/network/dan.rs`: one JSON document a
//! sandbox, `{dan_conf}/{sandbox}.json`, read once when the sandbox starts. Device kinds that shunt makes are `host-tap`
//! (a TAP device that the hypervisor opens by name) and `vhost-user` (a socket at which the hypervisor listens: the
//! runtime refuses a path that exists already). Fields that the runtime defaults are written all the same.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use shunt_switch::config::Mac;

/// Where runtime-rs looks unless its configuration says otherwise (`dan_conf`).
pub const DIRECTORY: &str = "/run/kata-containers/dans";
/// Descriptors of a queue, where the file says none (runtime-rs' own default).
pub const QUEUE_SIZE: usize = 256;

/// A sandbox's file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dan {
    /// The network namespace in which the runtime attaches the devices; `None`, as for all that shunt makes: the host's.
    pub netns: Option<String>,
    /// The NICs.
    pub devices: Vec<Nic>,
}

/// A NIC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// Its name in the guest.
    pub name: String,
    /// Its MAC address in the guest.
    pub guest_mac: Mac,
    /// What is behind it.
    pub device: Device,
    /// What the runtime's agent configures in the guest.
    pub network_info: NetworkInfo,
}

/// What is behind a NIC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type")]
pub enum Device {
    /// A socket at which the hypervisor will listen.
    #[serde(rename = "vhost-user")]
    VhostUser {
        /// Its path.
        path: String,
        /// Queue pairs; 0: as the runtime is configured.
        #[serde(default)]
        queue_num: usize,
        /// Descriptors a queue; 0: 256.
        #[serde(default)]
        queue_size: usize,
    },
    /// A TAP device of the host.
    #[serde(rename = "host-tap")]
    HostTap {
        /// Its name.
        tap_name: String,
        /// Queue pairs; 0: as the runtime is configured.
        #[serde(default)]
        queue_num: usize,
        /// Descriptors a queue; 0: 256.
        #[serde(default)]
        queue_size: usize,
    },
    /// A PCI device that is passed through; never made by shunt, but kept where somebody else wrote it.
    #[serde(rename = "vfio")]
    Vfio {
        /// Its address on the host.
        pci_device_id: String,
    },
}

/// What the agent configures.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkInfo {
    /// The NIC itself.
    pub interface: Interface,
    /// Routes over it.
    #[serde(default)]
    pub routes: Vec<Route>,
    /// Neighbours that need not be asked for.
    #[serde(default)]
    pub neighbors: Vec<Neighbour>,
}

/// Properties of the NIC.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Addresses, each with the length of its network's prefix.
    pub ip_addresses: Vec<IpNet>,
    /// MTU in bytes.
    #[serde(default = "usual_mtu")]
    pub mtu: u64,
    /// Link type.
    #[serde(default)]
    pub ntype: String,
    /// `IFF_` flags; the runtime takes over NOARP alone.
    #[serde(default)]
    pub flags: u32,
}

/// A route; empty texts stand for nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Destinations, as address and prefix length.
    #[serde(default)]
    pub dest: String,
    /// The next hop.
    #[serde(default)]
    pub gateway: String,
    /// Source address to prefer.
    #[serde(default)]
    pub source: String,
    /// `RT_SCOPE_`.
    #[serde(default)]
    pub scope: u32,
    /// `RTNH_F_` flags.
    #[serde(default)]
    pub flags: u32,
    /// MTU on the way; 0: not said.
    #[serde(default)]
    pub mtu: u32,
}

/// A neighbour.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbour {
    /// Its address, with a prefix length.
    pub ip_address: Option<String>,
    /// Its MAC address.
    #[serde(default)]
    pub hardware_addr: String,
    /// `NUD_` state.
    #[serde(default)]
    pub state: u32,
    /// `NTF_` flags.
    #[serde(default)]
    pub flags: u32,
}

fn usual_mtu() -> u64 {
    1500
}

/// The file of a sandbox in `directory`.
pub fn path(directory: &Path, sandbox: &str) -> PathBuf {
    directory.join(format!("{sandbox}.json"))
}

/// Reads a file; `None` if there is none.
///
/// # Errors
/// It cannot be read, or is not of the form that the runtime reads; the message names it.
pub fn read(file: &Path) -> Result<Option<Dan>, String> {
    let text = match fs::read(file) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|error| format!("{} cannot be read: {error}", file.display()))?,
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|error| format!("{} is no DAN file: {error}: remove or mend it", file.display()))
}

/// Adds a NIC to a sandbox's file, or replaces the one of its name; makes file and directory where there is none.
///
/// The file is replaced as a whole: whoever reads it sees what was there before or what is there afterwards. Writers lock
/// the directory.
///
/// # Errors
/// The file cannot be read or written.
pub fn put(file: &Path, nic: Nic) -> Result<(), String> {
    let directory = file.parent().unwrap_or(Path::new("/"));
    let made = fs::DirBuilder::new().recursive(true).mode(0o750).create(directory);
    made.map_err(|error| format!("{} cannot be made: {error}", directory.display()))?;
    let _lock = lock(directory)?;
    let mut dan = read(file)?.unwrap_or_default();
    dan.devices.retain(|other| other.name != nic.name);
    dan.devices.push(nic);
    write(file, &dan)
}

/// Removes a NIC from a sandbox's file, and the file with the last one; whether it was there.
///
/// # Errors
/// The file cannot be read or written.
pub fn remove(file: &Path, nic: &str) -> Result<bool, String> {
    let directory = file.parent().unwrap_or(Path::new("/"));
    if !directory.exists() {
        return Ok(false);
    }
    let _lock = lock(directory)?;
    let Some(mut dan) = read(file)? else { return Ok(false) };
    let before = dan.devices.len();
    dan.devices.retain(|other| other.name != nic);
    if dan.devices.len() == before {
        return Ok(false);
    }
    match dan.devices.is_empty() {
        true => {
            fs::remove_file(file).map_err(|error| format!("{} cannot be removed: {error}", file.display()))?
        }
        false => write(file, &dan)?,
    }
    Ok(true)
}

/// Keeps other writers out of a directory until it is dropped.
fn lock(directory: &Path) -> Result<Flock<File>, String> {
    let failed = |error: &dyn std::fmt::Display| format!("{} cannot be locked: {error}", directory.display());
    let opened = File::open(directory).map_err(|error| failed(&error))?;
    Flock::lock(opened, FlockArg::LockExclusive).map_err(|(_, error)| failed(&error))
}

fn write(file: &Path, dan: &Dan) -> Result<(), String> {
    let mut text = serde_json::to_vec_pretty(dan).map_err(|error| error.to_string())?;
    text.push(b'\n');
    replace(file, &text).map_err(|error| format!("{} cannot be written: {error}", file.display()))
}

/// Puts a file in place whole and durable: a new file is written, synchronised, renamed, and its directory synchronised.
/// Missing directories are made, for root alone.
///
/// # Errors
/// The file system refuses; the old file is as it was then.
pub fn replace(file: &Path, text: &[u8]) -> io::Result<()> {
    let directory = file.parent().unwrap_or(Path::new("/"));
    fs::DirBuilder::new().recursive(true).mode(0o750).create(directory)?;
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let temporary = directory.join(format!(".{name}.{}", std::process::id()));
    let written = || {
        let mut new = File::options().write(true).create(true).truncate(true).mode(0o640).open(&temporary)?;
        new.write_all(text)?;
        new.sync_all()?;
        fs::rename(&temporary, file)?;
        File::open(directory)?.sync_all()
    };
    written().inspect_err(|_| {
        let _ = fs::remove_file(&temporary);
    })
}

#[cfg(test)]
mod tests;
