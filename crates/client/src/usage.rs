// SPDX-License-Identifier: Apache-2.0
//! What the sandboxes of a team have used, and statistics of those that run.

use reqwest::Method;
use wrenn_api::{Stats, StatsRange, Usage};

use crate::{
    Client, Result,
    transport::{ANSWER_MAX, REQUEST_LIMIT, read_all},
};

/// First and last day of what was used, in the form `2026-01-31`. Without them the server chooses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UsageDays {
    /// First day.
    pub from: Option<String>,
    /// Last day.
    pub to: Option<String>,
}

impl UsageDays {
    fn query(&self) -> Vec<(&'static str, &str)> {
        let from = self.from.iter().map(|day| ("from", day.as_str()));
        from.chain(self.to.iter().map(|day| ("to", day.as_str()))).collect()
    }
}

impl Client {
    /// Returns what the team's sandboxes have used, day by day.
    pub async fn usage(&self, days: &UsageDays) -> Result<Usage> {
        let call = self.request(Method::GET, "/v1/usage").timeout(REQUEST_LIMIT).query(&days.query());
        self.json(call, ANSWER_MAX).await
    }

    /// Returns what the team's sandboxes have used, day by day, as comma-separated values.
    pub async fn usage_csv(&self, days: &UsageDays) -> Result<String> {
        let call = self.request(Method::GET, "/v1/usage").timeout(REQUEST_LIMIT).query(&days.query());
        let response = self.send(call.query(&[("format", "csv")])).await?;
        Ok(String::from_utf8_lossy(&read_all(response, ANSWER_MAX).await?).into_owned())
    }

    /// Returns statistics of the team's sandboxes that run.
    pub async fn stats(&self, range: StatsRange) -> Result<Stats> {
        let call =
            self.request(Method::GET, "/v1/stats").timeout(REQUEST_LIMIT).query(&[("range", range.as_str())]);
        self.json(call, ANSWER_MAX).await
    }
}
