//! The configuration file: TOML with a `[daemon]` table, `[[bridge]]`, `[[port]]`, and the tables of layer 3
//! ([`super::layer3`]).
//!
//! A table is the request that would make the thing ([`BridgeAdd`], [`PortAdd`], ...). The file is read and checked
//! whole before anything is made of it; what is wrong is told in one line with file, line and column.
#![forbid(unsafe_code)]

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io::Read;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Deserializer};

use super::layer3::{Layer3, Tables};
use super::pieces::{self, Pieces, RUN, TABLES, WHOLE};
use super::spec::{ContainerSpec, FdbSpec, NicPort, NicSpec};
use super::{BridgeSpec, Name, Poll, PortSpec, RebalanceChange, Workers};
use crate::control::api::{BridgeAdd, ContainerAdd, FdbAdd, NicPort as NicTable, PortAdd, WorkerSet};
use crate::refusal::Refusal;

/// What the daemon starts with when no file is given.
pub const DEFAULT: &str = include_str!("default.toml");
/// What comes on top when the host is to be set up as the way out.
pub const UPLINK: &str = include_str!("uplink.toml");
/// Longest file, in bytes: a full global table of virtual services twice over, or two million routes.
pub const FILE_MAX: u64 = 256 << 20;

/// What is said of a longer one.
pub const TOO_LONG: &str = "longer than 256 MiB, which no configuration may be";

/// Where something stands in a file; lines and columns count from 1, columns in characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// The file; `None` for the embedded default.
    pub file: Option<Arc<Path>>,
    /// Line.
    pub line: usize,
    /// Column.
    pub column: usize,
}

impl Position {
    /// Puts the position in front of a message.
    pub fn refuse(&self, message: impl fmt::Display) -> Refusal {
        Refusal::new(format!("{self}: {message}"))
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            Some(file) => write!(f, "{}:{}:{}", file.display(), self.line, self.column),
            None => write!(f, "embedded configuration:{}:{}", self.line, self.column),
        }
    }
}

/// A configuration that keeps all rules that can be checked without a switch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Workers, where the file names them.
    pub workers: Option<Workers>,
    /// How they poll, where the file says so.
    pub poll: Option<Poll>,
    /// What is logged, where the file says so; the text is checked by who sets up the log.
    pub log: Option<(Position, String)>,
    /// Bridges, each with where it is described; no name twice.
    pub bridges: Vec<(Position, BridgeSpec)>,
    /// Ports, each with where it is described; no name twice, and each on one of the bridges.
    pub ports: Vec<(Position, PortSpec)>,
    /// Static entries of forwarding databases, each for one of the ports.
    pub fdb: Vec<(Position, FdbSpec)>,
    /// Containers, each on one of the bridges.
    pub containers: Vec<(Position, ContainerSpec)>,
    /// What differs at ports of their NICs, each of one of the containers.
    pub nics: Vec<(Position, NicPort)>,
    /// When queues are spread anew by themselves.
    pub rebalance: RebalanceChange,
    /// Interfaces, routes, rules, services.
    pub layer3: Layer3,
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    daemon: Daemon,
    #[serde(default)]
    bridge: Vec<Spanned<BridgeAdd>>,
    #[serde(default)]
    port: Vec<Spanned<PortAdd>>,
    #[serde(default)]
    fdb: Vec<Spanned<FdbAdd>>,
    #[serde(default)]
    container: Vec<Spanned<ContainerAdd>>,
    #[serde(default)]
    nic: Vec<Spanned<NicTable>>,
    rebalance: Option<Spanned<WorkerSet>>,
}

/// The keys that a file may have.
const KEYS: &[&str] = &[
    "daemon",
    "bridge",
    "port",
    "fdb",
    "container",
    "nic",
    "interface",
    "neighbour",
    "route",
    "nat",
    "policy",
    "forward",
    "dhcp",
    "check",
    "ipvs",
    "conntrack",
    "rebalance",
];

/// Those of layer 3.
const LAYER3: &[&str] =
    &["interface", "neighbour", "route", "nat", "policy", "forward", "dhcp", "check", "ipvs", "conntrack"];

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Daemon {
    workers: Option<Spanned<i64>>,
    cores: Option<Spanned<String>>,
    poll: Option<Spanned<String>>,
    log: Option<Spanned<String>>,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// The file cannot be read, is longer than [`FILE_MAX`], is no UTF-8, or something in it breaks a rule.
    pub fn load(path: &Path) -> Result<Self, Refusal> {
        let refuse =
            |why: &dyn fmt::Display| Refusal::new(format!("configuration file {}: {why}", path.display()));
        let mut text = Vec::new();
        let file = std::fs::File::open(path).map_err(|e| refuse(&e))?;
        file.take(FILE_MAX + 1).read_to_end(&mut text).map_err(|e| refuse(&e))?;
        if text.len() as u64 > FILE_MAX {
            return Err(refuse(&TOO_LONG));
        }
        let text = String::from_utf8(text).map_err(|e| {
            let line =
                1 + e.as_bytes()[..e.utf8_error().valid_up_to()].iter().filter(|&&b| b == b'\n').count();
            Refusal::new(format!("{}:{line}:1: the line is no UTF-8 text", path.display()))
        })?;
        Self::parse(&text, Some(path))
    }

    /// The configuration that is embedded in the program, with a way out through the host or without.
    ///
    /// # Errors
    /// Never, as a test shows; but the text is treated as any other.
    pub fn embedded(uplink: bool) -> Result<Self, Refusal> {
        match uplink {
            true => Self::parse(&format!("{DEFAULT}\n{UPLINK}"), None),
            false => Self::parse(DEFAULT, None),
        }
    }

    /// Checks a configuration text; `path` is for messages.
    ///
    /// # Errors
    /// No TOML, or something in it breaks a rule.
    pub fn parse(text: &str, path: Option<&Path>) -> Result<Self, Refusal> {
        Self::parse_cut(text, path, WHOLE, RUN)
    }

    /// The same with bounds of the pieces of a long one.
    fn parse_cut(text: &str, path: Option<&Path>, whole: usize, run: usize) -> Result<Self, Refusal> {
        let Pieces { runs, rest, tables, left } = pieces::cut(text, whole, run);
        let rest = rest.as_deref().unwrap_or(text);
        let start = Position { file: path.map(Arc::from), line: 1, column: 1 };
        if tables > TABLES {
            return Err(start.refuse(format_args!("the file has {tables} tables: at most {TABLES} are read")));
        }
        if left > WHOLE {
            let rule = "beside routes, neighbours, rules, services and static addresses it may have 16 MiB";
            return Err(start.refuse(format_args!("the file is too long: {rule}, and has {left} bytes")));
        }
        let mut source = Source::new(text, path);
        source.document = DeTable::parse(rest).map_err(|e| source.explain(&e, rest, 0))?.into_inner();
        let (mut file, mut tables) = source.read(rest, 0)?;
        for run in runs {
            let (more, others) = source.read(&text[run.clone()], run.start)?;
            file.fdb.extend(more.fdb.into_iter().map(|table| moved(table, run.start)));
            tables.append(others, run.start);
        }
        let mut config = Self {
            workers: None,
            poll: None,
            log: None,
            bridges: Vec::new(),
            ports: Vec::new(),
            fdb: Vec::new(),
            containers: Vec::new(),
            nics: Vec::new(),
            rebalance: RebalanceChange::default(),
            layer3: Layer3::default(),
        };
        config.daemon(file.daemon, &source)?;
        if let Some(asked) = file.rebalance {
            config.rebalance = RebalanceChange::try_from(asked.get_ref()).map_err(|invalid| {
                source.value(&["rebalance", invalid.field], asked.span()).refuse(invalid)
            })?;
        }
        let mut bridges = HashMap::new();
        for (index, bridge) in file.bridge.into_iter().enumerate() {
            let at = |field| source.field(&["bridge"], index, field, bridge.span());
            let spec = BridgeSpec::try_from(bridge.get_ref()).map_err(|invalid| {
                at(invalid.field).refuse(format_args!("bridge {:?}: {invalid}", bridge.get_ref().name))
            })?;
            let at = at("name");
            if let Some(line) = bridges.insert(spec.name, at.line) {
                let rule = "a name belongs to one bridge";
                return Err(at.refuse(format_args!(
                    "bridge {:?} is there already, on line {line}: {rule}",
                    spec.name
                )));
            }
            config.bridges.push((at, spec));
        }
        let mut ports = HashMap::new();
        for (index, port) in file.port.into_iter().enumerate() {
            let at = |field| source.field(&["port"], index, field, port.span());
            let spec = PortSpec::try_from(port.get_ref()).map_err(|invalid| {
                at(invalid.field).refuse(format_args!("port {:?}: {invalid}", port.get_ref().name))
            })?;
            if !bridges.contains_key(&spec.bridge) {
                return Err(at("bridge").refuse(format_args!(
                    "port {:?}: bridge {:?} does not exist: describe it in a [[bridge]] table of this file",
                    spec.name, spec.bridge
                )));
            }
            let at = at("name");
            if let Some(line) = ports.insert(spec.name, at.line) {
                let rule = "a name belongs to one port";
                return Err(
                    at.refuse(format_args!("port {:?} is there already, on line {line}: {rule}", spec.name))
                );
            }
            config.ports.push((at, spec));
        }
        let mut nics: HashMap<Name, (Name, NicSpec)> = HashMap::new();
        let mut ids = HashSet::new();
        for (index, container) in file.container.into_iter().enumerate() {
            let at = |field| source.field(&["container"], index, field, container.span());
            let id = &container.get_ref().id;
            let spec = ContainerSpec::try_from(container.get_ref())
                .map_err(|invalid| at(invalid.field).refuse(format_args!("container {id:?}: {invalid}")))?;
            if !bridges.contains_key(&spec.bridge) {
                return Err(at("bridge").refuse(format_args!(
                    "container {id:?}: bridge {:?} does not exist: describe it in a [[bridge]] table of this file",
                    spec.bridge
                )));
            }
            if !ids.insert(spec.id.clone()) {
                return Err(
                    at("id").refuse(format_args!("container {id:?} is there already: once is enough"))
                );
            }
            for nic in &spec.nics {
                let taken = nics.insert(nic.device, (spec.bridge, nic.clone())).is_some();
                if taken || ports.contains_key(&nic.device) {
                    return Err(at("nic").refuse(format_args!(
                        "container {id:?}: device {:?} is another port already: a name belongs to one port",
                        nic.device
                    )));
                }
            }
            config.containers.push((at("id"), spec));
        }
        let mut changed = HashSet::new();
        for (index, table) in file.nic.into_iter().enumerate() {
            let at = |field| source.field(&["nic"], index, field, table.span());
            let device = &table.get_ref().device;
            let refuse =
                |field, why: &dyn fmt::Display| at(field).refuse(format_args!("nic {device:?}: {why}"));
            let port =
                NicPort::try_from(table.get_ref()).map_err(|invalid| refuse(invalid.field, &invalid))?;
            let Some((_, nic)) = nics.get(&port.device) else {
                let why = "it is no NIC of any container: describe it in a [[container]] table of this file";
                return Err(refuse("device", &why));
            };
            port.check(nic).map_err(|invalid| refuse(invalid.field, &invalid))?;
            if !changed.insert(port.device) {
                return Err(refuse("device", &"it is there already: once is enough"));
            }
            config.nics.push((at("device"), port));
        }
        let of_ports = config.ports.iter().map(|(_, port)| (port.name, port.bridge));
        let of_nics = nics.iter().map(|(device, (bridge, _))| (*device, *bridge));
        let on: HashMap<Name, Name> = of_ports.chain(of_nics).collect();
        let mut fixed = HashSet::new();
        for (index, fdb) in file.fdb.into_iter().enumerate() {
            let at = |field| source.field(&["fdb"], index, field, fdb.span());
            let spec = FdbSpec::try_from(fdb.get_ref())
                .map_err(|invalid| at(invalid.field).refuse(format_args!("fdb: {invalid}")))?;
            if on.get(&spec.port) != Some(&spec.bridge) {
                let (port, bridge) = (spec.port.as_str(), spec.bridge.as_str());
                return Err(at("port").refuse(format_args!(
                    "fdb {}: port {port:?} is not on bridge {bridge:?}: describe it in a [[port]] table of this file",
                    spec.mac
                )));
            }
            if !fixed.insert((spec.bridge, spec.vlan, spec.mac)) {
                return Err(
                    at("mac").refuse(format_args!("fdb {} is there already: once is enough", spec.mac))
                );
            }
            config.fdb.push((source.position(fdb.span().start), spec));
        }
        config.layer3 = Layer3::new(&tables, &config.bridges, &config.ports, &source)?;
        Ok(config)
    }

    fn daemon(&mut self, daemon: Daemon, source: &Source<'_>) -> Result<(), Refusal> {
        let at = |span: Range<usize>| source.position(span.start);
        if let Some(cores) = daemon.cores {
            if daemon.workers.is_some() {
                return Err(at(cores.span()).refuse("cores and workers are both given: choose one"));
            }
            self.workers = Some(Workers::cores(cores.get_ref()).map_err(|e| at(cores.span()).refuse(e))?);
        } else if let Some(workers) = daemon.workers {
            self.workers =
                Some(Workers::count(*workers.get_ref()).map_err(|e| at(workers.span()).refuse(e))?);
        }
        if let Some(poll) = daemon.poll {
            self.poll = Some(poll.get_ref().parse().map_err(|e: Refusal| at(poll.span()).refuse(e))?);
        }
        self.log = daemon.log.map(|log| (at(log.span()), log.into_inner()));
        Ok(())
    }
}

/// Bytes that are looked through for a position.
const STRIDE: usize = 4096;

/// A text that positions refer to.
pub(super) struct Source<'a> {
    text: &'a str,
    path: Option<Arc<Path>>,
    /// Lines that have ended before each [`STRIDE`] bytes.
    lines: Vec<usize>,
    /// All tables but those that were cut out.
    document: DeTable<'a>,
}

impl<'a> Source<'a> {
    fn new(text: &'a str, path: Option<&Path>) -> Self {
        let mut before = 0;
        let lines = text.as_bytes().chunks(STRIDE).map(|chunk| {
            before += chunk.iter().filter(|byte| **byte == b'\n').count();
            before
        });
        let lines = std::iter::once(0).chain(lines).collect();
        Self { text, path: path.map(Arc::from), lines, document: DeTable::default() }
    }

    /// Reads what a piece says that begins `at` bytes from the beginning.
    fn read(&self, piece: &str, at: usize) -> Result<(File, Tables), Refusal> {
        let document = DeTable::parse(piece).map_err(|e| self.explain(&e, piece, at))?;
        let (all, document) = (document.span(), document.into_inner());
        if let Some(key) = document.keys().find(|key| !KEYS.contains(&key.get_ref().as_ref())) {
            let known = KEYS.join(", ");
            let at = self.position(at + key.span().start);
            return Err(at.refuse(format_args!("unknown field {:?}, expected one of {known}", key.get_ref())));
        }
        // Read one after the other: errors within flattened tables have no position.
        let (tables, rest): (Vec<_>, Vec<_>) =
            document.into_iter().partition(|(key, _)| LAYER3.contains(&key.get_ref().as_ref()));
        let [tables, rest] = [tables, rest].map(|part| {
            let part: DeTable<'_> = part.into_iter().collect();
            Deserializer::from(Spanned::new(all.clone(), part))
        });
        let file = File::deserialize(rest).map_err(|e| self.explain(&e, piece, at))?;
        let tables = Tables::deserialize(tables).map_err(|e| self.explain(&e, piece, at))?;
        Ok((file, tables))
    }

    pub(super) fn position(&self, offset: usize) -> Position {
        let mut offset = offset.min(self.text.len());
        while !self.text.is_char_boundary(offset) {
            offset -= 1;
        }
        let before = &self.text.as_bytes()[offset - offset % STRIDE..offset];
        let line = self.lines[offset / STRIDE] + before.iter().filter(|byte| **byte == b'\n').count() + 1;
        let start = self.text[..offset].rfind('\n').map_or(0, |end| end + 1);
        Position { file: self.path.clone(), line, column: self.text[start..offset].chars().count() + 1 }
    }

    /// Where the value is to which these keys lead, or else where the table is.
    pub(super) fn value(&self, keys: &[&str], table: Range<usize>) -> Position {
        let value = lookup(&self.document, keys);
        self.position(value.map_or(table, Spanned::span).start)
    }

    /// Where `field` of the table number `index` in the array at `path` has its value, or else where the table is.
    pub(super) fn field(&self, path: &[&str], index: usize, field: &str, table: Range<usize>) -> Position {
        let there = |document: &DeTable<'_>, index| {
            let value = lookup(document, path)?.get_ref().get(index)?.get_ref().get(field)?;
            Some(value.span().start)
        };
        let cut_out = || {
            // It ends before another header, or with the text.
            let text = self.text.get(table.start..)?;
            let end = text.match_indices("\n[").map(|(at, _)| at).find(|at| *at > 0);
            let document = DeTable::parse(&text[..end.unwrap_or(text.len())]).ok()?;
            Some(table.start + there(document.get_ref(), 0)?)
        };
        self.position(there(&self.document, index).or_else(cut_out).unwrap_or(table.start))
    }

    /// One line for what the parser or the types found wrong in a piece, with the field's name where it can be told.
    fn explain(&self, error: &toml::de::Error, piece: &str, at: usize) -> Refusal {
        let span = error.span().unwrap_or(0..0);
        let message =
            error.message().trim().replace('\n', ", ").replace('`', "\"").replace("i64", "an integer");
        let mut path = Vec::new();
        if let Ok(document) = DeTable::parse(piece) {
            for (key, value) in document.get_ref().iter() {
                if find(key.get_ref(), value, &span, &mut path) {
                    break;
                }
            }
        }
        let at = self.position(at + span.start);
        if path.is_empty() {
            at.refuse(message)
        } else {
            at.refuse(format_args!("{}: {message}", path.join(".")))
        }
    }
}

/// A table that stands so many bytes further on than its piece says.
pub(super) fn moved<T>(table: Spanned<T>, by: usize) -> Spanned<T> {
    let Range { start, end } = table.span();
    Spanned::new(start + by..end + by, table.into_inner())
}

/// The value to which these keys lead, one within the other.
fn lookup<'t, 'a>(document: &'t DeTable<'a>, keys: &[&str]) -> Option<&'t Spanned<DeValue<'a>>> {
    let (first, rest) = keys.split_first()?;
    rest.iter().try_fold(document.get(*first)?, |value, key| value.get_ref().get(*key))
}

/// Puts into `path` the keys that lead to the value at exactly `span`; tells whether there is one.
fn find(key: &str, value: &Spanned<DeValue<'_>>, span: &Range<usize>, path: &mut Vec<String>) -> bool {
    path.push(key.to_owned());
    if value.span() == *span && !matches!(value.get_ref(), DeValue::Table(_)) {
        return true;
    }
    let found = match value.get_ref() {
        DeValue::Table(table) => table.iter().any(|(key, value)| find(key.get_ref(), value, span, path)),
        DeValue::Array(values) => values.iter().any(|value| match value.get_ref() {
            DeValue::Table(table) => table.iter().any(|(key, value)| find(key.get_ref(), value, span, path)),
            _ => value.span() == *span,
        }),
        _ => false,
    };
    if !found {
        path.pop();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        Config::parse(text, Some(Path::new("/etc/s.toml"))).unwrap_err().to_string()
    }

    #[test]
    fn the_embedded_configuration_is_a_bridge_with_a_gateway() {
        let config = Config::embedded(false).unwrap();
        assert_eq!((config.bridges.len(), config.ports.len()), (1, 0));
        assert_eq!(config.bridges[0].1.name, "shunt0");
        let (_, gateway) = &config.layer3.interfaces[0];
        assert_eq!((gateway.bridge, gateway.addresses[0].to_string()), (gateway.name, "10.0.3.1/24".into()));
        let (first, last) = config.layer3.dhcp[0].1.range.unwrap();
        assert_eq!(u32::from(last) - u32::from(first) + 1, 253);
        assert_eq!((config.layer3.nat.len(), config.layer3.routes.len()), (1, 0));
        let uplink = Config::embedded(true).unwrap();
        assert_eq!((uplink.bridges.len(), uplink.ports.len(), uplink.layer3.routes.len()), (2, 1, 1));
    }

    #[test]
    fn a_whole_file_is_understood() {
        let text = r#"
            [daemon]
            cores = "1,3-5"
            poll = "busy"
            log = "debug"
            [[bridge]]
            name = "br0"
            ageing = 0
            fdb_limit = 1048576
            [[bridge]]
            name = "br1"
            [[port]]
            name = "vm1"
            bridge = "br0"
            vhost_user = "/run/vm1.sock"
            role = "client"
            queues = 128
            mtu = 9600
            mac = "52:54:00:00:00:01"
            pins = [{ queue = 0, core = 3 }, { queue = 127, core = 1 }]
            [rebalance]
            auto = true
            load_threshold = 70
            [[port]]
            name = "host"
            bridge = "br1"
            tap = "tap0"
            netns = "blue"
            persist = true
            [[port]]
            name = "nic"
            bridge = "br1"
            netdev = "eth0"
        "#;
        let config = Config::parse(text, None).unwrap();
        assert_eq!(config.workers, Some(Workers::Cores(vec![1, 3, 4, 5])));
        assert_eq!(config.poll, Some(Poll::Busy));
        assert_eq!(config.log.unwrap().1, "debug");
        assert_eq!(config.bridges[1].1.fdb_limit, 65_536);
        assert_eq!(config.ports[0].1.pins, [(0, 3), (127, 1)]);
        assert_eq!(config.ports[2].0.line, 31);
        assert_eq!((config.rebalance.auto, config.rebalance.load_threshold), (Some(true), Some(70)));
    }

    #[test]
    fn a_long_file_says_the_same_in_pieces() {
        let whole = crate::config::document::tests::WHOLE;
        let parsed = Config::parse(whole, None).unwrap();
        let written = parsed.document().unwrap().to_toml().unwrap();
        for (text, run) in [(whole, 1), (whole, 300), (whole, 100_000), (&written, 200)] {
            let cut = Config::parse_cut(text, None, 0, run).unwrap();
            assert_eq!(cut.document().unwrap().entries, parsed.document().unwrap().entries, "{run}");
            assert_eq!(cut, Config::parse(text, None).unwrap(), "{run}");
        }
        for (from, to) in [
            ("weight = 3", "weight = -1"),
            ("weight = 3", "weight = \"3\""),
            ("weight = 3", "weigth = 3"),
            ("weight = 3", "weight = "),
            ("metric = 5", "metric = -5"),
            ("to = \"10.0.3.16:80\"", "to = \"10.0.3.16\""),
            ("proto = \"tcp\"\ndport", "proto = \"tpc\"\ndport"),
            ("ageing = 60", "ageing = -60"),
            ("one_packet = true", "one_packet = 7"),
            ("[[check]]", "[[czech]]"),
            ("vlan = 7", "vlan = 4095"),
        ] {
            let wrong = whole.replacen(from, to, 1);
            assert_ne!(wrong, whole);
            let as_a_whole = Config::parse(&wrong, None).unwrap_err().to_string();
            for run in [150, 400, 100_000] {
                let in_pieces = Config::parse_cut(&wrong, None, 0, run).unwrap_err().to_string();
                assert_eq!(in_pieces, as_a_whole, "{from} {to} {run}");
            }
        }
    }

    #[test]
    fn a_file_of_few_tables_is_not_long() {
        let many = "# a comment\n".repeat((17 << 20) / 12);
        let refusal = refusal(&format!("[[bridge]]\nname = \"b\"\n{many}"));
        assert!(refusal.starts_with("/etc/s.toml:1:1: the file is too long: beside routes"), "{refusal}");
    }

    #[test]
    fn a_file_has_six_million_tables_at_most() {
        let refusal = refusal(&"[[route]]\n".repeat(TABLES + 1));
        assert_eq!(refusal, "/etc/s.toml:1:1: the file has 6000001 tables: at most 6000000 are read");
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let port = "[[bridge]]\nname = \"b\"\n[[port]]\nname = \"p\"\nbridge = \"b\"\n";
        let container = "[[bridge]]\nname = \"b\"\n[[container]]\nid = \"c\"\nbridge = \"b\"\nnic = [{ device = \"tap9\", name = \"eth0\", hwAddr = \"02:42:20:6f:a3:69\", mtu = 1500, queues = 2 }]\n";
        for (text, expected) in [
            ("[daemon]\nworkers = 0\n", "2:11: workers 0 is out of range: it must be 1 to 128"),
            (
                "[rebalance]\nauto = true\ninterval = 4\n",
                "3:12: interval 4 is out of range: it must be 5 to 86400",
            ),
            ("[daemon]\nworkers = 1\ncores = \"1\"\n", "3:9: cores and workers are both given: choose one"),
            (
                "[daemon]\npoll = \"lazy\"\n",
                "2:8: poll \"lazy\" is unknown: it must be \"adaptive\" or \"busy\"",
            ),
            (
                "[[bridge]]\nname = \"9\"\n",
                "2:8: bridge \"9\": name \"9\" is no valid name: it must be 1 to 15",
            ),
            ("[[bridge]]\nageing = 5\n", "1:1: bridge: missing field \"name\""),
            (
                "[[bridge]]\nname = \"a\"\n[[bridge]]\nname = \"a\"\n",
                "4:8: bridge \"a\" is there already, on line 2",
            ),
            ("[[bridge]]\nname = 5\n", "2:8: bridge.name: invalid type: integer \"5\", expected a string"),
            ("[[bridge]]\nname = \"a\"\nage = 5\n", "3:1: unknown field \"age\", expected one of"),
            ("[bridges]\n", "1:2: unknown field \"bridges\""),
            ("[daemon\n", "1:8: "),
            ("a = \"\u{e9}\" b", "1:9: "),
            (
                &format!("{port}tap = \"t\"\nmtu = 45\n"),
                "7:7: port \"p\": mtu 45 is out of range: it must be 46 to 9600",
            ),
            (
                &format!("{port}tap = \"t\"\nmtu = \"45\"\n"),
                "7:7: port.mtu: invalid type: string \"45\", expected an integer",
            ),
            (
                &format!("{port}vhost_user = \"/t\"\nnetns = \"n\"\n"),
                "7:9: port \"p\": netns goes with tap and netdev only: leave it out",
            ),
            (port, "4:8: port \"p\": port \"p\" is attached to nothing"),
            (
                &format!("{container}[[nic]]\ndevice = \"other\"\n"),
                "8:10: nic \"other\": it is no NIC of any container: ",
            ),
            (
                &format!("{container}[[nic]]\ndevice = \"tap9\"\nmtu = 1400\n"),
                "9:7: nic \"tap9\": mtu goes with vhostUserSocket only",
            ),
            (
                &format!("{container}[[nic]]\ndevice = \"tap9\"\npins = [{{ queue = 2, core = 0 }}]\n"),
                "9:8: nic \"tap9\": pins: queue 2 does not exist: NIC \"tap9\" has 2",
            ),
            (
                &format!("{container}[[nic]]\ndevice = \"tap9\"\negress_rate = 7\n"),
                "9:15: nic \"tap9\": egress_rate 7 is out of range",
            ),
            (
                &format!("{container}[[nic]]\ndevice = \"tap9\"\n[[nic]]\ndevice = \"tap9\"\n"),
                "10:10: nic \"tap9\": it is there already",
            ),
            (
                &format!(
                    "{container}[[fdb]]\nbridge = \"b\"\nmac = \"52:54:00:00:00:01\"\nport = \"tap8\"\n"
                ),
                "10:8: fdb 52:54:00:00:00:01: port \"tap8\" is not on bridge \"b\"",
            ),
            (
                "[[port]]\nname = \"p\"\nbridge = \"x\"\ntap = \"t\"\n",
                "3:10: port \"p\": bridge \"x\" does not exist: ",
            ),
        ] {
            let message = refusal(text);
            assert!(message.starts_with(&format!("/etc/s.toml:{expected}")), "{text}\n{message}\n{expected}");
            assert!(!message.contains('\n'), "{message}");
        }
    }
}
