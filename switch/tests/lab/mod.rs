//! Network namespaces, plain packet sockets and waiting with a deadline, for tests of ports on real devices.
#![allow(dead_code, reason = "each test program uses its part")]
#![allow(unreachable_pub, reason = "shared by test programs as a module")]

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::{Duration, Instant},
};

use nix::{
    ifaddrs::getifaddrs,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike, recv, sendto,
        socket,
    },
};
use shunt_switch::port::{
    device::{ReceiveBuffer, Sent},
    netdev::Netdev,
    netns::Netns,
    tap::{Tap, TapConfig},
};
use vhost_backend::{frame::Burst, net_header::NetHeader};

/// Nothing here takes that long on the slowest machine.
pub const DEADLINE: Duration = Duration::from_secs(20);
/// An EtherType that no stack sends (IEEE 802, local experimental).
pub const EXPERIMENT: [u8; 2] = [0x88, 0xb5];

/// Whether this process may make namespaces; says so when not.
pub fn privileged() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root for network namespaces");
    }
    root
}

/// A network namespace that lives as long as this value.
pub struct Namespace {
    pub name: String,
}

impl Namespace {
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("shunt-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        run(Command::new("ip").args(["netns", "add", &name]));
        Self { name }
    }

    /// Runs `ip` with `args` in it and returns what it prints.
    pub fn ip(&self, args: &str) -> String {
        run(Command::new("ip").args(["-n", &self.name]).args(args.split_whitespace()))
    }

    /// Whether it has the device.
    pub fn has(&self, device: &str) -> bool {
        Command::new("ip")
            .args(["-n", &self.name, "link", "show", "dev", device])
            .output()
            .is_ok_and(|o| o.status.success())
    }

    /// A command that runs in it.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        Netns::open(Some(Path::new(&self.name))).unwrap().run(work).unwrap()
    }

    /// `ip -j addr show dev DEVICE` as JSON.
    pub fn addresses(&self, device: &str) -> serde_json::Value {
        serde_json::from_str(&self.ip(&format!("-j addr show dev {device}"))).unwrap()
    }

    pub fn tap_config(&self, device: &str) -> TapConfig {
        TapConfig {
            device: device.into(),
            queues: 1,
            mtu: None,
            mac: None,
            netns: Some(self.name.clone().into()),
            persist: false,
        }
    }

    /// A plain packet socket on `device`: an independent view of the kernel's side.
    pub fn plain(&self, device: &str) -> Plain {
        self.run(|| {
            let fd = socket(
                AddressFamily::Packet,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
                SockProtocol::EthAll,
            )
            .unwrap();
            let address = getifaddrs()
                .unwrap()
                .filter(|i| i.interface_name == device)
                .find_map(|i| i.address?.as_link_addr().copied())
                .expect("device has a link address");
            Plain { fd, address }
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// A packet socket without any of the options that ports use. It hears all devices of its namespace.
pub struct Plain {
    fd: OwnedFd,
    address: LinkAddr,
}

impl Plain {
    pub fn send(&self, frame: &[u8]) {
        assert!(self.address.len() > 0);
        assert_eq!(sendto(self.fd.as_raw_fd(), frame, &self.address, MsgFlags::empty()), Ok(frame.len()));
    }

    /// The first frame that `wanted` likes.
    pub fn expect(&self, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let mut buffer = vec![0; 100_000];
        until("a frame on the plain socket", self.fd.as_fd(), || {
            while let Ok(len) = recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                if wanted(&buffer[..len]) {
                    return Some(buffer[..len].to_vec());
                }
            }
            None
        })
    }
}

/// Calls `attempt` until it has something, whenever `fd` is readable.
pub fn until<T>(what: &str, fd: BorrowedFd<'_>, mut attempt: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        let left = end.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "waited in vain for {what}");
        let left = PollTimeout::from(left.as_millis().min(1000) as u16);
        poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], left).unwrap();
    }
}

/// Calls `attempt` until it is true, some hundred times a second.
pub fn eventually(what: &str, mut attempt: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !attempt() {
        assert!(Instant::now() < end, "waited in vain for: {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// A port's device of either kind.
pub trait Device: Sync {
    fn take(
        &self,
        queue: usize,
        buffer: &mut ReceiveBuffer,
        burst: &mut Burst,
        f: &mut dyn FnMut(&mut Burst),
    ) -> std::io::Result<usize>;
    fn give(&self, queue: usize, burst: &Burst, mask: u64) -> Sent;
    fn fd(&self, queue: usize) -> BorrowedFd<'_>;
}

macro_rules! device {
    ($kind:ty) => {
        impl Device for $kind {
            fn take(
                &self,
                queue: usize,
                buffer: &mut ReceiveBuffer,
                burst: &mut Burst,
                f: &mut dyn FnMut(&mut Burst),
            ) -> std::io::Result<usize> {
                self.receive(queue, buffer, burst, f)
            }
            fn give(&self, queue: usize, burst: &Burst, mask: u64) -> Sent {
                self.send(queue, burst, mask)
            }
            fn fd(&self, queue: usize) -> BorrowedFd<'_> {
                self.queue_fd(queue)
            }
        }
    };
}
device!(Tap);
device!(Netdev);

/// A frame with its offload metadata.
pub type Received = (NetHeader, Vec<u8>);

/// Reads one burst from a queue.
pub fn take_all(device: &dyn Device, queue: usize) -> std::io::Result<Vec<Received>> {
    let (mut buffer, mut burst) = (ReceiveBuffer::new(), Burst::new());
    let mut frames = Vec::new();
    let count = device.take(queue, &mut buffer, &mut burst, &mut |burst| {
        for i in 0..burst.len() {
            let mut to = vec![0; burst.frame_len(i)];
            assert_eq!(burst.linearise(i, &mut to), Some(to.len()));
            frames.push((*burst.header(i), to));
        }
    })?;
    assert_eq!(count, frames.len());
    assert!(burst.is_empty());
    Ok(frames)
}

/// The first frame from a queue that `wanted` likes.
pub fn expect(device: &dyn Device, queue: usize, wanted: impl Fn(&[u8]) -> bool) -> Received {
    until("a frame on a port", device.fd(queue), || {
        take_all(device, queue).unwrap().into_iter().find(|(_, frame)| wanted(frame))
    })
}

/// Sends one frame in three pieces' form: snapshot and the rest.
pub fn give_one(device: &dyn Device, queue: usize, header: NetHeader, frame: &[u8]) -> Sent {
    let (head, rest) = frame.split_at(frame.len().min(100));
    let mut burst = Burst::new();
    burst.with_slices(
        |filler| assert!(filler.push(header, head, rest)),
        |burst| device.give(queue, burst, burst.all()),
    )
}

/// A broadcast frame of the experimental type: `mark`, then a pattern up to `len` bytes.
pub fn frame(mark: u8, len: usize) -> Vec<u8> {
    let mut frame = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1], &EXPERIMENT, &[mark]].concat();
    frame.extend((frame.len()..len).map(|i| (i * 7) as u8));
    frame.truncate(len);
    frame
}

/// Whether it is `frame(mark, ..)`.
pub fn marked(mark: u8) -> impl Fn(&[u8]) -> bool {
    move |frame| frame.len() > 14 && frame[12..14] == EXPERIMENT && frame[14] == mark
}

/// A TCP segment over IPv4 with `payload` bytes, checksum left to do and, when larger than `mss`, to be cut.
pub fn tcp(to: [u8; 6], payload: usize, mss: u16) -> Received {
    use etherparse::{PacketBuilder, TcpHeader};
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], to).ipv4([10, 9, 8, 1], [10, 9, 8, 2], 64);
    let mut bytes = Vec::new();
    let data: Vec<u8> = (0..payload).map(|i| (i * 31 / 7) as u8).collect();
    builder.tcp_header(TcpHeader::new(5001, 5002, 77, 1000)).write(&mut bytes, &data).unwrap();
    let header = NetHeader {
        flags: vhost_backend::net_header::NEEDS_CSUM,
        gso_type: vhost_backend::net_header::GSO_TCPV4,
        hdr_len: 54,
        gso_size: mss,
        csum_start: 34,
        csum_offset: 16,
        num_buffers: 0,
    };
    (header, bytes)
}

/// Passes frames between queue 0 of two devices until `stop`; returns how many were longer than 2000 bytes.
pub fn join(a: &dyn Device, b: &dyn Device, stop: &AtomicBool) -> usize {
    let (mut buffer, mut burst) = (ReceiveBuffer::new(), Burst::new());
    let mut long = 0;
    while !stop.load(Ordering::Relaxed) {
        let mut fds = [PollFd::new(a.fd(0), PollFlags::POLLIN), PollFd::new(b.fd(0), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::from(20_u8)).unwrap();
        for (from, to) in [(a, b), (b, a)] {
            from.take(0, &mut buffer, &mut burst, &mut |burst| {
                long += (0..burst.len()).filter(|&i| burst.frame_len(i) > 2000).count();
                to.give(0, burst, burst.all());
            })
            .unwrap();
        }
    }
    long
}

/// Stops a loop also when the test panics, so that a scope can end.
pub struct StopOnDrop<'a>(pub &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Sends `bytes` through TCP from one namespace to `address` in another and compares.
pub fn tcp_transfer(from: &Namespace, to: &Namespace, address: &str, bytes: usize) {
    let data: Vec<u8> = (0..bytes).map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8).collect();
    let listener = to.run(|| TcpListener::bind((address, 0)).unwrap());
    listener.set_nonblocking(true).unwrap();
    let target = listener.local_addr().unwrap();
    let received = std::thread::scope(|scope| {
        let receiver = scope.spawn(move || {
            let mut received = Vec::new();
            let (mut stream, _) = until("a connection", listener.as_fd(), || listener.accept().ok());
            stream.set_nonblocking(false).unwrap();
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            stream.read_to_end(&mut received).unwrap();
            received
        });
        let mut stream = from.run(|| TcpStream::connect_timeout(&target, DEADLINE).unwrap());
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(&data).unwrap();
        drop(stream);
        receiver.join().unwrap()
    });
    assert!(received == data, "{} of {} bytes arrived, or others", received.len(), data.len());
}
