//! Keeps the host's own network stack off a device, and brings it back exactly as it was.
//!
//! Packet sockets see frames without taking them away from the host. While a device is a port of the switch its
//! addresses are removed (and with them its routes), ARP and IPv6 are off, and arriving frames are dropped behind the
//! sockets: by a classifier at ingress where the kernel has one (`clsact` with `bpf`), and by a strict reverse path
//! filter, which no IPv4 source passes on a device without routes. Addresses and routes are kept as the kernel's own
//! messages and replayed on drop. What others add to the device meanwhile is theirs and stays.
#![forbid(unsafe_code)]

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use nix::libc;
use serde::{Deserialize, Serialize};
use vhost_backend::handover::Descriptors;

use super::{
    device::{NET_ADMIN, OpenError},
    link::{LinkChange, LinkInfo},
    netlink::{Netlink, Request, attribute, u32_value},
    netns::Netns,
};

const UP: u32 = libc::IFF_UP as u32;
const NO_ARP: u32 = libc::IFF_NOARP as u32;
/// Bytes of `struct ifaddrmsg` and `struct rtmsg`.
const ADDRESS: usize = 8;
const ROUTE: usize = 12;

/// What is to be given back to the host some day: for another process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HostStackState {
    link: LinkInfo,
    addresses: Vec<Vec<u8>>,
    routes: Vec<Vec<u8>>,
    settings: Vec<(String, String)>,
    filter: Option<Filter>,
    netns: Option<u32>,
}

/// A device without the host's stack; gives it back when dropped.
pub(super) struct HostStack {
    netns: Netns,
    netlink: Netlink,
    /// As it was before.
    link: LinkInfo,
    addresses: Vec<Vec<u8>>,
    routes: Vec<Vec<u8>>,
    /// Settings that were changed, below `/proc/sys/net`, with a `*` for the device's name; and their old values.
    settings: Vec<(&'static str, String)>,
    filter: Option<Filter>,
    /// The device is ours: not another process' still, or again.
    ours: AtomicBool,
}

/// Our part of the device's traffic control.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Filter {
    /// The queueing discipline at ingress is ours, with the filter in it.
    Whole,
    /// Only the filter is.
    Only,
}

/// New values of settings below `/proc/sys/net`.
const SETTINGS: [(&str, &str); 3] =
    [("ipv6/conf/*/disable_ipv6", "1"), ("ipv4/conf/*/rp_filter", "1"), ("ipv4/conf/*/forwarding", "0")];

impl HostStack {
    /// Takes the stack off `link` and sets the device up.
    pub(super) fn take(netns: Netns, mut netlink: Netlink, link: LinkInfo) -> Result<Self, OpenError> {
        let failed = |doing: &str, e: io::Error| {
            OpenError::system(format!("{doing} device {}", link.name), NET_ADMIN, e)
        };
        let addresses = objects(&mut netlink, libc::RTM_GETADDR, &[0; ADDRESS], |body| {
            body.get(4..).and_then(u32_value) == Some(link.index)
        })
        .map_err(|e| failed("read the addresses of", e))?;
        let routes =
            objects(&mut netlink, libc::RTM_GETROUTE, &[0; ROUTE], |body| is_route(body, link.index))
                .map_err(|e| failed("read the routes of", e))?;
        let flags = LinkChange { flags: Some((UP | NO_ARP, UP | NO_ARP)), ..LinkChange::default() };
        // From here on whatever was done is undone when `stack` is dropped.
        let (settings, filter, ours) = (Vec::new(), None, AtomicBool::new(true));
        let mut stack = Self { netns, netlink, link, addresses, routes, settings, filter, ours };
        let name = stack.link.name.clone();
        let doing =
            |doing: &str, e: io::Error| OpenError::system(format!("{doing} device {name}"), NET_ADMIN, e);
        stack.settings = stack.netns.run(|| apply_settings(&name))?;
        for address in &stack.addresses {
            match stack.netlink.change(Request::new(libc::RTM_DELADDR, 0, address)) {
                // IPv6 addresses went with IPv6, secondary ones with their primary.
                Err(e) if !is(&e, &[libc::EADDRNOTAVAIL, libc::ENODEV]) => {
                    return Err(doing("remove an address of", e));
                }
                _ => {}
            }
        }
        stack.netlink.change_link(stack.link.index, flags).map_err(|e| doing("set up", e))?;
        stack.filter = match drop_at_ingress(&mut stack.netlink, stack.link.index) {
            Ok(filter) => Some(filter),
            Err(e) => {
                tracing::debug!(device = name, "no ingress filter ({e}); the reverse path filter has to do");
                None
            }
        };
        Ok(stack)
    }

    /// Describes it for another process.
    pub(super) fn export(&self, descriptors: &mut Descriptors) -> io::Result<HostStackState> {
        Ok(HostStackState {
            link: self.link.clone(),
            addresses: self.addresses.clone(),
            routes: self.routes.clone(),
            settings: self.settings.iter().map(|(name, old)| ((*name).to_owned(), old.clone())).collect(),
            filter: self.filter,
            netns: self.netns.file().map(|file| descriptors.add(file)).transpose()?,
        })
    }

    /// Goes on in the place of another process, whose device it is until [`HostStack::own`]; also the device's index.
    pub(super) fn resume(
        netns: Option<&Path>,
        device: &str,
        state: &HostStackState,
        descriptors: &mut Descriptors,
    ) -> Result<(Self, u32), OpenError> {
        let unfit = |why: String| OpenError::Unfit { device: device.to_owned(), why };
        let file = state.netns.map(|place| descriptors.take(place).map(fs::File::from)).transpose();
        let netns = Netns::adopt(netns, file.map_err(|e| unfit(e.to_string()))?)?;
        let failed = |e: io::Error| OpenError::system(format!("attach to device {device}"), NET_ADMIN, e);
        let netlink = netns.run(|| Netlink::open(0))?.map_err(failed)?;
        let known =
            |name: &String| SETTINGS.iter().find(|(setting, _)| setting == name).map(|(setting, _)| *setting);
        let mut settings = Vec::new();
        for (name, old) in &state.settings {
            let setting =
                known(name).ok_or_else(|| unfit(format!("has an unknown setting {name:?} to restore")))?;
            settings.push((setting, old.clone()));
        }
        // Netlink messages: the kernel checks what is in them, we that they have their fixed part.
        if state.addresses.iter().any(|address| address.len() < ADDRESS)
            || state.routes.iter().any(|route| route.len() < ROUTE)
        {
            return Err(unfit("has addresses or routes to restore that are cut off".into()));
        }
        let index = state.link.index;
        let stack = Self {
            netns,
            netlink,
            link: state.link.clone(),
            addresses: state.addresses.clone(),
            routes: state.routes.clone(),
            settings,
            filter: state.filter,
            ours: AtomicBool::new(false),
        };
        Ok((stack, index))
    }

    /// The device is ours from now on.
    pub(super) fn own(&self) {
        self.ours.store(true, Ordering::Relaxed);
    }

    /// The device's namespace.
    pub(super) fn netns(&self) -> &Netns {
        &self.netns
    }

    fn give_back(&mut self) -> Result<(), OpenError> {
        let index = self.link.index;
        let failed = |doing: &str, e: io::Error| OpenError::system(doing, NET_ADMIN, e);
        // The device may have another name by now, or be gone with everything that there was to restore.
        let now = self.netlink.link_by_index(index).map_err(|e| failed("look it up", e))?;
        let Some(now) = now else { return Ok(()) };
        let mut first = Ok(());
        let mut note = |doing: &str, result: io::Result<()>| {
            if let Err(e) = result
                && first.is_ok()
            {
                first = Err(failed(doing, e));
            }
        };
        let flags = (self.link.flags & (UP | NO_ARP), UP | NO_ARP);
        let change = LinkChange { flags: Some(flags), ..LinkChange::default() };
        note("restore its flags", self.netlink.change_link(index, change));
        let settings = std::mem::take(&mut self.settings);
        note(
            "restore its settings",
            self.netns.run(|| {
                // All of them, also when one fails.
                let results: Vec<_> =
                    settings.iter().map(|(setting, old)| fs::write(path(setting, &now.name), old)).collect();
                results.into_iter().collect()
            })?,
        );
        let create = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        // The kernel appends IPv4 addresses to those of their scope and puts IPv6 ones in front of them.
        let is_ipv6 = |address: &&Vec<u8>| address.first() == Some(&(libc::AF_INET6 as u8));
        let ipv4 = self.addresses.iter().filter(|a| !is_ipv6(a));
        let ipv6 = self.addresses.iter().filter(is_ipv6).rev();
        for address in ipv4.chain(ipv6) {
            let request = Request::new(libc::RTM_NEWADDR, create, address);
            note("restore an address", ignore(self.netlink.change(request), &[libc::EEXIST]));
        }
        // A route may need another one to reach its gateway: those without a gateway come first.
        let (direct, indirect): (Vec<_>, Vec<_>) =
            self.routes.iter().partition(|route| attribute(&route[ROUTE..], libc::RTA_GATEWAY).is_none());
        for route in direct.into_iter().chain(indirect) {
            let request = Request::new(libc::RTM_NEWROUTE, libc::NLM_F_CREATE, route);
            note("restore a route", ignore(self.netlink.change(request), &[libc::EEXIST]));
        }
        if let Some(filter) = self.filter {
            note(
                "remove the ingress filter",
                ignore(filter.remove(&mut self.netlink, index), &[libc::ENOENT]),
            );
        }
        first
    }
}

impl Drop for HostStack {
    fn drop(&mut self) {
        if !self.ours.load(Ordering::Relaxed) {
            return;
        }
        if let Err(e) = self.give_back() {
            tracing::warn!("device {} was not given back to the host whole: {e}", self.link.name);
        }
    }
}

fn is(e: &io::Error, errnos: &[i32]) -> bool {
    e.raw_os_error().is_some_and(|errno| errnos.contains(&errno))
}

fn ignore(result: io::Result<()>, errnos: &[i32]) -> io::Result<()> {
    result.or_else(|e| if is(&e, errnos) { Ok(()) } else { Err(e) })
}

fn path(setting: &str, device: &str) -> PathBuf {
    let mut path = PathBuf::from("/proc/sys/net");
    path.extend(setting.split('/').map(|part| if part == "*" { device } else { part }));
    path
}

/// Writes all settings that exist; returns those that were changed, with their old values.
fn apply_settings(device: &str) -> Vec<(&'static str, String)> {
    let mut changed = Vec::new();
    for (setting, value) in SETTINGS {
        let path = path(setting, device);
        let Ok(old) = fs::read_to_string(&path) else { continue };
        if old.trim() == value {
            continue;
        }
        match fs::write(&path, value) {
            Ok(()) => changed.push((setting, old)),
            Err(e) => tracing::warn!("cannot write {value} to {}: {e}", path.display()),
        }
    }
    changed
}

/// All objects of a kind that `keep` wants, as the kernel describes them.
fn objects(
    netlink: &mut Netlink,
    kind: u16,
    fixed: &[u8],
    keep: impl Fn(&[u8]) -> bool,
) -> io::Result<Vec<Vec<u8>>> {
    let mut kept = Vec::new();
    netlink.query(Request::new(kind, libc::NLM_F_DUMP, fixed), &mut |message| {
        if keep(message.body) {
            kept.push(message.body.to_vec());
        }
    })?;
    Ok(kept)
}

/// Whether a route leads over the device and does not come back by itself: the kernel makes those of addresses
/// (`RTPROT_KERNEL`), routers announce theirs (`RTPROT_RA`).
fn is_route(body: &[u8], index: u32) -> bool {
    let Some(fixed) = body.first_chunk::<ROUTE>() else { return false };
    let (protocol, kind) = (fixed[5], fixed[7]);
    let flags = u32_value(&fixed[8..]).unwrap_or(0);
    kind == libc::RTN_UNICAST
        && ![libc::RTPROT_KERNEL, libc::RTPROT_REDIRECT, 9].contains(&protocol)
        && flags & libc::RTM_F_CLONED == 0
        && attribute(&body[ROUTE..], libc::RTA_OIF).and_then(u32_value) == Some(index)
}

/// `TC_H_CLSACT` and its ingress side, of linux/pkt_sched.h.
const CLSACT: u32 = 0xffff_fff1;
const INGRESS: u32 = 0xffff_fff2;
/// Our filter: the first to be asked, for all protocols.
const FILTER_INFO: u32 = 1 << 16 | (libc::ETH_P_ALL as u16).to_be() as u32;

/// `struct tcmsg`.
fn traffic_control(index: u32, handle: u32, parent: u32, info: u32) -> [u8; 20] {
    let mut fixed = [0; 20];
    for (at, value) in [(4, index), (8, handle), (12, parent), (16, info)] {
        fixed[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    fixed
}

/// Drops all frames that arrive at the device, behind the packet sockets.
fn drop_at_ingress(netlink: &mut Netlink, index: u32) -> io::Result<Filter> {
    let qdisc = Request::new(
        libc::RTM_NEWQDISC,
        libc::NLM_F_CREATE | libc::NLM_F_EXCL,
        &traffic_control(index, 0xffff_0000, CLSACT, 0),
    )
    .attribute(libc::TCA_KIND, b"clsact\0");
    let filter = match netlink.change(qdisc) {
        Ok(()) => Filter::Whole,
        Err(e) if is(&e, &[libc::EEXIST]) => Filter::Only,
        Err(e) => return Err(e),
    };
    // One instruction, `return TC_ACT_SHOT`: code BPF_RET | BPF_K, no jumps, k = 2.
    let mut program = [0; 8];
    program[..2].copy_from_slice(&((libc::BPF_RET | libc::BPF_K) as u16).to_ne_bytes());
    program[4..].copy_from_slice(&2_u32.to_ne_bytes());
    // TCA_BPF_OPS_LEN, TCA_BPF_OPS, TCA_BPF_FLAGS (TCA_BPF_FLAG_ACT_DIRECT) of linux/pkt_cls.h.
    let request = Request::new(
        libc::RTM_NEWTFILTER,
        libc::NLM_F_CREATE,
        &traffic_control(index, 1, INGRESS, FILTER_INFO),
    )
    .attribute(libc::TCA_KIND, b"bpf\0")
    .nested(libc::TCA_OPTIONS, |r| {
        r.attribute(4, &1_u16.to_ne_bytes()).attribute(5, &program).attribute(8, &1_u32.to_ne_bytes())
    });
    match netlink.change(request) {
        Ok(()) => Ok(filter),
        Err(e) => {
            if let Filter::Whole = filter {
                filter.remove(netlink, index)?;
            }
            Err(e)
        }
    }
}

impl Filter {
    fn remove(self, netlink: &mut Netlink, index: u32) -> io::Result<()> {
        netlink.change(match self {
            Self::Whole => {
                Request::new(libc::RTM_DELQDISC, 0, &traffic_control(index, 0xffff_0000, CLSACT, 0))
                    .attribute(libc::TCA_KIND, b"clsact\0")
            }
            Self::Only => {
                Request::new(libc::RTM_DELTFILTER, 0, &traffic_control(index, 1, INGRESS, FILTER_INFO))
                    .attribute(libc::TCA_KIND, b"bpf\0")
            }
        })
    }
}
