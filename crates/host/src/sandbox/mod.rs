// SPDX-License-Identifier: Apache-2.0
//! One sandbox on this host: actor, journal, and client of its guest.

pub(crate) mod actor;
pub(crate) mod create;
pub(crate) mod exec;
pub(crate) mod exit;
pub(crate) mod guest;
pub(crate) mod journal;
pub(crate) mod remove;
pub(crate) mod spec;
pub(crate) mod summary;
