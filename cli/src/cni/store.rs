//! What is attached: one file an attachment, in a directory that every call locks while it reads or changes it.
//!
//! An attachment is written before anything of it is made, so that whatever happens, DEL and GC find what there is to
//! undo. Files are replaced whole and durably, and outlive a restart of the machine: runtimes call DEL or GC then.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use shunt_client::dan::replace;
use shunt_switch::config::Mac;

use super::config::Attachment;
use super::error::Error;

/// A published port, in the words in which shuntd lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Publish {
    /// `tcp` or `udp`.
    pub(crate) proto: String,
    /// Where it is reached.
    pub(crate) listen: String,
    /// Where it leads.
    pub(crate) to: String,
}

/// An attachment: what was or is to be made for a container's device.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The network's name.
    pub(crate) network: String,
    /// `CNI_CONTAINERID`.
    pub(crate) container: String,
    /// `CNI_IFNAME`.
    pub(crate) ifname: String,
    /// The port of the switch; also the name of a TAP on the host.
    pub(crate) port: String,
    /// The bridge.
    pub(crate) bridge: String,
    /// What it is.
    pub(crate) attachment: Attachment,
    /// The MAC address on the container's side.
    pub(crate) mac: Option<Mac>,
    /// Addresses that were given here or by another plugin.
    pub(crate) addresses: Vec<IpNet>,
    /// The switch's interface from whose networks they are, if given here.
    pub(crate) interface: Option<String>,
    /// Whether one is reserved at that interface's DHCP server.
    pub(crate) reserved: bool,
    /// Published ports.
    pub(crate) publish: Vec<Publish>,
    /// Addresses that are masqueraded.
    pub(crate) masquerade: Vec<IpNet>,
    /// The vhost-user socket.
    pub(crate) socket: Option<PathBuf>,
    /// The DAN file.
    pub(crate) dan: Option<PathBuf>,
}

/// The directory, locked.
pub(crate) struct Store {
    directory: PathBuf,
    _lock: Flock<File>,
}

impl Store {
    /// Opens and locks the directory, which is made if it is missing; waits for whoever has it.
    ///
    /// # Errors
    /// It cannot be made or locked.
    pub(crate) fn open(directory: &Path) -> Result<Self, Error> {
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            Error::io(format!("{what} {}: {error}", directory.display()))
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o750)
            .create(directory)
            .map_err(|error| failed("cannot make", &error))?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(directory.join("lock"))
            .map_err(|error| failed("cannot open the lock in", &error))?;
        let lock =
            Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| failed("cannot lock", &error))?;
        Ok(Self { directory: directory.to_path_buf(), _lock: lock })
    }

    fn path(&self, port: &str) -> PathBuf {
        self.directory.join(format!("{port}.json"))
    }

    /// The attachment with this port.
    ///
    /// # Errors
    /// Its file cannot be read or is damaged, which the message names.
    pub(crate) fn get(&self, port: &str) -> Result<Option<Record>, Error> {
        let path = self.path(port);
        match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(format!("cannot read {}: {error}", path.display()))),
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| {
                Error::io(format!("{} is damaged: {error}: remove it, and the port {port}", path.display()))
            }),
        }
    }

    /// All attachments. Files that are damaged are told on standard error and passed over.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub(crate) fn all(&self) -> Result<Vec<Record>, Error> {
        let failed =
            |error: std::io::Error| Error::io(format!("cannot read {}: {error}", self.directory.display()));
        let mut records = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let Some(port) = name.to_str().and_then(|name| name.strip_suffix(".json")) else { continue };
            match self.get(port) {
                Ok(record) => records.extend(record),
                Err(error) => eprintln!("shunt-cni: {}", error.details),
            }
        }
        Ok(records)
    }

    /// Remembers an attachment, in place of what was remembered of its port.
    ///
    /// # Errors
    /// The file system refuses; nothing has changed then.
    pub(crate) fn put(&self, record: &Record) -> Result<(), Error> {
        let path = self.path(&record.port);
        let text = serde_json::to_vec_pretty(record).map_err(Error::io)?;
        replace(&path, &text).map_err(|error| Error::io(format!("cannot write {}: {error}", path.display())))
    }

    /// Forgets an attachment.
    ///
    /// # Errors
    /// The file system refuses.
    pub(crate) fn forget(&self, port: &str) -> Result<(), Error> {
        let path = self.path(port);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(Error::io(format!("cannot remove {}: {error}", path.display())))
            }
            _ => Ok(()),
        }
    }

    /// The address of a family (4 or 6) that was given last on an interface.
    pub(crate) fn last(&self, interface: &str, family: u8) -> Option<std::net::IpAddr> {
        let text = fs::read_to_string(self.directory.join(format!("last.{interface}.{family}"))).ok()?;
        text.trim().parse().ok()
    }

    /// Remembers it. A hint, so that an address rests before it is given again: not worth an error.
    pub(crate) fn set_last(&self, interface: &str, address: std::net::IpAddr) {
        let family = if address.is_ipv4() { 4 } else { 6 };
        let path = self.directory.join(format!("last.{interface}.{family}"));
        if let Err(error) = fs::write(&path, address.to_string()) {
            eprintln!("shunt-cni: cannot write {}: {error}", path.display());
        }
    }
}

/// The name of an attachment's port: 15 characters that belong to network, container and device, of which those after the
/// first are the beginning of the container's id, for people, and the rest (40 bits) tell it apart from others.
///
/// The same in every release: what was made before an upgrade is found after it.
pub(crate) fn port_name(network: &str, container: &str, ifname: &str) -> String {
    // FNV-1a, 64 bits; a zero byte ends each part.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in [network, container, ifname].iter().flat_map(|part| part.bytes().chain([0])) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    let digits = b"0123456789abcdefghjkmnpqrstvwxyz";
    let tail = (0..8).map(|i| char::from(digits[(hash >> (5 * i)) as usize & 31]));
    let head = container.chars().filter(char::is_ascii_alphanumeric).chain(std::iter::repeat('0')).take(6);
    std::iter::once('c').chain(head).chain(tail).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn record(port: &str) -> Record {
        Record {
            network: "net".into(),
            container: "box".into(),
            ifname: "eth0".into(),
            port: port.into(),
            bridge: "shunt0".into(),
            attachment: Attachment::Tap,
            mac: None,
            addresses: vec!["10.0.3.7/24".parse().unwrap()],
            interface: None,
            reserved: false,
            publish: Vec::new(),
            masquerade: Vec::new(),
            socket: None,
            dan: None,
        }
    }

    #[test]
    fn port_names_are_names_and_stay_the_same() {
        assert_eq!(port_name("dbnet", "blue", "eth0"), port_name("dbnet", "blue", "eth0"));
        let name = port_name("podman", "3f2a9c01bd", "eth0");
        assert!(name.starts_with("c3f2a9c") && name.len() == 15, "{name}");
        let mut names = BTreeSet::new();
        for network in ["a", "b"] {
            for container in 0..100 {
                for ifname in ["eth0", "eth1"] {
                    let name = port_name(network, &format!("0123456789abcdef{container}"), ifname);
                    assert!(name.parse::<shunt_switch::config::Name>().is_ok(), "{name}");
                    names.insert(name);
                }
            }
        }
        assert_eq!(names.len(), 400);
        assert_ne!(port_name("a", "bc", "d"), port_name("ab", "c", "d"), "parts do not run into each other");
    }

    #[test]
    fn attachments_are_kept_and_damage_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("a/b")).unwrap();
        assert!(store.get("p").unwrap().is_none() && store.all().unwrap().is_empty());
        store.put(&record("p")).unwrap();
        store.put(&record("q")).unwrap();
        assert_eq!(store.get("p").unwrap().unwrap().addresses, record("p").addresses);
        fs::write(store.path("q"), "{\"network\":").unwrap();
        assert!(store.get("q").unwrap_err().details.contains("q.json is damaged"));
        assert_eq!(store.all().unwrap().len(), 1);
        store.forget("p").unwrap();
        store.forget("p").unwrap();
        assert!(store.get("p").unwrap().is_none());
    }

    #[test]
    fn one_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let order = std::sync::Mutex::new(Vec::new());
        let store = Store::open(directory.path()).unwrap();
        std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                let _store = Store::open(directory.path()).unwrap();
                order.lock().unwrap().push("other");
            });
            order.lock().unwrap().push("first");
            drop(store);
            other.join().unwrap();
        });
        assert_eq!(*order.lock().unwrap(), ["first", "other"]);
    }
}
