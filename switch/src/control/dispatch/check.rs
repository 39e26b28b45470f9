//! Health checks of real servers.
#![forbid(unsafe_code)]

use super::super::api::{self, Done};
use super::super::rpc::Error;
use super::{At, Handle};
use crate::config::spec::{check_view, service_key};
use crate::ipvs::health::CheckSpec;
use crate::refusal::Refusal;

impl Handle for api::CheckSet {
    fn handle(self, at: &mut At<'_>) -> Result<Done, Error> {
        at.switch.set_check(CheckSpec::try_from(&self)?)?;
        tracing::info!("servers of {} are checked by {}", self.service, self.kind);
        Ok(Done {})
    }
}

impl Handle for api::CheckDel {
    fn handle(self, at: &mut At<'_>) -> Result<Done, Error> {
        if !at.switch.del_check(&service_key(&self.service)?) {
            let rule = "'shuntctl check list' shows those that are";
            return Err(Refusal::new(format!("service {} is not checked: {rule}", self.service)).into());
        }
        tracing::info!("servers of {} are checked no longer", self.service);
        Ok(Done {})
    }
}

impl Handle for api::CheckList {
    fn handle(self, at: &mut At<'_>) -> Result<Vec<api::Check>, Error> {
        Ok(at.switch.checks().iter().map(|(spec, servers)| check_view(spec, servers)).collect())
    }
}
