// SPDX-License-Identifier: Apache-2.0
//! Tar archives of images, read as streams: the formats of V7, POSIX (ustar, pax) and GNU, with devices, extended attributes
//! and sparse files. `wrenn-archive` reads what people pack, and takes less.

mod attributes;
mod header;
mod reader;

pub(crate) use header::{Header, Kind};
pub(crate) use reader::{Bounds, Entry, Reader, TarError};
