//! What one process tells another so that it can go on with a port in its place: numbers and descriptors.
//!
//! [`Device::export`](crate::device::Device::export) describes a port whose control thread stands still;
//! [`Device::resume`](crate::device::Device::resume) makes it again elsewhere, where it stands still, too, until
//! [`Device::go_on`](crate::device::Device::go_on). Descriptors travel beside the description, which names them by
//! their place in [`Descriptors`]. What comes in is checked as strictly as what a frontend says.

#![forbid(unsafe_code)]

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use serde::{Deserialize, Serialize};

/// Descriptors that belong to a description.
#[derive(Debug, Default)]
pub struct Descriptors(Vec<Option<OwnedFd>>);

impl Descriptors {
    /// Those that came along, in their order.
    pub fn new(descriptors: Vec<OwnedFd>) -> Self {
        Self(descriptors.into_iter().map(Some).collect())
    }

    /// Adds another descriptor of the same thing; its place.
    ///
    /// # Errors
    /// No descriptor is to be had.
    pub fn add(&mut self, descriptor: impl AsFd) -> io::Result<u32> {
        self.0.push(Some(descriptor.as_fd().try_clone_to_owned()?));
        Ok(self.0.len() as u32 - 1)
    }

    /// Takes a descriptor out.
    ///
    /// # Errors
    /// There is none at this place, or it was taken already.
    pub fn take(&mut self, place: u32) -> Result<OwnedFd, HandoverError> {
        let descriptor = self.0.get_mut(place as usize).and_then(Option::take);
        descriptor.ok_or(HandoverError::NoDescriptor(place))
    }

    /// All of them, to be sent.
    pub fn into_vec(self) -> Vec<OwnedFd> {
        self.0.into_iter().flatten().collect()
    }

    /// How many there are, those that were taken included.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Why a port cannot be gone on with.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// The description names a descriptor that did not come along.
    #[error("descriptor {0} is missing")]
    NoDescriptor(u32),
    /// The description contradicts itself or the port's configuration.
    #[error("{0}")]
    Invalid(String),
    /// The kernel refused.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// A piece of a guest's memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegionState {
    /// Guest physical address.
    pub gpa: u64,
    /// Bytes.
    pub size: u64,
    /// Where the frontend sees it.
    pub user_addr: u64,
    /// Where it begins in its file.
    pub offset: u64,
    /// The file.
    pub file: u32,
}

/// How a guest says that there is something in a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KickState {
    /// The frontend has not said it: the ring does not run.
    Unknown,
    /// It does not; the ring is polled.
    Never,
    /// By this eventfd.
    By(u32),
}

/// A ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RingState {
    /// Entries; 0 if the frontend has not said it.
    pub size: u16,
    /// Where descriptors, available and used ring are, in the frontend's addresses.
    pub addresses: Option<[u64; 3]>,
    /// Where the ring stands, as the answer to GET_VRING_BASE has it; `None` before SET_VRING_BASE.
    pub base: Option<u32>,
    /// How the guest kicks.
    pub kick: KickState,
    /// How the guest is interrupted.
    pub call: Option<u32>,
    /// How the frontend is told that the ring broke.
    pub err: Option<u32>,
    /// Whether it is enabled.
    pub enabled: bool,
    /// Whether it runs: all that it needs is known, and it lies in the guest's memory.
    pub running: bool,
    /// The number of what broke it, if something did.
    pub fault: Option<u8>,
    /// The guest address at which changes of its used ring are logged, if they are.
    pub log: Option<u64>,
}

/// The record of what is in flight, which the frontend keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InflightState {
    /// Queues that it has room for.
    pub queues: u16,
    /// Entries of the longest of them.
    pub size: u16,
    /// Whether it is one of packed rings.
    pub packed: bool,
    /// Where it begins in its file.
    pub offset: u64,
    /// The file.
    pub file: u32,
}

/// The dirty log of a live migration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogState {
    /// Its length.
    pub bytes: u64,
    /// Where it begins in its file.
    pub offset: u64,
    /// The file.
    pub file: u32,
}

/// A connection with a frontend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionState {
    /// The connected socket.
    pub connection: u32,
    /// Features that the driver accepted; `None` before SET_FEATURES.
    pub features: Option<u64>,
    /// Protocol features that the frontend accepted.
    pub protocol_features: u64,
    /// The guest's memory.
    pub regions: Vec<RegionState>,
    /// All rings, by index.
    pub rings: Vec<RingState>,
    /// The record of what is in flight, if the frontend keeps one.
    pub inflight: Option<InflightState>,
    /// The dirty log, once there was a migration.
    pub log: Option<LogState>,
    /// Written to after something was logged.
    pub log_call: Option<u32>,
}

/// A vhost-user port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceState {
    /// The listening socket, in the server role.
    pub listener: Option<u32>,
    /// The connection, if there is one that can be handed over.
    pub session: Option<SessionState>,
    /// Without one: what is to be said about that, and whether the last frontend or its guest broke the rules.
    pub waiting: Option<(String, bool)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_is_taken_once() {
        let mut descriptors = Descriptors::default();
        let place = descriptors.add(io::stderr()).unwrap();
        assert_eq!((place, descriptors.len()), (0, 1));
        descriptors.take(0).unwrap();
        for place in [0, 1, u32::MAX] {
            assert_eq!(
                descriptors.take(place).unwrap_err().to_string(),
                format!("descriptor {place} is missing")
            );
        }
        assert!(descriptors.into_vec().is_empty());
    }
}
