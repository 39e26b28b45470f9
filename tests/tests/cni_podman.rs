//! podman with shunt as its network: what its users type, on real containers.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use shunt_tests::{Host, NetNs, Shuntd, Web, answers, is_root, progress, tools};

/// Containers of this test alone: a store, a runtime directory and a configuration of their own. Gone when dropped.
struct Podman<'a> {
    shuntd: &'a Shuntd,
}

impl<'a> Podman<'a> {
    /// `None` where there is no podman that speaks CNI (from version 5 on it does not).
    fn new(shuntd: &'a Shuntd, network: &Value) -> Option<Self> {
        let version = Command::new("podman").arg("--version").output().ok()?;
        let version = String::from_utf8_lossy(&version.stdout).into_owned();
        let major =
            version.split(' ').next_back().and_then(|text| text.split('.').next()?.parse::<u32>().ok())?;
        if major > 4 {
            progress!("SKIPPED: {} does not speak CNI", version.trim());
            return None;
        }
        let podman = Self { shuntd };
        let at = |file: &str| shuntd.path(file).display().to_string();
        std::fs::create_dir_all(shuntd.path("net.d")).ok()?;
        std::fs::write(shuntd.path("net.d/10-shunt.conflist"), network.to_string()).ok()?;
        let plugins = tools::shunt_cni();
        let plugins = plugins.parent().unwrap_or(Path::new("/")).display();
        let containers = format!(
            "[network]\nnetwork_backend = \"cni\"\ncni_plugin_dirs = [\"{plugins}\", \"/usr/lib/cni\"]\n\
             network_config_dir = \"{}\"\ndefault_network = \"shunt\"\n\
             [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\ntmp_dir = \"{}\"\nstatic_dir = \"{}\"\n\
             [containers]\nlog_driver = \"k8s-file\"\n",
            at("net.d"),
            at("podman-tmp"),
            at("podman-static")
        );
        std::fs::write(shuntd.path("containers.conf"), containers).ok()?;
        Some(podman)
    }

    fn run(&self, arguments: &[&str]) -> Result<String, String> {
        let path = |file: &str| self.shuntd.path(file);
        let output = Command::new("timeout")
            .args(["60", "podman", "--storage-driver", "vfs", "--runtime", "crun", "--root"])
            .arg(path("store"))
            .arg("--runroot")
            .arg(path("runroot"))
            .args(arguments)
            .env("CONTAINERS_CONF", path("containers.conf"))
            .stdin(Stdio::null())
            .output()
            .map_err(|error| error.to_string())?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    #[track_caller]
    fn must(&self, arguments: &[&str]) -> String {
        self.run(arguments).unwrap_or_else(|error| panic!("podman {}: {error}", arguments.join(" ")))
    }

    /// A container on a root file system of busybox alone; without limits of its own, which sandboxes may forbid to set.
    fn container(&self, name: &str, options: &[&str], command: &[&str]) -> Result<String, String> {
        let root = self.shuntd.path("rootfs").display().to_string();
        let fixed = ["run", "--name", name, "--cgroups=disabled", "--network=shunt"];
        let limits = ["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"];
        self.run(&[&fixed[..], &limits[..], options, &["--rootfs", &root], command].concat())
    }
}

impl Drop for Podman<'_> {
    fn drop(&mut self) {
        let _ = self.run(&["rm", "--all", "--force", "--time=0"]);
        // What it mounts below its store would keep the directory.
        for mount in std::fs::read_to_string("/proc/self/mounts").unwrap_or_default().lines().rev() {
            if let Some(at) =
                mount.split(' ').nth(1).filter(|at| Path::new(at).starts_with(self.shuntd.dir()))
            {
                let _ = Command::new("umount").arg(at).status();
            }
        }
    }
}

#[test]
fn containers_of_podman_are_connected_and_published() {
    if !is_root() {
        return;
    }
    let shuntd = Shuntd::start();
    shuntd.network("wan", &["198.51.100.15/24"]);
    let network = json!({"cniVersion": "1.0.0", "name": "shunt", "plugins": [{
        "type": "shunt-cni", "bridge": "shunt0", "control": shuntd.path("control.sock"),
        "stateDir": shuntd.path("cni"), "socketDir": shuntd.path("sockets"), "ipam": {"type": "shunt"},
        "capabilities": {"portMappings": true, "bandwidth": true, "mac": true, "ips": true, "aliases": true, "dns": true}
    }]});
    let Some(podman) = Podman::new(&shuntd, &network) else { return };
    let outside = shuntd.host("outside", "wan");
    outside.join("198.51.100.2/24", None);
    answers(&outside, "198.51.100.15", std::time::Duration::from_secs(15));
    let root = shuntd.path("rootfs");
    let root = root.display();
    let local = NetNs::new("builder");
    local.sh(&format!(
        "mkdir -p {root}/bin {root}/proc {root}/sys {root}/dev {root}/etc {root}/tmp {root}/www {root}/run
         cp /bin/busybox {root}/bin/; for a in sh ip ping httpd wget; do ln -s busybox {root}/bin/$a; done
         touch {root}/etc/passwd {root}/etc/group; echo from podman >{root}/www/index.html"
    ));

    let options = ["--detach", "--publish=8080:80", "--ip=10.0.3.77", "--mac-address=02:00:00:00:00:77"];
    match podman.container("web", &options, &["/bin/httpd", "-f", "-p", "80", "-h", "/www"]) {
        // Container runtimes need more of the kernel (limits, one kind of cgroups) than a sandbox may grant.
        Err(error) if error.contains("crun:") => {
            progress!("SKIPPED: no containers here: {error}");
            return;
        }
        other => assert!(other.is_ok(), "{other:?}"),
    }
    let script = "ip -o -4 address show eth0; ip route; ping -c1 -W5 10.0.3.77; wget -qO- http://10.0.3.77/";
    let told = podman.container("guest", &["--rm"], &["/bin/sh", "-c", script]).expect("ran");
    for wanted in ["10.0.3.", "default via 10.0.3.1", "1 packets received", "from podman"] {
        assert!(told.contains(wanted), "{wanted} is not in {told}");
    }
    let inspected = podman.must(&["inspect", "web", "--format", "{{json .NetworkSettings.Networks.shunt}}"]);
    let inspected: Value = serde_json::from_str(&inspected).expect("JSON");
    assert_eq!(
        (&inspected["IPAddress"], &inspected["Gateway"], &inspected["MacAddress"]),
        (&json!("10.0.3.77"), &json!("10.0.3.1"), &json!("02:00:00:00:00:77"))
    );
    let page = outside.sh("curl -sS --max-time 10 http://198.51.100.15:8080/");
    assert_eq!(page, "from podman");
    // The other way: the container reaches a server outside, masqueraded.
    let server = Web::serve(&outside, 80, 8);
    let fetched = podman.must(&["exec", "web", "/bin/wget", "-qO-", "http://198.51.100.2/cgi-bin/who"]);
    assert!(fetched.contains("198.51.100.15"), "{fetched}");
    drop(server);

    let before = shuntd.ctl("port list").as_array().map(Vec::len);
    podman.must(&["rm", "--force", "--time=0", "web"]);
    assert_eq!(before, Some(2));
    assert_eq!(shuntd.ctl("port list").as_array().map(Vec::len), Some(1), "the outside's");
    let rules = shuntd.ctl("nat list").to_string();
    assert!(!rules.contains("8080"), "{rules}");
    let reserved = shuntd.ctl("dhcp show shunt0")["reservations"].clone();
    assert_eq!(reserved, json!([]));
}
