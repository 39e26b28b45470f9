//! Listings that are too long for one answer.
#![forbid(unsafe_code)]

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use super::super::api::Page;
use super::super::rpc::Error;
use crate::refusal::Refusal;

/// Entries in a page: some 2 MiB, written in a few milliseconds.
const PAGE: usize = 16_384;
/// Listings of more than one page that are remembered at once; the oldest goes for a new one.
const LISTINGS_MAX: usize = 4;
/// Bits of a page's token that count pages; the others number the listing.
const PAGE_BITS: u32 = 16;

/// A listing of which pages are still to be asked for.
struct Listing {
    number: u64,
    connection: u64,
    /// A vector of what is listed.
    entries: Box<dyn Any>,
}

/// The listings that are under way.
#[derive(Default)]
pub(super) struct Listings {
    listings: RefCell<VecDeque<Listing>>,
    listed: Cell<u64>,
}

impl Listings {
    /// Forgets what was kept for a connection that has ended.
    pub(super) fn forget(&self, connection: u64) {
        self.listings.borrow_mut().retain(|listing| listing.connection != connection);
    }

    /// A page for `connection`: the first of what `entries` brings, or the one that the token `next` asks for.
    pub(super) fn page<T: Clone + 'static>(
        &self,
        connection: u64,
        next: Option<u64>,
        entries: impl FnOnce() -> Result<Vec<T>, Refusal>,
    ) -> Result<Page<T>, Error> {
        let Some(token) = next else {
            let entries = entries()?;
            let number = self.listed.get() + 1;
            self.listed.set(number);
            let page = cut(&entries, number, 0)?;
            if page.next.is_some() {
                let mut listings = self.listings.borrow_mut();
                listings.retain(|old| old.connection != connection);
                listings.truncate(LISTINGS_MAX - 1);
                listings.push_front(Listing { number, connection, entries: Box::new(entries) });
            }
            return Ok(page);
        };
        let mut listings = self.listings.borrow_mut();
        let (number, page) = (token >> PAGE_BITS, token as usize & ((1 << PAGE_BITS) - 1));
        let at =
            listings.iter().position(|listing| listing.number == number && listing.connection == connection);
        let found = at.and_then(|at| Some((at, listings[at].entries.downcast_ref::<Vec<T>>()?)));
        let (at, entries) = found.ok_or_else(|| {
            Refusal::new(format!(
                "next {token} belongs to no listing of this connection: start the listing anew"
            ))
        })?;
        let page = cut(entries, number, page)?;
        if page.next.is_none() {
            listings.remove(at);
        }
        Ok(page)
    }
}

fn cut<T: Clone>(entries: &[T], number: u64, page: usize) -> Result<Page<T>, Refusal> {
    let (start, total) = (page * PAGE, entries.len());
    let end = total.min(start + PAGE);
    let next = (end < total).then_some(number << PAGE_BITS | (page as u64 + 1));
    let entries = entries.get(start..end).ok_or("next is beyond the end of the listing")?.to_vec();
    Ok(Page { total: total as u64, entries, next })
}
