//! Volumes with device-mapper: a read-only image and a file with the changes of one sandbox.

pub(crate) mod ioctl;
mod mapper;
pub(crate) mod store;
pub(crate) mod table;
