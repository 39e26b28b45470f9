//! Frontends and guests that break every rule, and what is needed to see that nobody else notices.
//!
//! [`wire`] speaks vhost-user byte by byte, [`vm`] is a guest whose every field can lie, [`attacks`] and [`packed`] are the
//! lies in tables, [`neighbour`] is who must not notice, and [`footprint`] what must not stay behind.

pub mod attacks;
pub mod footprint;
pub mod neighbour;
pub mod packed;
pub mod vm;
pub mod wire;

pub use footprint::Footprint;
pub use neighbour::{Neighbour, Seen};
pub use vm::Vm;
