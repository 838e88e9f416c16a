// SPDX-License-Identifier: Apache-2.0
//! Metrics of sandboxes.

use reqwest::Method;
use wrenn_api::{MetricsRange, SandboxId, SandboxMetrics};

use crate::{
    Client, Result,
    transport::{ANSWER_MAX, REQUEST_LIMIT},
};

impl Client {
    /// Returns what a sandbox has used, which runs or is paused.
    pub async fn metrics(&self, id: SandboxId, range: MetricsRange) -> Result<SandboxMetrics> {
        let path = format!("/v1/sandboxes/{id}/metrics?range={}", range.as_str());
        self.json(self.request(Method::GET, &path).timeout(REQUEST_LIMIT), ANSWER_MAX).await
    }
}
