// SPDX-License-Identifier: Apache-2.0
//! Tests of images as others use them: from registries, directories and archives onto a directory. They run as root.

#![allow(clippy::unwrap_used)]

mod archives;
mod attacks;
mod model;
mod registry;
mod support;
mod unpacking;
