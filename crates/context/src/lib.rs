// SPDX-License-Identifier: Apache-2.0
//! What builds of templates copy from. A client uploads an archive; [`Contexts`] checks it, keeps its files by their digest,
//! and gives a [`Context`], from which a `COPY` takes a [`Selection`], which is packed for the sandbox. All of it blocks.
//!
//! An archive is input of a stranger. It is a tar archive, also compressed with gzip, or a zip archive; which one is told by
//! its first bytes. Nothing of it is unpacked into a file system, and whatever can grow has a limit in [`Limits`]. Names are
//! relative to the context: as `tar` does, leading `/` and `./` are dropped, and a `..` is refused. Files, directories and
//! symbolic links whose target stays in the context are taken; a hard link becomes a file of its own. Of several entries with
//! one name the last counts. Only permission bits are kept of a mode.
//!
//! The digest of a context says what is in it: names, permission bits, contents and targets of links. It says nothing of
//! times, of owners, of the order in the archive, or of its format.

mod archive;
mod context;
mod error;
mod hash;
mod intake;
mod limits;
mod name;
mod pattern;
mod select;
mod selection;
mod store;
mod tree;
mod writer;

pub use context::Context;
pub use error::{ContextError, SelectError};
pub use limits::Limits;
pub use selection::Selection;
pub use store::Contexts;
