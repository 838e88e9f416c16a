// SPDX-License-Identifier: Apache-2.0
//! Directories as tar archives, packed and unpacked as streams with bounded memory. An archive is input: what is unpacked
//! never leaves its directory, whatever the archive says and whoever changes the directory meanwhile.

mod directory;
mod error;
mod header;
mod owner;
mod pack;
mod reader;
mod sparse;
mod unpack;
mod walk;

pub use error::ArchiveError;
pub use header::{Header, Kind, Segment};
pub use owner::Owners;
pub use pack::{Choice, Packed, check, pack, pack_chosen};
pub use reader::{Entry, Reader};
pub use unpack::{Rules, Unpacked, unpack};
