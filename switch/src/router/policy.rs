//! Rules of policy: their order and numbers.
#![forbid(unsafe_code)]

use super::Router;
use crate::config::spec::{POLICY_ID_MAX, PolicyChange, PolicySpec, policy_view};
use crate::control::api;
use crate::policy::rule::{RULES_MAX, Rule};
use crate::refusal::Refusal;

/// Distance of the numbers that are given to rules which ask for none.
const STEP: u32 = 10;

impl Router {
    /// Adds a rule; returns its number.
    ///
    /// # Errors
    /// The number is taken, or none is left behind the last rule.
    pub fn add_policy(&mut self, spec: PolicySpec) -> Result<u32, Refusal> {
        if let Some(id) = spec.id.filter(|id| self.policy.contains_key(id)) {
            return Err(Refusal::new(format!(
                "policy rule {id} exists already: choose another number, or delete it first"
            )));
        }
        if self.policy.len() >= RULES_MAX {
            return Err(Refusal::new(format!("there are {RULES_MAX} policy rules, which is the limit")));
        }
        let last = self.policy.last_key_value().map_or(0, |(id, _)| *id);
        let id = spec.id.unwrap_or((last / STEP + 1) * STEP);
        if id > POLICY_ID_MAX {
            return Err(Refusal::new(format!(
                "there is no number left behind policy rule {last}: choose one of 1 to {POLICY_ID_MAX} with id"
            )));
        }
        // The number is the place among the others.
        self.policy.insert(id, Rule { priority: id, ..spec.rule });
        Ok(id)
    }

    /// Removes a rule.
    ///
    /// # Errors
    /// No rule of that number.
    pub fn del_policy(&mut self, id: u32) -> Result<(), Refusal> {
        match self.policy.remove(&id) {
            Some(_) => Ok(()),
            None => Err(Refusal::new(format!(
                "there is no policy rule {id}: 'shuntctl policy list' shows those that there are"
            ))),
        }
    }

    /// Removes all rules; returns how many there were.
    pub fn flush_policy(&mut self) -> u64 {
        std::mem::take(&mut self.policy).len() as u64
    }

    /// Changes what holds where no rule fits.
    pub fn set_policy(&mut self, change: PolicyChange) {
        self.forward = change.forward.unwrap_or(self.forward);
        self.isolation = change.isolation.unwrap_or(self.isolation);
    }

    /// The rule of a number, as it is listed.
    ///
    /// # Errors
    /// There is none.
    pub fn policy_rule(&self, id: u32) -> Result<api::PolicyRule, Refusal> {
        let rule = self.policy.get(&id).map(|rule| policy_view(id, rule, 0, 0));
        rule.ok_or_else(|| Refusal::new(format!("there is no policy rule {id}")))
    }

    /// All of the policy.
    pub fn policy(&self) -> api::Policy {
        api::Policy {
            forward: self.forward.as_str().to_owned(),
            isolation: self.isolation,
            rules: self.policy.iter().map(|(&id, rule)| policy_view(id, rule, 0, 0)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::router;
    use super::*;
    use crate::policy::rule::Action;

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
        router.set_policy(PolicyChange { forward: Some(Action::Drop), isolation: None });
        router.set_policy(PolicyChange { forward: None, isolation: Some(true) });
        assert_eq!((router.policy().forward.as_str(), router.policy().isolation), ("drop", true));
    }
}
