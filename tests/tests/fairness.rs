//! Ports that share one worker: those at full rate starve nobody, and a receiver that takes
//! nothing costs its senders nothing.

use std::time::{Duration, Instant};

use shunt_tests::hostile::neighbour::{frame, mac};
use shunt_tests::hostile::{Neighbour, Vm};
use shunt_tests::process::{favour, threads};
use shunt_tests::{Shuntd, progress};

const FLOODERS: u8 = 4;
const SINK: u8 = 30;

#[test]
fn ports_at_full_rate_starve_nobody() {
    let mut shuntd = Shuntd::new().arguments(&["--workers", "1"]);
    shuntd.launch();
    favour(&threads(shuntd.pid().unwrap_or_else(|| panic!("no shuntd"))));
    let (one, other) = (shuntd.vhost_port("one", ""), shuntd.vhost_port("other", ""));
    let neighbour = Neighbour::start(&one, &other);
    // Known to the bridge, and then it takes no frame any more.
    let mut sink = Vm::boot(&shuntd.vhost_port("sink", "")).unwrap_or_else(|e| panic!("{e}"));
    sink.send(&frame(mac(1), mac(SINK), 0));
    let quiet = neighbour.seen();

    let end = Instant::now() + Duration::from_secs(4);
    let flooders: Vec<_> = (0..FLOODERS)
        .map(|n| {
            let path = shuntd.vhost_port(&format!("f{n}"), "");
            std::thread::spawn(move || {
                let mut vm = Vm::boot(&path).unwrap_or_else(|e| panic!("{e}"));
                vm.flood(&frame(mac(SINK), mac(40 + n), 0), end)
            })
        })
        .collect();
    let taken: Vec<u64> =
        flooders.into_iter().map(|thread| thread.join().unwrap_or_else(|_| panic!("a flooder"))).collect();
    let beside = neighbour.seen();
    progress!("taken {taken:?} in 4 s; the neighbours before: {quiet:?}, beside: {beside:?}");
    assert_eq!((quiet.lost, beside.lost), (0, 0), "the neighbours lost frames");
    assert!(beside.round_trips > 100 && beside.is_quick(), "{beside:?}");

    // Everything that was offered was taken, whoever did not want it. How the shares compare depends on how often each
    // flooder's thread got a processor; none was kept waiting.
    assert!(taken.iter().all(|taken| *taken > 50_000), "{taken:?}");
    for n in 0..FLOODERS {
        let port = shuntd.port(&format!("f{n}"));
        assert!(port["rx"]["drops"].as_object().is_none_or(serde_json::Map::is_empty), "{port}");
    }
    let sink = shuntd.port("sink");
    let drops: u64 =
        sink["tx"]["drops"].as_object().into_iter().flatten().filter_map(|(_, n)| n.as_u64()).sum();
    assert!(drops >= taken.iter().sum::<u64>() - 1000, "{sink}");
}
