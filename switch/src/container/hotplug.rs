//! A NIC into a running QEMU, and out of it: chardev, netdev, device, each by its own QMP command.
//!
//! What was done is kept in a list; a failure half-way does it all back, in the opposite order, over a new connection
//! if the old one is gone. Removal waits for `DEVICE_DELETED`, for it is the guest that lets go of a device; whatever is
//! found to be gone already counts as removed, so that a removal can be tried again at any point where it failed.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::qmp::{Event, Qmp, QmpError};
use super::slots::{self, Slot};
use crate::refusal::Refusal;

/// How long a guest may take to let go of a device.
pub(super) const RELEASE: Duration = Duration::from_secs(15);
/// How often it is asked again: one that boots does not hear it.
const ASK_AGAIN: Duration = Duration::from_secs(3);
/// The least MTU that a driver of virtio-net takes over (Linux' ETH_MIN_MTU).
pub(super) const HOST_MTU_MIN: u16 = 68;

/// What is behind a NIC, as QEMU sees it.
#[derive(Debug)]
pub(crate) enum Backend {
    /// A vhost-user socket, and whether QEMU listens there.
    VhostUser { path: PathBuf, listens: bool },
    /// Descriptors of a TAP device, one a queue.
    Descriptors(Vec<File>),
    /// A TAP device that QEMU opens.
    Named(String),
}

/// A NIC to be plugged in.
#[derive(Debug)]
pub(crate) struct Plug {
    /// The monitor.
    pub(super) qmp: PathBuf,
    /// What the identifiers of its parts are made of: the NIC's name in the container.
    pub(super) name: String,
    /// What is behind it.
    pub(super) backend: Backend,
    /// Its MAC address.
    pub(super) mac: String,
    /// Queue pairs.
    pub(super) pairs: u16,
    /// Its MTU.
    pub(super) mtu: u16,
}

/// Identifiers of the parts of a NIC.
fn chardev(name: &str) -> String {
    format!("shunt-chr-{name}")
}

fn netdev(name: &str) -> String {
    format!("shunt-net-{name}")
}

fn device(name: &str) -> String {
    format!("shunt-nic-{name}")
}

/// Something that can be undone.
enum Done {
    Chardev(String),
    Descriptor(String),
    Netdev(String),
    Device(String),
}

/// A NIC that is on its way into QEMU.
struct Plugging<'a> {
    qmp: Qmp,
    plug: &'a Plug,
    done: Vec<Done>,
}

/// Plugs a NIC in. Says where it is, as Kata writes it.
///
/// # Errors
/// QEMU is not there, refuses something, or has no place for it. All that was done is undone, unless the message says
/// what was not.
pub(super) fn plug(plug: &Plug, called_off: &Arc<AtomicBool>) -> Result<String, Refusal> {
    match attempt(plug, called_off) {
        // The identifiers are nobody else's: a daemon that was killed half-way left it there.
        Err((true, refusal)) => {
            tracing::warn!("NIC {} is in QEMU already ({refusal}): taken out first", plug.name);
            unplug(&plug.qmp, &plug.name, called_off, RELEASE)?;
            attempt(plug, called_off).map_err(|(_, refusal)| refusal)
        }
        done => done.map_err(|(_, refusal)| refusal),
    }
}

/// One try. Says with the refusal whether a part of that identifier was there.
fn attempt(plug: &Plug, called_off: &Arc<AtomicBool>) -> Result<String, (bool, Refusal)> {
    let qmp = Qmp::connect(&plug.qmp, called_off).map_err(|e| (false, Refusal::new(e.to_string())))?;
    let mut plugging = Plugging { qmp, plug, done: Vec::new() };
    plugging.run().map_err(|error| (error.refusal().is_some_and(is_duplicate), plugging.undo(&error)))
}

impl Plugging<'_> {
    fn run(&mut self) -> Result<String, QmpError> {
        let (name, pairs) = (self.plug.name.clone(), self.plug.pairs);
        let id = netdev(&name);
        match &self.plug.backend {
            Backend::VhostUser { path, listens } => {
                let chardev = chardev(&name);
                self.add_chardev(&chardev, &path.display().to_string(), *listens)?;
                self.done.push(Done::Chardev(chardev.clone()));
                let arguments = json!({"type": "vhost-user", "id": id, "chardev": chardev, "queues": pairs});
                self.qmp.command("netdev_add", arguments)?;
            }
            Backend::Descriptors(files) => {
                let mut names = Vec::new();
                for (number, file) in files.iter().enumerate() {
                    let descriptor = format!("shunt-fd-{name}-{number}");
                    self.qmp.command_with("getfd", json!({"fdname": descriptor}), &[file])?;
                    self.done.push(Done::Descriptor(descriptor.clone()));
                    names.push(descriptor);
                }
                let key = if names.len() == 1 { "fd" } else { "fds" };
                let mut arguments = json!({"type": "tap", "id": id, "vhost": false});
                arguments[key] = names.join(":").into();
                self.qmp.command("netdev_add", arguments)?;
                // They are the netdev's now.
                self.done.retain(|done| !matches!(done, Done::Descriptor(_)));
            }
            Backend::Named(device) => {
                let mut arguments = json!({"type": "tap", "id": id, "ifname": device, "script": "no", "downscript": "no", "vhost": false});
                if pairs > 1 {
                    arguments["queues"] = pairs.into();
                }
                self.qmp.command("netdev_add", arguments)?;
            }
        }
        self.done.push(Done::Netdev(id));
        self.add_device()
    }

    /// QEMU 9.2 and later have the time between attempts in milliseconds, earlier ones in seconds.
    fn add_chardev(&mut self, id: &str, path: &str, listens: bool) -> Result<(), QmpError> {
        let address = json!({"type": "unix", "data": {"path": path}});
        let ways: &[Value] = match listens {
            true => &[json!({"server": true, "wait": false})],
            false => {
                &[json!({"server": false, "reconnect-ms": 500}), json!({"server": false, "reconnect": 1})]
            }
        };
        let mut result = Ok(());
        for way in ways {
            let mut data = way.clone();
            data["addr"] = address.clone();
            let arguments = json!({"id": id, "backend": {"type": "socket", "data": data}});
            result = self.qmp.command("chardev-add", arguments).map(|_| ());
            let unknown = |e: &QmpError| e.refusal().is_some_and(|text| text.contains("reconnect"));
            if !result.as_ref().is_err_and(unknown) {
                break;
            }
        }
        result
    }

    fn add_device(&mut self) -> Result<String, QmpError> {
        let plug = self.plug;
        let id = device(&plug.name);
        let answer = self.qmp.command("query-pci", json!({}))?;
        let full =
            |message: String| QmpError::Refused { command: "device_add", class: "NoSlot".into(), message };
        let places =
            slots::free(answer).map_err(|why| full(format!("query-pci is not understood: {why}")))?;
        let mut taken = None;
        for place in places {
            if place.port && self.is_taken(&place) {
                continue;
            }
            let mut arguments = json!({
                "driver": "virtio-net-pci", "id": id, "netdev": netdev(&plug.name), "mac": plug.mac,
                "bus": place.bus, "addr": format!("{:x}", place.slot), "romfile": ""
            });
            if plug.pairs > 1 {
                arguments["mq"] = true.into();
                arguments["vectors"] = (2 * u32::from(plug.pairs) + 2).into();
            }
            if plug.mtu >= HOST_MTU_MIN {
                arguments["host_mtu"] = plug.mtu.into();
            }
            match self.qmp.command("device_add", arguments) {
                Ok(_) => {
                    self.done.push(Done::Device(id));
                    return Ok(place.path);
                }
                Err(error) if error.refusal().is_some_and(is_full) => taken = Some(error),
                Err(error) => return Err(error),
            }
        }
        let hint = "start QEMU with empty root ports (-device pcie-root-port,id=...) on q35, or on pc";
        Err(taken.unwrap_or_else(|| full(format!("there is no free PCI slot for it: {hint}"))))
    }

    /// Whether the port has a device that `query-pci` does not show. QEMU need not know the question.
    fn is_taken(&mut self, place: &Slot) -> bool {
        let path = format!("/machine/peripheral/{0}/{0}", place.bus);
        self.qmp.command("qom-list", json!({"path": path})).is_ok_and(|list| slots::is_taken(&list))
    }

    /// Undoes what was done. Returns why it went no further.
    fn undo(self, error: &QmpError) -> Refusal {
        let Self { qmp, plug, mut done } = self;
        if done.is_empty() {
            return Refusal::new(error.to_string());
        }
        // The connection may be what failed, and what is left of it may be the answer to another question. A monitor
        // serves one at a time, so it is closed first. Nor does it matter any more that the daemon ends.
        let mut qmp = if error.refusal().is_some() {
            qmp
        } else {
            drop(qmp);
            match Qmp::connect(&plug.qmp, &Arc::default()) {
                Ok(qmp) => qmp,
                Err(again) => {
                    let lost = format!("{error}; what was done until then could not be undone: {again}");
                    return Refusal::new(lost);
                }
            }
        };
        let mut left = Vec::new();
        while let Some(done) = done.pop() {
            let undone = match &done {
                Done::Chardev(id) => remove(&mut qmp, "chardev-remove", id),
                Done::Netdev(id) => remove(&mut qmp, "netdev_del", id),
                Done::Device(id) => release(&mut qmp, id, Instant::now() + RELEASE).map(|_| ()),
                Done::Descriptor(name) => {
                    qmp.command("closefd", json!({"fdname": name})).map(|_| ()).or_else(missing)
                }
            };
            if let Err(why) = undone {
                left.push(why.to_string());
            }
        }
        match left.first() {
            None => Refusal::new(error.to_string()),
            Some(why) => Refusal::new(format!("{error}; not all could be undone: {why}")),
        }
    }
}

/// Whether a refusal means that the slot is taken.
fn is_full(message: &str) -> bool {
    ["in use by", "not available", "already occupied", "occupied by"]
        .iter()
        .any(|words| message.contains(words))
}

/// Whether a refusal means that there is a part of that identifier.
fn is_duplicate(message: &str) -> bool {
    message.contains("Duplicate ID") || message.contains("already exists")
}

fn missing(error: QmpError) -> Result<(), QmpError> {
    if error.is_missing() { Ok(()) } else { Err(error) }
}

fn remove(qmp: &mut Qmp, command: &'static str, id: &str) -> Result<(), QmpError> {
    qmp.command(command, json!({"id": id})).map(|_| ()).or_else(missing)
}

/// Has the guest let go of a device. False if it did not until the deadline.
fn release(qmp: &mut Qmp, id: &str, deadline: Instant) -> Result<bool, QmpError> {
    loop {
        match qmp.command("device_del", json!({"id": id})) {
            Err(error) if error.is_missing() => return Ok(true),
            // It was asked to before.
            Err(error) if error.refusal().is_some_and(|text| text.contains("already in the process")) => {}
            other => {
                other?;
            }
        }
        let until = deadline.min(Instant::now() + ASK_AGAIN);
        let about = |event: &Event| event.data["device"] == *id;
        let gone = |event: &Event| {
            about(event) && matches!(event.name.as_str(), "DEVICE_DELETED" | "DEVICE_UNPLUG_GUEST_ERROR")
        };
        match qmp.event(gone, until)? {
            Some(event) if event.name == "DEVICE_DELETED" => return Ok(true),
            Some(_) => return Ok(false),
            None if Instant::now() >= deadline => return Ok(false),
            None => {}
        }
    }
}

/// Takes a NIC out of QEMU.
///
/// # Errors
/// QEMU is not there, or the guest does not let go of it. Trying again goes on where it stopped.
pub(super) fn unplug(
    qmp: &std::path::Path,
    name: &str,
    called_off: &Arc<AtomicBool>,
    patience: Duration,
) -> Result<(), Refusal> {
    let gone = |e: QmpError| Refusal::new(e.to_string());
    let mut qmp = Qmp::connect(qmp, called_off).map_err(gone)?;
    let id = device(name);
    if !release(&mut qmp, &id, Instant::now() + patience).map_err(gone)? {
        let seconds = patience.as_secs();
        return Err(Refusal::new(format!(
            "the guest did not let go of {name} within {seconds} s: is its kernel up, with PCI hot-plug?"
        )));
    }
    remove(&mut qmp, "netdev_del", &netdev(name)).map_err(gone)?;
    remove(&mut qmp, "chardev-remove", &chardev(name)).map_err(gone)
}
