//! Rules of translation: numbers, and what may not stand twice.
#![forbid(unsafe_code)]

use super::Router;
use crate::config::spec::NatSpec;
use crate::control::api::{self, NatKind};
use crate::refusal::Refusal;

/// Most rules of translation.
pub(super) const NAT_RULES_MAX: usize = 65_536;

impl Router {
    /// Adds a rule; returns its number.
    ///
    /// # Errors
    /// No such interface, the same rule is there, or a published port is taken.
    pub fn add_nat(&mut self, spec: NatSpec) -> Result<u32, Refusal> {
        if let Some(leaving) = spec.leaving() {
            for name in [leaving.out, leaving.not_out].into_iter().flatten() {
                self.find_interface(&name)?;
            }
        }
        if let Some((id, _)) = self.nat.iter().find(|(_, other)| **other == spec) {
            return Err(Refusal::new(format!(
                "nat {} rule {id} says the same already",
                spec.kind().as_str()
            )));
        }
        if let NatSpec::Publish(new) = &spec {
            for (id, rule) in &self.nat {
                let NatSpec::Publish(old) = rule else { continue };
                if old.published.overlaps(&new.published) {
                    let listen = new.published.listen();
                    let protocol = new.published.protocol().map(|p| format!("{p} ")).unwrap_or_default();
                    let (there, to) = (old.published.listen(), old.published.to());
                    return Err(Refusal::new(format!(
                        "listen {protocol}{listen} is taken: nat publish rule {id} has {there} lead to {to}"
                    )));
                }
            }
        }
        if self.nat.len() >= NAT_RULES_MAX {
            return Err(Refusal::new(format!(
                "there are {NAT_RULES_MAX} rules of translation, which is the limit"
            )));
        }
        // Numbers are not used again before all were: a script that deletes late deletes nobody else's rule.
        let free = (self.next_nat..).chain(1..).find(|id| !self.nat.contains_key(id));
        let id = free.ok_or("there is no number left for a rule of translation")?;
        self.next_nat = id.checked_add(1).unwrap_or(1);
        self.nat.insert(id, spec);
        Ok(id)
    }

    /// Removes a rule, if it is of the given kind.
    ///
    /// # Errors
    /// No rule of that number, or of another kind.
    pub fn del_nat(&mut self, id: u32, kind: Option<NatKind>) -> Result<(), Refusal> {
        let rule = self.nat.get(&id).ok_or_else(|| {
            Refusal::new(format!("there is no nat rule {id}: 'shuntctl nat list' shows those that there are"))
        })?;
        match kind.filter(|kind| *kind != rule.kind()) {
            Some(kind) => {
                let (asked, real) = (kind.as_str(), rule.kind().as_str());
                Err(Refusal::new(format!(
                    "nat rule {id} is no {asked} rule: 'nat {real} del {id}' deletes it"
                )))
            }
            None => {
                self.nat.remove(&id);
                Ok(())
            }
        }
    }

    /// The rule of a number, as it is listed.
    ///
    /// # Errors
    /// There is none.
    pub fn nat_rule(&self, id: u32) -> Result<api::NatRule, Refusal> {
        let rule = self.nat.get(&id).map(|rule| view(id, rule));
        rule.ok_or_else(|| Refusal::new(format!("there is no nat rule {id}")))
    }

    /// All rules, by number.
    pub fn nat_rules(&self) -> Vec<api::NatRule> {
        self.nat.iter().map(|(&id, rule)| view(id, rule)).collect()
    }
}

fn view(id: u32, rule: &NatSpec) -> api::NatRule {
    let mut view = api::NatRule {
        id,
        kind: rule.kind(),
        source: None,
        destination: None,
        out: None,
        not_out: None,
        not_destination: None,
        proto: None,
        listen: None,
        to: None,
        to_ports: None,
        endpoint_independent: false,
        connections: 0,
        exhausted: 0,
    };
    if let Some(leaving) = rule.leaving() {
        view.source = Some(leaving.source);
        view.out = leaving.out;
        view.not_out = leaving.not_out;
        view.not_destination = leaving.not_destination;
    }
    match rule {
        NatSpec::Masquerade(rule) => {
            view.to_ports = rule.ports.map(|ports| ports.to_string());
            view.endpoint_independent = rule.endpoint_independent;
        }
        NatSpec::Snat(rule) => {
            view.to = Some(rule.to());
            view.endpoint_independent = rule.endpoint_independent;
        }
        NatSpec::Publish(rule) => {
            view.proto = rule.published.protocol().map(str::to_owned);
            view.listen = Some(rule.published.listen());
            view.to = Some(rule.published.to());
        }
        NatSpec::Exempt(rule) => {
            view.source = Some(rule.source);
            view.destination = Some(rule.destination);
        }
    }
    view
}

#[cfg(test)]
mod tests {
    use super::super::testing::router;
    use super::*;

    fn publish(router: &mut Router, proto: &str, listen: &str, to: &str) -> Result<u32, String> {
        let asked = api::PublishAdd { proto: Some(proto.into()), listen: listen.into(), to: to.into() };
        router.add_nat(NatSpec::Publish((&asked).try_into().unwrap())).map_err(|refusal| refusal.to_string())
    }

    #[test]
    fn a_port_is_published_once() {
        let mut router = router(&[]);
        let first = publish(&mut router, "tcp", "10.0.2.15:8000-8010", "172.18.0.10:8000-8010").unwrap();
        let refusal = publish(&mut router, "tcp", "*:8010", "172.18.0.11:80").unwrap_err();
        assert_eq!(
            refusal,
            format!(
                "listen tcp 0.0.0.0:8010 is taken: nat publish rule {first} has 10.0.2.15:8000-8010 lead to 172.18.0.10:8000-8010"
            )
        );
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
            NatSpec::Masquerade((&asked).try_into().unwrap())
        };
        assert!(
            router
                .add_nat(masquerade("none"))
                .unwrap_err()
                .to_string()
                .contains("interface \"none\" does not exist")
        );
        let id = router.add_nat(masquerade("wan")).unwrap();
        assert!(router.add_nat(masquerade("wan")).unwrap_err().to_string().contains("says the same already"));
        let refusal = router.del_nat(id, Some(NatKind::Snat)).unwrap_err().to_string();
        assert_eq!(refusal, format!("nat rule {id} is no snat rule: 'nat masquerade del {id}' deletes it"));
        assert!(router.del_nat(id + 1, None).unwrap_err().to_string().contains("there is no nat rule"));
        assert_eq!(router.nat_rule(id).unwrap().out.unwrap(), "wan");
        router.del_nat(id, None).unwrap();
        assert!(router.nat_rules().is_empty());
    }
}
