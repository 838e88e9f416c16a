//! Volumes by device-mapper: a read-only image, and a file with what one sandbox changed of it.

pub(crate) mod ioctl;
mod mapper;
pub(crate) mod store;
pub(crate) mod table;
