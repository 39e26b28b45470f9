//! Connections that another director tells of, entered by a worker between two bursts.
#![forbid(unsafe_code)]

use super::Stage;
use super::table::RouterTable;
use crate::conntrack::adopt::Entered;

/// Connections entered in one turn.
const ENTERED: usize = 32;

impl Stage {
    /// Takes connections that another director told of; one worker does it. Whether there were any: then there may be
    /// more.
    #[inline]
    pub fn take_announced(&mut self, router: &RouterTable, now: u32) -> bool {
        let any = !router.ipvs.announced.is_empty();
        if any {
            self.enter_announced(router, now);
        }
        any
    }

    #[cold]
    fn enter_announced(&mut self, router: &RouterTable, now: u32) {
        let (ipvs, local) = (&router.ipvs, &mut self.local);
        ipvs.announced.take(ENTERED, |announced| {
            if ipvs.count_announced(&announced)
                && router.conntrack.adopt(local, &announced, now) != Entered::New
            {
                ipvs.discount_announced(&announced);
            }
        });
    }
}
