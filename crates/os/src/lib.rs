// SPDX-License-Identifier: Apache-2.0
//! Linux interfaces used by several crates.

pub mod atomic_file;
pub mod control_group;
mod extent_map;
pub mod fault;
pub mod inherit;
pub mod machine_lock;
pub mod open_files;
pub mod process;
pub mod sparse_file;
pub mod tls_files;
