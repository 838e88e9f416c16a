//! The host agent: owns the microVMs of one machine
