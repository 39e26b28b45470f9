#![forbid(unsafe_code)]
//! Open vSwitch with DPDK as a candidate: its userspace datapath, one PMD thread, the NORMAL action.
//!
//! Database server and switch run in a network namespace of their own, because the bridge makes a TAP device with
//! its own name.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use shunt_tests::NetNs;
use shunt_tests::process::{Process, run};

use super::layer3::{self, GATEWAYS, NETWORKS, SERVICE_PORT};
use super::{Candidate, Site, Task, Wiring, await_start, program};

/// Where Debian puts the switch that is built with DPDK; the plain one is not.
const SWITCH: &str = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk";
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
const LIMIT: Duration = Duration::from_secs(60);

pub(super) fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("it needs root".into());
    }
    let absent: Vec<_> =
        [SWITCH, SCHEMA, "ovsdb-server", "ovsdb-tool", "ovs-vsctl", "ovs-ofctl", "ovs-appctl"]
            .into_iter()
            .filter(|p| !program(p))
            .collect();
    (!absent.is_empty()).then(|| format!("{} not installed (openvswitch-switch-dpdk)", absent.join(", ")))
}

pub(super) struct Ovs {
    switch: Process,
    dir: PathBuf,
    sockets: Vec<PathBuf>,
    guests_listen: bool,
    _database: Process,
    _netns: NetNs,
}

fn sh(argv: &[&str]) -> Result<String> {
    run(argv).map_err(anyhow::Error::msg)
}

/// What a router does with a packet from each port to the other, as flows: hop by hop, and for [`Task::Snat`] through
/// the userspace connection tracker.
fn flows(task: Task) -> Vec<String> {
    let hop = |to: usize| {
        format!(
            "dec_ttl,mod_dl_src:{},mod_dl_dst:{},output:{}",
            layer3::text(GATEWAYS[to]),
            layer3::text(layer3::guests()[to]),
            to + 1
        )
    };
    let to_switch = |from: usize| format!("in_port={},ip,dl_dst={}", from + 1, layer3::text(GATEWAYS[from]));
    match task {
        Task::Bridge => vec!["actions=NORMAL".into()],
        // The address alone decides; how many routes there are does not matter to a cache of flows.
        Task::Route { .. } => [(0, 1), (1, 0)]
            .map(|(from, to)| format!("{},nw_dst={},actions={}", to_switch(from), NETWORKS[to], hop(to)))
            .into(),
        Task::Snat { .. } => vec![
            format!(
                "table=0,{},actions=ct(commit,zone=1,nat(src={}:1024-65535),table=1)",
                to_switch(0),
                layer3::TRANSLATED
            ),
            format!("table=0,{},actions=ct(zone=1,nat,table=1)", to_switch(1)),
            format!("table=1,in_port=1,ip,actions={}", hop(1)),
            format!("table=1,in_port=2,ip,actions={}", hop(0)),
        ],
        // As OVN balances: what is not established goes to its service's group.
        Task::Balance { services, .. } => {
            let mut flows = vec![
                format!("table=0,{},actions=ct(zone=1,nat,table=2)", to_switch(0)),
                format!("table=0,{},actions=ct(zone=1,nat,table=1)", to_switch(1)),
                format!("table=1,in_port=1,ip,actions={}", hop(1)),
                format!("table=1,in_port=2,ip,actions={}", hop(0)),
                format!("table=2,priority=2,ct_state=+est+trk,ip,actions={}", hop(1)),
            ];
            flows.extend((0..services).map(|n| {
                format!("table=2,ct_state=+new+trk,udp,nw_dst={},actions=group:{}", layer3::service(n), n + 1)
            }));
            flows
        }
    }
}

/// The groups of servers for [`Task::Balance`].
fn groups(task: Task) -> Vec<String> {
    let Task::Balance { services, servers, .. } = task else { return Vec::new() };
    let group = |n: u32| {
        let buckets = (0..servers).map(|m| {
            let to = format!("{}:{SERVICE_PORT}", layer3::server(n * servers + m));
            format!(",bucket=actions=ct(commit,zone=1,nat(dst={to}),table=1)")
        });
        format!("group_id={},type=select,selection_method=dp_hash{}", n + 1, buckets.collect::<String>())
    };
    (0..services).map(group).collect()
}

impl Ovs {
    pub(super) fn launch(site: &Site, dir: &Path, wiring: &Wiring) -> Result<Self> {
        let netns = NetNs::new("ovs");
        let at = |file: &str| dir.join(file).display().to_string();
        sh(&["ovsdb-tool", "create", &at("conf.db"), SCHEMA])?;
        let own = |program: &str, rest: &[String]| -> Vec<String> {
            let mut argv = vec!["env".to_owned()];
            argv.extend(["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR"].map(|v| format!("{v}={}", dir.display())));
            argv.push(program.to_owned());
            argv.extend(rest.iter().cloned());
            argv
        };
        let log = dir.join("out.log");
        let arguments = [
            at("conf.db"),
            format!("--remote=punix:{}", at("db.sock")),
            format!("--unixctl={}", at("db.ctl")),
            format!("--log-file={}", at("db.log")),
            "-vconsole:off".into(),
        ];
        let mut database =
            Process::start("ovsdb-server", &own("ovsdb-server", &arguments), &log, Some(netns.id()));
        await_start("the database's socket", &mut database, LIMIT, |_| {
            dir.join("db.sock").exists().then_some(())
        })?;

        let vsctl = |arguments: &str| -> Result<String> {
            let db = format!("--db=unix:{}", at("db.sock"));
            let mut argv = vec!["ovs-vsctl", &db, "--timeout=30"];
            argv.extend(arguments.split_whitespace());
            sh(&argv)
        };
        let set = |key: &str, value: &str| -> Result<String> {
            let db = format!("--db=unix:{}", at("db.sock"));
            sh(&[
                "ovs-vsctl",
                &db,
                "--no-wait",
                "set",
                "Open_vSwitch",
                ".",
                &format!("other_config:{key}=\"{value}\""),
            ])
        };
        vsctl("--no-wait init")?;
        let extra = if site.hugepages {
            set("dpdk-socket-mem", "512")?;
            "--in-memory --no-pci --file-prefix=shuntovs"
        } else {
            "--no-huge -m 1024 --legacy-mem --no-shconf --no-pci --file-prefix=shuntovs"
        };
        set("dpdk-extra", extra)?;
        set("dpdk-init", "true")?;
        set("dpdk-lcore-mask", &format!("{:#x}", 1u64 << site.guest_core))?;
        set("pmd-cpu-mask", &format!("{:#x}", 1u64 << site.switch_core))?;
        set("userspace-tso-enable", if wiring.tso { "true" } else { "false" })?;
        let arguments = [
            format!("unix:{}", at("db.sock")),
            format!("--unixctl={}", at("sw.ctl")),
            format!("--log-file={}", at("sw.log")),
            "-vconsole:off".into(),
        ];
        let mut switch = Process::start("ovs-vswitchd", &own(SWITCH, &arguments), &log, Some(netns.id()));
        await_start("DPDK in ovs-vswitchd", &mut switch, LIMIT, |_| {
            vsctl("get Open_vSwitch . dpdk_initialized").ok().filter(|s| s.contains("true")).map(drop)
        })?;
        vsctl("add-br br0 -- set bridge br0 datapath_type=netdev protocols=OpenFlow10,OpenFlow15")?;
        let mut sockets = Vec::new();
        // Ports that make their sockets themselves never offer segmentation offload; those that connect do.
        let guests_listen = wiring.tso;
        for n in 0..wiring.sockets {
            let path = dir.join(format!("v{n}"));
            if guests_listen {
                let options = format!("options:vhost-server-path={}", path.display());
                vsctl(&format!(
                    "add-port br0 v{n} -- set Interface v{n} type=dpdkvhostuserclient {options}"
                ))?;
            } else {
                let number = format!("ofport_request={}", n + 1);
                vsctl(&format!("add-port br0 v{n} -- set Interface v{n} type=dpdkvhostuser {number}"))?;
                await_start("a port's socket", &mut switch, LIMIT, |_| path.exists().then_some(()))?;
            }
            sockets.push(path);
        }
        if wiring.task != Task::Bridge {
            sh(&["ovs-appctl", "-t", &at("sw.ctl"), "dpctl/ct-set-maxconns", "8000000"])?;
            let bridge = format!("unix:{}", at("br0.mgmt"));
            sh(&["ovs-ofctl", "del-flows", &bridge])?;
            for (command, lines) in [("add-groups", groups(wiring.task)), ("add-flows", flows(wiring.task))] {
                let file = dir.join(command);
                std::fs::write(&file, lines.join("\n"))?;
                sh(&["ovs-ofctl", "-O", "OpenFlow15", command, &bridge, &file.display().to_string()])?;
            }
        }
        for (device, namespace) in &wiring.taps {
            vsctl(&format!("add-port br0 {device} -- set Interface {device} type=tap"))?;
            // It makes devices where it lives; its descriptor stays good when they move.
            sh(&["ip", "-n", netns.id(), "link", "set", device, "netns", namespace])?;
        }
        Ok(Self { switch, dir: dir.to_owned(), sockets, guests_listen, _database: database, _netns: netns })
    }

    fn appctl(&self, arguments: &[&str]) -> Result<String> {
        let target = self.dir.join("sw.ctl").display().to_string();
        let mut argv = vec!["ovs-appctl", "-t", &target];
        argv.extend(arguments);
        sh(&argv)
    }
}

impl Candidate for Ovs {
    fn sockets(&self) -> &[PathBuf] {
        &self.sockets
    }

    fn guests_listen(&self) -> bool {
        self.guests_listen
    }

    fn process(&mut self) -> &mut Process {
        &mut self.switch
    }

    fn reset(&mut self) -> Result<()> {
        self.appctl(&["dpif-netdev/pmd-stats-clear"]).map(drop)
    }

    fn busy_cycles(&mut self) -> Result<Option<f64>> {
        let text = self.appctl(&["dpif-netdev/pmd-stats-show"])?;
        let pmd = text.split("pmd thread").nth(1).context("no PMD thread in its statistics")?;
        let number = pmd.split("avg processing cycles per packet:").nth(1);
        Ok(number.and_then(|rest| rest.split_whitespace().next()).and_then(|n| n.parse().ok()))
    }

    fn report(&mut self) -> String {
        self.appctl(&["dpif-netdev/pmd-stats-show"]).unwrap_or_default()
    }
}
