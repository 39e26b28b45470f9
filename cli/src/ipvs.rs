//! The commands of virtual services beside those of ipvsadm.

use std::fmt::Write as _;

use shunt_switch::control::api;

use crate::Asker;
use crate::arguments::{Cleanup, Ipvs};
use crate::client::Failure;

impl Asker {
    pub(crate) fn ipvs(&mut self, command: &Ipvs) -> Result<String, Failure> {
        match command.clone() {
            Ipvs::Tables => self.ask(&api::IpvsScopes {}, |tables| {
                let mut text = String::new();
                for table in tables {
                    let name = table.container.as_deref().unwrap_or("(global)");
                    let _ = writeln!(text, "{name}: {} of at most {} rules", table.rules, table.limit);
                }
                text
            }),
            Ipvs::Show { container } => self.ask(&api::IpvsSettings { container }, settings),
            Ipvs::Set { name, value, container } => {
                self.ask(&api::IpvsSet { container, name, value }, |_| String::new())
            }
            Ipvs::Cleanup(filter) => {
                let Cleanup { orig_dst, orig_src, reply_src, reply_dst, protonum, .. } = filter;
                let Cleanup { orig_port_src, orig_port_dst, reply_port_src, reply_port_dst, .. } = filter;
                let Cleanup { family, state, .. } = filter;
                let request = api::IpvsCleanup {
                    container: None,
                    orig_dst,
                    orig_src,
                    reply_src,
                    reply_dst,
                    protonum,
                    orig_port_src,
                    orig_port_dst,
                    reply_port_src,
                    reply_port_dst,
                    family,
                    state,
                };
                self.ask(&request, |flushed| format!("{} flow entries have been deleted\n", flushed.removed))
            }
        }
    }
}

fn settings(settings: &api::IpvsSettingsList) -> String {
    settings.iter().fold(String::new(), |mut text, (name, value)| {
        let _ = writeln!(text, "{name} {value}");
        text
    })
}
