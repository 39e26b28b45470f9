//! Each rule of each field with the nearest value inside and outside.

use serde_json::{Value, json};

use super::*;

/// The documented example, changed.
fn nic(change: impl FnOnce(&mut Value)) -> Result<NicSpec, Invalid> {
    let mut asked = json!({
        "device": "tap-test", "name": "eth-test", "IPAddresses": [{"address": "172.16.0.3", "mask": "16"}],
        "hwAddr": "02:42:20:6f:a3:69", "mtu": 1500,
        "vhostUserSocket": "/usr/local/var/run/openvswitch/vhost-user1", "queues": 5
    });
    change(&mut asked);
    NicSpec::try_from(&serde_json::from_value::<api::KataInterface>(asked).unwrap())
}

#[track_caller]
fn refused(field: &'static str, why: &str, change: impl FnOnce(&mut Value)) {
    let invalid = nic(change).unwrap_err();
    assert_eq!(invalid.field, field, "{invalid}");
    assert!(invalid.to_string().contains(why), "{invalid}");
    assert_eq!(invalid.to_string().lines().count(), 1);
}

#[test]
fn the_documented_example_is_taken() {
    let nic = nic(|_| ()).unwrap();
    assert_eq!((nic.mtu, nic.queues, nic.pairs()), (1500, 5, 5));
    let view = serde_json::to_string(&nic.view()).unwrap();
    assert_eq!(
        view,
        r#"{"device":"tap-test","name":"eth-test","IPAddresses":[{"Family":2,"Address":"172.16.0.3","Mask":"16"}],"mtu":1500,"hwAddr":"02:42:20:6f:a3:69","vhostUserSocket":"/usr/local/var/run/openvswitch/vhost-user1","queues":5}"#
    );
}

#[test]
fn names_have_15_characters_and_begin_with_a_letter() {
    for field in ["device", "name"] {
        for good in ["a", "tap_test", "A-b.c_9", "abcdefghijklmno"] {
            assert!(nic(|n| n[field] = good.into()).is_ok(), "{field} {good}");
        }
        for bad in ["abcdefghijklmnop", "9a", "-a", ".a", "_a", "a b", "a/b", "a:b", "aé"] {
            refused(field, "is no valid name", |n| n[field] = bad.into());
        }
        for missing in [json!(""), Value::Null] {
            refused(field, "is missing", |n| n[field] = missing);
        }
    }
    refused("name", "loopback", |n| n["name"] = "lo".into());
}

#[test]
fn addresses_are_those_of_hosts_with_masks() {
    let with =
        |address: &str, mask: Value| nic(|n| n["IPAddresses"] = json!([{"address": address, "mask": mask}]));
    assert!(nic(|n| n["IPAddresses"] = json!([])).unwrap().addresses.is_empty());
    assert!(nic(|n| n["IPAddresses"] = Value::Null).unwrap().addresses.is_empty());
    for (address, mask) in [
        ("172.16.0.3", json!("1")),
        ("172.16.0.3", json!("32")),
        ("172.16.0.3", json!(16)),
        ("172.16.0.2", json!("31")),
        ("fd00::3", json!("1")),
        ("fd00::3", json!("128")),
        ("1.0.0.1", json!("8")),
        ("223.255.255.254", json!("24")),
    ] {
        assert!(with(address, mask.clone()).is_ok(), "{address}/{mask}");
    }
    for (address, mask) in [
        ("172.16.0.3", json!("0")),
        ("172.16.0.3", json!("33")),
        ("172.16.0.3", json!("")),
        ("172.16.0.3", json!("+16")),
        ("172.16.0.3", json!(" 16")),
        ("172.16.0.3", json!("016x")),
        ("172.16.0.3", json!("255.255.0.0")),
        ("172.16.0.3", json!(-1)),
        ("fd00::3", json!("0")),
        ("fd00::3", json!("129")),
    ] {
        let wrong = with(address, mask.clone()).unwrap_err();
        assert!(wrong.to_string().contains("is no mask"), "{address}/{mask}: {wrong}");
    }
    for (address, why) in [
        ("", "no IP address"),
        ("172.16.0", "no IP address"),
        ("172.16.0.256", "no IP address"),
        ("172.16.0.3/16", "no IP address"),
        ("0.0.0.1", "not the address of a host"),
        ("127.0.0.1", "not the address of a host"),
        ("224.0.0.1", "not the address of a host"),
        ("172.16.0.0", "first or the last address"),
        ("172.16.255.255", "first or the last address"),
        ("ff02::1", "not the address of a host"),
    ] {
        let wrong = with(address, json!("16")).unwrap_err();
        assert!(wrong.field == "IPAddresses" && wrong.to_string().contains(why), "{address}: {wrong}");
    }
}

#[test]
fn addresses_are_16_at_most_and_of_their_family() {
    let many = |count: u8| {
        let list: Vec<_> =
            (1..=count).map(|n| json!({"address": format!("10.0.0.{n}"), "mask": "24"})).collect();
        nic(|n| n["IPAddresses"] = list.into())
    };
    assert_eq!(many(16).unwrap().addresses.len(), 16);
    assert!(many(17).unwrap_err().to_string().contains("at most 16"));
    let twice = json!([{"address": "10.0.0.1", "mask": "24"}, {"address": "10.0.0.1", "mask": "8"}]);
    refused("IPAddresses", "is there twice", |n| n["IPAddresses"] = twice);
    let family = |family: i64, address: &str| {
        nic(|n| n["IPAddresses"] = json!([{"Family": family, "Address": address, "Mask": "8"}]))
    };
    for (good, address) in [(0, "10.0.0.1"), (2, "10.0.0.1"), (10, "fd00::1"), (0, "fd00::1")] {
        assert!(family(good, address).is_ok());
    }
    for (bad, address) in [(1, "10.0.0.1"), (10, "10.0.0.1"), (2, "fd00::1"), (-1, "fd00::1")] {
        assert!(family(bad, address).unwrap_err().to_string().contains("Family"), "{bad}");
    }
    let strange = json!([{"address": "10.0.0.1", "mask": "24", "netmask": "x"}]);
    refused("IPAddresses", "\"netmask\"", |n| n["IPAddresses"] = strange);
}

#[test]
fn hw_addr_is_a_unicast_mac() {
    for good in ["02:42:20:6f:a3:69", "00:00:00:00:00:01", "FE:FF:FF:FF:FF:FF"] {
        assert!(nic(|n| n["hwAddr"] = good.into()).is_ok(), "{good}");
    }
    for bad in ["01:42:20:6f:a3:69", "00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff"] {
        refused("hwAddr", "not the address of a host", |n| n["hwAddr"] = bad.into());
    }
    for bad in ["02:42:20:6f:a3", "02:42:20:6f:a3:69:01", "02:42:20:6f:a3:6g", "0242.206f.a369"] {
        refused("hwAddr", "is no MAC address", |n| n["hwAddr"] = bad.into());
    }
    refused("hwAddr", "is missing", |n| n["hwAddr"] = "".into());
    refused("hwAddr", "is missing", |n| n["hwAddr"] = Value::Null);
}

#[test]
fn mtu_is_46_to_9600() {
    for good in [46, 67, 68, 9600] {
        assert_eq!(i64::from(nic(|n| n["mtu"] = good.into()).unwrap().mtu), good);
    }
    for bad in [45, 9601, 0, -1500, i64::MIN] {
        refused("mtu", "it must be 46 to 9600", |n| n["mtu"] = bad.into());
    }
    refused("mtu", "is missing", |n| n["mtu"] = Value::Null);
}

#[test]
fn vhost_user_sockets_are_plain_absolute_paths_of_107_bytes() {
    let long = |bytes: usize| format!("/{}", "a".repeat(bytes - 1));
    for good in ["/a".to_owned(), "/run/a_b-c.9/vhost-user1".to_owned(), long(107)] {
        assert!(nic(|n| n["vhostUserSocket"] = good.as_str().into()).is_ok(), "{good}");
    }
    for bad in [108, 128, 129] {
        refused("vhostUserSocket", "the kernel allows a socket path 107 bytes", |n| {
            n["vhostUserSocket"] = long(bad).into();
        });
    }
    for (bad, why) in [
        ("vhost-user1", "not absolute"),
        ("run/vhost", "not absolute"),
        ("/", "names a directory"),
        ("/run/", "names a directory"),
        ("/run/..", "names a directory"),
        ("/run/../a", "no path for a socket"),
        ("/run//a", "no path for a socket"),
        ("/run/a b", "no path for a socket"),
        ("/run/a,server", "no path for a socket"),
        ("/run/a:b", "no path for a socket"),
        ("/run/\u{e9}", "no path for a socket"),
        ("/run/a\n", "control character"),
    ] {
        refused("vhostUserSocket", why, |n| n["vhostUserSocket"] = bad.into());
    }
    assert_eq!(nic(|n| n["vhostUserSocket"] = "".into()).unwrap().socket, None);
    assert_eq!(nic(|n| n["vhostUserSocket"] = Value::Null).unwrap().socket, None);
}

#[test]
fn queues_are_0_to_what_the_kind_has() {
    let device = |n: &mut Value| n["vhostUserSocket"] = Value::Null;
    for (queues, pairs) in [(0, 1), (1, 1), (128, 128)] {
        assert_eq!(nic(|n| n["queues"] = queues.into()).unwrap().pairs(), pairs);
    }
    refused("queues", "it must be 0 to 128", |n| n["queues"] = 129.into());
    refused("queues", "it must be 0 to 128", |n| n["queues"] = (-1).into());
    let tap = |queues: i64| {
        nic(|n| {
            device(n);
            n["queues"] = queues.into();
        })
    };
    assert_eq!(tap(256).unwrap().pairs(), 256);
    assert!(tap(257).unwrap_err().to_string().contains("it must be 0 to 256"));
    assert_eq!(nic(|n| n["queues"] = Value::Null).unwrap().pairs(), 1);
}

#[test]
fn unknown_fields_are_named() {
    refused("NIC", "field \"mtuu\" of the NIC is unknown", |n| n["mtuu"] = 1.into());
    // What Kata itself prints is taken.
    assert!(nic(|n| n["pciAddr"] = "01.0/00".into()).is_ok());
    assert!(nic(|n| n["linkType"] = "tap".into()).is_ok());
    refused("pciAddr", "no place of a PCI device", |n| n["pciAddr"] = "x".into());
}

fn text(dest: &str, gateway: &str, device: &str) -> api::KataRoute {
    let given = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    api::KataRoute { dest: given(dest), gateway: given(gateway), device: given(device), unknown: None }
}

fn route(dest: &str, gateway: &str, device: &str) -> Result<ContainerRoute, String> {
    ContainerRoute::try_from(&text(dest, gateway, device)).map_err(|wrong| wrong.to_string())
}

#[test]
fn routes_lead_to_networks_hosts_and_everywhere() {
    for (dest, gateway, network) in [
        ("177.17.0.0/24", "177.17.25.1", "177.17.0.0/24"),
        ("172.17.10.10/24", "", "172.17.10.0/24"),
        ("10.1.2.3", "", "10.1.2.3/32"),
        ("10.1.2.3/32", "", "10.1.2.3/32"),
        ("fd00::1", "", "fd00::1/128"),
        ("default", "172.16.0.1", "0.0.0.0/0"),
        ("default", "fd00::1", "::/0"),
        ("0.0.0.0/0", "172.16.0.1", "0.0.0.0/0"),
        ("0.0.0.0/1", "", "0.0.0.0/1"),
    ] {
        let read = route(dest, gateway, "eth-test").unwrap();
        assert_eq!(read.dest.network.unwrap().to_string(), network);
        let view = read.view();
        assert_eq!(view.dest.as_deref(), Some(dest), "as it was written");
        assert_eq!(view.gateway.unwrap_or_default(), gateway);
    }
    for (dest, gateway, device, why) in [
        ("", "", "eth0", "dest is missing"),
        ("10.0.0.0/33", "", "eth0", "leads nowhere"),
        ("fd00::/129", "", "eth0", "leads nowhere"),
        ("10.0.0", "", "eth0", "leads nowhere"),
        ("Default", "10.0.0.1", "eth0", "leads nowhere"),
        ("default", "", "eth0", "gateway is missing"),
        ("0.0.0.0/0", "", "eth0", "gateway is missing"),
        ("::/0", "", "eth0", "gateway is missing"),
        ("10.0.0.0/8", "10.0.0.256", "eth0", "gateway"),
        ("10.0.0.0/8", "127.0.0.1", "eth0", "not the address of a host"),
        ("10.0.0.0/8", "fd00::1", "eth0", "another family"),
        ("fd00::/8", "10.0.0.1", "eth0", "another family"),
        ("10.0.0.0/8", "", "", "device is missing"),
        ("10.0.0.0/8", "", "abcdefghijklmnop", "no valid name"),
        ("10.0.0.0/8", "10.0.0.1", "lo", "cannot be reached through lo"),
    ] {
        let wrong = route(dest, gateway, device).unwrap_err();
        assert!(wrong.contains(why) && wrong.lines().count() == 1, "{dest} {gateway} {device}: {wrong}");
    }
    assert!(route("10.0.0.0/8", "", "abcdefghijklmno").is_ok());
    assert!(route("10.0.0.0/8", "", "lo").unwrap().is_local());
}

#[test]
fn what_is_not_given_fits_anything() {
    let routes = [
        route("177.17.0.0/24", "177.17.25.1", "eth1").unwrap(),
        route("177.17.0.0/24", "", "eth1").unwrap(),
        route("177.17.0.0/24", "177.17.25.1", "eth2").unwrap(),
        route("177.17.0.0/16", "", "eth1").unwrap(),
        route("default", "10.0.0.1", "eth1").unwrap(),
        route("default", "fd00::1", "eth1").unwrap(),
    ];
    let fitting = |dest: &str, gateway: &str, device: &str| {
        let meant = ContainerRouteMatch::try_from(&text(dest, gateway, device)).unwrap();
        routes.iter().enumerate().filter(|(_, route)| meant.fits(route)).map(|(n, _)| n).collect::<Vec<_>>()
    };
    assert_eq!(fitting("177.17.0.0/24", "", ""), [0, 1, 2]);
    assert_eq!(fitting("177.17.0.9/24", "", ""), [0, 1, 2]);
    assert_eq!(fitting("177.17.0.0/24", "177.17.25.1", ""), [0, 2]);
    assert_eq!(fitting("177.17.0.0/24", "", "eth1"), [0, 1]);
    assert_eq!(fitting("177.17.0.0/24", "177.17.25.1", "eth2"), [2]);
    assert_eq!(fitting("177.17.0.0/24", "177.17.25.2", ""), [0; 0]);
    assert_eq!(fitting("default", "", ""), [4, 5]);
    assert_eq!(fitting("default", "fd00::1", ""), [5]);
    assert_eq!(fitting("0.0.0.0/0", "", ""), [4]);
    assert!(ContainerRouteMatch::try_from(&text("", "10.0.0.1", "eth1")).is_err());
}

#[test]
fn ids_have_128_characters() {
    for good in ["6", "a".repeat(128).as_str(), "A_b-c.9"] {
        assert!(container_id("id", good).is_ok(), "{good}");
    }
    for bad in ["", "a".repeat(129).as_str(), "-a", ".a", "_a", "a b", "a/b", "é"] {
        assert!(container_id("id", bad).unwrap_err().to_string().contains("is no container's ID"), "{bad}");
    }
}

#[test]
fn containers_have_sockets_and_roles() {
    let spec = |change: &dyn Fn(&mut api::ContainerAdd)| {
        let mut asked = api::ContainerAdd { id: "6ec7a98".into(), ..Default::default() };
        change(&mut asked);
        ContainerSpec::try_from(&asked).map_err(|wrong| wrong.to_string())
    };
    let usual = spec(&|_| ()).unwrap();
    assert_eq!((usual.bridge.as_str(), usual.role, usual.tap), ("shunt0", Role::Server, TapOpen::Descriptor));
    assert_eq!(spec(&|c| c.role = Some("client".into())).unwrap().role, Role::Client);
    assert_eq!(spec(&|c| c.tap = Some("name".into())).unwrap().tap, TapOpen::Name);
    assert!(spec(&|c| c.role = Some("both".into())).is_err());
    assert!(spec(&|c| c.tap = Some("fd".into())).is_err());
    assert!(spec(&|c| c.qmp = Some("qmp.sock".into())).unwrap_err().contains("not absolute"));
    assert!(spec(&|c| c.bridge = Some("9".into())).is_err());
    for (text, shown) in [
        ("/run/agent.sock", "unix:/run/agent.sock"),
        ("unix:///run/agent.sock", "unix:/run/agent.sock"),
        ("hvsock:/run/kata.hvsock", "hvsock:/run/kata.hvsock:1024"),
        ("hvsock:///run/kata.hvsock:9", "hvsock:/run/kata.hvsock:9"),
        ("vsock:3", "vsock:3:1024"),
        ("vsock://4294967295:1", "vsock:4294967295:1"),
    ] {
        let agent = spec(&|c| c.agent = Some(text.into())).unwrap().agent.unwrap();
        assert_eq!(agent.to_string(), shown);
        assert_eq!(shown.parse::<AgentAddress>(), Ok(agent));
    }
    for bad in ["", "agent", "tcp:1", "vsock:", "vsock:x:1", "vsock:4294967296", "unix:agent", "hvsock:/a:x"]
    {
        assert!(spec(&|c| c.agent = Some(bad.into())).is_err(), "{bad}");
    }
}
