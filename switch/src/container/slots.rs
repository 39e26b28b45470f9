//! Where a PCI device can be plugged into a running QEMU, from what `query-pci` says.
//!
//! On `pc` the root bus takes devices; on `q35` it does not, and each root or downstream port takes one. Bridges of
//! conventional PCI take devices in slots 1 to 31 on both. A bus is addressed by the identifier of its bridge, so
//! bridges that were given none cannot be used. What `query-pci` shows as free may be taken nevertheless (by what the
//! firmware has not numbered yet): whoever plugs goes on to the next place then.
#![forbid(unsafe_code)]

use serde::Deserialize;
use serde_json::Value;

/// Vendor and device numbers (QEMU's docs/specs/pci-ids.rst, and the chips that it models).
const I440FX: (u32, u32) = (0x8086, 0x1237);
const PORTS: &[(u32, u32)] = &[(0x1b36, 0x000c), (0x8086, 0x3420), (0x104c, 0x8233)];
const BRIDGES: &[(u32, u32)] = &[(0x1b36, 0x0001), (0x1b36, 0x000e)];

/// A place for a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    /// The bus, by QEMU's name.
    pub(super) bus: String,
    /// The slot on it.
    pub(super) slot: u8,
    /// As Kata writes it: slot and function of each bridge on the way, then the device's slot, in hexadecimal.
    pub(super) path: String,
    /// Whether it is that of a root or downstream port, which `query-pci` may show as free although it is not.
    pub(super) port: bool,
}

#[derive(Deserialize)]
struct Bus {
    bus: u32,
    #[serde(default)]
    devices: Vec<Device>,
}

#[derive(Deserialize)]
struct Device {
    slot: u8,
    function: u8,
    #[serde(default)]
    qdev_id: String,
    id: Id,
    pci_bridge: Option<Bridge>,
}

#[derive(Deserialize)]
struct Id {
    vendor: u32,
    device: u32,
}

#[derive(Deserialize)]
struct Bridge {
    #[serde(default)]
    devices: Vec<Device>,
}

/// The free places of a machine, ports first.
///
/// # Errors
/// What is wrong with the answer of `query-pci`.
pub(super) fn free(answer: Value) -> Result<Vec<Slot>, String> {
    let buses: Vec<Bus> = serde_json::from_value(answer).map_err(|e| e.to_string())?;
    let mut slots = Vec::new();
    for root in buses.iter().filter(|bus| bus.bus == 0) {
        below(&root.devices, "", &mut slots);
        let host = root.devices.iter().find(|device| (device.slot, device.function) == (0, 0));
        if host.is_some_and(|host| (host.id.vendor, host.id.device) == I440FX) {
            conventional("pci.0", &root.devices, "", &mut slots);
        }
    }
    slots.sort_by_key(|slot| !slot.port);
    Ok(slots)
}

fn below(devices: &[Device], path: &str, slots: &mut Vec<Slot>) {
    for device in devices {
        let Some(bridge) = &device.pci_bridge else { continue };
        let path = format!("{path}{:02x}.{}/", device.slot, device.function);
        let id = (device.id.vendor, device.id.device);
        if !device.qdev_id.is_empty() && PORTS.contains(&id) {
            if bridge.devices.is_empty() {
                let bus = device.qdev_id.clone();
                slots.push(Slot { bus, slot: 0, path: format!("{path}00"), port: true });
            }
        } else if !device.qdev_id.is_empty() && BRIDGES.contains(&id) {
            conventional(&device.qdev_id, &bridge.devices, &path, slots);
        }
        below(&bridge.devices, &path, slots);
    }
}

fn conventional(bus: &str, devices: &[Device], path: &str, slots: &mut Vec<Slot>) {
    for slot in (1..32).filter(|slot| devices.iter().all(|device| device.slot != *slot)) {
        slots.push(Slot { bus: bus.to_owned(), slot, path: format!("{path}{slot:02x}"), port: false });
    }
}

/// Whether a device hangs on the bus of a port, from what `qom-list` says of it.
pub(super) fn is_taken(properties: &Value) -> bool {
    let name = |property: &Value| property["name"].as_str().is_some_and(|name| name.starts_with("child["));
    properties.as_array().is_some_and(|list| list.iter().any(name))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn device(slot: u8, function: u8, vendor: u32, device: u32, id: &str, bridge: Option<Value>) -> Value {
        let mut value = json!({
            "bus": 0, "slot": slot, "function": function, "qdev_id": id, "irq_pin": 0, "regions": [],
            "class_info": {"class": 0}, "id": {"vendor": vendor, "device": device}
        });
        if let Some(bridge) = bridge {
            value["pci_bridge"] =
                json!({"bus": {"number": 0, "secondary": 1, "subordinate": 1}, "devices": bridge});
        }
        value
    }

    /// As QEMU 10 describes `-M q35` with root ports, one of them taken, and a bridge.
    #[test]
    fn q35_has_its_ports_and_bridges() {
        let rng = device(0, 0, 0x1af4, 0x1044, "rng", None);
        let nic = device(3, 0, 0x1af4, 0x1041, "nic", None);
        let answer = json!([{"bus": 0, "devices": [
            device(0, 0, 0x8086, 0x29c0, "", None),
            device(1, 0, 0x1b36, 0x000c, "rp0", Some(json!([rng]))),
            device(10, 1, 0x1b36, 0x000c, "rp1", Some(json!([]))),
            device(11, 0, 0x1b36, 0x000c, "", Some(json!([]))),
            device(12, 0, 0x1b36, 0x0001, "br0", Some(json!([nic]))),
            device(31, 2, 0x8086, 0x2922, "", None),
        ]}]);
        let slots = free(answer).unwrap();
        assert_eq!(slots[0], Slot { bus: "rp1".into(), slot: 0, path: "0a.1/00".into(), port: true });
        assert_eq!(slots.len(), 1 + 30);
        assert_eq!(slots[1], Slot { bus: "br0".into(), slot: 1, path: "0c.0/01".into(), port: false });
        assert!(slots.iter().all(|slot| (slot.bus.as_str(), slot.slot) != ("br0", 3)));
    }

    #[test]
    fn pc_has_its_root_bus() {
        let answer = json!([{"bus": 0, "devices": [
            device(0, 0, 0x8086, 0x1237, "", None),
            device(1, 0, 0x8086, 0x7000, "", None),
            device(1, 1, 0x8086, 0x7010, "", None),
        ]}]);
        let slots = free(answer).unwrap();
        assert_eq!(slots[0], Slot { bus: "pci.0".into(), slot: 2, path: "02".into(), port: false });
        assert_eq!(slots.len(), 30);
    }

    #[test]
    fn ports_behind_a_switch_have_long_paths() {
        let down = device(2, 0, 0x104c, 0x8233, "down", Some(json!([])));
        let up = device(0, 0, 0x104c, 0x8232, "up", Some(json!([down])));
        let answer = json!([{"bus": 0, "devices": [
            device(0, 0, 0x8086, 0x29c0, "", None),
            device(1, 0, 0x8086, 0x3420, "root", Some(json!([up]))),
        ]}]);
        let paths: Vec<_> = free(answer).unwrap().into_iter().map(|slot| slot.path).collect();
        assert_eq!(paths, ["01.0/00.0/02.0/00"]);
    }

    #[test]
    fn what_is_no_list_of_devices_is_refused() {
        assert!(free(json!({"bus": 0})).is_err());
        assert!(free(json!([{"bus": 0, "devices": [{"slot": 400}]}])).is_err());
        assert_eq!(free(json!([])).unwrap(), []);
    }

    #[test]
    fn a_port_is_taken_by_its_child() {
        assert!(is_taken(
            &json!([{"name": "type", "type": "string"}, {"name": "child[0]", "type": "link<x>"}])
        ));
        assert!(!is_taken(&json!([{"name": "hotplug-handler", "type": "link<y>"}])));
    }
}
