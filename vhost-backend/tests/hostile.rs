//! Frontends that lie: each is refused with a reason, and the port serves the next one.

mod common;

use std::{
    fs::File,
    io::Write,
    os::{
        fd::{FromRawFd, IntoRawFd},
        unix::net::UnixStream,
    },
};

use common::{MEMORY, Port, RING, USER, Vmm};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, vhost_user::VhostUserFrontend};
use vhost_backend::device::State;
use vmm_sys_util::eventfd::EventFd;

/// Lets `lie` talk to a port; the port must hang up for a reason that contains `text`, and then serve an honest guest.
fn refused(text: &str, lie: impl FnOnce(&mut Vmm) -> vhost::Result<()>) {
    let port = Port::server(1);
    // More rings than the port has, so that the frontend does not check for us.
    let mut vmm = Vmm::new(UnixStream::connect(&port.path).unwrap(), 256);
    lie(&mut vmm).expect_err("the lie was believed");
    port.wait_for_end(text);
    assert_eq!(port.state(), State::Broken, "until somebody else comes");
    assert!(vmm.frontend.get_features().is_err(), "the connection is still there");
    assert!(!port.device.to_guest(0).is_active() && !port.device.from_guest(0).is_active());
    let mut honest = port.vmm();
    honest.boot();
    assert_eq!(port.state(), State::Up);
}

#[test]
fn regions() {
    refused("has only 0x100000", |vmm| {
        let region = vmm.region(0, MEMORY + 4096, 0);
        vmm.frontend.add_mem_region(&region).map(drop)
    });
    refused("has only 0x100000", |vmm| vmm.frontend.set_mem_table(&[vmm.region(0, MEMORY, 4096)]).map(drop));
    refused("overlaps the one at 0x0", |vmm| {
        let regions = [vmm.all_memory(), vmm.region(MEMORY - 4096, 4096, 0)];
        vmm.frontend.set_mem_table(&regions).map(drop)
    });
    refused("overlaps the one at 0x0", |vmm| {
        let region = vmm.all_memory();
        vmm.frontend.add_mem_region(&region).expect("the first is good");
        vmm.frontend.add_mem_region(&region).map(drop)
    });
    refused("no memory region at 0x1000", |vmm| {
        let region = vmm.region(0x1000, 4096, 0);
        vmm.frontend.remove_mem_region(&region)
    });
    refused("invalid message", |vmm| {
        let region = VhostUserMemoryRegionInfo { guest_phys_addr: u64::MAX - 4095, ..vmm.all_memory() };
        vmm.frontend.set_mem_table(&[region]).map(drop)
    });
    refused("beyond the end", |vmm| {
        let region = VhostUserMemoryRegionInfo { mmap_offset: u64::MAX - 4095, ..vmm.all_memory() };
        vmm.frontend.add_mem_region(&region).map(drop)
    });
    refused("not a regular file", |vmm| {
        let null = File::open("/dev/null").unwrap();
        let region = VhostUserMemoryRegionInfo {
            mmap_handle: std::os::fd::AsRawFd::as_raw_fd(&null),
            ..vmm.all_memory()
        };
        vmm.frontend.add_mem_region(&region).map(drop)
    });
}

#[test]
fn ring_numbers() {
    for index in [2, 255] {
        let text = format!("there is no ring {index}");
        refused(&text, |vmm| vmm.frontend.set_vring_num(index, RING));
        refused(&text, |vmm| vmm.frontend.set_vring_base(index, 0));
        refused(&text, |vmm| vmm.frontend.get_vring_base(index).map(drop));
        refused(&text, |vmm| vmm.frontend.set_vring_addr(index, &Vmm::addresses(0)));
        refused(&text, |vmm| vmm.frontend.set_vring_kick(index, &vmm.kicks[0]));
        refused(&text, |vmm| vmm.frontend.set_vring_call(index, &vmm.calls[0]));
        refused(&text, |vmm| vmm.frontend.set_vring_err(index, &vmm.calls[0]));
        refused(&text, |vmm| vmm.frontend.set_vring_enable(index, true));
    }
}

#[test]
fn ring_sizes_and_bases() {
    for size in [0, 3, 255, 32769, 65535] {
        refused(&format!("size {size} is not a power of two"), |vmm| vmm.frontend.set_vring_num(0, size));
    }
    refused("base 65536 does not fit", |vmm| {
        let status = common::raw(&vmm.frontend, 10, [0, 65536]);
        if status == 0 { Ok(()) } else { Err(vhost::Error::InvalidQueue) }
    });
}

#[test]
fn ring_addresses() {
    // Known to be wrong at once when size and memory are there already.
    refused("are not all in guest memory", |vmm| {
        vmm.frontend.set_mem_table(&[vmm.all_memory()]).unwrap();
        vmm.frontend.set_vring_num(0, RING).unwrap();
        let mut addresses = Vmm::addresses(0);
        addresses.used_ring_addr = USER + MEMORY - 8;
        vmm.frontend.set_vring_addr(0, &addresses)
    });
    // And when the last piece comes otherwise.
    refused(
        "ring 1 (the guest's transmit queue 0): the ring's address does not lie in guest memory",
        |vmm| {
            let mut addresses = Vmm::addresses(1);
            addresses.desc_table_addr = 0x1000;
            vmm.frontend.set_vring_addr(1, &addresses).unwrap();
            vmm.frontend.set_vring_num(1, RING).unwrap();
            vmm.frontend.set_mem_table(&[vmm.all_memory()]).unwrap();
            vmm.frontend.set_vring_kick(1, &vmm.kicks[1])
        },
    );
    // From the end of one region to where there is none.
    refused("are not all in guest memory", |vmm| {
        let half = MEMORY / 2;
        vmm.frontend.set_mem_table(&[vmm.region(0, half, 0)]).unwrap();
        vmm.frontend.set_vring_num(0, RING).unwrap();
        let mut addresses = Vmm::addresses(0);
        addresses.desc_table_addr = USER + half - 16;
        vmm.frontend.set_vring_addr(0, &addresses)
    });
    refused("invalid message", |vmm| {
        let mut addresses = Vmm::addresses(0);
        addresses.desc_table_addr += 1;
        vmm.frontend.set_vring_addr(0, &addresses)
    });
}

#[test]
fn descriptors_that_are_no_events() {
    // SAFETY: a descriptor that nobody else owns.
    let null = || unsafe { EventFd::from_raw_fd(File::open("/dev/null").unwrap().into_raw_fd()) };
    let text = "the descriptor is /dev/null and not an eventfd";
    refused(text, |vmm| vmm.frontend.set_vring_kick(0, &null()));
    refused(text, |vmm| vmm.frontend.set_vring_call(0, &null()));
    refused(text, |vmm| vmm.frontend.set_vring_err(0, &null()));
}

#[test]
fn features() {
    refused("features that were not offered: BIT_25, BIT_63", |vmm| {
        vmm.frontend.set_features(vhost_backend::features::offered() | 1 << 25 | 1 << 63)
    });
    refused("protocol features that were not offered: 0x14", |vmm| {
        match common::raw(&vmm.frontend, 16, [0x8 | 0x14, 0]) {
            0 => Ok(()),
            _ => Err(vhost::Error::InvalidQueue),
        }
    });
}

/// Raw bytes instead of messages; the port must hang up for a reason that contains `text`.
fn garbage(text: &str, bytes: &[u8]) {
    let port = Port::server(1);
    let mut stream = UnixStream::connect(&port.path).unwrap();
    stream.write_all(bytes).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    port.wait_for_end(text);
    let mut honest = port.vmm();
    honest.boot();
    assert_eq!(port.state(), State::Up);
}

#[test]
fn bytes_that_are_no_messages() {
    garbage("closed in the midst of a message", &[1, 0, 0]);
    // The header of SET_VRING_NUM and half of its body.
    garbage("invalid message", &[8, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0]);
    garbage("invalid message", &[0xff; 64]);
    // More than any message may hold.
    garbage("invalid message", &[8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1]);
    // NET_SET_MTU, which is not offered.
    garbage("invalid message", &[20, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    garbage("closed by the other side", &[]);
}
