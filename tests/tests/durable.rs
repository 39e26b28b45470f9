//! What was answered is there afterwards, whenever the daemon is killed; and a configuration that is applied does not
//! touch the traffic of ports that stay.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use shunt_tests::hostile::Vm;
use shunt_tests::hostile::neighbour::{frame, mac, number};
use shunt_tests::{Shuntd, progress, wait_for};

const SOON: Duration = Duration::from_secs(20);
/// How often the daemon is killed at least.
const KILLS: u32 = 30;
/// Services that change together.
const SERVICES: u32 = 300;

/// A connection to the control socket.
struct Control(BufReader<UnixStream>);

impl Control {
    /// `None` when nobody listens any more.
    fn connect(path: &Path) -> Option<Self> {
        let stream = UnixStream::connect(path).ok()?;
        stream.set_read_timeout(Some(SOON)).ok()?;
        Some(Self(BufReader::new(stream)))
    }

    /// What was answered; `None` if nothing was, since the daemon has died.
    fn ask(&mut self, method: &str, params: &Value) -> Option<Result<Value, String>> {
        let request = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        self.0.get_mut().write_all(format!("{request}\n").as_bytes()).ok()?;
        let mut line = String::new();
        self.0.read_line(&mut line).ok()?;
        let mut answer: Value = serde_json::from_str(line.strip_suffix('\n')?).ok()?;
        Some(match answer.get("error") {
            Some(error) => Err(error["message"].to_string()),
            None => Ok(answer["result"].take()),
        })
    }

    /// As [`Self::ask`] of a daemon that lives.
    #[track_caller]
    fn says(&mut self, method: &str, params: &Value) -> Value {
        match self.ask(method, params) {
            Some(Ok(answer)) => answer,
            other => panic!("{method}: {other:?}"),
        }
    }

    /// All pages of a listing.
    #[track_caller]
    fn list(&mut self, method: &str) -> Vec<Value> {
        let (mut entries, mut next) = (Vec::new(), Value::Null);
        loop {
            let mut page = self.says(method, &json!({ "next": next }));
            next = page["next"].take();
            entries.extend(page["entries"].as_array().unwrap_or_else(|| panic!("{page}")).iter().cloned());
            if next.is_null() {
                return entries;
            }
        }
    }
}

/// Numbers that differ from run to run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

/// Things by name, each with a value.
type Things = BTreeMap<String, u64>;

/// The request that brings something of this name from one value to another; none: it is not there.
type Request = fn(&str, Option<u64>, Option<u64>) -> (&'static str, Value);

/// A kind of thing that commands make, change and delete.
struct Kind {
    name: &'static str,
    /// Whether a thing can get another value while it is there.
    changes: bool,
    /// The request that makes a thing with a value, in the place of another one or anew, or deletes it.
    request: Request,
    list: fn(&mut Control) -> Things,
}

const KINDS: [Kind; 3] = [
    Kind {
        name: "bridge",
        changes: true,
        request: |name, before, after| match (before, after) {
            (_, None) => ("bridge.del", json!({ "name": name })),
            (None, Some(value)) => ("bridge.add", json!({ "name": name, "filter": value % 2 == 1 })),
            (Some(_), Some(value)) => ("bridge.set", json!({ "name": name, "filter": value % 2 == 1 })),
        },
        list: |control| {
            let bridges = control.says("bridge.list", &json!({}));
            let named = bridges.as_array().into_iter().flatten().filter_map(|one| {
                let name = one["name"].as_str()?.to_owned();
                name.starts_with("thing").then(|| (name, u64::from(one["filter"] == true)))
            });
            named.collect()
        },
    },
    Kind {
        name: "route",
        changes: false,
        request: |name, _, after| {
            let prefix = format!("10.99.{}.0/24", name.trim_start_matches("thing"));
            let kind = |value: u64| ["blackhole", "prohibit"][value as usize % 2];
            match after {
                None => ("route.del", json!({ "prefix": prefix })),
                Some(value) => ("route.add", json!({ "prefix": prefix, "kind": kind(value) })),
            }
        },
        list: |control| {
            let routes = control.list("route.list").into_iter().filter_map(|route| {
                let number = route["prefix"].as_str()?.strip_prefix("10.99.")?.strip_suffix(".0/24")?;
                Some((format!("thing{number}"), u64::from(route["kind"] == "prohibit")))
            });
            routes.collect()
        },
    },
    Kind {
        name: "table of services",
        changes: true,
        request: |name, _, after| {
            let service = |n| format!("tcp:10.98.{}.{}:80", n / 250, n % 250 + 1);
            let add = |n| {
                let service = service(n);
                let server = json!({ "service": service, "address": "10.97.0.1:80", "weight": after });
                [json!({ "add-service": { "service": service } }), json!({ "add-server": server })]
            };
            let changes: Vec<Value> = match after {
                Some(_) => (0..SERVICES).flat_map(add).collect(),
                None => Vec::new(),
            };
            ("ipvs.apply", json!({ "container": name, "replace": true, "changes": changes }))
        },
        list: |control| {
            let scopes = control.says("ipvs.scopes", &json!({}));
            let names: Vec<String> = scopes
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|scope| scope["container"].as_str().map(str::to_owned))
                .collect();
            let mut things = Things::new();
            for name in names {
                let page = control.says("ipvs.list", &json!({ "container": name }));
                assert!(page["next"].is_null());
                let entries = page["entries"].as_array().cloned().unwrap_or_default();
                let weights: Vec<u64> =
                    entries.iter().filter_map(|entry| entry["server"]["weight"].as_u64()).collect();
                let Some(&first) = weights.first() else { continue };
                assert_eq!(weights, vec![first; SERVICES as usize], "{name}: half of a transaction is there");
                things.insert(name, first);
            }
            things
        },
    },
];

/// What commands of one kind have made, and what one was about that was never answered.
#[derive(Debug, Default)]
struct Made {
    answered: Things,
    open: Option<(String, Option<u64>)>,
    count: u64,
}

/// Changes things of a kind until the daemon is gone.
fn storm(kind: &Kind, socket: &Path, seed: u64, made: &mut Made) {
    let mut dice = Dice(seed);
    let Some(mut control) = Control::connect(socket) else { return };
    loop {
        let name = format!("thing{}", dice.roll(4));
        let before = made.answered.get(&name).copied();
        let value = (dice.roll(4) != 0).then(|| dice.roll(2));
        let after = value.filter(|_| kind.changes || before.is_none());
        if before == after {
            continue;
        }
        let (method, params) = (kind.request)(&name, before, after);
        made.open = Some((name.clone(), after));
        match control.ask(method, &params) {
            None => return,
            Some(Ok(_)) => match after {
                Some(value) => drop(made.answered.insert(name, value)),
                None => drop(made.answered.remove(&name)),
            },
            Some(Err(why)) => panic!("{method} {params}: {why}"),
        }
        made.open = None;
        made.count += 1;
    }
}

#[test]
fn what_was_answered_outlives_sigkill_at_any_moment() {
    let seed = std::env::var("SHUNT_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 =
        seed.unwrap_or_else(|| u64::from(std::process::id()).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    progress!("SHUNT_SEED={seed}");
    let mut dice = Dice(seed);
    let mut shuntd = Shuntd::new();
    shuntd.launch();
    let control = shuntd.path("control.sock");
    let saved = shuntd.path("saved.toml");
    let saved = saved.to_str().unwrap_or_default();
    let mut made: [Made; KINDS.len()] = Default::default();
    let mut round = 0;
    // And until there was a storm of each kind, however slow the disk is.
    while round < KILLS || made.iter().any(|made| made.count <= u64::from(KILLS)) {
        round += 1;
        let hardly = made.each_ref().map(|made| made.count);
        assert!(round <= 20 * KILLS, "hardly a storm: {hardly:?}");
        let seeds: Vec<u64> = KINDS.iter().map(|_| dice.roll(u64::MAX - 1) + 1).collect();
        let moment = Duration::from_micros(500 + dice.roll(120_000));
        std::thread::scope(|scope| {
            for ((kind, made), seed) in KINDS.iter().zip(&mut made).zip(seeds) {
                let control = &control;
                scope.spawn(move || storm(kind, control, seed, made));
            }
            std::thread::sleep(moment);
            shuntd.kill();
        });
        shuntd.launch();
        let mut client = Control::connect(&control).unwrap_or_else(|| panic!("nobody listens"));
        let status = client.says("status.show", &json!({}));
        assert_eq!(status["problems"], json!([]), "round {round}");
        for (kind, made) in KINDS.iter().zip(&mut made) {
            let found = (kind.list)(&mut client);
            let mut other = made.answered.clone();
            match made.open.take() {
                Some((name, Some(value))) => drop(other.insert(name, value)),
                Some((name, None)) => drop(other.remove(&name)),
                None => (),
            }
            assert!(
                found == made.answered || found == other,
                "round {round}, {}: answered {:?}, or {other:?}; found {found:?}",
                kind.name,
                made.answered
            );
            made.answered = found;
        }
        // What is there is what is saved: another start makes the same of it.
        drop(client);
        shuntd.ctl(&format!("config save {saved}"));
        shuntd.kill();
        shuntd.launch();
        let difference = shuntd.try_ctl(&["config", "diff", saved]);
        let difference = difference.unwrap_or_else(|refusal| panic!("round {round}: {}", refusal.message));
        assert_eq!(difference["changes"], json!([]), "round {round}");
    }
    let names: Vec<String> = std::fs::read_dir(shuntd.path("state"))
        .unwrap_or_else(|e| panic!("{e}"))
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .collect();
    assert!(names.iter().all(|name| !name.contains("damaged")), "{names:?}");
    let counts = made.map(|made| made.count);
    progress!("killed {round} times; commands answered: {counts:?}");
}

/// Frames that may be under way.
const WINDOW: u64 = 64;

/// Sends numbered frames until `ending`; how many were sent, and the numbers that did not come.
fn stream(
    sockets: [&Path; 2],
    ending: &AtomicBool,
    sent: &std::sync::atomic::AtomicU64,
) -> Result<(u64, Vec<u64>), String> {
    let (mut one, mut other) = (Vm::boot(sockets[0])?, Vm::boot(sockets[1])?);
    let (mut next, mut came, mut lost) = (0, 0, Vec::new());
    loop {
        let ends = ending.load(Ordering::Relaxed);
        while !ends && next < came + WINDOW && one.send(&frame(mac(2), mac(1), next)) {
            next += 1;
            sent.store(next, Ordering::Relaxed);
        }
        if came == next {
            if ends {
                return Ok((next, lost));
            }
            continue;
        }
        let is_ours = |frame: &[u8]| number(frame).is_some();
        let Some(frame) = other.receive_until(Duration::from_secs(5), is_ours) else {
            lost.extend(came..next);
            return Ok((next, lost));
        };
        let this = number(&frame).unwrap_or_default();
        lost.extend(came..this);
        came = this + 1;
    }
}

#[test]
fn a_port_that_stays_loses_no_packet_when_a_configuration_is_applied() {
    let mut shuntd = Shuntd::new();
    let path = |name: &str| shuntd.path(name).display().to_string();
    let port = |name: &str| {
        format!(
            "[[port]]\nname = \"{name}\"\nbridge = \"b\"\nvhost_user = \"{}\"\n",
            path(&format!("{name}.sock"))
        )
    };
    let base = format!("[[bridge]]\nname = \"b\"\n{}{}", port("one"), port("other"));
    let many: String = (0..40).map(|n| port(&format!("p{n}"))).collect();
    let rules = "[[bridge]]\nname = \"c\"\n\
                 [[interface]]\nname = \"gw\"\nbridge = \"b\"\naddress = [\"10.0.0.1/24\"]\n\
                 [[interface]]\nname = \"wan\"\nbridge = \"c\"\naddress = [\"192.0.2.1/24\"]\n\
                 [[route]]\nprefix = \"default\"\nvia = \"192.0.2.254\"\n\
                 [[nat.masquerade]]\nsource = \"10.0.0.0/24\"\nout = \"wan\"\n\
                 [[policy]]\nproto = \"tcp\"\ndport = \"25\"\naction = \"drop\"\n\
                 [[dhcp]]\ninterface = \"gw\"\nrange = \"10.0.0.10-10.0.0.99\"\n\
                 [[ipvs.service]]\nservice = \"tcp:10.0.0.100:80\"\n";
    let files =
        [base.clone(), format!("{base}{many}"), format!("{base}{many}{rules}"), format!("{base}{rules}")];
    let files: Vec<String> = files
        .iter()
        .enumerate()
        .map(|(n, text)| {
            let file = path(&format!("{n}.toml"));
            std::fs::write(&file, text).unwrap_or_else(|e| panic!("{file}: {e}"));
            file
        })
        .collect();
    let [one, other] = ["one.sock", "other.sock"].map(|name| shuntd.path(name));
    shuntd = shuntd.config(&base);
    shuntd.launch();
    let (ending, sent) = (AtomicBool::new(false), std::sync::atomic::AtomicU64::new(0));
    let (applied, seen) = std::thread::scope(|scope| {
        let stream = scope.spawn(|| stream([&one, &other], &ending, &sent));
        // Ends the stream also when something here panics.
        let end = scopeguard(|| ending.store(true, Ordering::Relaxed));
        let flows = |limit| {
            wait_for("frames to flow", limit, {
                let before = sent.load(Ordering::Relaxed);
                let sent = &sent;
                move || (sent.load(Ordering::Relaxed) > before + 10 * WINDOW).then_some(())
            })
        };
        flows(SOON);
        let mut applied = 0;
        let until = Instant::now() + Duration::from_secs(4);
        while Instant::now() < until || applied < 12 {
            // Away from the first one and back, so that all that is there comes, changes and goes.
            for file in [&files[1], &files[2], &files[3], &files[0]] {
                let changes = shuntd.ctl(&format!("config apply {file}"));
                assert!(!changes["changes"].as_array().is_none_or(Vec::is_empty), "{changes}");
                applied += 1;
                flows(SOON);
            }
        }
        drop(end);
        (applied, stream.join())
    });
    let (count, lost) =
        seen.unwrap_or_else(|_| panic!("the stream panicked")).unwrap_or_else(|e| panic!("{e}"));
    progress!("{applied} times applied, {count} frames meanwhile");
    assert_eq!(lost, [0; 0], "of {count} frames");
    assert_eq!(shuntd.counter("one", "rx", "packets"), count);
    // The switch's own interface speaks, too.
    assert!(shuntd.counter("other", "tx", "packets") >= count);
    for (port, direction) in [("one", "rx"), ("other", "tx")] {
        let drops = &shuntd.port(port)[direction]["drops"];
        assert!(drops.as_object().is_none_or(serde_json::Map::is_empty), "{port}: {drops}");
    }
}

/// The differences between what a daemon has and a file describes.
#[track_caller]
fn differences(shuntd: &Shuntd, file: &str) -> Value {
    shuntd.ctl(&format!("config diff {file}"))["changes"].take()
}

#[test]
fn what_is_set_at_the_port_of_a_nic_outlives_sigkill() {
    let mut shuntd = Shuntd::new();
    shuntd.launch();
    let control = shuntd.path("control.sock");
    let connect = || Control::connect(&control).unwrap_or_else(|| panic!("nobody listens"));
    let nic = |device: &str, mac: &str| {
        let socket = shuntd.path(&format!("{device}.sock")).display().to_string();
        json!({ "device": device, "name": "eth0", "hwAddr": mac, "mtu": 1500, "queues": 2, "vhostUserSocket": socket })
    };
    let nics = [nic("vnic0", "02:42:20:6f:a3:69"), nic("vnic1", "02:42:20:6f:a3:70")];
    let mut client = connect();
    for (id, nic) in ["aaaa", "bbbb"].iter().zip(nics) {
        client.says("container.add", &json!({ "id": id, "bridge": "shunt0", "nic": [nic] }));
    }
    shuntd.ctl("port set vnic0 --egress-rate 1000000 --ingress-rate 2000000 --mtu 1400 --guard on --allow-address 10.9.0.0/16");
    shuntd.ctl("fdb add shunt0 52:54:00:00:00:77 vnic0");
    shuntd.ctl("port set vnic1 --egress-rate 3000000");
    let settings = |shuntd: &Shuntd| {
        ["vnic0", "vnic1"].map(|name| {
            let port = shuntd.port(name);
            ["mtu", "guard", "allow_address", "ingress_rate", "egress_rate", "egress_burst"]
                .map(|field| port[field].clone())
        })
    };
    let before = settings(&shuntd);
    assert_eq!(before[0][..2], [json!(1400), json!(true)]);
    assert_eq!([&before[0][4], &before[1][4]], [1_000_000, 3_000_000]);
    let saved = shuntd.path("saved.toml").display().to_string();
    shuntd.ctl(&format!("config save {saved}"));
    assert_eq!(differences(&shuntd, &saved), json!([]));
    shuntd.kill();
    shuntd.launch();
    assert_eq!(settings(&shuntd), before);
    assert_eq!(differences(&shuntd, &saved), json!([]));
    // A file says so, too, and nothing else is touched; what is gone from it is as the NIC says again.
    let text = std::fs::read_to_string(&saved).unwrap_or_else(|e| panic!("{saved}: {e}"));
    let changed = shuntd.path("changed.toml").display().to_string();
    let other = text.replace("egress_rate = 1000000", "egress_rate = 5000000");
    assert_ne!(other, text);
    std::fs::write(&changed, other).unwrap_or_else(|e| panic!("{changed}: {e}"));
    let told = shuntd
        .ctl_text(&["config", "apply", &changed])
        .unwrap_or_else(|refusal| panic!("{}", refusal.message));
    assert_eq!(told, "~ nic vnic0: egress_rate 1000000 -> 5000000\n");
    assert_eq!(shuntd.port("vnic0")["egress_rate"], 5_000_000);
    let (without, _) = text.split_once("[[nic]]").unwrap_or_else(|| panic!("{text}"));
    std::fs::write(&changed, without).unwrap_or_else(|e| panic!("{changed}: {e}"));
    shuntd.ctl(&format!("config apply {changed}"));
    let now = shuntd.port("vnic0");
    assert_eq!((&now["egress_rate"], &now["guard"], &now["mtu"]), (&Value::Null, &Value::Null, &json!(1500)));
    shuntd.ctl(&format!("config apply {saved}"));
    // It goes with its NIC.
    shuntd.ctl("container del bbbb");
    shuntd.kill();
    shuntd.launch();
    assert_eq!(shuntd.ctl("status")["problems"], json!([]));
    shuntd.ctl(&format!("config save {saved}"));
    let left = std::fs::read_to_string(&saved).unwrap_or_else(|e| panic!("{saved}: {e}"));
    assert!(left.contains("vnic0") && !left.contains("vnic1"), "{left}");
}

#[test]
fn a_route_that_waits_for_its_gateway_is_saved_checked_and_applied_as_it_is() {
    let mut shuntd = Shuntd::new();
    shuntd.launch();
    shuntd.ctl("bridge add b");
    shuntd.ctl("interface add wan --bridge b --address 192.0.2.2/24");
    shuntd.ctl("route add 10.9.0.0/16 --via 192.0.2.1");
    shuntd.ctl("interface set wan --del-address 192.0.2.2/24");
    let route = |shuntd: &Shuntd| {
        let routes = shuntd.ctl("route list");
        let found = routes.as_array().into_iter().flatten().find(|route| route["prefix"] == "10.9.0.0/16");
        found.unwrap_or_else(|| panic!("{routes}"))["active"].clone()
    };
    assert_eq!(route(&shuntd), false);
    let saved = shuntd.path("saved.toml").display().to_string();
    shuntd.ctl(&format!("config save {saved}"));
    let note = "# route 10.9.0.0/16 waits: gateway 192.0.2.1 is on no network of interface \"wan\"";
    for command in ["check", "diff", "apply"] {
        let told = shuntd.ctl_text(&["config", command, &saved]);
        let told = told.unwrap_or_else(|refusal| panic!("config {command}: {}", refusal.message));
        assert!(told.starts_with(note) && told.lines().count() == 1, "config {command}: {told}");
    }
    shuntd.kill();
    shuntd.launch();
    assert_eq!((route(&shuntd), differences(&shuntd, &saved)), (json!(false), json!([])));
    // A switch that has never seen the network takes it, too, from the start and by command; it is used once it can be.
    let text = std::fs::read_to_string(&saved).unwrap_or_else(|e| panic!("{saved}: {e}"));
    let mut fresh = Shuntd::new().config(&text);
    fresh.launch();
    assert_eq!((route(&fresh), differences(&fresh, &saved)), (json!(false), json!([])));
    let mut empty = Shuntd::new().config("");
    empty.launch();
    empty.ctl(&format!("config apply {saved}"));
    assert_eq!((route(&empty), differences(&empty, &saved)), (json!(false), json!([])));
    // As a command it is a mistake.
    let refusal = shuntd.try_ctl(&["route", "add", "10.8.0.0/16", "--via", "192.0.2.1", "--dev", "wan"]);
    assert!(refusal.is_err_and(|refusal| refusal.message.contains("is on no network of interface")));
}

#[test]
fn a_long_file_is_applied_shown_and_restored() {
    const LONG: u32 = 260_000;
    let server = |n: u32| {
        format!(
            "[[ipvs.server]]\nservice = \"tcp:10.98.0.{}:80\"\naddress = \"10.{}.{}.{}:80\"\nweight = 5\n",
            n % 200 + 1,
            n >> 16,
            n >> 8 & 0xff,
            n & 0xff
        )
    };
    let services: String =
        (1..201).map(|n| format!("[[ipvs.service]]\nservice = \"tcp:10.98.0.{n}:80\"\n")).collect();
    let text = format!("[[bridge]]\nname = \"b\"\n{services}{}", (0..LONG).map(server).collect::<String>());
    assert!(text.len() > 17 << 20, "{}", text.len());
    let mut shuntd = Shuntd::new();
    shuntd.launch();
    let long = shuntd.path("long.toml").display().to_string();
    let write = |text: &str| std::fs::write(&long, text).unwrap_or_else(|e| panic!("{long}: {e}"));
    // What is wrong at its end is named with its line, and nothing is changed.
    write(&format!(
        "{text}[[ipvs.server]]\nservice = \"tcp:10.98.0.1:80\"\naddress = \"10.99.0.1:80\"\nweight = -1\n"
    ));
    let place = format!("long.toml:{}:10: server 10.99.0.1:80", text.lines().count() + 4);
    for command in ["check", "diff", "apply"] {
        let refusal = shuntd.try_ctl(&["config", command, &long]);
        let Err(refusal) = refusal else { panic!("config {command} is not refused") };
        assert!(refusal.message.contains(&place), "{command}: {}", refusal.message);
    }
    assert!(shuntd.ctl("bridge show shunt0").is_object());
    write(&text);
    let begun = Instant::now();
    let applied = shuntd.ctl(&format!("config apply {long}"));
    progress!("{} MiB applied after {:.1?}", text.len() >> 20, begun.elapsed());
    assert!(applied["changes"].as_array().is_some_and(|changes| changes.len() > 100), "no changes are named");
    assert_eq!(differences(&shuntd, &long), json!([]));
    shuntd.ctl(&format!("config save {long}"));
    assert_eq!(differences(&shuntd, &long), json!([]));
    shuntd.kill();
    let begun = Instant::now();
    shuntd.launch();
    progress!("restored after {:.1?}", begun.elapsed());
    assert_eq!(differences(&shuntd, &long), json!([]));
    let status = std::fs::read_to_string(format!("/proc/{}/status", shuntd.pid().unwrap_or_default()));
    let peak = status.unwrap_or_default().lines().find(|line| line.starts_with("VmHWM")).map(str::to_owned);
    progress!("{}", peak.unwrap_or_default());
}

/// Calls something when it goes out of scope.
fn scopeguard(call: impl Fn()) -> impl Drop {
    struct Guard<F: Fn()>(F);
    impl<F: Fn()> Drop for Guard<F> {
        fn drop(&mut self) {
            (self.0)();
        }
    }
    Guard(call)
}

#[test]
fn a_file_that_is_wrong_is_refused_with_its_line_and_changes_nothing() {
    let shuntd = Shuntd::start();
    let show =
        || shuntd.ctl_text(&["config", "show"]).unwrap_or_else(|refusal| panic!("{}", refusal.message));
    let before = show();
    let bridge = "[[bridge]]\nname = \"new\"\n";
    let long = format!("{bridge}# {}\n", "x".repeat(17 << 20));
    let cases: [(&str, &[u8], &str); 12] = [
        ("truncated.toml", b"[[bridge]]\nname = \"new\"\n[[port]]\nname = \"p", "truncated.toml:4:"),
        ("half-table.toml", b"[[bridge]]\nname = \"new\"\n[[port]", "half-table.toml:3:"),
        ("type.toml", b"[[bridge]]\nname = \"new\"\nageing = \"long\"\n", "type.toml:3:"),
        ("list.toml", b"[[bridge]]\nname = \"new\"\n[port]\nname = \"p\"\n", "list.toml:3:"),
        ("table.toml", b"[[bridge]]\nname = \"new\"\n[[brigde]]\nname = \"x\"\n", "table.toml:3:"),
        ("key.toml", b"[[bridge]]\nname = \"new\"\nagening = 5\n", "key.toml:3:"),
        ("range.toml", b"[[bridge]]\nname = \"new\"\nageing = -1\n", "range.toml:3:"),
        ("twice.toml", b"[[bridge]]\nname = \"new\"\n[[bridge]]\nname = \"new\"\n", "twice.toml:4:"),
        (
            "nobody.toml",
            b"[[bridge]]\nname = \"new\"\n[[port]]\nname = \"p\"\nbridge = \"old\"\nvhost_user = \"/p\"\n",
            "nobody.toml:5:",
        ),
        ("bytes.toml", b"[[bridge]]\nname = \"new\"\n# \xff\n", "bytes.toml:3:"),
        ("zero.toml", b"[[bridge]]\nname = \"new\"\n\0\n", "zero.toml:3:"),
        ("long.toml", long.as_bytes(), "long.toml:1:1: the file is too long: "),
    ];
    let refused = |file: &Path, place: &str| {
        for command in ["check", "diff", "apply"] {
            let refusal = shuntd.ctl_text(&["config", command, &file.display().to_string()]);
            let Err(refusal) = refusal else { panic!("config {command} {place} is not refused") };
            let told = &refusal.message;
            assert!(
                refusal.status == 1 && told.contains(place) && told.lines().count() == 1,
                "{place}: {told}"
            );
        }
    };
    for (name, bytes, place) in cases {
        let file = shuntd.path(name);
        std::fs::write(&file, bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
        refused(&file, place);
    }
    // 100 MiB that are not there.
    let file = shuntd.path("huge.toml");
    let made = std::fs::File::create(&file).and_then(|file| file.set_len(100 << 20));
    made.unwrap_or_else(|e| panic!("huge.toml: {e}"));
    refused(&file, "huge.toml:1:1: the file is too long: ");
    let file = shuntd.path("longest.toml");
    let made = std::fs::File::create(&file).and_then(|file| file.set_len((256 << 20) + 1));
    made.unwrap_or_else(|e| panic!("longest.toml: {e}"));
    refused(&file, "longest.toml: longer than 256 MiB");
    refused(shuntd.dir(), "directory");
    refused(&shuntd.path("none.toml"), "none.toml: ");
    assert_eq!(show(), before);
}
