// SPDX-License-Identifier: Apache-2.0
//! Timeouts of sandboxes.

use crate::error::Fault;

/// Maximum timeout of a sandbox, in seconds: a year.
const MAX: u32 = 31_536_000;

/// Checks a timeout in seconds; 0 is none.
pub(super) fn check(seconds: Option<u32>) -> Result<Option<u32>, Fault> {
    match seconds {
        Some(long) if long > MAX => {
            Err(Fault::invalid(format!("timeout_sec is {long}: it must be 0 to {MAX}")))
        }
        seconds => Ok(seconds),
    }
}
