//! What `shuntctl` and `shunt-cni` have in common: the client's side of the control socket, and Kata's DAN files.
#![forbid(unsafe_code)]

pub mod client;
pub mod dan;
