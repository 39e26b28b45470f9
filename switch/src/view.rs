//! What the switch tells about itself: the answers of the control socket, made from its state.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use vhost_backend::device;

use crate::clock;
use crate::config::spec::Attachment as Asked;
use crate::config::{Mac, Name, Rebalancing};
use crate::control::api;
use crate::port::Attachment;
use crate::refusal::Refusal;
use crate::spread::{Move, Placed, Plan};
use crate::switch::{Bridge, Member, Switch};

impl Switch {
    /// Version, age and sizes.
    pub fn status(&self) -> api::Status {
        api::Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            workers: self.workers.len(),
            ports: self.ports.len(),
            bridges: self.bridges.len(),
            poll: self.poll,
            interfaces: self.router.interfaces.len(),
            routes: self.router.rib.count(),
            host_commands: self.host_commands(),
            problems: self.problems(),
        }
    }

    /// All bridges, by name.
    pub fn bridges(&self) -> Vec<api::Bridge> {
        self.bridges.values().map(|bridge| self.bridge_view(bridge)).collect()
    }

    /// One bridge.
    ///
    /// # Errors
    /// No such bridge.
    pub fn bridge(&self, name: &str) -> Result<api::Bridge, Refusal> {
        Ok(self.bridge_view(self.find_bridge(name)?))
    }

    fn bridge_view(&self, bridge: &Bridge) -> api::Bridge {
        api::Bridge {
            name: bridge.spec.name,
            ageing: bridge.fdb.ageing(),
            fdb_limit: bridge.fdb.limit(),
            fdb_entries: u64::from(bridge.fdb.len()),
            fdb_moves: bridge.fdb.moves(),
            fdb_refused: bridge.fdb.full(),
            ports: self.ports_of(bridge.spec.name.as_str()).iter().map(|member| member.spec.name).collect(),
            filter: bridge.spec.filter,
            interfaces: self
                .interfaces_on(bridge.spec.name.as_str())
                .map(|interface| interface.name)
                .collect(),
        }
    }

    /// All ports, by name.
    pub fn ports(&self) -> Vec<api::Port> {
        self.ports.values().map(|member| self.port_view(member)).collect()
    }

    /// One port.
    ///
    /// # Errors
    /// No such port.
    pub fn port(&self, name: &str) -> Result<api::Port, Refusal> {
        Ok(self.port_view(self.find_port(name)?))
    }

    fn port_view(&self, member: &Member) -> api::Port {
        let mut view = port_view(member);
        (view.guarded, view.leased_address) = self.guards.at(member.port.number());
        view
    }

    /// The forwarding database of one bridge or of all, by bridge, VLAN and address.
    ///
    /// # Errors
    /// No such bridge.
    pub fn fdb(&self, bridge: Option<&str>) -> Result<Vec<api::FdbEntry>, Refusal> {
        let mut entries: Vec<_> = self
            .fdb_entries(bridge)?
            .into_iter()
            .map(|(bridge, port, entry)| api::FdbEntry {
                bridge,
                mac: Mac(entry.key.mac()),
                vlan: entry.key.vlan(),
                port,
                fixed: entry.fixed,
                age_seconds: entry.age,
            })
            .collect();
        entries.sort_unstable_by_key(|entry| (entry.bridge, entry.vlan, entry.mac.0));
        Ok(entries)
    }

    /// The workers, with what they did since the start or the last reset.
    pub fn workers(&self) -> Vec<api::Worker> {
        let names = self.port_names();
        let mut queues = vec![Vec::new(); self.workers.len()];
        for placed in self.placed() {
            if let (Some(&port), Some(list)) = (names.get(&placed.queue.port), queues.get_mut(placed.worker))
            {
                let Placed { queue, load, pinned, .. } = placed;
                list.push(api::QueueRef { port, queue: queue.queue, load, pinned });
            }
        }
        let now = clock::cycles();
        let microseconds = |cycles: u64| cycles as f64 / clock::cycles_per_us() as f64;
        self.workers
            .iter()
            .zip(&self.baselines)
            .zip(queues)
            .map(|((worker, since), queues)| {
                let packets = worker.packets.get().saturating_sub(since.packets);
                let busy = worker.busy_cycles.get().saturating_sub(since.busy_cycles) as f64;
                let elapsed = now.saturating_sub(since.cycles).max(1) as f64;
                api::Worker {
                    id: worker.id,
                    core: Some(worker.core),
                    poll: self.poll,
                    queues,
                    packets,
                    batches: worker.batches.get().saturating_sub(since.batches),
                    busy_cycles_per_packet: if packets == 0 { 0.0 } else { busy / packets as f64 },
                    idle_share: (1.0 - busy / elapsed).clamp(0.0, 1.0),
                    longest_turn_us: microseconds(worker.longest_turn.get()),
                    longest_update_us: microseconds(worker.longest_update.get()),
                }
            })
            .collect()
    }

    fn port_names(&self) -> HashMap<u16, Name> {
        self.ports.iter().map(|(name, member)| (member.port.number(), *name)).collect()
    }

    /// A plan to spread queues anew, in words for others.
    pub(crate) fn rebalance_view(&self, plan: &Plan, done: bool) -> api::Rebalance {
        let names = self.port_names();
        let moves = plan.moves.iter().filter_map(|step| {
            let port = *names.get(&step.queue.port)?;
            let Move { queue, from, to, load } = *step;
            Some(api::QueueMove { port, queue: queue.queue, from, to, load })
        });
        api::Rebalance {
            done,
            window: self.load_window(),
            moves: moves.collect(),
            before: plan.before.clone(),
            after: plan.after.clone(),
            improvement: plan.improvement(),
        }
    }

    /// When queues are spread anew without being asked.
    pub fn rebalancing(&self) -> api::WorkerSettingsList {
        let Rebalancing { auto, interval, load_threshold, improvement_threshold } = self.rebalancer.settings;
        let rebalanced = self.rebalancer.automatic;
        api::WorkerSettingsList { auto, interval, load_threshold, improvement_threshold, rebalanced }
    }
}

fn port_view(member: &Member) -> api::Port {
    let spec = &member.spec;
    let port = &member.port;
    let (state, reason) = state(port.attachment());
    let mut view = api::Port {
        name: spec.name,
        kind: spec.attachment.kind(),
        bridge: spec.bridge,
        state,
        reason,
        mac: spec.mac,
        mtu: port.mtu(),
        queues: port.queues() as u16,
        features: Vec::new(),
        rx: port.received().into(),
        tx: port.transmitted().into(),
        pins: member.pins.iter().map(|(&queue, &core)| api::Pinned { queue, core }).collect(),
        vhost_user: None,
        role: None,
        device: None,
        netns: None,
        persist: false,
        guard: spec.guard,
        guarded: false,
        leased_address: Vec::new(),
        allow_address: spec.allow.clone(),
        ingress_rate: spec.limits.ingress.map(|rate| rate.bits),
        ingress_burst: spec.limits.ingress.map(|rate| rate.burst),
        egress_rate: spec.limits.egress.map(|rate| rate.bits),
        egress_burst: spec.limits.egress.map(|rate| rate.burst),
    };
    match &spec.attachment {
        Asked::VhostUser { path, role } => {
            view.vhost_user = Some(path.clone());
            view.role = Some(*role);
        }
        Asked::Tap { device, netns, persist } => {
            view.device = Some(device.clone());
            view.netns = netns.clone();
            view.persist = *persist;
        }
        Asked::Netdev { device, netns } => {
            view.device = Some(device.clone());
            view.netns = netns.clone();
        }
    }
    match port.attachment() {
        Attachment::Vhost(device) => {
            view.features = vhost_backend::features::names(device.features());
        }
        Attachment::Tap(tap) => view.mac = Some(Mac(tap.mac())),
        Attachment::Netdev(netdev) => view.mac = Some(Mac(netdev.mac())),
    }
    view
}

pub(crate) fn state(attachment: &Attachment) -> (api::State, Option<String>) {
    let link = match attachment {
        Attachment::Vhost(device) => {
            let (state, reason) = device.state();
            let state = match state {
                device::State::Connecting => api::State::Connecting,
                device::State::Down => api::State::Down,
                device::State::Up => api::State::Up,
                device::State::Broken => api::State::Broken,
            };
            return (state, Some(reason).filter(|reason| !reason.is_empty()));
        }
        Attachment::Tap(tap) => tap.link(),
        Attachment::Netdev(netdev) => netdev.link(),
    };
    (if link.up { api::State::Up } else { api::State::Down }, link.reason)
}
