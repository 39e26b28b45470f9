#![forbid(unsafe_code)]
//! shunt as a candidate: `shuntd` with one worker, asked on its control socket.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Value, json};
use shunt_tests::process::Process;

use super::layer3::{self, ADDRESSES, GATEWAYS, GUESTS, LINKS, NETWORKS, SERVICE_PORT};
use super::{Candidate, Site, Task, Wiring, await_start};

pub(super) fn missing(site: &Site) -> Option<String> {
    let path = site.programs.join("shuntd");
    (!path.exists()).then(|| format!("{} is not built", path.display()))
}

/// A connection to the control socket: newline-delimited JSON-RPC 2.0.
pub struct Control {
    stream: BufReader<UnixStream>,
    next: u64,
}

#[derive(Deserialize)]
struct Answer {
    result: Option<Value>,
    error: Option<Value>,
}

impl Control {
    /// Connects; answers must come within two minutes each: a million routes take some time.
    pub fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(Duration::from_secs(120)))?;
        Ok(Self { stream: BufReader::new(stream), next: 1 })
    }

    /// One request and its answer.
    pub fn call(&mut self, method: &str, params: Value) -> Result<Value> {
        let request = json!({ "jsonrpc": "2.0", "id": self.next, "method": method, "params": params });
        self.next += 1;
        self.stream.get_mut().write_all(format!("{request}\n").as_bytes()).context(method.to_owned())?;
        let mut line = String::new();
        self.stream.read_line(&mut line).with_context(|| format!("no answer to {method}"))?;
        let answer: Answer = serde_json::from_str(&line).with_context(|| format!("{method}: {line}"))?;
        if let Some(error) = answer.error {
            anyhow::bail!("{method} {params}: {error}");
        }
        Ok(answer.result.unwrap_or(Value::Null))
    }
}

/// A running `shuntd` with a bridge `bench`.
pub struct Shunt {
    process: Process,
    control: Control,
    sockets: Vec<PathBuf>,
}

impl Shunt {
    /// Its control socket.
    pub fn control(&mut self) -> &mut Control {
        &mut self.control
    }

    /// Starts it; see [`super::Kind::launch`]. `dir` exists and is empty.
    pub fn launch(site: &Site, dir: &Path, wiring: &Wiring) -> Result<Self> {
        let control = dir.join("control.sock");
        let config = dir.join("shunt.toml");
        let limit = match wiring.task {
            Task::Snat { limit } | Task::Balance { limit, .. } => format!("[conntrack]\nlimit = {limit}\n"),
            Task::Bridge | Task::Route { .. } => String::new(),
        };
        std::fs::write(&config, limit)?;
        let argv: Vec<String> = [
            site.programs.join("shuntd").display().to_string(),
            "--control".into(),
            control.display().to_string(),
            "--state-dir".into(),
            dir.join("state").display().to_string(),
            "--cores".into(),
            site.switch_core.to_string(),
            "--poll".into(),
            if wiring.busy { "busy" } else { "adaptive" }.into(),
            "--log".into(),
            "warn".into(),
            "--config".into(),
            config.display().to_string(),
        ]
        .into();
        let mut process = Process::start("shuntd", &argv, &dir.join("shuntd.log"), None);
        let mut control = await_start("its control socket", &mut process, Duration::from_secs(30), |_| {
            Control::connect(&control).ok()
        })?;
        let bridge = |n: usize| match wiring.task {
            Task::Bridge => "bench",
            _ => LINKS[n],
        };
        for name in (0..wiring.sockets.max(1)).map(bridge).collect::<BTreeSet<_>>() {
            control.call("bridge.add", json!({ "name": name }))?;
        }
        let mut sockets = Vec::new();
        for n in 0..wiring.sockets {
            let path = dir.join(format!("v{n}"));
            control.call(
                "port.add",
                json!({ "name": format!("v{n}"), "bridge": bridge(n), "vhost_user": path, "queues": wiring.queues }),
            )?;
            sockets.push(path);
        }
        if wiring.task != Task::Bridge {
            route(&mut control, wiring.task)?;
        }
        for (device, netns) in &wiring.taps {
            let queues = wiring.queues;
            control.call(
                "port.add",
                json!({ "name": device, "bridge": "bench", "tap": device, "netns": netns, "queues": queues }),
            )?;
        }
        Ok(Self { process, control, sockets })
    }
}

/// Interfaces, neighbours, routes and translation of [`super::layer3`].
fn route(control: &mut Control, task: Task) -> Result<()> {
    for (n, link) in LINKS.into_iter().enumerate() {
        let guest = layer3::text(layer3::guests()[n]);
        control.call(
            "interface.add",
            json!({ "name": link, "bridge": link, "address": [ADDRESSES[n]], "mac": layer3::text(GATEWAYS[n]) }),
        )?;
        // testpmd's flowgen sends under another address than it is reached at.
        control.call("fdb.add", json!({ "bridge": link, "mac": guest, "port": format!("v{n}") }))?;
        control.call("neighbour.add", json!({ "interface": link, "address": GUESTS[n], "mac": guest }))?;
        control.call("route.add", json!({ "prefix": NETWORKS[n], "via": GUESTS[n] }))?;
    }
    match task {
        Task::Bridge => (),
        Task::Route { routes } => {
            let table = layer3::internet(routes);
            let mut left = table.len();
            for part in table.chunks(100_000) {
                left -= part.len();
                let routes: Vec<Value> = part
                    .iter()
                    .map(|(address, length)| {
                        let prefix = format!("{}/{length}", Ipv4Addr::from(*address));
                        json!({ "prefix": prefix, "via": GUESTS[1] })
                    })
                    .collect();
                control.call("route.load", json!({ "routes": routes, "more": left > 0 }))?;
            }
        }
        Task::Snat { limit } => {
            one_port_may_have(control, limit)?;
            let rule = json!({ "source": NETWORKS[0], "out": LINKS[1], "to": layer3::TRANSLATED });
            control.call("nat.add-snat", rule)?;
        }
        Task::Balance { services, servers, scheduler, limit } => {
            one_port_may_have(control, limit)?;
            balance(control, services, servers, scheduler)?;
        }
    }
    Ok(())
}

/// Everything comes in by one port.
fn one_port_may_have(control: &mut Control, limit: u32) -> Result<()> {
    control.call("conntrack.set-limit", json!({ "port_quota": limit, "half_open": limit })).map(drop)
}

fn balance(control: &mut Control, services: u32, servers: u32, scheduler: &str) -> Result<()> {
    let mut changes = Vec::new();
    for n in 0..services {
        let service = format!("udp:{}:{SERVICE_PORT}", layer3::service(n));
        changes.push(json!({ "add-service": { "service": service, "scheduler": scheduler } }));
        for m in 0..servers {
            let address = format!("{}:{SERVICE_PORT}", layer3::server(n * servers + m));
            let server = json!({ "service": service, "address": address, "forward": "masquerade" });
            changes.push(json!({ "add-server": server }));
        }
    }
    let mut left = changes.len();
    for part in changes.chunks(20_000) {
        left -= part.len();
        control.call("ipvs.apply", json!({ "changes": part, "more": left > 0 }))?;
    }
    Ok(())
}

impl Candidate for Shunt {
    fn control(&mut self) -> Option<&mut Control> {
        Some(&mut self.control)
    }

    fn sockets(&self) -> &[PathBuf] {
        &self.sockets
    }

    fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    fn reset(&mut self) -> Result<()> {
        self.control.call("worker.list", json!({ "reset": true })).map(drop)
    }

    fn busy_cycles(&mut self) -> Result<Option<f64>> {
        let workers = self.control.call("worker.list", json!({}))?;
        let workers = workers.as_array().context("worker.list is no array")?;
        let (mut packets, mut cycles) = (0.0, 0.0);
        for worker in workers {
            let its = worker["packets"].as_f64().unwrap_or(0.0);
            packets += its;
            cycles += its * worker["busy_cycles_per_packet"].as_f64().unwrap_or(0.0);
        }
        Ok((packets > 0.0).then(|| cycles / packets))
    }

    fn report(&mut self) -> String {
        let of = |control: &mut Control, method| control.call(method, json!({})).unwrap_or_default();
        format!(
            "workers {}\nports {}",
            of(&mut self.control, "worker.list"),
            of(&mut self.control, "port.list")
        )
    }
}
