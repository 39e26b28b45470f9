//! Configuration: plain descriptions, validated whole, from requests or from a file.
//!
//! The same rules and the same messages hold for the command line, the control socket and the file, because all of
//! them end in the types of [`spec`] and [`runtime`].

pub mod arguments;
pub mod document;
pub mod file;
pub mod ipvs;
pub mod layer3;
pub mod name;
mod pieces;
pub mod runtime;
pub mod spec;

pub use crate::packet::ethernet::Mac;
pub use file::Config;
pub use layer3::Layer3;
pub use name::Name;
pub use runtime::{Poll, Workers};
pub use spec::{
    Attachment, BridgeSpec, ClasslessRoute, PortChange, PortSpec, RebalanceChange, Rebalancing, Role,
    RouteKind,
};
