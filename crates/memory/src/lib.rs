// SPDX-License-Identifier: Apache-2.0
//! Memory of snapshots.
//!
//! A snapshot's memory is a *generation*: the blocks that changed since its parent, and a [`Header`] whose
//! [`Mapping`] says for each block of the memory in which generation its content is.

mod build_id;
mod capture;
mod error;
mod generations;
mod header;
mod layers;
mod manifest;
mod mapping;
pub mod page_server;
mod sums;
mod working_set;

pub use crate::{
    build_id::{BuildId, NoBuildId},
    capture::{BLOCK_SIZE, Changes, Layout, capture, mapping_of_flat},
    error::MemoryError,
    generations::{Collapsed, Generation, Generations, Part, Partial},
    header::{Header, HeaderError},
    layers::Layers,
    manifest::{Manifest, Origin},
    mapping::{Mapping, OutOfOrder, Range, Source},
    sums::{Damage, Sums},
};
