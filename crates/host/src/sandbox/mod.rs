//! One sandbox on this host: its actor, its journal, and the way into its guest.

pub mod actor;
pub mod exec;
pub mod exit;
pub mod guest;
pub mod journal;
pub mod spec;
