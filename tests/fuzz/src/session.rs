//! vhost-user sessions: any messages in any order, with any descriptors, while workers use the rings.
//!
//! Everything happens on one thread: the messages are written beforehand, and whenever the session has changed
//! something, as it tells the switch, the rings are served and delivered to, and bytes of memory change.

#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::fs::File;
use std::io::{IoSlice, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, OnceLock};

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use vhost_backend::device::{Device, DeviceConfig, Role};
use vhost_backend::frame::Burst;
use vhost_backend::net_header::NetHeader;

use crate::input::Input;
use crate::memory::{GPA, Memory, REGION, USER, memfd};

/// What is sent along: descriptors of every kind.
struct Things {
    memory: Memory,
    others: Vec<OwnedFd>,
}

impl Things {
    fn new() -> Self {
        let event = || {
            let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).expect("eventfd");
            event.as_fd().try_clone_to_owned().expect("dup")
        };
        let others = vec![
            event(),
            event(),
            nix::unistd::pipe().expect("pipe").0,
            File::open("/dev/null").expect("/dev/null").into(),
            File::open("/").expect("/").into(),
            memfd(4096).into(),
        ];
        Self { memory: Memory::new(), others }
    }

    /// Mostly what belongs there.
    fn pick(&self, input: &mut Input<'_>, wanted: RawFd) -> RawFd {
        match input.byte() {
            n @ 0..16 => self.others[usize::from(n) % self.others.len()].as_raw_fd(),
            _ => wanted,
        }
    }
}

/// Requests whose body is a ring's number and a value, in the order of their use.
const ABOUT_RINGS: [u32; 4] = [8, 10, 11, 18];
const PAIRS: u16 = 2;
/// Where ring `n` lies, as an offset: across the seam for the second pair.
fn place(n: u64) -> u64 {
    n % 4 * 0x1800
}

fn send(stream: &UnixStream, bytes: &[u8], fds: &[RawFd]) -> bool {
    let rights = [ControlMessage::ScmRights(fds)];
    let rights = if fds.is_empty() { &[] } else { &rights[..] };
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    match sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(bytes)], rights, flags, None) {
        Ok(sent) => (&mut &*stream).write_all(&bytes[sent..]).is_ok(),
        Err(_) => false,
    }
}

fn message(request: u32, flags: u32, body: &[u8]) -> Vec<u8> {
    let header = [request, 1 | flags, body.len() as u32].map(u32::to_le_bytes).concat();
    [header, body.to_vec()].concat()
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A region, mostly one of the two that there are.
fn region(input: &mut Input<'_>) -> [u64; 4] {
    let n = u64::from(input.byte() % 2);
    let mut region = [GPA + n * REGION, REGION, USER + n * REGION, 0x1000 + n * (0x1000 + REGION)];
    if input.byte() < 32 {
        let which = usize::from(input.byte()) % 4;
        region[which] = match input.byte() % 4 {
            0 => input.quad(),
            1 => region[which].wrapping_add(u64::from(input.word())),
            2 => region[which].wrapping_sub(4096),
            _ => u64::from(input.byte()) << 12,
        };
    }
    region
}

/// Writes one message; false if there is no room for more.
fn write(input: &mut Input<'_>, things: &Things, stream: &UnixStream) -> bool {
    let file = things.memory.file.as_raw_fd();
    let ring = match input.byte() {
        n @ 0..240 => u64::from(n % 4),
        _ => u64::from(input.word()),
    };
    let flags = if input.byte() < 128 { 8 } else { 0 };
    match input.byte() % 16 {
        0 => {
            let bytes = input.byte();
            send(stream, input.bytes(bytes.into()), &[])
        }
        1 => {
            let (request, length) = (u32::from(input.byte() % 64), input.byte() % 64);
            let body = input.bytes(length.into()).to_vec();
            let fds = [file; 3];
            send(stream, &message(request, flags, &body), &fds[..usize::from(input.byte() % 4)])
        }
        2 => [1, 15, 17, 36].into_iter().all(|request| send(stream, &message(request, 0, &[]), &[])),
        3 => {
            let word = if input.byte() < 16 { input.quad() } else { 1 | 1 << 3 | 1 << 13 | 1 << 15 };
            send(stream, &message(16, 0, &words(&[word])), &[])
        }
        4 => {
            let offered = vhost_backend::features::offered();
            let word = if input.byte() < 16 { input.quad() } else { offered & (input.quad() | 1 << 30) };
            send(stream, &message(2, flags, &words(&[word])), &[])
        }
        5 => {
            let count = 1 + input.byte() % 2;
            let mut body = words(&[count.into()]);
            for _ in 0..count {
                body.extend(words(&region(input)));
            }
            let fds = [things.pick(input, file), file];
            send(stream, &message(5, flags, &body), &fds[..count.into()])
        }
        6 => {
            let body = [words(&[0]), words(&region(input))].concat();
            let fd = things.pick(input, file);
            send(stream, &message(37, flags, &body), &[fd])
        }
        7 => {
            let body = [words(&[0]), words(&region(input))].concat();
            send(stream, &message(38, flags, &body), &[])
        }
        8..=10 => {
            let request = input.pick(&ABOUT_RINGS);
            let value = match (request, input.byte()) {
                (8, 16..) => 1u64 << (input.byte() % 8),
                (18, 16..) => 1,
                _ => input.long().into(),
            };
            send(stream, &message(request, flags, &words(&[ring | value << 32])), &[])
        }
        11 => {
            let at = if input.byte() < 16 { input.quad() } else { USER + place(ring) };
            let body = words(&[ring, at, at.wrapping_add(0x1000), at.wrapping_add(0x800), 0]);
            send(stream, &message(9, flags, &body), &[])
        }
        12 | 13 => {
            let request = input.pick(&[12, 13, 14]);
            let event = things.others[usize::from(input.byte()) % 2].as_raw_fd();
            let fd = things.pick(input, event);
            let none = input.byte() < 16;
            let ring = if none { ring | 0x100 } else { ring };
            send(
                stream,
                &message(request, flags, &words(&[ring])),
                if none { &[] } else { std::slice::from_ref(&fd) },
            )
        }
        14 => send(stream, &message(input.pick(&[3, 4, 34]), flags, &[]), &[]),
        _ => {
            // What brings a ring up, all of it.
            let event = things.others[0].as_raw_fd();
            let at = USER + place(ring);
            let addresses = words(&[ring, at, at + 0x1000, at + 0x800, 0]);
            let order = 1u64 << (input.byte() % 7);
            send(stream, &message(8, 0, &words(&[ring | order << 32])), &[])
                && send(stream, &message(9, 0, &addresses), &[])
                && send(stream, &message(13, 0, &words(&[ring])), &[event])
                && send(stream, &message(12, 0, &words(&[ring])), &[event])
                && send(stream, &message(18, 0, &words(&[ring | 1 << 32])), &[])
        }
    }
}

/// What happens between two messages.
struct Meanwhile {
    bytes: Vec<u8>,
    at: usize,
}

thread_local! {
    static BURST: RefCell<Burst> = RefCell::new(Burst::new());
}

impl Meanwhile {
    fn byte(&mut self) -> u8 {
        self.at += 1;
        self.bytes.get(self.at - 1).copied().unwrap_or(0)
    }

    fn happen(&mut self, device: &Device, memory: &Memory) {
        if self.at >= self.bytes.len() {
            return;
        }
        for _ in 0..self.byte() % 8 {
            let at = u64::from(self.byte()) << 8 | u64::from(self.byte());
            let bytes = [self.byte(), self.byte()];
            memory.write(at, &bytes);
        }
        BURST.with_borrow_mut(|burst| {
            for pair in 0..device.queue_pairs() {
                device.from_guest(pair).serve(burst, |burst| assert!((1..=64).contains(&burst.len())));
                let to = device.to_guest(pair);
                burst.with_slices(
                    |filler| assert!(filler.push(NetHeader::default(), &[0x55; 60], &[])),
                    |burst| to.deliver(burst, 1),
                );
                let steered = device.steer(pair);
                assert!(steered.is_none_or(|to| to < device.queue_pairs()), "steered to {steered:?}");
                to.arm();
            }
        });
    }
}

/// One connection.
pub fn run(data: &[u8]) {
    static THINGS: OnceLock<Mutex<Things>> = OnceLock::new();
    let things = THINGS.get_or_init(|| Mutex::new(Things::new()));
    let Ok(things) = things.lock() else { return };
    things.memory.clear();
    // The first part are messages, the rest is what happens meanwhile.
    let messages = data.len().min(usize::from(data.first().copied().unwrap_or(0)) * 4);
    let (messages, meanwhile) = data.split_at(messages);
    let Ok((ours, theirs)) = UnixStream::pair() else { return };
    let mut input = Input::new(messages);
    while !input.is_empty() && write(&mut input, &things, &ours) {}
    let _ = ours.shutdown(std::net::Shutdown::Write);

    let meanwhile = Mutex::new(Meanwhile { bytes: meanwhile.to_vec(), at: 0 });
    let device = Arc::new(OnceLock::<Device>::new());
    let memory = things.memory.file.try_clone().expect("dup");
    let (weak, memory) = (Arc::downgrade(&device), Memory { file: memory });
    let changed = move || {
        let Some(device) = weak.upgrade() else { return };
        if let (Some(device), Ok(mut meanwhile)) = (device.get(), meanwhile.lock()) {
            meanwhile.happen(device, &memory);
        }
    };
    let config =
        DeviceConfig { name: "fuzz".into(), path: "/".into(), role: Role::Server, queue_pairs: PAIRS };
    let (made, attendant) = Device::attended(config, Arc::new(changed)).expect("a device");
    let _ = device.set(made);
    let end = attendant.serve(theirs);
    assert!(!end.is_empty() && !end.contains('\n'), "an end without a reason: {end:?}");
    if let Some(device) = device.get() {
        for pair in 0..device.queue_pairs() {
            assert!(!device.from_guest(pair).is_active() && !device.to_guest(pair).is_active());
        }
        assert_eq!((device.features(), device.steer(0)), (0, None), "left over from the last frontend");
    }
    // Not looked at: what lies around the regions, for a frontend may share that, too.
}
