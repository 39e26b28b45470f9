//! DHCP and router advertisements.
#![forbid(unsafe_code)]

use super::super::api::{self, Done, Flushed};
use super::super::rpc::Error;
use super::{At, Handle};
use crate::config::spec::{self, DhcpChange};

impl Handle for api::DhcpSet {
    fn handle(self, at: &mut At<'_>) -> Result<api::Dhcp, Error> {
        at.switch.set_dhcp(DhcpChange::try_from(&self)?)?;
        tracing::info!("interface {} serves guests", self.interface);
        Ok(at.switch.dhcp(&self.interface)?)
    }
}

impl Handle for api::DhcpDel {
    fn handle(self, at: &mut At<'_>) -> Result<Done, Error> {
        at.switch.del_dhcp(&self.interface)?;
        tracing::info!("interface {} serves guests no longer", self.interface);
        Ok(Done {})
    }
}

impl Handle for api::DhcpShow {
    fn handle(self, at: &mut At<'_>) -> Result<api::Dhcp, Error> {
        Ok(at.switch.dhcp(&self.interface)?)
    }
}

impl Handle for api::DhcpReserve {
    fn handle(self, at: &mut At<'_>) -> Result<api::Dhcp, Error> {
        let spec = spec::reservation(&self.mac, &self.address, self.hostname.as_deref())?;
        at.switch.reserve(&self.interface, spec)?;
        Ok(at.switch.dhcp(&self.interface)?)
    }
}

impl Handle for api::DhcpUnreserve {
    fn handle(self, at: &mut At<'_>) -> Result<api::Dhcp, Error> {
        at.switch.unreserve(&self.interface, spec::mac("mac", &self.mac)?)?;
        Ok(at.switch.dhcp(&self.interface)?)
    }
}

impl Handle for api::DhcpLeases {
    fn handle(self, at: &mut At<'_>) -> Result<Vec<api::Lease>, Error> {
        Ok(at.switch.leases(self.interface.as_deref())?)
    }
}

impl Handle for api::DhcpRelease {
    fn handle(self, at: &mut At<'_>) -> Result<Flushed, Error> {
        let released = at.switch.release(&self.interface, spec::v4("address", &self.address)?)?;
        Ok(Flushed { removed: released.into() })
    }
}
