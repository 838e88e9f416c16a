// SPDX-License-Identifier: Apache-2.0
//! Tests of contexts as builds use them: archives in all formats, hostile ones, what is kept, and what a COPY takes.

#![allow(clippy::unwrap_used)]

mod archives;
mod attacks;
mod kept;
mod properties;
mod selecting;
mod support;
