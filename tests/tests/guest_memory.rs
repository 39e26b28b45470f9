//! Memory that comes and goes while frames do: 509 slots of all sizes, and DIMMs plugged into a running guest.

use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use serde_json::json;
use shunt_tests::hostile::attacks::{SINK, SINK_MAC};
use shunt_tests::hostile::neighbour::{frame, mac};
use shunt_tests::hostile::vm::{GPA, HEADER, SPARE, memfd};
use shunt_tests::hostile::wire::request;
use shunt_tests::hostile::{Footprint, Neighbour, Vm};
use shunt_tests::hugepages::HugeMemory;
use shunt_tests::{
    GuestSpec, Host, Hugepages, Nic, Shuntd, answers, boot_all, copy_intact, progress, start_iperf, wait_for,
};

const SOON: Duration = Duration::from_secs(60);
const SLOTS: u64 = 509;
const GIB: u64 = 1 << 30;

/// The further regions of a guest, in the order of their adding: guest address, size, frontend's address, offset.
/// Adjacent ones and ones with gaps, in no order, of 4 KiB to 256 GiB.
fn regions() -> Vec<[u64; 4]> {
    let mut offset = 0;
    let mut gpa = 0x100_0000_0000;
    let mut regions: Vec<[u64; 4]> = (1..SLOTS)
        .map(|n| {
            let size = match n {
                1 => 256 * GIB,
                2..=9 => GIB,
                _ => 4096 << (n % 4),
            };
            let region = [gpa, size, 0x5000_0000_0000 + gpa, offset];
            offset += size;
            gpa += size + if n % 3 == 0 { 4096 } else { 0 };
            region
        })
        .collect();
    for i in 0..regions.len() {
        let other = (i * 211 + 17) % regions.len();
        regions.swap(i, other);
    }
    regions
}

#[test]
fn slots_come_and_go_under_traffic() {
    let mut shuntd = Shuntd::new().arguments(&["--workers", "1"]);
    shuntd.launch();
    let pid = shuntd.pid().unwrap_or_else(|| panic!("no shuntd"));
    let (one, other) = (shuntd.vhost_port("one", ""), shuntd.vhost_port("other", ""));
    let socket = shuntd.vhost_port("many", "");
    let sink = shuntd.vhost_port("sink", &format!("--mac {SINK_MAC}"));
    let neighbour = Neighbour::start(&one, &other);
    let mut vm = Vm::boot(&socket).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(vm.wire.ask(request::GET_MAX_MEM_SLOTS, &[]), Ok(SLOTS));
    // Receives what is sent: whoever pings has no room for all of it when the worker comes back from a pause.
    let mut sink = Vm::boot(&sink).unwrap_or_else(|e| panic!("{e}"));
    let before = neighbour.seen();
    let footprint = Footprint::of(pid);
    let regions = regions();
    let file = memfd(regions.iter().map(|region| region[1]).sum());

    let mut sent = 0u64;
    let mut slowest = Duration::ZERO;
    let mut all = 0;
    // A frame in the guest's first memory, or at the end of a region.
    let mut send = |vm: &mut Vm, from: Option<[u64; 4]>| {
        sent += 1;
        while sink.receive().is_some() {}
        let bytes = [&[0; HEADER], &frame(mac(SINK), mac(3), sent)[..]].concat();
        let gpa = match from {
            Some([gpa, size, _, offset]) => {
                let at = size - bytes.len() as u64;
                file.write_all_at(&bytes, offset + at).unwrap_or_else(|e| panic!("{e}"));
                gpa + at
            }
            None => {
                vm.write(SPARE, &bytes);
                GPA + SPARE
            }
        };
        if !vm.send_from(gpa, bytes.len()) {
            wait_for("frames to be taken", SOON, || vm.send_from(gpa, bytes.len()).then_some(()));
        }
        sent
    };
    for round in 0..3 {
        for region in &regions {
            let began = Instant::now();
            vm.add_region(*region, file.as_raw_fd()).unwrap_or_else(|e| panic!("{region:x?}: {e}"));
            slowest = slowest.max(began.elapsed());
            all = send(&mut vm, Some(*region));
        }
        // None of them lies in what is taken away next.
        wait_for("every frame to come", SOON, || {
            (shuntd.counter("many", "rx", "packets") == all).then_some(())
        });
        // The kernel makes one mapping of those that happen to lie side by side here as in their file.
        assert!(Footprint::of(pid).guest_mappings > footprint.guest_mappings + regions.len() / 2);
        for i in 0..regions.len() {
            let gone = regions[(i * 7 + round) % regions.len()];
            let began = Instant::now();
            vm.remove_region(gone).unwrap_or_else(|e| panic!("{gone:x?}: {e}"));
            slowest = slowest.max(began.elapsed());
            all = send(&mut vm, None);
        }
        assert_eq!(Footprint::of(pid).guest_mappings, footprint.guest_mappings);
        let seen = neighbour.seen();
        assert_eq!(seen.lost, 0, "{seen:?}");
        progress!(
            "round {round}: {all} frames; the slowest change took {slowest:?}; neighbours {seen:?}, before {before:?}"
        );
        assert!(seen.is_quick(), "{seen:?}");
    }
    wait_for("every frame to come", SOON, || (shuntd.counter("many", "rx", "packets") == all).then_some(()));
    assert_eq!(shuntd.port("many")["state"], "up");

    // One more than there are slots.
    for region in &regions {
        vm.add_region(*region, file.as_raw_fd()).unwrap_or_else(|e| panic!("{region:x?}: {e}"));
    }
    assert!(vm.add_region([0, 4096, 0x1000, 0], file.as_raw_fd()).is_err());
    shuntd.wait_state("many", "broken", SOON);
    let reason = shuntd.port("many")["reason"].as_str().unwrap_or_default().to_owned();
    assert!(reason.contains("more than 509 memory regions"), "{reason}");
}

/// Makes all memory that was plugged in usable, `how` being a word of the kernel's, and says how much there is, KiB.
#[track_caller]
fn online(guest: &dyn Host, how: &str) -> u64 {
    guest.sh(&format!(
        "for state in /sys/devices/system/memory/memory*/state; do grep -q offline $state && echo {how} >$state; done; true"
    ));
    let text = guest.sh("awk '/^MemTotal/ { print $2 }' /proc/meminfo");
    text.trim().parse().unwrap_or_else(|_| panic!("no number: {text}"))
}

#[test]
fn dimms_are_plugged_in_under_traffic() {
    let shuntd = Shuntd::start();
    let pid = shuntd.pid().unwrap_or_else(|| panic!("no shuntd"));
    let (a, b) = (shuntd.vhost_port("a", ""), shuntd.vhost_port("b", ""));
    let [a, b] = boot_all([
        GuestSpec::new("a").dimm_slots(4).nic(Nic::connects(&a).address("10.0.3.101/24")),
        GuestSpec::new("b").nic(Nic::connects(&b).address("10.0.3.102/24")),
    ]);
    answers(&a, "10.0.3.102", SOON);
    let mappings = || Footprint::of(pid).guest_mappings;
    let plug = |name: &str| {
        a.qmp("object-add", json!({ "qom-type": "memory-backend-memfd", "id": format!("mem-{name}"), "size": 128 << 20, "share": true }));
        a.qmp("device_add", json!({ "driver": "pc-dimm", "id": name, "memdev": format!("mem-{name}") }));
    };
    let (few, little) = (mappings(), online(&a, "online"));

    let traffic = start_iperf(&a, &b, "10.0.3.102", 15, "");
    plug("first");
    wait_for("the switch to have the first DIMM", SOON, || (mappings() > few).then_some(()));
    // Above 4 GiB, where the kernel takes memory first: from now on frames lie in it.
    let more = wait_for("the guest to have the first DIMM", SOON, || {
        let now = online(&a, "online");
        (now > little + 100 * 1024).then_some(now)
    });
    let traffic = traffic.finish();
    assert!(traffic.bytes > shunt_tests::MUCH, "{traffic:?}");
    copy_intact(&a, &b, "10.0.3.102", 48);
    copy_intact(&b, &a, "10.0.3.101", 48);

    // One that can be taken away again, with the pages of a file in it.
    let traffic = start_iperf(&b, &a, "10.0.3.101", 20, "");
    let some = mappings();
    plug("second");
    wait_for("the guest to have the second DIMM", SOON, || {
        (online(&a, "online_movable") > more + 100 * 1024).then_some(())
    });
    assert!(mappings() > some);
    a.qmp("device_del", json!({ "id": "second" }));
    wait_for("the second DIMM to be gone", SOON, || (mappings() == some).then_some(()));
    let traffic = traffic.finish();
    assert!(traffic.bytes > shunt_tests::MUCH, "{traffic:?}");
    copy_intact(&a, &b, "10.0.3.102", 16);
    for port in ["a", "b"] {
        let shown = shuntd.port(port);
        assert_eq!(shown["state"], "up", "{shown}");
        progress!("{port}: drops {} and {}", shown["rx"]["drops"], shown["tx"]["drops"]);
    }
}

/// virtio-mem: memory that the host asks for in steps, each of which QEMU shares as a slot of its own.
#[test]
fn virtio_mem_grows_and_shrinks_under_traffic() {
    const MIB: u64 = 1 << 20;
    let shuntd = Shuntd::start();
    let pid = shuntd.pid().unwrap_or_else(|| panic!("no shuntd"));
    let (a, b) = (shuntd.vhost_port("a", ""), shuntd.vhost_port("b", ""));
    let [a, b] = boot_all([
        GuestSpec::new("a").dimm_slots(1).spare_ports(1).nic(Nic::connects(&a).address("10.0.3.101/24")),
        GuestSpec::new("b").nic(Nic::connects(&b).address("10.0.3.102/24")),
    ]);
    answers(&a, "10.0.3.102", SOON);
    a.sh("modprobe virtio_mem; echo online_movable >/sys/devices/system/memory/auto_online_blocks");
    let little = online(&a, "online");
    a.qmp("object-add", json!({ "qom-type": "memory-backend-memfd", "id": "vmem", "size": 1024 * MIB, "share": true, "reserve": false }));
    a.qmp(
        "device_add",
        json!({ "driver": "virtio-mem-pci", "id": "vm0", "memdev": "vmem", "bus": "spare0",
        "requested-size": 0, "dynamic-memslots": true }),
    );
    let size = || {
        let size = a.qmp("qom-get", json!({ "path": "/machine/peripheral/vm0", "property": "size" }));
        size.as_u64().unwrap_or_else(|| panic!("no size: {size}"))
    };
    let request = |size: u64| {
        a.qmp(
            "qom-set",
            json!({ "path": "/machine/peripheral/vm0", "property": "requested-size", "value": size }),
        );
    };
    wait_for("the guest to find its device", SOON, || {
        a.run("ls -d /sys/bus/virtio/drivers/virtio_mem/virtio*").ok().then_some(())
    });
    let shared = || Footprint::of(pid).guest_bytes;
    let few = shared();
    for round in 1..=2 {
        let traffic = start_iperf(&a, &b, "10.0.3.102", 20, "");
        for step in 1..=3 {
            request(step * 256 * MIB);
            wait_for("the guest to take what it is given", SOON, || {
                (size() == step * 256 * MIB).then_some(())
            });
            assert!(shared() >= few + step * 256 * MIB, "{} bytes are shared, {few} were", shared());
        }
        let much = online(&a, "online_movable");
        assert!(much > little + 600 * 1024, "{much} KiB of memory, {little} before");
        // Pages of a file in it, which go out from there.
        copy_intact(&a, &b, "10.0.3.102", 48);
        copy_intact(&b, &a, "10.0.3.101", 48);
        a.sh("echo 3 >/proc/sys/vm/drop_caches");
        request(0);
        // Linux tries again after 50 s where a page was in use.
        wait_for("the guest to give it back", 3 * SOON, || (size() == 0).then_some(()));
        wait_for("the switch to let go of it", SOON, || (shared() == few).then_some(()));
        let traffic = traffic.finish();
        assert!(traffic.bytes > shunt_tests::MUCH, "{traffic:?}");
        progress!("round {round}: {few} bytes shared, up to {} more; {traffic:?}", 768 * MIB);
    }
    for port in ["a", "b"] {
        assert_eq!(shuntd.port(port)["state"], "up", "{}", shuntd.port(port));
    }
}

/// Regions in pages of 2 MiB and of 1 GiB, beginning within a page, side by side, and frames across their border.
#[test]
fn huge_pages_of_both_sizes_carry_frames() {
    let mut shuntd = Shuntd::new().arguments(&["--workers", "1"]);
    shuntd.launch();
    let pid = shuntd.pid().unwrap_or_else(|| panic!("no shuntd"));
    let (one, other) = (shuntd.vhost_port("one", ""), shuntd.vhost_port("other", ""));
    let neighbour = Neighbour::start(&one, &other);
    for (kib, pages) in [(2048, 4), (1 << 20, 2)] {
        let Some(_reserved) = Hugepages::of(kib, pages) else { continue };
        let name = format!("huge{kib}");
        let mut vm = Vm::boot(&shuntd.vhost_port(&name, "")).unwrap_or_else(|e| panic!("{e}"));
        let before = Footprint::of(pid);
        let page = kib << 10;
        let memory = HugeMemory::new(kib, pages);
        // The second page and all but 4 KiB of the first; side by side for the guest.
        let gpa = 0x100_0000_0000;
        let regions =
            [[gpa, page - 4096, 0x5000_0000_0000, 4096], [gpa + page - 4096, page, 0x6000_0000_0000, page]];
        let mut sent = 0;
        for round in 1..=3 {
            for region in regions {
                let added = vm.add_region(region, memory.file().as_raw_fd());
                added.unwrap_or_else(|e| panic!("{region:x?}: {e}"));
            }
            let bytes = [&[0; HEADER], &frame(mac(1), mac(3), round)[..]].concat();
            let len = bytes.len() as u64;
            // At the beginning, at the end, and over the border of both regions.
            for at in [0, 2 * page - 4096 - len, page - 4096 - len / 2] {
                memory.write(4096 + at, &bytes);
                assert!(vm.send_from(gpa + at, bytes.len()));
                sent += 1;
            }
            wait_for("every frame to come", SOON, || {
                (shuntd.counter(&name, "rx", "packets") == sent).then_some(())
            });
            for region in regions {
                vm.remove_region(region).unwrap_or_else(|e| panic!("{region:x?}: {e}"));
            }
        }
        assert_eq!(shuntd.port(&name)["state"], "up");
        assert_eq!(Footprint::of(pid).guest_mappings, before.guest_mappings);
        let seen = neighbour.seen();
        assert_eq!(seen.lost, 0, "{seen:?}");
        progress!("pages of {kib} KiB: {sent} frames; the neighbours {seen:?}");
    }
}
