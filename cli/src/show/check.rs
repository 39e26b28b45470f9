//! Health checks.

use std::net::SocketAddr;

use shunt_switch::control::api;

use super::{dash, duration, table};

/// `check list`
pub(crate) fn checks(checks: &[api::Check]) -> String {
    let servers = checks.iter().flat_map(|check| check.servers.iter().map(move |server| (check, server)));
    table(
        &["SERVICE", "KIND", "SERVER", "STATE", "SINCE", "WEIGHT", "CHECKS", "FAILED", "LAST ERROR"],
        &[5, 6, 7],
        servers.map(|(check, server)| {
            vec![
                check.service.clone(),
                check.kind.clone(),
                SocketAddr::new(server.address, server.port).to_string(),
                if server.up { "up" } else { "down" }.to_owned(),
                duration(server.since),
                server.weight.map_or_else(|| "-".to_owned(), |weight| format!("0 ({weight})")),
                server.checks.to_string(),
                server.failures.to_string(),
                dash(server.error.as_ref()),
            ]
        }),
    )
}
