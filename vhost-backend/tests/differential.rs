//! The same questions to this crate and to the reference, `vhost-user-backend`: the answers must agree.
//!
//! Left out is where the two differ on purpose: feature words, the number of queues (rings there, pairs here), sizes
//! that are no power of two, and regions that are longer than their file, all of which the reference takes.

mod common;

use std::{io, os::unix::net::UnixStream, sync::Arc, thread};

use common::{MEMORY, Port, RING, USER, Vmm};
use vhost::{
    VhostBackend,
    vhost_user::{Listener, VhostUserFrontend, message::VhostUserProtocolFeatures},
};
use vhost_backend::features;
use vhost_user_backend::{VhostUserBackend, VhostUserDaemon, VringMutex};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

type Memory = GuestMemoryAtomic<GuestMemoryMmap<()>>;

struct Reference;

impl VhostUserBackend for Reference {
    type Bitmap = ();
    type Vring = VringMutex<Memory>;

    fn num_queues(&self) -> usize {
        2
    }

    fn max_queue_size(&self) -> usize {
        32768
    }

    fn features(&self) -> u64 {
        features::offered()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        features::offered_protocol()
    }

    fn set_event_idx(&self, _enabled: bool) {}

    fn update_memory(&self, _memory: Memory) -> io::Result<()> {
        Ok(())
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        vec![]
    }

    fn handle_event(&self, _: u16, _: EventSet, _: &[Self::Vring], _: usize) -> io::Result<()> {
        Ok(())
    }
}

type Step = fn(&mut Vmm) -> vhost::Result<u64>;

/// The answers to the steps, up to the first error.
fn answers(stream: UnixStream, steps: &[Step]) -> Vec<Option<u64>> {
    let mut vmm = Vmm::new(stream, 256);
    let mut answers = vec![];
    for step in steps {
        let answer = step(&mut vmm).ok();
        answers.push(answer);
        if answer.is_none() {
            break;
        }
    }
    answers
}

fn agree(name: &str, expected: &[Option<u64>], steps: &[Step]) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("reference");
    let mut listener = Listener::new(&path, true).unwrap();
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::<()>::new());
    let mut daemon = VhostUserDaemon::new("reference".into(), Arc::new(Reference), memory).unwrap();
    let theirs = thread::scope(|scope| {
        scope.spawn(move || {
            daemon.start(&mut listener).unwrap();
            // Ends with an error whenever the frontend leaves.
            let _ = daemon.wait();
        });
        answers(UnixStream::connect(&path).unwrap(), steps)
    });
    let port = Port::server(1);
    let ours = answers(UnixStream::connect(&port.path).unwrap(), steps);
    assert_eq!(ours, theirs, "{name}: ours and the reference's");
    assert_eq!(ours, expected, "{name}");
}

const MEMORY_TABLE: Step = |vmm| vmm.frontend.set_mem_table(&[vmm.all_memory()]).map(|_| 0);

#[test]
fn questions() {
    agree(
        "questions",
        &[Some(509), Some(features::offered()), Some(features::offered_protocol().bits())],
        &[
            |vmm| vmm.frontend.get_max_mem_slots(),
            |vmm| vmm.frontend.get_features(),
            |vmm| vmm.frontend.get_protocol_features().map(|word| word.bits()),
        ],
    );
}

#[test]
fn the_life_of_a_ring() {
    agree(
        "life",
        &[
            Some(0),
            Some(0),
            Some(0),
            Some(0),
            Some(0),
            Some(77),
            Some(77),
            Some(0),
            Some(5),
            Some(0),
            Some(0),
        ],
        &[
            MEMORY_TABLE,
            |vmm| vmm.set_up_ring(0, 77).map(|()| 0),
            |vmm| vmm.frontend.set_vring_enable(0, true).map(|()| 0),
            |vmm| vmm.frontend.set_vring_enable(0, false).map(|()| 0),
            |vmm| vmm.frontend.set_vring_enable(0, true).map(|()| 0),
            |vmm| vmm.frontend.get_vring_base(0).map(u64::from),
            |vmm| vmm.frontend.get_vring_base(0).map(u64::from),
            |vmm| vmm.frontend.set_vring_base(0, 5).map(|()| 0),
            |vmm| vmm.frontend.get_vring_base(0).map(u64::from),
            |vmm| vmm.set_up_ring(1, 3).map(|()| 0),
            |vmm| vmm.frontend.reset_device().map(|()| 0),
        ],
    );
}

#[test]
fn regions() {
    agree(
        "regions",
        &[Some(0), Some(0), Some(0), Some(0), None],
        &[
            |vmm| vmm.frontend.add_mem_region(&vmm.region(0, MEMORY / 2, 0)).map(|_| 0),
            |vmm| vmm.frontend.add_mem_region(&vmm.region(MEMORY / 2, MEMORY / 2, MEMORY / 2)).map(|_| 0),
            |vmm| vmm.frontend.remove_mem_region(&vmm.region(0, MEMORY / 2, 0)).map(|()| 0),
            |vmm| vmm.frontend.add_mem_region(&vmm.region(0, MEMORY / 2, 0)).map(|_| 0),
            |vmm| vmm.frontend.add_mem_region(&vmm.region(4096, 4096, 0)).map(|_| 0),
        ],
    );
    agree(
        "missing",
        &[Some(0), None],
        &[MEMORY_TABLE, |vmm| vmm.frontend.remove_mem_region(&vmm.region(4096, 4096, 0)).map(|()| 0)],
    );
    agree(
        "overlap",
        &[None],
        &[|vmm| vmm.frontend.set_mem_table(&[vmm.all_memory(), vmm.region(4096, 4096, 0)]).map(|_| 0)],
    );
}

#[test]
fn refusals() {
    let refusals: [(&str, Step); 9] = [
        ("num of ring 2", |vmm| vmm.frontend.set_vring_num(2, RING).map(|()| 0)),
        ("num 0", |vmm| vmm.frontend.set_vring_num(0, 0).map(|()| 0)),
        ("base of ring 2", |vmm| vmm.frontend.get_vring_base(2).map(u64::from)),
        ("kick of ring 255", |vmm| vmm.frontend.set_vring_kick(255, &vmm.kicks[0]).map(|()| 0)),
        ("call of ring 255", |vmm| vmm.frontend.set_vring_call(255, &vmm.calls[0]).map(|()| 0)),
        ("enable of ring 2", |vmm| vmm.frontend.set_vring_enable(2, true).map(|()| 0)),
        ("features", |vmm| vmm.frontend.set_features(features::offered() | 1 << 63).map(|()| 0)),
        ("misaligned", |vmm| {
            let mut addresses = Vmm::addresses(0);
            addresses.used_ring_addr += 2;
            vmm.frontend.set_vring_addr(0, &addresses).map(|()| 0)
        }),
        ("outside of memory", |vmm| {
            vmm.frontend.set_mem_table(&[vmm.all_memory()])?;
            vmm.frontend.set_vring_num(0, RING)?;
            let mut addresses = Vmm::addresses(0);
            addresses.desc_table_addr = USER + MEMORY;
            vmm.frontend.set_vring_addr(0, &addresses).map(|()| 0)
        }),
    ];
    for (name, step) in refusals {
        agree(name, &[None], &[step]);
    }
}
