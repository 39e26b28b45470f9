//! The daemon, bridges, ports, forwarding databases, workers.
#![forbid(unsafe_code)]

use super::super::api::{self, Done};
use super::super::rpc::Error;
use super::{At, Handle};
use crate::config::spec::{self, BridgeChange};
use crate::config::{BridgeSpec, PortChange, PortSpec, RebalanceChange};

impl Handle for api::StatusShow {
    fn handle(self, at: &mut At<'_>) -> Result<api::Status, Error> {
        Ok(at.switch.status())
    }
}

impl Handle for api::BridgeAdd {
    fn handle(self, at: &mut At<'_>) -> Result<api::Bridge, Error> {
        at.switch.add_bridge(BridgeSpec::try_from(&self)?)?;
        tracing::info!("bridge {} added", self.name);
        Ok(at.switch.bridge(&self.name)?)
    }
}

impl Handle for api::BridgeDel {
    fn handle(self, at: &mut At<'_>) -> Result<Done, Error> {
        at.switch.del_bridge(&self.name)?;
        tracing::info!("bridge {} deleted", self.name);
        Ok(Done {})
    }
}

impl Handle for api::BridgeList {
    fn handle(self, at: &mut At<'_>) -> Result<Vec<api::Bridge>, Error> {
        Ok(at.switch.bridges())
    }
}

impl Handle for api::BridgeShow {
    fn handle(self, at: &mut At<'_>) -> Result<api::Bridge, Error> {
        Ok(at.switch.bridge(&self.name)?)
    }
}

impl Handle for api::BridgeSet {
    fn handle(self, at: &mut At<'_>) -> Result<api::Bridge, Error> {
        at.switch.set_bridge(&self.name, &BridgeChange::try_from(&self)?)?;
        tracing::info!("bridge {} changed", self.name);
        Ok(at.switch.bridge(&self.name)?)
    }
}

impl Handle for api::PortAdd {
    fn handle(self, at: &mut At<'_>) -> Result<api::Port, Error> {
        let port = PortSpec::try_from(&self)?;
        let (kind, bridge) = (port.attachment.kind(), port.bridge);
        at.switch.add_port(port)?;
        tracing::info!("port {} added to bridge {bridge} ({})", self.name, kind.as_str());
        Ok(at.switch.port(&self.name)?)
    }
}

impl Handle for api::PortDel {
    fn handle(self, at: &mut At<'_>) -> Result<Done, Error> {
        at.switch.del_port(&self.name)?;
        tracing::info!("port {} deleted", self.name);
        Ok(Done {})
    }
}

impl Handle for api::PortList {
    fn handle(self, at: &mut At<'_>) -> Result<Vec<api::Port>, Error> {
        Ok(at.switch.ports())
    }
}

impl Handle for api::PortShow {
    fn handle(self, at: &mut At<'_>) -> Result<api::Port, Error> {
        Ok(at.switch.port(&self.name)?)
    }
}

impl Handle for api::PortSet {
    fn handle(self, at: &mut At<'_>) -> Result<api::Port, Error> {
        at.switch.set_port(&self.name, PortChange::try_from(&self)?)?;
        tracing::info!("port {} changed", self.name);
        Ok(at.switch.port(&self.name)?)
    }
}

impl Handle for api::FdbList {
    fn handle(self, at: &mut At<'_>) -> Result<api::FdbPage, Error> {
        at.dispatcher.listings.page(at.connection, self.next, || at.switch.fdb(self.bridge.as_deref()))
    }
}

impl Handle for api::FdbAdd {
    fn handle(self, at: &mut At<'_>) -> Result<Done, Error> {
        let (mac, vlan) = (spec::mac("mac", &self.mac)?, spec::vlan(self.vlan)?);
        at.switch.fdb_add(&self.bridge, mac, &self.port, vlan)?;
        Ok(Done {})
    }
}

impl Handle for api::FdbDel {
    fn handle(self, at: &mut At<'_>) -> Result<Done, Error> {
        let (mac, vlan) = (spec::mac("mac", &self.mac)?, spec::vlan(self.vlan)?);
        at.switch.fdb_del(&self.bridge, mac, vlan)?;
        Ok(Done {})
    }
}

impl Handle for api::FdbFlush {
    fn handle(self, at: &mut At<'_>) -> Result<api::Flushed, Error> {
        let removed = at.switch.fdb_flush(self.bridge.as_deref(), self.port.as_deref())?;
        Ok(api::Flushed { removed })
    }
}

impl Handle for api::WorkerList {
    fn handle(self, at: &mut At<'_>) -> Result<Vec<api::Worker>, Error> {
        let workers = at.switch.workers();
        if self.reset {
            at.switch.reset_workers();
        }
        Ok(workers)
    }
}

impl Handle for api::WorkerRebalance {
    fn handle(self, at: &mut At<'_>) -> Result<api::Rebalance, Error> {
        let plan = at.switch.plan_rebalance();
        // Before: what is counted afterwards is counted at other workers.
        let view = at.switch.rebalance_view(&plan, !self.dry_run);
        if !self.dry_run {
            at.switch.carry_out(&plan);
            tracing::info!("rebalanced: {} queues moved", plan.moves.len());
        }
        Ok(view)
    }
}

impl Handle for api::WorkerSettings {
    fn handle(self, at: &mut At<'_>) -> Result<api::WorkerSettingsList, Error> {
        Ok(at.switch.rebalancing())
    }
}

impl Handle for api::WorkerSet {
    fn handle(self, at: &mut At<'_>) -> Result<api::WorkerSettingsList, Error> {
        at.switch.set_rebalancing(RebalanceChange::try_from(&self)?);
        tracing::info!("rebalancing changed");
        Ok(at.switch.rebalancing())
    }
}

impl Handle for api::StatsShow {
    fn handle(self, at: &mut At<'_>) -> Result<Vec<api::PortStats>, Error> {
        let ports = match &self.port {
            Some(name) => vec![at.switch.port(name)?],
            None => at.switch.ports(),
        };
        let stats = |port: api::Port| api::PortStats { port: port.name, rx: port.rx, tx: port.tx };
        Ok(ports.into_iter().map(stats).collect())
    }
}
