//! What a command line of ipvsadm asks for, in the order of its checks: each option as it is read, then what must go
//! together, then what only the whole can tell.

use std::net::IpAddr;

use shunt_switch::control::api;
use shunt_switch::ipvs::spec::Protocol;

use super::Stop;
use super::names::Names;
use super::options::{Given, OPTIONS, Service, Tag, Verb, check_command, check_tunnel};
use super::scan::{Scanner, Step};
use super::value::{self, inet_aton, number};

/// Longest timeout: 31 days.
const LONGEST: i64 = 31 * 86_400;
/// Seconds of persistence if none are given.
const PERSISTENCE: i64 = 360;
/// Longest name of a scheduler or persistence engine that is passed on; what is cut off is no name of one anyway.
const NAME: usize = 15;

/// How packets get to a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Masquerade,
    Route,
    Tunnel,
    FullNat(String),
}

/// A service as it was named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ServiceGiven {
    pub(crate) protocol: Option<Protocol>,
    pub(crate) address: Option<IpAddr>,
    pub(crate) port: u16,
    pub(crate) mark: u32,
    v6: bool,
    pub(crate) scheduler: String,
    /// Bits of [`shunt_switch::ipvs::spec::SchedulerFlags`].
    pub(crate) flags: u8,
    pub(crate) persistent: Option<i64>,
    netmask: Option<String>,
    pe: String,
    one_packet: bool,
    flag_names: String,
}

impl ServiceGiven {
    fn is_v6(&self) -> bool {
        if self.mark != 0 { self.v6 } else { self.address.is_some_and(|address| address.is_ipv6()) }
    }

    /// Its name in requests.
    pub(crate) fn name(&self) -> Option<String> {
        if self.mark != 0 {
            return Some(format!("mark{}:{}", if self.v6 { "6" } else { "" }, self.mark));
        }
        let socket = std::net::SocketAddr::new(self.address?, self.port);
        Some(match self.protocol? {
            Protocol::Tcp => format!("tcp:{socket}"),
            Protocol::Udp => format!("udp:{socket}"),
            Protocol::Sctp => format!("sctp:{socket}"),
        })
    }

    fn request(&self) -> api::IpvsService {
        let scheduler = if self.scheduler.is_empty() { "wlc" } else { &self.scheduler };
        let flags = (0..3).filter(|bit| self.flags >> bit & 1 == 1).map(|bit| format!("flag-{}", bit + 1));
        api::IpvsService {
            service: self.name().unwrap_or_default(),
            scheduler: Some(scheduler.to_owned()),
            flags: flags.collect(),
            persistent: self.persistent,
            netmask: self.persistent.and(self.netmask.clone()),
            pe: Some(self.pe.clone()).filter(|pe| !pe.is_empty()),
            one_packet: self.one_packet,
        }
    }
}

/// A server as it was named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServerGiven {
    address: Option<IpAddr>,
    port: u16,
    way: Way,
    weight: i64,
    upper: i64,
    lower: i64,
    tunnel: &'static str,
    tunnel_port: Option<i64>,
    checksum: Option<&'static str>,
}

impl ServerGiven {
    /// Its address in requests.
    pub(crate) fn socket(&self) -> Option<String> {
        Some(std::net::SocketAddr::new(self.address?, self.port).to_string())
    }

    fn request(&self, service: String) -> api::IpvsServer {
        let tunnelled = self.way == Way::Tunnel;
        let way = match self.way {
            Way::Masquerade => "masquerade",
            Way::Route => "route",
            Way::Tunnel => "tunnel",
            Way::FullNat(_) => "full-nat",
        };
        let threshold = |value| Some(value).filter(|value| *value != 0);
        api::IpvsServer {
            service,
            address: self.socket().unwrap_or_default(),
            forward: Some(way.to_owned()),
            weight: Some(self.weight),
            upper: threshold(self.upper),
            lower: threshold(self.lower),
            tunnel: tunnelled.then(|| self.tunnel.to_owned()),
            tunnel_port: self.tunnel_port.filter(|_| tunnelled),
            tunnel_checksum: self.checksum.filter(|_| tunnelled).map(str::to_owned),
            pool: match &self.way {
                Way::FullNat(pool) => Some(pool.clone()),
                _ => None,
            },
        }
    }
}

/// How a listing looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Format {
    pub(crate) numeric: bool,
    pub(crate) stats: bool,
    pub(crate) rate: bool,
    pub(crate) thresholds: bool,
    pub(crate) templates: bool,
    pub(crate) tunnels: bool,
    pub(crate) unsorted: bool,
    pub(crate) exact: bool,
}

/// What is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    Connections,
    Service(String),
    Timeouts,
    Daemons,
    All,
}

/// A command.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Command {
    Help,
    Version,
    Change(api::IpvsChange),
    Zero(Option<String>),
    List(Subject, Format),
    Save(Format),
    Restore { keep_going: bool, replace: bool },
    StartDaemon(api::IpvsDaemonStart),
    StopDaemon(String),
}

/// A command line.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Line {
    pub(crate) command: Command,
    pub(crate) json: bool,
    pub(crate) container: Option<String>,
}

#[derive(Default)]
struct Daemon {
    role: String,
    interface: String,
    sync_id: Option<i64>,
    max_length: Option<i64>,
    group: Option<String>,
    port: Option<i64>,
    ttl: Option<i64>,
}

struct Reader<'a> {
    names: &'a mut Names,
    given: Given,
    service: ServiceGiven,
    server: ServerGiven,
    daemon: Daemon,
    format: Format,
    json: bool,
    container: Option<String>,
}

fn is_role(word: &str) -> bool {
    matches!(word, "master" | "backup")
}

/// At most 15 bytes of a name.
fn cut(name: &str) -> String {
    let mut end = name.len().min(NAME);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name[..end].to_owned()
}

/// Reads a command line, without the program's name. `program` is for messages, `usual` is how packets get to a
/// server for which that is not said.
///
/// # Errors
/// What ipvsadm would have said, and how it would have ended.
pub(crate) fn read(words: &[String], program: &str, names: &mut Names, usual: Way) -> Result<Line, Stop> {
    let mut scanner = Scanner::new(OPTIONS, words);
    let mut reader = Reader {
        names,
        given: Given::default(),
        service: ServiceGiven::default(),
        server: ServerGiven {
            address: None,
            port: 0,
            way: usual,
            weight: 1,
            upper: 0,
            lower: 0,
            tunnel: "ipip",
            tunnel_port: None,
            checksum: None,
        },
        daemon: Daemon::default(),
        format: Format::default(),
        json: false,
        container: None,
    };
    let plain = |command| Ok(Line { command, json: false, container: None });
    let verb = match scanner.step() {
        Step::Option(Tag::Verb(Verb::StartDaemon), role) => {
            reader.daemon.role = role.unwrap_or_default().to_owned();
            if !is_role(&reader.daemon.role) {
                return Err(Stop::usage("illegal start-daemon parameter specified"));
            }
            Verb::StartDaemon
        }
        Step::Option(Tag::Verb(Verb::StopDaemon), role) => {
            reader.daemon.role = role.unwrap_or_default().to_owned();
            if !is_role(&reader.daemon.role) {
                return Err(Stop::usage("illegal start_daemon specified"));
            }
            Verb::StopDaemon
        }
        Step::Option(Tag::Verb(verb), _) => verb,
        Step::Option(Tag::Help, _) => return plain(Command::Help),
        Step::Option(Tag::Version, _) => return plain(Command::Version),
        _ => return Err(Stop::help(program)),
    };
    loop {
        match scanner.step() {
            Step::Option(Tag::Verb(_) | Tag::Help | Tag::Version, _) => {
                return Err(Stop::usage(format!("invalid option `{}'", scanner.word())));
            }
            Step::Option(tag, value) => reader.option(tag, value)?,
            Step::End => break,
            Step::Wrong(word, why) => return Err(Stop::Line(format!("{word}: {why}"))),
        }
    }
    let mut timeouts = [0; 3];
    if verb == Verb::Set {
        let words = [scanner.other(), scanner.other(), scanner.other()];
        let [Some(tcp), Some(fin), Some(udp)] = words else {
            return Err(Stop::usage("--set option requires 3 timeout values"));
        };
        for (timeout, text) in timeouts.iter_mut().zip([tcp, fin, udp]) {
            *timeout = seconds(text, 0)?;
        }
    }
    if let Some(word) = scanner.other() {
        return Err(Stop::usage(format!("unexpected argument {word}")));
    }
    check_command(verb, reader.given)?;
    let (json, container) = (reader.json, reader.container.take());
    Ok(Line { command: reader.command(verb, timeouts)?, json, container })
}

fn seconds(text: &str, least: i64) -> Result<i64, Stop> {
    number(text, least, LONGEST)
        .ok_or_else(|| Stop::usage(format!("invalid timeout value `{text}' specified")))
}

impl Reader<'_> {
    fn option(&mut self, tag: Tag, value: Option<&str>) -> Result<(), Stop> {
        self.given.note(tag)?;
        let text = value.unwrap_or_default();
        let within =
            |least, most, message: &str| number(text, least, most).ok_or_else(|| Stop::usage(message));
        let most = i64::from(i32::MAX);
        match tag {
            Tag::Service(kind) => self.service(kind, text)?,
            Tag::Scheduler => self.service.scheduler = cut(text),
            Tag::Persistent => {
                self.service.persistent = Some(value.map_or(Ok(PERSISTENCE), |text| seconds(text, 1))?);
            }
            Tag::Netmask => self.netmask(text)?,
            Tag::Engine => self.service.pe = cut(text),
            Tag::Flags => self.service.flag_names = text.to_owned(),
            Tag::OnePacket => self.service.one_packet = true,
            Tag::V6 => {
                if self.service.mark == 0 {
                    return Err(Stop::usage("-6 used before -f\n"));
                }
                self.service.v6 = true;
                self.service.netmask = None;
            }
            Tag::Server => {
                let place = value::place(text, self.service.protocol, self.names)
                    .ok_or_else(|| Stop::usage("illegal real server address[:port] specified"))?;
                self.server.address = Some(place.address);
                self.server.port = place.port.unwrap_or(self.service.port);
            }
            Tag::Masquerade => self.server.way = Way::Masquerade,
            Tag::Route => self.server.way = Way::Route,
            Tag::Tunnel => self.server.way = Way::Tunnel,
            Tag::FullNat => self.server.way = Way::FullNat(text.to_owned()),
            Tag::Weight => self.server.weight = within(0, most, "illegal weight specified")?,
            Tag::Upper => self.server.upper = within(0, most, "illegal u_threshold specified")?,
            Tag::Lower => self.server.lower = within(0, most, "illegal l_threshold specified")?,
            Tag::TunnelType => {
                let known = ["ipip", "gue", "gre"].into_iter().find(|known| *known == text);
                self.server.tunnel = known.ok_or_else(|| Stop::usage("illegal tunnel type specified"))?;
            }
            Tag::TunnelPort => {
                self.server.tunnel_port = Some(within(1, 65_535, "illegal tunnel port specified")?);
            }
            Tag::NoChecksum => self.server.checksum = Some("none"),
            Tag::Checksum => self.server.checksum = Some("full"),
            Tag::RemoteChecksum => self.server.checksum = Some("remote"),
            Tag::Numeric => self.format.numeric = true,
            Tag::Stats => self.format.stats = true,
            Tag::Rate => self.format.rate = true,
            Tag::Thresholds => self.format.thresholds = true,
            Tag::Templates => self.format.templates = true,
            Tag::TunnelInfo => self.format.tunnels = true,
            Tag::NoSort => self.format.unsorted = true,
            Tag::Exact => self.format.exact = true,
            Tag::SyncId => self.daemon.sync_id = Some(within(0, 255, "illegal syncid specified")?),
            Tag::MaxLength => {
                self.daemon.max_length = Some(within(1, 65_507, "illegal sync-maxlen specified")?);
            }
            Tag::Interface => self.daemon.interface = cut(text),
            Tag::Group => self.daemon.group = Some(group(text)?),
            Tag::Port => self.daemon.port = Some(within(1, 65_535, "illegal mcast-port specified")?),
            Tag::Ttl => self.daemon.ttl = Some(within(1, 255, "illegal mcast-ttl specified")?),
            Tag::Json => self.json = true,
            Tag::Container => self.container = Some(text.to_owned()),
            Tag::Connections | Tag::Timeouts | Tag::Daemons | Tag::Sort | Tag::KeepGoing | Tag::Replace => (),
            // The first word of a line only.
            Tag::Verb(_) | Tag::Help | Tag::Version => (),
        }
        Ok(())
    }

    fn service(&mut self, kind: Service, text: &str) -> Result<(), Stop> {
        let protocol = match kind {
            Service::Tcp | Service::Mark => Protocol::Tcp,
            Service::Udp => Protocol::Udp,
            Service::Sctp => Protocol::Sctp,
        };
        self.service.protocol = Some(protocol);
        if kind == Service::Mark {
            let mark =
                value::integer(text).and_then(|mark| u32::try_from(mark).ok()).filter(|mark| *mark != 0);
            self.service.mark =
                mark.ok_or_else(|| Stop::usage(format!("invalid fwmark value `{text}' specified")))?;
            return Ok(());
        }
        let place = value::place(text, Some(protocol), self.names)
            .ok_or_else(|| Stop::usage("illegal virtual server address[:port] specified"))?;
        self.service.address = Some(place.address);
        self.service.port = place.port.unwrap_or(0);
        if place.address.is_ipv6() {
            self.service.netmask = None;
        }
        Ok(())
    }

    fn netmask(&mut self, text: &str) -> Result<(), Stop> {
        self.service.netmask = Some(if self.service.is_v6() {
            let bits = value::leading(text);
            if !(1..=128).contains(&bits) {
                return Err(Stop::usage("illegal ipv6 netmask specified"));
            }
            bits.to_string()
        } else {
            let mask = inet_aton(text).or_else(|| self.names.address(text));
            mask.ok_or_else(|| Stop::usage("illegal virtual server persistent mask specified"))?.to_string()
        });
        Ok(())
    }

    fn flags(&mut self) -> Result<(), Stop> {
        let ServiceGiven { scheduler: chosen, flags, flag_names, .. } = &mut self.service;
        for flag in flag_names.split(',').filter(|flag| !flag.is_empty()) {
            let (bit, scheduler) = match flag {
                "flag-1" => (0, None),
                "flag-2" => (1, None),
                "flag-3" => (2, None),
                "sh-fallback" => (0, Some("sh")),
                "sh-port" => (1, Some("sh")),
                "mh-fallback" => (0, Some("mh")),
                "mh-port" => (1, Some("mh")),
                _ => return Err(Stop::usage(format!("invalid scheduler flag `{flag}'"))),
            };
            if scheduler.is_some_and(|scheduler| scheduler != chosen) {
                return Err(Stop::usage(format!("incompatible scheduler flag `{flag}'")));
            }
            *flags |= 1 << bit;
        }
        Ok(())
    }

    fn command(mut self, verb: Verb, [tcp, tcp_fin, udp]: [i64; 3]) -> Result<Command, Stop> {
        match verb {
            Verb::AddService | Verb::EditService => self.check_service()?,
            Verb::AddServer | Verb::EditServer => self.check_server()?,
            Verb::List => self.check_list()?,
            _ => (),
        }
        let name = self.service.name();
        let service = || name.clone().unwrap_or_default();
        let address = || self.server.socket().unwrap_or_default();
        Ok(match verb {
            Verb::AddService => Command::Change(api::IpvsChange::AddService(self.service.request())),
            Verb::EditService => Command::Change(api::IpvsChange::EditService(self.service.request())),
            Verb::DeleteService => {
                Command::Change(api::IpvsChange::DeleteService(api::IpvsKey { service: service() }))
            }
            Verb::AddServer => Command::Change(api::IpvsChange::AddServer(self.server.request(service()))),
            Verb::EditServer => Command::Change(api::IpvsChange::EditServer(self.server.request(service()))),
            Verb::DeleteServer => {
                let server = api::IpvsServerKey { service: service(), address: address() };
                Command::Change(api::IpvsChange::DeleteServer(server))
            }
            Verb::Flush => Command::Change(api::IpvsChange::Flush),
            Verb::Set => {
                Command::Change(api::IpvsChange::SetTimeouts(api::IpvsTimeouts { tcp, tcp_fin, udp }))
            }
            Verb::Zero => Command::Zero(name),
            Verb::List => {
                let subject = match name {
                    _ if self.given.any(&[Tag::Connections]) => Subject::Connections,
                    Some(name) => Subject::Service(name),
                    None if self.given.any(&[Tag::Timeouts]) => Subject::Timeouts,
                    None if self.given.any(&[Tag::Daemons]) => Subject::Daemons,
                    None => Subject::All,
                };
                Command::List(subject, self.format)
            }
            Verb::Save => Command::Save(self.format),
            Verb::Restore => Command::Restore {
                keep_going: self.given.any(&[Tag::KeepGoing]),
                replace: self.given.any(&[Tag::Replace]),
            },
            Verb::StartDaemon => {
                let Daemon { role, interface, sync_id, max_length, group, port, ttl } = self.daemon;
                let interface = if interface.is_empty() { "eth0".to_owned() } else { interface };
                let start = api::IpvsDaemonStart { role, interface, sync_id, max_length, group, port, ttl };
                Command::StartDaemon(start)
            }
            Verb::StopDaemon => Command::StopDaemon(self.daemon.role),
        })
    }

    fn check_service(&mut self) -> Result<(), Stop> {
        let service = &self.service;
        if service.mark == 0 && service.port == 0 && service.persistent.is_none() {
            return Err(Stop::usage("Zero port specified for non-persistent service"));
        }
        if service.one_packet && service.mark == 0 && service.protocol != Some(Protocol::Udp) {
            return Err(Stop::usage("One-Packet Scheduling is only for UDP virtual services"));
        }
        self.flags()
    }

    fn check_server(&mut self) -> Result<(), Stop> {
        let (service, server) = (&self.service, &mut self.server);
        // Only translation can change a port.
        if service.mark == 0 && matches!(server.way, Way::Route | Way::Tunnel) {
            server.port = service.port;
        }
        let tunnelled = server.way == Way::Tunnel;
        if server.address.is_some_and(|address| address.is_ipv6()) != service.is_v6() && !tunnelled {
            return Err(Stop::usage("Different address family is allowed only for tunneling servers"));
        }
        let of_tunnels =
            [Tag::TunnelType, Tag::TunnelPort, Tag::NoChecksum, Tag::Checksum, Tag::RemoteChecksum];
        if !tunnelled && self.given.any(&of_tunnels) {
            return Err(Stop::usage("Tunnel options conflict with forward method"));
        }
        check_tunnel(server.tunnel, self.given)
    }

    fn check_list(&self) -> Result<(), Stop> {
        let other = [Tag::Timeouts, Tag::Daemons];
        let no_table = self.given.any(&[Tag::Connections, Tag::Timeouts, Tag::Daemons]);
        if no_table && self.given.any(&[Tag::Stats, Tag::Rate, Tag::Thresholds])
            || self.given.any(&other) && self.given.any(&[Tag::Templates])
        {
            return Err(Stop::usage("options conflicts in the list command"));
        }
        Ok(())
    }
}

/// A group that messages of sync daemons go to. Beyond ipvsadm: the other director's address behind `=`.
fn group(text: &str) -> Result<String, Stop> {
    if let Some(unicast) = text.strip_prefix('=')
        && let Ok(address) = unicast.parse::<IpAddr>()
    {
        return Ok(address.to_string());
    }
    let address = text.parse::<IpAddr>().ok().filter(IpAddr::is_multicast);
    let family = if text.contains(':') { "IPv6" } else { "IPv4" };
    match address {
        Some(address) => Ok(address.to_string()),
        None => Err(Stop::usage(format!("invalid {family} mcast-group `{text}'"))),
    }
}
