//! A call: the parameters and what several commands need of them; GC and STATUS.

use std::path::Path;

use ipnet::IpNet;
use shunt_client::client::{Client, Failure};
use shunt_switch::control::api;
use shunt_switch::port::netns::Netns;

use super::config::{Config, Valid};
use super::environment::Environment;
use super::error::{CUT_OFF, ENVIRONMENT, Error, UNAVAILABLE};
use super::ipam::Ipam;
use super::pool::Pool;
use super::store::{Publish, Record, Store, port_name};

/// A command with its parameters.
pub(crate) struct Call<'a> {
    /// The variables.
    pub(crate) environment: &'a Environment,
    /// The configuration.
    pub(crate) config: &'a Config,
    /// The same, as it came.
    pub(crate) input: &'a [u8],
}

impl Call<'_> {
    /// The name of the attachment's port.
    pub(crate) fn port(&self) -> String {
        port_name(&self.config.name, &self.environment.container, &self.environment.ifname)
    }

    /// The directory of attachments, locked.
    pub(crate) fn store(&self) -> Result<Store, Error> {
        Store::open(&self.config.state_dir())
    }

    /// A connection to shuntd.
    pub(crate) fn connect(&self) -> Result<Client, Error> {
        let by_environment = std::env::var_os("SHUNT_CONTROL").map(std::path::PathBuf::from);
        Ok(Client::connect(self.config.control.as_deref().or(by_environment.as_deref()))?)
    }

    /// The plugin that gives addresses, if another one does.
    pub(crate) fn ipam(&self) -> Result<Option<Ipam<'_>>, Error> {
        let delegate = self.config.delegate();
        delegate.map(|kind| Ipam::find(kind, self.environment, self.input)).transpose()
    }

    /// The container's network namespace, which is not our own.
    pub(crate) fn netns(&self) -> Result<Netns, Error> {
        let path = self.environment.netns.as_deref().unwrap_or_default();
        let wrong = |why: String| {
            Error::new(
                ENVIRONMENT,
                "invalid environment variable CNI_NETNS",
                format!("CNI_NETNS is {path:?}: {why}"),
            )
        };
        if !path.starts_with('/') {
            return Err(wrong("it must be the absolute path of a network namespace".into()));
        }
        let netns = Netns::open(Some(Path::new(path))).map_err(|error| wrong(error.to_string()))?;
        let own = Netns::open(None).map_err(Error::io)?;
        match netns.is_same(&own) {
            true => Err(wrong("it must not be the network namespace of the plugin itself".into())),
            false => Ok(netns),
        }
    }

    /// The ports that are to be published for a container with these addresses.
    pub(crate) fn publishes(&self, addresses: &[IpNet]) -> Vec<Publish> {
        let mut publishes = Vec::new();
        for mapping in self.config.port_mappings() {
            let said = mapping.host_ip.as_deref().filter(|ip| !ip.is_empty());
            let listens: Vec<String> = match said {
                Some(one) => vec![one.to_owned()],
                None if self.config.publish_at.is_empty() => vec!["0.0.0.0".into(), "::".into()],
                None => self.config.publish_at.iter().map(|at| at.to_string()).collect(),
            };
            for listen in listens {
                let v4 = !listen.contains(':');
                let Some(to) = addresses.iter().map(IpNet::addr).find(|ip| ip.is_ipv4() == v4) else {
                    continue;
                };
                let (listen, to) =
                    if v4 { (listen, to.to_string()) } else { (format!("[{listen}]"), format!("[{to}]")) };
                publishes.push(Publish {
                    proto: mapping.protocol.as_deref().unwrap_or("tcp").to_ascii_lowercase(),
                    listen: format!("{listen}:{}", mapping.host_port),
                    to: format!("{to}:{}", mapping.container_port),
                });
            }
        }
        publishes
    }

    /// DEL: undoes what there is of an attachment. What is gone already is no error.
    pub(crate) fn del(&self) -> Result<(), Error> {
        let known = self.store()?.get(&self.port())?;
        if let Some(record) = &known {
            super::undo::undo(record, &mut self.connect()?)?;
        }
        if let Some(ipam) = self.ipam()? {
            ipam.have("DEL")?;
        }
        match &known {
            Some(record) => self.store()?.forget(&record.port),
            None => Ok(()),
        }
    }

    /// GC: undoes all attachments of the network that are not in the list. Goes on after an error, and tells all.
    pub(crate) fn gc(&self) -> Result<(), Error> {
        let valid = self.config.valid();
        let is_stale = |record: &Record| {
            let is_valid = |one: &Valid| one.container == record.container && one.ifname == record.ifname;
            record.network == self.config.name && valid.is_some_and(|valid| !valid.iter().any(is_valid))
        };
        let stale: Vec<Record> = self.store()?.all()?.into_iter().filter(is_stale).collect();
        let mut errors = Vec::new();
        if !stale.is_empty() {
            match self.connect() {
                Err(error) => errors.push(error),
                Ok(mut client) => {
                    for record in &stale {
                        let undone = super::undo::undo(record, &mut client);
                        errors.extend(undone.and_then(|()| self.store()?.forget(&record.port)).err());
                    }
                }
            }
        }
        errors.extend(self.ipam().and_then(|ipam| ipam.map_or(Ok(()), |ipam| ipam.have("GC"))).err());
        let Some(first) = errors.first() else { return Ok(()) };
        let told = |error: &Error| match error.details.as_str() {
            "" => error.msg.clone(),
            details => format!("{}: {details}", error.msg),
        };
        let all: Vec<String> = errors.iter().map(told).collect();
        Err(Error::new(first.code, "not everything was removed", all.join("; ")))
    }

    /// STATUS: could a container be connected now?
    pub(crate) fn status(&self) -> Result<(), Error> {
        let mut client = self.connect().map_err(|error| Error { code: CUT_OFF, ..error })?;
        let unavailable = |error: Error| Error::new(UNAVAILABLE, error.msg, error.details);
        match client.ask(&api::BridgeShow { name: self.config.bridge().into() }) {
            Err(Failure::Unreachable(why)) => {
                return Err(Error::new(CUT_OFF, "shuntd is not reachable", why));
            }
            other => _ = other.map_err(|failure| unavailable(failure.into()))?,
        }
        let store = self.store().map_err(unavailable)?;
        if let Some(own) = &self.config.own_ipam {
            let mut pool = Pool::find(&mut client, self.config.bridge(), own).map_err(unavailable)?;
            pool.take(&store).and_then(|()| pool.choose(&[], |_| None)).map_err(unavailable)?;
        }
        drop(store);
        match self.ipam().map_err(unavailable)? {
            Some(ipam) => ipam.have("STATUS"),
            None => Ok(()),
        }
    }
}
