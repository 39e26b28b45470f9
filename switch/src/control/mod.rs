//! The control socket: what can be asked, and the server that answers.
//!
//! [`socket`] makes the file, [`peer`] says who may, [`server`] keeps the connections, [`line`](mod@line) cuts lines, [`rpc`]
//! reads and writes them, [`dispatch`] has the switch do what they ask. [`api`] is what daemon and client share,
//! [`paths`] where they meet. The protocol is described in `docs/control-protocol.md`.

pub mod api;
pub mod dispatch;
pub mod line;
pub mod paths;
pub mod peer;
pub mod rpc;
pub mod server;
pub mod socket;
