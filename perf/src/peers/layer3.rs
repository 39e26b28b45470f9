#![forbid(unsafe_code)]
//! The addresses of the routed benchmarks, the same for every candidate.
//!
//! An inner guest at 10.255.0.2 with 10.254.0.0/16 behind it, an outer guest at 10.252.0.2 with 10.253.0.0/16 behind it,
//! the switch at .1 of both links. These are the addresses that testpmd's flowgen sends from and to; the inner
//! interface has the MAC address that it sends to.

use std::net::Ipv4Addr;

use crate::frames::mac;

/// MAC addresses of the switch on the inner and on the outer link.
pub const GATEWAYS: [[u8; 6]; 2] = [[0, 1, 2, 3, 4, 1], [0, 1, 2, 3, 4, 2]];
/// Names of the interfaces.
pub const LINKS: [&str; 2] = ["inner", "outer"];
/// Its addresses there.
pub const ADDRESSES: [&str; 2] = ["10.255.0.1/24", "10.252.0.1/24"];
/// The guests' addresses.
pub const GUESTS: [&str; 2] = ["10.255.0.2", "10.252.0.2"];
/// The networks behind them.
pub const NETWORKS: [&str; 2] = ["10.254.0.0/16", "10.253.0.0/16"];
/// The address under which the inner network is seen when it is translated.
pub const TRANSLATED: &str = "10.252.0.1";
/// The same as a number, with its mask.
pub const SEEN_TRANSLATED: (u32, u32) = (0x0afc_0001, 0xffff_ffff);
/// The inner network as it is seen when it is only routed.
pub const SEEN_ROUTED: (u32, u32) = (0x0afe_0000, 0xffff_0000);
/// 10.253.0.0.
const OUTER: u32 = 0x0afd_0000;

/// MAC address as text.
pub fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// MAC addresses of the inner and the outer guest.
pub fn guests() -> [[u8; 6]; 2] {
    [mac(1), mac(2)]
}

/// `count` destinations in the outer network.
pub fn destinations(count: u32) -> Vec<u32> {
    (0..count).map(|n| OUTER + (n & 0xffff)).collect()
}

/// The port of services and servers.
pub const SERVICE_PORT: u16 = 2000;

/// The address of a virtual service: in a network that nobody routes.
pub fn service(n: u32) -> Ipv4Addr {
    (0x0afb_0000 + (n & 0xffff)).into()
}

/// The address of a real server.
pub fn server(n: u32) -> Ipv4Addr {
    (OUTER + (n & 0xffff)).into()
}

/// A table with as many prefixes, and lengths in such shares, as routers of the internet have: address and length, none
/// twice, none in 10.0.0.0/8.
pub fn internet(count: u32) -> Vec<(u32, u8)> {
    // Shares of prefix lengths in a full table, in percent; /24 has the rest.
    const SHARES: [(u8, u64); 8] = [(16, 1), (17, 1), (18, 2), (19, 3), (20, 5), (21, 6), (22, 13), (23, 10)];
    let mut seen = std::collections::HashSet::with_capacity(count as usize);
    let mut table = Vec::with_capacity(count as usize);
    let mut state = 0x1234_5678_9abc_def1_u64;
    while table.len() < count as usize {
        // xorshift64*: the same table in every run.
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        let random = state.wrapping_mul(0x2545_f491_4f6c_dd1d);
        let mut share = random % 100;
        let length = SHARES
            .iter()
            .find(|(_, percent)| {
                let hit = share < *percent;
                share = share.saturating_sub(*percent);
                hit
            })
            .map_or(24, |(length, _)| *length);
        let address = (random >> 32) as u32 & (u32::MAX << (32 - length));
        let first = address >> 24;
        if (1..224).contains(&first) && first != 10 && first != 127 && seen.insert((address, length)) {
            table.push((address, length));
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_its_routes_and_the_shares_of_lengths() {
        let table = internet(20_000);
        assert_eq!(table.len(), 20_000);
        let longest = table.iter().filter(|(_, length)| *length == 24).count();
        assert!((10_000..14_000).contains(&longest), "{longest}");
        assert!(table.iter().all(|(address, length)| address << length == 0 || *length == 32));
        assert_eq!(table, internet(20_000));
    }
}
