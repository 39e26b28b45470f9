//! Netdev ports against the kernel: frames of veth pairs and of TAP devices that others hold, VLAN tags, offloads, the
//! host's stack kept out and brought back.

mod lab;

use std::{
    collections::HashMap,
    sync::{Arc, atomic::AtomicBool, mpsc},
    thread,
};

use lab::*;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;
use shunt_switch::port::{
    netdev::{Netdev, NetdevConfig},
    tap::{Tap, TapConfig},
};
use vhost_backend::{
    frame::Burst,
    net_header::{NEEDS_CSUM, NetHeader},
};

fn config(ns: &Namespace, device: &str) -> NetdevConfig {
    NetdevConfig { device: device.into(), queues: 1, netns: Some(ns.name.clone().into()) }
}

/// A namespace with v0 and v1, both ends of a veth pair.
fn veth() -> Namespace {
    let ns = Namespace::new();
    ns.ip("link add v0 type veth peer name v1");
    ns.ip("link set v0 up");
    ns.ip("link set v1 up");
    ns
}

#[test]
fn frames_pass_both_ways_and_not_back() {
    if !privileged() {
        return;
    }
    let ns = veth();
    ns.ip("link set v0 mtu 9000");
    ns.ip("link set v1 mtu 9000");
    let netdev = Netdev::open(&config(&ns, "v0")).unwrap();
    let (near, far) = (ns.plain("v0"), ns.plain("v1"));
    for (mark, len) in [(1, 60), (2, 128), (3, 1514), (4, 9014)] {
        let sent = give_one(&netdev, 0, NetHeader::default(), &frame(mark + 100, len));
        assert_eq!((sent.sent, sent.full | sent.down | sent.refused), (1, 0));
        assert_eq!(far.expect(marked(mark + 100)), frame(mark + 100, len));
        // Neither what we sent nor what the host sends comes in: only what the far end sends.
        near.send(&frame(mark + 50, len));
        far.send(&frame(mark, len));
        let mut seen = Vec::new();
        until("the far end's frame", netdev.queue_fd(0), || {
            seen.extend(take_all(&netdev, 0).unwrap().into_iter().filter(|(_, f)| f[12..14] == EXPERIMENT));
            (!seen.is_empty()).then_some(())
        });
        assert_eq!(seen, [(NetHeader::default(), frame(mark, len))]);
    }
    let sent = give_one(&netdev, 0, NetHeader::default(), &frame(9, 9100));
    assert_eq!((sent.sent, sent.refused), (0, 1), "longer than the device takes");
}

#[test]
fn a_burst_is_sent_whole_and_in_order() {
    if !privileged() {
        return;
    }
    let ns = veth();
    let (a, b) = (Netdev::open(&config(&ns, "v0")).unwrap(), Netdev::open(&config(&ns, "v1")).unwrap());
    let frames: Vec<_> = (0..64).map(|i| frame(i, 60 + 20 * usize::from(i))).collect();
    let mut burst = Burst::new();
    let mask = !0b1010_u64;
    let sent = burst.with_slices(
        |filler| {
            for frame in &frames {
                let (head, rest) = frame.split_at(50);
                assert!(filler.push(NetHeader::default(), head, rest));
            }
        },
        |burst| a.send(0, burst, mask),
    );
    assert_eq!(sent.sent, mask);
    let mut seen = Vec::new();
    until("62 frames", b.queue_fd(0), || {
        seen.extend(take_all(&b, 0).unwrap().into_iter().map(|f| f.1));
        (seen.len() >= 62).then_some(())
    });
    let expected: Vec<_> = (0..64).filter(|i| mask >> i & 1 == 1).map(|i| frames[i].clone()).collect();
    assert!(seen == expected, "{} frames", seen.len());
    assert_eq!(b.missed(0), Default::default());
}

#[test]
fn short_and_long_frames_keep_their_order_for_many_bursts() {
    if !privileged() {
        return;
    }
    let ns = veth();
    ns.ip("link set v0 mtu 9000");
    ns.ip("link set v1 mtu 9000");
    let netdev = Netdev::open(&config(&ns, "v0")).unwrap();
    let far = ns.plain("v1");
    let mut mark = 0_u8;
    for round in 0..40 {
        // Around the length at which a frame does not fit its place any more, and far above it.
        let frames: Vec<_> = (0..100)
            .map(|i| {
                mark = mark.wrapping_add(1);
                frame(mark, [60, 1514, 1909, 1914, 9000][(i + round) % 5] + i % 14)
            })
            .collect();
        for frame in &frames {
            far.send(frame);
        }
        let mut seen = Vec::new();
        until("100 frames", netdev.queue_fd(0), || {
            let frames = take_all(&netdev, 0).unwrap();
            seen.extend(frames.into_iter().map(|f| f.1).filter(|f| f[12..14] == EXPERIMENT));
            (seen.len() >= 100).then_some(())
        });
        assert!(seen == frames, "round {round}");
    }
    assert_eq!(netdev.missed(0), Default::default());
    // What nobody reads is lost from the end, and counted.
    for i in 0..700_u16 {
        far.send(&frame(i as u8, 100 + usize::from(i)));
    }
    let mut seen = Vec::new();
    eventually("what found room", || {
        let frames = take_all(&netdev, 0).unwrap();
        seen.extend(frames.into_iter().filter(|(_, f)| f[12..14] == EXPERIMENT).map(|(_, f)| f.len()));
        // The far end's stack may have sent a few frames of its own, which are lost alike.
        seen.len() + netdev.missed(0).overrun as usize >= 700
    });
    assert!(seen.is_sorted() && seen.len() > 400, "{seen:?}");
    assert!((1..300).contains(&netdev.missed(0).overrun));
}

#[test]
fn vlan_tags_that_the_kernel_took_out_are_put_back() {
    if !privileged() {
        return;
    }
    let ns = veth();
    let netdev = Netdev::open(&config(&ns, "v0")).unwrap();
    let (far, near) = (ns.plain("v1"), ns.plain("v0"));
    let cases: [&[u8]; 3] = [&[0x81, 0, 0x60, 5], &[0x88, 0xa8, 0, 7], &[0x88, 0xa8, 0, 7, 0x81, 0, 0, 9]];
    for (mark, tags) in (1..).zip(cases) {
        let untagged = frame(mark, 200);
        let tagged = [&untagged[..12], tags, &untagged[12..]].concat();
        far.send(&tagged);
        let at = 12 + tags.len();
        let (header, got) =
            expect(&netdev, 0, |f| f.len() > at + 2 && f[at..at + 2] == EXPERIMENT && f[at + 2] == mark);
        assert_eq!((header, got), (NetHeader::default(), tagged));
        // The kernel did take it out: a socket that does not ask for it sees the frame without its outer tag.
        let less = [&untagged[..12], &tags[4..], &untagged[12..]].concat();
        near.expect(|f| *f == less);
    }
    // The checksum that is left to do begins later by the tag, and a tagged GSO frame stays one.
    let sender = Netdev::open(&config(&ns, "v1")).unwrap();
    let (header, plain) = tcp([2, 0, 0, 0, 0, 9], 20_000, 1400);
    let tagged = [&plain[..12], &[0x81, 0, 0, 5], &plain[12..]].concat();
    let header = NetHeader { csum_start: 38, hdr_len: 58, ..header };
    assert_eq!(give_one(&sender, 0, header, &tagged).sent, 1);
    let (is, got) = expect(&netdev, 0, |f| f.len() == tagged.len());
    assert!(got == tagged);
    assert_eq!((is.flags, is.csum_start, is.csum_offset), (NEEDS_CSUM, 38, 16));
    assert_eq!((is.gso_type, is.gso_size), (header.gso_type, 1400));
    assert!(is.hdr_len >= 58, "{is:?}");
}

#[test]
fn both_ends_of_a_tap_device_exchange_whole_tso_frames() {
    if !privileged() {
        return;
    }
    let ns = Namespace::new();
    for queues in [1, 2] {
        // The test holds the descriptors, as QEMU does.
        let device = format!("t{queues}");
        let tap = Tap::open(&TapConfig { queues, ..ns.tap_config(&device) }).unwrap();
        let netdev = Netdev::open(&NetdevConfig { queues, ..config(&ns, &device) }).unwrap();
        let (header, frame) = tcp([2, 0, 0, 0, 0, 9], 60_000, 1448);
        assert_eq!(give_one(&tap, 0, header, &frame).sent, 1);
        let mut got = Vec::new();
        eventually("the frame at the kernel's side", || {
            for queue in 0..usize::from(queues) {
                got.extend(
                    take_all(&netdev, queue).unwrap().into_iter().filter(|f| f.1.len() == frame.len()),
                );
            }
            !got.is_empty()
        });
        assert_eq!(got.len(), 1);
        assert!(got[0].1 == frame);
        let (was, is) = (header, got[0].0);
        assert_eq!(
            (is.flags, is.gso_type, is.gso_size, is.csum_start, is.csum_offset),
            (was.flags, was.gso_type, was.gso_size, was.csum_start, was.csum_offset)
        );

        assert_eq!(give_one(&netdev, 0, header, &frame).sent, 1);
        let mut got = Vec::new();
        eventually("the frame at the descriptor", || {
            for queue in 0..usize::from(queues) {
                got.extend(take_all(&tap, queue).unwrap().into_iter().filter(|f| f.1.len() == frame.len()));
            }
            !got.is_empty()
        });
        assert!(got[0].1 == frame);
        assert_eq!((got[0].0.gso_type, got[0].0.gso_size), (was.gso_type, was.gso_size));
    }
}

#[test]
fn a_full_device_is_told_from_a_frame_at_fault() {
    if !privileged() {
        return;
    }
    let ns = Namespace::new();
    let tap = Tap::open(&ns.tap_config("t0")).unwrap();
    ns.ip("link set t0 txqueuelen 10");
    let netdev = Netdev::open(&config(&ns, "t0")).unwrap();
    // What the host's stack had sent before it was taken off.
    while !take_all(&tap, 0).unwrap().is_empty() {}
    let mut burst = Burst::new();
    let bytes = frame(1, 100);
    let sent = burst.with_slices(
        |filler| while filler.push(NetHeader::default(), &bytes, &[]) {},
        |burst| netdev.send(0, burst, burst.all()),
    );
    assert_eq!(sent.sent | sent.full, u64::MAX, "{sent:?}");
    assert_eq!(sent.sent.count_ones(), 10, "{sent:?}");
    ns.ip("link set t0 down");
    let sent = give_one(&netdev, 0, NetHeader::default(), &bytes);
    assert_eq!((sent.sent, sent.down), (0, 1));
    assert!(take_all(&netdev, 0).is_ok(), "down is not dead");
    eventually("nobody who sleeps on the queue is woken for nothing", || {
        take_all(&netdev, 0).unwrap();
        let mut fds = [PollFd::new(netdev.queue_fd(0), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).unwrap() == 0
    });
    ns.ip("link set t0 up");
    eventually("it goes on by itself", || {
        while !take_all(&tap, 0).unwrap().is_empty() {}
        give_one(&netdev, 0, NetHeader::default(), &bytes).sent == 1
    });
    assert_eq!(give_one(&tap, 0, NetHeader::default(), &frame(2, 100)).sent, 1);
    expect(&netdev, 0, marked(2));
}

#[test]
fn flows_are_spread_over_queues_and_each_stays_on_one() {
    if !privileged() {
        return;
    }
    let ns = veth();
    ns.ip("addr add 10.9.8.2/24 dev v1");
    ns.ip("neigh add 10.9.8.1 lladdr 02:00:00:00:00:01 dev v1");
    let netdev = Netdev::open(&NetdevConfig { queues: 3, ..config(&ns, "v0") }).unwrap();
    ns.run(|| {
        let socket = std::net::UdpSocket::bind("10.9.8.2:0").unwrap();
        for round in 0..4 {
            for port in 0..50 {
                socket.send_to(&[round; 20], ("10.9.8.1", 2000 + port)).unwrap();
            }
        }
    });
    let mut flows: HashMap<u16, Vec<(usize, u8)>> = HashMap::new();
    let mut count = 0;
    eventually("200 datagrams", || {
        for queue in 0..3 {
            for (_, frame) in take_all(&netdev, queue).unwrap() {
                if frame.len() == 62 && frame[23] == 17 {
                    let port = u16::from_be_bytes([frame[36], frame[37]]);
                    flows.entry(port).or_default().push((queue, frame[42]));
                    count += 1;
                }
            }
        }
        count >= 200
    });
    assert_eq!((count, flows.len()), (200, 50), "each datagram once");
    for (port, seen) in &flows {
        let queue = seen[0].0;
        assert_eq!(*seen, (0..4).map(|round| (queue, round)).collect::<Vec<_>>(), "port {port}");
    }
    for queue in 0..3 {
        assert!(flows.values().any(|seen| seen[0].0 == queue), "queue {queue} is never used");
    }
}

/// What `ip` shows of a device and its routes, without what changes by itself.
fn picture(ns: &Namespace, device: &str) -> Value {
    let mut addresses = ns.addresses(device);
    for address in addresses[0]["addr_info"].as_array_mut().unwrap() {
        let address = address.as_object_mut().unwrap();
        for passing in ["valid_life_time", "preferred_life_time"] {
            // 4294967295 is for ever, and stays so.
            if address.get(passing) != Some(&Value::from(u32::MAX)) {
                address.insert(passing.into(), "finite".into());
            }
        }
    }
    let route = |family: &str| -> Value {
        let text = ns.ip(&format!("{family} -j route show dev {device} table all"));
        let mut routes: Vec<Value> = serde_json::from_str(&text).unwrap();
        routes.sort_by_key(Value::to_string);
        routes.into()
    };
    Value::from(vec![addresses, route("-4"), route("-6")])
}

fn setting(ns: &Namespace, path: &str) -> String {
    ns.run(|| std::fs::read_to_string(format!("/proc/sys/net/{path}")).unwrap()).trim().to_owned()
}

#[test]
fn the_hosts_stack_is_kept_out_and_comes_back_as_it_was() {
    if !privileged() {
        return;
    }
    let ns = veth();
    for address in [
        "10.9.8.1/24 brd + dev v0 label v0:a",
        "10.9.8.11/24 dev v0",
        "10.9.9.1/32 dev v0 scope host",
        "192.0.2.1 peer 192.0.2.2/32 dev v0",
        "10.9.7.1/24 dev v0 valid_lft 5000 preferred_lft 4000",
        "fd00:9::1/64 dev v0 nodad",
        "fd00:9::2/64 dev v0 nodad noprefixroute",
    ] {
        ns.ip(&format!("addr add {address}"));
    }
    ns.ip("route add 10.77.0.0/16 via 10.9.8.9 metric 50");
    ns.ip("route add 10.78.0.0/16 dev v0 table 99");
    ns.ip("route add default via 10.78.0.1 dev v0 onlink");
    ns.ip("-6 route add fd77::/32 via fd00:9::9");
    let settled = |ns: &Namespace| {
        // Duplicate address detection of the link-local address is over.
        eventually("addresses settle", || !ns.addresses("v0").to_string().contains("\"tentative\":true"));
        picture(ns, "v0")
    };
    let before = settled(&ns);
    assert_eq!(before[0][0]["addr_info"].as_array().unwrap().len(), 8, "{before}");
    assert_eq!(
        before[1].as_array().unwrap().iter().filter(|r| r["protocol"] != "kernel").count(),
        3,
        "{before}"
    );

    let netdev = Netdev::open(&config(&ns, "v0")).unwrap();
    let during = picture(&ns, "v0");
    assert_eq!(during[0][0]["addr_info"].as_array().unwrap().len(), 0, "{during}");
    assert!(during[0][0]["flags"].to_string().contains("NOARP"), "{during}");
    assert_eq!(during[1].as_array().unwrap().len(), 0, "{during}");
    assert_eq!(setting(&ns, "ipv6/conf/v0/disable_ipv6"), "1");
    drop(netdev);
    assert_eq!(settled(&ns), before);
    assert_eq!(setting(&ns, "ipv6/conf/v0/disable_ipv6"), "0");
    let tc = ns.command("tc").args(["qdisc", "show", "dev", "v0"]).output().unwrap();
    assert!(!String::from_utf8_lossy(&tc.stdout).contains("clsact"));

    // A device that was down without ARP is so again.
    ns.ip("link set v0 down arp off");
    let before = picture(&ns, "v0");
    let netdev = Netdev::open(&config(&ns, "v0")).unwrap();
    assert!(netdev.link().up);
    drop(netdev);
    let after = picture(&ns, "v0");
    assert_eq!(after[0][0]["flags"], before[0][0]["flags"]);
}

#[test]
fn the_host_does_not_hear_what_arrives_at_the_port() {
    if !privileged() {
        return;
    }
    let (ns, far) = (veth(), Namespace::new());
    ns.ip(&format!("link set v1 netns {}", far.name));
    far.ip("link set v1 up");
    far.ip("addr add 10.9.8.2/24 dev v1");
    // An address of the host elsewhere, reachable by the host's weak model through any device.
    ns.ip("link set lo up");
    ns.ip("addr add 10.1.1.1/32 dev lo");
    far.ip("route add 10.1.1.1 dev v1");
    ns.ip("addr add 10.9.8.1/24 dev v0");
    let mac = ns.addresses("v0")[0]["address"].as_str().unwrap().to_owned();
    far.ip(&format!("neigh add 10.1.1.1 lladdr {mac} dev v1"));
    far.ip(&format!("neigh add 10.9.8.1 lladdr {mac} dev v1"));
    let receiver = ns.run(|| std::net::UdpSocket::bind("0.0.0.0:7777").unwrap());
    receiver.set_nonblocking(true).unwrap();
    let sender = far.run(|| std::net::UdpSocket::bind("10.9.8.2:0").unwrap());
    sender.set_broadcast(true).unwrap();
    let hears = |byte: u8| {
        let mut buffer = [0; 10];
        std::iter::from_fn(|| receiver.recv(&mut buffer).ok().map(|_| buffer[0])).any(|b| b == byte)
    };
    eventually("the host hears before", || {
        sender.send_to(&[1], "10.1.1.1:7777").unwrap();
        hears(1)
    });
    let netdev = Netdev::open(&config(&ns, "v0")).unwrap();
    let filtered = ns.command("tc").args(["filter", "show", "dev", "v0", "ingress"]).output().unwrap();
    let filtered = !filtered.stdout.is_empty();
    for target in ["10.1.1.1:7777", "10.9.8.1:7777", "10.9.8.255:7777"] {
        sender.send_to(&[2; 33], target).unwrap();
        // The port's socket stands in front of the host's stack on the same way: when it has it, the host had it.
        expect(&netdev, 0, |f| f.len() == 75 && f[23] == 17);
        assert!(!hears(2), "the host hears {target} (ingress filter: {filtered})");
    }
    drop(netdev);
    eventually("the host hears again", || {
        sender.send_to(&[3], "10.1.1.1:7777").unwrap();
        hears(3)
    });
}

#[test]
fn a_device_that_vanishes_is_told_and_harms_nobody() {
    if !privileged() {
        return;
    }
    let ns = veth();
    ns.ip("addr add 10.9.8.1/24 dev v0");
    let netdev = Netdev::open(&NetdevConfig { queues: 2, ..config(&ns, "v0") }).unwrap();
    let (tell, told) = mpsc::channel();
    netdev.on_change(Arc::new(move || tell.send(()).unwrap_or_default()));
    ns.ip("link set v1 down");
    while netdev.link().up {
        told.recv_timeout(DEADLINE).unwrap();
    }
    assert_eq!(netdev.link().reason.unwrap(), "device v0 has no carrier");
    ns.ip("link del v0");
    while netdev.link().reason.as_deref() != Some("device v0 was removed") {
        told.recv_timeout(DEADLINE).unwrap();
    }
    for queue in 0..2 {
        let end = std::time::Instant::now() + DEADLINE;
        while take_all(&netdev, queue).is_ok() {
            assert!(std::time::Instant::now() < end, "no error from a dead queue");
        }
        let error = take_all(&netdev, queue).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(nix::libc::ENODEV), "{error}");
        assert_eq!(give_one(&netdev, queue, NetHeader::default(), &frame(1, 60)).down, 1);
    }
    drop(netdev);
}

#[test]
fn wrong_devices_are_refused_in_one_line() {
    if !privileged() {
        return;
    }
    let ns = veth();
    ns.ip("link add br0 type bridge");
    ns.ip("link set v1 master br0");
    ns.ip("tuntap add dev n0 mode tun");
    for (device, start) in [
        ("none", "device none does not exist: "),
        ("lo", "device lo is no Ethernet device"),
        ("n0", "device n0 is no Ethernet device"),
        ("v1", "device v1 belongs to br0: release it first (ip link set v1 nomaster)"),
        ("", "device \"\": "),
    ] {
        let line = Netdev::open(&config(&ns, device)).err().unwrap().to_string();
        assert!(line.starts_with(start) && !line.contains('\n'), "{line}");
    }
    let line = Netdev::open(&NetdevConfig { queues: 0, ..config(&ns, "v0") }).err().unwrap().to_string();
    assert!(line.starts_with("queues 0: "), "{line}");
}

#[test]
fn two_namespaces_talk_through_two_veths() {
    if !privileged() {
        return;
    }
    let (ns, left, right) = (Namespace::new(), Namespace::new(), Namespace::new());
    for (i, side) in (1..).zip([&left, &right]) {
        ns.ip(&format!("link add s{i} type veth peer name e0 netns {}", side.name));
        side.ip("link set e0 up");
        side.ip(&format!("addr add 10.9.8.{i}/24 dev e0"));
    }
    let (a, b) = (Netdev::open(&config(&ns, "s1")).unwrap(), Netdev::open(&config(&ns, "s2")).unwrap());
    let stop = AtomicBool::new(false);
    let long = thread::scope(|scope| {
        let stopper = StopOnDrop(&stop);
        let joint = scope.spawn(|| join(&a, &b, &stop));
        let ping =
            left.command("ping").args(["-c", "3", "-i", "0.01", "-w", "10", "10.9.8.2"]).output().unwrap();
        assert!(ping.status.success(), "{}", String::from_utf8_lossy(&ping.stdout));
        tcp_transfer(&left, &right, "10.9.8.2", 8 << 20);
        tcp_transfer(&right, &left, "10.9.8.1", 8 << 20);
        drop(stopper);
        joint.join().unwrap()
    });
    assert!(long > 100, "TCP was not cut into small frames: {long} long ones");
}
