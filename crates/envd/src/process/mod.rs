//! Processes: starting them, their output, their end, and the Connect service over all of it.

pub(crate) mod cgroup;
pub(crate) mod output;
pub(crate) mod registry;
pub(crate) mod service;
pub(crate) mod spawn;
