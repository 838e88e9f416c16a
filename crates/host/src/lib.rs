//! The host agent: owns the microVMs of one machine.

pub mod fault;
pub mod sandbox;
pub mod slots;
