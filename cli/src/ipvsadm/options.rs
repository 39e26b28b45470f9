//! The options of ipvsadm 1.31, which of them a command may have, must have or may have one of, and the same of tunnels.

use super::Stop;
use super::scan::{Known, Value};

/// A command, as messages name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    AddService,
    EditService,
    DeleteService,
    Flush,
    List,
    AddServer,
    DeleteServer,
    EditServer,
    Set,
    StartDaemon,
    StopDaemon,
    Restore,
    Save,
    Zero,
}

impl Verb {
    fn name(self) -> &'static str {
        match self {
            Self::AddService => "add-service",
            Self::EditService => "edit-service",
            Self::DeleteService => "delete-service",
            Self::Flush => "flush",
            Self::List => "list",
            Self::AddServer => "add-server",
            Self::DeleteServer => "delete-server",
            Self::EditServer => "edit-server",
            Self::Set => "set",
            Self::StartDaemon => "start-daemon",
            Self::StopDaemon => "stop-daemon",
            Self::Restore => "restore",
            Self::Save => "save",
            Self::Zero => "zero",
        }
    }
}

/// What an option stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tag {
    Verb(Verb),
    Help,
    Version,
    Service(Service),
    Scheduler,
    Persistent,
    Netmask,
    Engine,
    Flags,
    OnePacket,
    V6,
    Server,
    Masquerade,
    Route,
    Tunnel,
    FullNat,
    Weight,
    Upper,
    Lower,
    TunnelType,
    TunnelPort,
    NoChecksum,
    Checksum,
    RemoteChecksum,
    Numeric,
    Connections,
    Timeouts,
    Daemons,
    Stats,
    Rate,
    Thresholds,
    Templates,
    TunnelInfo,
    NoSort,
    Sort,
    Exact,
    SyncId,
    MaxLength,
    Interface,
    Group,
    Port,
    Ttl,
    KeepGoing,
    Replace,
    Json,
    Container,
}

/// What a service is named by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Service {
    Tcp,
    Udp,
    Sctp,
    Mark,
}

const fn plain(long: &'static str, short: Option<char>, tag: Tag) -> Known<Tag> {
    Known { long, short, value: Value::No, tag }
}

const fn valued(long: &'static str, short: Option<char>, tag: Tag) -> Known<Tag> {
    Known { long, short, value: Value::Yes, tag }
}

/// All options; the last five are shunt's own.
pub(crate) static OPTIONS: &[Known<Tag>] = &[
    plain("add-service", Some('A'), Tag::Verb(Verb::AddService)),
    plain("edit-service", Some('E'), Tag::Verb(Verb::EditService)),
    plain("delete-service", Some('D'), Tag::Verb(Verb::DeleteService)),
    plain("clear", Some('C'), Tag::Verb(Verb::Flush)),
    plain("list", Some('L'), Tag::Verb(Verb::List)),
    plain("list", Some('l'), Tag::Verb(Verb::List)),
    plain("zero", Some('Z'), Tag::Verb(Verb::Zero)),
    plain("add-server", Some('a'), Tag::Verb(Verb::AddServer)),
    plain("edit-server", Some('e'), Tag::Verb(Verb::EditServer)),
    plain("delete-server", Some('d'), Tag::Verb(Verb::DeleteServer)),
    plain("set", None, Tag::Verb(Verb::Set)),
    plain("help", Some('h'), Tag::Help),
    plain("version", Some('v'), Tag::Version),
    plain("restore", Some('R'), Tag::Verb(Verb::Restore)),
    plain("save", Some('S'), Tag::Verb(Verb::Save)),
    valued("start-daemon", None, Tag::Verb(Verb::StartDaemon)),
    valued("stop-daemon", None, Tag::Verb(Verb::StopDaemon)),
    valued("tcp-service", Some('t'), Tag::Service(Service::Tcp)),
    valued("udp-service", Some('u'), Tag::Service(Service::Udp)),
    valued("sctp-service", None, Tag::Service(Service::Sctp)),
    valued("fwmark-service", Some('f'), Tag::Service(Service::Mark)),
    valued("scheduler", Some('s'), Tag::Scheduler),
    Known { long: "persistent", short: Some('p'), value: Value::Maybe, tag: Tag::Persistent },
    valued("netmask", Some('M'), Tag::Netmask),
    valued("real-server", Some('r'), Tag::Server),
    plain("masquerading", Some('m'), Tag::Masquerade),
    plain("ipip", Some('i'), Tag::Tunnel),
    plain("gatewaying", Some('g'), Tag::Route),
    valued("weight", Some('w'), Tag::Weight),
    valued("u-threshold", Some('x'), Tag::Upper),
    valued("l-threshold", Some('y'), Tag::Lower),
    plain("numeric", Some('n'), Tag::Numeric),
    plain("connection", Some('c'), Tag::Connections),
    valued("mcast-interface", None, Tag::Interface),
    valued("syncid", None, Tag::SyncId),
    plain("timeout", None, Tag::Timeouts),
    plain("daemon", None, Tag::Daemons),
    plain("stats", None, Tag::Stats),
    plain("rate", None, Tag::Rate),
    plain("thresholds", None, Tag::Thresholds),
    plain("persistent-conn", None, Tag::Templates),
    plain("nosort", None, Tag::NoSort),
    plain("sort", None, Tag::Sort),
    plain("exact", Some('X'), Tag::Exact),
    plain("ipv6", Some('6'), Tag::V6),
    plain("ops", Some('o'), Tag::OnePacket),
    valued("pe", None, Tag::Engine),
    valued("sched-flags", Some('b'), Tag::Flags),
    valued("mcast-group", None, Tag::Group),
    valued("mcast-port", None, Tag::Port),
    valued("mcast-ttl", None, Tag::Ttl),
    valued("sync-maxlen", None, Tag::MaxLength),
    plain("tun-info", None, Tag::TunnelInfo),
    valued("tun-type", None, Tag::TunnelType),
    valued("tun-port", None, Tag::TunnelPort),
    plain("tun-nocsum", None, Tag::NoChecksum),
    plain("tun-csum", None, Tag::Checksum),
    plain("tun-remcsum", None, Tag::RemoteChecksum),
    valued("full-nat", None, Tag::FullNat),
    plain("keep-going", None, Tag::KeepGoing),
    plain("replace", None, Tag::Replace),
    plain("json", None, Tag::Json),
    valued("container", None, Tag::Container),
];

/// Options by the names and in the order that messages and checks have them.
const NAMES: [&str; 36] = [
    "numeric",
    "connection",
    "service-address",
    "scheduler",
    "persistent",
    "netmask",
    "real-server",
    "forwarding-method",
    "weight",
    "u-threshold",
    "l-threshold",
    "mcast-interface",
    "timeout",
    "daemon",
    "stats",
    "rate",
    "thresholds",
    "persistent-conn",
    "nosort",
    "syncid",
    "exact",
    "ops",
    "pe",
    "sched-flags",
    "mcast-group",
    "mcast-port",
    "mcast-ttl",
    "sync-maxlen",
    "tun-info",
    "tun-type",
    "tun-port",
    "tun-nocsum",
    "tun-csum",
    "tun-remcsum",
    "keep-going",
    "replace",
];

/// Where in [`NAMES`] an option is.
const fn place(tag: Tag) -> Option<usize> {
    Some(match tag {
        Tag::Numeric => 0,
        Tag::Connections => 1,
        Tag::Service(_) => 2,
        Tag::Scheduler => 3,
        Tag::Persistent => 4,
        Tag::Netmask => 5,
        Tag::Server => 6,
        Tag::Masquerade | Tag::Route | Tag::Tunnel | Tag::FullNat => 7,
        Tag::Weight => 8,
        Tag::Upper => 9,
        Tag::Lower => 10,
        Tag::Interface => 11,
        Tag::Timeouts => 12,
        Tag::Daemons => 13,
        Tag::Stats => 14,
        Tag::Rate => 15,
        Tag::Thresholds => 16,
        Tag::Templates => 17,
        Tag::NoSort => 18,
        Tag::SyncId => 19,
        Tag::Exact => 20,
        Tag::OnePacket => 21,
        Tag::Engine => 22,
        Tag::Flags => 23,
        Tag::Group => 24,
        Tag::Port => 25,
        Tag::Ttl => 26,
        Tag::MaxLength => 27,
        Tag::TunnelInfo => 28,
        Tag::TunnelType => 29,
        Tag::TunnelPort => 30,
        Tag::NoChecksum => 31,
        Tag::Checksum => 32,
        Tag::RemoteChecksum => 33,
        Tag::KeepGoing => 34,
        Tag::Replace => 35,
        Tag::Verb(_) | Tag::Help | Tag::Version | Tag::V6 | Tag::Sort | Tag::Json | Tag::Container => {
            return None;
        }
    })
}

/// A set of options.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Given(u64);

impl Given {
    const fn of(tags: &[Tag]) -> Self {
        let (mut set, mut at) = (0, 0);
        while at < tags.len() {
            if let Some(place) = place(tags[at]) {
                set |= 1 << place;
            }
            at += 1;
        }
        Self(set)
    }

    /// Notes an option that was given.
    ///
    /// # Errors
    /// It was given before.
    pub(crate) fn note(&mut self, tag: Tag) -> Result<(), Stop> {
        let Some(place) = place(tag) else { return Ok(()) };
        if self.0 >> place & 1 == 1 {
            return Err(Stop::usage(format!("multiple '{}' options specified", NAMES[place])));
        }
        self.0 |= 1 << place;
        Ok(())
    }

    /// Whether one of these was given.
    pub(crate) fn any(self, tags: &[Tag]) -> bool {
        self.0 & Self::of(tags).0 != 0
    }
}

const ANY_SERVICE: Tag = Tag::Service(Service::Tcp);
const NOTHING: &[Tag] = &[];
const OF_SERVICES: &[Tag] =
    &[ANY_SERVICE, Tag::Scheduler, Tag::Persistent, Tag::Netmask, Tag::OnePacket, Tag::Engine, Tag::Flags];
const OF_SERVERS: &[Tag] = &[
    ANY_SERVICE,
    Tag::Server,
    Tag::Route,
    Tag::Weight,
    Tag::Upper,
    Tag::Lower,
    Tag::TunnelType,
    Tag::TunnelPort,
    Tag::NoChecksum,
    Tag::Checksum,
    Tag::RemoteChecksum,
];
const OF_LISTS: &[Tag] = &[
    Tag::Numeric,
    Tag::Connections,
    ANY_SERVICE,
    Tag::Timeouts,
    Tag::Daemons,
    Tag::Stats,
    Tag::Rate,
    Tag::Thresholds,
    Tag::Templates,
    Tag::NoSort,
    Tag::SyncId,
    Tag::Exact,
    Tag::TunnelInfo,
];

/// What a command may have, must have, and may have one of.
fn rules(verb: Verb) -> [&'static [Tag]; 3] {
    let one_service: &[Tag] = &[ANY_SERVICE];
    match verb {
        Verb::AddService | Verb::EditService => [OF_SERVICES, one_service, NOTHING],
        Verb::DeleteService => [one_service, one_service, NOTHING],
        Verb::Flush | Verb::Set => [NOTHING, NOTHING, NOTHING],
        Verb::List => [OF_LISTS, NOTHING, &[Tag::Connections, ANY_SERVICE, Tag::Timeouts, Tag::Daemons]],
        Verb::AddServer | Verb::EditServer => [OF_SERVERS, &[ANY_SERVICE, Tag::Server], NOTHING],
        Verb::DeleteServer => [&[ANY_SERVICE, Tag::Server], &[ANY_SERVICE, Tag::Server], NOTHING],
        Verb::StartDaemon => [
            &[Tag::Interface, Tag::SyncId, Tag::Group, Tag::Port, Tag::Ttl, Tag::MaxLength],
            NOTHING,
            NOTHING,
        ],
        Verb::StopDaemon => [&[Tag::SyncId], NOTHING, NOTHING],
        Verb::Restore => [&[Tag::KeepGoing, Tag::Replace], NOTHING, NOTHING],
        Verb::Save => [&[Tag::Numeric], NOTHING, NOTHING],
        Verb::Zero => [one_service, NOTHING, NOTHING],
    }
}

/// Checks options one after another: those that must be given, must not be, or exclude each other.
fn check(
    given: Given,
    places: impl Iterator<Item = usize>,
    [may, must, one]: [Given; 3],
    what: &str,
) -> Result<(), Stop> {
    let mut first = None;
    for place in places {
        let (bit, name) = (1 << place, NAMES[place]);
        if given.0 & bit == 0 {
            if must.0 & bit != 0 {
                return Err(Stop::usage(format!("You need to supply the '{name}' option for the {what}")));
            }
        } else if may.0 & bit == 0 {
            return Err(Stop::usage(format!("Illegal '{name}' option with the {what}")));
        } else if one.0 & bit != 0 {
            if let Some(first) = first {
                return Err(Stop::usage(format!(
                    "The option '{name}' conflicts with the '{first}' option in the {what}"
                )));
            }
            first = Some(name);
        }
    }
    Ok(())
}

/// Checks that a command has the options that it may have.
///
/// # Errors
/// It has not.
pub(crate) fn check_command(verb: Verb, given: Given) -> Result<(), Stop> {
    let what = format!("'{}' command", verb.name());
    check(given, 0..NAMES.len(), rules(verb).map(Given::of), &what)
}

/// Checks that a tunnel has the options that its type may have.
///
/// # Errors
/// It has not.
pub(crate) fn check_tunnel(kind: &str, given: Given) -> Result<(), Stop> {
    let sums = &[Tag::NoChecksum, Tag::Checksum, Tag::RemoteChecksum];
    let rules: [&[Tag]; 3] = match kind {
        "gue" => [
            &[Tag::TunnelPort, Tag::NoChecksum, Tag::Checksum, Tag::RemoteChecksum],
            &[Tag::TunnelPort],
            sums,
        ],
        "gre" => [&[Tag::NoChecksum, Tag::Checksum], NOTHING, sums],
        _ => [NOTHING, NOTHING, NOTHING],
    };
    let places = 30..=33;
    check(given, places, rules.map(Given::of), &format!("'{kind}' tunnel type"))
}
