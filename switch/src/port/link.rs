//! Network devices as the kernel describes them (rtnetlink's link messages): look one up, change it, and hold what is
//! known about it where others can read it without a system call.
#![forbid(unsafe_code)]

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
};

use nix::libc;
use serde::{Deserialize, Serialize};

use super::netlink::{Message, Netlink, Request, attribute, attributes, u32_value};

/// `IFF_LOWER_UP`: the carrier is there.
const LOWER_UP: u32 = 1 << 16;
/// Bytes of `struct ifinfomsg`.
pub(super) const INFO: usize = 16;

/// The link of a port's device as last seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkState {
    /// Frames can pass.
    pub up: bool,
    /// Why not, for the operator; or what is worth knowing although they can.
    pub reason: Option<String>,
}

/// A device as the kernel described it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LinkInfo {
    pub(super) index: u32,
    pub(super) name: String,
    /// `ARPHRD_` type.
    pub(super) hardware: u16,
    /// `IFF_` flags.
    pub(super) flags: u32,
    pub(super) mtu: u32,
    pub(super) mac: Option<[u8; 6]>,
    /// Index of the bridge, bond or the like that owns it.
    pub(super) master: Option<u32>,
    /// What somebody has noted about it (`ip link set dev NAME alias TEXT`).
    pub(super) alias: String,
    /// `tun`, `veth`, ...; empty for hardware.
    pub(super) kind: String,
    pub(super) tun: TunInfo,
}

/// What a device of kind `tun` says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TunInfo {
    /// It is a TAP and not a TUN.
    pub(super) tap: bool,
    pub(super) persist: bool,
    pub(super) multi_queue: bool,
    /// Queues that some process holds.
    pub(super) queues: u32,
}

impl LinkInfo {
    /// Reads an `RTM_NEWLINK` or `RTM_DELLINK`.
    pub(super) fn parse(message: &Message<'_>) -> Option<Self> {
        let fixed: &[u8; INFO] = message.body.first_chunk()?;
        let mut link = Self {
            hardware: u16::from_ne_bytes([fixed[2], fixed[3]]),
            index: u32_value(&fixed[4..])?,
            flags: u32_value(&fixed[8..])?,
            ..Self::default()
        };
        for (kind, value) in attributes(&message.body[INFO..]) {
            match kind {
                libc::IFLA_IFNAME => link.name = text(value),
                libc::IFLA_MTU => link.mtu = u32_value(value)?,
                libc::IFLA_ADDRESS => link.mac = value.try_into().ok(),
                libc::IFLA_IFALIAS => link.alias = text(value),
                libc::IFLA_MASTER => link.master = u32_value(value),
                libc::IFLA_LINKINFO => {
                    link.kind = attribute(value, libc::IFLA_INFO_KIND).map(text).unwrap_or_default();
                    if link.kind == "tun"
                        && let Some(data) = attribute(value, libc::IFLA_INFO_DATA)
                    {
                        link.tun = TunInfo::parse(data);
                    }
                }
                _ => {}
            }
        }
        Some(link)
    }

    pub(super) fn is_up(&self) -> bool {
        self.flags & libc::IFF_UP as u32 != 0
    }
}

impl TunInfo {
    /// `IFLA_TUN_TYPE` (an `IFF_TUN` or `IFF_TAP`), `_PERSIST`, `_MULTI_QUEUE`, `_NUM_QUEUES` of linux/if_link.h.
    fn parse(data: &[u8]) -> Self {
        let byte = |kind| attribute(data, kind).and_then(|v| v.first().copied()).unwrap_or(0);
        Self {
            tap: i32::from(byte(3)) == libc::IFF_TAP,
            persist: byte(6) != 0,
            multi_queue: byte(7) != 0,
            queues: attribute(data, 8).and_then(u32_value).unwrap_or(0),
        }
    }
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).trim_end_matches('\0').to_owned()
}

fn info_message(index: u32, flags: u32, change: u32) -> [u8; INFO] {
    let mut fixed = [0; INFO];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..12].copy_from_slice(&flags.to_ne_bytes());
    fixed[12..].copy_from_slice(&change.to_ne_bytes());
    fixed
}

/// The MTU of the device `name` in the namespace of this thread, or `None` if there is no such device.
///
/// # Errors
/// The kernel does not answer.
pub fn mtu_of(name: &str) -> io::Result<Option<u32>> {
    Ok(Netlink::open(0)?.link_by_name(name)?.map(|link| link.mtu))
}

/// A change of a device: any of its attributes at once.
#[derive(Clone, Copy, Default)]
pub(super) struct LinkChange {
    pub(super) mtu: Option<u32>,
    pub(super) mac: Option<[u8; 6]>,
    pub(super) alias: Option<&'static str>,
    /// Values and mask of `IFF_` flags.
    pub(super) flags: Option<(u32, u32)>,
}

impl Netlink {
    /// The device `name`, or `None` if there is none.
    pub(super) fn link_by_name(&mut self, name: &str) -> io::Result<Option<LinkInfo>> {
        let mut zero_ended = name.as_bytes().to_vec();
        zero_ended.push(0);
        self.one_link(
            Request::new(libc::RTM_GETLINK, 0, &info_message(0, 0, 0))
                .attribute(libc::IFLA_IFNAME, &zero_ended),
        )
    }

    /// The device with `index`, or `None` if there is none.
    pub(super) fn link_by_index(&mut self, index: u32) -> io::Result<Option<LinkInfo>> {
        self.one_link(Request::new(libc::RTM_GETLINK, 0, &info_message(index, 0, 0)))
    }

    fn one_link(&mut self, request: Request) -> io::Result<Option<LinkInfo>> {
        let mut found = None;
        match self.query(request, &mut |m| found = LinkInfo::parse(&m)) {
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(e) => Err(e),
            Ok(()) => Ok(found),
        }
    }

    /// Changes the device with `index`.
    pub(super) fn change_link(&mut self, index: u32, change: LinkChange) -> io::Result<()> {
        let (flags, mask) = change.flags.unwrap_or_default();
        let mut request = Request::new(libc::RTM_NEWLINK, 0, &info_message(index, flags, mask));
        if let Some(mtu) = change.mtu {
            request = request.attribute(libc::IFLA_MTU, &mtu.to_ne_bytes());
        }
        if let Some(mac) = change.mac {
            request = request.attribute(libc::IFLA_ADDRESS, &mac);
        }
        if let Some(alias) = change.alias {
            request = request.attribute(libc::IFLA_IFALIAS, alias.as_bytes());
        }
        self.change(request)
    }
}

/// What is known about the device of a port: written by the watcher, read by anybody without waiting.
pub(super) struct LinkCell {
    device: String,
    /// Its descriptors go on working when it is moved to another namespace (TAP).
    portable: bool,
    condition: AtomicU8,
    mtu: AtomicU32,
    mac: AtomicU64,
    changed: Mutex<Option<Changed>>,
}

/// What is known about a device, for another process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LinkKept {
    device: String,
    condition: u8,
    mtu: u32,
    mac: [u8; 6],
}

impl LinkKept {
    /// Whether the device had left its namespace.
    pub(super) fn is_gone(&self) -> bool {
        matches!(self.condition, REMOVED | MOVED)
    }
}

/// Called by the watcher's thread after something about the device changed.
pub type Changed = Arc<dyn Fn() + Send + Sync>;

const UP: u8 = 0;
const ADMIN_DOWN: u8 = 1;
const NO_CARRIER: u8 = 2;
const REMOVED: u8 = 3;
const MOVED: u8 = 4;

impl LinkCell {
    pub(super) fn new(link: &LinkInfo, portable: bool) -> Self {
        let cell = Self {
            device: link.name.clone(),
            portable,
            condition: AtomicU8::new(UP),
            mtu: AtomicU32::new(0),
            mac: AtomicU64::new(0),
            changed: Mutex::new(None),
        };
        cell.update(link);
        cell
    }

    /// As another process knew it.
    pub(super) fn resume(kept: &LinkKept, portable: bool) -> Self {
        let [a, b, c, d, e, f] = kept.mac;
        Self {
            device: kept.device.clone(),
            portable,
            condition: AtomicU8::new(kept.condition.min(MOVED)),
            mtu: AtomicU32::new(kept.mtu),
            mac: AtomicU64::new(u64::from_be_bytes([0, 0, a, b, c, d, e, f])),
            changed: Mutex::new(None),
        }
    }

    /// What is known, for another process.
    pub(super) fn export(&self) -> LinkKept {
        let condition = self.condition.load(Relaxed);
        LinkKept { device: self.device.clone(), condition, mtu: self.mtu(), mac: self.mac() }
    }

    /// Takes over what the kernel says; returns whether that is news.
    pub(super) fn update(&self, link: &LinkInfo) -> bool {
        let condition = if !link.is_up() {
            ADMIN_DOWN
        } else if link.flags & LOWER_UP == 0 {
            NO_CARRIER
        } else {
            UP
        };
        let [a, b, c, d, e, f] = link.mac.unwrap_or_default();
        let mac = u64::from_be_bytes([0, 0, a, b, c, d, e, f]);
        let old = (
            self.condition.swap(condition, Relaxed),
            self.mtu.swap(link.mtu, Relaxed),
            self.mac.swap(mac, Relaxed),
        );
        old != (condition, link.mtu, mac)
    }

    /// The device is gone from its namespace: removed, or (`moved`) carried into another one.
    pub(super) fn gone(&self, moved: bool) -> bool {
        let condition = if moved { MOVED } else { REMOVED };
        self.condition.swap(condition, Relaxed) != condition
    }

    /// Whether the device has left its namespace.
    #[inline]
    pub(super) fn is_gone(&self) -> bool {
        matches!(self.condition.load(Relaxed), REMOVED | MOVED)
    }

    pub(super) fn state(&self) -> LinkState {
        let condition = self.condition.load(Relaxed);
        let what = match condition {
            UP => return LinkState { up: true, reason: None },
            ADMIN_DOWN => "is administratively down",
            NO_CARRIER => "has no carrier",
            MOVED if self.portable => "was moved to another network namespace and is not followed there",
            MOVED => "was moved to another network namespace",
            _ => "was removed",
        };
        LinkState {
            up: condition == MOVED && self.portable,
            reason: Some(format!("device {} {what}", self.device)),
        }
    }

    pub(super) fn mtu(&self) -> u32 {
        self.mtu.load(Relaxed)
    }

    pub(super) fn mac(&self) -> [u8; 6] {
        let [_, _, a, b, c, d, e, f] = self.mac.load(Relaxed).to_be_bytes();
        [a, b, c, d, e, f]
    }

    pub(super) fn on_change(&self, changed: Option<Changed>) {
        *self.changed.lock().unwrap_or_else(PoisonError::into_inner) = changed;
    }

    pub(super) fn tell(&self) {
        let changed = self.changed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(changed) = changed {
            changed();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_tells_the_reason_and_what_is_news() {
        let mut link = LinkInfo {
            name: "tap7".into(),
            flags: libc::IFF_UP as u32 | LOWER_UP,
            mtu: 1500,
            mac: Some([2, 0, 0, 0, 0, 9]),
            ..LinkInfo::default()
        };
        let cell = LinkCell::new(&link, false);
        assert_eq!(cell.state(), LinkState { up: true, reason: None });
        assert_eq!((cell.mtu(), cell.mac()), (1500, [2, 0, 0, 0, 0, 9]));
        assert!(!cell.update(&link));
        link.flags = libc::IFF_UP as u32;
        assert!(cell.update(&link));
        assert_eq!(cell.state().reason.unwrap(), "device tap7 has no carrier");
        link.flags = 0;
        assert!(cell.update(&link));
        assert_eq!(cell.state().reason.unwrap(), "device tap7 is administratively down");
        assert!(!cell.export().is_gone());
        assert!(cell.gone(false) && !cell.gone(false));
        assert_eq!(cell.state().reason.unwrap(), "device tap7 was removed");
        let kept = cell.export();
        let next = LinkCell::resume(&kept, false);
        assert!(kept.is_gone() && next.is_gone());
        assert_eq!((next.state(), next.mtu(), next.mac()), (cell.state(), cell.mtu(), cell.mac()));
    }
}
