//! The order of listings: that of ipvsadm, which sorts by differences that wrap around, so that 224.0.0.1 may stand
//! before 10.0.0.1 and the order depends on how it is sorted: by merging halves, the smaller one first.

use std::net::IpAddr;

use super::table::{Listed, Server};

/// Sorts by merging; `compare` is below or at 0 where the first argument may stand first.
fn sort<T>(list: Vec<T>, compare: &impl Fn(&T, &T) -> i32) -> Vec<T> {
    if list.len() < 2 {
        return list;
    }
    let mut first = list;
    let second = first.split_off(first.len() / 2);
    let total = first.len() + second.len();
    let mut first = sort(first, compare).into_iter().peekable();
    let mut second = sort(second, compare).into_iter().peekable();
    let mut merged = Vec::with_capacity(total);
    while let (Some(a), Some(b)) = (first.peek(), second.peek()) {
        merged.extend(if compare(a, b) <= 0 { first.next() } else { second.next() });
    }
    merged.extend(first);
    merged.extend(second);
    merged
}

fn difference(a: u32, b: u32) -> i32 {
    a.wrapping_sub(b) as i32
}

fn family(address: IpAddr) -> i32 {
    // AF_INET and AF_INET6.
    if address.is_ipv4() { 2 } else { 10 }
}

fn addresses(a: IpAddr, b: IpAddr) -> i32 {
    match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => difference(a.to_bits(), b.to_bits()),
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            let word = |bits: u128, at: u32| (bits >> (96 - 32 * at)) as u32;
            let words = (0..4).map(|at| difference(word(a.to_bits(), at), word(b.to_bits(), at)));
            words.into_iter().find(|difference| *difference != 0).unwrap_or(0)
        }
        _ => family(a) - family(b),
    }
}

/// An address as four words, of IPv4 only the first.
fn words(address: IpAddr) -> [u32; 4] {
    match address {
        IpAddr::V4(v4) => [v4.to_bits(), 0, 0, 0],
        IpAddr::V6(v6) => std::array::from_fn(|at| (v6.to_bits() >> (96 - 32 * at)) as u32),
    }
}

/// Sorts servers of a service, which may be of both families: one of IPv4 compares its only word.
pub(super) fn servers(list: Vec<Server>) -> Vec<Server> {
    sort(list, &|a: &Server, b: &Server| {
        let count = if a.address.is_ipv6() { 4 } else { 1 };
        let pairs = words(a.address).into_iter().zip(words(b.address)).take(count);
        let first = pairs.map(|(a, b)| difference(a, b)).find(|difference| *difference != 0);
        first.unwrap_or_else(|| i32::from(a.port) - i32::from(b.port))
    })
}

/// Sorts services.
pub(super) fn services(list: Vec<Listed>) -> Vec<Listed> {
    sort(list, &|a: &Listed, b: &Listed| {
        let steps = [
            difference(a.mark, b.mark),
            family(a.address) - family(b.address),
            a.protocol_number() - b.protocol_number(),
            addresses(a.address, b.address),
            i32::from(a.port) - i32::from(b.port),
        ];
        steps.into_iter().find(|step| *step != 0).unwrap_or(0)
    })
}
