//! The control socket: what can be asked, and the server that answers.

pub mod api;
