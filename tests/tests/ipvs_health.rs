//! Health checks: a web server that ends gets no more clients, and gets them again when it is back.

use std::time::Duration;

use serde_json::Value;
use shunt_tests::{Host, Job, NetNs, Shuntd, answers, is_root, wait_for};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(30);
const LONG: Duration = Duration::from_secs(600);
const SERVICE: &str = "tcp:10.9.9.9:80";

/// Serves its name on port 80.
fn serve(server: &NetNs, dir: &TempDir) -> Job {
    let job = server.start(&format!("exec busybox httpd -f -p 80 -h {}", dir.path().display()), LONG);
    wait_for("the server to listen", SOON, || (!server.sh("ss -Hltn sport = :80").is_empty()).then_some(()));
    job
}

/// Ends its server.
fn end(server: &NetNs) {
    server.sh("kill $(ss -Hltnp sport = :80 | sed 's/.*pid=\\([0-9]*\\).*/\\1/')");
    wait_for("the server's end", SOON, || server.sh("ss -Hltn sport = :80").is_empty().then_some(()));
}

/// Which servers answer a number of calls; every call must be answered.
fn answer(client: &NetNs, calls: usize) -> Vec<String> {
    let urls = vec!["http://10.9.9.9/"; calls].join(" ");
    let text = client.sh(&format!("curl -sS --max-time 20 {urls}"));
    let mut names: Vec<_> = text.lines().map(str::to_owned).collect();
    assert_eq!(names.len(), calls, "{text}");
    names.sort();
    names.dedup();
    names
}

/// What is known of a server.
fn checked(shuntd: &Shuntd, address: &str) -> Value {
    let checks = shuntd.ctl("check list");
    let servers = checks[0]["servers"].as_array().cloned().unwrap_or_default();
    servers.into_iter().find(|server| server["address"] == address).unwrap_or(Value::Null)
}

#[test]
fn a_server_that_fails_is_left_out_until_it_is_back() {
    if !is_root() {
        return;
    }
    let place = NetNs::new("director");
    let shuntd = Shuntd::start_within(&place);
    shuntd.network("wan", &["10.0.1.1/24"]);
    shuntd.network("lan", &["10.0.2.1/24"]);
    let client = shuntd.host("client", "wan");
    client.join("10.0.1.2/24", Some("10.0.1.1"));
    // The daemon's own way to the servers.
    shuntd.ctl("port add self --bridge br-lan --tap probe");
    place.up("probe", Some("10.0.2.2/24"));
    let servers = [1, 2, 3].map(|number| {
        let server = shuntd.host(&format!("s{number}"), "lan");
        server.join(&format!("10.0.2.1{number}/24"), Some("10.0.2.1"));
        server
    });
    let pages = servers.each_ref().map(|server| {
        let dir = tempfile::Builder::new().prefix("shunt-health-").tempdir().expect("a directory");
        std::fs::write(dir.path().join("index.html"), format!("{}\n", server.name())).expect("a page");
        dir
    });
    let _serving = [0, 1, 2].map(|number| serve(&servers[number], &pages[number]));
    shuntd.ctl("ipvsadm -A -t 10.9.9.9:80 -s rr");
    for number in [1, 2, 3] {
        shuntd.ctl(&format!("ipvsadm -a -t 10.9.9.9:80 -r 10.0.2.1{number}:80 -m -w {number}"));
    }
    answers(&place, "10.0.2.12", SOON);
    shuntd.ctl(&format!("check set {SERVICE} http --interval 1 --fall 2 --interface probe"));
    wait_for("checks", SOON, || (checked(&shuntd, "10.0.2.12")["checks"].as_u64()? > 1).then_some(()));
    assert_eq!(answer(&client, 9), ["s1", "s2", "s3"]);

    end(&servers[1]);
    wait_for("the failure", SOON, || (checked(&shuntd, "10.0.2.12")["up"] == false).then_some(()));
    wait_for("weight 0", SOON, || (checked(&shuntd, "10.0.2.12")["weight"] == 2).then_some(()));
    let known = checked(&shuntd, "10.0.2.12");
    assert_eq!(known["error"], "connection refused", "{known}");
    assert_eq!(answer(&client, 12), ["s1", "s3"]);
    let table = shuntd.ctl_text(&["check", "list"]).expect("a table");
    assert!(table.contains("10.0.2.12:80") && table.contains("down") && table.contains("0 (2)"), "{table}");
    let saved = shuntd.ctl_text(&["ipvsadm", "-Sn"]).expect("rules");
    assert!(
        saved.contains("-r 10.0.2.12:80 -m -w 0") && saved.contains("-r 10.0.2.13:80 -m -w 3"),
        "{saved}"
    );

    let _again = serve(&servers[1], &pages[1]);
    wait_for("the return", SOON, || (checked(&shuntd, "10.0.2.12")["up"] == true).then_some(()));
    wait_for("its weight", SOON, || checked(&shuntd, "10.0.2.12")["weight"].is_null().then_some(()));
    assert_eq!(answer(&client, 9), ["s1", "s2", "s3"]);

    // A status that is not wanted is a failure of all; without the check all are back.
    shuntd.ctl(&format!("check set {SERVICE} http --interval 1 --fall 1 --status 204 --interface probe"));
    for address in ["10.0.2.11", "10.0.2.12", "10.0.2.13"] {
        wait_for("the failure", SOON, || checked(&shuntd, address)["weight"].is_i64().then_some(()));
    }
    assert_eq!(checked(&shuntd, "10.0.2.11")["error"], "status 200 is not 204 to 204");
    shuntd.ctl(&format!("check del {SERVICE}"));
    assert_eq!(shuntd.ctl("check list"), serde_json::json!([]));
    assert_eq!(answer(&client, 9), ["s1", "s2", "s3"]);
    assert!(shuntd.try_ctl(&["check", "del", SERVICE]).is_err(), "there is none");
}
