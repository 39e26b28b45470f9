//! What frontends do, in order and out of order, and what comes of it.

mod common;

use std::{os::unix::fs::FileExt, os::unix::net::UnixListener, time::Instant};

use common::{MEMORY, PACKED, PATIENCE, Port, RING, Vmm};
use vhost::{VhostBackend, vhost_user::VhostUserFrontend, vhost_user::message::VhostUserHeaderFlag};
use vhost_backend::{
    device::{Role, State},
    features,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

#[test]
fn a_guest_boots_and_leaves() {
    let port = Port::server(2);
    assert_eq!(port.state(), State::Connecting);
    let mut vmm = port.vmm();
    assert_eq!(port.wait_for(State::Down), "the guest has not started its network device");
    assert_eq!(port.device.features(), features::offered() & !PACKED);
    assert_eq!(port.device.steer(5), None);
    vmm.boot();
    // The last answer has come, so all of it is in force.
    assert_eq!(port.device.state(), (State::Up, "running with 1 of 2 queue pairs".into()));
    assert!(port.device.to_guest(0).is_active() && port.device.from_guest(0).is_active());
    assert!(!port.device.to_guest(1).is_active() && !port.device.from_guest(1).is_active());
    assert_eq!(port.device.steer(5), Some(0));
    drop(vmm);
    port.wait_for_end("closed by the other side");
    assert!(!port.device.to_guest(0).is_active() && !port.device.from_guest(0).is_active());
    assert_eq!((port.device.features(), port.device.steer(5)), (0, None));
}

#[test]
fn answers_to_questions() {
    let port = Port::server(3);
    let mut vmm = port.vmm();
    assert_eq!(vmm.frontend.get_max_mem_slots().unwrap(), 509);
    assert_eq!(vmm.frontend.get_protocol_features().unwrap(), features::offered_protocol());
    assert_eq!(vmm.frontend.get_queue_num().unwrap(), 3);
}

#[test]
fn guests_come_again_and_again_in_both_roles() {
    let port = Port::server(1);
    for _ in 0..4 {
        let mut vmm = port.vmm();
        vmm.boot();
        assert_eq!(port.state(), State::Up);
        drop(vmm);
        port.wait_for(State::Connecting);
    }

    let port = Port::new(Role::Client, 1);
    let listener = UnixListener::bind(&port.path).unwrap();
    for _ in 0..4 {
        let (stream, _) = listener.accept().unwrap();
        let mut vmm = Vmm::new(stream, 2);
        vmm.boot();
        assert_eq!(port.state(), State::Up);
    }
    // The VMM goes, and comes back later at the same place.
    drop(listener);
    std::fs::remove_file(&port.path).unwrap();
    port.wait_for_end("trying again");
    let listener = UnixListener::bind(&port.path).unwrap();
    let (stream, _) = listener.accept().unwrap();
    let mut vmm = Vmm::new(stream, 2);
    vmm.boot();
    assert_eq!(port.state(), State::Up);
}

#[test]
fn the_second_frontend_waits_for_the_first_to_leave() {
    let port = Port::server(1);
    let mut first = port.vmm();
    first.boot();
    let second = std::os::unix::net::UnixStream::connect(&port.path).unwrap();
    assert_eq!(port.state(), State::Up);
    drop(first);
    let mut second = Vmm::new(second, 2);
    second.boot();
    assert_eq!(port.state(), State::Up);
}

#[test]
fn rings_are_enabled_in_any_order() {
    let port = Port::server(2);
    let mut vmm = port.vmm();
    // Before there is anything to enable.
    for ring in [3, 0, 2, 1] {
        vmm.frontend.set_vring_enable(ring, true).unwrap();
    }
    vmm.frontend.set_mem_table(&[vmm.all_memory()]).unwrap();
    assert_eq!(port.state(), State::Down);
    for ring in [2, 3, 1, 0] {
        vmm.set_up_ring(ring, 0).unwrap();
    }
    assert_eq!(port.device.state(), (State::Up, String::new()));
    let shares = |pair| (0..256).filter(|&key| port.device.steer(key) == Some(pair)).count();
    assert_eq!((shares(0), shares(1)), (128, 128));
    // Off and on while running.
    vmm.frontend.set_vring_enable(0, false).unwrap();
    assert!(!port.device.to_guest(0).is_active() && port.device.from_guest(0).is_active());
    assert_eq!((shares(0), shares(1)), (0, 256));
    vmm.frontend.set_vring_enable(0, true).unwrap();
    assert_eq!((shares(0), shares(1)), (128, 128));
}

#[test]
fn multiqueue_frontends_enable_before_they_negotiate() {
    let port = Port::server(2);
    let mut vmm = Vmm::bare(std::os::unix::net::UnixStream::connect(&port.path).unwrap(), 4);
    let offered = vmm.frontend.get_features().unwrap();
    let protocol = vmm.frontend.get_protocol_features().unwrap();
    vmm.frontend.set_protocol_features(protocol).unwrap();
    vmm.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    // The crate's frontend would not send these: QEMU does, and waits for the answers.
    for (ring, enable, status) in [(0u32, 1u32, 0u32), (1, 1, 0), (2, 0, 0)] {
        assert_eq!(common::raw_enable(&vmm.frontend, ring, enable), status);
    }
    vmm.frontend.set_features(offered).unwrap();
    vmm.frontend.set_mem_table(&[vmm.all_memory()]).unwrap();
    for ring in 0..2 {
        vmm.set_up_ring(ring, 0).unwrap();
    }
    assert_eq!(port.state(), State::Up);
}

#[test]
fn without_protocol_features_rings_are_enabled_at_once() {
    let port = Port::server(1);
    let vmm = Vmm::bare(std::os::unix::net::UnixStream::connect(&port.path).unwrap(), 2);
    let offered = vmm.frontend.get_features().unwrap();
    vmm.frontend.set_features(offered & !features::PROTOCOL_FEATURES).unwrap();
    vmm.frontend.set_mem_table(&[vmm.all_memory()]).unwrap();
    for ring in 0..2 {
        vmm.set_up_ring(ring, 0).unwrap();
    }
    port.wait_for(State::Up);
    assert_eq!(port.device.features(), offered & !features::PROTOCOL_FEATURES);
}

#[test]
fn a_stopped_ring_says_where_and_runs_again() {
    let port = Port::server(1);
    let mut vmm = port.vmm();
    vmm.boot();
    assert_eq!(vmm.frontend.get_vring_base(0).unwrap(), 0);
    assert!(!port.device.to_guest(0).is_active());
    // Stopped for good: neither addresses nor the word "enabled" start it, only a kick descriptor.
    vmm.frontend.set_vring_enable(0, true).unwrap();
    vmm.frontend.set_vring_addr(0, &Vmm::addresses(0)).unwrap();
    assert_eq!(port.state(), State::Down);
    vmm.set_up_ring(0, 4711).unwrap();
    assert_eq!(port.state(), State::Up);
    assert_eq!(vmm.frontend.get_vring_base(0).unwrap(), 4711);
    // One that never ran says what it was told.
    vmm.frontend.set_vring_base(0, 12).unwrap();
    assert_eq!(vmm.frontend.get_vring_base(0).unwrap(), 12);
}

#[test]
fn a_running_ring_takes_repeated_and_changed_messages() {
    let port = Port::server(1);
    let mut vmm = port.vmm();
    vmm.boot();
    let features = port.device.features();
    let generation = port.device.to_guest(0).generation();
    vmm.frontend.set_features(features).unwrap();
    vmm.frontend.set_vring_addr(0, &Vmm::addresses(0)).unwrap();
    vmm.frontend.set_vring_num(0, RING).unwrap();
    assert_eq!(port.device.to_guest(0).generation(), generation, "nothing has changed");
    assert_eq!(port.state(), State::Up);

    let call = EventFd::new(EFD_NONBLOCK).unwrap();
    vmm.frontend.set_vring_call(0, &call).unwrap();
    assert_eq!(call.read().unwrap(), 1, "an interrupt that may have been lost is made up for");
    let kick = EventFd::new(EFD_NONBLOCK).unwrap();
    vmm.frontend.set_vring_kick(0, &kick).unwrap();
    kick.write(3).unwrap();
    assert_eq!(port.device.to_guest(0).kick().unwrap().read().unwrap(), 3);

    let mut elsewhere = Vmm::addresses(0);
    elsewhere.desc_table_addr += 0x40000;
    vmm.frontend.set_vring_addr(0, &elsewhere).unwrap();
    assert_eq!(port.state(), State::Up);
}

#[test]
fn regions_come_and_go_under_running_rings() {
    let port = Port::server(1);
    let mut vmm = port.vmm();
    let (low, high) = (vmm.region(0, MEMORY / 2, 0), vmm.region(MEMORY / 2, MEMORY / 2, MEMORY / 2));
    vmm.frontend.add_mem_region(&low).unwrap();
    for ring in 0..2 {
        vmm.set_up_ring(ring, 0).unwrap();
        vmm.frontend.set_vring_enable(ring, true).unwrap();
    }
    assert_eq!(port.state(), State::Up);
    vmm.frontend.add_mem_region(&high).unwrap();
    vmm.frontend.remove_mem_region(&high).unwrap();
    vmm.frontend.set_mem_table(&[vmm.all_memory()]).unwrap();
    vmm.frontend.set_mem_table(&[high, low]).unwrap();
    assert_eq!(port.state(), State::Up);
    // Without their memory rings stop, and go on where they were once it is back.
    vmm.frontend.remove_mem_region(&low).unwrap();
    assert_eq!(port.state(), State::Down);
    assert!(!port.device.to_guest(0).is_active() && port.device.to_guest(0).fault().is_none());
    vmm.frontend.add_mem_region(&low).unwrap();
    assert_eq!(port.state(), State::Up);
}

#[test]
fn reset_device_leaves_nothing_running() {
    let port = Port::server(1);
    let mut vmm = port.vmm();
    vmm.boot();
    vmm.frontend.reset_device().unwrap();
    assert_eq!((port.state(), port.device.features()), (State::Down, 0));
    // Memory stays; all the rest comes again.
    vmm.frontend.set_features(features::offered() & !PACKED).unwrap();
    for ring in 0..2 {
        vmm.set_up_ring(ring, 0).unwrap();
    }
    assert_eq!(port.state(), State::Down, "not enabled yet");
    for ring in 0..2 {
        vmm.frontend.set_vring_enable(ring, true).unwrap();
    }
    assert_eq!(port.state(), State::Up);
    vmm.frontend.reset_owner().unwrap();
    assert_eq!(port.state(), State::Down);
}

#[test]
fn a_ring_can_do_without_kicks() {
    let port = Port::server(1);
    let mut vmm = port.vmm();
    vmm.boot();
    vmm.frontend.get_vring_base(1).unwrap();
    assert_eq!(port.state(), State::Down);
    assert_eq!(common::raw_kick_without_descriptor(&vmm.frontend, 1), 0);
    assert_eq!(port.state(), State::Up);
    assert!(port.device.from_guest(0).kick().is_none());
}

#[test]
fn memory_taken_away_breaks_this_port_only() {
    let (port, other) = (Port::server(1), Port::server(1));
    let (mut vmm, mut other_vmm) = (port.vmm(), other.vmm());
    vmm.boot();
    other_vmm.boot();
    vmm.memory.set_len(0).unwrap();
    // The guest "sends": whoever looks at the ring touches what is not there any more.
    let mut burst = vhost_backend::frame::Burst::new();
    port.device.from_guest(0).serve(&mut burst, |_| panic!("a frame out of nothing"));
    let (state, reason) = port.device.state();
    assert_eq!(state, State::Broken, "{reason}");
    assert_eq!(other.state(), State::Up);
    // A new connection starts anew.
    drop(vmm);
    port.wait_for_end("taken away by its frontend; closed by the other side");
    assert_eq!(port.state(), State::Broken, "until somebody else comes");
    let mut vmm = port.vmm();
    vmm.boot();
    assert_eq!(port.state(), State::Up);
}

#[test]
fn a_broken_ring_breaks_the_port_until_it_is_set_up_again() {
    let port = Port::server(1);
    let mut vmm = port.vmm();
    vmm.boot();
    vmm.memory.write_all_at(&(RING + 1).to_le_bytes(), 0x4000 + 0x1002).unwrap();
    let mut burst = vhost_backend::frame::Burst::new();
    port.device.from_guest(0).serve(&mut burst, |_| panic!("a frame out of nothing"));
    let (state, reason) = port.device.state();
    assert_eq!(state, State::Broken);
    assert!(
        reason.starts_with("ring 1 (the guest's transmit queue 0): the available index jumped"),
        "{reason}"
    );
    vmm.frontend.get_vring_base(1).unwrap();
    vmm.set_up_ring(1, 0).unwrap();
    assert_eq!(port.state(), State::Up);
}

#[test]
fn stop_does_not_wait_for_anybody() {
    use std::io::Write;
    let idle = Port::server(1);
    let client = Port::new(Role::Client, 1);
    let busy = Port::server(1);
    let mut vmm = busy.vmm();
    vmm.boot();
    let stuck = Port::server(1);
    let mut half = std::os::unix::net::UnixStream::connect(&stuck.path).unwrap();
    half.write_all(&[1, 0, 0, 0, 1]).unwrap();
    stuck.wait_for(State::Down);
    for port in [&idle, &client, &busy, &stuck] {
        let began = Instant::now();
        port.device.stop();
        assert!(began.elapsed() < PATIENCE / 4);
        assert_eq!(port.device.state(), (State::Connecting, "stopped".into()));
        assert!(!port.path.exists());
        port.device.stop();
    }
    assert!(vmm.frontend.get_features().is_err(), "the connection is closed");
    assert!(!busy.device.to_guest(0).is_active());
}

#[test]
fn workers_go_on_while_memory_and_rings_change_under_them() {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    const BUFFERS: u64 = 0x20000;
    const FRAME: usize = 200;

    let port = Port::server(1);
    let mut vmm = port.vmm();
    vmm.boot();
    // Ring 1, in the lower half: every descriptor is a header and a frame of 0xab.
    let at = 0x4000;
    for i in 0..u64::from(RING) {
        let address = BUFFERS + 256 * i;
        let mut descriptor = [0; 16];
        descriptor[..8].copy_from_slice(&address.to_le_bytes());
        descriptor[8..12].copy_from_slice(&(12 + FRAME as u32).to_le_bytes());
        vmm.memory.write_all_at(&descriptor, at + 16 * i).unwrap();
        vmm.memory.write_all_at(&(i as u16).to_le_bytes(), at + 0x1004 + 2 * i).unwrap();
        vmm.memory.write_all_at(&[0xab; FRAME], address + 12).unwrap();
    }
    let used = |vmm: &Vmm| {
        let mut word = [0; 2];
        vmm.memory.read_exact_at(&mut word, at + 0x2002).unwrap();
        u16::from_le_bytes(word)
    };
    let send = |vmm: &Vmm| {
        let available = used(vmm).wrapping_add(RING / 2);
        vmm.memory.write_all_at(&available.to_le_bytes(), at + 0x1002).unwrap();
    };

    let (done, frames) = (AtomicBool::new(false), AtomicU64::new(0));
    let (low, high) = (vmm.region(0, MEMORY / 2, 0), vmm.region(MEMORY / 2, MEMORY / 2, MEMORY / 2));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut burst = vhost_backend::frame::Burst::new();
            let mut whole = [0; FRAME];
            while !done.load(Ordering::Relaxed) {
                let served = port.device.from_guest(0).serve(&mut burst, |burst| {
                    for i in 0..burst.len() {
                        assert_eq!(burst.linearise(i, &mut whole), Some(FRAME));
                        assert_eq!(whole, [0xab; FRAME]);
                    }
                });
                if frames.fetch_add(served.frames as u64, Ordering::Relaxed) > 0 && served.frames == 0 {
                    std::thread::yield_now();
                }
            }
        });
        // Whatever goes wrong below, the worker must end.
        struct End<'a>(&'a AtomicBool);
        impl Drop for End<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _end = End(&done);
        for round in 0..100 {
            let before = frames.load(Ordering::Relaxed);
            vmm.frontend.set_mem_table(&[low, high]).unwrap();
            send(&vmm);
            vmm.frontend.remove_mem_region(&high).unwrap();
            send(&vmm);
            vmm.frontend.add_mem_region(&high).unwrap();
            vmm.frontend.set_mem_table(&[vmm.all_memory()]).unwrap();
            let deadline = Instant::now() + PATIENCE;
            while frames.load(Ordering::Relaxed) == before {
                assert!(Instant::now() < deadline, "no frame comes any more, round {round}");
                send(&vmm);
                std::thread::yield_now();
            }
            send(&vmm);
            // Once the answer is there nothing moves any more, though there is something to send.
            let base = vmm.frontend.get_vring_base(1).unwrap();
            send(&vmm);
            assert_eq!(base, u32::from(used(&vmm)));
            vmm.frontend.set_mem_table(&[low, high]).unwrap();
            assert_eq!(base, u32::from(used(&vmm)), "a stopped ring went on");
            vmm.frontend.set_vring_kick(1, &vmm.kicks[1]).unwrap();
        }
    });
    assert_eq!(port.state(), State::Up);
}
