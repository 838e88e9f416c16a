// SPDX-License-Identifier: Apache-2.0
//! Linux interfaces used by several crates.

pub mod atomic_file;
pub mod control_group;
pub mod inherit;
pub mod machine_lock;
