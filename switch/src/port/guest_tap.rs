//! TAP devices whose descriptors a guest's QEMU gets: made if they are missing, and gone when the last descriptor is
//! closed, unless they were there before.
//!
//! The switch is not at this end: it attaches to the device itself as a [`super::netdev`] port.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use super::device::{NET_ADMIN, OpenError, check_name};
use super::link::LinkChange;
use super::netlink::Netlink;
use super::tap::{check_unused, ioctl, open_queue};

/// A device for a guest, in the network namespace of this process.
#[derive(Debug)]
pub struct GuestTap {
    name: String,
    queues: Vec<File>,
    made: bool,
}

impl GuestTap {
    /// Makes the device, or takes it if it is there and nobody uses it, with as many queues, and sets its MTU. With
    /// `keep` it stays without descriptors, for somebody who opens it by name: see [`GuestTap::forget`].
    ///
    /// # Errors
    /// The name is none of a device, the device is no TAP or is used, or the kernel refuses. Nothing is left behind.
    pub fn open(name: &str, queues: u16, mtu: Option<u16>, keep: bool) -> Result<Self, OpenError> {
        check_name(name)?;
        let failed = |doing: &str| {
            let doing = format!("{doing} device {name}");
            move |e: io::Error| OpenError::system(doing.clone(), NET_ADMIN, e)
        };
        let mut netlink = Netlink::open(0).map_err(failed("look up"))?;
        let existing = netlink.link_by_name(name).map_err(failed("look up"))?;
        if let Some(link) = &existing {
            check_unused(name, queues, link)?;
        }
        let made = existing.is_none();
        let multi_queue = existing.map_or(queues > 1, |link| link.tun.multi_queue);
        let mut opened = Vec::new();
        for _ in 0..queues {
            opened.push(open_queue(name, multi_queue)?);
        }
        let link =
            netlink.link_by_name(name).map_err(failed("look up"))?.ok_or_else(|| OpenError::Missing {
                what: format!("device {name}"),
                hint: "it was removed while it was being opened",
            })?;
        if let Some(mtu) = mtu {
            let change = LinkChange { mtu: Some(mtu.into()), ..LinkChange::default() };
            netlink.change_link(link.index, change).map_err(failed("set the MTU of"))?;
        }
        if keep {
            if made {
                persist(&opened, true).map_err(failed("keep"))?;
            }
            opened.clear();
        }
        Ok(Self { name: name.to_owned(), queues: opened, made })
    }

    /// The descriptors, one a queue; none of a device that is kept.
    pub fn take_queues(&mut self) -> Vec<File> {
        std::mem::take(&mut self.queues)
    }

    /// Whether the device was made here.
    pub fn is_made(&self) -> bool {
        self.made
    }

    /// Lets go of a device that was made and kept: it goes once nobody has it open.
    pub fn forget(&self) {
        if !self.made {
            return;
        }
        let gone = (|| {
            let Some(link) = Netlink::open(0)?.link_by_name(&self.name)? else { return Ok(()) };
            let queue = open_queue(&self.name, link.tun.multi_queue).map_err(io::Error::other)?;
            persist(&[queue], false)
        })();
        if let Err(error) = gone {
            tracing::warn!("device {} stays behind: {error}", self.name);
        }
    }
}

fn persist(queues: &[File], keep: bool) -> io::Result<()> {
    for queue in queues.iter().take(1) {
        // SAFETY: TUNSETPERSIST takes a number.
        unsafe { ioctl::set_persist(queue.as_raw_fd(), keep.into()) }?;
    }
    Ok(())
}
