// SPDX-License-Identifier: Apache-2.0
//! Memory of snapshots.
//!
//! A snapshot's memory is a *generation*: the blocks that changed since its parent, and a [`Header`] whose
//! [`Mapping`] says for each block of the memory in which generation its content is.

mod build_id;
mod capture;
mod collapsed;
mod diff;
mod error;
mod generation;
mod generations;
mod header;
mod incoming;
mod layers;
mod manifest;
mod mapping;
pub mod page_server;
mod partial;
mod sums;
mod verification;
mod working_set;

pub use crate::{
    build_id::{BuildId, NoBuildId},
    capture::{BLOCK_SIZE, Changes, Layout, capture, mapping_of_flat},
    collapsed::Collapsed,
    diff::{Diff, Written},
    error::MemoryError,
    generation::{Generation, Part},
    generations::Generations,
    header::{Header, HeaderError},
    incoming::Incoming,
    layers::Layers,
    manifest::{Manifest, Origin},
    mapping::{Mapping, OutOfOrder, Range, Source},
    sums::{Damage, Sums},
    verification::Verification,
};
