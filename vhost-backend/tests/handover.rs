//! A port that another process goes on with: here both are this one.

mod common;

use std::{
    io::Write,
    os::unix::{fs::FileExt, net::UnixListener},
    sync::Arc,
    time::{Duration, Instant},
};

use common::{Changes, PACKED, PATIENCE, Port, Vmm, config};
use proptest::prelude::*;
use vhost::{VhostBackend, vhost_user::VhostUserFrontend};
use vhost_backend::{
    device::{Device, Role, State},
    features,
    frame::Burst,
    handover::{Descriptors, DeviceState, HandoverError, InflightState, KickState, LogState},
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

fn soon() -> Instant {
    Instant::now() + PATIENCE
}

/// Describes a port that stands still.
fn export(device: &Device) -> (DeviceState, Descriptors) {
    assert!(device.halt(soon()), "the control thread has nothing to do");
    let mut descriptors = Descriptors::default();
    let state = device.export(&mut descriptors).unwrap();
    (state, descriptors)
}

fn resume(port: &Port, role: Role, pairs: u16, state: &DeviceState, descriptors: Descriptors) -> Port {
    let changes = Arc::new(Changes::default());
    let mut descriptors = Descriptors::new(descriptors.into_vec());
    let config = config(&port.path, role, pairs);
    let device = Device::resume(config, state, &mut descriptors, changes.callback()).unwrap();
    Port { device, changes, path: port.path.clone(), dir: tempfile::tempdir().unwrap() }
}

/// The process that handed a port over ends without another word.
fn vanish(port: Port) -> tempfile::TempDir {
    let Port { device, dir, .. } = port;
    std::mem::forget(device);
    dir
}

#[test]
fn a_frontend_does_not_notice() {
    let port = Port::server(2);
    let mut vmm = port.vmm();
    vmm.boot();
    vmm.set_up_ring(2, 700).unwrap();
    vmm.set_up_ring(3, 9).unwrap();
    vmm.frontend.set_vring_enable(3, true).unwrap();
    let (state, descriptors) = export(&port.device);
    assert!(port.device.changes() > 0);
    let session = state.session.as_ref().expect("a connection");
    assert_eq!((session.features, session.regions.len()), (Some(features::offered() & !PACKED), 1));
    let bases: Vec<_> = session.rings.iter().map(|ring| (ring.base, ring.enabled)).collect();
    assert_eq!(bases, [(Some(0), true), (Some(0), true), (Some(700), false), (Some(9), true)]);

    let next = resume(&port, Role::Server, 2, &state, descriptors);
    assert_eq!(next.state(), State::Down, "nothing runs before the word is given");
    let dir = vanish(port);
    for call in &vmm.calls {
        let _ = call.read();
    }
    next.device.go_on();
    assert_eq!(next.device.state(), (State::Up, "running with 1 of 2 queue pairs".into()));
    assert_eq!(next.device.features(), features::offered() & !PACKED);
    assert!(vmm.calls.iter().all(|call| call.read().is_ok()), "an interrupt may have been lost");
    assert_eq!((next.device.to_guest(1).is_active(), next.device.from_guest(1).is_active()), (false, true));

    // The conversation goes on where it was, answers included.
    vmm.frontend.set_vring_enable(2, true).unwrap();
    assert_eq!(next.device.state(), (State::Up, String::new()));
    assert_eq!(vmm.frontend.get_vring_base(2).unwrap(), 700);
    let kick = EventFd::new(EFD_NONBLOCK).unwrap();
    vmm.frontend.set_vring_kick(2, &kick).unwrap();
    assert_eq!(vmm.frontend.get_queue_num().unwrap(), 2);
    assert!(next.device.changes() > 0);

    // And what comes after it.
    drop(vmm);
    next.wait_for_end("closed by the other side");
    let mut again = next.vmm();
    again.boot();
    assert_eq!(next.state(), State::Up);
    let path = next.path.clone();
    drop(next);
    assert!(!path.exists(), "the socket was inherited, too");
    drop(dir);
}

#[test]
fn export_and_resume_are_inverse() {
    let port = Port::server(1);
    let mut vmm = port.vmm();
    vmm.boot();
    let (state, descriptors) = export(&port.device);
    let next = resume(&port, Role::Server, 1, &state, descriptors);
    let dir = vanish(port);
    next.device.go_on();
    assert_eq!(export(&next.device).0, state);
    assert_eq!(next.device.positions(), [Some(0), Some(0)]);
    assert!(next.device.set_positions(&[None]).is_err());
    next.device.go_on();
    drop(next);
    drop(dir);
}

#[test]
fn who_gives_up_leaves_everything_to_the_other() {
    let port = Port::server(1);
    let mut vmm = port.vmm();
    vmm.boot();
    let (state, descriptors) = export(&port.device);
    drop(resume(&port, Role::Server, 1, &state, descriptors));
    assert!(port.path.exists());
    port.device.go_on();
    assert_eq!(port.state(), State::Up);
    vmm.frontend.set_vring_enable(0, false).unwrap();
    vmm.frontend.set_vring_enable(0, true).unwrap();
    drop(vmm);
    port.wait_for_end("closed by the other side");
    port.vmm().boot();
}

#[test]
fn ports_without_a_frontend_and_of_the_other_role() {
    let port = Port::server(1);
    let (state, descriptors) = export(&port.device);
    assert!(state.session.is_none() && state.listener.is_some());
    let next = resume(&port, Role::Server, 1, &state, descriptors);
    let dir = vanish(port);
    next.device.go_on();
    next.vmm().boot();
    drop(next);
    drop(dir);

    let port = Port::new(Role::Client, 1);
    let listener = UnixListener::bind(&port.path).unwrap();
    let (stream, _) = listener.accept().unwrap();
    let mut vmm = Vmm::new(stream, 2);
    vmm.boot();
    let (state, descriptors) = export(&port.device);
    assert!(state.session.is_some() && state.listener.is_none());
    let next = resume(&port, Role::Client, 1, &state, descriptors);
    let _dir = vanish(port);
    next.device.go_on();
    assert_eq!(next.state(), State::Up);
    drop(vmm);
    let (stream, _) = listener.accept().unwrap();
    let mut again = Vmm::new(stream, 2);
    again.boot();
    assert_eq!(next.state(), State::Up);
}

#[test]
fn a_frontend_in_the_midst_of_a_message_is_not_waited_for() {
    let port = Port::server(1);
    let vmm = port.vmm();
    let mut stream = common::raw_stream(&vmm.frontend);
    stream.write_all(&18u32.to_ne_bytes()).unwrap();
    // It takes the control thread a moment to begin to read.
    let deadline = soon();
    while port.device.halt(Instant::now() + Duration::from_millis(20)) {
        port.device.go_on();
        assert!(Instant::now() < deadline, "the thread does not read");
    }
    port.device.go_on();
    stream.write_all(&[1 | 8, 8, 0, 0].map(u32::to_ne_bytes).concat()).unwrap();
    assert!(port.device.halt(soon()), "the message is whole");
    port.device.go_on();
}

#[test]
fn what_was_broken_stays_so() {
    // By its guest: an index that jumps.
    let port = Port::server(1);
    let mut vmm = port.vmm();
    vmm.boot();
    vmm.memory.write_all_at(&[0xff, 0x7f], 0x4000 + 0x1002).unwrap();
    port.device.from_guest(0).serve(&mut Burst::new(), |_| ());
    let (state, reason) = port.device.state();
    assert_eq!(state, State::Broken);
    assert!(reason.contains("available index"), "{reason}");
    // An index that is right again heals nothing.
    vmm.memory.write_all_at(&[0, 0], 0x4000 + 0x1002).unwrap();
    let port = port.handed_over(Role::Server);
    assert_eq!(port.device.state(), (State::Broken, reason));
    assert!(!port.device.from_guest(0).is_active() && port.device.to_guest(0).is_active());
    // By its frontend, which left: until the next one comes.
    vmm.frontend.set_vring_num(0, 3).unwrap_err();
    port.wait_for_end("power of two");
    assert_eq!(port.state(), State::Broken);
    let port = port.handed_over(Role::Server);
    let (state, reason) = port.device.state();
    assert!(state == State::Broken && reason.contains("power of two"), "{reason}");
    let mut again = port.vmm();
    again.boot();
    assert_eq!(port.state(), State::Up);
}

#[test]
fn memory_that_was_taken_away_stops_nobody() {
    let port = Port::server(1);
    let mut vmm = port.vmm();
    vmm.boot();
    vmm.memory.set_len(0).unwrap();
    port.device.from_guest(0).serve(&mut Burst::new(), |_| ());
    assert_eq!(port.state(), State::Broken);
    let port = port.handed_over(Role::Server);
    let (state, reason) = port.device.state();
    assert!(state == State::Broken && reason.contains("connect anew"), "{reason}");
    let mut again = port.vmm();
    again.boot();
    assert_eq!(port.state(), State::Up);
}

/// What a liar says of a port.
fn spoilt(state: DeviceState) -> impl Strategy<Value = DeviceState> {
    let number = prop_oneof![0u64..4096, Just(1 << 20), any::<u64>(), Just(u64::MAX - 0xfff)];
    (0..16usize, number, 0..4usize).prop_map(move |(what, number, ring)| {
        let mut state = state.clone();
        let Some(session) = &mut state.session else { return state };
        let at = &mut session.rings[ring];
        match what {
            0 => at.size = number as u16,
            1 => at.addresses = Some([number, number, number]),
            2 => at.base = Some(number as u32),
            3 => at.kick = KickState::By(number as u32),
            4 => at.call = Some(number as u32),
            5 => session.features = Some(number),
            6 => session.protocol_features = number,
            7 => session.regions[0].size = number,
            8 => session.regions[0].file = number as u32,
            9 => session.regions[0].user_addr = number,
            10 => session.connection = number as u32,
            11 => at.log = Some(number),
            12 => at.fault = Some(number as u8),
            13 => {
                let file = session.regions[0].file;
                session.log = Some(LogState { bytes: number, offset: number, file });
            }
            14 => {
                let (size, file) = (number as u16, session.regions[0].file);
                let (queues, packed) = (ring as u16, ring == 1);
                session.inflight = Some(InflightState { queues, size, packed, offset: number, file });
            }
            _ => session.rings.truncate(ring),
        }
        state
    })
}

#[test]
fn what_is_wrong_is_refused_and_nothing_breaks() {
    let port = Port::server(2);
    let mut vmm = port.vmm();
    vmm.boot();
    // Two guest's rings that go in circles must not matter either.
    vmm.memory.write_all_at(&[0xff; 64], 0x1000).unwrap();
    let (state, _) = export(&port.device);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(300));
    runner
        .run(&spoilt(state), |state| {
            let mut descriptors = Descriptors::default();
            port.device.export(&mut descriptors).unwrap();
            let changed = Arc::new(|| ());
            let config = config(&port.path, Role::Server, 2);
            match Device::resume(config, &state, &mut descriptors, changed) {
                Ok(device) => drop(device),
                Err(HandoverError::Invalid(text)) => prop_assert!(!text.is_empty() && !text.contains('\n')),
                Err(HandoverError::NoDescriptor(_) | HandoverError::System { .. }) => {}
            }
            Ok(())
        })
        .unwrap();
    port.device.go_on();
    vmm.frontend.set_vring_enable(0, false).unwrap();
}
