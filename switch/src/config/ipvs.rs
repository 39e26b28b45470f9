//! The tables `[[ipvs.service]]`, `[[ipvs.server]]`, `[ipvs.timeouts]`, `[ipvs.settings]` and `[[ipvs.daemon]]` of the
//! configuration file, and the first four of them within `[ipvs.container.ID]`: what tables of virtual services hold
//! from the start on.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::Spanned;

use super::file::{Position, Source, moved};
use super::layer3::checked;
use super::spec::{Invalid, container_id, ipvs_setting, service_key};
use crate::control::api;
use crate::ipvs::Ipvs;
use crate::ipvs::draft::Change;
use crate::ipvs::scope::Scope;
use crate::ipvs::settings::{Setting, Timeouts};
use crate::ipvs::sync::DaemonSpec;
use crate::refusal::Refusal;

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Tables {
    service: Vec<Spanned<api::IpvsService>>,
    server: Vec<Spanned<api::IpvsServer>>,
    timeouts: Option<Spanned<api::IpvsTimeouts>>,
    settings: BTreeMap<String, Spanned<i64>>,
    daemon: Vec<Spanned<api::IpvsDaemonStart>>,
    container: BTreeMap<String, Spanned<Container>>,
}

impl Tables {
    /// Takes in what stands in a piece of the file so many bytes further on.
    pub(super) fn append(&mut self, other: Self, by: usize) {
        self.service.extend(other.service.into_iter().map(|table| moved(table, by)));
        self.server.extend(other.server.into_iter().map(|table| moved(table, by)));
        for (name, table) in other.container {
            let table = moved(table, by);
            let span = table.span();
            let Container { service, server, .. } = table.into_inner();
            let all = self.container.entry(name).or_insert_with(|| Spanned::new(span, Container::default()));
            let all = all.get_mut();
            all.service.extend(service.into_iter().map(|table| moved(table, by)));
            all.server.extend(server.into_iter().map(|table| moved(table, by)));
        }
    }
}

/// The table of a container.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Container {
    service: Vec<Spanned<api::IpvsService>>,
    server: Vec<Spanned<api::IpvsServer>>,
    timeouts: Option<Spanned<api::IpvsTimeouts>>,
    settings: BTreeMap<String, Spanned<i64>>,
}

/// What the file says of one table of services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Table {
    /// Services, then servers, each with where it is described.
    changes: Vec<(Position, Change)>,
    settings: Vec<(Setting, u32)>,
}

/// What the file says of virtual services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IpvsConfig {
    global: Table,
    containers: BTreeMap<String, Table>,
    daemons: Vec<(Position, DaemonSpec)>,
}

/// The parts of a table as they stand in the file.
struct Parts<'a> {
    service: &'a [Spanned<api::IpvsService>],
    server: &'a [Spanned<api::IpvsServer>],
    timeouts: Option<&'a Spanned<api::IpvsTimeouts>>,
    settings: &'a BTreeMap<String, Spanned<i64>>,
}

impl Table {
    fn new(parts: &Parts<'_>, path: &[&str], source: &Source<'_>) -> Result<Self, Refusal> {
        let within = |name| [path, &[name]].concat();
        let mut changes = checked(
            source,
            &within("service"),
            parts.service,
            |asked| format!("service {}", asked.service),
            |asked| Ok(Change::AddService(asked.try_into()?)),
        )?;
        changes.extend(checked(
            source,
            &within("server"),
            parts.server,
            |asked| format!("server {} of {}", asked.address, asked.service),
            |asked| Ok(Change::AddDestination(service_key(&asked.service)?, asked.try_into()?)),
        )?);
        if let Some(table) = parts.timeouts {
            let timeouts = Timeouts::try_from(table.get_ref()).map_err(|invalid: Invalid| {
                let keys = [within("timeouts"), vec![invalid.field]].concat();
                source.value(&keys, table.span()).refuse(invalid)
            })?;
            changes.push((source.position(table.span().start), Change::SetTimeouts(timeouts)));
        }
        let setting = |(name, value): (&String, &Spanned<i64>)| {
            ipvs_setting(name, *value.get_ref())
                .map_err(|invalid| source.position(value.span().start).refuse(invalid))
        };
        let settings = parts.settings.iter().map(setting).collect::<Result<_, _>>()?;
        Ok(Self { changes, settings })
    }

    fn apply(&self, scope: &Scope) -> Result<(), Refusal> {
        for (setting, value) in &self.settings {
            scope.settings().set(*setting, *value);
        }
        scope.apply(self.changes.iter().map(|(_, change)| change.clone())).map_err(|failed| {
            match self.changes.get(failed.index) {
                Some((at, _)) => at.refuse(&failed),
                None => Refusal::new(failed.to_string()),
            }
        })
    }
}

impl IpvsConfig {
    pub(super) fn new(tables: &Tables, source: &Source<'_>) -> Result<Self, Refusal> {
        let Tables { service, server, timeouts, settings, .. } = tables;
        let global = Parts { service, server, timeouts: timeouts.as_ref(), settings };
        let mut config = Self { global: Table::new(&global, &["ipvs"], source)?, ..Self::default() };
        for (name, table) in &tables.container {
            container_id("container", name)
                .map_err(|invalid| source.position(table.span().start).refuse(invalid))?;
            let Container { service, server, timeouts, settings } = table.get_ref();
            let parts = Parts { service, server, timeouts: timeouts.as_ref(), settings };
            let table = Table::new(&parts, &["ipvs", "container", name], source)?;
            config.containers.insert(name.clone(), table);
        }
        config.daemons = checked(
            source,
            &["ipvs", "daemon"],
            &tables.daemon,
            |asked| format!("{} daemon", asked.role),
            |asked| DaemonSpec::try_from(asked),
        )?;
        for (index, (position, daemon)) in config.daemons.iter().enumerate() {
            if config.daemons[..index].iter().any(|(_, other)| other.role == daemon.role) {
                let role = daemon.role;
                return Err(position.refuse(format_args!("there is a {role} daemon already: one is enough")));
            }
        }
        Ok(config)
    }

    /// Makes all services.
    ///
    /// # Errors
    /// What cannot be made, with where it is described.
    pub fn apply(&self, ipvs: &Ipvs) -> Result<(), Refusal> {
        self.global.apply(ipvs.global())?;
        self.containers.iter().try_for_each(|(name, table)| table.apply(&ipvs.ensure_container(name)))
    }

    /// The sync daemons, each with where it is described.
    pub fn daemons(&self) -> &[(Position, DaemonSpec)] {
        &self.daemons
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use crate::ipvs::Ipvs;
    use crate::ipvs::settings::Setting;

    const FILE: &str = r#"
[[ipvs.service]]
service = "tcp:10.0.0.1:80"
scheduler = "sh"
flags = ["sh-port"]
persistent = 60
netmask = "255.255.255.0"
[[ipvs.server]]
service = "tcp:10.0.0.1:80"
address = "10.1.0.1:8080"
forward = "masquerade"
weight = 3
[ipvs.timeouts]
tcp = 100
tcp_fin = 0
udp = 0
[ipvs.settings]
expire_nodest_conn = 1
"#;

    #[test]
    fn tables_make_services() {
        let config = Config::parse(FILE, None).unwrap();
        let ipvs = Ipvs::default();
        config.layer3.ipvs.apply(&ipvs).unwrap();
        assert_eq!(ipvs.global().rules(), 2);
        let settings = ipvs.global().settings();
        assert_eq!((settings.timeouts().tcp, settings.timeouts().udp), (100, 300));
        assert_eq!(settings.get(Setting::ExpireNodestConn), 1);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        for (from, to, message) in [
            ("\"sh\"", "\"best\"", "4:13: service tcp:10.0.0.1:80: scheduler \"best\" is unknown"),
            ("weight = 3", "weight = -1", "12:10: server 10.1.0.1:8080 of tcp:10.0.0.1:80: weight -1"),
            ("weight = 3", "colour = 3", "12:1: "),
            ("tcp = 100", "tcp = -1", "14:7: tcp -1 is out of range"),
            ("conn = 1", "conn = 2", "18:22: value 2 is out of range"),
            ("expire_nodest_conn", "expire", "18:10: name \"expire\" is unknown"),
            (
                "[[ipvs.server]]\nservice = \"tcp:10.0.0.1:80\"",
                "[[ipvs.server]]\nservice = \"mark:1\"",
                "8:1: there is no service",
            ),
        ] {
            let text = FILE.replacen(from, to, 1);
            let refusal = Config::parse(&text, None).unwrap_err().to_string();
            assert!(refusal.contains(message), "{to}: {refusal}");
        }
    }
}
