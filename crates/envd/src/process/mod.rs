// SPDX-License-Identifier: Apache-2.0
//! Processes: start, output, exit, and the Connect service.

pub(crate) mod cgroup;
mod drains;
mod ending;
mod fork;
mod handle;
mod input;
mod interpreter;
pub(crate) mod output;
mod pipes;
pub(crate) mod registry;
pub(crate) mod retention;
mod screen;
pub(crate) mod service;
pub(crate) mod spawn;
mod supervision;
mod table;
pub(crate) mod warm;
