// SPDX-License-Identifier: Apache-2.0
//! Runs the real envd as an ordinary process and calls it like sandbox clients.
#![allow(clippy::unwrap_used)]

mod archives;
mod bounds;
mod client;
mod codings;
mod compose;
mod cors;
mod downloads;
mod files;
mod filesystem;
mod fuse;
mod hostile;
mod identity;
mod many;
mod metadata;
mod metrics;
mod ports;
mod processes;
mod terminals;
mod watch;
mod watch_bounds;
