//! What the configuration file describes, made.
#![forbid(unsafe_code)]

use crate::config::Config;
use crate::l3::route::rib::Terms;
use crate::refusal::Refusal;
use crate::switch::Switch;

impl Switch {
    /// Makes what a configuration describes; to be called once, before anything else is made.
    ///
    /// # Errors
    /// Something cannot be made, with where it is described. The switch is to be dropped then.
    pub fn configure(&mut self, config: Config) -> Result<(), Refusal> {
        let layer3 = config.layer3;
        layer3.waiting.iter().for_each(|line| tracing::warn!("{line}"));
        layer3.conntrack.apply(&mut self.router)?;
        self.set_rebalancing(config.rebalance);
        for (at, bridge) in config.bridges {
            self.add_bridge(bridge).map_err(|refusal| at.refuse(refusal))?;
        }
        for (at, port) in config.ports {
            let name = port.name;
            self.add_port(port)
                .map_err(|refusal| at.refuse(format_args!("port {:?}: {refusal}", name.as_str())))?;
        }
        for (at, interface) in &layer3.interfaces {
            self.add_interface(interface.clone()).map_err(|refusal| at.refuse(refusal))?;
        }
        for (at, neighbour) in &layer3.neighbours {
            self.add_neighbour(*neighbour).map_err(|refusal| at.refuse(refusal))?;
        }
        if !layer3.routes.is_empty() {
            let routes = layer3.routes.iter().map(|(_, route)| *route).collect();
            let loaded = self.load_routes(routes, Terms::Kept, false);
            loaded.map_err(|(index, refusal)| layer3.route_at(index, &refusal))?;
        }
        // Rules are compiled all at once: each on its own would have thousands take minutes.
        layer3.add_rules(&mut self.router)?;
        self.set_policy(layer3.forward);
        for (at, dhcp) in &layer3.dhcp {
            self.set_dhcp(dhcp.clone()).map_err(|refusal| at.refuse(refusal))?;
        }
        for (at, container) in config.containers {
            self.add_container(container).map_err(|refusal| at.refuse(refusal))?;
        }
        for (at, nic) in config.nics {
            self.set_nic_port(nic).map_err(|refusal| at.refuse(refusal))?;
        }
        for (at, fdb) in config.fdb {
            self.fdb_add(&fdb.bridge, fdb.mac, &fdb.port, fdb.vlan).map_err(|refusal| at.refuse(refusal))?;
        }
        layer3.ipvs.apply(&self.router.ipvs)?;
        for (at, check) in &layer3.checks {
            // The service may come later, by command.
            self.start_check(check.clone()).map_err(|refusal| at.refuse(refusal))?;
        }
        for (at, daemon) in layer3.ipvs.daemons() {
            self.start_daemon(daemon).map_err(|error| at.refuse(error))?;
        }
        Ok(())
    }
}
