//! Runs the real envd as an ordinary process and speaks to it as sandbox clients do.
#![allow(clippy::unwrap_used)]

mod bounds;
mod client;
mod files;
mod processes;
