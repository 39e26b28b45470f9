//! What a synchronisation daemon is told (`ipvsadm --start-daemon`) and what it says of itself: plain values.
#![forbid(unsafe_code)]

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

/// The group that messages go to if none is named.
pub const GROUP: IpAddr = IpAddr::V4(Ipv4Addr::new(224, 0, 0, 81));
/// The UDP port that messages go to if none is named.
pub const PORT: u16 = 8848;
/// The hop limit of multicast messages if none is named.
pub const TTL: u8 = 1;
/// The longest name of a network interface (IFNAMSIZ without the terminating zero).
const NAME_LENGTH: usize = 15;
/// The longest UDP payloads, by family.
const LONGEST: [u16; 2] = [65_535 - 28, 65_535 - 48];
/// The MTU that a master counts with, and a backup at least.
const MTU: u32 = 1500;
/// The shortest buffer of a backup.
const SHORTEST_RECEIVED: u16 = 1024;

/// What a daemon does. A director may run one of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Tells others of its connections.
    Master,
    /// Listens, and keeps connections of which it is told.
    Backup,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Master => "master",
            Self::Backup => "backup",
        })
    }
}

/// A daemon as somebody asks for it. What is `None` has the default that Linux has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DaemonSpec {
    /// Master or backup.
    pub role: Role,
    /// `--mcast-interface`: the network interface that messages leave and arrive by, of the daemon's namespace.
    pub interface: String,
    /// `--syncid`: a number that messages bear; a backup with another one than 0 takes only messages with its own.
    pub sync_id: u8,
    /// `--sync-maxlen`: the longest UDP payload in bytes; none: what a frame of the interface holds.
    pub max_length: Option<u16>,
    /// `--mcast-group`: where messages go to. A multicast group or (beyond Linux) the address of the other director:
    /// for a master whom to tell, for a backup which of its own addresses to listen at.
    pub group: Option<IpAddr>,
    /// `--mcast-port`: the UDP port.
    pub port: Option<u16>,
    /// `--mcast-ttl`: hop limit of multicast messages.
    pub ttl: Option<u8>,
}

/// A daemon's settings with nothing left open, as `ipvsadm -L --daemon` lists them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DaemonConfig {
    /// Master or backup.
    pub role: Role,
    /// The network interface.
    pub interface: String,
    /// The sync ID.
    pub sync_id: u8,
    /// Longest UDP payload in bytes.
    pub max_length: u16,
    /// Where messages go to.
    pub group: IpAddr,
    /// The UDP port.
    pub port: u16,
    /// Hop limit.
    pub ttl: u8,
}

/// Why a daemon was not started or stopped. The first four are errors that Linux has, too.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// A daemon of this role runs already (EEXIST).
    #[error("a {0} daemon runs already: stop it first")]
    Exists(Role),
    /// There is no daemon of this role (ESRCH).
    #[error("no {0} daemon runs")]
    NotRunning(Role),
    /// There is no such network interface (ENODEV).
    #[error("there is no network interface {0:?} in the daemon's namespace")]
    NoSuchInterface(String),
    /// A value cannot be (EINVAL).
    #[error("{0}")]
    Invalid(String),
    /// The system refused a socket or thread.
    #[error("the {role} daemon cannot {action}: {source}")]
    System {
        /// Whose.
        role: Role,
        /// What could not be done.
        action: &'static str,
        /// Why.
        source: std::io::Error,
    },
}

impl DaemonSpec {
    /// A daemon with all defaults.
    pub fn new(role: Role, interface: impl Into<String>) -> Self {
        let interface = interface.into();
        Self { role, interface, sync_id: 0, max_length: None, group: None, port: None, ttl: None }
    }

    /// Fills in what was left open. `mtu` is the interface's.
    ///
    /// # Errors
    /// [`DaemonError::Invalid`] for a name or group that cannot be.
    pub fn complete(&self, mtu: u32) -> Result<DaemonConfig, DaemonError> {
        if self.interface.is_empty()
            || self.interface.len() > NAME_LENGTH
            || self.interface.contains(['/', '\0', ' '])
        {
            return Err(DaemonError::Invalid(format!(
                "{:?} is no name of a network interface: 1 to {NAME_LENGTH} bytes without blank and slash",
                self.interface
            )));
        }
        let group = self.group.unwrap_or(GROUP);
        if group.is_unspecified() || group == IpAddr::V4(Ipv4Addr::BROADCAST) {
            return Err(DaemonError::Invalid(format!(
                "messages cannot go to {group}: name a multicast group or the other director's address"
            )));
        }
        let longest = LONGEST[usize::from(group.is_ipv6())];
        let header = if group.is_ipv6() { 48 } else { 28 };
        let max_length = match (self.max_length.filter(|&length| length != 0), self.role) {
            (Some(length), Role::Master) => length.clamp(1, longest),
            (Some(length), Role::Backup) => length.clamp(SHORTEST_RECEIVED, longest),
            (None, Role::Master) => (MTU - header) as u16,
            (None, Role::Backup) => (mtu.clamp(MTU, 65_535) - header) as u16,
        };
        Ok(DaemonConfig {
            role: self.role,
            interface: self.interface.clone(),
            sync_id: self.sync_id,
            max_length,
            group,
            port: self.port.filter(|&port| port != 0).unwrap_or(PORT),
            ttl: self.ttl.filter(|&ttl| ttl != 0).unwrap_or(TTL),
        })
    }
}

/// When a connection's record is sent, and what of others' records is kept: the `net.ipv4.vs` settings of Linux.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SyncSettings {
    /// `sync_threshold`, first value: the packet of each period at which a connection is told of.
    pub threshold: u32,
    /// `sync_threshold`, second value: packets of a period; 0: once, at the threshold.
    pub period: u32,
    /// `sync_refresh_period`: seconds. If not 0, a connection is told of when its end has moved by so much.
    pub refresh_period: u32,
    /// `sync_retries`: how often a record is repeated, an eighth of the refresh period apart; 0 to 3.
    pub retries: u8,
    /// `sync_persist_mode`: connections under a template are not told of, the template is.
    pub templates_only: bool,
}

impl Default for SyncSettings {
    fn default() -> Self {
        Self { threshold: 3, period: 50, refresh_period: 0, retries: 0, templates_only: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_open_is_as_in_linux() {
        let master = DaemonSpec::new(Role::Master, "eth0").complete(9000).unwrap();
        assert_eq!((master.max_length, master.group, master.port, master.ttl), (1472, GROUP, 8848, 1));
        let backup = DaemonSpec::new(Role::Backup, "eth0");
        assert_eq!(backup.complete(9000).unwrap().max_length, 8972);
        assert_eq!(backup.complete(1280).unwrap().max_length, 1472);
        let mut six = DaemonSpec::new(Role::Master, "eth0");
        six.group = Some("ff02::51".parse().unwrap());
        assert_eq!(six.complete(1500).unwrap().max_length, 1452);
    }

    #[test]
    fn lengths_are_clamped() {
        let length = |role, length| {
            let spec = DaemonSpec { max_length: Some(length), ..DaemonSpec::new(role, "eth0") };
            spec.complete(1500).unwrap().max_length
        };
        assert_eq!(length(Role::Master, 1), 1);
        assert_eq!(length(Role::Backup, 1), 1024);
        assert_eq!(length(Role::Backup, 65_535), 65_507);
        assert_eq!(length(Role::Master, 0), 1472);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for name in ["", "a-name-of-16-byte", "a/b", "a b", "a\0"] {
            assert!(DaemonSpec::new(Role::Master, name).complete(1500).is_err(), "{name:?}");
        }
        for group in ["0.0.0.0", "255.255.255.255", "::"] {
            let spec = DaemonSpec { group: group.parse().ok(), ..DaemonSpec::new(Role::Backup, "eth0") };
            assert!(spec.complete(1500).is_err(), "{group}");
        }
    }
}
