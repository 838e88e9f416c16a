// SPDX-License-Identifier: Apache-2.0
//! Hosts, and sandboxes and templates of all teams, for administrators of the platform.

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
};
use http::{HeaderMap, StatusCode};
use wrenn_api::{AdminHost, AdminSandbox, AdminTemplate, SandboxStatus, TeamId};
use wrenn_rpc::Foreign;

use super::{
    error_responses::{OfAdminCancelBuild, OfAdminLook},
    extract::Parameters,
    paging,
};
use crate::{caller::Caller, error::Fault, platform::SandboxFilter, services::Services};

/// List all hosts, by id.
#[utoipa::path(
    get, path = "/v1/admin/hosts", operation_id = "listHosts", tag = "platform",
    params(
        ("limit" = Option<u32>, Query, description = "Maximum number of hosts in the response. Default: 50.", minimum = 1, maximum = 100),
        ("cursor" = Option<String>, Query, description = "The header `x-next-cursor` of the previous page.", pattern = "^host[0-9a-e][0-9a-z]{24}$"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    responses((status = 200, description = "A page of hosts.", body = Vec<AdminHost>,
        headers(("x-next-cursor" = String, description = "Pass it as `cursor` to get the next page; absent on the last page."))), OfAdminLook)
)]
pub(super) async fn hosts(
    State(services): State<Services>,
    caller: Caller,
    parameters: Parameters,
) -> Result<(HeaderMap, Json<Vec<AdminHost>>), Fault> {
    let [limit, cursor] = parameters.known(["limit", "cursor"])?;
    let (limit, after) = (paging::limit(limit.as_deref())?, paging::id("cursor", cursor.as_deref())?);
    let (hosts, next) = services.platform().hosts(&caller, after, limit).await?;
    Ok(paging::page(hosts, next))
}

/// List sandboxes of all teams, newest first.
///
/// Without `status`, sandboxes of every status but `stopped` are listed. With several filters, a sandbox passes all of them.
#[utoipa::path(
    get, path = "/v1/admin/sandboxes", operation_id = "listPlatformSandboxes", tag = "platform",
    params(
        ("limit" = Option<u32>, Query, description = "Maximum number of sandboxes in the response. Default: 50.", minimum = 1, maximum = 100),
        ("cursor" = Option<String>, Query, description = "The header `x-next-cursor` of the previous page.", pattern = "^sb[0-9a-e][0-9a-z]{24}$"),
        ("team" = Option<String>, Query, description = "List only sandboxes of this team.", pattern = "^team[0-9a-e][0-9a-z]{24}$"),
        ("host" = Option<String>, Query, description = "List only sandboxes on this host.", pattern = "^host[0-9a-e][0-9a-z]{24}$"),
        ("status" = Option<SandboxStatus>, Query, description = "List only sandboxes of this status; `stopped` lists deleted ones."),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    responses((status = 200, description = "A page of sandboxes.", body = Vec<AdminSandbox>,
        headers(("x-next-cursor" = String, description = "Pass it as `cursor` to get the next page; absent on the last page."))), OfAdminLook)
)]
pub(super) async fn sandboxes(
    State(services): State<Services>,
    caller: Caller,
    parameters: Parameters,
) -> Result<(HeaderMap, Json<Vec<AdminSandbox>>), Fault> {
    let [limit, cursor, team, host, status] =
        parameters.known(["limit", "cursor", "team", "host", "status"])?;
    let (limit, before) = (paging::limit(limit.as_deref())?, paging::id("cursor", cursor.as_deref())?);
    let parse = |text: &String| {
        let all = SandboxStatus::ALL.map(SandboxStatus::as_str).join(", ");
        let wrong = |()| Fault::invalid(format!("status is {}: it must be one of {all}", Foreign(text)));
        text.parse().map_err(wrong)
    };
    let filter = SandboxFilter {
        team: paging::id("team", team.as_deref())?,
        host: paging::id("host", host.as_deref())?,
        status: status.as_ref().map(parse).transpose()?,
    };
    let (sandboxes, next) = services.platform().sandboxes(&caller, filter, before, limit).await?;
    Ok(paging::page(sandboxes, next))
}

/// Delete a sandbox of any team, as `deleteSandbox` does.
#[utoipa::path(
    delete, path = "/v1/admin/sandboxes/{id}", operation_id = "deletePlatformSandbox", tag = "platform",
    params(
        ("id" = String, Path, description = "Id of the sandbox.", pattern = "^sb[0-9a-e][0-9a-z]{24}$", example = "sb03halx8fdhw2fu3txwbd0kdw0"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    responses((status = 204, description = "The sandbox is deleted, or will be when its host comes back."), OfAdminCancelBuild)
)]
pub(super) async fn delete_sandbox(
    State(services): State<Services>,
    caller: Caller,
    id: Result<Path<String>, PathRejection>,
) -> Result<StatusCode, Fault> {
    services.platform().delete_sandbox(&caller, paging::id_in_path("sandbox", id)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// List templates that teams and the platform have built, each by its newest version, by team and name.
#[utoipa::path(
    get, path = "/v1/admin/templates", operation_id = "listPlatformTemplates", tag = "platform",
    params(
        ("limit" = Option<u32>, Query, description = "Maximum number of templates in the response. Default: 50.", minimum = 1, maximum = 100),
        ("cursor" = Option<String>, Query, description = "The header `x-next-cursor` of the previous page.", pattern = "^team[0-9a-e][0-9a-z]{24}/[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}$"),
        ("team" = Option<String>, Query, description = "List only templates of this team.", pattern = "^team[0-9a-e][0-9a-z]{24}$"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    responses((status = 200, description = "A page of templates.", body = Vec<AdminTemplate>,
        headers(("x-next-cursor" = String, description = "Pass it as `cursor` to get the next page; absent on the last page."))), OfAdminLook)
)]
pub(super) async fn templates(
    State(services): State<Services>,
    caller: Caller,
    parameters: Parameters,
) -> Result<(HeaderMap, Json<Vec<AdminTemplate>>), Fault> {
    let [limit, cursor, team] = parameters.known(["limit", "cursor", "team"])?;
    let (limit, team) = (paging::limit(limit.as_deref())?, paging::id("team", team.as_deref())?);
    let after = cursor.as_deref().map(template_cursor).transpose()?;
    let (templates, next) = services.platform().templates(&caller, team, after, limit).await?;
    Ok(paging::page(templates, next.map(|(team, name)| format!("{team}/{name}"))))
}

/// Parses the cursor of a list of templates: a team and a name.
fn template_cursor(text: &str) -> Result<(TeamId, String), Fault> {
    let parsed = text.split_once('/').and_then(|(team, name)| Some((team.parse().ok()?, name.to_owned())));
    let wrong = || {
        let message = format!("cursor is {}: take it from the page before, or leave it out", Foreign(text));
        Fault::invalid(message)
    };
    parsed.ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_of_templates_is_a_team_and_a_name() {
        let team = TeamId::new();
        assert_eq!(template_cursor(&format!("{team}/web")).ok(), Some((team, "web".to_owned())));
        for wrong in ["", "web", "/web", &team.to_string()] {
            assert!(template_cursor(wrong).is_err(), "{wrong}");
        }
    }
}
