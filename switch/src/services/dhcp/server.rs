//! The protocol: what a client is answered (RFC 2131 section 4.3).
//!
//! A machine without clock or socket: it is given messages and seconds, and says what to send, what to find out
//! ([`Outcome::Probe`]), what to write down and what others should know ([`Effects`]). An address that the client does
//! not hold is asked for on the network before it is offered; the answer comes by [`Server::probed`].
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::net::Ipv4Addr;

use super::leases::{Lease, Leases, State};
use super::message::{Kind, Reply, Request, option};
use super::outcome::{Answer, Change, Counters, Effects, Event, Listing, Origin, Outcome, Silence};
use super::{Config, LEASE_MIN, Told};
use crate::packet::ethernet::Mac;

/// Seconds for which an offer is held.
const OFFER: u64 = 60;
/// Seconds after which a station with settings of its own is to renew its lease at the latest.
const TOLD_RENEWAL: u32 = 60;
/// Seconds after which a probe whose result never came is given up.
const PROBE: u64 = 10;
/// Seconds for which an address that somebody else uses is not offered (as dnsmasq and ISC's server do).
const DECLINED: u64 = 600;
/// Seconds for which it is remembered whose address it was.
pub(super) const REMEMBERED: u64 = 7 * 24 * 3600;
/// Addresses that are tried for one client's question when each turns out to be in use.
const TRIES: u8 = 8;

/// A question that waits until it is known whether an address is in use.
#[derive(Debug)]
struct Pending {
    request: Request,
    from: Origin,
    tries: u8,
}

/// The server of one interface.
#[derive(Debug)]
pub struct Server {
    config: Config,
    by_mac: HashMap<Mac, usize>,
    reserved: HashMap<Ipv4Addr, Mac>,
    leases: Leases,
    pending: HashMap<Ipv4Addr, Pending>,
    effects: Effects,
    counters: Counters,
}

impl Server {
    /// A server without leases.
    pub fn new(config: Config) -> Self {
        let mut server = Self {
            config: Config::new(config.server, None),
            by_mac: HashMap::new(),
            reserved: HashMap::new(),
            leases: Leases::default(),
            pending: HashMap::new(),
            effects: Effects::default(),
            counters: Counters::default(),
        };
        server.configure(config);
        server
    }

    /// Goes on with other settings. Leases stay; who may not have its address any more is told when it renews.
    pub fn configure(&mut self, config: Config) {
        self.by_mac = config.reservations.iter().enumerate().map(|(n, r)| (r.mac, n)).collect();
        self.reserved = config.reservations.iter().map(|r| (r.address, r.mac)).collect();
        self.config = config;
    }

    /// The settings.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// How often what happened.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// What is to be written down and told since the last call.
    pub fn effects(&mut self) -> Effects {
        std::mem::take(&mut self.effects)
    }

    /// Takes over a lease of before a restart.
    pub fn restore(&mut self, now: u64, address: Ipv4Addr, mut lease: Lease) {
        if lease.state == State::Bound {
            // Whatever the clock has done meanwhile, nobody has more time than the settings give.
            lease.expires = lease.expires.min(now + u64::from(self.config.lease));
        }
        if lease.state == State::Bound && lease.expires <= now {
            (lease.state, lease.expires) = (State::Expired, lease.expires.saturating_add(REMEMBERED));
        }
        if lease.expires > now && self.leases.get(address).is_none() {
            let (mac, port) = (lease.mac, lease.port);
            let bound = lease.state == State::Bound;
            if self.leases.put(address, lease) && bound {
                self.effects.events.push(Event::Bound { mac, address, port });
            }
        }
    }

    /// All leases, for another process.
    pub fn leases(&self) -> impl Iterator<Item = (Ipv4Addr, &Lease)> {
        self.leases.iter()
    }

    /// All addresses of which account is kept.
    pub fn list(&self, now: u64) -> Vec<Listing> {
        let listing = |(address, lease): (Ipv4Addr, &Lease)| Listing {
            address,
            mac: Some(lease.mac).filter(|_| lease.state != State::Declined),
            hostname: lease.hostname.clone(),
            state: if lease.state == State::Probing { State::Offered } else { lease.state },
            expires: if lease.state == State::Expired { 0 } else { lease.expires.saturating_sub(now) },
        };
        self.leases.iter().map(listing).collect()
    }

    /// Takes an address back, whatever it is; false if nothing is known of it.
    pub fn release(&mut self, address: Ipv4Addr) -> bool {
        let known = self.leases.get(address).is_some();
        self.forget(address);
        known
    }

    /// Ends: clients keep what they have, but nobody answers for it any more.
    pub fn close(&mut self) {
        for (address, lease) in self.leases.iter().filter(|(_, lease)| lease.state == State::Bound) {
            self.effects.events.push(Event::Unbound { mac: lease.mac, address, port: lease.port });
        }
    }

    /// Nobody is behind this port any more, or somebody else; leases stay until they expire.
    pub fn port_gone(&mut self, port: u16) {
        let of_port: Vec<_> =
            self.leases.iter().filter(|(_, l)| l.port == Some(port)).map(|(a, _)| a).collect();
        for address in of_port {
            if let Some(mut lease) = self.leases.remove(address) {
                lease.port = None;
                self.leases.put(address, lease);
            }
        }
    }

    /// The first second at which [`Server::tick`] has something to do.
    pub fn next_deadline(&self) -> Option<u64> {
        self.leases.next_deadline()
    }

    /// Ends what has come to its end.
    pub fn tick(&mut self, now: u64) {
        while let Some(address) = self.leases.due(now) {
            match self.leases.get(address).map(|lease| (lease.state, lease.expires)) {
                Some((State::Bound, end)) => self.expire(address, end),
                Some((State::Expired, _)) => self.forget(address),
                _ => {
                    self.pending.remove(&address);
                    self.leases.remove(address);
                }
            }
        }
    }

    /// Answers a message: the payload of a datagram to the server's port.
    pub fn handle(&mut self, now: u64, message: &[u8], from: &Origin) -> Outcome {
        self.tick(now);
        let outcome = match self.read(message, from) {
            Ok(request) => self.answer(now, request, from),
            Err(silence) => Outcome::Silence(silence),
        };
        self.count(outcome)
    }

    /// Whether `mac`, which was heard at `port` to use an address that is being probed, is another station than the one
    /// that the address is probed for, or at least elsewhere.
    pub fn is_other(&self, address: Ipv4Addr, mac: Mac, port: u16) -> bool {
        self.pending
            .get(&address)
            .is_some_and(|pending| (pending.request.mac, pending.from.port) != (mac, port))
    }

    /// Goes on with the question for which `address` was probed; `in_use` is who answered, and at which port.
    pub fn probed(&mut self, now: u64, address: Ipv4Addr, in_use: Option<(Mac, u16)>) -> Outcome {
        let Some(Pending { request, from, tries }) = self.pending.remove(&address) else {
            return Outcome::Silence(Silence::Done);
        };
        // A port that claims more addresses than it may have is not believed: it would claim them all.
        let claimed =
            in_use.filter(|&(mac, port)| mac != request.mac && self.leases.held_by(port) < self.limit());
        let outcome = match (self.leases.get(address).map(|lease| lease.state), claimed) {
            (Some(State::Bound), _) if in_use.is_some_and(|(_, port)| port != from.port) => {
                Outcome::Silence(Silence::Elsewhere)
            }
            (Some(State::Probing), Some((_, port))) => {
                self.counters.conflicts += 1;
                self.decline(address, now, Some(port));
                match request.kind {
                    Kind::Discover if tries < TRIES => self.discover(now, request, &from, tries + 1),
                    Kind::Discover => Outcome::Silence(Silence::Exhausted),
                    _ => self.nak(&request, &from, "address in use"),
                }
            }
            (Some(State::Probing | State::Bound), _) => match request.kind {
                Kind::Discover => self.offer(now, address, &request, &from),
                _ => self.bind(now, address, &request, &from),
            },
            _ => Outcome::Silence(Silence::Done),
        };
        self.count(outcome)
    }

    fn count(&mut self, outcome: Outcome) -> Outcome {
        let counter = match &outcome {
            Outcome::Answer(answer) => match answer.kind {
                Kind::Offer => &mut self.counters.offers,
                Kind::Nak => &mut self.counters.naks,
                _ => &mut self.counters.acks,
            },
            Outcome::Silence(Silence::Malformed(_) | Silence::Incomplete) => &mut self.counters.malformed,
            Outcome::Silence(Silence::Relayed | Silence::Foreign | Silence::Elsewhere) => {
                &mut self.counters.refused
            }
            Outcome::Silence(Silence::Exhausted) => &mut self.counters.exhausted,
            Outcome::Silence(Silence::PortLimit) => &mut self.counters.port_limit,
            _ => return outcome,
        };
        *counter += 1;
        outcome
    }

    fn read(&mut self, message: &[u8], from: &Origin) -> Result<Request, Silence> {
        let request = Request::parse(message).map_err(Silence::Malformed)?;
        if !request.giaddr.is_unspecified() {
            return Err(Silence::Relayed);
        }
        if request.mac != from.mac {
            return Err(Silence::Foreign);
        }
        self.counters.requests += 1;
        Ok(request)
    }

    fn answer(&mut self, now: u64, request: Request, from: &Origin) -> Outcome {
        let ours = self.config.server.addr();
        let other_server = request.server.is_some_and(|server| server != ours);
        match request.kind {
            Kind::Discover => self.discover(now, request, from, 1),
            Kind::Request if other_server => {
                // Our offer was not taken.
                if let Some((address, lease)) = self.of(&request)
                    && matches!(lease.state, State::Offered | State::Probing)
                {
                    self.pending.remove(&address);
                    self.leases.remove(address);
                }
                Outcome::Silence(Silence::OtherServer)
            }
            Kind::Request => self.request(now, request, from),
            Kind::Inform => self.inform(&request, from),
            _ if other_server => Outcome::Silence(Silence::OtherServer),
            Kind::Decline => {
                let Some(address) = request.requested else { return Outcome::Silence(Silence::Incomplete) };
                if !self.is_held_by(address, &request, from) {
                    return Outcome::Silence(Silence::NotTheirs);
                }
                self.counters.conflicts += 1;
                self.decline(address, now, Some(from.port));
                Outcome::Silence(Silence::Done)
            }
            _ => {
                if !self.is_held_by(request.ciaddr, &request, from) {
                    return Outcome::Silence(Silence::NotTheirs);
                }
                self.expire(request.ciaddr, now);
                Outcome::Silence(Silence::Done)
            }
        }
    }

    /// Whether the client was promised the address, and asks from where it is.
    fn is_held_by(&self, address: Ipv4Addr, request: &Request, from: &Origin) -> bool {
        self.of(request).is_some_and(|(own, lease)| {
            own == address
                && matches!(lease.state, State::Offered | State::Bound)
                && lease.port.is_none_or(|port| port == from.port)
        })
    }

    /// The lease of a client.
    fn of(&self, request: &Request) -> Option<(Ipv4Addr, &Lease)> {
        let address = self.leases.find(&request.identity(), request.mac)?;
        Some((address, self.leases.get(address)?))
    }

    // ---- which address --------------------------------------------------------------------------------------------

    fn limit(&self) -> u32 {
        self.config.per_port
    }

    /// Whether the rules and the other clients leave the address to this one.
    fn may_have(&self, address: Ipv4Addr, request: &Request) -> bool {
        let allowed = match self.reserved.get(&address) {
            Some(mac) => *mac == request.mac && self.config.is_station(address),
            None => self.config.is_dynamic(address, &self.reserved),
        };
        let own = self.of(request).is_some_and(|(own, _)| own == address);
        // Firmware and operating system of one machine may give two identifiers; its reserved address is for both.
        let reserved = self.reserved.contains_key(&address);
        let free = |lease: &Lease| {
            !lease.state.is_held() || reserved && lease.mac == request.mac && lease.state != State::Declined
        };
        allowed && (own || self.leases.get(address).is_none_or(free))
    }

    /// The address that is reserved for a client, if it can have it.
    fn reservation(&self, request: &Request) -> Option<Ipv4Addr> {
        let address = self.config.reservations.get(*self.by_mac.get(&request.mac)?)?.address;
        self.may_have(address, request).then_some(address)
    }

    /// The address for a client (RFC 2131 section 4.3.1): its reserved one, its present or last one, the one that it
    /// asks for, or any. The first that is tried depends on its Ethernet address alone, so that a client mostly gets
    /// the same one even when it was forgotten.
    fn choose(&self, request: &Request) -> Option<Ipv4Addr> {
        let usable = |address: &Ipv4Addr| self.may_have(*address, request);
        self.reservation(request)
            .or_else(|| self.of(request).map(|(address, _)| address).filter(usable))
            .or_else(|| {
                request.requested.filter(usable).filter(|&address| self.leases.get(address).is_none())
            })
            .or_else(|| self.unused(request.mac))
            .or_else(|| self.leases.oldest_expired(|address| self.may_have(address, request)))
    }

    fn unused(&self, mac: Mac) -> Option<Ipv4Addr> {
        let (first, _) = self.config.range?;
        let capacity = self.config.capacity();
        // SplitMix64's finaliser: neighbouring addresses go far apart, so that walks stay short.
        let mut hash = mac.to_u64().wrapping_add(0x9e37_79b9_7f4a_7c15);
        hash = (hash ^ hash >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        hash = (hash ^ hash >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        let start = (hash ^ hash >> 31) % capacity;
        // No more steps than there are addresses that can be in the way.
        let steps =
            capacity.min((self.leases.len() + self.reserved.len() + self.config.own.len() + 8) as u64);
        let at =
            |step: u64| Ipv4Addr::from(u32::from(first).wrapping_add(((start + step) % capacity) as u32));
        (0..steps).map(at).find(|&address| {
            self.leases.get(address).is_none() && self.config.is_dynamic(address, &self.reserved)
        })
    }

    /// Sees to it that the port may have one more address: an offer that was not taken up gives way.
    fn make_room(&mut self, request: &Request, port: u16) -> bool {
        if self.of(request).is_some_and(|(_, lease)| lease.port == Some(port) && lease.state.is_held()) {
            return true;
        }
        if self.leases.held_by(port) < self.limit() {
            return true;
        }
        let unconfirmed = |_, lease: &Lease| {
            lease.port == Some(port) && matches!(lease.state, State::Offered | State::Probing)
        };
        let Some(address) = self.leases.oldest(unconfirmed) else { return false };
        self.pending.remove(&address);
        self.leases.remove(address);
        true
    }

    // ---- what clients ask -----------------------------------------------------------------------------------------

    fn discover(&mut self, now: u64, request: Request, from: &Origin, tries: u8) -> Outcome {
        let Some(address) = self.choose(&request) else { return Outcome::Silence(Silence::Exhausted) };
        match self.leases.get(address).map(|lease| lease.state) {
            Some(State::Bound) if self.is_elsewhere(address, from) => self.verify(address, request, from),
            Some(State::Bound | State::Offered) => self.offer(now, address, &request, from),
            _ => self.probe(now, address, request, from, tries),
        }
    }

    fn request(&mut self, now: u64, request: Request, from: &Origin) -> Outcome {
        let in_use = !request.ciaddr.is_unspecified();
        let claimed = if in_use { Some(request.ciaddr) } else { request.requested };
        let Some(address) = claimed else { return Outcome::Silence(Silence::Incomplete) };
        if !self.config.server.contains(&address) {
            return self.nak(&request, from, "wrong network");
        }
        if self.reservation(&request).is_some_and(|reserved| reserved != address) {
            return self.nak(&request, from, "another address is reserved");
        }
        if !self.may_have(address, &request) {
            return self.nak(&request, from, "address not available");
        }
        match self.leases.get(address).map(|lease| lease.state) {
            Some(State::Bound) if self.is_elsewhere(address, from) => self.verify(address, request, from),
            Some(State::Bound | State::Offered) => self.bind(now, address, &request, from),
            // The client lives with the address already; we have forgotten it.
            _ if in_use => {
                if !self.make_room(&request, from.port) {
                    return Outcome::Silence(Silence::PortLimit);
                }
                self.bind(now, address, &request, from)
            }
            _ => self.probe(now, address, request, from, TRIES),
        }
    }

    fn inform(&self, request: &Request, from: &Origin) -> Outcome {
        let address = if request.ciaddr.is_unspecified() { from.source } else { request.ciaddr };
        if !self.config.is_station(address) {
            return Outcome::Silence(Silence::Incomplete);
        }
        self.send(Kind::Ack, Ipv4Addr::UNSPECIFIED, request, from, self.settings(request), address, from.mac)
    }

    /// Has it found out whether anybody uses the address.
    fn probe(&mut self, now: u64, address: Ipv4Addr, request: Request, from: &Origin, tries: u8) -> Outcome {
        if self.leases.get(address).is_some_and(|lease| lease.state == State::Probing) {
            // The client is impatient: the answer will be to its newest question.
            if let Some(pending) = self.pending.get_mut(&address) {
                (pending.request, pending.from) = (request, *from);
            }
            return Outcome::Silence(Silence::Probing);
        }
        if !self.make_room(&request, from.port) {
            return Outcome::Silence(Silence::PortLimit);
        }
        if !self.keep(now, address, &request, from, State::Probing, now + PROBE) {
            return Outcome::Silence(Silence::Exhausted);
        }
        self.pending.insert(address, Pending { request, from: *from, tries });
        Outcome::Probe(address)
    }

    /// Whether a client's address belongs to it at another port than the one that it asks from.
    fn is_elsewhere(&self, address: Ipv4Addr, from: &Origin) -> bool {
        self.leases.get(address).and_then(|lease| lease.port).is_some_and(|port| port != from.port)
    }

    /// Has it found out whether a client has moved to another port, or whether somebody there says that it is the client
    /// while that is where it was: nobody gets another guest's address, or has it cut off, by using its MAC address.
    fn verify(&mut self, address: Ipv4Addr, request: Request, from: &Origin) -> Outcome {
        if !self.make_room(&request, from.port) {
            return Outcome::Silence(Silence::PortLimit);
        }
        match self.pending.insert(address, Pending { request, from: *from, tries: TRIES }) {
            Some(_) => Outcome::Silence(Silence::Probing),
            None => Outcome::Probe(address),
        }
    }

    // ---- what becomes of addresses --------------------------------------------------------------------------------

    /// Gives the address to the client; what it had before, it has no longer.
    fn keep(
        &mut self,
        now: u64,
        address: Ipv4Addr,
        request: &Request,
        from: &Origin,
        state: State,
        expires: u64,
    ) -> bool {
        if let Some((other, lease)) = self.of(request)
            && other != address
        {
            match lease.state {
                State::Bound => self.expire(other, now),
                State::Expired => {}
                _ => {
                    self.pending.remove(&other);
                    self.leases.remove(other);
                }
            }
        }
        let reserved =
            self.by_mac.get(&request.mac).and_then(|&n| self.config.reservations[n].hostname.clone());
        let lease = Lease {
            mac: request.mac,
            identity: request.identity(),
            hostname: reserved.or_else(|| request.hostname.clone()),
            port: Some(from.port),
            state,
            expires,
        };
        let before = self.leases.get(address).filter(|lease| lease.state == State::Bound);
        let before = before.map(|lease| (lease.mac, lease.port));
        if !self.leases.put(address, lease.clone()) {
            return false;
        }
        if let Some((mac, port)) = before
            && (state != State::Bound || mac != lease.mac || port.is_some() && port != lease.port)
        {
            self.effects.events.push(Event::Unbound { mac, address, port });
        }
        if state == State::Bound {
            if before != Some((lease.mac, lease.port)) {
                self.effects.events.push(Event::Bound { mac: lease.mac, address, port: lease.port });
            }
            self.effects.changes.push(Change { address, lease: Some(lease) });
        }
        true
    }

    fn offer(&mut self, now: u64, address: Ipv4Addr, request: &Request, from: &Origin) -> Outcome {
        let bound = self.leases.get(address).is_some_and(|lease| lease.state == State::Bound);
        // Who has the address keeps it while it thinks about having it.
        if !bound && !self.keep(now, address, request, from, State::Offered, now + OFFER) {
            return Outcome::Silence(Silence::Exhausted);
        }
        self.grant(Kind::Offer, address, request, from)
    }

    fn bind(&mut self, now: u64, address: Ipv4Addr, request: &Request, from: &Origin) -> Outcome {
        let expires = now + u64::from(self.seconds(request));
        self.pending.remove(&address);
        if !self.keep(now, address, request, from, State::Bound, expires) {
            return Outcome::Silence(Silence::Exhausted);
        }
        self.grant(Kind::Ack, address, request, from)
    }

    /// The client has the address no longer, but gets it again if it comes back.
    fn expire(&mut self, address: Ipv4Addr, now: u64) {
        self.pending.remove(&address);
        let Some(mut lease) = self.leases.remove(address) else { return };
        if lease.state == State::Bound {
            let (mac, port) = (lease.mac, lease.port);
            self.effects.events.push(Event::Unbound { mac, address, port });
        }
        (lease.state, lease.expires) = (State::Expired, now + REMEMBERED);
        self.effects.changes.push(Change { address, lease: Some(lease.clone()) });
        self.leases.put(address, lease);
    }

    /// Somebody uses the address who did not get it here; the stations behind `port` are answerable for that.
    fn decline(&mut self, address: Ipv4Addr, now: u64, port: Option<u16>) {
        let Some(mut lease) = self.leases.remove(address) else { return };
        if lease.state == State::Bound {
            self.effects.events.push(Event::Unbound { mac: lease.mac, address, port: lease.port });
        }
        (lease.state, lease.expires, lease.port) = (State::Declined, now + DECLINED, port);
        self.effects.changes.push(Change { address, lease: Some(lease.clone()) });
        self.leases.put(address, lease);
    }

    fn forget(&mut self, address: Ipv4Addr) {
        self.pending.remove(&address);
        let Some(lease) = self.leases.remove(address) else { return };
        if lease.state == State::Bound {
            self.effects.events.push(Event::Unbound { mac: lease.mac, address, port: lease.port });
        }
        self.effects.changes.push(Change { address, lease: None });
    }

    // ---- answers --------------------------------------------------------------------------------------------------

    /// Seconds for which the client gets an address: as long as it asks for, within what is configured.
    fn seconds(&self, request: &Request) -> u32 {
        let most = self.config.lease;
        request.lease.map_or(most, |asked| asked.clamp(LEASE_MIN.min(most), most))
    }

    fn grant(&self, kind: Kind, address: Ipv4Addr, request: &Request, from: &Origin) -> Outcome {
        let seconds = self.seconds(request);
        // RFC 2131 section 4.4.5; those who have routes of their own ask again soon, for these may change.
        let renewal = match self.told(request) {
            Some(_) => (seconds / 2).min(TOLD_RENEWAL),
            None => seconds / 2,
        };
        let time = |code, seconds: u64| (code, (seconds as u32).to_be_bytes().to_vec());
        let mut options = vec![
            time(option::LEASE_TIME, seconds.into()),
            time(option::RENEWAL, renewal.into()),
            time(option::REBINDING, u64::from(seconds) * 7 / 8),
        ];
        options.extend(self.settings(request));
        let (destination, mac) = if !request.ciaddr.is_unspecified() && kind == Kind::Ack {
            (request.ciaddr, from.mac)
        } else if request.broadcast {
            (Ipv4Addr::BROADCAST, Mac::BROADCAST)
        } else {
            (address, request.mac)
        };
        self.send(kind, address, request, from, options, destination, mac)
    }

    fn told(&self, request: &Request) -> Option<&Told> {
        self.by_mac.get(&request.mac).and_then(|&n| self.config.reservations[n].told.as_ref())
    }

    /// The options that do not depend on the address.
    fn settings(&self, request: &Request) -> Vec<(u8, Vec<u8>)> {
        let config = &self.config;
        let address = |address: Ipv4Addr| address.octets().to_vec();
        // Clients that cannot do without the mask do not always ask for it.
        let mut options = vec![(option::SUBNET_MASK, address(config.server.netmask()))];
        let told = self.told(request);
        let usual = [option::ROUTER, option::DNS, option::HOSTNAME, option::DOMAIN, option::BROADCAST];
        let asked = request.parameters.as_deref().unwrap_or(&usual);
        for &code in asked {
            let value = match code {
                option::ROUTER => told.map_or(config.router, Told::router).map(address),
                option::DNS => Some(config.dns.iter().flat_map(Ipv4Addr::octets).collect()),
                option::HOSTNAME => self
                    .by_mac
                    .get(&request.mac)
                    .and_then(|&n| config.reservations[n].hostname.as_ref())
                    .map(|name| name.as_bytes().to_vec()),
                option::DOMAIN => config.domain.as_ref().map(|domain| domain.as_bytes().to_vec()),
                option::MTU => {
                    let mtu = told.and_then(|told| told.mtu).or(config.mtu);
                    mtu.map(|mtu| mtu.to_be_bytes().to_vec())
                }
                option::BROADCAST => Some(address(config.server.broadcast())),
                option::ROUTES | option::ROUTES_MICROSOFT => {
                    Some(told.map_or_else(|| config.classless_routes(), Told::routes))
                }
                _ => None,
            };
            if let Some(value) = value
                && !value.is_empty()
                && options.iter().all(|(other, _)| *other != code)
            {
                options.push((code, value));
            }
        }
        options
    }

    /// Refuses (RFC 2131 section 4.3.2): by broadcast, since the client may have a wrong address.
    fn nak(&self, request: &Request, from: &Origin, why: &str) -> Outcome {
        let options = vec![(option::MESSAGE, why.as_bytes().to_vec())];
        let none = Ipv4Addr::UNSPECIFIED;
        self.send(Kind::Nak, none, request, from, options, Ipv4Addr::BROADCAST, Mac::BROADCAST)
    }

    #[allow(clippy::too_many_arguments)]
    fn send(
        &self,
        kind: Kind,
        address: Ipv4Addr,
        request: &Request,
        from: &Origin,
        options: Vec<(u8, Vec<u8>)>,
        destination: Ipv4Addr,
        mac: Mac,
    ) -> Outcome {
        let mut all = vec![(option::SERVER, self.config.server.addr().octets().to_vec())];
        // RFC 6842: a client that gives its identifier finds it in the answer.
        all.extend(request.client.as_ref().map(|client| (option::CLIENT, client.to_vec())));
        all.extend(options);
        let reply = Reply {
            kind,
            xid: request.xid,
            broadcast: request.broadcast,
            ciaddr: if kind == Kind::Ack { request.ciaddr } else { Ipv4Addr::UNSPECIFIED },
            yiaddr: address,
            mac: request.mac,
            options: all,
        };
        let (message, _) = reply.write(request.size);
        Outcome::Answer(Answer { kind, address, message, destination, mac, port: from.port })
    }
}

#[cfg(test)]
mod tests;
