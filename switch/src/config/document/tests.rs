use super::*;
use crate::config::Config;

/// A file with everything that a file can have.
pub(crate) const WHOLE: &str = r#"
[rebalance]
auto = true
interval = 90
load_threshold = 80
improvement_threshold = 0
[[bridge]]
name = "br0"
ageing = 60
fdb_limit = 1000
filter = true
[[bridge]]
name = "br1"
[[port]]
name = "web"
bridge = "br0"
vhost_user = "/run/web.sock"
role = "client"
queues = 4
mtu = 9000
mac = "52:54:00:00:00:01"
pins = [{ queue = 2, core = 1 }]
guard = true
allow_address = ["10.9.0.0/16", "fd00::1/128"]
ingress_rate = 1000000
egress_rate = 8
egress_burst = 1000000
[[port]]
name = "tap"
bridge = "br1"
tap = "tap0"
netns = "blue"
persist = true
[[port]]
name = "nic"
bridge = "br1"
netdev = "eth0"
queues = 2
[[fdb]]
bridge = "br0"
mac = "52:54:00:00:00:02"
port = "web"
vlan = 7
[[interface]]
name = "gw"
bridge = "br0"
address = ["10.0.3.1/24", "fd00::1/64"]
clamp_mss = true
[[interface]]
name = "wan"
bridge = "br1"
vlan = 5
mac = "02:00:00:00:00:05"
mtu = 1400
address = ["192.0.2.2/24"]
up = false
[[neighbour]]
interface = "gw"
address = "10.0.3.9"
mac = "52:54:00:00:00:09"
[[route]]
prefix = "default"
via = "192.0.2.1"
[[route]]
prefix = "default"
via = "192.0.2.3"
[[route]]
prefix = "10.9.0.0/16"
kind = "blackhole"
metric = 5
[[route]]
prefix = "198.51.100.0/24"
via = "203.0.113.1"
dev = "wan"
onlink = true
[[nat.masquerade]]
source = "10.0.3.0/24"
out = "wan"
not_destination = ["10.0.3.0/24"]
to_ports = "32768-60999"
[[nat.masquerade]]
id = 40
source = "10.0.8.0/24"
not_out = "gw"
endpoint_independent = true
[[nat.snat]]
source = "10.0.4.0/24"
to = "192.0.2.8-192.0.2.9:1024-2047"
[[nat.publish]]
proto = "tcp"
listen = "*:8080"
to = "10.0.3.16:80"
in = "wan"
[[nat.publish]]
proto = "udp"
listen = "[fd00::1]:5000-5001"
to = "[fd00::5]:5000-5001"
[[nat.one-to-one]]
outside = "192.0.2.20"
inside = "10.0.3.17"
out = "wan"
[forward]
default = "drop"
isolation = true
[[policy]]
from = "web"
source = "10.0.3.0/24,!10.0.3.7"
to = "!interface:wan"
proto = "tcp"
dport = "80,443,8000-8100"
state = "new,related"
action = "reject"
log = true
[[policy]]
id = 5
from = "port:gone"
action = "mark"
mark = 9
[[dhcp]]
interface = "gw"
range = "10.0.3.2-10.0.3.100"
lease = 600
router = "none"
dns = ["10.0.3.1", "fd00::1"]
domain = "example.org"
mtu = 1400
route = ["10.8.0.0/16=10.0.3.254"]
ra = true
per_port = 7
reserve = [{ mac = "52:54:00:00:00:01", address = "10.0.3.16", hostname = "web" }]
[[container]]
id = "0123abc"
qmp = "/run/qmp.sock"
bridge = "br0"
role = "client"
tap = "name"
agent = "vsock:5:1024"
nic = [{ device = "tap9", name = "eth0", hwAddr = "02:42:20:6f:a3:69", mtu = 1500, queues = 5, IPAddresses = [{ address = "172.16.0.3", mask = "16" }] }]
route = [{ dest = "default", gateway = "172.16.0.1", device = "eth0" }]
[[container]]
id = "4567"
bridge = "br1"
nic = [{ device = "vnic1", name = "eth0", hwAddr = "02:42:20:6f:a3:70", mtu = 1500, queues = 2, vhostUserSocket = "/run/vnic1.sock" }]
[[nic]]
device = "vnic1"
mtu = 1400
pins = [{ queue = 1, core = 2 }]
guard = false
allow_address = []
ingress_rate = 1000000
egress_rate = 2000000
egress_burst = 8
[[nic]]
device = "tap9"
allow_address = ["172.16.0.0/16"]
[[fdb]]
bridge = "br1"
mac = "52:54:00:00:00:77"
port = "vnic1"
[conntrack]
capacity = 8192
limit = 4096
port_quota = 100
half_open = 50
timeouts = { udp = 60, tcp_established = 86400 }
[[ipvs.service]]
service = "tcp:10.0.3.100:80"
scheduler = "mh"
flags = ["mh-port"]
persistent = 60
netmask = "255.255.255.0"
[[ipvs.service]]
service = "mark6:5"
[[ipvs.server]]
service = "tcp:10.0.3.100:80"
address = "10.1.0.1:8080"
forward = "masquerade"
weight = 3
upper = 10
lower = 5
[[ipvs.server]]
service = "tcp:10.0.3.100:80"
address = "10.1.0.2:80"
forward = "tunnel"
tunnel = "gue"
tunnel_port = 6080
tunnel_checksum = "remote"
[[ipvs.server]]
service = "tcp:10.0.3.100:80"
address = "10.1.0.3:80"
forward = "full-nat"
pool = "10.0.0.5-10.0.0.9"
[ipvs.timeouts]
tcp = 100
tcp_fin = 0
udp = 7
[ipvs.settings]
expire_nodest_conn = 1
[[ipvs.daemon]]
role = "master"
interface = "eth0"
sync_id = 3
[[ipvs.container.0123abc.service]]
service = "udp:10.0.3.100:53"
one_packet = true
[[ipvs.container.0123abc.server]]
service = "udp:10.0.3.100:53"
address = "10.1.0.9:53"
[ipvs.container.0123abc.settings]
sloppy_tcp = 1
[[check]]
service = "tcp:10.0.3.100:80"
kind = "http"
path = "/live"
host = "www"
"#;

fn parse(text: &str) -> Document {
    Document::parse(text, None).unwrap_or_else(|refusal| panic!("{refusal}\n{text}"))
}

#[test]
fn what_is_written_is_read_as_the_same() {
    let document = parse(WHOLE);
    let text = document.to_toml().unwrap();
    let again = parse(&text);
    assert_eq!(document.difference(&again), []);
    assert_eq!(again.to_toml().unwrap(), text);
    let mut kinds: Vec<&str> = document.entries.keys().map(Key::kind).collect();
    kinds.dedup();
    assert_eq!(kinds.len(), 19, "a kind of thing is missing: {kinds:?}");
    assert_eq!(parse("").entries.len(), 0);
}

#[test]
fn every_entry_and_key_is_the_same_as_json() {
    for (key, entry) in parse(WHOLE).entries {
        let text = serde_json::to_string(&(&key, &entry)).unwrap();
        assert_eq!(serde_json::from_str::<(Key, Entry)>(&text).unwrap(), (key, entry), "{text}");
    }
}

#[test]
fn a_table_for_more_connections_than_there_may_be() {
    for (text, expected) in [
        ("limit = 8192", Some(("None", "Some(8192)"))),
        ("limit = 262144", None),
        ("capacity = 262144", None),
        ("capacity = 8192\nlimit = 5", Some(("Some(8192)", "Some(5)"))),
        ("capacity = 262144\nlimit = 5", Some(("Some(262144)", "Some(5)"))),
        ("capacity = 524288\nlimit = 262144", Some(("Some(524288)", "Some(262144)"))),
        ("capacity = 8192", Some(("None", "Some(8192)"))),
    ] {
        let document = parse(&format!("[conntrack]\n{text}\n"));
        let found = document.entries.get(&Key::Conntrack).map(|entry| match entry {
            Entry::Conntrack(table) => (format!("{:?}", table.capacity), format!("{:?}", table.limit)),
            other => panic!("{other:?}"),
        });
        let expected = expected.map(|(capacity, limit)| (capacity.to_owned(), limit.to_owned()));
        assert_eq!(found, expected, "{text}");
    }
    let refusal = Config::parse("[conntrack]\ncapacity = 8192\nlimit = 8193\n", None).unwrap_err();
    assert!(
        refusal.to_string().contains(":3:9: limit 8193 is out of range: it must be 1 to 8192"),
        "{refusal}"
    );
}

#[test]
fn what_differs_is_told_in_lines() {
    let from = parse(WHOLE);
    let lines =
        |to: &str| -> Vec<String> { from.difference(&parse(to)).iter().map(Difference::line).collect() };
    let changed = WHOLE
        .replace("ageing = 60", "ageing = 90")
        .replacen("role = \"client\"\n", "", 1)
        .replace("weight = 3", "weight = 4")
        .replace("prefix = \"10.9.0.0/16\"", "prefix = \"10.9.0.0/17\"")
        .replace("[[port]]\nname = \"nic\"\nbridge = \"br1\"\nnetdev = \"eth0\"\nqueues = 2\n", "");
    assert_eq!(
        lines(&changed),
        [
            "~ bridge br0: ageing 60 -> 90",
            "- port nic",
            "~ port web: role client -> default",
            "- route 10.9.0.0/16 metric 5",
            "+ route 10.9.0.0/17 metric 5",
            "~ ipvs service tcp:10.0.3.100:80: ~server 10.1.0.1:8080 (weight 3 -> 4)",
        ]
    );
    assert_eq!(lines(WHOLE), [""; 0]);
}

#[test]
fn rules_without_numbers_keep_those_of_equal_ones() {
    let rule = |id: &str, source: &str| format!("[[nat.masquerade]]\n{id}source = \"{source}\"\n");
    let present = parse(&(rule("id = 3\n", "10.0.0.0/24") + &rule("id = 7\n", "10.0.1.0/24")));
    let file = rule("", "10.0.2.0/24") + &rule("", "10.0.1.0/24") + &rule("id = 9\n", "10.0.4.0/24");
    let config = Config::parse(&file, None).unwrap();
    let wanted = present.numbered(config.document().unwrap(), &config.layer3.nat_numbers());
    let lines: Vec<_> = present.difference(&wanted).iter().map(Difference::line).collect();
    assert_eq!(lines, ["- nat 3", "+ nat 9", "+ nat 10"]);
}
