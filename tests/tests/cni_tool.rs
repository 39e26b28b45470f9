//! The CNI plugin driven by the reference library: `cnitool`, where it is installed (1.2 or later, for `gc` and
//! `status`). containerd and CRI-O call plugins through the same library.

use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use shunt_tests::cni::{Cni, address};
use shunt_tests::{Host, NetNs, Shuntd, Web, answers, is_root, progress, tools};

const SOON: Duration = Duration::from_secs(15);

/// What `cnitool COMMAND shunt NETNS` prints, or says of its failure.
fn cnitool(shuntd: &Shuntd, command: &str, netns: &NetNs) -> Result<Value, String> {
    let plugins = tools::shunt_cni();
    let output = Command::new("cnitool")
        .args([command, "shunt", &netns.path()])
        .env("NETCONFPATH", shuntd.path("net.d"))
        .env("CNI_PATH", plugins.parent().unwrap_or(&plugins))
        .env("CNI_IFNAME", "eth0")
        .env("CAP_ARGS", r#"{"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}"#)
        .output()
        .map_err(|error| error.to_string())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    match output.status.success() {
        true => Ok(serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)),
        false => Err(format!("{} {}", text(&output.stdout), text(&output.stderr))),
    }
}

#[test]
fn the_reference_library_drives_the_plugin() {
    if !is_root() {
        return;
    }
    let usage = Command::new("cnitool").output().map(|output| [output.stdout, output.stderr].concat());
    if !usage.is_ok_and(|text| String::from_utf8_lossy(&text).contains("cnitool status")) {
        progress!("SKIPPED: there is no cnitool 1.2 or later");
        return;
    }
    let shuntd = Shuntd::start();
    shuntd.network("cont", &["10.88.0.1/16", "fd88::1/64"]);
    shuntd.network("wan", &["10.0.2.15/24"]);
    let outside = shuntd.host("outside", "wan");
    outside.join("10.0.2.2/24", None);
    answers(&outside, "10.0.2.15", SOON);

    let cni = Cni::new(&shuntd, "shunt", "br-cont");
    let mut plugin = cni.config.clone();
    plugin["capabilities"] = json!({"portMappings": true, "bandwidth": true});
    let fields = plugin.as_object_mut().expect("an object");
    let (version, name) = (fields.remove("cniVersion"), fields.remove("name"));
    let list = json!({"cniVersion": version, "name": name, "plugins": [plugin]});
    std::fs::create_dir_all(shuntd.path("net.d")).expect("a directory");
    std::fs::write(shuntd.path("net.d/10-shunt.conflist"), list.to_string()).expect("a file");

    let before = shuntd.ctl("nat list");
    let web = NetNs::new("web");
    cnitool(&shuntd, "status", &web).expect("ready");
    let added = cnitool(&shuntd, "add", &web).expect("added");
    assert_eq!(address(&added, 0), "10.88.0.2");
    answers(&web, "10.88.0.1", SOON);
    let server = Web::serve(&web, 80, 64);
    server.fetch_intact(&outside, "10.0.2.15:8080");
    cnitool(&shuntd, "check", &web).expect("as it was added");
    web.ip("link set eth0 down");
    let error = cnitool(&shuntd, "check", &web).expect_err("the device is down");
    assert!(error.contains("down"), "{error}");
    drop(server);

    cnitool(&shuntd, "del", &web).expect("deleted");
    assert!(!web.run("ip link show eth0").ok(), "the device is gone");
    assert_eq!(cni.records().len(), 0);
    cnitool(&shuntd, "del", &web).expect("gone already is no error");

    // What a runtime has forgotten is collected: cnitool names no attachment as valid.
    cnitool(&shuntd, "add", &web).expect("added again");
    assert_eq!(cni.records().len(), 1);
    cnitool(&shuntd, "gc", &web).expect("collected");
    assert_eq!(cni.records().len(), 0);
    assert_eq!(shuntd.ctl("nat list"), before);
}
