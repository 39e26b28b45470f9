//! The CNI plugin as a container runtime calls it: variables, a document on standard input, a document back.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::daemon::Shuntd;
use crate::netns::NetNs;
use crate::tools;
use crate::wait::poll_for;

/// A network of a daemon's with the plugin that connects containers to it.
pub struct Cni<'a> {
    shuntd: &'a Shuntd,
    netns: Option<String>,
    /// The configuration: fields are for the test to change.
    pub config: Value,
}

/// A call of the plugin that failed: the error's document.
pub type Refused = Value;

impl<'a> Cni<'a> {
    /// A network with addresses of the switch's own interface on `bridge`.
    pub fn new(shuntd: &'a Shuntd, name: &str, bridge: &str) -> Self {
        let config = json!({
            "cniVersion": "1.1.0", "name": name, "type": "shunt-cni", "bridge": bridge,
            "control": shuntd.path("control.sock"), "stateDir": shuntd.path("cni"),
            "socketDir": shuntd.path("sockets"), "ipam": {"type": "shunt"}
        });
        Self { shuntd, netns: None, config }
    }

    /// Has the plugin run in a namespace, where its TAP devices on the host then are.
    pub fn within(mut self, netns: &NetNs) -> Self {
        self.netns = Some(netns.id().to_owned());
        self
    }

    /// Starts the plugin without waiting for its end; standard output is a file with this name in the daemon's directory.
    #[track_caller]
    pub fn start(&self, command: &str, container: &str, netns: &str, config: &Value, output: &str) -> Child {
        let file =
            std::fs::File::create(self.shuntd.path(output)).unwrap_or_else(|e| panic!("{output}: {e}"));
        let mut plugin = match &self.netns {
            None => Command::new(tools::shunt_cni()),
            Some(netns) => {
                let mut ip = Command::new("ip");
                ip.args(["netns", "exec", netns]).arg(tools::shunt_cni());
                ip
            }
        };
        let mut child = plugin
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", container)
            .env("CNI_NETNS", netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", "/usr/lib/cni:/opt/cni/bin")
            .stdin(Stdio::piped())
            .stdout(file)
            .spawn()
            .unwrap_or_else(|e| panic!("shunt-cni cannot be started: {e}"));
        let text = config.to_string();
        child.stdin.take().map(|mut stdin| stdin.write_all(text.as_bytes()));
        child
    }

    /// Calls the plugin with a configuration of its own; an empty answer is `Null`.
    #[track_caller]
    pub fn call(
        &self,
        command: &str,
        container: &str,
        netns: &str,
        config: &Value,
    ) -> Result<Value, Refused> {
        let output = format!("cni-{container}-{command}.out");
        let mut child = self.start(command, container, netns, config, &output);
        let status = poll_for(Duration::from_secs(60), || child.try_wait().ok().flatten());
        let status = status.unwrap_or_else(|| {
            let _ = child.kill();
            panic!("shunt-cni {command} does not end")
        });
        let text = std::fs::read_to_string(self.shuntd.path(&output)).unwrap_or_default();
        let answer = match text.trim() {
            "" => Value::Null,
            text => serde_json::from_str(text).unwrap_or_else(|e| panic!("not JSON ({e}): {text}")),
        };
        if status.success() { Ok(answer) } else { Err(answer) }
    }

    /// ADD.
    #[track_caller]
    pub fn try_add(&self, container: &str, netns: &NetNs) -> Result<Value, Refused> {
        self.call("ADD", container, &netns.path(), &self.config)
    }

    /// ADD, which must succeed; IPv6 addresses in the namespace are usable at once.
    #[track_caller]
    pub fn add(&self, container: &str, netns: &NetNs) -> Value {
        self.try_add(container, netns).unwrap_or_else(|e| panic!("ADD {container}: {e:#}"))
    }

    /// CHECK of what an ADD has answered.
    #[track_caller]
    pub fn check(&self, container: &str, netns: &NetNs, previous: &Value) -> Result<Value, Refused> {
        let mut config = self.config.clone();
        config["prevResult"] = previous.clone();
        self.call("CHECK", container, &netns.path(), &config)
    }

    /// DEL, which must succeed.
    #[track_caller]
    pub fn del(&self, container: &str, netns: &NetNs) {
        self.call("DEL", container, &netns.path(), &self.config)
            .unwrap_or_else(|e| panic!("DEL {container}: {e:#}"));
    }

    /// GC that leaves these containers, each with its eth0.
    #[track_caller]
    pub fn gc(&self, valid: &[&str]) -> Result<Value, Refused> {
        let mut config = self.config.clone();
        let valid: Vec<Value> = valid.iter().map(|id| json!({"containerID": id, "ifname": "eth0"})).collect();
        config["cni.dev/valid-attachments"] = json!(valid);
        self.call("GC", "", "", &config)
    }

    /// The files of attachments that there are.
    pub fn records(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.shuntd.path("cni")).into_iter().flatten().flatten();
        let is_record = |path: &PathBuf| path.extension().is_some_and(|ending| ending == "json");
        entries.map(|entry| entry.path()).filter(is_record).collect()
    }
}

/// The first address of a result, without the length of its prefix.
#[track_caller]
pub fn address(result: &Value, index: usize) -> String {
    let cidr = result["ips"][index]["address"].as_str().unwrap_or_else(|| panic!("no address in {result}"));
    cidr.split('/').next().unwrap_or_default().to_owned()
}

impl NetNs {
    /// The namespace's file.
    pub fn path(&self) -> String {
        Path::new("/run/netns").join(self.id()).display().to_string()
    }
}
