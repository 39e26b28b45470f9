//! Random frontends: whatever they say, in whatever order, a session survives it and ends clean.

use std::{
    io::{IoSlice, Write},
    os::{
        fd::{AsRawFd, RawFd},
        unix::net::UnixStream,
    },
    sync::Mutex,
};

use nix::sys::{
    memfd::{MFdFlags, memfd_create},
    socket::{ControlMessage, MsgFlags, sendmsg},
};
use proptest::prelude::*;
use vhost::vhost_user::BackendReqHandler;
use vmm_sys_util::eventfd::EFD_NONBLOCK;

use super::*;
use crate::{device::State, frame::Burst};

const MEMORY: u64 = 1 << 16;
const PACKED: u64 = 1 << 34;

/// A number as liars like it.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0u64..6,
        2 => (0u64..16).prop_map(|page| page * 0x1000),
        2 => (0u64..17).prop_map(|bit| 1 << bit),
        1 => Just(MEMORY),
        1 => any::<u64>(),
        1 => Just(u64::MAX - 0xfff),
    ]
}

/// A message: request, words of the body, and whether descriptors (memory, event) come along.
#[derive(Clone, Debug)]
struct Message {
    request: u32,
    body: Vec<u8>,
    memory: bool,
    event: bool,
}

fn bytes(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn pair(low: u64, high: u64) -> u64 {
    low & 0xffff_ffff | high << 32
}

fn message() -> impl Strategy<Value = Message> {
    let plain = |request, body| Message { request, body, memory: false, event: false };
    prop_oneof![
        // SET_FEATURES, SET_PROTOCOL_FEATURES
        any::<u64>().prop_map(move |word| plain(2, bytes(&[word & features::offered()]))),
        Just(plain(2, bytes(&[features::offered()]))),
        Just(plain(2, bytes(&[features::offered() & !PACKED]))),
        any::<u64>().prop_map(move |word| plain(16, bytes(&[word & features::offered_protocol().bits()]))),
        // SET_OWNER, RESET_OWNER, RESET_DEVICE, GET_FEATURES, GET_PROTOCOL_FEATURES, GET_QUEUE_NUM, GET_MAX_MEM_SLOTS
        prop::sample::select(vec![3, 4, 34, 1, 15, 17, 36]).prop_map(move |request| plain(request, vec![])),
        // SET_MEM_TABLE of one region
        (number(), number(), number(), number()).prop_map(move |(gpa, size, user, offset)| Message {
            memory: true,
            ..plain(5, bytes(&[1, gpa, size, user, offset]))
        }),
        Just(Message { memory: true, ..plain(5, bytes(&[1, 0, MEMORY, 0x10000, 0])) }),
        // ADD_MEM_REG, REM_MEM_REG
        (number(), number(), number(), number()).prop_map(move |(gpa, size, user, offset)| Message {
            memory: true,
            ..plain(37, bytes(&[0, gpa, size, user, offset]))
        }),
        (number(), number(), number())
            .prop_map(move |(gpa, size, user)| plain(38, bytes(&[0, gpa, size, user, 0]))),
        Just(plain(38, bytes(&[0, 0, MEMORY, 0x10000, 0]))),
        // SET_VRING_NUM, SET_VRING_BASE, GET_VRING_BASE, SET_VRING_ENABLE
        (prop::sample::select(vec![8, 10, 11, 18]), 0u64..4, number())
            .prop_map(move |(request, ring, n)| plain(request, bytes(&[pair(ring, n)]))),
        (0u64..4).prop_map(move |ring| plain(18, bytes(&[pair(ring, 1)]))),
        (0u64..4).prop_map(move |ring| plain(8, bytes(&[pair(ring, 16)]))),
        // SET_VRING_ADDR
        (0u64..4, 0u64..16, 0u64..16, 0u64..16).prop_map(move |(ring, desc, used, avail)| {
            let at = |page: u64| 0x10000 + 0x1000 * page;
            plain(9, bytes(&[ring, at(desc), at(used), at(avail), 0]))
        }),
        (0u64..4, number(), number(), number())
            .prop_map(move |(ring, desc, used, avail)| plain(9, bytes(&[ring, desc, used, avail, 0]))),
        // The same with a place in the log, and SET_LOG_BASE
        (0u64..4, number()).prop_map(move |(ring, log)| {
            let base = 0x10000 + 0x4000 * (ring % 2);
            plain(9, bytes(&[pair(ring, 1), base, base + 0x2000, base + 0x1000, log]))
        }),
        (number(), number())
            .prop_map(move |(size, offset)| Message { memory: true, ..plain(6, bytes(&[size, offset])) }),
        // GET_INFLIGHT_FD, SET_INFLIGHT_FD
        (number(), number(), 0u64..6, number(), any::<bool>()).prop_map(
            move |(size, offset, queues, entries, set)| {
                let shape = queues | (entries & 0xffff) << 16;
                Message { memory: set, ..plain(31 + u32::from(set), bytes(&[size, offset, shape])) }
            }
        ),
        Just(Message { memory: true, ..plain(32, bytes(&[MEMORY, 0, 4 | 16 << 16])) }),
        // SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR
        (12u32..15, 0u64..4, any::<bool>()).prop_map(move |(request, ring, event)| Message {
            event,
            ..plain(request, bytes(&[if event { ring } else { ring | 0x100 }]))
        }),
        // Anything
        (0u32..50, prop::collection::vec(any::<u8>(), 0..64), any::<bool>(), any::<bool>())
            .prop_map(|(request, body, memory, event)| Message { request, body, memory, event }),
    ]
}

/// What an honest frontend says until two rings run.
fn boot(packed: bool) -> Vec<Message> {
    let plain = |request, words: &[u64]| Message { request, body: bytes(words), memory: false, event: false };
    let mut messages = vec![
        plain(2, &[if packed { features::offered() } else { features::offered() & !PACKED }]),
        Message { memory: true, ..plain(5, &[1, 0, MEMORY, 0x10000, 0]) },
    ];
    for ring in 0..2 {
        let base = 0x10000 + 0x4000 * ring;
        messages.push(plain(8, &[pair(ring, 16)]));
        messages.push(plain(9, &[ring, base, base + 0x2000, base + 0x1000, 0]));
        messages.push(Message { event: true, ..plain(12, &[ring]) });
        messages.push(plain(18, &[pair(ring, 1)]));
    }
    messages
}

fn send(stream: &UnixStream, message: &Message, memory: RawFd, event: RawFd) {
    let header = [message.request, 1 | 8, message.body.len() as u32].map(u32::to_ne_bytes).concat();
    let mut fds = vec![];
    fds.extend(message.memory.then_some(memory));
    fds.extend(message.event.then_some(event));
    let control = [ControlMessage::ScmRights(&fds)];
    let control = if fds.is_empty() { &[][..] } else { &control[..] };
    // Header and body apart, so that the descriptors stay with the header whatever the crate reads first.
    sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(&header)], control, MsgFlags::empty(), None).unwrap();
    let mut stream = stream;
    stream.write_all(&message.body).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn nothing_that_is_said_breaks_a_session(
        packed in any::<bool>(),
        messages in prop::collection::vec(message(), 1..60)
    ) {
        let file = File::from(memfd_create("guest", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(MEMORY).unwrap();
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let shared = Arc::new(Shared::new(2, Arc::new(|| ())));
        shared.connected();
        let mut burst = Burst::new();
        let mut messages = messages.into_iter().peekable();
        let mut booting = boot(packed);
        // One session after the other on the same rings: each ends with the first message that is refused.
        while messages.peek().is_some() {
            let session = Arc::new(Mutex::new(Session::new("port", shared.clone())));
            let (ours, theirs) = UnixStream::pair().unwrap();
            let mut handler = BackendReqHandler::from_stream(ours, session.clone());
            let booted = booting.len();
            let mut said = 0;
            for message in booting.drain(..).chain(messages.by_ref()) {
                send(&theirs, &message, file.as_raw_fd(), event.as_raw_fd());
                let result = handler.handle_request();
                for cell in shared.rings() {
                    cell.serve(&mut burst, |_| ());
                    cell.arm();
                }
                let session = session.lock().unwrap();
                for (cell, vring) in shared.rings().iter().zip(&session.vrings) {
                    prop_assert!(vring.running || !cell.is_active(), "a ring runs that should not");
                }
                let (state, _) = shared.state();
                let whole = shared.rings().iter().all(|cell| cell.fault().is_none());
                prop_assert!(whole == (state != State::Broken));
                said += 1;
                prop_assert!(booted == 0 || said != booted || state == State::Up, "an honest start failed");
                if result.is_err() {
                    break;
                }
            }
            session.lock().unwrap().end();
            prop_assert!(shared.rings().iter().all(|cell| !cell.is_active() && cell.stop().is_none()));
            prop_assert_eq!((shared.features(), shared.steer(0)), (0, None));
        }
    }
}
