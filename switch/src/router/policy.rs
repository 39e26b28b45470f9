//! Rules of policy: their order and numbers.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use super::Router;
use crate::config::Name;
use crate::config::spec::{POLICY_ID_MAX, PolicyChange, PolicySpec, policy_view};
use crate::control::api;
use crate::policy::rule::Rule;
use crate::refusal::Refusal;

/// Distance of the numbers that are given to rules which ask for none.
const STEP: u32 = 10;

impl Router {
    /// Adds a rule; returns its number.
    ///
    /// # Errors
    /// The number is taken, or none is left behind the last rule.
    pub fn add_policy(&mut self, spec: PolicySpec) -> Result<u32, Refusal> {
        let last = self.policy.last().map_or(0, |(id, _)| id);
        let id = spec.id.unwrap_or((last / STEP + 1) * STEP);
        if id > POLICY_ID_MAX {
            return Err(Refusal::new(format!(
                "there is no number left behind policy rule {last}: choose one of 1 to {POLICY_ID_MAX} with id"
            )));
        }
        // The number is the place among the others.
        self.policy.insert(id, Rule { priority: id, ..spec.rule })?;
        Ok(id)
    }

    /// Removes a rule.
    ///
    /// # Errors
    /// No rule of that number.
    pub fn del_policy(&mut self, id: u32) -> Result<(), Refusal> {
        self.policy.remove(id).map(|_| ())
    }

    /// Removes all rules; returns how many there were.
    pub fn flush_policy(&mut self) -> u64 {
        self.policy.clear() as u64
    }

    /// Changes what holds where no rule fits.
    pub fn set_policy(&mut self, change: PolicyChange) {
        if let Some(verdict) = change.forward {
            self.policy.set_default_forward(verdict);
        }
        self.isolation = change.isolation.unwrap_or(self.isolation);
    }

    /// Has the policy know which bridges are closed to each other now: those that an interface makes a network of,
    /// without those through which a gateway is reached. To be called when interfaces or routes have changed.
    pub fn isolate(&mut self) {
        if !self.isolation {
            self.policy.set_isolated(Vec::new());
            return;
        }
        let ways_out: BTreeSet<Name> = self.gateways().map(|(interface, _)| interface.name).collect();
        let closed = self.interfaces.values().filter(|interface| !ways_out.contains(&interface.name));
        let bridges = closed.map(|interface| interface.bridge).collect();
        self.policy.set_isolated(bridges);
    }

    /// The rule of a number, as it is listed.
    ///
    /// # Errors
    /// There is none.
    pub fn policy_rule(&self, id: u32) -> Result<api::PolicyRule, Refusal> {
        let found = self.policy.get(id).map(|(rule, hits)| policy_view(id, rule, hits.packets, hits.bytes));
        found.ok_or_else(|| Refusal::new(format!("there is no policy rule {id}")))
    }

    /// All of the policy.
    pub fn policy(&self) -> api::Policy {
        let hits = self.policy.hits();
        api::Policy {
            forward: self.policy.default_forward().as_str().to_owned(),
            forward_packets: hits.default.packets,
            isolation: self.isolation,
            isolation_packets: hits.isolation.packets,
            rules: self
                .policy
                .iter()
                .map(|(id, rule, hits)| policy_view(id, rule, hits.packets, hits.bytes))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::router;
    use super::*;
    use crate::policy::Verdict;

    #[test]
    fn rules_are_numbered_in_tens_unless_they_ask() {
        let mut router = router(&[]);
        let mut add = |id: Option<i64>| {
            let asked = api::PolicyAdd { id, action: "drop".into(), ..api::PolicyAdd::default() };
            router
                .add_policy(PolicySpec::new(&asked, &|_| Vec::new()).unwrap())
                .map_err(|refusal| refusal.to_string())
        };
        assert_eq!(
            [add(None), add(None), add(Some(5)), add(Some(21)), add(None)],
            [Ok(10), Ok(20), Ok(5), Ok(21), Ok(30)]
        );
        assert!(add(Some(21)).unwrap_err().starts_with("policy rule 21 exists already"));
        assert_eq!(add(Some(1_000_000)), Ok(1_000_000));
        assert!(add(None).unwrap_err().contains("no number left behind policy rule 1000000"));
        let ids: Vec<_> = router.policy().rules.iter().map(|rule| rule.id).collect();
        assert_eq!(ids, [5, 10, 20, 21, 30, 1_000_000]);
        router.del_policy(5).unwrap();
        assert!(router.del_policy(5).is_err());
        assert_eq!((router.flush_policy(), router.policy().rules.len()), (5, 0));
    }

    #[test]
    fn what_is_not_given_stays() {
        let mut router = router(&[]);
        assert_eq!((router.policy().forward.as_str(), router.policy().isolation), ("accept", false));
        router.set_policy(PolicyChange { forward: Some(Verdict::Drop), isolation: None });
        router.set_policy(PolicyChange { forward: None, isolation: Some(true) });
        assert_eq!((router.policy().forward.as_str(), router.policy().isolation), ("drop", true));
    }

    #[test]
    fn bridges_are_closed_but_for_the_way_out() {
        let mut router =
            router(&[("a", &["10.0.0.1/24"]), ("b", &["10.0.1.1/24"]), ("wan", &["192.0.2.2/24"])]);
        let asked =
            api::RouteAdd { prefix: "default".into(), via: Some("192.0.2.1".into()), ..Default::default() };
        router.add_route(&(&asked).try_into().unwrap()).unwrap();
        router.isolate();
        assert!(router.policy.isolated().is_empty());
        router.set_policy(PolicyChange { forward: None, isolation: Some(true) });
        router.isolate();
        let mut closed = router.policy.isolated().to_vec();
        closed.sort();
        assert_eq!(closed, ["a", "b"]);
    }
}
