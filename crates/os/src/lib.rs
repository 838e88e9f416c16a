//! What Wrenn asks of Linux in more than one crate.

pub mod atomic_file;
pub mod control_group;
pub mod inherit;
pub mod machine_lock;
