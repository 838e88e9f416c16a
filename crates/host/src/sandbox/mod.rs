// SPDX-License-Identifier: Apache-2.0
//! One sandbox on this host: actor, phases, operations, journal, and client of its guest.

pub(crate) mod actor;
pub(crate) mod admit;
pub(crate) mod boot;
pub(crate) mod directories;
pub(crate) mod entry;
mod environment;
pub(crate) mod exit;
pub(crate) mod files;
pub(crate) mod guest;
pub(crate) mod journal;
mod last_words;
mod mailbox;
pub(crate) mod operations;
pub(crate) mod phase;
pub(crate) mod port;
pub(crate) mod processes;
pub(crate) mod record;
pub(crate) mod release;
pub(crate) mod shared;
pub(crate) mod spec;
pub(crate) mod summary;
pub(crate) mod usage;
pub(crate) mod watch;
