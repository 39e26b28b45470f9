//! Who may talk to whom: the stateful firewall between ports, bridges and addresses.
#![forbid(unsafe_code)]

pub mod rule;
