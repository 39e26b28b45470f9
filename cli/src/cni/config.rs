//! The network's configuration, as it comes on standard input.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Map, Value};
use shunt_switch::config::Role;

use super::environment::{Environment, is_identifier};
use super::error::{CONFIG, DECODE, Error, FIELD, VERSION};
use super::result::{Dns, NEWEST, Route, Success, VERSIONS};

/// Keys that are understood, or that belong to the runtime. What begins with `cni.dev/` is the protocol's own.
const KEYS: [&str; 27] = [
    "cniVersion",
    "cniVersions",
    "name",
    "type",
    "capabilities",
    "runtimeConfig",
    "args",
    "prevResult",
    "disableCheck",
    "disableGC",
    "loadOnlyInlinedPlugins",
    "ipam",
    "dns",
    "ipMasq",
    "bridge",
    "attachment",
    "role",
    "queues",
    "mtu",
    "guard",
    "publishAt",
    "control",
    "stateDir",
    "socketDir",
    "dan",
    "mac",
    "bandwidth",
];

/// The type of IPAM that is done here and not by another plugin.
const OWN_IPAM: &str = "shunt";

/// What a container gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Attachment {
    /// A TAP device in its network namespace, held by shuntd.
    #[default]
    Tap,
    /// A vhost-user socket for its virtual machine.
    VhostUser,
    /// A TAP device on the host, which its hypervisor opens.
    HostTap,
}

/// How addresses are found.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Ipam {
    /// The plugin's name; empty: no addresses.
    #[serde(rename = "type")]
    kind: String,
    /// Whatever that plugin wants to know.
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// How addresses are found here.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct OwnIpam {
    /// The switch's interface whose networks addresses are from; the bridge's only one if not given.
    pub(crate) interface: Option<String>,
    /// `FIRST-LAST`, within a network of the interface; one of each family.
    pub(crate) ranges: Vec<String>,
    /// Routes instead of the default routes.
    pub(crate) routes: Option<Vec<Route>>,
}

/// A port of the container that is to be reached from outside.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PortMapping {
    /// Where it is reached; 0: nowhere.
    pub(crate) host_port: i64,
    /// Where the container listens.
    pub(crate) container_port: i64,
    /// `tcp` (if not given) or `udp`.
    #[serde(default)]
    pub(crate) protocol: Option<String>,
    /// The address at which it is reached; any of the switch's if empty.
    #[serde(default, rename = "hostIP")]
    pub(crate) host_ip: Option<String>,
}

/// Limits, in bits and bits per second; 0: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Bandwidth {
    /// Into the container.
    pub(crate) ingress_rate: i64,
    /// At once after a pause.
    pub(crate) ingress_burst: i64,
    /// Out of the container.
    pub(crate) egress_rate: i64,
    /// At once after a pause.
    pub(crate) egress_burst: i64,
}

/// Name service as a runtime says it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct RuntimeDns {
    servers: Vec<String>,
    searches: Vec<String>,
    options: Vec<String>,
}

/// What the runtime adds for this container.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Runtime {
    port_mappings: Vec<PortMapping>,
    bandwidth: Option<Bandwidth>,
    mac: Option<String>,
    ips: Vec<String>,
    aliases: Value,
    dns: Option<RuntimeDns>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Args {
    cni: CniArgs,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct CniArgs {
    ips: Vec<String>,
    mac: Option<String>,
}

/// A container and its device, as GC names them.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Valid {
    /// `CNI_CONTAINERID`.
    #[serde(rename = "containerID")]
    pub(crate) container: String,
    /// `CNI_IFNAME`.
    pub(crate) ifname: String,
}

/// The configuration.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Config {
    cni_version: String,
    /// The network.
    pub(crate) name: String,
    bridge: Option<String>,
    /// What a container gets.
    pub(crate) attachment: Attachment,
    /// Who listens at a vhost-user socket.
    pub(crate) role: Option<Role>,
    /// Queues or queue pairs.
    pub(crate) queues: Option<i64>,
    /// MTU in bytes.
    pub(crate) mtu: Option<i64>,
    /// Whether the container may send from its own addresses only.
    pub(crate) guard: Option<bool>,
    /// Addresses at which ports are reached that come without one.
    pub(crate) publish_at: Vec<IpAddr>,
    /// shuntd's control socket.
    pub(crate) control: Option<PathBuf>,
    state_dir: Option<PathBuf>,
    socket_dir: Option<PathBuf>,
    /// Where Kata's runtime-rs looks for NICs.
    pub(crate) dan: Option<PathBuf>,
    mac: Option<String>,
    bandwidth: Option<Bandwidth>,
    /// Whether what the container sends elsewhere leaves under the switch's address.
    #[serde(rename = "ipMasq")]
    pub(crate) masquerade: bool,
    ipam: Ipam,
    /// How addresses are found here, if they are.
    #[serde(skip)]
    pub(crate) own_ipam: Option<OwnIpam>,
    dns: Dns,
    runtime_config: Runtime,
    args: Args,
    prev_result: Option<Value>,
    #[serde(rename = "cni.dev/valid-attachments")]
    valid_attachments: Option<Vec<Valid>>,
    /// Whether those were given at all.
    #[serde(skip)]
    has_valid: bool,
}

/// The version of a document if it is spoken, to be used in answers whatever becomes of the rest.
pub(crate) fn version_of(text: &[u8]) -> Option<&'static str> {
    let document: Value = serde_json::from_slice(text).ok()?;
    let asked = document.get("cniVersion")?.as_str()?;
    VERSIONS.iter().find(|known| **known == asked).copied()
}

impl Config {
    /// Reads and checks a configuration.
    ///
    /// # Errors
    /// It is not JSON of the right form, of a version that is not spoken, or breaks a rule.
    pub(crate) fn read(text: &[u8]) -> Result<Self, Error> {
        let undecodable = |error: serde_json::Error| {
            Error::new(DECODE, "failed to decode the network configuration", error.to_string())
        };
        let map: Map<String, Value> = serde_json::from_slice(text).map_err(undecodable)?;
        let version = map.get("cniVersion").and_then(Value::as_str).unwrap_or("0.1.0");
        if !VERSIONS.contains(&version) {
            let details =
                format!("the configuration's is {version:?}, the plugin speaks {}", VERSIONS.join(", "));
            return Err(Error::new(VERSION, "incompatible CNI version", details));
        }
        let unknown = |key: &&String| !KEYS.contains(&key.as_str()) && !key.starts_with("cni.dev/");
        if let Some(key) = map.keys().find(unknown) {
            let what = format!("unsupported field in network configuration: {key}: {}", map[key]);
            return Err(Error::new(FIELD, what, format!("known are {}", KEYS.join(", "))));
        }
        // Of the text and not of the map: a key that stands there twice is refused.
        let mut config: Self = serde_json::from_slice(text).map_err(undecodable)?;
        config.has_valid = map.contains_key("cni.dev/valid-attachments");
        if config.ipam.kind == OWN_IPAM {
            let own = serde_json::from_value(Value::Object(std::mem::take(&mut config.ipam.rest)));
            let wrong = |error| Error::new(DECODE, "failed to decode ipam", format!("{error}"));
            config.own_ipam = Some(own.map_err(wrong)?);
        }
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), Error> {
        let no = |details: String| Err(Error::new(CONFIG, "invalid network configuration", details));
        if !is_identifier(&self.name) {
            let rule = "it must be letters, digits, \"_\", \".\" and \"-\", beginning with a letter or digit";
            return no(format!("name {:?}: {rule}", self.name));
        }
        if self.ipam.kind.contains(['/', '\\']) || self.ipam.kind.starts_with('.') {
            return no(format!("ipam.type {:?}: it must be the name of a program", self.ipam.kind));
        }
        for (key, path) in [
            ("stateDir", &self.state_dir),
            ("socketDir", &self.socket_dir),
            ("dan", &self.dan),
            ("control", &self.control),
        ] {
            if let Some(path) = path.as_ref().filter(|path| !path.is_absolute()) {
                return no(format!("{key} {:?}: it must be an absolute path", path.display()));
            }
        }
        if self.role.is_some() && self.attachment != Attachment::VhostUser {
            return no("role goes with attachment \"vhost-user\" only: leave it out".into());
        }
        match (self.attachment, &self.dan, self.role) {
            (Attachment::Tap, Some(_), _) => {
                no("dan goes with attachment \"vhost-user\" and \"host-tap\" only: Kata opens no other"
                    .into())
            }
            (Attachment::HostTap, None, _) => {
                no("attachment \"host-tap\" needs dan: a device on the host is found by that file alone"
                    .into())
            }
            (_, Some(_), Some(Role::Server)) => {
                no("role \"server\" does not go with dan: there the hypervisor listens".into())
            }
            _ => Ok(()),
        }?;
        let bandwidth = self.bandwidth();
        for (name, rate, burst) in [
            ("ingress", bandwidth.ingress_rate, bandwidth.ingress_burst),
            ("egress", bandwidth.egress_rate, bandwidth.egress_burst),
        ] {
            if rate == 0 && burst != 0 {
                return no(format!("bandwidth: {name}Burst {burst} goes with {name}Rate only"));
            }
        }
        for mapping in &self.runtime_config.port_mappings {
            let (host, container) = (mapping.host_port, mapping.container_port);
            if !(0..=65_535).contains(&host) || !(1..=65_535).contains(&container) {
                return no(format!("portMappings: {host} to {container}: ports are 1 to 65535"));
            }
        }
        Ok(())
    }

    /// The version to answer in.
    pub(crate) fn version(&self) -> &'static str {
        VERSIONS.iter().find(|known| **known == self.cni_version).copied().unwrap_or(NEWEST)
    }

    /// The plugin that gives addresses, if another one does.
    pub(crate) fn delegate(&self) -> Option<&str> {
        Some(self.ipam.kind.as_str()).filter(|kind| !kind.is_empty() && *kind != OWN_IPAM)
    }

    /// The bridge that the container joins.
    pub(crate) fn bridge(&self) -> &str {
        self.bridge.as_deref().unwrap_or("shunt0")
    }

    /// Where attachments are remembered.
    pub(crate) fn state_dir(&self) -> PathBuf {
        self.state_dir.clone().unwrap_or_else(|| "/var/lib/shunt/cni".into())
    }

    /// Where vhost-user sockets are.
    pub(crate) fn socket_dir(&self) -> PathBuf {
        self.socket_dir.clone().unwrap_or_else(|| "/run/shunt-cni".into())
    }

    /// Who listens at a vhost-user socket: Kata's hypervisor where it learns of it by a DAN file.
    pub(crate) fn role(&self) -> Role {
        self.role.unwrap_or(if self.dan.is_some() { Role::Client } else { Role::Server })
    }

    /// Limits, of the container or else of the network.
    pub(crate) fn bandwidth(&self) -> Bandwidth {
        self.runtime_config.bandwidth.or(self.bandwidth).unwrap_or_default()
    }

    /// Ports to be reached from outside.
    pub(crate) fn port_mappings(&self) -> impl Iterator<Item = &PortMapping> {
        self.runtime_config.port_mappings.iter().filter(|mapping| mapping.host_port != 0)
    }

    /// The MAC address that is asked for.
    pub(crate) fn mac(&self, environment: &Environment) -> Option<String> {
        let by_args = || environment.arg("MAC").map(str::to_owned);
        let asked = self.runtime_config.mac.clone().or_else(|| self.args.cni.mac.clone()).or_else(by_args);
        asked.or_else(|| self.mac.clone()).filter(|mac| !mac.is_empty())
    }

    /// The addresses that are asked for, without the lengths of prefixes.
    ///
    /// # Errors
    /// One is no address.
    pub(crate) fn ips(&self, environment: &Environment) -> Result<Vec<IpAddr>, Error> {
        let by_args = || environment.arg("IP").map(|ip| ip.split(',').map(str::to_owned).collect());
        let lists = [&self.runtime_config.ips, &self.args.cni.ips];
        let asked: Vec<String> = match lists.into_iter().find(|list| !list.is_empty()) {
            Some(list) => list.clone(),
            None => by_args().unwrap_or_default(),
        };
        let parse = |text: &String| {
            let address = text.parse::<IpAddr>().or_else(|_| text.parse::<IpNet>().map(|net| net.addr()));
            address.map_err(|_| Error::config(format!("ips: {text:?} is no IP address")))
        };
        asked.iter().map(parse).collect()
    }

    /// A name for the container that others may be told: its first alias, or its pod's name.
    pub(crate) fn hostname(&self, environment: &Environment) -> Option<String> {
        // A list by the conventions; podman gives lists by network.
        let list = match &self.runtime_config.aliases {
            Value::Object(networks) => networks.get(&self.name).cloned().unwrap_or_default(),
            other => other.clone(),
        };
        let alias = list.get(0).and_then(Value::as_str).map(str::to_owned);
        let name = alias.or_else(|| environment.arg("K8S_POD_NAME").map(str::to_owned))?;
        let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        let label = name.split('.').next().unwrap_or_default();
        let good = (1..=63).contains(&label.len()) && label.bytes().all(fits);
        (good && !label.starts_with('-') && !label.ends_with('-')).then(|| label.to_owned())
    }

    /// The container's name service: as the runtime says, or else the network.
    pub(crate) fn dns(&self) -> Option<Dns> {
        let of_runtime = self.runtime_config.dns.clone().map(|dns| Dns {
            nameservers: dns.servers,
            search: dns.searches,
            options: dns.options,
            domain: self.dns.domain.clone(),
        });
        let said = |dns: &Dns| *dns != Dns::default();
        of_runtime.filter(said).or_else(|| Some(self.dns.clone()).filter(said))
    }

    /// What was made before: by other plugins (ADD), or by this one (CHECK, DEL).
    ///
    /// # Errors
    /// It is not of the right form.
    pub(crate) fn previous(&self) -> Result<Option<Success>, Error> {
        let Some(document) = self.prev_result.clone().filter(|document| !document.is_null()) else {
            return Ok(None);
        };
        serde_json::from_value(document)
            .map(Some)
            .map_err(|error| Error::new(DECODE, "failed to decode prevResult", error.to_string()))
    }

    /// The attachments that GC must leave; `None` if nobody says which these are, as when `cnitool gc` calls.
    pub(crate) fn valid(&self) -> Option<&[Valid]> {
        self.has_valid.then(|| self.valid_attachments.as_deref().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::environment::Command;
    use super::*;

    fn config(change: impl FnOnce(&mut Value)) -> Result<Config, Error> {
        let mut document = json!({"cniVersion": "1.1.0", "name": "dbnet", "type": "shunt-cni"});
        change(&mut document);
        Config::read(document.to_string().as_bytes())
    }

    fn environment(args: &str) -> Environment {
        let read = Environment::read(|name| match name {
            "CNI_COMMAND" => Some("GC".into()),
            "CNI_ARGS" => Some(args.into()),
            _ => None,
        });
        let (command, environment) = read.unwrap();
        assert_eq!(command, Command::Gc);
        environment
    }

    #[test]
    fn errors_have_the_specifications_numbers() {
        let code = |change: &dyn Fn(&mut Value)| config(change).map(|_| ()).unwrap_err();
        assert!(config(|_| ()).is_ok());
        for (version, spoken) in [
            ("0.3.0", true),
            ("0.4.0", true),
            ("1.0.0", true),
            ("0.2.0", false),
            ("1.2.0", false),
            ("x", false),
        ] {
            let result = config(|d| d["cniVersion"] = json!(version));
            assert_eq!(
                result.map(|_| ()).map_err(|error| error.code),
                if spoken { Ok(()) } else { Err(VERSION) }
            );
        }
        assert_eq!(code(&|d| _ = d.as_object_mut().unwrap().remove("cniVersion")).code, VERSION);
        let error = code(&|d| d["bridgee"] = json!("x"));
        assert_eq!(error.code, FIELD);
        assert!(error.msg.contains("bridgee") && error.msg.contains("\"x\""), "{error:?}");
        assert!(config(|d| d["cni.dev/other"] = json!(1)).is_ok());
        for text in ["", "{", "[]", "nul", r#"{"cniVersion":"1.0.0","name":"a","name":"b"}"#, "\u{0}"] {
            assert_eq!(Config::read(text.as_bytes()).map(|_| ()).map_err(|e| e.code), Err(DECODE), "{text}");
        }
        assert_eq!(code(&|d| d["mtu"] = json!("1500")).code, DECODE);
        for (key, bad) in [
            ("name", json!("")),
            ("name", json!("a/b")),
            ("ipam", json!({"type": "../sh"})),
            ("stateDir", json!("cni")),
            ("role", json!("client")),
            ("dan", json!("/run/dans")),
            ("attachment", json!("host-tap")),
            ("bandwidth", json!({"ingressBurst": 7})),
            ("runtimeConfig", json!({"portMappings": [{"hostPort": 65536, "containerPort": 80}]})),
            ("runtimeConfig", json!({"portMappings": [{"hostPort": 80, "containerPort": 0}]})),
        ] {
            assert_eq!(code(&|d| d[key] = bad.clone()).code, CONFIG, "{key} {bad}");
        }
        let both = |d: &mut Value| {
            d["attachment"] = json!("vhost-user");
            d["dan"] = json!("/run/dans");
            d["role"] = json!("server");
        };
        assert_eq!(code(&both).code, CONFIG);
    }

    #[test]
    fn the_hypervisor_listens_where_kata_is_told_by_a_file() {
        let vhost = |dan: Value| {
            let config = config(|d| {
                d["attachment"] = json!("vhost-user");
                d["dan"] = dan;
            });
            config.unwrap().role()
        };
        assert_eq!((vhost(json!(null)), vhost(json!("/run/dans"))), (Role::Server, Role::Client));
    }

    #[test]
    fn what_the_runtime_says_comes_first() {
        let config = config(|d| {
            d["mac"] = json!("02:00:00:00:00:01");
            d["dns"] = json!({"nameservers": ["192.0.2.1"], "domain": "x.test"});
            d["bandwidth"] = json!({"ingressRate": 1, "ingressBurst": 1});
            d["runtimeConfig"] = json!({
                "mac": "02:00:00:00:00:02", "ips": ["10.0.0.9/24", "fd00::9"],
                "bandwidth": {"egressRate": 2048, "egressBurst": 1600},
                "aliases": {"dbnet": ["web", "other"]},
                "dns": {"servers": ["192.0.2.2"], "searches": ["y.test"]},
                "portMappings": [{"hostPort": 0, "containerPort": 1}, {"hostPort": 8080, "containerPort": 80}]
            });
        });
        let config = config.unwrap();
        let environment = environment("MAC=02:00:00:00:00:03;IP=10.0.0.8;K8S_POD_NAME=pod");
        assert_eq!(config.mac(&environment).as_deref(), Some("02:00:00:00:00:02"));
        let ips: Vec<IpAddr> = ["10.0.0.9", "fd00::9"].map(|ip| ip.parse().unwrap()).to_vec();
        assert_eq!(config.ips(&environment), Ok(ips));
        assert_eq!(
            config.bandwidth(),
            Bandwidth { egress_rate: 2048, egress_burst: 1600, ..Bandwidth::default() }
        );
        assert_eq!(config.hostname(&environment).as_deref(), Some("web"));
        let dns = config.dns().unwrap();
        assert_eq!((dns.nameservers, dns.search), (vec!["192.0.2.2".to_owned()], vec!["y.test".to_owned()]));
        assert_eq!(config.port_mappings().map(|mapping| mapping.host_port).collect::<Vec<_>>(), [8080]);
    }

    #[test]
    fn arguments_are_heard_where_the_runtime_says_nothing() {
        let config = config(|_| ()).unwrap();
        let environment = environment("MAC=02:00:00:00:00:03;IP=10.0.0.8,fd00::8;K8S_POD_NAME=pod-1.x");
        assert_eq!(config.mac(&environment).as_deref(), Some("02:00:00:00:00:03"));
        assert_eq!(config.ips(&environment).unwrap().len(), 2);
        assert_eq!(config.hostname(&environment).as_deref(), Some("pod-1"));
        assert_eq!(config.ips(&self::environment("IP=10.0.0")).map_err(|e| e.code), Err(CONFIG));
    }

    #[test]
    fn no_list_for_gc_is_not_an_empty_one() {
        assert_eq!(config(|_| ()).unwrap().valid(), None);
        let none = config(|d| d["cni.dev/valid-attachments"] = json!(null)).unwrap();
        assert_eq!(none.valid(), Some(&[][..]));
        let one =
            config(|d| d["cni.dev/valid-attachments"] = json!([{"containerID": "a", "ifname": "eth0"}]));
        assert_eq!(one.unwrap().valid().unwrap().len(), 1);
    }
}
