//! A QEMU that is none: its monitor, which keeps account of what it was told to have, and fails where it is told to.
//! For faults only; what works is tried with real ones. The tests of `shuntctl` use it, too.
#![allow(dead_code)]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

/// What goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// It does not greet.
    Mute,
    /// What greets is no monitor.
    Stranger,
    /// It closes the connection instead of doing this.
    Closes(&'static str),
    /// It closes the connection instead of doing this, and listens no more.
    Dies(&'static str),
    /// It does not answer this.
    Silent(&'static str),
    /// It answers this with something that is no JSON.
    Garbage(&'static str),
    /// It answers this as if it were another command.
    Mistaken(&'static str),
    /// It refuses this, so often, with these words.
    Refuses(&'static str, usize, &'static str),
    /// Its guest lets go of nothing.
    Clings,
    /// Its guest says that it does not let go.
    Objects,
}

#[derive(Default)]
struct Inside {
    parts: BTreeSet<String>,
    commands: Vec<String>,
}

pub(crate) struct Qmp {
    pub(crate) path: PathBuf,
    fault: Arc<Mutex<Fault>>,
    inside: Arc<Mutex<Inside>>,
}

impl Qmp {
    pub(crate) fn start(path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let qmp = Self {
            path: path.to_path_buf(),
            fault: Arc::new(Mutex::new(Fault::None)),
            inside: Arc::default(),
        };
        let (fault, inside, path) = (qmp.fault.clone(), qmp.inside.clone(), path.to_path_buf());
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                serve(stream, &fault, &inside);
                if matches!(*fault.lock().unwrap(), Fault::Dies(_)) && !path.exists() {
                    return;
                }
            }
        });
        qmp
    }

    /// What goes wrong from now on.
    pub(crate) fn fault(&self, fault: Fault) {
        *self.fault.lock().unwrap() = fault;
        self.inside.lock().unwrap().commands.clear();
    }

    /// Character devices, netdevs and devices that it has.
    pub(crate) fn parts(&self) -> Vec<String> {
        self.inside.lock().unwrap().parts.iter().cloned().collect()
    }

    /// The commands since the last change of faults.
    pub(crate) fn commands(&self) -> Vec<String> {
        self.inside.lock().unwrap().commands.clone()
    }
}

/// Devices of `-M q35` with two root ports.
fn pci() -> Value {
    let device = |slot: u8, vendor: u32, device: u32, id: &str| {
        json!({"bus": 0, "slot": slot, "function": 0, "qdev_id": id, "irq_pin": 0, "regions": [],
               "class_info": {"class": 0}, "id": {"vendor": vendor, "device": device}})
    };
    let port = |slot: u8, id: &str| {
        let mut port = device(slot, 0x1b36, 0x000c, id);
        port["pci_bridge"] = json!({"devices": []});
        port
    };
    json!([{"bus": 0, "devices": [device(0, 0x8086, 0x29c0, ""), port(1, "rp0"), port(2, "rp1")]}])
}

fn serve(stream: UnixStream, fault: &Mutex<Fault>, inside: &Mutex<Inside>) -> Option<()> {
    let mut to = stream.try_clone().ok()?;
    let mut say = move |value: Value| writeln!(to, "{value}").ok();
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
    match *fault.lock().unwrap() {
        Fault::Mute => {
            // Until the other one has enough.
            for line in lines {
                line.ok()?;
            }
            return None;
        }
        Fault::Stranger => say(json!({"hello": "world"}))?,
        _ => say(json!({"QMP": {"version": {}, "capabilities": []}}))?,
    };
    while let Some(line) = lines.next() {
        let asked: Value = serde_json::from_str(&line.ok()?).ok()?;
        let command = asked["execute"].as_str()?.to_owned();
        inside.lock().unwrap().commands.push(command.clone());
        let mut now = fault.lock().unwrap();
        match &mut *now {
            Fault::Closes(at) if *at == command => {
                // Only once: who comes again is served.
                *now = Fault::None;
                return None;
            }
            Fault::Dies(at) if *at == command => {
                let address = stream.local_addr().ok()?;
                std::fs::remove_file(address.as_pathname()?).ok()?;
                return None;
            }
            Fault::Silent(at) if *at == command => {
                *now = Fault::None;
                drop(now);
                for line in lines {
                    line.ok()?;
                }
                return None;
            }
            Fault::Garbage(at) if *at == command => {
                *now = Fault::None;
                let mut to = stream.try_clone().ok()?;
                to.write_all(b"\xff\xfe{]\n").ok()?;
                continue;
            }
            Fault::Mistaken(at) if *at == command => {
                *now = Fault::None;
                say(json!({"return": {}, "id": 4711}))?;
                continue;
            }
            Fault::Refuses(at, times, words) if *at == command && *times > 0 => {
                *times -= 1;
                say(json!({"error": {"class": "GenericError", "desc": words}, "id": asked["id"]}))?;
                continue;
            }
            _ => {}
        }
        let fault = now.clone();
        drop(now);
        let mut inside = inside.lock().unwrap();
        let id = asked["arguments"]["id"].as_str().unwrap_or_default().to_owned();
        let mut event = None;
        let answer = match command.as_str() {
            "query-pci" => Ok(pci()),
            "qom-list" => Ok(json!([{"name": "type", "type": "string"}])),
            "chardev-add" | "netdev_add" | "device_add" => match inside.parts.insert(id) {
                true => Ok(json!({})),
                false => Err(("GenericError", "Duplicate ID")),
            },
            "device_del" if !inside.parts.contains(&id) => Err(("DeviceNotFound", "not found")),
            "device_del" => {
                if fault != Fault::Clings && fault != Fault::Objects {
                    inside.parts.remove(&id);
                }
                let name =
                    if fault == Fault::Objects { "DEVICE_UNPLUG_GUEST_ERROR" } else { "DEVICE_DELETED" };
                event = (fault != Fault::Clings).then(|| json!({"event": name, "data": {"device": id}}));
                Ok(json!({}))
            }
            "netdev_del" | "chardev-remove" => {
                if inside.parts.remove(&id) {
                    Ok(json!({}))
                } else {
                    Err(("GenericError", "not found"))
                }
            }
            _ => Ok(json!({})),
        };
        match answer {
            Ok(value) => say(json!({"return": value, "id": asked["id"]}))?,
            Err((class, words)) => say(json!({"error": {"class": class, "desc": words}, "id": asked["id"]}))?,
        };
        if let Some(event) = event {
            say(event)?;
        }
    }
    Some(())
}
