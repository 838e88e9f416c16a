// SPDX-License-Identifier: Apache-2.0
//! Directories as tar archives, packed and unpacked as streams with bounded memory. An archive is input: what is unpacked
//! never leaves its directory, whatever the archive says and whoever changes the directory meanwhile.

mod directory;
mod error;
mod header;
mod pack;
mod reader;
mod sparse;
mod unpack;
mod walk;

pub use error::ArchiveError;
pub use pack::{Packed, check, pack};
pub use unpack::{Rules, Unpacked, unpack};
