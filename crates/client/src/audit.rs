// SPDX-License-Identifier: Apache-2.0
//! Audit log: who did what, newest first, in pages and as a whole.

use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, Utc};
use futures::{Stream, TryStreamExt as _};
use reqwest::Method;
use wrenn_api::{ActorKind, AuditOutcome, AuditRecord, ExportFormat};

use crate::{Client, Error, Result, transport::causes};

/// Time limit of an export, which is as long as the log.
const EXPORT_LIMIT: Duration = Duration::from_secs(3600);

/// Which records are wanted: those that pass all of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditFilter {
    /// Of this user or API key, by id.
    pub actor: Option<String>,
    /// Of actors of this kind.
    pub actor_kind: Option<ActorKind>,
    /// One of these actions. Default: all.
    pub actions: Vec<String>,
    /// Of what was done to this, by id.
    pub resource: Option<String>,
    /// Of what was done to things of this kind.
    pub resource_kind: Option<String>,
    /// With this outcome.
    pub outcome: Option<AuditOutcome>,
    /// Of what was done at this time or later.
    pub from: Option<DateTime<Utc>>,
    /// Of what was done before this time.
    pub to: Option<DateTime<Utc>>,
}

impl AuditFilter {
    fn query(&self) -> Vec<(&'static str, String)> {
        let time = |time: DateTime<Utc>| time.to_rfc3339_opts(SecondsFormat::Micros, true);
        let one = [
            ("actor", self.actor.clone()),
            ("actor_kind", self.actor_kind.map(|kind| kind.as_str().to_owned())),
            ("resource", self.resource.clone()),
            ("resource_kind", self.resource_kind.clone()),
            ("outcome", self.outcome.map(|outcome| outcome.as_str().to_owned())),
            ("from", self.from.map(time)),
            ("to", self.to.map(time)),
        ];
        let one = one.into_iter().filter_map(|(name, value)| Some((name, value?)));
        one.chain(self.actions.iter().map(|action| ("action", action.clone()))).collect()
    }
}

impl Client {
    /// Lists at most `limit` records of the log of the team, newest first, or with [`Client::for_platform`] of the logs of all teams;
    /// also returns the cursor of the ones before them.
    pub async fn audit_logs(
        &self,
        filter: &AuditFilter,
        limit: u32,
        cursor: Option<&str>,
    ) -> Result<(Vec<AuditRecord>, Option<String>)> {
        let path = if self.is_of_platform() { "/v1/admin/audit-logs" } else { "/v1/audit-logs" };
        let mut query = filter.query();
        query.push(("limit", limit.to_string()));
        self.page(path, &query, cursor).await
    }

    /// Exports the log of the team, newest first, as a stream. It ends with an error if it is not whole.
    pub async fn export_audit_logs(
        &self,
        filter: &AuditFilter,
        format: ExportFormat,
    ) -> Result<impl Stream<Item = Result<Bytes>> + Send + Unpin + use<>> {
        let format = match format {
            ExportFormat::Csv => "csv",
            ExportFormat::Jsonl => "jsonl",
        };
        let call = self.request(Method::GET, "/v1/audit-logs/export").timeout(EXPORT_LIMIT);
        let response = self.send(call.query(&filter.query()).query(&[("format", format)])).await?;
        let broken = |error: reqwest::Error| Error::Lost(format!("the export broke off: {}", causes(&error)));
        Ok(Box::pin(response.bytes_stream().map_err(broken)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_its_parameters() {
        assert!(AuditFilter::default().query().is_empty());
        let filter = AuditFilter {
            actor_kind: Some(ActorKind::ApiKey),
            actions: vec!["sandbox.create".to_owned(), "sandbox.delete".to_owned()],
            outcome: Some(AuditOutcome::Refused),
            from: "2026-01-31T09:30:00Z".parse().ok(),
            ..AuditFilter::default()
        };
        let query = filter.query();
        let query: Vec<_> = query.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let expected = [
            ("actor_kind", "api_key"),
            ("outcome", "refused"),
            ("from", "2026-01-31T09:30:00.000000Z"),
            ("action", "sandbox.create"),
            ("action", "sandbox.delete"),
        ];
        assert_eq!(query, expected);
    }
}
