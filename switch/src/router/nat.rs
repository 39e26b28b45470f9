//! Rules of translation: what [`crate::nat::RuleSet`] cannot know, and how they are listed.
#![forbid(unsafe_code)]

use super::Router;
use crate::config::spec::nat_view;
use crate::control::api::{self, NatKind};
use crate::nat::rule::Rule;
use crate::refusal::Refusal;

impl Router {
    /// Adds a rule; returns its number.
    ///
    /// # Errors
    /// No such interface, the same rule is there, or a published port is taken.
    pub fn add_nat(&mut self, rule: Rule) -> Result<u32, Refusal> {
        if let Some(name) = rule.interface() {
            self.find_interface(&name)?;
        }
        self.nat.add(rule)
    }

    /// The same under a number of the caller's choice.
    ///
    /// # Errors
    /// As there; the number is taken.
    pub fn insert_nat(&mut self, id: u32, rule: Rule) -> Result<(), Refusal> {
        if let Some(name) = rule.interface() {
            self.find_interface(&name)?;
        }
        self.nat.insert(id, rule)
    }

    /// Removes a rule, if it is of the given kind.
    ///
    /// # Errors
    /// No rule of that number, or of another kind.
    pub fn del_nat(&mut self, id: u32, kind: Option<NatKind>) -> Result<(), Refusal> {
        self.nat.remove(id, kind.map(NatKind::as_str)).map(|_| ())
    }

    /// The rule of a number, as it is listed.
    ///
    /// # Errors
    /// There is none.
    pub fn nat_rule(&self, id: u32) -> Result<api::NatRule, Refusal> {
        let found = self.nat.get(id).map(|(rule, hits)| nat_view(id, rule, hits.packets, hits.failed));
        found.ok_or_else(|| Refusal::new(format!("there is no nat rule {id}")))
    }

    /// All rules, by number.
    pub fn nat_rules(&self) -> Vec<api::NatRule> {
        self.nat.iter().map(|(id, rule, hits)| nat_view(id, rule, hits.packets, hits.failed)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::router;
    use super::*;

    fn publish(router: &mut Router, proto: &str, listen: &str, to: &str) -> Result<u32, String> {
        let asked = api::PublishAdd {
            proto: proto.into(),
            listen: listen.into(),
            to: to.into(),
            ..Default::default()
        };
        router.add_nat(Rule::try_from(&asked).unwrap()).map_err(|refusal| refusal.to_string())
    }

    #[test]
    fn a_port_is_published_once() {
        let mut router = router(&[]);
        let first = publish(&mut router, "tcp", "10.0.2.15:8000-8010", "172.18.0.10:8000-8010").unwrap();
        let refusal = publish(&mut router, "tcp", "*:8010", "172.18.0.11:80").unwrap_err();
        assert!(refusal.contains("tcp 0.0.0.0:8010") && refusal.contains(&first.to_string()), "{refusal}");
        let second = publish(&mut router, "udp", "*:8010", "172.18.0.11:80").unwrap();
        assert_eq!(router.nat_rules().iter().map(|rule| rule.id).collect::<Vec<_>>(), [first, second]);
        router.del_nat(first, Some(NatKind::Publish)).unwrap();
        let third = publish(&mut router, "tcp", "*:8010", "172.18.0.11:80").unwrap();
        assert!(third > second, "numbers are not used again");
    }

    #[test]
    fn rules_name_interfaces_that_exist_and_stand_once() {
        let mut router = router(&[("wan", &["192.0.2.1/24"])]);
        let masquerade = |out: &str| {
            let asked = api::MasqueradeAdd {
                source: "10.0.3.0/24".into(),
                out: Some(out.into()),
                ..Default::default()
            };
            Rule::try_from(&asked).unwrap()
        };
        let refusal = router.add_nat(masquerade("none")).unwrap_err().to_string();
        assert!(refusal.contains("interface \"none\" does not exist"), "{refusal}");
        let id = router.add_nat(masquerade("wan")).unwrap();
        assert!(router.add_nat(masquerade("wan")).is_err());
        assert!(router.del_nat(id, Some(NatKind::Snat)).unwrap_err().to_string().contains("masquerade"));
        assert!(router.del_nat(id + 1, None).unwrap_err().to_string().contains("there is no nat rule"));
        assert_eq!(router.nat_rule(id).unwrap().out.unwrap(), "wan");
        router.del_nat(id, None).unwrap();
        assert!(router.nat_rules().is_empty());
    }
}
