//! TAP ports against the kernel: devices are made and adopted, frames pass both ways, and what others do to a device
//! is noticed.

mod lab;

use std::{
    sync::{Arc, atomic::AtomicBool, mpsc},
    thread,
};

use lab::*;
use shunt_switch::port::tap::{Tap, TapConfig};
use vhost_backend::{
    frame::{BURST, Burst},
    net_header::{NEEDS_CSUM, NetHeader},
};

/// Opens a device that was in use until a moment ago. A program that another test starts holds copies of all
/// descriptors from its fork to its exec, so the device may stay in use that long.
fn reopen(config: &TapConfig) -> Tap {
    let mut tap = None;
    eventually("the device is free", || match Tap::open(config) {
        Ok(open) => {
            tap = Some(open);
            true
        }
        Err(e) if e.to_string().contains("in use by another process") => false,
        Err(e) => panic!("{e}"),
    });
    tap.unwrap()
}

fn refusal(config: &TapConfig) -> String {
    match Tap::open(config) {
        Ok(_) => panic!("opened: {config:?}"),
        Err(e) => e.to_string(),
    }
}

#[test]
fn a_device_is_made_as_asked_and_goes_with_the_port() {
    if !privileged() {
        return;
    }
    let ns = Namespace::new();
    let mac = [2, 1, 2, 3, 4, 5];
    let tap = Tap::open(&TapConfig { mtu: Some(9000), mac: Some(mac), ..ns.tap_config("t0") }).unwrap();
    let shown = &ns.addresses("t0")[0];
    assert_eq!(shown["mtu"], 9000);
    assert_eq!(shown["address"], "02:01:02:03:04:05");
    let flags: Vec<_> = shown["flags"].as_array().unwrap().iter().filter_map(|f| f.as_str()).collect();
    assert!(flags.contains(&"UP") && flags.contains(&"LOWER_UP"), "{flags:?}");
    assert_eq!((tap.mtu(), tap.mac(), tap.name(), tap.queues()), (9000, mac, "t0", 1));
    assert!(tap.link().up);
    drop(tap);
    eventually("the device goes", || !ns.has("t0"));
}

#[test]
fn persistent_devices_of_both_kinds_are_adopted() {
    if !privileged() {
        return;
    }
    let ns = Namespace::new();
    let tap = Tap::open(&TapConfig { persist: true, mtu: Some(1400), ..ns.tap_config("t0") }).unwrap();
    drop(tap);
    assert!(ns.has("t0"), "persistent");
    let tap = reopen(&ns.tap_config("t0"));
    assert_eq!(tap.mtu(), 1400, "kept");
    drop(tap);
    drop(reopen(&ns.tap_config("t0")));
    assert!(ns.has("t0"), "adoption does not end its persistence");
    ns.ip("tuntap add dev t3 mode tap");
    let line = refusal(&TapConfig { queues: 2, ..ns.tap_config("t3") });
    assert!(line.starts_with("device t3 exists and has a single queue, 2 are wanted"), "{line}");

    ns.ip("tuntap add dev t1 mode tap multi_queue");
    for queues in [1, 3] {
        let tap = reopen(&TapConfig { queues, ..ns.tap_config("t1") });
        assert_eq!(tap.queues(), usize::from(queues));
        assert!(tap.link().up);
        let line = refusal(&ns.tap_config("t1"));
        assert!(line.starts_with("device t1 is in use by another process"), "{line}");
    }
    // One that was made by other means, for single-queue use, without the virtio-net header.
    ns.ip("tuntap add dev t2 mode tap");
    let tap = Tap::open(&ns.tap_config("t2")).unwrap();
    let plain = ns.plain("t2");
    plain.send(&frame(1, 60));
    assert_eq!(expect(&tap, 0, marked(1)).1, frame(1, 60));
}

#[test]
fn wrong_configurations_are_told_in_one_line_and_leave_nothing() {
    if !privileged() {
        return;
    }
    let ns = Namespace::new();
    ns.ip("link add v0 type veth peer name v1");
    ns.ip("tuntap add dev n0 mode tun");
    let good = ns.tap_config("t0");
    let cases = [
        (TapConfig { device: "a/b".into(), ..good.clone() }, "device \"a/b\": a device name has 1 to 15"),
        (TapConfig { device: "t%d".into(), ..good.clone() }, "device \"t%d\": "),
        (TapConfig { queues: 0, ..good.clone() }, "queues 0: a TAP device has 1 to 256"),
        (
            TapConfig { mtu: Some(46), ..good.clone() },
            "mtu 46: a port's MTU is 46 to 9600, and the kernel sets 68",
        ),
        (TapConfig { mtu: Some(9601), ..good.clone() }, "mtu 9601: "),
        (
            TapConfig { mac: Some([1, 0, 0, 0, 0, 1]), ..good.clone() },
            "mac 01:00:00:00:00:01: a device's address",
        ),
        (
            TapConfig { netns: Some("no-such".into()), ..good.clone() },
            "netns /run/netns/no-such does not exist",
        ),
        (TapConfig { device: "v0".into(), ..good.clone() }, "device v0 exists and is no TAP device (veth)"),
        (TapConfig { device: "n0".into(), ..good.clone() }, "device n0 exists and is no TAP device (tun)"),
    ];
    for (config, start) in cases {
        let line = refusal(&config);
        assert!(line.starts_with(start) && !line.contains('\n'), "{line}");
    }
    assert!(!ns.has("t0"));
}

#[test]
fn frames_pass_both_ways_unchanged() {
    if !privileged() {
        return;
    }
    let ns = Namespace::new();
    let tap = Tap::open(&TapConfig { mtu: Some(9000), ..ns.tap_config("t0") }).unwrap();
    let plain = ns.plain("t0");
    for (mark, len) in [(1, 15), (2, 60), (3, 128), (4, 129), (5, 1514), (6, 9014)] {
        plain.send(&frame(mark, len));
        assert_eq!(expect(&tap, 0, marked(mark)), (NetHeader::default(), frame(mark, len)));
        let sent = give_one(&tap, 0, NetHeader::default(), &frame(mark + 100, len));
        assert_eq!((sent.sent, sent.full | sent.down | sent.refused), (1, 0));
        assert_eq!(plain.expect(marked(mark + 100)), frame(mark + 100, len));
    }
}

#[test]
fn more_frames_than_a_burst_come_in_order() {
    if !privileged() {
        return;
    }
    let ns = Namespace::new();
    let tap = Tap::open(&ns.tap_config("t0")).unwrap();
    let plain = ns.plain("t0");
    let count = BURST as u8 + 20;
    for mark in 0..count {
        plain.send(&frame(mark, 100 + usize::from(mark) * 10));
    }
    let mut seen = Vec::new();
    until("all frames", tap.queue_fd(0), || {
        let frames = take_all(&tap, 0).unwrap();
        assert!(frames.len() <= BURST);
        seen.extend(frames.into_iter().map(|f| f.1).filter(|f| f[12..14] == EXPERIMENT));
        (seen.len() == usize::from(count)).then_some(())
    });
    for (mark, got) in (0..count).zip(&seen) {
        assert_eq!(*got, frame(mark, 100 + usize::from(mark) * 10));
    }
}

#[test]
fn checksums_and_segmentation_are_left_to_the_receiver() {
    if !privileged() {
        return;
    }
    let ns = Namespace::new();
    let tap = Tap::open(&ns.tap_config("t0")).unwrap();
    ns.ip("addr add 10.9.8.2/24 dev t0");
    ns.ip("neigh add 10.9.8.1 lladdr 02:00:00:00:00:01 dev t0");
    ns.run(|| {
        let socket = std::net::UdpSocket::bind("10.9.8.2:0").unwrap();
        socket.send_to(&[0xa5; 500], "10.9.8.1:9").unwrap();
    });
    let (header, frame) = expect(&tap, 0, |frame| frame.len() == 542 && frame[23] == 17);
    assert_eq!((header.flags, header.csum_start, header.csum_offset), (NEEDS_CSUM, 34, 6));
    assert!(frame[42..].iter().all(|b| *b == 0xa5));

    let plain = ns.plain("t0");
    let (header, frame) = tcp(tap.mac(), 40_000, 1400);
    assert_eq!(give_one(&tap, 0, header, &frame).sent, 1);
    assert_eq!(plain.expect(|f| f.len() == frame.len()), frame, "passes whole");
    // Metadata that lies about the frame is refused, that frame alone.
    let mut burst = Burst::new();
    let lie = NetHeader { csum_start: 60_000, ..header };
    let sent = burst.with_slices(
        |filler| {
            for header in [header, lie, header] {
                assert!(filler.push(header, &frame[..128], &frame[128..]));
            }
        },
        |burst| tap.send(0, burst, burst.all()),
    );
    assert_eq!((sent.sent, sent.refused, sent.down | sent.full), (0b101, 0b010, 0));
}

#[test]
fn two_namespaces_talk_through_two_devices() {
    if !privileged() {
        return;
    }
    let (left, right) = (Namespace::new(), Namespace::new());
    let (a, b) = (Tap::open(&left.tap_config("t0")).unwrap(), Tap::open(&right.tap_config("t0")).unwrap());
    left.ip("addr add 10.9.8.1/24 dev t0");
    right.ip("addr add 10.9.8.2/24 dev t0");
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

#[test]
fn several_queues_carry_all_frames() {
    if !privileged() {
        return;
    }
    let ns = Namespace::new();
    let tap = Tap::open(&TapConfig { queues: 4, ..ns.tap_config("t0") }).unwrap();
    ns.ip("addr add 10.9.8.2/24 dev t0");
    ns.ip("neigh add 10.9.8.1 lladdr 02:00:00:00:00:01 dev t0");
    ns.run(|| {
        for port in 0..40 {
            let socket = std::net::UdpSocket::bind("10.9.8.2:0").unwrap();
            socket.send_to(&[0; 20], ("10.9.8.1", 2000 + port)).unwrap();
        }
    });
    let mut ports = Vec::new();
    eventually("40 datagrams", || {
        for queue in 0..4 {
            for (_, frame) in take_all(&tap, queue).unwrap() {
                if frame.len() == 62 && frame[23] == 17 {
                    ports.push((u16::from_be_bytes([frame[36], frame[37]]), queue));
                }
            }
        }
        ports.len() == 40
    });
    let mut queues: Vec<_> = ports.iter().map(|p| p.1).collect();
    queues.sort_unstable();
    queues.dedup();
    assert!(queues.len() > 1, "{ports:?}");
    let plain = ns.plain("t0");
    for queue in 0..4 {
        assert_eq!(give_one(&tap, queue, NetHeader::default(), &frame(queue as u8, 70)).sent, 1);
        assert_eq!(plain.expect(marked(queue as u8)), frame(queue as u8, 70));
    }
}

#[test]
fn what_others_do_to_the_device_is_noticed() {
    if !privileged() {
        return;
    }
    let ns = Namespace::new();
    let tap = Tap::open(&ns.tap_config("t0")).unwrap();
    let (tell, told) = mpsc::channel();
    tap.on_change(Arc::new(move || tell.send(()).unwrap_or_default()));
    let wait_for = |what: &str, condition: &dyn Fn() -> bool| {
        while !condition() {
            told.recv_timeout(DEADLINE).unwrap_or_else(|e| panic!("{what}: {e}"));
        }
    };
    ns.ip("link set t0 mtu 1300");
    wait_for("MTU", &|| tap.mtu() == 1300);
    ns.ip("link set t0 address 02:00:00:00:aa:01");
    wait_for("MAC", &|| tap.mac() == [2, 0, 0, 0, 0xaa, 1]);
    ns.ip("link set t0 down");
    wait_for("down", &|| !tap.link().up);
    assert_eq!(tap.link().reason.unwrap(), "device t0 is administratively down");
    let sent = give_one(&tap, 0, NetHeader::default(), &frame(1, 60));
    assert_eq!((sent.sent, sent.down), (0, 1));
    assert!(take_all(&tap, 0).is_ok(), "down is not dead");
    ns.ip("link set t0 up");
    wait_for("up", &|| tap.link().up);
    assert_eq!(give_one(&tap, 0, NetHeader::default(), &frame(1, 60)).sent, 1);

    ns.ip("link del t0");
    wait_for("removal", &|| !tap.link().up);
    assert_eq!(tap.link().reason.unwrap(), "device t0 was removed");
    let error = take_all(&tap, 0).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::libc::EBADFD), "{error}");
    assert_eq!(give_one(&tap, 0, NetHeader::default(), &frame(1, 60)).down, 1);
    drop(tap);
    Tap::open(&ns.tap_config("t0")).unwrap();
}

#[test]
fn a_device_that_is_moved_to_another_namespace_goes_on() {
    if !privileged() {
        return;
    }
    let (ns, other) = (Namespace::new(), Namespace::new());
    let tap = Tap::open(&ns.tap_config("t0")).unwrap();
    ns.ip(&format!("link set t0 netns {}", other.name));
    eventually("the move is noticed", || {
        tap.link().reason.is_some_and(|r| r.contains("moved to another network"))
    });
    other.ip("link set t0 up");
    assert!(tap.link().up, "its descriptors go with it");
    let plain = other.plain("t0");
    plain.send(&frame(1, 100));
    assert_eq!(expect(&tap, 0, marked(1)).1, frame(1, 100));
    assert_eq!(give_one(&tap, 0, NetHeader::default(), &frame(2, 100)).sent, 1);
    plain.expect(marked(2));
}

#[test]
fn no_thread_of_the_process_is_left_in_a_namespace() {
    if !privileged() {
        return;
    }
    let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    let ns = Namespace::new();
    let tap = Tap::open(&TapConfig { queues: 2, ..ns.tap_config("t0") }).unwrap();
    assert_eq!(std::fs::read_link("/proc/thread-self/ns/net").unwrap(), own);
    // By path, too.
    let path = format!("/run/netns/{}", ns.name);
    let by_path = Tap::open(&TapConfig { netns: Some(path.into()), ..ns.tap_config("t1") }).unwrap();
    assert!(ns.has("t0") && ns.has("t1"));
    drop((tap, by_path));
    eventually("the namespace is left", || {
        std::fs::read_dir("/proc/self/task").unwrap().flatten().all(|task| {
            // The watcher's and the helper threads of other tests come and go.
            let name = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
            name.trim() == "netns" || std::fs::read_link(task.path().join("ns/net")).is_ok_and(|n| n == own)
        })
    });
}
