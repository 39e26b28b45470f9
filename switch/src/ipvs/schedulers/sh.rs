//! Source hashing: a table of 256 places, dealt out to the servers by their weights; the client's address, with
//! `sh-port` also its port, tells the place. With `sh-fallback` another place is tried if its server cannot be used.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::super::destination::Destination;
use super::super::service::Flow;
use super::super::spec::SchedulerFlags;
use super::hashing::{fold, hash_32};
use super::{has, usable};

const BITS: u32 = 8;
const SIZE: usize = 1 << BITS;

/// The server of each place.
#[derive(Debug)]
pub(crate) struct Table(Box<[u32; SIZE]>);

impl Table {
    /// Deals out the places: as many in turn as a server's weight says, one at least.
    pub(super) fn new(servers: &[Arc<Destination>]) -> Self {
        let mut places = Box::new([u32::MAX; SIZE]);
        let (mut at, mut dealt) = (0, 0);
        for place in &mut *places {
            let Some(server) = servers.get(at) else {
                break;
            };
            *place = at as u32;
            dealt += 1;
            if dealt >= server.weight() {
                (at, dealt) = ((at + 1) % servers.len(), 0);
            }
        }
        Self(places)
    }

    #[inline]
    pub(super) fn choose<'a>(
        &self,
        servers: &'a [Arc<Destination>],
        flow: &Flow,
        flags: SchedulerFlags,
    ) -> Option<&'a Arc<Destination>> {
        let port = if has(flags, SchedulerFlags::PORT) { flow.source_port } else { 0 };
        let hash = hash_32(fold(flow.source).wrapping_add(port.into()), BITS) as usize;
        let at = |place: usize| servers.get(self.0[place % SIZE] as usize);
        let first = at(hash)?;
        if usable(first) {
            return Some(first);
        }
        if !has(flags, SchedulerFlags::FALLBACK) {
            return None;
        }
        // From twice the first place on, as Linux adds it a second time.
        (0..SIZE).filter_map(|offset| at(hash + (offset + hash) % SIZE)).find(|server| usable(server))
    }
}
