//! Packets to virtual services: which server a new connection gets, and how its packets get there.
//!
//! The order and the conditions are those of Linux' `ip_vs_in`: what a service is found by, who is asked (a template of
//! persistence, the scheduler), what becomes of a packet that nobody can serve. What was decided is written into the
//! connection's entry: for a masqueraded one a translation like any other, for direct routing and tunnels a next hop
//! that is the server's, not the destination's. Later packets come here only when that next hop has to be found anew.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::sync::Arc;

use vhost_backend::frame::Burst;

use super::family::Routed;
use super::first::{TRIES, place_of, reason};
use super::forward::{Item, Refusal};
use super::icmp::Error;
use super::next_hop::{Hop, along, path_to};
use super::route::Path;
use super::{Arrival, Stage, helper};
use crate::conntrack::balance::Balanced;
use crate::conntrack::{Key, NewConnection, Packet, Ref, Refused, V4, V6};
use crate::drops::DropReason;
use crate::ipvs::account::Totals;
use crate::ipvs::connection::{counted, port_of, protocol, scope_number};
use crate::ipvs::destination::{Counted, Destination};
use crate::ipvs::persistence::Pattern;
use crate::ipvs::service::{Flow, Service, View};
use crate::ipvs::settings::Setting;
use crate::ipvs::spec::{Forward, Persistence, ServiceKey};
use crate::ipvs::states::{self, SCTP, Way};
use crate::ipvs::table::Asked;
use crate::l3::interface::Address;
use crate::nat::{self, Leaving};
use crate::packet::headers::tcp_flags::{RST, SYN};
use crate::packet::ip::{TCP, UDP};
use crate::packet::rewrite::{Ends, Rewrite, decrement_ttl};
use crate::packet::tuple::Tuple;
use crate::policy::rule::State;
use crate::policy::{NewFlow, Place};
use crate::rules::NONE;

/// FTP's port, from which servers call in its active mode.
const FTP_DATA: u16 = 20;
/// FTP's port.
const FTP: u16 = 21;

/// A server for a new connection.
pub(super) struct Chosen {
    service: Arc<Service>,
    server: Arc<Destination>,
    /// The port that it is called at.
    port: u16,
    /// The template that the connection follows, 0 if none.
    template: u32,
    /// Nothing is to be kept of it.
    one_packet: bool,
}

impl Stage {
    /// The server for a packet that belongs to no connection; none if it is to no service.
    #[cold]
    pub(super) fn choose<F: Routed>(
        &mut self,
        burst: &Burst,
        item: &Item<F>,
        tuple: &Tuple,
        at: &Arrival<'_>,
    ) -> Result<Option<Chosen>, Refusal> {
        let Some(transport) = protocol(tuple.protocol) else { return Ok(None) };
        let ipvs = &at.router.ipvs;
        let asked = Asked {
            protocol: transport,
            address: tuple.destination,
            port: tuple.destination_port,
            mark: self.mark(burst, item, tuple, at),
        };
        let Some(service) = ipvs.find(at.port, &asked) else { return Ok(None) };
        let may = may_begin(burst, item, tuple, &service) && tuple.source_port != FTP_DATA;
        if !may || ipvs.is_passive() {
            return Ok(None);
        }
        let view = service.view();
        let scheduled = match &view.spec.persistence {
            Some(persistence) => {
                self.schedule_persistent(burst, item, tuple, &service, &view, persistence, at)?
            }
            None => schedule(tuple, &service, &view, at.now),
        };
        // As Linux: an FTP service need not know what else its address is called for.
        if scheduled.is_none() && (port_of(&service.key()) != FTP || tuple.destination_port == FTP) {
            return Err(Refusal::Tell(DropReason::BalanceNoServer, Error::PortUnreachable));
        }
        Ok(scheduled)
    }

    /// The mark that a packet gets by policy.
    fn mark<F: Routed>(&self, burst: &Burst, item: &Item<F>, tuple: &Tuple, at: &Arrival<'_>) -> u32 {
        let nowhere = Place { port: NONE, bridge: NONE, interface: NONE };
        let from = Place { port: at.port, bridge: at.interface.table.number, interface: at.interface.index };
        let flow = NewFlow { tuple: *tuple, state: State::New, from, to: nowhere, published: false };
        at.router.policy.mark(&flow, self.worker, burst.frame_len(item.i) as u64)
    }

    /// A client of a persistent service gets the server that it had, or one for some time.
    #[expect(clippy::too_many_arguments, reason = "all that is known of the packet")]
    fn schedule_persistent<F: Routed>(
        &mut self,
        burst: &Burst,
        item: &Item<F>,
        tuple: &Tuple,
        service: &Arc<Service>,
        view: &View,
        persistence: &Persistence,
        at: &Arrival<'_>,
    ) -> Result<Option<Chosen>, Refusal> {
        let ipvs = &at.router.ipvs;
        let port = port_of(&service.key());
        let own_port = tuple.destination_port == port;
        let client = if persistence.sip && tuple.protocol == UDP {
            self.caller(burst, item).ok_or(DropReason::BalanceNoCall)?
        } else {
            persistence.client(tuple.source)
        };
        let mut pattern = Pattern {
            client,
            address: tuple.destination,
            protocol: tuple.protocol,
            // Control and data connections of FTP belong together.
            port: if own_port && port != FTP { port } else { 0 },
            scope: scope_number(service.account().settings()),
        };
        if let ServiceKey::Mark { mark, .. } = service.key() {
            pattern = Pattern {
                address: std::net::Ipv4Addr::from_bits(mark).into(),
                protocol: 0,
                port: 0,
                ..pattern
            };
        }
        let over = |server| ipvs.template_over(server);
        let busy = DropReason::CtBusy;
        let followed = ipvs.templates.follow(&pattern, at.now, over).map_err(|_| busy)?;
        let followed = followed.and_then(|(template, id, _)| {
            let server = ipvs.destination(id);
            let usable = server.as_ref().filter(|server| is_usable(server, service));
            if usable.is_none() {
                ipvs.templates.invalidate(template);
            }
            Some((template, Arc::clone(usable?)))
        });
        let (template, server) = match followed {
            Some(found) => found,
            None => {
                let Some(server) = service.schedule(&flow(tuple), at.now) else {
                    return Ok(None);
                };
                let port = if own_port && port != FTP { server.port() } else { 0 };
                if !server.bind(Counted::Template) {
                    return Err(busy.into());
                }
                let timeout = persistence.timeout;
                match ipvs.templates.insert(&pattern, (server.id(), port), timeout, at.now, over) {
                    Ok(template) => (template, server),
                    Err(_) => {
                        server.unbind(Counted::Template);
                        return Err(DropReason::BalanceTemplates.into());
                    }
                }
            }
        };
        let port = if own_port && server.port() != 0 { server.port() } else { tuple.destination_port };
        let one_packet = view.spec.one_packet && tuple.protocol == UDP;
        let service = Arc::clone(service);
        Ok(Some(Chosen { service, server, port, template, one_packet }))
    }

    /// A number for the SIP call that a datagram belongs to, as an address.
    fn caller<F: Routed>(&mut self, burst: &Burst, item: &Item<F>) -> Option<IpAddr> {
        let len = burst.linearise(item.i, &mut self.scratch)?;
        let from = usize::from(item.headers.transport) + 8;
        let to = (usize::from(item.headers.network) + item.headers.len as usize).min(len);
        let call = call_id(self.scratch.get(from..to)?)?;
        let hash = |salt: u64| {
            call.iter().fold(salt, |hash, &byte| crate::rules::hash::mix(hash, u64::from(byte) + 1))
        };
        let number = u128::from(hash(0x51b)) << 64 | u128::from(hash(0x2ca11));
        Some(std::net::Ipv6Addr::from_bits(number).into())
    }

    /// Begins a connection with the server that was chosen for it, and sends its first packet there.
    #[cold]
    pub(super) fn first_to<F: Routed>(
        &mut self,
        burst: &mut Burst,
        item: &Item<F>,
        tuple: &Tuple,
        chosen: &Chosen,
        at: &Arrival<'_>,
    ) -> Result<(), Refusal> {
        at.router.ipvs.note_use();
        let begun = self.begin_to(burst, item, tuple, chosen, at);
        if !matches!(begun, Ok(Begun::Entered(_))) && chosen.template != 0 {
            at.router.ipvs.templates.release(chosen.template);
        }
        let table = at.router.conntrack.table::<F>();
        match begun? {
            Begun::Entered(half) => {
                table.half(half).touch(at.now, item.headers.len);
                self.carry_any(burst, item, half, at)
            }
            Begun::Known(half) => self.established(burst, item, half, at),
            Begun::Sent => Ok(()),
        }
    }

    fn begin_to<F: Routed>(
        &mut self,
        burst: &mut Burst,
        item: &Item<F>,
        tuple: &Tuple,
        chosen: &Chosen,
        at: &Arrival<'_>,
    ) -> Result<Begun, Refusal> {
        let server = &chosen.server;
        let forward = server.forward();
        let translated = matches!(forward, Forward::Masquerade | Forward::FullNat { .. });
        let to = if translated {
            Tuple { destination: server.address(), destination_port: chosen.port, ..*tuple }
        } else {
            *tuple
        };
        // Before the lookup: what changes meanwhile makes the stamp void.
        let generation = at.router.fib.generation();
        let hop = hop_to(server.address(), item.hash, at)?;
        let slot = at.router.neighbours.slot(hop.adjacency).ok_or(DropReason::NoRoute)?;
        let (egress, next_hop) = (slot.interface(), slot.address().ip());
        let packet = Packet::of(&item.headers, burst.head(item.i));
        let begun = packet.begin(&item.key, true, at.now).ok_or(DropReason::CtInvalid)?;
        let bytes = burst.frame_len(item.i) as u64;
        self.judge(at, &to, place_of(at, egress, slot), true, State::New, bytes)?;
        if chosen.one_packet {
            count(chosen, Totals { in_packets: 1, in_bytes: item.headers.len.into(), ..Totals::default() });
            self.send_once(burst, item, &to, translated, hop, server, at)?;
            return Ok(Begun::Sent);
        }
        let leaving = Leaving {
            tuple: to,
            ingress: at.interface.index,
            egress,
            next_hop,
            redirected: true,
            now: at.now,
        };
        let way = if translated { Way::In } else { Way::InOnly };
        let state = match (&packet.tcp, &packet.sctp) {
            (Some(segment), _) => states::tcp_next(states::tcp::NONE, way, segment.flags),
            (None, Some(chunks)) => states::sctp_next(states::sctp::NONE, way, chunks),
            (None, None) => 0,
        };
        let kind = counted(states::is_active(tuple.protocol, state));
        let table = at.router.conntrack.table::<F>();
        for _ in 0..TRIES {
            let mut translation = None;
            let source = match forward {
                Forward::FullNat { first, last } => Some(self.pool_source::<F>(&to, (first, last), at)?),
                Forward::Masquerade => {
                    translation = self.translate_source::<F>(&leaving, at)?;
                    match translation {
                        Some(found) => Some((found.address, found.port)),
                        // A client may call two services of one server from the same port: the port changes then.
                        None => Some(self.pool_source::<F>(&to, (to.source, to.source), at)?),
                    }
                }
                Forward::Route | Forward::Tunnel(_) => None,
            };
            let out = source.map_or(to, |(source, source_port)| Tuple { source, source_port, ..to });
            let reply = Key::<F>::answer(&out.reversed()).ok_or(DropReason::NoRoute)?;
            if !server.bind(kind) {
                return Err(DropReason::BalanceServerGone.into());
            }
            let new = NewConnection {
                original: item.key,
                reply,
                begun,
                port: at.port,
                next_hop: Some((hop.adjacency, generation.wrapping_add(slot.version()))),
                watched: translated
                    && tuple.protocol == TCP
                    && (helper::watches(&to) || helper::watches(tuple)),
                related: false,
                balanced: Some(Balanced {
                    destination: server.id(),
                    template: chosen.template,
                    state,
                    one_way: !translated,
                    tunnel: matches!(forward, Forward::Tunnel(_)),
                }),
            };
            match self.local.owner::<F>().insert(table, &new, at.now) {
                Ok(half) => {
                    count(chosen, Totals::default());
                    if let Some(translation) = &translation {
                        at.router.nat.count(translation, self.worker, bytes);
                    }
                    if new.watched {
                        at.router.conntrack.expectations.forget(tuple);
                    }
                    return Ok(Begun::Entered(half));
                }
                Err(refused) => {
                    server.unbind(kind);
                    if refused != Refused::Exists {
                        return Err(reason(refused).into());
                    }
                    // The same packet may have come by another worker a moment ago.
                    if let Some(half) = table.find(&item.key, item.hash) {
                        return Ok(Begun::Known(half));
                    }
                }
            }
        }
        Err(DropReason::CtBusy.into())
    }

    /// A source of a pool for a connection to a server whose way back does not pass here.
    fn pool_source<F: Routed>(
        &mut self,
        to: &Tuple,
        pool: (IpAddr, IpAddr),
        at: &Arrival<'_>,
    ) -> Result<(IpAddr, u16), Refusal> {
        let table = at.router.conntrack.table::<F>();
        let is_free = |reply: &Tuple| Key::answer(reply).is_some_and(|key| table.is_free(&key));
        let found = nat::from_pool(to, pool, self.random(), is_free);
        found.ok_or(DropReason::NatExhausted.into())
    }

    /// Sends a datagram of a service that schedules each of them alone.
    #[expect(clippy::too_many_arguments, reason = "all that is known of the packet")]
    fn send_once<F: Routed>(
        &mut self,
        burst: &mut Burst,
        item: &Item<F>,
        to: &Tuple,
        translated: bool,
        hop: Hop,
        server: &Destination,
        at: &Arrival<'_>,
    ) -> Result<(), Refusal> {
        if let Forward::Tunnel(tunnel) = server.forward() {
            return self.encapsulate(burst, item, hop, tunnel, server.address(), at);
        }
        if !translated {
            return self.send_on(burst, item, hop, at, |head, headers, _| decrement_ttl(head, headers));
        }
        let ends = |tuple: &Tuple| Ends::<F::Address>::of(tuple).ok_or(DropReason::NoRoute);
        let rewrite = Rewrite::new(to.protocol, &ends(&item.key.tuple())?, &ends(to)?);
        self.send_on(burst, item, hop, at, |head, headers, partial| rewrite.forward(head, headers, partial))
    }

    /// The server of the connection whose first packet this tuple was: what it announced belongs to that server, too.
    pub(super) fn server_of<F: Routed>(&self, master: &Tuple, at: &Arrival<'_>) -> Option<Arc<Destination>> {
        let table = at.router.conntrack.table::<F>();
        let key = Key::<F>::request(master)?;
        let view = table.balance(table.find(&key, table.hash(&key))?)?;
        at.router.ipvs.destination(view.destination).clone()
    }

    /// A connection that another one announced, counted at that one's server; none if that is gone.
    pub(super) fn with_server<F: Routed>(
        &self,
        new: NewConnection<F>,
        server: &Destination,
        packet: &Packet,
    ) -> Option<NewConnection<F>> {
        let flags = packet.tcp.as_ref()?.flags;
        let state = states::tcp_next(states::tcp::NONE, Way::In, flags);
        let balanced =
            Balanced { destination: server.id(), template: 0, state, one_way: false, tunnel: false };
        let bound = server.bind(counted(states::is_active(TCP, state)));
        bound.then_some(NewConnection { balanced: Some(balanced), ..new })
    }

    /// It was not entered after all.
    pub(super) fn without_server<F: Routed>(new: &NewConnection<F>, server: Option<&Destination>) {
        if let (Some(balanced), Some(server)) = (&new.balanced, server) {
            server.unbind(counted(states::is_active(TCP, balanced.state)));
        }
    }

    /// The next hop of packets of a balanced connection from the client, found anew.
    #[cold]
    pub(super) fn hop_to_server<F: Routed>(
        &mut self,
        of: Ref,
        hash: u64,
        at: &Arrival<'_>,
    ) -> Result<Hop, Refusal> {
        let table = at.router.conntrack.table::<F>();
        let view = table.balance(of).ok_or(DropReason::CtInvalid)?;
        let server = at.router.ipvs.destination(view.destination);
        let Some(server) = server.as_deref().filter(|server| server.is_available()) else {
            let expires = server
                .as_deref()
                .is_none_or(|server| server.account().settings().is_on(Setting::ExpireNodestConn));
            if expires && self.local.owner::<F>().kill(table, of) {
                return Err(Refusal::Renew);
            }
            return Err(DropReason::BalanceServerGone.into());
        };
        hop_to(server.address(), hash, at)
    }

    /// Sends a packet of a connection from the client through the tunnel to its server.
    #[cold]
    pub(super) fn carry_through<F: Routed>(
        &mut self,
        burst: &mut Burst,
        item: &Item<F>,
        of: Ref,
        at: &Arrival<'_>,
    ) -> Result<(), Refusal> {
        let hop = self.hop_of::<F>(of, item.hash, at)?;
        let view = at.router.conntrack.table::<F>().balance(of).ok_or(DropReason::CtInvalid)?;
        let server = at.router.ipvs.destination(view.destination);
        let server = server.as_deref().ok_or(DropReason::BalanceServerGone)?;
        match server.forward() {
            Forward::Tunnel(tunnel) => self.encapsulate(burst, item, hop, tunnel, server.address(), at),
            // It was edited since; what the connection is stays, but nobody knows how to tunnel.
            _ => Err(DropReason::BalanceServerGone.into()),
        }
    }
}

/// What the beginning of a connection came to.
enum Begun {
    /// It is in the table.
    Entered(Ref),
    /// Somebody else has entered it.
    Known(Ref),
    /// Its packet is on its way, and that is all.
    Sent,
}

/// Counts a connection, and packets of one of which nothing is kept.
fn count(chosen: &Chosen, more: Totals) {
    for stats in [&chosen.server.stats, &chosen.service.account().stats] {
        stats.connection();
        stats.add(more);
    }
}

/// Asks the scheduler of a service without persistence.
fn schedule(tuple: &Tuple, service: &Arc<Service>, view: &View, now: u32) -> Option<Chosen> {
    if let ServiceKey::Address { port, .. } = service.key()
        && port != tuple.destination_port
    {
        return None;
    }
    let server = service.schedule(&flow(tuple), now)?;
    let port = if server.port() == 0 { tuple.destination_port } else { server.port() };
    let one_packet = view.spec.one_packet && tuple.protocol == UDP;
    Some(Chosen { service: Arc::clone(service), server, port, template: 0, one_packet })
}

fn flow(tuple: &Tuple) -> Flow {
    Flow { source: tuple.source, destination: tuple.destination, source_port: tuple.source_port }
}

/// Whether who follows a template may have its server.
fn is_usable(server: &Destination, service: &Service) -> bool {
    let quiet = server.weight() == 0 && service.account().settings().is_on(Setting::ExpireQuiescentTemplate);
    server.is_available() && !quiet && server.account().key() == service.key()
}

/// Whether a packet may begin a connection to a service.
fn may_begin<F: Routed>(burst: &Burst, item: &Item<F>, tuple: &Tuple, service: &Service) -> bool {
    let settings = service.account().settings();
    match tuple.protocol {
        TCP => {
            let flags = item.headers.tcp_flags;
            flags & RST == 0 && (flags & SYN != 0 || settings.is_on(Setting::SloppyTcp))
        }
        SCTP => {
            let chunks = burst.head(item.i).get(usize::from(item.headers.transport) + 12..);
            chunks.is_some_and(states::begins_sctp) || settings.is_on(Setting::SloppySctp)
        }
        _ => true,
    }
}

/// The neighbour by which a server is reached.
fn hop_to(server: IpAddr, hash: u64, at: &Arrival<'_>) -> Result<Hop, Refusal> {
    let path = match server {
        IpAddr::V4(v4) => path_to::<V4>(at, v4.to_bits(), hash),
        IpAddr::V6(v6) => path_to::<V6>(at, v6.to_bits(), hash),
    };
    if matches!(path, Path::Local { .. }) {
        return Err(Refusal::Local);
    }
    along(at, path, Address::from(server))
}

/// The Call-ID of a SIP message (RFC 3261, section 20.8), also in its compact form.
fn call_id(text: &[u8]) -> Option<&[u8]> {
    let mut lines = text.split(|&byte| byte == b'\n');
    let value = lines.by_ref().skip(1).take_while(|line| !line.trim_ascii().is_empty()).find_map(|line| {
        let colon = line.iter().position(|&byte| byte == b':')?;
        let name = line[..colon].trim_ascii();
        let named = name.eq_ignore_ascii_case(b"call-id") || name.eq_ignore_ascii_case(b"i");
        named.then(|| line[colon + 1..].trim_ascii())
    })?;
    (!value.is_empty()).then_some(value)
}

#[cfg(test)]
mod tests;
