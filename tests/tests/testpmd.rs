//! DPDK's virtio-user driver as an independent guest, in every shape that its ring code distinguishes.

use std::time::Duration;

use shunt_tests::testpmd::{Shape, Testpmd};
use shunt_tests::{Shuntd, progress, wait_for};

const LIMIT: Duration = Duration::from_secs(30);
/// Packets a port receives in one burst of each queue.
const BURST: u64 = 32;

/// Runs traffic between two ports in one shape, on a fresh pair of ports; returns the driver's receive path.
fn passes(shuntd: &Shuntd, shape: Shape) -> String {
    let what = format!("{} queues of {} entries, {}", shape.queues, shape.queue_size, shape.options);
    progress!("{what}");
    // A bridge of their own: the gateway's announcements would be received, too.
    shuntd.ctl("bridge add wire");
    let sockets = ["x", "y"].map(|name| {
        let path = shuntd.path(&format!("{name}.sock"));
        let options = format!("--vhost-user {} --queues {}", path.display(), shape.queues);
        shuntd.ctl(&format!("port add {name} --bridge wire {options}"));
        path
    });
    let mut testpmd = Testpmd::start([&sockets[0], &sockets[1]], shape);
    // The driver does not wait for an answer to the last of what it says before it shows its prompt.
    for port in ["x", "y"] {
        wait_for("all queues to be up", LIMIT, || {
            let shown = shuntd.port(port);
            (shown["state"] == "up" && shown["reason"].is_null()).then_some(())
        });
    }
    testpmd.burst();
    // Everything arrives that one ring can hold.
    let sent = BURST * u64::from(shape.queues);
    let least = sent.min(u64::from(shape.queue_size / 2));
    let first = testpmd.wait_received(least, LIMIT);
    assert!(first.iter().all(|port| port.received <= sent), "{what}: more than was sent: {first:?}");
    testpmd.forward();
    let total = testpmd.wait_received(200_000, LIMIT);
    assert!(total.iter().all(|port| port.errors == 0), "{what}: {total:?}");
    let path = testpmd.receive_path();
    testpmd.quit();
    for port in ["x", "y"] {
        let shown = shuntd.port(port);
        assert_ne!(shown["state"], "broken", "{what}: {shown}");
        assert_eq!(shown["rx"]["errors"], 0, "{what}: {shown}");
        shuntd.ctl(&format!("port del {port}"));
    }
    shuntd.ctl("bridge del wire");
    path
}

#[test]
fn receive_buffers_mergeable_and_not_in_order_and_vectorised() {
    let shuntd = Shuntd::start();
    for (options, path) in [
        ("in_order=0", "mergeable buffer"),
        ("in_order=0,mrg_rxbuf=0", "standard"),
        ("in_order=1", "inorder"),
        ("in_order=1,mrg_rxbuf=0", "inorder"),
        ("in_order=0,mrg_rxbuf=0,vectorized=1", "vectorized"),
    ] {
        assert_eq!(passes(&shuntd, Shape { options, ..Shape::default() }), path, "{options}");
    }
}

#[test]
fn packed_rings_in_every_shape() {
    let shuntd = Shuntd::start();
    let avx512 = std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.contains("avx512vl"));
    for (options, queues, queue_size, path) in [
        ("packed_vq=1,in_order=0", 1, 256, "packed ring mergeable buffer"),
        ("packed_vq=1,in_order=0,mrg_rxbuf=0", 1, 256, "packed ring standard"),
        ("packed_vq=1,in_order=1", 1, 64, "packed ring mergeable buffer"),
        ("packed_vq=1,in_order=1", 4, 256, "packed ring mergeable buffer"),
        // The driver has this code for processors with AVX-512 only.
        (
            "packed_vq=1,in_order=1,mrg_rxbuf=0,vectorized=1",
            4,
            256,
            if avx512 { "packed ring vectorized" } else { "packed ring standard" },
        ),
        ("packed_vq=1,in_order=0", 4, 1024, "packed ring mergeable buffer"),
    ] {
        let seen = passes(&shuntd, Shape { queues, queue_size, options });
        assert_eq!(seen, path, "{options}");
    }
}

#[test]
fn one_to_four_queues_and_every_ring_size() {
    let shuntd = Shuntd::start();
    for (queues, queue_size) in
        [(1, 64), (1, 128), (1, 512), (1, 1024), (2, 256), (3, 64), (4, 256), (4, 1024)]
    {
        passes(&shuntd, Shape { queues, queue_size, options: "in_order=0" });
    }
}

#[test]
fn several_workers_share_the_queues() {
    let mut shuntd = Shuntd::new().arguments(&["--workers", "2"]);
    shuntd.launch();
    let workers = shuntd.ctl("worker list");
    assert_eq!(workers.as_array().map(Vec::len), Some(2), "{workers}");
    passes(&shuntd, Shape { queues: 2, ..Shape::default() });
    passes(&shuntd, Shape { queues: 4, queue_size: 256, options: "mrg_rxbuf=0" });
}

#[test]
fn a_front_end_killed_in_full_flight_leaves_the_ports_usable() {
    let shuntd = Shuntd::start();
    let sockets = ["x", "y"].map(|name| shuntd.vhost_port(name, "--queues 2"));
    let shape = Shape { queues: 2, ..Shape::default() };
    for round in 1..=3 {
        let mut testpmd = Testpmd::start([&sockets[0], &sockets[1]], shape);
        testpmd.forward();
        testpmd.wait_received(50_000, LIMIT);
        testpmd.kill();
        progress!("killed, round {round}");
        for port in ["x", "y"] {
            wait_for("the port to notice", LIMIT, || {
                (shuntd.port(port)["state"] == "connecting").then_some(())
            });
        }
    }
}
