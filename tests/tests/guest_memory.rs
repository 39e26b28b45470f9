//! Memory that comes and goes while frames do: 509 slots of all sizes, and DIMMs plugged into a running guest.

use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use serde_json::json;
use shunt_tests::hostile::neighbour::{frame, mac};
use shunt_tests::hostile::vm::{GPA, HEADER, SPARE, memfd};
use shunt_tests::hostile::wire::request;
use shunt_tests::hostile::{Footprint, Neighbour, Vm};
use shunt_tests::{
    GuestSpec, Host, Nic, Shuntd, answers, boot_all, copy_intact, progress, start_iperf, wait_for,
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
    let neighbour = Neighbour::start(&one, &other);
    let mut vm = Vm::boot(&socket).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(vm.wire.ask(request::GET_MAX_MEM_SLOTS, &[]), Ok(SLOTS));
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
        let bytes = [&[0; HEADER], &frame(mac(1), mac(3), sent)[..]].concat();
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
