//! Translation, connections, policy.
#![forbid(unsafe_code)]

use super::super::api::{self, Done, Flushed};
use super::super::rpc::Error;
use super::{At, Handle};
use crate::config::spec::{LimitChange, PolicyChange, PolicySpec, nat_id, nat_kind, number, policy_id};
use crate::conntrack::record::Filter;
use crate::conntrack::timeouts::LONGEST;
use crate::nat::rule::Rule;
use crate::router::timeout_kind;

fn add(at: &mut At<'_>, id: Option<i64>, rule: Rule) -> Result<api::NatRule, Error> {
    let rule = at.switch.add_nat(nat_id(id)?, rule)?;
    tracing::info!("nat {} rule {} added", rule.kind.as_str(), rule.id);
    Ok(rule)
}

impl Handle for api::MasqueradeAdd {
    fn handle(self, at: &mut At<'_>) -> Result<api::NatRule, Error> {
        add(at, self.id, Rule::try_from(&self)?)
    }
}

impl Handle for api::SnatAdd {
    fn handle(self, at: &mut At<'_>) -> Result<api::NatRule, Error> {
        add(at, self.id, Rule::try_from(&self)?)
    }
}

impl Handle for api::PublishAdd {
    fn handle(self, at: &mut At<'_>) -> Result<api::NatRule, Error> {
        add(at, self.id, Rule::try_from(&self)?)
    }
}

impl Handle for api::OneToOneAdd {
    fn handle(self, at: &mut At<'_>) -> Result<api::NatRule, Error> {
        add(at, self.id, Rule::try_from(&self)?)
    }
}

impl Handle for api::NatDel {
    fn handle(self, at: &mut At<'_>) -> Result<Done, Error> {
        let kind = self.kind.as_deref().map(nat_kind).transpose()?;
        let id = number("id", self.id, 1, u32::MAX)?;
        at.switch.del_nat(id, kind)?;
        tracing::info!("nat rule {id} deleted");
        Ok(Done {})
    }
}

impl Handle for api::NatList {
    fn handle(self, at: &mut At<'_>) -> Result<Vec<api::NatRule>, Error> {
        Ok(at.switch.nat_rules())
    }
}

impl Handle for api::ConntrackList {
    fn handle(self, at: &mut At<'_>) -> Result<api::ConntrackPage, Error> {
        let which = Filter::new(&self.filter, &|name| at.switch.port_number(name))?;
        Ok(at.switch.connections(&which, self.next.unwrap_or_default()))
    }
}

impl Handle for api::ConntrackCount {
    fn handle(self, at: &mut At<'_>) -> Result<api::ConntrackSize, Error> {
        Ok(at.switch.conntrack_size())
    }
}

impl Handle for api::ConntrackFlush {
    fn handle(self, at: &mut At<'_>) -> Result<Flushed, Error> {
        let which = Filter::new(&self.filter, &|name| at.switch.port_number(name))?;
        let removed = at.switch.flush_connections(&which);
        tracing::info!("{removed} connections forgotten");
        Ok(Flushed { removed })
    }
}

impl Handle for api::ConntrackStats {
    fn handle(self, at: &mut At<'_>) -> Result<Vec<api::ConntrackCounters>, Error> {
        Ok(at.switch.conntrack_counters())
    }
}

impl Handle for api::ConntrackTimeouts {
    fn handle(self, at: &mut At<'_>) -> Result<api::Timeouts, Error> {
        Ok(at.switch.timeouts())
    }
}

impl Handle for api::ConntrackSetTimeout {
    fn handle(self, at: &mut At<'_>) -> Result<api::Timeouts, Error> {
        let (kind, seconds) = (timeout_kind(&self.kind)?, number("seconds", self.seconds, 1, LONGEST)?);
        at.switch.set_timeout(kind, seconds)?;
        tracing::info!("{} is {seconds} s", kind.name());
        Ok(at.switch.timeouts())
    }
}

impl Handle for api::ConntrackLimits {
    fn handle(self, at: &mut At<'_>) -> Result<api::Limits, Error> {
        Ok(at.switch.limits())
    }
}

impl Handle for api::ConntrackSetLimit {
    fn handle(self, at: &mut At<'_>) -> Result<api::Limits, Error> {
        at.switch.set_limits(LimitChange::try_from(&self)?)?;
        Ok(at.switch.limits())
    }
}

impl Handle for api::PolicyAdd {
    fn handle(self, at: &mut At<'_>) -> Result<api::PolicyRule, Error> {
        let spec = PolicySpec::new(&self, &|name| at.switch.places(name))?;
        let rule = at.switch.add_policy(spec)?;
        tracing::info!("policy rule {} added", rule.id);
        Ok(rule)
    }
}

impl Handle for api::PolicyDel {
    fn handle(self, at: &mut At<'_>) -> Result<Done, Error> {
        let id = policy_id(self.id)?;
        at.switch.del_policy(id)?;
        tracing::info!("policy rule {id} deleted");
        Ok(Done {})
    }
}

impl Handle for api::PolicyList {
    fn handle(self, at: &mut At<'_>) -> Result<api::Policy, Error> {
        Ok(at.switch.policy())
    }
}

impl Handle for api::PolicyFlush {
    fn handle(self, at: &mut At<'_>) -> Result<Flushed, Error> {
        let removed = at.switch.flush_policy();
        tracing::info!("{removed} policy rules deleted");
        Ok(Flushed { removed })
    }
}

impl Handle for api::PolicySet {
    fn handle(self, at: &mut At<'_>) -> Result<api::Policy, Error> {
        at.switch.set_policy(PolicyChange::try_from(&self)?);
        tracing::info!("policy changed");
        Ok(at.switch.policy())
    }
}
