//! ipvsadm in front of a running daemon: what was recorded of the real one, restoring, large tables, wrong input.

use std::fmt::Write as _;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::Instant;

use shunt_tests::ipvsadm::{recording, sorted};
use shunt_tests::{Shuntd, progress, tools};

/// Services with three servers each, as lines for `-R`.
fn table(services: u32) -> String {
    let mut text = String::new();
    for n in 0..services {
        let name = format!("10.{}.{}.{}:80", 100 + (n >> 16), n >> 8 & 0xff, n & 0xff);
        let _ = writeln!(text, "-A -t {name} -s rr");
        for server in 1..4 {
            let _ = writeln!(
                text,
                "-a -t {name} -r 10.{server}.{}.{}:8080 -m -w {server}",
                n >> 8 & 0xff,
                n & 0xff
            );
        }
    }
    text
}

#[test]
fn what_was_recorded_of_ipvsadm_is_said_to_the_byte() {
    let shuntd = Shuntd::start();
    let commands = recording(include_str!("../../cli/src/ipvsadm/tests/control.golden"));
    assert!(commands.len() > 100, "{} commands", commands.len());
    for command in commands {
        let mut words: Vec<&str> = command.words.iter().map(String::as_str).collect();
        if words == ["-R"] {
            // What was recorded is line by line.
            words.push("--keep-going");
        }
        let said = shuntd.ipvsadm(&words, command.input.as_bytes()).recorded();
        if words.contains(&"--nosort") {
            assert_eq!(sorted(&said), sorted(&command.said), "ipvsadm {}", words.join(" "));
        } else {
            assert_eq!(said, command.said, "ipvsadm {}", words.join(" "));
        }
    }
}

#[test]
fn a_link_of_its_name_is_ipvsadm() {
    let shuntd = Shuntd::start();
    let link = shuntd.path("ipvsadm");
    symlink(tools::shuntctl(), &link).unwrap();
    let run = |words: &[&str]| {
        let control = shuntd.path("control.sock");
        Command::new(&link).args(words).env("SHUNT_CONTROL", control).output().unwrap()
    };
    assert!(run(&["-A", "-t", "10.0.0.1:80", "-s", "rr"]).status.success());
    assert_eq!(run(&["-S", "-n"]).stdout, b"-A -t 10.0.0.1:80 -s rr\n");
    let wrong = run(&["--bogus"]);
    let said = String::from_utf8_lossy(&wrong.stderr);
    assert!(wrong.status.code() == Some(255) && said.contains("/ipvsadm -h' or '"), "{said}");
    assert_eq!(run(&["-h"]).status.code(), Some(0));
}

#[test]
fn a_restore_is_one_transaction_and_names_the_line() {
    let shuntd = Shuntd::start();
    let restore =
        |options: &[&str], text: &str| shuntd.ipvsadm(&[&["-R"], options].concat(), text.as_bytes());
    assert_eq!(restore(&[], &table(3)).status, 0);
    let before = shuntd.vs("-S -n");
    assert_eq!(before.lines().count(), 12);
    for (text, message, status) in [
        ("-A -t 10.0.0.9:80 -s rr\n\n-A -t 10.0.0.9:80 -s wrr\n", "line 3: Service already exists", 255),
        ("-A -t 10.0.0.9:80 -s rr\n-a -t 10.0.0.8:80 -r 10.1.1.1\n", "line 2: Service not defined", 255),
        ("-D -t 10.0.0.9:80", "line 1: No such service", 255),
        ("-A -t 10.0.0.9:80\n-A -t 10.0.0.8\n", "line 2: Zero port specified for non-persistent service", 2),
        ("-A -t 10.0.0.9:80\n-A --bogus\n", "line 2: --bogus: unknown option", 255),
        (
            "-A -t 10.0.0.9:80\ngarbage\n",
            "line 2: Try `ipvsadm -h' or 'ipvsadm --help' for more information.",
            255,
        ),
        ("-C\n-A -t 10.0.0.9:80 -s nosuch", "line 2: Scheduler or persistence engine not found", 255),
        ("-C\n-L -n\n", "line 2: only services, servers and --set", 2),
        ("-C\n-A -t 10.0.0.9:80\0\n", "line 2: it has a zero byte", 2),
    ] {
        let said = restore(&[], text);
        assert!(said.err.starts_with(message) && said.status == status, "{text:?}: {said:?}");
        assert_eq!(shuntd.vs("-S -n"), before, "{text:?}");
    }
    assert_eq!(restore(&[], &before).err, "line 1: Service already exists\n");
    assert_eq!(restore(&["--replace"], &before).status, 0);
    assert_eq!(shuntd.vs("-S -n"), before);
    let changed = before.replacen("-w 1", "-w 7", 1);
    let shorter: String = changed.lines().take(8).map(|line| format!("{line}\n")).collect();
    assert_eq!(restore(&["--replace"], &shorter).status, 0);
    assert_eq!(shuntd.vs("-S -n"), shorter);
    let said = restore(&["--replace"], "-A -t 10.0.0.9:80\n-C\n");
    assert!(said.err.starts_with("line 2: only services and servers"), "{said:?}");
    let said = restore(&["--replace", "--keep-going"], "");
    assert!(said.status == 2 && said.err.contains("exclude each other"), "{said:?}");
    assert_eq!(shuntd.vs("-S -n"), shorter);
}

#[test]
fn containers_have_tables_of_their_own() {
    let shuntd = Shuntd::start();
    shuntd.vs("-A -t 10.0.0.1:80 -s rr");
    let full = table(5000);
    let said = shuntd.ipvsadm(&["-R", "--container", "box"], full.as_bytes());
    assert_eq!((said.status, said.err.as_str()), (0, ""));
    assert_eq!(shuntd.vs("-S -n"), "-A -t 10.0.0.1:80 -s rr\n");
    assert_eq!(shuntd.vs("-S -n --container box").lines().count(), 20_000);
    let said = shuntd.ipvsadm(&["--container", "box", "-A", "-t", "10.0.0.1:80"], b"");
    assert_eq!(said.status, 255, "an option before the command is none of ipvsadm's: {said:?}");
    let said = shuntd.ipvsadm(&["-A", "-t", "10.0.0.1:80", "--container", "box"], b"");
    assert!(said.status == 255 && said.err.contains("10.0.0.1:80") && said.err.contains("20000"), "{said:?}");
    let tables = shuntd.ctl("ipvs tables");
    assert_eq!((&tables[0]["rules"], &tables[1]["rules"]), (&1.into(), &20_000.into()), "{tables}");
    let said = shuntd.ipvsadm(&["-L", "-n", "--container", "nosuch"], b"");
    assert!(said.status == 1 && said.err.contains("nosuch"), "{said:?}");
}

#[test]
fn listings_settings_and_cleanup_speak_json() {
    let shuntd = Shuntd::start();
    shuntd.vs("-A -u 10.0.0.1:53 -s sh -b sh-port -p 60 -M 255.255.255.0");
    shuntd.vs("-a -u 10.0.0.1:53 -r 10.1.0.1:53 -i --tun-type gue --tun-port 6080 -w 3");
    shuntd.vs("-a -u 10.0.0.1:53 -r 10.1.0.2:5353 --full-nat 10.2.0.1-10.2.0.9");
    let listed = shuntd.ctl("ipvsadm -L -n");
    let service = &listed[0];
    assert_eq!(service["service"], "udp:10.0.0.1:53");
    assert_eq!((&service["scheduler"], &service["flags"][0]), (&"sh".into(), &"sh-port".into()));
    assert_eq!((&service["persistent"], &service["netmask"]), (&60.into(), &"255.255.255.0".into()));
    let servers = &service["servers"];
    assert_eq!((&servers[0]["tunnel"], &servers[0]["tunnel_port"]), (&"gue".into(), &6080.into()));
    assert_eq!(
        (&servers[1]["forward"], &servers[1]["pool"]),
        (&"full-nat".into(), &"10.2.0.1-10.2.0.9".into())
    );
    let saved = shuntd.vs("-S -n");
    assert!(saved.contains("-r 10.1.0.2:5353 --full-nat 10.2.0.1-10.2.0.9 -w 1"), "{saved}");
    shuntd.vs("-C");
    assert_eq!(shuntd.ipvsadm(&["-R"], saved.as_bytes()).status, 0);
    assert_eq!(shuntd.vs("-S -n"), saved);
    assert_eq!(shuntd.ctl("ipvsadm -L --timeout")["tcp_fin"], 120);
    assert_eq!(shuntd.ctl("ipvs show")["expire_nodest_conn"], 0);
    assert_eq!(shuntd.ctl("ipvs set expire_nodest_conn 1")["expire_nodest_conn"], 1);
    let refused = shuntd.try_ctl(&["ipvs", "set", "expire_nodest_conn", "2"]).unwrap_err();
    assert!(refused.message.contains("0 to 1"), "{refused:?}");
    let cleaned = shuntd.ctl_text(&["ipvs", "cleanup", "--orig-dst", "10.1.0.1", "--protonum", "tcp"]);
    assert_eq!(cleaned.unwrap(), "0 flow entries have been deleted\n");
}

#[test]
fn a_million_rules_are_restored_and_listed() {
    let shuntd = Shuntd::start();
    let text = table(250_000);
    let start = Instant::now();
    let said = shuntd.ipvsadm(&["-R"], text.as_bytes());
    assert_eq!((said.status, said.err.as_str()), (0, ""));
    progress!("restored after {:?}", start.elapsed());
    let pid = shuntd.pid().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap().trim();
    let kibibytes: u64 = peak.strip_suffix(" kB").unwrap().trim().parse().unwrap();
    progress!("the daemon had {kibibytes} KiB at most");
    assert!(kibibytes <= 1 << 20, "{kibibytes} KiB");
    let said = shuntd.ipvsadm(&["-A", "-t", "192.168.0.1:80"], b"");
    assert!(said.status == 255 && said.err.contains("1000000"), "{said:?}");
    assert_eq!(sorted(&shuntd.vs("-S -n")), sorted(&text));
    shuntd.vs("-C");
    assert_eq!(shuntd.vs("-S -n"), "");
}

#[test]
fn wrong_rules_are_refused_however_many_they_are() {
    let shuntd = Shuntd::start();
    shuntd.vs("-A -t 10.0.0.1:80 -s rr");
    let garbage = b"rubbish\n".repeat(10_000_000);
    let said = shuntd.ipvsadm(&["-R"], &garbage);
    assert!(said.status == 255 && said.err.starts_with("line 1: Try `ipvsadm -h'"), "{said:?}");
    drop(garbage);
    let endless = vec![b'x'; 64 << 20];
    let said = shuntd.ipvsadm(&["-R"], &endless);
    assert!(said.status == 2 && said.err.starts_with("line 1: it is longer"), "{said:?}");
    let said = shuntd.ipvsadm(&["-R", "--keep-going"], &endless);
    assert!(said.status == 2 && said.err.starts_with("line 1: it is longer"), "{said:?}");
    let many = b"-d -t 10.0.0.1:80 -r 10.0.0.2:80\n".repeat(2_200_000);
    let said = shuntd.ipvsadm(&["-R"], &many);
    assert!(
        said.status == 255 && said.err.starts_with("line 2100001: more than 2100000 changes"),
        "{said:?}"
    );
    assert_eq!(shuntd.vs("-S -n"), "-A -t 10.0.0.1:80 -s rr\n");
}
