//! DHCP messages as bytes (RFC 2131 section 2, RFC 2132, RFC 3396).
//!
//! Requests come from guests: the parser is total, and says by name what is wrong with a message. Options may be spread
//! over the fields `file` and `sname` (option 52) and an option that stands there several times is one value (RFC
//! 3396), when reading and when writing.
#![forbid(unsafe_code)]

use std::net::Ipv4Addr;

use crate::packet::ethernet::Mac;

/// Bytes before the options, magic cookie included.
const FIXED: usize = 240;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
const SNAME: std::ops::Range<usize> = 44..108;
const FILE: std::ops::Range<usize> = 108..236;
/// A message is padded to this: what BOOTP's relays and some clients expect at least (RFC 951).
const PADDED: usize = 300;
/// Bytes of a message that every client must take (RFC 2131 section 2: 576 bytes with IP and UDP headers).
pub const SIZE_MIN: usize = 548;
/// Bytes of the longest message made: an Ethernet frame's.
pub const SIZE_MAX: usize = 1472;
const BROADCAST: u16 = 0x8000;

/// Option codes (RFC 2132 and the IANA registry).
pub mod option {
    /// Filler.
    pub const PAD: u8 = 0;
    /// Subnet mask.
    pub const SUBNET_MASK: u8 = 1;
    /// Routers.
    pub const ROUTER: u8 = 3;
    /// Name servers.
    pub const DNS: u8 = 6;
    /// Host name.
    pub const HOSTNAME: u8 = 12;
    /// Domain name.
    pub const DOMAIN: u8 = 15;
    /// MTU of the client's interface.
    pub const MTU: u8 = 26;
    /// Broadcast address.
    pub const BROADCAST: u8 = 28;
    /// Address that the client asks for.
    pub const REQUESTED_ADDRESS: u8 = 50;
    /// Lease time.
    pub const LEASE_TIME: u8 = 51;
    /// Which of `file` and `sname` hold options.
    pub const OVERLOAD: u8 = 52;
    /// Message type.
    pub const MESSAGE_TYPE: u8 = 53;
    /// Server identifier.
    pub const SERVER: u8 = 54;
    /// Options that the client asks for.
    pub const PARAMETERS: u8 = 55;
    /// Text for people.
    pub const MESSAGE: u8 = 56;
    /// Longest message that the client takes.
    pub const SIZE: u8 = 57;
    /// When to renew (T1).
    pub const RENEWAL: u8 = 58;
    /// When to rebind (T2).
    pub const REBINDING: u8 = 59;
    /// Client identifier.
    pub const CLIENT: u8 = 61;
    /// Classless static routes (RFC 3442).
    pub const ROUTES: u8 = 121;
    /// The same by the number that Windows asked for before.
    pub const ROUTES_MICROSOFT: u8 = 249;
    /// End of the options.
    pub const END: u8 = 255;
}

/// What a message is (option 53).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A client looks for servers.
    Discover = 1,
    /// A server offers an address.
    Offer,
    /// A client asks for an address, or for more time.
    Request,
    /// A client found the address in use.
    Decline,
    /// A server grants.
    Ack,
    /// A server refuses.
    Nak,
    /// A client gives its address up.
    Release,
    /// A client with an address of its own asks for the rest.
    Inform,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        use Kind::*;
        [Discover, Offer, Request, Decline, Ack, Nak, Release, Inform]
            .into_iter()
            .find(|&kind| kind as u8 == byte)
    }
}

/// What is wrong with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadMessage {
    /// Shorter than the fixed fields.
    #[error("it is shorter than 240 bytes")]
    Truncated,
    /// `op` is not BOOTREQUEST.
    #[error("it is no request")]
    NotRequest,
    /// Hardware type or address length are not Ethernet's, or the address is no station's.
    #[error("its hardware address is no station's Ethernet address")]
    Hardware,
    /// Another magic cookie.
    #[error("its magic cookie is wrong")]
    Cookie,
    /// No message type: BOOTP, for which there is no server here.
    #[error("it is BOOTP, not DHCP")]
    Bootp,
    /// A message type that only servers send, or none that exists.
    #[error("its message type is no client's")]
    Kind,
    /// The option of this code goes beyond the end.
    #[error("option {0} goes beyond the end")]
    Overrun(u8),
    /// The option of this code has a length that it cannot have.
    #[error("option {0} has a wrong length")]
    Length(u8),
}

/// A client's message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Message type.
    pub kind: Kind,
    /// Transaction identifier.
    pub xid: u32,
    /// The client cannot take unicasts yet.
    pub broadcast: bool,
    /// Address that the client has and answers ARP for; unspecified if none.
    pub ciaddr: Ipv4Addr,
    /// Relay; unspecified if none.
    pub giaddr: Ipv4Addr,
    /// `chaddr`.
    pub mac: Mac,
    /// Option 50.
    pub requested: Option<Ipv4Addr>,
    /// Option 54.
    pub server: Option<Ipv4Addr>,
    /// Option 51, seconds.
    pub lease: Option<u32>,
    /// Option 61.
    pub client: Option<Box<[u8]>>,
    /// Option 12, if it is a name that a host can have.
    pub hostname: Option<String>,
    /// Option 55.
    pub parameters: Option<Box<[u8]>>,
    /// Bytes of the longest message that the client takes, IP and UDP headers not counted: [`SIZE_MIN`] to
    /// [`SIZE_MAX`].
    pub size: usize,
}

impl Request {
    /// Reads a message: the payload of a UDP datagram.
    ///
    /// # Errors
    /// Whatever is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Self, BadMessage> {
        let (fixed, rest) = bytes.split_first_chunk::<FIXED>().ok_or(BadMessage::Truncated)?;
        if fixed[0] != 1 {
            return Err(BadMessage::NotRequest);
        }
        let mac = Mac([fixed[28], fixed[29], fixed[30], fixed[31], fixed[32], fixed[33]]);
        if fixed[1..3] != [1, 6] || mac.is_multicast() || mac.is_zero() {
            return Err(BadMessage::Hardware);
        }
        if fixed[236..] != COOKIE {
            return Err(BadMessage::Cookie);
        }
        let mut options = Options::default();
        options.read(rest)?;
        let overload = options.byte(option::OVERLOAD)?.unwrap_or(0);
        if overload & 1 != 0 {
            options.read(&fixed[FILE])?;
        }
        if overload & 2 != 0 {
            options.read(&fixed[SNAME])?;
        }
        let address = |at: usize| Ipv4Addr::new(fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]);
        let kind = options.byte(option::MESSAGE_TYPE)?.ok_or(BadMessage::Bootp)?;
        let kind = Kind::from_byte(kind)
            .filter(|kind| !matches!(kind, Kind::Offer | Kind::Ack | Kind::Nak))
            .ok_or(BadMessage::Kind)?;
        let client = options.get(option::CLIENT).map(Box::<[u8]>::from);
        if client.as_ref().is_some_and(|id| id.is_empty() || id.len() > 255) {
            return Err(BadMessage::Length(option::CLIENT));
        }
        let size = options.word(option::SIZE)?.map_or(0, usize::from);
        Ok(Self {
            kind,
            xid: u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]),
            broadcast: u16::from_be_bytes([fixed[10], fixed[11]]) & BROADCAST != 0,
            ciaddr: address(12),
            giaddr: address(24),
            mac,
            requested: options.four(option::REQUESTED_ADDRESS)?.map(Ipv4Addr::from),
            server: options.four(option::SERVER)?.map(Ipv4Addr::from),
            lease: options.four(option::LEASE_TIME)?.map(u32::from_be_bytes),
            client,
            hostname: options.get(option::HOSTNAME).and_then(hostname),
            parameters: options.get(option::PARAMETERS).map(Box::from),
            size: size.saturating_sub(28).clamp(SIZE_MIN, SIZE_MAX),
        })
    }

    /// What the client is known by: its identifier (RFC 2131 section 4.2), or its Ethernet address in an identifier's
    /// form, so that a client that gives just that as identifier is the same as one that gives none.
    pub fn identity(&self) -> Box<[u8]> {
        self.client.clone().unwrap_or_else(|| hardware_identity(self.mac))
    }
}

/// The identifier of a client that is known by its Ethernet address.
pub fn hardware_identity(mac: Mac) -> Box<[u8]> {
    [&[1][..], &mac.0].concat().into()
}

/// A host's name, if this is one: letters, digits, hyphens and dots. Some clients end it with a zero.
fn hostname(bytes: &[u8]) -> Option<String> {
    let bytes = bytes.strip_suffix(&[0]).unwrap_or(bytes);
    let allowed = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    if bytes.is_empty() || bytes.len() > 253 || !bytes.iter().all(allowed) {
        return None;
    }
    String::from_utf8(bytes.to_vec()).ok()
}

/// Options in the order of their first appearance, those of one code joined.
#[derive(Default)]
struct Options(Vec<(u8, Vec<u8>)>);

impl Options {
    fn read(&mut self, mut area: &[u8]) -> Result<(), BadMessage> {
        loop {
            match *area {
                // Some clients leave the end out.
                [] | [option::END, ..] => return Ok(()),
                [option::PAD, ref rest @ ..] => area = rest,
                [code, len, ref rest @ ..] => {
                    let value;
                    (value, area) =
                        rest.split_at_checked(usize::from(len)).ok_or(BadMessage::Overrun(code))?;
                    match self.0.iter_mut().find(|(other, _)| *other == code) {
                        Some((_, joined)) => joined.extend(value),
                        None => self.0.push((code, value.to_vec())),
                    }
                }
                [code] => return Err(BadMessage::Overrun(code)),
            }
        }
    }

    fn get(&self, code: u8) -> Option<&[u8]> {
        self.0.iter().find(|(other, _)| *other == code).map(|(_, value)| value.as_slice())
    }

    fn array<const N: usize>(&self, code: u8) -> Result<Option<[u8; N]>, BadMessage> {
        self.get(code).map(|value| value.try_into().map_err(|_| BadMessage::Length(code))).transpose()
    }

    fn byte(&self, code: u8) -> Result<Option<u8>, BadMessage> {
        Ok(self.array(code)?.map(|[byte]| byte))
    }

    fn word(&self, code: u8) -> Result<Option<u16>, BadMessage> {
        Ok(self.array(code)?.map(u16::from_be_bytes))
    }

    fn four(&self, code: u8) -> Result<Option<[u8; 4]>, BadMessage> {
        self.array(code)
    }
}

/// A server's message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Message type.
    pub kind: Kind,
    /// The request's transaction identifier.
    pub xid: u32,
    /// The request's flag.
    pub broadcast: bool,
    /// The request's `ciaddr`, in a message that grants.
    pub ciaddr: Ipv4Addr,
    /// The client's address.
    pub yiaddr: Ipv4Addr,
    /// The request's `chaddr`.
    pub mac: Mac,
    /// Options beside the message type, the more important ones first.
    pub options: Vec<(u8, Vec<u8>)>,
}

impl Reply {
    /// The message in at most `limit` bytes. Options that do not fit the options field go to `file` and `sname`; the
    /// codes of those that do not fit there either are returned beside it.
    pub fn write(&self, limit: usize) -> (Vec<u8>, Vec<u8>) {
        let mut message = vec![0; FIXED];
        message[..3].copy_from_slice(&[2, 1, 6]);
        message[4..8].copy_from_slice(&self.xid.to_be_bytes());
        message[10..12].copy_from_slice(&(if self.broadcast { BROADCAST } else { 0 }).to_be_bytes());
        message[12..16].copy_from_slice(&self.ciaddr.octets());
        message[16..20].copy_from_slice(&self.yiaddr.octets());
        message[28..34].copy_from_slice(&self.mac.0);
        message[236..].copy_from_slice(&COOKIE);

        let limit = limit.clamp(SIZE_MIN, SIZE_MAX);
        // Message type, room for the overload option, and the end; one byte less in each field for its own end.
        let room = [limit - FIXED - 3 - 3 - 1, FILE.len() - 1, SNAME.len() - 1];
        let mut areas = [Vec::new(), Vec::new(), Vec::new()];
        let mut left_out = Vec::new();
        for (code, value) in &self.options {
            let parts = || value.chunks(255);
            let len = value.len() + 2 * parts().len();
            match (0..areas.len()).find(|&n| areas[n].len() + len <= room[n]) {
                Some(n) => {
                    for part in parts() {
                        areas[n].extend([*code, part.len() as u8]);
                        areas[n].extend(part);
                    }
                }
                None => left_out.push(*code),
            }
        }
        let [main, file, sname] = areas;
        message.extend([option::MESSAGE_TYPE, 1, self.kind as u8]);
        let overload = u8::from(!file.is_empty()) | u8::from(!sname.is_empty()) << 1;
        if overload != 0 {
            message.extend([option::OVERLOAD, 1, overload]);
        }
        message.extend(main);
        message.push(option::END);
        for (range, area) in [(FILE, file), (SNAME, sname)] {
            if !area.is_empty() {
                let field = &mut message[range];
                field[..area.len()].copy_from_slice(&area);
                field[area.len()] = option::END;
            }
        }
        if message.len() < PADDED {
            message.resize(PADDED, option::PAD);
        }
        (message, left_out)
    }
}

#[cfg(test)]
mod tests;
