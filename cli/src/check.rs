//! The commands of health checks.

use shunt_switch::control::api;

use crate::arguments::{Check, CheckSet};
use crate::client::Failure;
use crate::{Asker, show, silent};

impl Asker {
    pub(crate) fn check(&mut self, command: &Check) -> Result<String, Failure> {
        match command.clone() {
            Check::Set(asked) => {
                let CheckSet {
                    service,
                    kind,
                    port,
                    interface,
                    interval,
                    timeout,
                    rise,
                    fall,
                    path,
                    host,
                    status,
                    payload,
                    reply,
                } = *asked;
                let reply = reply.then_some(true);
                let request = api::CheckSet {
                    service,
                    kind,
                    port,
                    interface,
                    interval,
                    timeout,
                    rise,
                    fall,
                    path,
                    host,
                    status,
                    payload,
                    reply,
                };
                self.ask(&request, silent)
            }
            Check::Del { service } => self.ask(&api::CheckDel { service }, silent),
            Check::List => self.ask(&api::CheckList {}, |checks| show::checks(checks)),
        }
    }
}
