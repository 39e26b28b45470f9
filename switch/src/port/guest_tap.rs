//! TAP devices whose descriptors a guest's QEMU gets: made if they are missing, and gone when the last descriptor is
//! closed, unless they were there before. One that is kept for a QEMU that opens it by name bears a [`MARK`], so that
//! whoever removes the NIC knows whose it is: another daemon, perhaps, than the one that made it.
//!
//! The switch is not at this end: it attaches to the device itself as a [`super::netdev`] port.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use super::device::{NET_ADMIN, OpenError, check_name};
use super::link::LinkChange;
use super::netlink::Netlink;
use super::tap::{check_unused, ioctl, open_queue};

/// The alias of devices that were made here and are kept.
const MARK: &str = "made by shunt for a guest";

/// Makes a device in the network namespace of this process, or takes it if it is there and nobody uses it, with as many
/// queues, and sets its MTU. Returns the descriptors, one a queue. With `keep` there are none: it stays, for somebody who
/// opens it by name, until [`forget`].
///
/// # Errors
/// The name is none of a device, the device is no TAP or is used, or the kernel refuses. Nothing is left behind.
pub fn open(name: &str, queues: u16, mtu: Option<u16>, keep: bool) -> Result<Vec<File>, OpenError> {
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
    let made = existing.as_ref().is_none_or(|link| link.alias == MARK);
    let multi_queue = existing.map_or(queues > 1, |link| link.tun.multi_queue);
    let mut opened = Vec::new();
    for _ in 0..queues {
        opened.push(open_queue(name, multi_queue)?);
    }
    let link = netlink.link_by_name(name).map_err(failed("look up"))?.ok_or_else(|| OpenError::Missing {
        what: format!("device {name}"),
        hint: "it was removed while it was being opened",
    })?;
    if let Some(mtu) = mtu {
        let change = LinkChange { mtu: Some(mtu.into()), ..LinkChange::default() };
        netlink.change_link(link.index, change).map_err(failed("set the MTU of"))?;
    }
    if keep {
        if made {
            let change = LinkChange { alias: Some(MARK), ..LinkChange::default() };
            netlink.change_link(link.index, change).map_err(failed("mark"))?;
            persist(&opened, true).map_err(failed("keep"))?;
        }
        opened.clear();
    }
    Ok(opened)
}

/// Lets go of the device if it was made here and kept: it goes once nobody has it open.
pub fn forget(name: &str) {
    let gone = (|| {
        let Some(link) = Netlink::open(0)?.link_by_name(name)? else { return Ok(()) };
        if link.alias != MARK || !link.tun.persist {
            return Ok(());
        }
        let queue = open_queue(name, link.tun.multi_queue).map_err(io::Error::other)?;
        persist(&[queue], false)
    })();
    if let Err(error) = gone {
        tracing::warn!("device {name} stays behind: {error}");
    }
}

fn persist(queues: &[File], keep: bool) -> io::Result<()> {
    for queue in queues.iter().take(1) {
        // SAFETY: TUNSETPERSIST takes a number.
        unsafe { ioctl::set_persist(queue.as_raw_fd(), keep.into()) }?;
    }
    Ok(())
}
