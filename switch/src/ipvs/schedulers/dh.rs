//! Destination hashing: a table of 256 places, dealt out to the servers in turn; the address that the client called
//! tells the place.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::super::destination::Destination;
use super::super::service::Flow;
use super::hashing::{fold, hash_32};
use super::usable;

const BITS: u32 = 8;

/// How many servers share the places.
#[derive(Debug)]
pub(crate) struct Table(usize);

impl Table {
    pub(super) fn new(servers: &[Arc<Destination>]) -> Self {
        Self(servers.len())
    }

    #[inline]
    pub(super) fn choose<'a>(
        &self,
        servers: &'a [Arc<Destination>],
        flow: &Flow,
    ) -> Option<&'a Arc<Destination>> {
        // Dealing out in turn needs no table.
        let place = hash_32(fold(flow.destination), BITS) as usize;
        servers.get(place.checked_rem(self.0)?).filter(|server| usable(server))
    }
}
