//! Messages of the sync daemon, version 1: a datagram holds up to 255 connections.
//!
//! The format is that of Linux (`net/netfilter/ipvs/ip_vs_sync.c`), in network byte order. A message: 0, sync ID,
//! length (16 bits), number of connections, 1, 0, 0. A connection, padded to 4 bytes: type (bit 0: IPv6), protocol,
//! version 0 and length (4 and 12 bits), flags (32), state (16), ports of client, service and server (16 each), mark
//! (32), seconds until it ends (32), addresses of client, service and server, parameters. A parameter: type, length of
//! what follows, data; one of unknown type may be skipped only if it has bit 6.
//!
//! Whoever can send to the port can send anything: nothing is believed before it is checked, and a broken connection
//! costs at most the rest of its message.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Bytes of a message's header.
pub const HEADER: usize = 8;
/// Most connections in a message.
pub const MOST: usize = 255;
/// Bytes of a connection without parameters, by family.
const FIXED: [usize; 2] = [36, 72];
/// Where a connection's addresses begin.
const ADDRESSES: usize = 24;
const VERSION: u8 = 1;
const TYPE_V6: u8 = 1;
/// The greatest length of a connection.
const LENGTH_MASK: u16 = 0x0fff;
const OPTIONAL: u8 = 0x40;
const SEQUENCES: u8 = 1;
const ENGINE_DATA: u8 = 2;
const ENGINE_NAME: u8 = 3;
/// Ours, skipped by others: the address and port that the server sees as its client.
const SOURCE: u8 = 0x30;
/// The longest name of a persistence engine.
const ENGINE_NAME_MOST: usize = 16;
const SEQUENCES_LENGTH: usize = 24;

/// Flags of a connection that are told to others (`IP_VS_CONN_F_*`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ConnectionFlags(pub u32);

impl ConnectionFlags {
    /// The bits that say how packets get to the server: see [`Method`].
    pub const METHOD: u32 = 0x0007;
    /// The server's answers do not pass the director.
    pub const NO_OUTPUT: u32 = 0x0080;
    /// Counted as inactive.
    pub const INACTIVE: u32 = 0x0100;
    /// Sequence numbers are shifted, outwards or inwards.
    pub const SEQUENCES: u32 = 0x0600;
    /// The client's port is not known yet.
    pub const NO_CLIENT_PORT: u32 = 0x0800;
    /// No connection, but what persistence remembers of a client.
    pub const TEMPLATE: u32 = 0x1000;
    /// What a receiver heeds.
    pub const KNOWN: u32 = Self::METHOD
        | Self::NO_OUTPUT
        | Self::INACTIVE
        | Self::SEQUENCES
        | Self::NO_CLIENT_PORT
        | Self::TEMPLATE;

    /// Whether any of these bits is set.
    pub fn any(self, bits: u32) -> bool {
        self.0 & bits != 0
    }

    /// Whether it is a template.
    pub fn is_template(self) -> bool {
        self.any(Self::TEMPLATE)
    }

    /// How packets get to the server, if that is known.
    pub fn method(self) -> Option<Method> {
        Some(match self.0 & Self::METHOD {
            0 => Method::Masquerade,
            1 => Method::Local,
            2 => Method::Tunnel,
            3 => Method::Route,
            _ => return None,
        })
    }
}

/// How packets get to a server, as flags say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Addresses are translated.
    Masquerade = 0,
    /// The server is the director itself.
    Local = 1,
    /// Wrapped in another packet.
    Tunnel = 2,
    /// Only the link address is replaced.
    Route = 3,
}

/// How sequence numbers of a direction are shifted: by `delta` from `first` on, by `previous` before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shift {
    /// From here on.
    pub first: u32,
    /// By so much.
    pub delta: u32,
    /// By so much before.
    pub previous: u32,
}

/// What a persistence engine tells clients apart by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Engine {
    /// Its name (`sip`), 1 to 16 bytes.
    pub name: Vec<u8>,
    /// What it found (a Call-ID), 1 to 255 bytes.
    pub data: Vec<u8>,
}

/// A connection, or a template, as one director tells it to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncConnection {
    /// Number of the protocol; 0 in templates of services by mark.
    pub protocol: u8,
    /// Flags.
    pub flags: ConnectionFlags,
    /// The state by IPVS' numbers for the protocol, 0 and 1 for templates.
    pub state: u16,
    /// The client. All three are of one family.
    pub client: SocketAddr,
    /// What it called; in templates of services by mark, the mark.
    pub service: SocketAddr,
    /// Which server it got; its port is 0 in templates that do not fix one.
    pub server: SocketAddr,
    /// The mark that its packets bear.
    pub mark: u32,
    /// Seconds that it lives without packets.
    pub timeout: u32,
    /// Shifted sequence numbers, towards the server and back.
    pub shifts: Option<[Shift; 2]>,
    /// What a persistence engine found.
    pub engine: Option<Box<Engine>>,
    /// The client as the server sees it, if the source is translated, too. Known to this implementation alone.
    pub source: Option<SocketAddr>,
}

/// What is wrong with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Shorter than a header.
    #[error("shorter than its header")]
    Short,
    /// The length that it claims is not that of the datagram.
    #[error("its length is not the datagram's")]
    Length,
    /// Another version.
    #[error("not of version 1")]
    Version,
    /// A connection reaches beyond the end.
    #[error("a connection reaches beyond its end")]
    Truncated,
    /// A connection is of another type or version.
    #[error("a connection is of an unknown type or version")]
    Type,
    /// A parameter is broken, or there twice.
    #[error("a parameter of a connection is broken or there twice")]
    Parameter,
}

/// What becomes of a part of a message that is no good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// This connection is left out: of a protocol, state or kind that is not known here.
    #[error("a connection of a protocol, state, kind or parameter that is not known")]
    Unknown,
    /// This and all that follows is left out.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// The number of states of a protocol (`IP_VS_TCP_S_LAST` and the like); 0 of one that is not balanced.
pub fn states_of(protocol: u8) -> u16 {
    match protocol {
        6 => 11,
        17 => 1,
        132 => 14,
        _ => 0,
    }
}

/// Puts messages together.
pub struct Encoder {
    message: Vec<u8>,
    longest: usize,
    count: usize,
}

impl Encoder {
    /// For messages of at most `longest` bytes (a single connection that is longer gets a message of its own).
    pub fn new(sync_id: u8, longest: usize) -> Self {
        let longest = longest.max(HEADER);
        let mut message = Vec::with_capacity(longest);
        message.extend_from_slice(&[0, sync_id, 0, HEADER as u8, 0, VERSION, 0, 0]);
        Self { message, longest, count: 0 }
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Connections in the message.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Adds a connection; false if it has to go into the next message, or cannot be told: addresses of two families,
    /// names or data that are too long.
    #[must_use]
    pub fn push(&mut self, connection: &SyncConnection) -> bool {
        let start = self.message.len().next_multiple_of(4);
        let Some(length) = encoded_length(connection) else { return false };
        if self.count > 0 && (start + length > self.longest || self.count == MOST) {
            return false;
        }
        self.message.resize(start, 0);
        write(&mut self.message, connection, length as u16);
        debug_assert_eq!(self.message.len(), start + length);
        self.count += 1;
        self.message[4] = self.count as u8;
        let total = (self.message.len() as u16).to_be_bytes();
        self.message[2..4].copy_from_slice(&total);
        true
    }

    /// The message so far.
    pub fn message(&self) -> &[u8] {
        &self.message
    }

    /// Begins the next message.
    pub fn clear(&mut self) {
        self.message.truncate(HEADER);
        self.message[2..5].copy_from_slice(&[0, HEADER as u8, 0]);
        self.count = 0;
    }
}

/// Bytes of a connection without padding, if it can be told at all.
pub fn encoded_length(connection: &SyncConnection) -> Option<usize> {
    let v6 = connection.client.is_ipv6();
    if connection.service.is_ipv6() != v6 || connection.server.is_ipv6() != v6 {
        return None;
    }
    let mut length = FIXED[usize::from(v6)];
    if connection.shifts.is_some() {
        length += 2 + SEQUENCES_LENGTH;
    }
    if let Some(engine) = &connection.engine {
        if !(1..=255).contains(&engine.data.len()) || !(1..=ENGINE_NAME_MOST).contains(&engine.name.len()) {
            return None;
        }
        length += 4 + engine.data.len() + engine.name.len();
    }
    if let Some(source) = connection.source {
        length += 2 + if source.is_ipv6() { 18 } else { 6 };
    }
    Some(length)
}

fn put_address(message: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(address) => message.extend_from_slice(&address.octets()),
        IpAddr::V6(address) => message.extend_from_slice(&address.octets()),
    }
}

fn write(message: &mut Vec<u8>, connection: &SyncConnection, length: u16) {
    let ends = [connection.client, connection.service, connection.server];
    let flags = if connection.shifts.is_some() {
        connection.flags.0
    } else {
        connection.flags.0 & !ConnectionFlags::SEQUENCES
    };
    message.push(if ends[0].is_ipv6() { TYPE_V6 } else { 0 });
    message.push(connection.protocol);
    message.extend_from_slice(&length.to_be_bytes());
    message.extend_from_slice(&(flags & ConnectionFlags::KNOWN).to_be_bytes());
    message.extend_from_slice(&connection.state.to_be_bytes());
    for end in ends {
        message.extend_from_slice(&end.port().to_be_bytes());
    }
    message.extend_from_slice(&connection.mark.to_be_bytes());
    message.extend_from_slice(&connection.timeout.to_be_bytes());
    for end in ends {
        put_address(message, end.ip());
    }
    if let Some(shifts) = &connection.shifts {
        message.extend_from_slice(&[SEQUENCES, SEQUENCES_LENGTH as u8]);
        for word in shifts.iter().flat_map(|shift| [shift.first, shift.delta, shift.previous]) {
            message.extend_from_slice(&word.to_be_bytes());
        }
    }
    if let Some(engine) = &connection.engine {
        for (kind, data) in [(ENGINE_DATA, &engine.data), (ENGINE_NAME, &engine.name)] {
            message.extend_from_slice(&[kind, data.len() as u8]);
            message.extend_from_slice(data);
        }
    }
    if let Some(source) = connection.source {
        message.extend_from_slice(&[SOURCE | OPTIONAL, if source.is_ipv6() { 18 } else { 6 }]);
        message.extend_from_slice(&source.port().to_be_bytes());
        put_address(message, source.ip());
    }
}

/// A message whose header was checked.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    bytes: &'a [u8],
}

impl<'a> Message<'a> {
    /// Looks at a datagram.
    ///
    /// # Errors
    /// It is no message of version 1.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let header: &[u8; HEADER] = bytes.first_chunk().ok_or(Malformed::Short)?;
        if usize::from(u16::from_be_bytes([header[2], header[3]])) != bytes.len() {
            return Err(Malformed::Length);
        }
        if header[0] != 0 || header[5..] != [VERSION, 0, 0] {
            return Err(Malformed::Version);
        }
        Ok(Self { bytes })
    }

    /// The sender's sync ID.
    pub fn sync_id(&self) -> u8 {
        self.bytes[1]
    }

    /// The number of connections that it claims to hold.
    pub fn count(&self) -> usize {
        usize::from(self.bytes[4])
    }

    /// Its connections. Ends after the first [`Fault::Malformed`].
    pub fn connections(&self) -> Connections<'a> {
        Connections { bytes: self.bytes, at: HEADER, left: self.count() }
    }
}

/// Connections of a message.
#[derive(Clone, Debug)]
pub struct Connections<'a> {
    bytes: &'a [u8],
    at: usize,
    left: usize,
}

impl Iterator for Connections<'_> {
    type Item = Result<SyncConnection, Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let next = delimit(rest).map_err(Fault::from).and_then(|connection| {
            self.at += connection.len().next_multiple_of(4);
            decode(connection)
        });
        if matches!(next, Err(Fault::Malformed(_))) {
            self.left = 0;
        }
        Some(next)
    }
}

/// Cuts the first connection off.
fn delimit(rest: &[u8]) -> Result<&[u8], Malformed> {
    if rest.len() < FIXED[0] {
        return Err(Malformed::Truncated);
    }
    let word = u16::from_be_bytes([rest[2], rest[3]]);
    if word & !LENGTH_MASK != 0 || !matches!(rest[0], 0 | TYPE_V6) {
        return Err(Malformed::Type);
    }
    let length = usize::from(word & LENGTH_MASK);
    if length < FIXED[usize::from(rest[0])] {
        return Err(Malformed::Truncated);
    }
    rest.get(..length).ok_or(Malformed::Truncated)
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(v4).into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|v6| Ipv6Addr::from(v6).into())
}

/// Decodes a connection that is at least as long as its type wants.
fn decode(bytes: &[u8]) -> Result<SyncConnection, Fault> {
    let half = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let word = |at: usize| u32::from(half(at)) << 16 | u32::from(half(at + 2));
    let size = if bytes[0] == TYPE_V6 { 16 } else { 4 };
    let end = |number: usize| {
        let at = ADDRESSES + number * size;
        let ip = address(&bytes[at..at + size]).ok_or(Malformed::Truncated)?;
        Ok::<_, Malformed>(SocketAddr::new(ip, half(10 + 2 * number)))
    };
    let mut connection = SyncConnection {
        protocol: bytes[1],
        flags: ConnectionFlags(word(4) & ConnectionFlags::KNOWN),
        state: half(8),
        client: end(0)?,
        service: end(1)?,
        server: end(2)?,
        mark: word(16),
        timeout: word(20),
        shifts: None,
        engine: None,
        source: None,
    };
    let known = parameters(&bytes[ADDRESSES + 3 * size..], &mut connection)?;
    let template = connection.flags.is_template();
    if !known
        || connection.flags.method().is_none()
        || !template && connection.state >= states_of(connection.protocol)
    {
        return Err(Fault::Unknown);
    }
    if connection.shifts.is_none() {
        connection.flags.0 &= !ConnectionFlags::SEQUENCES;
    }
    Ok(connection)
}

/// Reads parameters; false if there is one that is not known and must be.
fn parameters(mut rest: &[u8], connection: &mut SyncConnection) -> Result<bool, Malformed> {
    let (mut data, mut name, mut known): (Option<&[u8]>, Option<&[u8]>, bool) = (None, None, true);
    while !rest.is_empty() {
        let [kind, length, ..] = *rest else { return Err(Malformed::Parameter) };
        let value = rest.get(2..2 + usize::from(length)).ok_or(Malformed::Parameter)?;
        rest = &rest[2 + value.len()..];
        if value.is_empty() {
            return Err(Malformed::Parameter);
        }
        let twice = match kind & !OPTIONAL {
            SEQUENCES => connection.shifts.replace(shifts(value)?).is_some(),
            ENGINE_DATA => data.replace(value).is_some(),
            ENGINE_NAME if value.len() > ENGINE_NAME_MOST => true,
            ENGINE_NAME => name.replace(value).is_some(),
            SOURCE if kind & OPTIONAL != 0 => {
                let (port, ip) = value.split_first_chunk().ok_or(Malformed::Parameter)?;
                let ip = address(ip).ok_or(Malformed::Parameter)?;
                connection.source.replace(SocketAddr::new(ip, u16::from_be_bytes(*port))).is_some()
            }
            _ => {
                known &= kind & OPTIONAL != 0;
                false
            }
        };
        if twice {
            return Err(Malformed::Parameter);
        }
    }
    connection.engine = match (data, name) {
        (Some(data), Some(name)) => Some(Box::new(Engine { name: name.to_vec(), data: data.to_vec() })),
        // A name alone says nothing.
        (None, _) => None,
        (Some(_), None) => return Ok(false),
    };
    Ok(known)
}

fn shifts(value: &[u8]) -> Result<[Shift; 2], Malformed> {
    let (words, []) = value.as_chunks::<4>() else { return Err(Malformed::Parameter) };
    let words: [u32; 6] = match <[[u8; 4]; 6]>::try_from(words) {
        Ok(words) => words.map(u32::from_be_bytes),
        Err(_) => return Err(Malformed::Parameter),
    };
    let [first, delta, previous, a, b, c] = words;
    Ok([Shift { first, delta, previous }, Shift { first: a, delta: b, previous: c }])
}

#[cfg(test)]
mod tests;
