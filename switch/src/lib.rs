//! shunt: a userspace L2/L3 switch for the virtual machines of secure containers.
//!
//! The modules in the order in which a packet meets them: [`worker`] polls, [`port`] receives and sends, [`pipeline`]
//! decides with the tables of [`l2`], [`packet`] knows the bytes. Beside that way: [`switch`] owns what is configured
//! and publishes it as [`tables`], [`config`] says what may be configured, [`control`] is how people get there.

pub mod clock;
pub mod config;
pub mod conntrack;
pub mod container;
pub mod control;
pub mod drops;
mod durable;
pub mod handover;
pub mod ipvs;
pub mod l2;
pub mod l3;
pub mod members;
pub mod memory;
pub mod nat;
pub mod packet;
pub mod pipeline;
pub mod policy;
pub mod port;
pub mod refusal;
pub mod resolver;
pub mod router;
pub mod rules;
pub mod saved;
pub mod services;
pub mod spread;
pub mod stats;
pub mod switch;
pub mod tables;
mod view;
pub mod worker;
