//! The commands of rules and connections: translation, connection tracking, policy.

use shunt_switch::conntrack::format;
use shunt_switch::control::api::{self, NatKind};

use crate::arguments::{
    Conntrack, Filter, Leaving, Masquerade, Nat, OneToOne, Policy, PolicyAdd, PolicyDefault, Publish, Snat,
};
use crate::client::Failure;
use crate::{Asker, show, silent};

impl Asker {
    pub(crate) fn nat(&mut self, command: &Nat) -> Result<String, Failure> {
        match command.clone() {
            Nat::Masquerade(Masquerade::Add { leaving, to_ports }) => {
                let Leaving { source, out, not_out, not_destination, endpoint_independent } = leaving;
                let request = api::MasqueradeAdd {
                    id: None,
                    source,
                    out,
                    not_out,
                    not_destination,
                    to_ports,
                    endpoint_independent,
                };
                self.ask(&request, show::nat_id)
            }
            Nat::Masquerade(Masquerade::Del(id)) => self.nat_del(id.id, NatKind::Masquerade),
            Nat::Snat(Snat::Add { leaving, to }) => {
                let Leaving { source, out, not_out, not_destination, endpoint_independent } = leaving;
                let request = api::SnatAdd {
                    id: None,
                    source,
                    out,
                    not_out,
                    not_destination,
                    to,
                    endpoint_independent,
                };
                self.ask(&request, show::nat_id)
            }
            Nat::Snat(Snat::Del(id)) => self.nat_del(id.id, NatKind::Snat),
            Nat::Publish(Publish::Add { proto, listen, to, ingress }) => {
                self.ask(&api::PublishAdd { id: None, proto, listen, to, ingress }, show::nat_id)
            }
            Nat::Publish(Publish::Del(id)) => self.nat_del(id.id, NatKind::Publish),
            Nat::OneToOne(OneToOne::Add { outside, inside, out }) => {
                self.ask(&api::OneToOneAdd { id: None, outside, inside, out }, show::nat_id)
            }
            Nat::OneToOne(OneToOne::Del(id)) => self.nat_del(id.id, NatKind::OneToOne),
            Nat::List => self.ask(&api::NatList {}, |rules| show::nat(rules)),
        }
    }

    fn nat_del(&mut self, id: i64, kind: NatKind) -> Result<String, Failure> {
        self.ask(&api::NatDel { id, kind: Some(kind.as_str().to_owned()) }, silent)
    }

    pub(crate) fn conntrack(&mut self, command: &Conntrack) -> Result<String, Failure> {
        match command.clone() {
            Conntrack::List { filter, counters } => self.connections(filter, counters),
            Conntrack::Count => self.ask(&api::ConntrackCount {}, |size| format!("{}\n", size.count)),
            Conntrack::Flush { filter } => self
                .ask(&api::ConntrackFlush { filter: asked(filter) }, |flushed| {
                    format!("{}\n", format::trailer(flushed.removed, "deleted"))
                }),
            Conntrack::Stats => self.ask(&api::ConntrackStats {}, |workers| show::conntrack_stats(workers)),
            Conntrack::Timeouts => self.ask(&api::ConntrackTimeouts {}, show::timeouts),
            Conntrack::SetTimeout { kind, seconds } => {
                self.ask(&api::ConntrackSetTimeout { kind, seconds }, silent)
            }
            Conntrack::Limits => self.ask(&api::ConntrackLimits {}, show::limits),
            Conntrack::SetLimit { limit, port_quota, half_open } => {
                self.ask(&api::ConntrackSetLimit { limit, port_quota, half_open }, silent)
            }
        }
    }

    /// Millions may come: they are written as they come.
    fn connections(&mut self, filter: Filter, counters: bool) -> Result<String, Failure> {
        let mut request = api::ConntrackList { filter: asked(filter), next: None };
        let (mut shown, mut records) = (0, Vec::new());
        loop {
            let page = self.client.ask(&request)?;
            shown += page.entries.len() as u64;
            if self.json {
                records.extend(page.entries);
            } else {
                let mut text = String::new();
                for record in &page.entries {
                    text.push_str(&format::line(record, counters));
                    text.push('\n');
                }
                self.write(&text)?;
            }
            request.next = page.next;
            if request.next.is_none() {
                break;
            }
        }
        if self.json {
            return self.render(&records, |_| String::new());
        }
        // As conntrack(8) does it: scripts count on the lines alone.
        eprintln!("{}", format::trailer(shown, "shown"));
        Ok(String::new())
    }

    pub(crate) fn policy(&mut self, command: &Policy) -> Result<String, Failure> {
        match command.clone() {
            Policy::Add(rule) => {
                let PolicyAdd {
                    id,
                    from,
                    to,
                    source,
                    destination,
                    proto,
                    sport,
                    dport,
                    icmp_type,
                    state,
                    action,
                    mark,
                    log,
                } = *rule;
                let request = api::PolicyAdd {
                    id,
                    from,
                    to,
                    source,
                    destination,
                    proto,
                    sport,
                    dport,
                    icmp_type,
                    state,
                    action: action.unwrap_or_else(|| "mark".to_owned()),
                    mark,
                    log,
                };
                self.ask(&request, |rule| format!("{}\n", rule.id))
            }
            Policy::Del(id) => self.ask(&api::PolicyDel { id: id.id }, silent),
            Policy::List => self.ask(&api::PolicyList {}, show::policy),
            Policy::Flush => self.ask(&api::PolicyFlush {}, show::flushed),
            Policy::Default(PolicyDefault::Forward { action }) => {
                self.ask(&api::PolicySet { forward: Some(action), isolation: None }, silent)
            }
            Policy::Isolation { isolation } => {
                self.ask(&api::PolicySet { forward: None, isolation: Some(isolation) }, silent)
            }
        }
    }
}

fn asked(filter: Filter) -> api::ConntrackFilter {
    let Filter { proto, family, source, dest, reply_source, reply_dest, .. } = filter;
    let Filter { sport, dport, state, port, src_nat, dst_nat, .. } = filter;
    api::ConntrackFilter {
        proto,
        family,
        source,
        dest,
        reply_source,
        reply_dest,
        sport,
        dport,
        state,
        port,
        src_nat,
        dst_nat,
        ..api::ConntrackFilter::default()
    }
}
