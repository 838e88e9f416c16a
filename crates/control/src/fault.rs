// SPDX-License-Identifier: Apache-2.0
//! Fault points of the server, at which a test kills it.

/// Kills the process if a test armed the point `server.NAME`; the name is `OPERATION.STEP`.
pub(crate) fn point(name: &str) {
    if let Some((operation, step)) = name.split_once('.') {
        wrenn_os::fault::point("server", operation, step);
    }
}
