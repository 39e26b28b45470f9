//! What goes into the server and what comes out of it.
#![forbid(unsafe_code)]

use std::net::Ipv4Addr;

use super::leases::{Lease, State};
use super::message::{BadMessage, Kind};
use crate::packet::ethernet::Mac;

/// Where a message came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Number of the port.
    pub port: u16,
    /// Ethernet source.
    pub mac: Mac,
    /// IP source.
    pub source: Ipv4Addr,
}

/// A message to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What it is.
    pub kind: Kind,
    /// The client's address in it; unspecified if none.
    pub address: Ipv4Addr,
    /// UDP payload, from server to client port.
    pub message: Vec<u8>,
    /// IP destination.
    pub destination: Ipv4Addr,
    /// Ethernet destination.
    pub mac: Mac,
    /// The port that it is to leave by.
    pub port: u16,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Silence {
    /// No message of a client.
    #[error("malformed: {0}")]
    Malformed(BadMessage),
    /// Through a relay: only stations on the interface's own network are served.
    #[error("relayed requests are not served")]
    Relayed,
    /// The message speaks for another station than the one that sent it.
    #[error("the hardware address in it is not its sender's")]
    Foreign,
    /// The client that the sender says it is was found to be at another port.
    #[error("the station that it says it is answers at another port")]
    Elsewhere,
    /// An option is missing without which the message means nothing.
    #[error("an address is missing")]
    Incomplete,
    /// The client talks to another server.
    #[error("it is for another server")]
    OtherServer,
    /// No address is left.
    #[error("no address is left in the range")]
    Exhausted,
    /// The stations behind this port have as many addresses as they may.
    #[error("the stations behind this port have as many addresses as they may")]
    PortLimit,
    /// The address that a client gives up or declines is not its own.
    #[error("the address is not the client's")]
    NotTheirs,
    /// It is being found out whether the address is in use.
    #[error("the address is being probed")]
    Probing,
    /// Nothing is to be answered.
    #[error("no answer is due")]
    Done,
}

/// What is to be done about a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Send this.
    Answer(Answer),
    /// Find out whether somebody on the network uses this address, and tell [`Server::probed`].
    Probe(Ipv4Addr),
    /// Nothing, for this reason.
    Silence(Silence),
}

/// What happened to a client's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The station has it.
    Bound {
        /// Its Ethernet address.
        mac: Mac,
        /// The address.
        address: Ipv4Addr,
        /// Where it is; `None` if it has not been heard since a restart.
        port: Option<u16>,
    },
    /// The station has it no longer.
    Unbound {
        /// Its Ethernet address.
        mac: Mac,
        /// The address.
        address: Ipv4Addr,
        /// Where it was.
        port: Option<u16>,
    },
}

/// A change to keep over a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The address.
    pub address: Ipv4Addr,
    /// What is known of it from now on; `None` for nothing.
    pub lease: Option<Lease>,
}

/// What others have to do about what the server decided.
#[derive(Debug, Default)]
pub struct Effects {
    /// To write down before the answer is sent.
    pub changes: Vec<Change>,
    /// To tell whoever wants to know.
    pub events: Vec<Event>,
}

/// How often what happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Requests read, of any kind.
    pub requests: u64,
    /// Addresses offered.
    pub offers: u64,
    /// Requests granted.
    pub acks: u64,
    /// Requests refused.
    pub naks: u64,
    /// Addresses that turned out to be in use, found out here or by the client.
    pub conflicts: u64,
    /// Messages that are none.
    pub malformed: u64,
    /// Messages through a relay, or in another station's name.
    pub refused: u64,
    /// Requests unanswered because no address was left.
    pub exhausted: u64,
    /// Requests unanswered because the port has its share.
    pub port_limit: u64,
}

/// A client's address, as listings show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// The address.
    pub address: Ipv4Addr,
    /// The client; `None` if somebody else uses the address.
    pub mac: Option<Mac>,
    /// The name that it gave, or was given.
    pub hostname: Option<String>,
    /// What it is.
    pub state: State,
    /// Seconds until that ends.
    pub expires: u64,
}
