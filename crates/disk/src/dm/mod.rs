// SPDX-License-Identifier: Apache-2.0
//! Volumes with device-mapper: a read-only image and a file with the changes of one sandbox.

pub(crate) mod ioctl;
mod locks;
mod mapper;
pub(crate) mod numbers;
mod records;
pub(crate) mod store;
pub(crate) mod table;
