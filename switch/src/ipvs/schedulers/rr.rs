//! Round robin: the server after the last chosen one, in Linux's order; weights only tell who takes part.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::super::destination::Destination;
use super::{Edits, usable};

/// The index of the server that was chosen last; `None`: the search begins with the first.
#[derive(Debug, Default)]
pub(super) struct Position(Option<u32>);

impl Position {
    /// Where it is after servers came or went.
    pub(super) fn changed(self, edits: &Edits) -> Self {
        match self.0 {
            Some(last) if !edits.moved.is_empty() => Self(edits.moved.get(last as usize).copied().flatten()),
            _ => self,
        }
    }

    #[inline]
    pub(super) fn choose<'a>(&mut self, servers: &'a [Arc<Destination>]) -> Option<&'a Arc<Destination>> {
        let start = self.0.map_or(0, |last| last as usize + 1).min(servers.len());
        let (before, from) = servers.split_at(start);
        let at = match from.iter().position(|server| usable(server)) {
            Some(at) => start + at,
            None => before.iter().position(|server| usable(server))?,
        };
        self.0 = Some(at as u32);
        servers.get(at)
    }
}
