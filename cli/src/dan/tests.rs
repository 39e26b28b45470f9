//! DAN files as runtime-rs reads them: a reader of its own here, written after its rules and not after our types.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::*;

/// What runtime-rs makes of a file, or why it refuses to start the sandbox.
///
/// Rules of `dan.rs`, `network_info_from_dan.rs`, `tap_endpoint.rs` and `vhost_user_endpoint.rs`: `netns` may be absent or
/// null; `name`, `device`, `network_info.interface.ip_addresses` are needed; a device's `type` is `vhost-user`, `host-tap` or
/// `vfio`, with `path` or `tap_name`; the others have defaults; an address that is no CIDR is left out silently, as is a
/// route of which no field tells the family; a vhost-user path must not exist; a TAP must.
fn runtime(text: &[u8], taps: &[&str]) -> Result<Vec<Value>, String> {
    let file: Value = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let need = |value: &Value, key: &str| -> Result<String, String> {
        value[key].as_str().map(str::to_owned).ok_or_else(|| format!("{key} is missing in {value}"))
    };
    if !(file["netns"].is_null() || file["netns"].is_string()) {
        return Err("netns is no text".into());
    }
    let cidr = |text: &str| -> Option<(IpAddr, u8)> {
        let (address, len) = text.split_once('/')?;
        Some((address.parse().ok()?, len.parse().ok()?))
    };
    let mut nics = Vec::new();
    for device in file["devices"].as_array().ok_or("no devices")? {
        let (name, mac) = (need(device, "name")?, need(device, "guest_mac")?);
        let kind = need(&device["device"], "type")?;
        let behind = match kind.as_str() {
            "vhost-user" => {
                let path = need(&device["device"], "path")?;
                if Path::new(&path).exists() {
                    return Err(format!("vhost-user-net socket path {path} exists"));
                }
                path
            }
            "host-tap" => {
                let tap = need(&device["device"], "tap_name")?;
                if !taps.contains(&tap.as_str()) {
                    return Err(format!("get link by name {tap}"));
                }
                tap
            }
            other => return Err(format!("unknown variant {other}")),
        };
        let queues = match device["device"]["queue_num"].as_u64().unwrap_or(0) {
            0 => 1,
            queues => queues,
        };
        let info = &device["network_info"];
        let addresses = info["interface"]["ip_addresses"].as_array().ok_or("no ip_addresses")?;
        let addresses: Vec<_> =
            addresses.iter().filter_map(|a| cidr(a.as_str()?)).filter(|(ip, _)| !ip.is_loopback()).collect();
        let mut routes = Vec::new();
        for route in info["routes"].as_array().into_iter().flatten() {
            let text = |key: &str| route[key].as_str().unwrap_or_default().to_owned();
            let family = match (text("dest").as_str(), text("gateway").as_str(), text("source").as_str()) {
                ("", "", "") => None,
                ("", "", source) => source.parse().ok(),
                ("", gateway, _) => gateway.parse().ok(),
                (dest, ..) => cidr(dest).map(|(ip, _)| ip),
            };
            if let Some(family) = family {
                let family: IpAddr = family;
                routes.push(json!([text("dest"), text("gateway"), if family.is_ipv4() { 4 } else { 6 }]));
            }
        }
        let mtu = info["interface"]["mtu"].as_u64().unwrap_or(1500);
        nics.push(json!({
            "name": name, "mac": mac, "kind": kind, "behind": behind, "queues": queues, "mtu": mtu,
            "addresses": addresses, "routes": routes
        }));
    }
    Ok(nics)
}

fn nic(name: &str, device: Device) -> Nic {
    Nic {
        name: name.into(),
        guest_mac: "02:42:0a:01:00:05".parse().expect("valid"),
        device,
        network_info: NetworkInfo {
            interface: Interface {
                ip_addresses: vec![
                    "10.1.0.5/16".parse().expect("valid"),
                    "fd00::5/64".parse().expect("valid"),
                ],
                mtu: 1450,
                ..Interface::default()
            },
            routes: vec![
                Route { dest: "0.0.0.0/0".into(), gateway: "10.1.0.1".into(), ..Route::default() },
                Route { dest: "192.0.2.0/24".into(), ..Route::default() },
                Route { gateway: "fd00::1".into(), ..Route::default() },
            ],
            neighbors: Vec::new(),
        },
    }
}

fn vhost(path: &Path) -> Device {
    Device::VhostUser { path: path.display().to_string(), queue_num: 4, queue_size: QUEUE_SIZE }
}

fn tap(name: &str) -> Device {
    Device::HostTap { tap_name: name.into(), queue_num: 1, queue_size: QUEUE_SIZE }
}

#[test]
fn the_runtime_reads_what_is_written() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = path(&directory.path().join("dans"), "box1");
    let socket = directory.path().join("eth0.sock");
    put(&file, nic("eth0", vhost(&socket))).expect("written");
    put(&file, nic("eth1", tap("tap7"))).expect("added");
    let text = fs::read(&file).expect("there");
    let nics = runtime(&text, &["tap7"]).expect("understood");
    let routes = json!([["0.0.0.0/0", "10.1.0.1", 4], ["192.0.2.0/24", "", 4], ["", "fd00::1", 6]]);
    let common = |name: &str, kind: &str, behind: &str, queues: u64| {
        json!({
            "name": name, "mac": "02:42:0a:01:00:05", "kind": kind, "behind": behind, "queues": queues, "mtu": 1450,
            "addresses": [["10.1.0.5", 16], ["fd00::5", 64]], "routes": routes
        })
    };
    let socket_text = socket.display().to_string();
    assert_eq!(nics, [common("eth0", "vhost-user", &socket_text, 4), common("eth1", "host-tap", "tap7", 1)]);
    // The same the runtime's own way: no TAP of that name, or a socket that exists, and the sandbox does not start.
    assert!(runtime(&text, &[]).unwrap_err().contains("tap7"));
    fs::write(&socket, "").expect("made");
    assert!(runtime(&text, &["tap7"]).unwrap_err().contains("exists"));
}

#[test]
fn the_runtimes_own_examples_are_read_and_kept() {
    // After the unit test of runtime-rs' dan.rs and the Go runtime's testdata, as devices of one file.
    let given = json!({
        "netns": null,
        "devices": [
            {
                "name": "eth0", "guest_mac": "02:00:00:00:00:01",
                "device": {"type": "vhost-user", "path": "/tmp/test", "queue_num": 1, "queue_size": 1},
                "network_info": {
                    "interface": {"ip_addresses": ["192.168.0.1/24"], "mtu": 1500, "ntype": "tuntap", "flags": 0},
                    "routes": [{"dest": "172.18.0.0/16", "source": "172.18.0.1", "gateway": "172.18.31.1",
                                "scope": 0, "flags": 0, "mtu": 1450}],
                    "neighbors": [{"ip_address": "192.168.0.3/16", "device": "", "state": 0, "flags": 0,
                                   "hardware_addr": "02:00:00:00:00:03"}]
                }
            },
            {
                "name": "eth1", "guest_mac": "0a:58:0a:0a:00:05",
                "device": {"type": "vfio", "pci_device_id": "0000:85:02.5"},
                "network_info": {"interface": {"ip_addresses": ["10.10.0.5/24"]}}
            }
        ]
    });
    let directory = tempfile::tempdir().expect("a directory");
    let file = path(directory.path(), "box");
    fs::write(&file, given.to_string()).expect("written");
    put(&file, nic("eth2", tap("tap7"))).expect("added to what somebody else wrote");
    let kept = read(&file).expect("understood").expect("there");
    assert_eq!(kept.devices.len(), 3);
    assert_eq!(kept.devices[0].network_info.routes[0].mtu, 1450);
    assert_eq!(kept.devices[1].network_info.interface.mtu, 1500, "the runtime's default");
    assert!(remove(&file, "eth2").expect("removed") && !remove(&file, "eth2").expect("gone"));
    assert!(remove(&file, "eth0").expect("removed") && remove(&file, "eth1").expect("removed"));
    assert!(!file.exists(), "an empty file is none");
    assert!(!remove(&file, "eth0").expect("no file, no NIC"));
}

#[test]
fn a_file_is_replaced_whole_or_not_at_all() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = path(directory.path(), "box");
    put(&file, nic("eth0", tap("tap7"))).expect("written");
    let before = fs::read(&file).expect("there");
    fs::write(&file, &before[..before.len() / 2]).expect("cut short");
    let message = put(&file, nic("eth1", tap("tap8"))).expect_err("damaged");
    assert!(message.contains("is no DAN file") && message.contains("box.json"), "{message}");
    assert_eq!(fs::read(&file).expect("there").len(), before.len() / 2, "left as it was");
    fs::write(&file, &before).expect("mended");
    // Readers beside a writer never see half a file.
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for i in 0..200 {
                put(&file, nic(&format!("eth{}", i % 7), tap("tap7"))).expect("written");
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        while !done.load(std::sync::atomic::Ordering::Relaxed) {
            runtime(&fs::read(&file).expect("always there"), &["tap7"]).expect("always whole");
        }
    });
    let left: Vec<_> = fs::read_dir(directory.path()).expect("there").collect();
    assert_eq!(left.len(), 1, "no temporary file stays: {left:?}");
}
