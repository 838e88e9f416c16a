// SPDX-License-Identifier: Apache-2.0
//! Usage and statistics of the team.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse as _, Response},
};
use chrono::{Datelike as _, NaiveDate};
use http::header;
use wrenn_api::{Stats, StatsRange, Usage};
use wrenn_rpc::Foreign;

use super::{error_responses::OfLook, extract::Parameters};
use crate::{caller::Caller, error::Fault, services::Services, usage};

/// Get what the team's sandboxes have used, day by day.
///
/// Virtual CPUs and memory count while a sandbox runs, and until it is paused; the disk from the creation to the deletion. Amounts follow
/// from the changes of each sandbox's status, and are exact to the second. Days are those of UTC.
#[utoipa::path(
    get, path = "/v1/usage", operation_id = "getUsage", tag = "usage",
    params(
        ("from" = Option<NaiveDate>, Query, description = "First day. Default: 29 days before `to`.", example = "2026-01-01"),
        ("to" = Option<NaiveDate>, Query, description = "Last day; at most 366 days together. Default: today.", example = "2026-01-31"),
        ("format" = Option<String>, Query, description = "`json` or `csv`: comma-separated values with a line of headings. Default: `json`.", pattern = "^(json|csv)$"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    responses((status = 200, description = "What was used.", content(
        (Usage = "application/json"),
        (String = "text/csv", example = "date,vcpu_seconds,memory_mb_seconds,disk_mb_seconds\r\n2026-01-31,7320,3747840,442368000\r\n")
    )), OfLook)
)]
pub(super) async fn read(
    State(services): State<Services>,
    caller: Caller,
    parameters: Parameters,
) -> Result<Response, Fault> {
    let [from, to, format] = parameters.known(["from", "to", "format"])?;
    let from = from.map(|text| date("from", &text)).transpose()?;
    let to = to.map(|text| date("to", &text)).transpose()?;
    let csv = match format.as_deref() {
        None | Some("json") => false,
        Some("csv") => true,
        Some(other) => {
            return Err(Fault::invalid(format!("format is {}: it must be json or csv", Foreign(other))));
        }
    };
    let used = services.usage().read(&caller, from, to).await?;
    if !csv {
        return Ok(Json(used).into_response());
    }
    let headers = [
        (header::CONTENT_TYPE, "text/csv; charset=utf-8"),
        (header::CONTENT_DISPOSITION, "attachment; filename=\"usage.csv\""),
    ];
    Ok((headers, usage::Usage::csv(&used)).into_response())
}

/// Get statistics of the team's sandboxes that run.
///
/// How many run now and what they have, the most of the last 30 days, and the most in each part of the range.
#[utoipa::path(
    get, path = "/v1/stats", operation_id = "getStats", tag = "usage",
    params(
        ("range" = Option<StatsRange>, Query, description = "How far the series goes back. Default: `1h`."),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    responses((status = 200, description = "The statistics.", body = Stats), OfLook)
)]
pub(super) async fn stats(
    State(services): State<Services>,
    caller: Caller,
    parameters: Parameters,
) -> Result<Json<Stats>, Fault> {
    let [range] = parameters.known(["range"])?;
    let range = range.map_or(Ok(StatsRange::default()), |text| {
        text.parse().map_err(|()| {
            let all = StatsRange::ALL.map(StatsRange::as_str).join(", ");
            Fault::invalid(format!("range is {}: it must be one of {all}", Foreign(&text)))
        })
    })?;
    Ok(Json(services.usage().stats(&caller, range).await?))
}

fn date(name: &str, text: &str) -> Result<NaiveDate, Fault> {
    let date = text.parse().ok().filter(|date: &NaiveDate| (2000..10_000).contains(&date.year()));
    date.ok_or_else(|| {
        Fault::invalid(format!("{name} is {}: it must be a day such as 2026-01-31", Foreign(text)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_days() {
        assert!(date("from", "2026-01-31").is_ok());
        for text in ["", "2026-02-30", "31.1.2026", "+262142-01-01", "1999-12-31", "2026-01-31T00:00:00Z"] {
            let told = date("from", text).map_err(|fault| fault.message);
            assert!(told.is_err_and(|told| told.contains("it must be a day such as")), "{text}");
        }
    }
}
