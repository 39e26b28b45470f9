//! placeholder
pub mod drops;
pub mod l2;
pub mod stats;
