// SPDX-License-Identifier: Apache-2.0
//! Metadata of sandboxes, from what their agents report.

use std::collections::BTreeMap;

use wrenn_rpc::host::v1::{Sandbox as OnHost, StepTiming};

use super::lookup::cut;

/// Maximum number of an agent's metadata for a sandbox, and their maximum length in bytes.
const MAX: usize = 64;
const TEXT_MAX: usize = 256;

/// Returns the metadata that an agent reports of a sandbox, and the durations of the steps of an operation, within
/// the limits.
pub(super) fn of(sandbox: OnHost, operation: &str, timings: Vec<StepTiming>) -> BTreeMap<String, String> {
    let timings = timings.into_iter().map(|timing| {
        (format!("{operation}_{}_ms", timing.step), format!("{:.1}", timing.micros as f64 / 1000.0))
    });
    let all = sandbox.metadata.into_iter().chain(timings).take(MAX);
    all.map(|(name, value)| (cut(&name, TEXT_MAX), cut(&value, TEXT_MAX))).collect()
}
