//! Secure containers as openEuler's Kata users handle them: `kata-runtime kata-network`, JSON in, JSON out.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::daemon::Shuntd;
use crate::guest::Guest;
use crate::host::{Host, Job};
use crate::ipvsadm::Said;
use crate::tools;

/// What udhcpc calls for what it has agreed on, inside a guest.
const LEASE: &str = r#"#!/bin/sh
echo "$1 address=$ip/$mask mtu=$mtu routers=$router routes=$staticroutes" >>/tmp/lease-$interface
case $1 in
  bound | renew)
    ip address replace "$ip/$mask" dev $interface
    [ -z "$mtu" ] || ip link set $interface mtu "$mtu"
    set -- $staticroutes
    while [ $# -ge 2 ]; do
      if [ "$2" = 0.0.0.0 ]; then ip route replace "$1" dev $interface
      else ip route replace "$1" via "$2" dev $interface; fi
      shift 2
    done ;;
  deconfig) ip link set $interface up; ip -4 address flush dev $interface ;;
esac
"#;

impl Shuntd {
    /// `shuntctl` under the name `kata-runtime`.
    #[track_caller]
    pub fn kata_runtime(&self) -> PathBuf {
        let link = self.path("kata-runtime");
        if !link.exists() {
            let made = tools::shuntctl().canonicalize().and_then(|to| std::os::unix::fs::symlink(to, &link));
            made.unwrap_or_else(|e| panic!("no link {}: {e}", link.display()));
        }
        link
    }

    /// `kata-runtime kata-network VERB ID -` with `input`.
    #[track_caller]
    pub fn kata_network(&self, verb: &str, id: &str, input: &str) -> Said {
        let file: &[&str] = if verb.starts_with("list-") { &[] } else { &["-"] };
        let words = [&["kata-network", verb, id], file].concat();
        self.said(&self.kata_runtime(), &words, input.as_bytes())
    }

    /// The same for one that must succeed; its JSON.
    #[track_caller]
    pub fn kata(&self, verb: &str, id: &str, input: &str) -> Value {
        let said = self.kata_network(verb, id, input);
        assert_eq!(said.status, 0, "kata-network {verb} {id} {input}: {said:?}");
        assert_eq!(said.out.lines().count(), 1, "one line of JSON: {said:?}");
        serde_json::from_str(&said.out).unwrap_or_else(|e| panic!("{e}: {said:?}"))
    }

    /// Registers a guest as a container.
    #[track_caller]
    pub fn container(&self, id: &str, guest: &Guest, options: &str) {
        self.ctl(&format!("container add {id} --qmp {} {options}", guest.monitor().display()));
    }
}

impl Guest {
    /// Starts to wait for a NIC with this MAC address, has it ask for an address by DHCP, and pings `target` through it
    /// until it answers. The last line of the job's text is the NIC's name.
    #[track_caller]
    pub fn await_nic(&self, mac: &str, target: &str, limit: Duration) -> Job {
        let script = format!(
            "cat >/tmp/lease.sh <<'END'\n{LEASE}END\nchmod +x /tmp/lease.sh
             until nic=$(grep -il {mac} /sys/class/net/*/address 2>/dev/null); do usleep 20000; done
             nic=${{nic#/sys/class/net/}}; nic=${{nic%/address}}
             ip link set $nic up
             busybox udhcpc -i $nic -n -q -t 30 -T 1 -s /tmp/lease.sh -O mtu -O staticroutes >/tmp/udhcpc 2>&1 || {{ cat /tmp/udhcpc; exit 1; }}
             until ping -c1 -W1 -I $nic {target} >/dev/null; do :; done
             echo $nic"
        );
        self.start(&script, limit)
    }
}
