//! Which connections are meant, and the bounds of their table.
#![forbid(unsafe_code)]

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{Invalid, number, prefix, protocol};
use crate::conntrack::record::{Filter, Protocol, state_names};
use crate::control::api;

impl Filter {
    /// Checks which connections are meant. `port_number` tells the number of a port by its name.
    ///
    /// # Errors
    /// A field breaks a rule, or names a port that is not there.
    pub fn new(
        asked: &api::ConntrackFilter,
        port_number: &dyn Fn(&str) -> Option<u16>,
    ) -> Result<Self, Invalid> {
        let network =
            |field, text: &Option<String>| text.as_deref().map(|text| prefix(field, text)).transpose();
        let port = |field, value: Option<i64>| value.map(|value| number(field, value, 0, 65_535)).transpose();
        let family: Option<IpNet> = match asked.family.as_deref() {
            None => None,
            Some("ipv4") => Some(Ipv4Net::default().into()),
            Some("ipv6") => Some(Ipv6Net::default().into()),
            Some(other) => {
                let message = format!("family {other:?} is unknown: it must be \"ipv4\" or \"ipv6\"");
                return Err(Invalid::new("family", message));
            }
        };
        if let Some(state) = asked.state.as_deref().filter(|state| !state_names().any(|name| name == *state))
        {
            let names = state_names().collect::<Vec<_>>().join(", ");
            return Err(Invalid::new(
                "state",
                format!("state {state:?} is unknown: it must be one of {names}"),
            ));
        }
        let source = network("source", &asked.source)?;
        if let (Some(family), Some(source)) = (family, source)
            && family.addr().is_ipv4() != source.addr().is_ipv4()
        {
            let message =
                format!("source {source} is of another family than asked for with family: leave one out");
            return Err(Invalid::new("source", message));
        }
        let unknown = |name: &str| Invalid::new("port", format!("port {name:?} does not exist"));
        Ok(Self {
            proto: asked.proto.as_deref().map(|text| protocol("proto", text)).transpose()?.map(Protocol),
            source: source.or(family),
            dest: network("dest", &asked.dest)?,
            sport: port("sport", asked.sport)?,
            dport: port("dport", asked.dport)?,
            reply_sport: port("reply_sport", asked.reply_sport)?,
            reply_dport: port("reply_dport", asked.reply_dport)?,
            reply_source: network("reply_source", &asked.reply_source)?,
            reply_dest: network("reply_dest", &asked.reply_dest)?,
            state: asked.state.clone(),
            ingress: asked
                .port
                .as_deref()
                .map(|name| port_number(name).ok_or_else(|| unknown(name)))
                .transpose()?,
            src_nat: asked.src_nat,
            dst_nat: asked.dst_nat,
        })
    }
}

/// What is to change at the bounds; what is `None` stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LimitChange {
    /// Most connections, 1 or more.
    pub limit: Option<u32>,
    /// Most connections that one port may have begun, 1 or more.
    pub port_quota: Option<u32>,
    /// Most TCP connections whose handshake is not complete, 1 or more.
    pub half_open: Option<u32>,
}

impl TryFrom<&api::ConntrackSetLimit> for LimitChange {
    type Error = Invalid;

    fn try_from(asked: &api::ConntrackSetLimit) -> Result<Self, Invalid> {
        let bound =
            |field, value: Option<i64>| value.map(|value| number(field, value, 1, u32::MAX)).transpose();
        let change = Self {
            limit: bound("limit", asked.limit)?,
            port_quota: bound("port_quota", asked.port_quota)?,
            half_open: bound("half_open", asked.half_open)?,
        };
        if change == Self::default() {
            let message = "no limit is to change: give at least one of limit, port_quota and half_open";
            return Err(Invalid::new("limit", message));
        }
        Ok(change)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(change: &dyn Fn(&mut api::ConntrackFilter)) -> Result<Filter, &'static str> {
        let mut asked = api::ConntrackFilter::default();
        change(&mut asked);
        Filter::new(&asked, &|name| (name == "web").then_some(7)).map_err(|invalid| invalid.field)
    }

    #[test]
    fn what_is_given_is_looked_for() {
        assert!(filter(&|_| ()).unwrap().is_empty());
        let all = filter(&|f| {
            f.proto = Some("tcp".into());
            f.source = Some("10.0.3.0/24".into());
            f.dest = Some("192.0.2.1".into());
            f.dport = Some(80);
            f.state = Some("ESTABLISHED".into());
            f.port = Some("web".into());
        })
        .unwrap();
        assert_eq!((all.proto, all.dport, all.ingress), (Some(Protocol(6)), Some(80), Some(7)));
        assert_eq!(all.dest.unwrap().to_string(), "192.0.2.1/32");
        let v6 = filter(&|f| f.family = Some("ipv6".into())).unwrap();
        assert_eq!(v6.source.unwrap().to_string(), "::/0");
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(filter(&|f| f.proto = Some("x".into())), Err("proto"));
        assert_eq!(filter(&|f| f.family = Some("4".into())), Err("family"));
        assert_eq!(filter(&|f| f.reply_source = Some("x".into())), Err("reply_source"));
        assert_eq!(filter(&|f| f.sport = Some(65_536)), Err("sport"));
        assert_eq!(filter(&|f| f.state = Some("established".into())), Err("state"));
        assert_eq!(filter(&|f| f.port = Some("none".into())), Err("port"));
        let mixed = filter(&|f| {
            f.family = Some("ipv4".into());
            f.source = Some("fd00::1".into());
        });
        assert_eq!(mixed, Err("source"));
    }

    #[test]
    fn limits_that_change_nothing_are_refused() {
        let change = |limit, half_open| {
            let asked = api::ConntrackSetLimit { limit, port_quota: None, half_open };
            LimitChange::try_from(&asked).map_err(|e| e.to_string())
        };
        assert_eq!(change(Some(1), None).unwrap().limit, Some(1));
        assert!(change(None, None).unwrap_err().contains("give at least one"));
        assert!(change(None, Some(0)).unwrap_err().starts_with("half_open 0 is out of range"));
    }
}
