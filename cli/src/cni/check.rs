//! CHECK: is everything as ADD made it and told it?

use ipnet::IpNet;
use shunt_client::client::{Client, Failure};
use shunt_client::dan;
use shunt_switch::control::api;
use shunt_switch::port::assign;

use super::call::Call;
use super::config::Attachment;
use super::error::{CONTAINER, Error};
use super::result::Success;
use super::store::Record;
use super::undo::{is_masquerade, is_publish};

impl Call<'_> {
    /// Compares.
    ///
    /// # Errors
    /// Something is missing or different, which is named; or a check of another plugin's fails.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let Some(previous) = self.config.previous()? else {
            return Err(Error::config("prevResult is missing: there is nothing to compare with"));
        };
        let Some(record) = self.store()?.get(&self.port())? else {
            let (container, ifname) = (&self.environment.container, &self.environment.ifname);
            let details =
                format!("container {container:?} has no {ifname:?} in network {:?}", self.config.name);
            return Err(Error::new(CONTAINER, "container unknown", details));
        };
        let mut client = self.connect()?;
        self.check_port(&record, &mut client)?;
        if record.attachment == Attachment::Tap {
            self.check_device(&previous)?;
        }
        check_rules(&record, &mut client)?;
        if let Some(directory) = &record.dan {
            let file = dan::path(directory, &record.container);
            let there = dan::read(&file).map_err(Error::different)?;
            if !there.is_some_and(|dan| dan.devices.iter().any(|nic| nic.name == record.ifname)) {
                return Err(Error::different(format!("{} has no {}", file.display(), record.ifname)));
            }
        }
        match self.ipam()? {
            Some(ipam) => ipam.have("CHECK"),
            None => Ok(()),
        }
    }

    fn check_port(&self, record: &Record, client: &mut Client) -> Result<(), Error> {
        let port = match client.ask(&api::PortShow { name: record.port.clone() }) {
            Err(Failure::Refused(why, _)) => return Err(Error::different(why)),
            other => other?,
        };
        if port.bridge != *record.bridge.as_str() {
            return Err(Error::different(format!(
                "port {} is on bridge {}, not {}",
                port.name, port.bridge, record.bridge
            )));
        }
        let asked = self.config.bandwidth();
        for (direction, now, wanted) in [
            ("ingress", port.ingress_rate, asked.ingress_rate),
            ("egress", port.egress_rate, asked.egress_rate),
        ] {
            let now = now.unwrap_or(0);
            if u64::try_from(wanted) != Ok(now) {
                let details =
                    format!("the {direction} rate of port {} is {now} bit/s, not {wanted}", port.name);
                return Err(Error::different(details));
            }
        }
        Ok(())
    }

    /// Compares the device in the container's namespace with what ADD told of it.
    fn check_device(&self, previous: &Success) -> Result<(), Error> {
        let (netns, ifname) = (self.netns()?, self.environment.ifname.as_str());
        let sandbox = self.environment.netns.as_deref().unwrap_or_default();
        let ours = |at: &super::result::Interface| at.name == ifname && at.sandbox == sandbox;
        let Some(index) = previous.interfaces.iter().position(ours) else {
            return Err(Error::different(format!("prevResult has no interface {ifname:?} in {sandbox}")));
        };
        let Some(device) = assign::look_up(&netns, ifname).map_err(Error::io)? else {
            return Err(Error::different(format!("there is no device {ifname} in {sandbox}")));
        };
        if !device.up {
            return Err(Error::different(format!("device {ifname} in {sandbox} is down")));
        }
        let mac = shunt_switch::config::Mac(device.mac).to_string();
        let told = &previous.interfaces[index].mac;
        if !told.is_empty() && !told.eq_ignore_ascii_case(&mac) {
            return Err(Error::different(format!("device {ifname} has the MAC address {mac}, not {told}")));
        }
        let told = previous.ips.iter().filter(|ip| ip.interface.is_none_or(|at| at == index));
        for wanted in told.clone().map(|ip| ip.address) {
            if !device.addresses.contains(&wanted) {
                return Err(Error::different(format!("device {ifname} does not have the address {wanted}")));
            }
        }
        // Routes in tables of their own, and those that another plugin may lead over another device, are not ours to judge.
        let reaches = |to: &IpNet| told.clone().any(|ip| ip.address.addr().is_ipv4() == to.addr().is_ipv4());
        for route in previous.routes.iter().filter(|route| route.table.is_none() && reaches(&route.dst)) {
            let same =
                |(to, via): &(IpNet, _)| *to == route.dst.trunc() && (route.gw.is_none() || *via == route.gw);
            if previous.interfaces.len() == 1 && !device.routes.iter().any(same) {
                return Err(Error::different(format!("there is no route to {} over {ifname}", route.dst)));
            }
        }
        Ok(())
    }
}

fn check_rules(record: &Record, client: &mut Client) -> Result<(), Error> {
    if record.publish.is_empty() && record.masquerade.is_empty() {
        return Ok(());
    }
    let rules = client.ask(&api::NatList {})?;
    for publish in &record.publish {
        if !rules.iter().any(|rule| is_publish(rule, publish)) {
            let (proto, listen, to) = (&publish.proto, &publish.listen, &publish.to);
            return Err(Error::different(format!("{proto} {listen} is not published to {to}")));
        }
    }
    match record.masquerade.is_empty() || rules.iter().any(|rule| is_masquerade(rule, record)) {
        true => Ok(()),
        false => Err(Error::different("its addresses are not masqueraded")),
    }
}
