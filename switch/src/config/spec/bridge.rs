//! Bridges.
#![forbid(unsafe_code)]

use super::{
    AGEING_DEFAULT, AGEING_MAX, FDB_LIMIT_DEFAULT, FDB_LIMIT_MAX, Invalid, Name, name, number, something,
};
use crate::control::api;

/// A bridge to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeSpec {
    /// Its name, unique among bridges.
    pub name: Name,
    /// Seconds after which a learned address that was not seen again is forgotten: 1 to [`AGEING_MAX`], or 0 for
    /// never.
    pub ageing: u32,
    /// Most entries of its forwarding database, 1 to [`FDB_LIMIT_MAX`].
    pub fdb_limit: u32,
    /// Whether frames from port to port meet connection tracking and policy, as routed ones do.
    pub filter: bool,
}

/// What is to change at a bridge; what is `None` stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BridgeChange {
    /// Whether frames from port to port meet connection tracking and policy.
    pub filter: Option<bool>,
}

impl TryFrom<&api::BridgeAdd> for BridgeSpec {
    type Error = Invalid;

    fn try_from(asked: &api::BridgeAdd) -> Result<Self, Invalid> {
        Ok(Self {
            name: name("name", &asked.name)?,
            ageing: asked.ageing.map_or(Ok(AGEING_DEFAULT), |v| number("ageing", v, 0, AGEING_MAX))?,
            fdb_limit: asked
                .fdb_limit
                .map_or(Ok(FDB_LIMIT_DEFAULT), |v| number("fdb_limit", v, 1, FDB_LIMIT_MAX))?,
            filter: asked.filter.unwrap_or_default(),
        })
    }
}

impl TryFrom<&api::BridgeSet> for BridgeChange {
    type Error = Invalid;

    fn try_from(asked: &api::BridgeSet) -> Result<Self, Invalid> {
        something(asked.filter.is_some(), "bridge", &asked.name, "filter")?;
        Ok(Self { filter: asked.filter })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_of_bridges() {
        let bridge = |ageing, fdb_limit| {
            BridgeSpec::try_from(&api::BridgeAdd { name: "b".into(), ageing, fdb_limit, filter: None })
                .map_err(|invalid| (invalid.field, invalid.to_string()))
        };
        let usual = bridge(None, None).unwrap();
        assert_eq!((usual.ageing, usual.fdb_limit, usual.filter), (300, 65_536, false));
        assert!(bridge(Some(0), Some(1)).is_ok());
        assert!(bridge(Some(1_000_000), Some(1_048_576)).is_ok());
        for bad in [-1, 1_000_001, i64::MAX, i64::MIN] {
            let message = format!("ageing {bad} is out of range: it must be 0 to 1000000");
            assert_eq!(bridge(Some(bad), None), Err(("ageing", message)));
        }
        for bad in [0, -1, 1_048_577, 1 << 32] {
            let message = format!("fdb_limit {bad} is out of range: it must be 1 to 1048576");
            assert_eq!(bridge(None, Some(bad)), Err(("fdb_limit", message)));
        }
    }

    #[test]
    fn a_change_must_change_something() {
        let asked = api::BridgeSet { name: "b".into(), filter: None };
        let message = BridgeChange::try_from(&asked).unwrap_err().to_string();
        assert_eq!(message, "nothing is to change at bridge \"b\": give at least one of filter");
        let asked = api::BridgeSet { filter: Some(true), ..asked };
        assert_eq!(BridgeChange::try_from(&asked).unwrap().filter, Some(true));
    }
}
