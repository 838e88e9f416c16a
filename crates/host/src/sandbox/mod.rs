//! One sandbox on this host: its journal and what its commands' ends mean.

pub mod exit;
pub mod journal;
