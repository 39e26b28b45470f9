//! Routes.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::{Invalid, Name, host, name, number, prefix};
use crate::control::api;

/// What happens to packets that take a route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RouteKind {
    /// They go to a gateway or a link.
    #[default]
    Unicast,
    /// They vanish.
    Blackhole,
    /// They vanish, and the sender is told that the host is unreachable.
    Unreachable,
    /// They vanish, and the sender is told that this is forbidden.
    Prohibit,
}

impl RouteKind {
    /// The word of command line, configuration and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unicast => "unicast",
            Self::Blackhole => "blackhole",
            Self::Unreachable => "unreachable",
            Self::Prohibit => "prohibit",
        }
    }
}

/// A static route to be, or one more way of those that share prefix and metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteSpec {
    /// The destination; no bit is set beyond its length.
    pub prefix: IpNet,
    /// The gateway, of the prefix' family. It or `dev` is there if the route is unicast, none of both otherwise.
    pub via: Option<IpAddr>,
    /// The interface.
    pub dev: Option<Name>,
    /// The usable route of the lowest metric is taken.
    pub metric: u32,
    /// What happens to packets that take it.
    pub kind: RouteKind,
    /// Whether the gateway is on the link of `dev` whatever the addresses there; `via` and `dev` are there then.
    pub onlink: bool,
}

/// Which static routes are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteMatch {
    /// Any of these destinations: one, or both defaults.
    pub prefixes: Vec<IpNet>,
    /// Through this gateway only.
    pub via: Option<IpAddr>,
    /// Through this interface only.
    pub dev: Option<Name>,
    /// With this metric only.
    pub metric: Option<u32>,
}

fn default_of(v4: bool) -> IpNet {
    match v4 {
        true => Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0).into(),
        false => Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

/// Checks a destination; `default` is of the gateway's family, or else IPv4.
fn destination(text: &str, via: Option<IpAddr>) -> Result<IpNet, Invalid> {
    if text == "default" {
        return Ok(default_of(via.is_none_or(|via| via.is_ipv4())));
    }
    let destination = prefix("prefix", text)?;
    let first = destination.network();
    if first.is_multicast() || (first.is_loopback() && destination.prefix_len() > 0) {
        let rule = "it must be a unicast network other than the loopback";
        return Err(Invalid::new("prefix", format!("prefix {destination} cannot be routed to: {rule}")));
    }
    Ok(destination)
}

fn metric(value: i64) -> Result<u32, Invalid> {
    number("metric", value, 0, u32::MAX)
}

impl TryFrom<&api::RouteAdd> for RouteSpec {
    type Error = Invalid;

    fn try_from(asked: &api::RouteAdd) -> Result<Self, Invalid> {
        let via = asked.via.as_deref().map(|text| host("via", text)).transpose()?;
        let dev = asked.dev.as_deref().map(|text| name("dev", text)).transpose()?;
        let prefix = destination(&asked.prefix, via)?;
        let kind = match asked.kind.as_deref() {
            None | Some("unicast") => RouteKind::Unicast,
            Some("blackhole") => RouteKind::Blackhole,
            Some("unreachable") => RouteKind::Unreachable,
            Some("prohibit") => RouteKind::Prohibit,
            Some(other) => {
                let rule = "it must be \"unicast\", \"blackhole\", \"unreachable\" or \"prohibit\"";
                return Err(Invalid::new("kind", format!("kind {other:?} is unknown: {rule}")));
            }
        };
        if let Some(via) = via
            && via.is_ipv4() != matches!(prefix, IpNet::V4(_))
        {
            let message = format!(
                "via {via} is of another family than prefix {prefix}: both must be IPv4, or both IPv6"
            );
            return Err(Invalid::new("via", message));
        }
        match kind {
            RouteKind::Unicast if via.is_none() && dev.is_none() => {
                let message = format!("route {prefix} leads nowhere: give via, dev, or both");
                return Err(Invalid::new("via", message));
            }
            RouteKind::Unicast => (),
            _ if via.is_some() || dev.is_some() => {
                let field = if via.is_some() { "via" } else { "dev" };
                let message =
                    format!("{field} goes with unicast routes only: leave it out of a {} one", kind.as_str());
                return Err(Invalid::new(field, message));
            }
            _ => (),
        }
        if asked.onlink && (via.is_none() || dev.is_none()) {
            return Err(Invalid::new("onlink", "onlink needs via and dev: give both"));
        }
        if let (Some(IpAddr::V6(link_local)), None) = (via, dev)
            && link_local.is_unicast_link_local()
        {
            let message = format!("via {link_local} is on every link: name the interface with dev");
            return Err(Invalid::new("via", message));
        }
        let metric = asked.metric.map_or(Ok(0), metric)?;
        Ok(Self { prefix, via, dev, metric, kind, onlink: asked.onlink })
    }
}

impl TryFrom<&api::RouteDel> for RouteMatch {
    type Error = Invalid;

    fn try_from(asked: &api::RouteDel) -> Result<Self, Invalid> {
        let via = asked.via.as_deref().map(|text| host("via", text)).transpose()?;
        let prefixes = match asked.prefix.as_str() {
            "default" if via.is_none() => vec![default_of(true), default_of(false)],
            text => vec![destination(text, via)?],
        };
        Ok(Self {
            prefixes,
            via,
            dev: asked.dev.as_deref().map(|text| name("dev", text)).transpose()?,
            metric: asked.metric.map(metric).transpose()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(prefix: &str, via: Option<&str>, dev: Option<&str>) -> api::RouteAdd {
        api::RouteAdd {
            prefix: prefix.into(),
            via: via.map(str::to_owned),
            dev: dev.map(str::to_owned),
            ..api::RouteAdd::default()
        }
    }

    fn route(asked: &api::RouteAdd) -> Result<RouteSpec, (&'static str, String)> {
        RouteSpec::try_from(asked).map_err(|invalid| (invalid.field, invalid.to_string()))
    }

    #[test]
    fn default_is_of_the_gateways_family() {
        let prefix = |via, dev| route(&asked("default", via, dev)).unwrap().prefix.to_string();
        assert_eq!(prefix(Some("10.0.3.2"), None), "0.0.0.0/0");
        assert_eq!(prefix(Some("fd00::2"), None), "::/0");
        assert_eq!(prefix(None, Some("gw")), "0.0.0.0/0");
        let spec = route(&asked("10.0.0.1", None, Some("gw"))).unwrap();
        assert_eq!((spec.prefix.to_string().as_str(), spec.metric), ("10.0.0.1/32", 0));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (asked, field, why) in [
            (asked("10.0.0.0/8", None, None), "via", "leads nowhere"),
            (asked("10.0.0.1/8", Some("10.0.3.2"), None), "prefix", "write 10.0.0.0/8"),
            (asked("x", Some("10.0.3.2"), None), "prefix", "prefix \"x\" is no network"),
            (asked("224.0.0.0/8", None, Some("gw")), "prefix", "cannot be routed to"),
            (asked("ff00::/8", None, Some("gw")), "prefix", "cannot be routed to"),
            (asked("127.0.0.0/8", None, Some("gw")), "prefix", "cannot be routed to"),
            (asked("10.0.0.0/8", Some("fd00::1"), None), "via", "another family than prefix 10.0.0.0/8"),
            (asked("::/0", Some("10.0.3.2"), None), "via", "another family than prefix ::/0"),
            (asked("10.0.0.0/8", Some("0.0.0.0"), None), "via", "not the address of a host"),
            (asked("10.0.0.0/8", None, Some("9")), "dev", "no valid name"),
            (asked("::/0", Some("fe80::1"), None), "via", "name the interface with dev"),
            (
                api::RouteAdd { metric: Some(-1), ..asked("10.0.0.0/8", None, Some("gw")) },
                "metric",
                "metric -1 is out of range: it must be 0 to 4294967295",
            ),
            (
                api::RouteAdd { metric: Some(1 << 32), ..asked("10.0.0.0/8", None, Some("gw")) },
                "metric",
                "out of range",
            ),
            (
                api::RouteAdd { kind: Some("nat".into()), ..asked("10.0.0.0/8", None, None) },
                "kind",
                "kind \"nat\" is unknown",
            ),
            (
                api::RouteAdd { kind: Some("blackhole".into()), ..asked("10.0.0.0/8", None, Some("gw")) },
                "dev",
                "leave it out of a blackhole one",
            ),
            (
                api::RouteAdd { onlink: true, ..asked("10.0.0.0/8", Some("10.0.3.2"), None) },
                "onlink",
                "needs via and dev",
            ),
        ] {
            let (at, message) = route(&asked).unwrap_err();
            assert!(at == field && message.contains(why), "{asked:?}: {at}: {message}");
        }
        for kind in ["blackhole", "unreachable", "prohibit"] {
            let asked = api::RouteAdd { kind: Some(kind.into()), ..asked("10.0.0.0/8", None, None) };
            assert_eq!(route(&asked).unwrap().kind.as_str(), kind);
        }
        assert!(route(&asked("::/0", Some("fe80::1"), Some("gw"))).is_ok());
    }

    #[test]
    fn a_default_without_a_gateway_is_of_both_families() {
        let both = api::RouteDel { prefix: "default".into(), ..api::RouteDel::default() };
        assert_eq!(RouteMatch::try_from(&both).unwrap().prefixes.len(), 2);
    }
}
