//! Secure containers.

use shunt_switch::control::api;

use super::{dash, joined, properties, table};

/// `container list`
pub(crate) fn containers(containers: &[api::Container]) -> String {
    table(
        &["ID", "BRIDGE", "QMP", "NICS", "ROUTES", "IPVS RULES"],
        &[3, 4, 5],
        containers.iter().map(|container| {
            vec![
                container.id.clone(),
                container.bridge.to_string(),
                dash(container.qmp.as_ref()),
                container.nics.len().to_string(),
                container.routes.len().to_string(),
                container.ipvs_rules.to_string(),
            ]
        }),
    )
}

/// `container show`
pub(crate) fn container(container: &api::Container) -> String {
    let mut text = properties(&[
        ("id", container.id.clone()),
        ("bridge", container.bridge.to_string()),
        ("qmp", container.qmp.clone().unwrap_or_default()),
        ("agent", container.agent.clone().unwrap_or_default()),
        ("role", container.role.clone()),
        ("tap", container.tap.clone()),
        ("ipvs rules", container.ipvs_rules.to_string()),
    ]);
    if !container.nics.is_empty() {
        text.push('\n');
        text += &table(
            &["NIC", "DEVICE", "MAC", "MTU", "ADDRESSES", "QUEUES", "PCI", "SOCKET"],
            &[3, 5],
            container.nics.iter().map(|nic| {
                vec![
                    dash(nic.name.as_ref()),
                    dash(nic.device.as_ref()),
                    dash(nic.mac.as_ref()),
                    dash(nic.mtu),
                    joined(
                        nic.addresses.iter().map(|address| format!("{}/{}", address.address, address.mask)),
                    ),
                    nic.queues.unwrap_or(1).max(1).to_string(),
                    dash(nic.pci.as_ref()),
                    dash(nic.socket.as_ref()),
                ]
            }),
        );
    }
    if !container.routes.is_empty() {
        text.push('\n');
        text += &table(
            &["ROUTE", "GATEWAY", "NIC"],
            &[],
            container.routes.iter().map(|route| {
                vec![dash(route.dest.as_ref()), dash(route.gateway.as_ref()), dash(route.device.as_ref())]
            }),
        );
    }
    text
}
