//! When routers are advertised, and what is said (RFC 4861 section 6.2, RFC 8106, RFC 4862).
//!
//! A machine without clock or socket, of one interface: it is told the milliseconds and who asked, and says what is due.
//! Whoever asks from an address of its own is answered alone, so that the answer does not wait for the three seconds
//! between advertisements to all.
#![forbid(unsafe_code)]

use std::net::Ipv6Addr;

use ipnet::Ipv6Net;

use crate::l3::nd;
use crate::packet::ethernet::Mac;

/// Milliseconds between unsolicited advertisements: MinRtrAdvInterval and MaxRtrAdvInterval's defaults.
const INTERVAL: (u64, u64) = (198_000, 600_000);
/// MAX_INITIAL_RTR_ADVERT_INTERVAL, in milliseconds, and MAX_INITIAL_RTR_ADVERTISEMENTS.
const INITIAL: (u64, u8) = (16_000, 3);
/// MIN_DELAY_BETWEEN_RAS, in milliseconds.
const APART: u64 = 3_000;
/// MAX_RA_DELAY_TIME, in milliseconds.
const DELAY: u64 = 500;
/// AdvDefaultLifetime's default, in seconds; name servers hold as long (RFC 8106 section 5.1).
const LIFETIME: u16 = 1800;
/// Seconds for which a prefix is valid, and preferred: radvd's, shorter than RFC 4861's, since guests' networks change.
const PREFIX: (u32, u32) = (86_400, 14_400);
/// Prefixes that are advertised at most, so that an advertisement fits the smallest MTU of IPv6.
const PREFIXES: usize = 32;
/// Stations that wait for their answer at the same time, at most.
const WAITING: usize = 64;
/// Smallest MTU that IPv6 allows.
const MTU_MIN: u32 = 1280;
/// Hop limit that hosts are told to use.
const HOP_LIMIT: u8 = 64;

/// What is advertised on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The interface's MAC address.
    pub mac: Mac,
    /// Its link-local address.
    pub source: Ipv6Addr,
    /// The link's MTU in bytes, if hosts are to be told.
    pub mtu: Option<u16>,
    /// The interface's networks. Stations make addresses of those of 64 bits.
    pub prefixes: Vec<Ipv6Net>,
    /// Name servers.
    pub dns: Vec<Ipv6Addr>,
}

/// An advertisement that is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// The frame.
    pub frame: Vec<u8>,
    /// The port that it is to leave by; `None` for all.
    pub port: Option<u16>,
}

#[derive(Debug)]
struct Waiting {
    at: u64,
    address: Ipv6Addr,
    mac: Mac,
    port: u16,
}

/// The advertiser of one interface.
#[derive(Debug)]
pub struct Advertiser {
    config: Config,
    /// Networks that the interface has no longer, and how often that is still to be told.
    retired: Vec<(Ipv6Net, u8)>,
    /// When the next advertisement to all is due.
    next: u64,
    /// When the last one was sent.
    last: Option<u64>,
    /// How many more come in the quicker rhythm of the beginning.
    initial: u8,
    waiting: Vec<Waiting>,
    random: u64,
}

impl Advertiser {
    /// An advertiser that begins at once. `seed` makes its times different from its neighbours'.
    pub fn new(config: Config, now: u64, seed: u64) -> Self {
        let random = seed ^ config.mac.to_u64();
        let retired = Vec::new();
        Self { config, retired, next: now, last: None, initial: INITIAL.1, waiting: Vec::new(), random }
    }

    /// Advertises other things from now on; hosts are told soon, also of networks that are gone.
    pub fn configure(&mut self, config: Config, now: u64) {
        if config == self.config {
            return;
        }
        let gone = self
            .config
            .prefixes
            .iter()
            .filter(|net| config.prefixes.iter().all(|n| n.trunc() != net.trunc()));
        let gone: Vec<_> = gone.map(|net| (net.trunc(), INITIAL.1)).collect();
        self.retired.extend(gone);
        self.retired.retain(|(net, _)| config.prefixes.iter().all(|n| n.trunc() != *net));
        self.config = config;
        self.initial = INITIAL.1;
        self.next = self.earliest(now);
    }

    /// The first moment at which all may be told again.
    fn earliest(&self, now: u64) -> u64 {
        self.last.map_or(now, |last| now.max(last + APART))
    }

    /// Somebody asks for routers: from `address`, unspecified if it has none, with the Ethernet address `mac`, at
    /// `port`.
    pub fn solicited(&mut self, now: u64, address: Ipv6Addr, mac: Mac, port: u16) {
        let at = now + self.random(0, DELAY);
        if address.is_unspecified() || address.is_multicast() || self.waiting.len() >= WAITING {
            self.next = self.next.min(self.earliest(at));
        } else if self.waiting.iter().all(|waiting| waiting.address != address) {
            self.waiting.push(Waiting { at, address, mac, port });
        }
    }

    /// When [`Advertiser::poll`] has something.
    pub fn next_deadline(&self) -> u64 {
        self.waiting.iter().map(|waiting| waiting.at).fold(self.next, u64::min)
    }

    /// An advertisement that is due; to be asked until there is none.
    pub fn poll(&mut self, now: u64) -> Option<Due> {
        if self.next <= now {
            let frame = self.frame(LIFETIME, None);
            self.last = Some(now);
            self.retired.retain_mut(|(_, left)| {
                *left -= 1;
                *left > 0
            });
            let mut pause = self.random(INTERVAL.0, INTERVAL.1);
            self.initial = self.initial.saturating_sub(1);
            if self.initial > 0 {
                pause = pause.min(INITIAL.0);
            }
            self.next = now + pause;
            // Whoever waits has been told.
            self.waiting.clear();
            return Some(Due { frame, port: None });
        }
        let ready = self.waiting.iter().position(|waiting| waiting.at <= now)?;
        let Waiting { address, mac, port, .. } = self.waiting.swap_remove(ready);
        Some(Due { frame: self.frame(LIFETIME, Some((address, mac))), port: Some(port) })
    }

    /// The last advertisement: this is no router any more (RFC 4861 section 6.2.5).
    pub fn farewell(&self) -> Vec<u8> {
        self.frame(0, None)
    }

    fn frame(&self, lifetime: u16, to: Option<(Ipv6Addr, Mac)>) -> Vec<u8> {
        let prefix = |net: &Ipv6Net, (valid, preferred)| nd::Prefix {
            network: net.network().to_bits(),
            length: net.prefix_len(),
            on_link: true,
            autonomous: net.prefix_len() == 64,
            valid,
            preferred,
        };
        // A network that is gone: hosts shorten its lifetimes as far as RFC 4862 section 5.5.3 lets them.
        let gone = self.retired.iter().map(|(net, _)| prefix(net, (0, 0)));
        let present = self.config.prefixes.iter().map(|net| prefix(net, PREFIX));
        let prefixes: Vec<_> = present.chain(gone).take(PREFIXES).collect();
        let dns: Vec<u128> = self.config.dns.iter().map(|server| server.to_bits()).take(8).collect();
        let advertisement = nd::RouterAdvertisement {
            mac: self.config.mac,
            source: self.config.source.to_bits(),
            hop_limit: HOP_LIMIT,
            managed: false,
            other: false,
            lifetime,
            mtu: self.config.mtu.map(u32::from).filter(|&mtu| mtu >= MTU_MIN),
            prefixes: &prefixes,
            dns: (&dns, u32::from(lifetime)),
        };
        let mut frame = vec![0; 14 + MTU_MIN as usize];
        let to = to.map(|(address, mac)| (address.to_bits(), mac));
        // 32 prefixes and 8 servers fit.
        let len = advertisement.frame(&mut frame, to).unwrap_or(0);
        frame.truncate(len);
        frame
    }

    /// A number of `from..=to` (SplitMix64).
    fn random(&mut self, from: u64, to: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.random;
        bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        from + (bits ^ bits >> 31) % (to - from + 1)
    }
}

#[cfg(test)]
mod tests;
