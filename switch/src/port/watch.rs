//! Follows the links of opened devices: one thread per network namespace that has any, blocked on a netlink socket.
//!
//! The kernel reports each change of a device to the `RTMGRP_LINK` group of the device's own namespace. When reports
//! are lost (the socket overran), all watched devices are asked for anew.
#![forbid(unsafe_code)]

use std::{
    collections::HashMap,
    io,
    os::fd::AsFd,
    sync::{Arc, Mutex, PoisonError, Weak},
    thread::JoinHandle,
};

use nix::{
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};

use super::{
    device::OpenError,
    link::{INFO, LinkCell, LinkInfo, LinkKept},
    netlink::{Netlink, attribute},
    netns::Netns,
};

/// `IFLA_NEW_NETNSID`, `IFLA_NEW_IFINDEX` of linux/if_link.h: in an `RTM_DELLINK`, the device goes on elsewhere.
const NEW_NETNSID: u16 = 45;
const NEW_IFINDEX: u16 = 49;

type Cells = Mutex<Vec<(u32, Weak<LinkCell>)>>;

/// The watcher of one namespace; its thread ends with the last [`Watch`].
struct Watcher {
    cells: Arc<Cells>,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

/// A device's link being followed; ends when dropped.
pub(super) struct Watch {
    cell: Arc<LinkCell>,
    watcher: Arc<Watcher>,
}

/// The watchers by their namespace.
type Watchers = HashMap<(u64, u64), Weak<Watcher>>;

static WATCHERS: Mutex<Option<Watchers>> = Mutex::new(None);

impl Watch {
    /// Follows the device `index` of `netns` from now on; `portable` if its descriptors work in any namespace.
    pub(super) fn start(netns: &Netns, index: u32, portable: bool) -> Result<Self, OpenError> {
        Self::begin(netns, index, |found| {
            let link = found.ok_or_else(|| OpenError::Missing {
                what: format!("device with index {index}"),
                hint: "it was removed while it was being opened",
            })?;
            Ok(LinkCell::new(&link, portable))
        })
    }

    /// The same of a device that another process has followed, whether it is still there or not.
    pub(super) fn resume(
        netns: &Netns,
        index: u32,
        portable: bool,
        kept: &LinkKept,
    ) -> Result<Self, OpenError> {
        Self::begin(netns, index, |found| {
            let cell = LinkCell::resume(kept, portable);
            match found {
                // Another one may have the number of one that has gone.
                Some(link) if !kept.is_gone() => cell.update(&link),
                None if !kept.is_gone() => cell.gone(false),
                _ => false,
            };
            Ok(cell)
        })
    }

    fn begin(
        netns: &Netns,
        index: u32,
        cell: impl FnOnce(Option<LinkInfo>) -> Result<LinkCell, OpenError>,
    ) -> Result<Self, OpenError> {
        let failed = |e: io::Error| OpenError::system("watch links", "a netlink socket", e);
        let watcher = Watcher::of(netns)?;
        // Asked after the subscription: nothing that happens from here on is missed.
        let mut netlink = netns.run(|| Netlink::open(0))?.map_err(failed)?;
        // Holding the list keeps the watcher's thread from applying newer news before this older answer.
        let mut cells = watcher.cells.lock().unwrap_or_else(PoisonError::into_inner);
        let cell = Arc::new(cell(netlink.link_by_index(index).map_err(failed)?)?);
        cells.push((index, Arc::downgrade(&cell)));
        drop(cells);
        Ok(Self { cell, watcher })
    }

    /// What is known about the device.
    pub(super) fn cell(&self) -> &LinkCell {
        &self.cell
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.cell.on_change(None);
        let mut cells = self.watcher.cells.lock().unwrap_or_else(PoisonError::into_inner);
        cells.retain(|(_, cell)| !std::ptr::eq(cell.as_ptr(), Arc::as_ptr(&self.cell)));
    }
}

impl Watcher {
    fn of(netns: &Netns) -> Result<Arc<Self>, OpenError> {
        let mut watchers = WATCHERS.lock().unwrap_or_else(PoisonError::into_inner);
        let watchers = watchers.get_or_insert_default();
        watchers.retain(|_, watcher| watcher.strong_count() > 0);
        if let Some(watcher) = watchers.get(&netns.id()).and_then(Weak::upgrade) {
            return Ok(watcher);
        }
        let failed = |e: io::Error| OpenError::system("watch links", "a netlink socket", e);
        let (events, asks) = netns
            .run(|| Ok((Netlink::open(libc::RTMGRP_LINK as u32)?, Netlink::open(0)?)))?
            .map_err(failed)?;
        let stop = Arc::new(
            EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
                .map_err(|e| failed(e.into()))?,
        );
        let cells = Arc::new(Cells::default());
        let thread = {
            let (cells, stop) = (cells.clone(), stop.clone());
            std::thread::Builder::new()
                .name("link-watch".into())
                .spawn(move || follow(events, asks, &cells, &stop))
                .map_err(failed)?
        };
        let watcher = Arc::new(Self { cells, stop, thread: Some(thread) });
        watchers.insert(netns.id(), Arc::downgrade(&watcher));
        Ok(watcher)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let stopped = self.stop.write(1).is_ok();
        // The last device may have been dropped by a callback, which runs on the very thread.
        if let Some(thread) = self.thread.take()
            && stopped
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

fn find(cells: &Cells, index: u32) -> Vec<Arc<LinkCell>> {
    let cells = cells.lock().unwrap_or_else(PoisonError::into_inner);
    cells.iter().filter(|(i, _)| *i == index).filter_map(|(_, cell)| cell.upgrade()).collect()
}

fn follow(mut events: Netlink, mut asks: Netlink, cells: &Cells, stop: &EventFd) {
    loop {
        let mut fds =
            [PollFd::new(events.as_fd(), PollFlags::POLLIN), PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
        if let Err(e) = poll(&mut fds, PollTimeout::NONE)
            && e != nix::Error::EINTR
        {
            tracing::error!("link states are no longer followed: poll: {e}");
            return;
        }
        if fds[1].any() == Some(true) {
            return;
        }
        let mut news = Vec::new();
        let read = events.read(&mut |message| {
            let Some(link) = LinkInfo::parse(&message) else { return };
            for cell in find(cells, link.index) {
                let changed = match message.kind {
                    libc::RTM_NEWLINK => cell.update(&link),
                    libc::RTM_DELLINK => {
                        let attributes = &message.body[INFO..];
                        cell.gone(
                            [NEW_NETNSID, NEW_IFINDEX].iter().any(|a| attribute(attributes, *a).is_some()),
                        )
                    }
                    _ => false,
                };
                if changed {
                    news.push(cell);
                }
            }
        });
        match read {
            Ok(_) => {}
            Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => resync(&mut asks, cells, &mut news),
            Err(e) => {
                tracing::error!("link states are no longer followed: {e}");
                return;
            }
        }
        for cell in news {
            cell.tell();
        }
    }
}

/// Asks for every watched device.
fn resync(asks: &mut Netlink, cells: &Cells, news: &mut Vec<Arc<LinkCell>>) {
    let watched: Vec<_> = cells.lock().unwrap_or_else(PoisonError::into_inner).clone();
    for (index, cell) in watched {
        let Some(cell) = cell.upgrade() else { continue };
        let changed = match asks.link_by_index(index) {
            Ok(Some(link)) => cell.update(&link),
            Ok(None) => cell.gone(false),
            Err(e) => {
                tracing::warn!("cannot look up device {index}: {e}");
                false
            }
        };
        if changed {
            news.push(cell);
        }
    }
}
