//! placeholder
pub mod config;
pub mod control;
pub mod drops;
pub mod l2;
pub mod packet;
pub mod refusal;
pub mod stats;
