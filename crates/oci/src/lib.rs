// SPDX-License-Identifier: Apache-2.0
//! Container images in the formats of OCI and Docker. An image is named by a [`Reference`], found in an [`ImageSource`] (a
//! registry, a directory, an uploaded archive), resolved to one [`Image`] for a [`Platform`], and its layers are unpacked
//! by [`unpack()`] onto a directory.
//!
//! Everything in an image is input of a stranger. What is read is compared with its SHA-256 digest, whatever can grow has
//! a limit, and no path of a layer leads out of the directory. Unpacking is synchronous and meant for a process of its own,
//! which needs the capabilities `CHOWN`, `DAC_OVERRIDE`, `FOWNER`, `FSETID`, `SETFCAP` and, for devices, `MKNOD`.

mod beneath;
mod config;
mod decompress;
mod digest;
mod manifest;
mod platform;
mod reference;
mod source;
mod tar;
mod text;
mod unpack;
mod users;

pub use config::ImageConfig;
pub use decompress::decompress;
pub use digest::{Digest, DigestError};
pub use manifest::{Descriptor, Document, Index, Manifest};
pub use platform::{Platform, PlatformError};
pub use reference::{Reference, ReferenceError};
pub use source::{
    Blob, Found, Image, ImageSource, SourceError,
    local::LocalImage,
    registry::{Credentials, Registry, RegistryOptions},
};
pub use unpack::{Layer, Limits, Progress, Rules, Skipped, Unpacked, error::UnpackError, unpack};
pub use users::{User, UserError, resolve_user};
