//! What a frontend says around a live migration, and what is logged from then on.

mod common;

use std::{fs::File, os::fd::AsRawFd, os::unix::fs::FileExt};

use common::{Port, Vmm, memfd};
use vhost::{
    VhostBackend, VhostUserDirtyLogRegion, VringConfigData, vhost_user::message::VhostUserProtocolFeatures,
};
use vhost_backend::{
    device::{Role, State},
    features::{self, LOG_ALL},
    frame::Burst,
    net_header::NetHeader,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Guest address of the one buffer of ring 0, and its first page.
const BUFFER: u64 = 0x8_0000;
const BUFFER_PAGE: u64 = BUFFER / 4096;
/// Where the frontend says that ring 0's used ring be logged.
const LOG_USED_AT: u64 = 0x3_0000;
const NONE: [u64; 0] = [];

/// All that is offered but packed rings: these tests lay out split ones.
fn offered() -> u64 {
    features::offered() & !(1 << 34)
}

/// A guest that runs, with a receive buffer for each of ring 0's entries; nothing is logged yet.
fn running(port: &Port) -> Vmm {
    let mut vmm = port.vmm();
    vmm.frontend.set_features(offered() & !LOG_ALL).unwrap();
    vmm.boot();
    for i in 0..u64::from(common::RING) {
        let mut desc = [0; 16];
        desc[..8].copy_from_slice(&BUFFER.to_le_bytes());
        desc[8..12].copy_from_slice(&2048u32.to_le_bytes());
        desc[12] = 2;
        vmm.memory.write_all_at(&desc, 16 * i).unwrap();
        vmm.memory.write_all_at(&(i as u16).to_le_bytes(), 0x1004 + 2 * i).unwrap();
    }
    vmm.memory.write_all_at(&common::RING.to_le_bytes(), 0x1002).unwrap();
    vmm
}

fn deliver(port: &Port) -> u64 {
    let frame = [1; 60];
    Burst::new().with_slices(
        |filler| assert!(filler.push(NetHeader::default(), &frame, &[])),
        |burst| port.device.to_guest(0).deliver(burst, 1).sent,
    )
}

fn log(vmm: &Vmm, bytes: u64, file: &File) -> vhost::Result<()> {
    let region = VhostUserDirtyLogRegion { mmap_size: bytes, mmap_offset: 0, mmap_handle: file.as_raw_fd() };
    vmm.frontend.set_log_base(0, Some(region))
}

fn log_used_ring(vmm: &Vmm, on: bool) {
    let addresses = VringConfigData { flags: on.into(), log_addr: Some(LOG_USED_AT), ..Vmm::addresses(0) };
    vmm.frontend.set_vring_addr(0, &addresses).unwrap();
}

/// Takes all bits and returns the pages that had them.
fn take(file: &File) -> Vec<u64> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    file.write_all_at(&vec![0; bytes.len()], 0).unwrap();
    (0..8 * bytes.len() as u64).filter(|page| bytes[(page / 8) as usize] >> (page % 8) & 1 == 1).collect()
}

#[test]
fn logging_is_switched_on_and_off_on_running_rings() {
    let port = Port::server(1);
    let vmm = running(&port);
    assert!(features::offered_protocol().contains(VhostUserProtocolFeatures::LOG_SHMFD));
    assert_eq!(deliver(&port), 1);

    // As QEMU does it: the log, the feature, then the used rings.
    let file = memfd(64);
    log(&vmm, 64, &file).unwrap();
    assert_eq!(deliver(&port), 1);
    assert_eq!(take(&file), NONE, "nobody has asked for it yet");
    vmm.frontend.set_features(offered()).unwrap();
    assert_eq!(port.device.features() & LOG_ALL, LOG_ALL);
    assert_eq!(take(&file), NONE);
    assert_eq!(deliver(&port), 1);
    assert_eq!(take(&file), [BUFFER_PAGE]);
    log_used_ring(&vmm, true);
    assert_eq!(take(&file), [LOG_USED_AT / 4096], "the whole used ring counts as written at first");
    assert_eq!(deliver(&port), 1);
    assert_eq!(take(&file), [LOG_USED_AT / 4096, BUFFER_PAGE]);

    // A larger log takes over; the one before is not touched any more.
    let larger = memfd(4096);
    log(&vmm, 4096, &larger).unwrap();
    take(&file);
    take(&larger);
    assert_eq!(deliver(&port), 1);
    assert_eq!((take(&file), take(&larger)), (vec![], vec![LOG_USED_AT / 4096, BUFFER_PAGE]));

    // And off again, one after the other.
    vmm.frontend.set_features(offered() & !LOG_ALL).unwrap();
    take(&larger);
    assert_eq!(deliver(&port), 1);
    assert_eq!(take(&larger), [LOG_USED_AT / 4096]);
    log_used_ring(&vmm, false);
    take(&larger);
    assert_eq!(deliver(&port), 1);
    assert_eq!(take(&larger), NONE);

    assert_eq!(port.state(), State::Up);
    // All the time it was one ring that ran on.
    assert_eq!(vmm.frontend.get_vring_base(0).unwrap(), 7);
}

#[test]
fn a_ring_that_starts_while_memory_is_logged_logs_too() {
    let port = Port::server(1);
    let vmm = running(&port);
    let file = memfd(64);
    vmm.frontend.set_features(offered()).unwrap();
    log_used_ring(&vmm, true);
    vmm.frontend.get_vring_base(0).unwrap();
    log(&vmm, 64, &file).unwrap();
    vmm.set_up_ring(0, 0).unwrap();
    vmm.memory.write_all_at(&common::RING.to_le_bytes(), 0x1002).unwrap();
    take(&file);
    log_used_ring(&vmm, true);
    take(&file);
    assert_eq!(deliver(&port), 1);
    assert_eq!(take(&file), [LOG_USED_AT / 4096, BUFFER_PAGE]);
}

#[test]
fn whoever_waits_for_the_log_is_woken() {
    let port = Port::server(1);
    let vmm = running(&port);
    let (file, event) = (memfd(64), EventFd::new(EFD_NONBLOCK).unwrap());
    vmm.frontend.set_log_fd(event.as_raw_fd()).unwrap();
    log(&vmm, 64, &file).unwrap();
    assert_eq!(deliver(&port), 1);
    assert!(event.read().is_err(), "nothing was logged");
    vmm.frontend.set_features(offered()).unwrap();
    assert_eq!(deliver(&port), 1);
    assert!(event.read().is_ok());

    let port = Port::server(1);
    let vmm = running(&port);
    assert!(vmm.frontend.set_log_fd(memfd(8).as_raw_fd()).is_err());
    port.wait_for_end(
        "descriptor of the dirty log: the descriptor is /memfd:guest (deleted) and not an eventfd",
    );
}

#[test]
fn a_log_that_is_too_small_breaks_the_port_until_the_next_frontend() {
    let port = Port::server(1);
    let vmm = running(&port);
    let file = memfd(8);
    log(&vmm, 8, &file).unwrap();
    vmm.frontend.set_features(offered()).unwrap();
    assert_eq!(deliver(&port), 0);
    let (state, reason) = port.device.state();
    assert_eq!(state, State::Broken);
    assert!(reason.ends_with("the dirty log is too small for the guest's memory"), "{reason}");
    drop(vmm);
    let _vmm = running(&port);
    assert_eq!((port.state(), deliver(&port)), (State::Up, 1));
}

#[test]
fn a_log_that_is_none_ends_the_connection_with_the_reason() {
    let port = Port::server(1);
    let vmm = running(&port);
    assert!(log(&vmm, 64, &memfd(32)).is_err());
    port.wait_for_end("dirty log: it needs 0x40 bytes of a file that has only 0x20");
}

#[test]
fn another_process_goes_on_with_the_log() {
    let port = Port::server(1);
    let vmm = running(&port);
    let call = EventFd::new(EFD_NONBLOCK).unwrap();
    let file = memfd(4096);
    log(&vmm, 4096, &file).unwrap();
    vmm.frontend.set_log_fd(call.as_raw_fd()).unwrap();
    vmm.frontend.set_features(offered()).unwrap();
    log_used_ring(&vmm, true);
    assert_eq!(deliver(&port), 1);
    take(&file);
    let _ = call.read();
    let port = port.handed_over(Role::Server);
    // Nothing that was written while nobody looked at the log is missed.
    assert!(take(&file).contains(&(LOG_USED_AT / 4096)));
    assert_eq!(deliver(&port), 1);
    assert_eq!(take(&file), [LOG_USED_AT / 4096, BUFFER_PAGE]);
    assert!(call.read().is_ok());
    vmm.frontend.set_features(offered() & !LOG_ALL).unwrap();
    log_used_ring(&vmm, false);
    take(&file);
    assert_eq!(deliver(&port), 1);
    assert_eq!(take(&file), NONE);
}
