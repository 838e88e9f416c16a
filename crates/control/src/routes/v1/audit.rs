// SPDX-License-Identifier: Apache-2.0
//! The audit log: pages and exports.

use std::io;

use axum::{
    Json,
    body::Body,
    extract::State,
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use chrono::{DateTime, Datelike as _, Utc};
use futures::stream;
use http::{HeaderMap, HeaderName, header};
use wrenn_api::{ActorKind, AuditId, AuditOutcome, AuditRecord, ExportFormat};
use wrenn_rpc::Foreign;

use super::{
    error_responses::{OfAdminLook, OfLook},
    extract::Parameters,
};
use crate::{
    audit::{Audit, Export, Recorded},
    caller::Caller,
    deeds::AuditFilter,
    error::Fault,
    services::Services,
};

const NEXT_CURSOR: HeaderName = HeaderName::from_static("x-next-cursor");
/// Maximum length of the value of a filter.
const VALUE_MAX: usize = 512;

/// Read the audit log of the team, newest first.
///
/// It has every act that changes something, and every sign-in. A walk from page to page skips no record, also while others are written.
/// With several filters, a record passes all of them.
#[utoipa::path(
    get, path = "/v1/audit-logs", operation_id = "listAuditLogs", tag = "audit",
    params(
        ("limit" = Option<u32>, Query, description = "Maximum number of records in the response. Default: 50.", minimum = 1, maximum = 200),
        ("cursor" = Option<String>, Query, description = "The header `x-next-cursor` of the previous page.", pattern = "^au[0-9a-e][0-9a-z]{24}$"),
        ("actor" = Option<String>, Query, description = "List only what this user or API key did, by id.", max_length = 512),
        ("actor_kind" = Option<ActorKind>, Query, description = "List only what actors of this kind did."),
        ("action" = Option<Vec<String>>, Query, description = "List only this action, such as `sandbox.create`. May be repeated up to 32 times.", max_items = 32),
        ("resource" = Option<String>, Query, description = "List only what was done to this, by id.", max_length = 512),
        ("resource_kind" = Option<String>, Query, description = "List only what was done to things of this kind, such as `sandbox`.", max_length = 512),
        ("outcome" = Option<AuditOutcome>, Query, description = "List only what had this outcome."),
        ("from" = Option<DateTime<Utc>>, Query, description = "List only what was done at this time or later.", example = "2026-01-31T09:30:00Z"),
        ("to" = Option<DateTime<Utc>>, Query, description = "List only what was done before this time.", example = "2026-02-01T00:00:00Z"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    responses((status = 200, description = "A page of records.", body = Vec<AuditRecord>,
        headers(("x-next-cursor" = String, description = "Pass it as `cursor` to get the next page; absent on the last page."))), OfLook)
)]
pub(super) async fn list(
    State(services): State<Services>,
    caller: Caller,
    Parameters(parameters): Parameters,
) -> Result<(HeaderMap, Json<Vec<AuditRecord>>), Fault> {
    let Wish { filter, limit, before, .. } = wish(parameters, Kind::Page)?;
    Ok(page(services.audit().list(&caller, &filter, before, limit).await?))
}

/// Read the audit logs of all teams and of the platform, newest first.
#[utoipa::path(
    get, path = "/v1/admin/audit-logs", operation_id = "listPlatformAuditLogs", tag = "platform",
    params(
        ("limit" = Option<u32>, Query, description = "Maximum number of records in the response. Default: 50.", minimum = 1, maximum = 200),
        ("cursor" = Option<String>, Query, description = "The header `x-next-cursor` of the previous page.", pattern = "^au[0-9a-e][0-9a-z]{24}$"),
        ("actor" = Option<String>, Query, description = "List only what this user or API key did, by id.", max_length = 512),
        ("actor_kind" = Option<ActorKind>, Query, description = "List only what actors of this kind did."),
        ("action" = Option<Vec<String>>, Query, description = "List only this action, such as `sandbox.create`. May be repeated up to 32 times.", max_items = 32),
        ("resource" = Option<String>, Query, description = "List only what was done to this, by id.", max_length = 512),
        ("resource_kind" = Option<String>, Query, description = "List only what was done to things of this kind, such as `sandbox`.", max_length = 512),
        ("outcome" = Option<AuditOutcome>, Query, description = "List only what had this outcome."),
        ("from" = Option<DateTime<Utc>>, Query, description = "List only what was done at this time or later.", example = "2026-01-31T09:30:00Z"),
        ("to" = Option<DateTime<Utc>>, Query, description = "List only what was done before this time.", example = "2026-02-01T00:00:00Z"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    responses((status = 200, description = "A page of records.", body = Vec<AuditRecord>,
        headers(("x-next-cursor" = String, description = "Pass it as `cursor` to get the next page; absent on the last page."))), OfAdminLook)
)]
pub(super) async fn list_all(
    State(services): State<Services>,
    caller: Caller,
    Parameters(parameters): Parameters,
) -> Result<(HeaderMap, Json<Vec<AuditRecord>>), Fault> {
    let Wish { filter, limit, before, .. } = wish(parameters, Kind::Page)?;
    Ok(page(services.audit().list_all(&caller, &filter, before, limit).await?))
}

/// Export the audit log of the team, newest first.
///
/// All that the filters pass comes in one response, as JSON lines or as comma-separated values with a line of headings. If something
/// fails amid it, the connection breaks, so that a part is not taken for the whole. In comma-separated values a text that a spreadsheet
/// would take for a formula begins with an apostrophe.
#[utoipa::path(
    get, path = "/v1/audit-logs/export", operation_id = "exportAuditLogs", tag = "audit",
    params(
        ("format" = Option<ExportFormat>, Query, description = "Default: `jsonl`."),
        ("actor" = Option<String>, Query, description = "Export only what this user or API key did, by id.", max_length = 512),
        ("actor_kind" = Option<ActorKind>, Query, description = "Export only what actors of this kind did."),
        ("action" = Option<Vec<String>>, Query, description = "Export only this action, such as `sandbox.create`. May be repeated up to 32 times.", max_items = 32),
        ("resource" = Option<String>, Query, description = "Export only what was done to this, by id.", max_length = 512),
        ("resource_kind" = Option<String>, Query, description = "Export only what was done to things of this kind, such as `sandbox`.", max_length = 512),
        ("outcome" = Option<AuditOutcome>, Query, description = "Export only what had this outcome."),
        ("from" = Option<DateTime<Utc>>, Query, description = "Export only what was done at this time or later.", example = "2026-01-31T09:30:00Z"),
        ("to" = Option<DateTime<Utc>>, Query, description = "Export only what was done before this time.", example = "2026-02-01T00:00:00Z"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    responses((status = 200, description = "The records.", content(
        (String = "application/jsonl", example = "{\"id\":\"au03halx8fdhw2fu3txwbd0kdw0\",\"at\":\"2026-01-31T09:30:02.5Z\",…}\n"),
        (String = "text/csv", example = "id,at,team_id,actor_kind,…\r\nau03halx8fdhw2fu3txwbd0kdw0,2026-01-31T09:30:02.5Z,…\r\n")
    )), OfLook)
)]
pub(super) async fn export(
    State(services): State<Services>,
    caller: Caller,
    Parameters(parameters): Parameters,
) -> Result<Response, Fault> {
    let Wish { filter, format, .. } = wish(parameters, Kind::Export)?;
    let export = services.audit().export(&caller, filter).await?;
    let (kind, name, headings, line): (_, _, _, fn(&AuditRecord) -> String) = match format {
        ExportFormat::Csv => (
            "text/csv; charset=utf-8",
            "attachment; filename=\"audit-log.csv\"",
            Export::HEADINGS,
            Export::csv,
        ),
        ExportFormat::Jsonl => {
            ("application/jsonl", "attachment; filename=\"audit-log.jsonl\"", "", Export::json)
        }
    };
    let parts = stream::try_unfold((export, headings), move |(mut export, headings)| async move {
        let records = export.next().await.map_err(|fault| io::Error::other(fault.to_string()))?;
        let (records, ended) = records.map_or_else(|| (Vec::new(), true), |records| (records, false));
        if ended && headings.is_empty() {
            return Ok::<_, io::Error>(None);
        }
        let mut text = headings.to_owned();
        text.extend(records.iter().map(line));
        Ok(Some((Bytes::from(text), (export, ""))))
    });
    let headers = [(header::CONTENT_TYPE, kind), (header::CONTENT_DISPOSITION, name)];
    Ok((headers, Body::from_stream(parts)).into_response())
}

fn page(recorded: Recorded) -> (HeaderMap, Json<Vec<AuditRecord>>) {
    let mut headers = HeaderMap::new();
    if let Some(Ok(next)) = recorded.next.map(|id| id.to_string().parse()) {
        headers.insert(NEXT_CURSOR, next);
    }
    (headers, Json(recorded.records))
}

/// What the parameters are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Page,
    Export,
}

/// Parameters of the query.
#[derive(Debug, PartialEq, Eq)]
struct Wish {
    filter: AuditFilter,
    limit: u32,
    before: Option<AuditId>,
    format: ExportFormat,
}

fn wish(parameters: Vec<(String, String)>, of: Kind) -> Result<Wish, Fault> {
    let (mut limit, mut before, mut format, mut filter) = (None, None, None, AuditFilter::default());
    for (name, value) in parameters {
        let shown = Foreign(&value);
        if value.len() > VALUE_MAX {
            return Err(Fault::invalid(format!("{name} is longer than {VALUE_MAX} bytes")));
        }
        // PostgreSQL has no such text, and a response that has begun can tell no error.
        if value.contains('\0') {
            return Err(Fault::invalid(format!("{name} has a NUL character, which nothing on record has")));
        }
        let repeated = match (name.as_str(), of) {
            ("limit", Kind::Page) => {
                let parsed = value.parse().ok().filter(|limit| (1..=Audit::MAX).contains(limit));
                let wrong = || Fault::invalid(format!("limit is {shown}: it must be 1 to {}", Audit::MAX));
                limit.replace(parsed.ok_or_else(wrong)?).is_some()
            }
            ("cursor", Kind::Page) => {
                let wrong = |error| Fault::invalid(format!("cursor is {shown}: {error}"));
                before.replace(value.parse::<AuditId>().map_err(wrong)?).is_some()
            }
            ("format", Kind::Export) => {
                let wrong = |()| Fault::invalid(format!("format is {shown}: it must be csv or jsonl"));
                format.replace(value.parse::<ExportFormat>().map_err(wrong)?).is_some()
            }
            ("actor", _) => filter.actor.replace(value).is_some(),
            ("actor_kind", _) => {
                let wrong = |error| Fault::invalid(format!("actor_kind is {shown}: {error}"));
                filter.actor_kind.replace(value.parse::<ActorKind>().map_err(wrong)?).is_some()
            }
            ("action", _) => {
                if filter.actions.len() == Audit::ACTIONS_MAX {
                    let message = format!("action is given more than {} times", Audit::ACTIONS_MAX);
                    return Err(Fault::invalid(message));
                }
                filter.actions.push(value);
                false
            }
            ("resource", _) => filter.resource.replace(value).is_some(),
            ("resource_kind", _) => filter.resource_kind.replace(value).is_some(),
            ("outcome", _) => {
                let all = AuditOutcome::ALL.map(AuditOutcome::as_str).join(", ");
                let wrong = |()| Fault::invalid(format!("outcome is {shown}: it must be one of {all}"));
                filter.outcome.replace(value.parse::<AuditOutcome>().map_err(wrong)?).is_some()
            }
            ("from", _) => filter.from.replace(time("from", &value)?).is_some(),
            ("to", _) => filter.to.replace(time("to", &value)?).is_some(),
            (other, _) => {
                let own = if of == Kind::Page { "limit, cursor" } else { "format" };
                return Err(Fault::invalid(format!(
                    "there is no parameter {}: use {own}, actor, actor_kind, action, resource, resource_kind, outcome, from and to",
                    Foreign(other)
                )));
            }
        };
        if repeated {
            return Err(Fault::invalid(format!("{name} is given twice")));
        }
    }
    Ok(Wish { filter, limit: limit.unwrap_or(Audit::DEFAULT), before, format: format.unwrap_or_default() })
}

fn time(name: &str, text: &str) -> Result<DateTime<Utc>, Fault> {
    // PostgreSQL does not have all times that chrono has.
    let time = text.parse().ok().filter(|time: &DateTime<Utc>| (1..10_000).contains(&time.year()));
    time.ok_or_else(|| {
        Fault::invalid(format!("{name} is {}: it must be a time such as 2026-01-31T09:30:00Z", Foreign(text)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(query: &str, of: Kind) -> Result<Wish, String> {
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let pairs = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        wish(pairs, of).map_err(|error| error.message)
    }

    #[test]
    fn parameters_are_filters() {
        let query = "limit=200&actor=key1&actor_kind=api_key&action=a.b&action=c.d&resource=sb1&resource_kind=sandbox\
                     &outcome=refused&from=2026-01-31T09:30:00Z";
        let wish = parsed(query, Kind::Page).expect("a wish");
        assert_eq!((wish.limit, wish.filter.actions.len()), (200, 2));
        assert_eq!(
            (wish.filter.actor_kind, wish.filter.outcome),
            (Some(ActorKind::ApiKey), Some(AuditOutcome::Refused))
        );
        assert_eq!(parsed("format=csv", Kind::Export).map(|wish| wish.format), Ok(ExportFormat::Csv));
        assert_eq!(
            parsed("", Kind::Page).map(|wish| (wish.limit, wish.filter)),
            Ok((50, AuditFilter::default()))
        );
    }

    #[test]
    fn wrong_parameters_are_named_with_what_they_may_be() {
        for (query, of, message) in [
            ("limit=0", Kind::Page, r#"limit is "0": it must be 1 to 200"#),
            ("limit=1", Kind::Export, r#"there is no parameter "limit": use format, actor, "#),
            ("format=csv", Kind::Page, r#"there is no parameter "format": use limit, cursor, actor, "#),
            ("format=xml", Kind::Export, r#"format is "xml": it must be csv or jsonl"#),
            ("cursor=x", Kind::Page, r#"cursor is "x": "#),
            (
                "actor_kind=robot",
                Kind::Page,
                r#"actor_kind is "robot": the kind of an actor is one of user, "#,
            ),
            ("outcome=done", Kind::Page, r#"outcome is "done": it must be one of succeeded, refused"#),
            ("from=yesterday", Kind::Page, r#"from is "yesterday": it must be a time"#),
            ("to=+262142-01-01T00:00:00Z", Kind::Page, "to is "),
            ("actor=a&actor=a", Kind::Page, "actor is given twice"),
            (&["action=a.b"; 33].join("&"), Kind::Page, "action is given more than 32 times"),
        ] {
            let told = parsed(query, of).err().unwrap_or_default();
            assert!(told.starts_with(message), "{query}: {told}");
        }
    }
}
