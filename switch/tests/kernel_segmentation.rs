//! Our software checksums and segmentation against those of the kernel that the tests run on, byte for byte.
//!
//! A frame goes with its virtio-net header into one end of a veth pair (a packet socket with PACKET_VNET_HDR) whose
//! offloads are switched off, so that the kernel has to finish it; what arrives at the other end must be what
//! [`Finisher`] makes of the same frame. Both ends live in a network namespace of the test's own, which is gone with
//! its thread. Needs root; says so and passes otherwise.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use shunt_switch::packet::offload::{Capabilities, Finisher};
use shunt_switch::packet::validate;
use vhost_backend::frame::{Burst, SNAPSHOT};
use vhost_backend::net_header::{GSO_ECN, GSO_UDP, GSO_UDP_L4, LEGACY_NET_HEADER_LEN, NEEDS_CSUM, NetHeader};

#[path = "../src/packet/testing.rs"]
#[allow(dead_code)] // the unit tests use all of it
mod testing;
use testing::{ACK, CWR, Checksum, FIN, PSH, SOURCE_MAC, Tcp};

const SENDER: &str = "shunt-oracle0";
const RECEIVER: &str = "shunt-oracle1";
const DEADLINE: Duration = Duration::from_secs(20);

fn run(program: &str, arguments: &str) -> io::Result<()> {
    let output = Command::new(program).args(arguments.split(' ')).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr))))
}

fn os(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn set_option<T>(socket: &OwnedFd, level: libc::c_int, name: libc::c_int, value: T) {
    let len = size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` is `len` readable bytes during the call.
    os(unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), len) })
        .unwrap_or_else(|error| panic!("setsockopt {name}: {error}"));
}

/// A packet socket on one device that speaks the 10-byte virtio-net header.
struct Port(OwnedFd);

impl Port {
    /// `protocol` 0 receives nothing.
    fn open(device: &str, protocol: u16) -> Self {
        // SAFETY: a call without pointers; the descriptor is new and ours alone.
        let socket = unsafe {
            OwnedFd::from_raw_fd(
                os(libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0)).unwrap(),
            )
        };
        set_option(&socket, libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1_i32);
        // A burst of small segments takes far more room than its bytes.
        set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 16_i32 << 20);
        // SAFETY: all zeros is a valid address structure of plain integers.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol.to_be();
        address.sll_ifindex = nix::net::if_::if_nametoindex(device).unwrap() as i32;
        let len = size_of_val(&address) as libc::socklen_t;
        // SAFETY: `address` is `len` readable bytes during the call.
        os(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) }).unwrap();
        Self(socket)
    }

    fn send(&self, header: &NetHeader, frame: &[u8]) -> nix::Result<usize> {
        nix::unistd::write(&self.0, &[&header.to_bytes()[..LEGACY_NET_HEADER_LEN], frame].concat())
    }

    /// The next frame from this address; the kernel's chatter on the link is left out.
    fn receive(&self, source: [u8; 6], deadline: Instant) -> Option<(NetHeader, Vec<u8>)> {
        let mut bytes = vec![0; 70_000];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut ready = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            if poll(&mut ready, PollTimeout::try_from(left).unwrap()).unwrap() == 0 {
                return None;
            }
            let len = nix::unistd::read(&self.0, &mut bytes).unwrap();
            let (header, frame) = bytes[..len].split_at(LEGACY_NET_HEADER_LEN);
            if frame.get(6..12) == Some(&source[..]) {
                let mut whole = [0; 12];
                whole[..LEGACY_NET_HEADER_LEN].copy_from_slice(header);
                return Some((NetHeader::from_bytes(&whole), frame.to_vec()));
            }
        }
    }
}

/// What we make of the frame.
fn ours(frame: &[u8], header: NetHeader, caps: Capabilities) -> Vec<(NetHeader, Vec<u8>)> {
    let (head, rest) = frame.split_at(frame.len().min(SNAPSHOT));
    let (mut burst, mut finisher, mut frames) = (Burst::new(), Finisher::new(), Vec::new());
    let done = burst.with_slices(
        |filler| assert!(filler.push(header, head, rest)),
        |burst| {
            finisher.finish(burst, 0, caps, |out| {
                for i in 0..out.len() {
                    let mut bytes = vec![0; out.frame_len(i)];
                    out.linearise(i, &mut bytes).unwrap();
                    frames.push((*out.header(i), bytes));
                }
            })
        },
    );
    assert!(done);
    frames
}

/// The kernel takes the outer tag out of a frame on its way to a packet socket.
fn untagged(tagged: bool, header: NetHeader, frame: &[u8]) -> (NetHeader, Vec<u8>) {
    if !tagged {
        return (header, frame.to_vec());
    }
    let shift = if header.flags & NEEDS_CSUM != 0 { 4 } else { 0 };
    let header = NetHeader { csum_start: header.csum_start - shift, ..header };
    (header, [&frame[..12], &frame[16..]].concat())
}

fn compare(
    from: &Port,
    to: &Port,
    tcp: &Tcp,
    what: &str,
    frame: &[u8],
    request: NetHeader,
    caps: Capabilities,
) {
    // The kernel gets what the switch would give it. As the guest asked, it refuses frames whose payload fits in one
    // segment but not together with the TCP options.
    let request = validate(&frame[..frame.len().min(SNAPSHOT)], frame.len(), request).unwrap();
    let expected = ours(frame, request, caps);
    from.send(&request, frame).unwrap_or_else(|error| panic!("{what}: {request:?} of {tcp:?}: {error}"));
    let deadline = Instant::now() + DEADLINE;
    for (n, (header, bytes)) in expected.iter().enumerate() {
        let what = || format!("{what}, frame {n} of {} of {request:?} of {tcp:?}", expected.len());
        let (kernel_header, kernel) =
            to.receive(SOURCE_MAC, deadline).unwrap_or_else(|| panic!("missing: {}", what()));
        let (header, mut bytes) = untagged(tcp.tags > 0, *header, bytes);
        if tcp.v6 && request.gso_type == GSO_UDP {
            // Fragments' numbers are each side's own choice.
            let number = tcp.tcp_at() - 4 * tcp.tags + 4;
            bytes[number..number + 4].copy_from_slice(&kernel[number..number + 4]);
        }
        assert!(bytes == kernel, "{}\nours   {bytes:02x?}\nkernel {kernel:02x?}", what());
        assert_eq!(header.flags, kernel_header.flags & NEEDS_CSUM, "{}", what());
        assert_eq!(
            (header.gso_type, header.csum_start, header.csum_offset),
            (kernel_header.gso_type, kernel_header.csum_start, kernel_header.csum_offset),
            "{}",
            what()
        );
    }
}

/// Returns when frames pass: a link that was just set up swallows them until the kernel's worker has seen it.
fn wait_for_link(from: &Port, to: &Port) {
    let source = [0x52, 0x54, 0, 0, 0, 3];
    let probe = [&[0xff; 6][..], &source, &[0x88, 0xb5], &[0; 46]].concat();
    let deadline = Instant::now() + DEADLINE;
    loop {
        let sent = from.send(&NetHeader::default(), &probe);
        if to.receive(source, Instant::now() + Duration::from_millis(20)).is_some() {
            return;
        }
        assert!(Instant::now() < deadline, "the link carries nothing: {sent:?}");
    }
}

/// UDP frames with the sizes of their datagrams and of their fragments.
fn datagrams() -> Vec<(Tcp, u16, u16)> {
    let mut shapes = Vec::new();
    for v6 in [false, true] {
        let base = Tcp::new(v6, 10_000);
        shapes.push((base.clone(), 1448, 1480));
        shapes.push((Tcp { tags: 1, ..base.clone() }, 1448, 1400));
        shapes.push((Tcp { ip_options: 8, identification: u16::MAX - 1, ..base.clone() }, 999, 1000));
        shapes.push((Tcp { routing: v6, ..base.clone() }, 1400, 1024));
        shapes.push((Tcp::new(v6, 40_001), 1000, 9000));
        shapes.push((Tcp::new(v6, 1001), 1000, 1000));
    }
    shapes
}

/// Frames of every shape that both can take.
fn shapes() -> Vec<(Tcp, u16)> {
    let mut shapes = Vec::new();
    for v6 in [false, true] {
        let base = Tcp::new(v6, 10_000);
        shapes.push((base.clone(), 1448));
        shapes.push((Tcp { tags: 1, ..base.clone() }, 1448));
        shapes.push((Tcp { options: 0, flags: ACK | PSH | FIN, ..base.clone() }, 536));
        shapes.push((Tcp { ip_options: 8, options: 40, ..base.clone() }, 1000));
        shapes.push((Tcp { sequence: u32::MAX - 100, identification: u16::MAX - 1, ..base.clone() }, 999));
        shapes.push((Tcp { flags: ACK | CWR | PSH, ..base.clone() }, 5000));
        shapes.push((Tcp { routing: v6, ..base.clone() }, 1400));
        let max = 65535 - if v6 { 40 } else { 20 } - 32;
        shapes.push((Tcp::new(v6, max), 1448));
        shapes.push((Tcp::new(v6, 8 * 300 + 1), 8));
        shapes.push((Tcp::new(v6, 9001), 9000));
        shapes.push((Tcp::new(v6, 1448), 1448));
        shapes.push((Tcp::new(v6, 1), 1448));
    }
    shapes
}

fn oracle() {
    if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
        eprintln!("skipped: a network namespace of our own needs root ({error})");
        return;
    }
    run("ip", &format!("link add {SENDER} type veth peer name {RECEIVER}")).unwrap();
    for device in [SENDER, RECEIVER] {
        run("ip", &format!("link set {device} addrgenmode none mtu 9600 up")).unwrap();
    }
    let (from, to) = (Port::open(SENDER, 0), Port::open(RECEIVER, libc::ETH_P_ALL as u16));
    wait_for_link(&from, &to);
    // Leftovers in a header that asks for nothing, which cost the frame if they go to the kernel.
    let leftovers = NetHeader { hdr_len: 2000, csum_start: 3000, num_buffers: 9, ..NetHeader::default() };
    let plain = Tcp::new(false, 100).bytes(Checksum::Whole);
    assert_eq!(from.send(&leftovers, &plain), Err(nix::Error::EINVAL));
    from.send(&leftovers.meaningful(), &plain).unwrap();
    let (_, arrived) = to.receive(SOURCE_MAC, Instant::now() + DEADLINE).unwrap();
    assert_eq!(arrived, plain);
    let partial = Capabilities { checksum: true, ..Capabilities::NONE };
    let stages = [
        (ETHTOOL_STSO, "segmentation off", partial),
        (ETHTOOL_STXCSUM, "checksums off, too", Capabilities::NONE),
    ];
    for (command, what, caps) in stages {
        switch_off(&from, command);
        for (tcp, gso_size) in shapes() {
            let frame = tcp.bytes(Checksum::Partial);
            let request = tcp.request(gso_size);
            let gso_type = request.gso_type | if tcp.flags & CWR != 0 { GSO_ECN } else { 0 };
            compare(&from, &to, &tcp, what, &frame, NetHeader { gso_type, ..request }, caps);
            if tcp.payload.len() > 9000 {
                continue;
            }
            let checksum = NetHeader { gso_type: 0, gso_size: 0, ..request };
            compare(&from, &to, &tcp, what, &frame, checksum, caps);
            let frame = tcp.bytes_of_udp(Checksum::Partial);
            compare(&from, &to, &tcp, what, &frame, tcp.request_of_udp(), caps);
        }
    }
    for (udp, uso, ufo) in datagrams() {
        let frame = udp.bytes_of_udp(Checksum::Partial);
        let request = udp.request_of_datagrams(GSO_UDP_L4, uso);
        compare(&from, &to, &udp, "USO", &frame, request, Capabilities::NONE);
        // The kernel counts IPv6's extension headers into the fragments' offsets (`ipv6_gso_segment`).
        if !udp.v6 || udp.ip_options == 0 && !udp.routing {
            let request = udp.request_of_datagrams(GSO_UDP, ufo);
            compare(&from, &to, &udp, "UFO", &frame, request, Capabilities::NONE);
        }
    }
    // A checksum that comes to 0.
    let mut udp = Tcp::new(false, 100);
    udp.payload[..2].fill(0);
    let at = udp.tcp_at() + 6;
    let whole = udp.bytes_of_udp(Checksum::Whole);
    udp.payload[..2].copy_from_slice(&whole[at..at + 2]);
    let frame = udp.bytes_of_udp(Checksum::Partial);
    compare(&from, &to, &udp, "zero", &frame, udp.request_of_udp(), Capabilities::NONE);
}

const ETHTOOL_STXCSUM: u32 = 0x17;
const ETHTOOL_STSO: u32 = 0x1f;

/// `ethtool -K SENDER ... off`, without the tool.
fn switch_off(any: &Port, command: u32) {
    let mut value = [command, 0];
    // SAFETY: all zeros is a valid request structure of plain integers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(SENDER.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
    // SAFETY: the request names a device and points to a `struct ethtool_value`, both alive during the call.
    os(unsafe { libc::ioctl(any.0.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) })
        .unwrap_or_else(|error| panic!("ethtool {command:#x}: {error}"));
}

#[test]
fn the_kernel_makes_the_same_of_every_frame() {
    // The namespace belongs to the thread.
    std::thread::spawn(oracle).join().unwrap();
}
