// SPDX-License-Identifier: Apache-2.0
//! Sandboxes: create, list, get, delete.

use axum::{Extension, Json, extract::State};
use http::{HeaderMap, HeaderName, StatusCode};
use wrenn_api::{CreateSandbox, ErrorCode, LabelFilter, Sandbox, SandboxId, SandboxStatus};
use wrenn_rpc::Foreign;

use super::{
    error_responses::{OfCreate, OfDelete, OfGet, OfLook},
    extract::{Body, OptionalKey, Parameters, Target},
};
use crate::{
    admission::InWork,
    caller::Caller,
    deeds::{self, AuditResource},
    error::Fault,
    names,
    routes::dispatch::OlderPath,
    sandboxes::Page,
    services::Services,
};

const NEXT_CURSOR: HeaderName = HeaderName::from_static("x-next-cursor");

/// Create a sandbox.
///
/// The response is sent once the sandbox is ready to run code. Repeating the request with the same `Idempotency-Key` within
/// 24 hours creates nothing and returns the sandbox of the first request as it is now; once that sandbox was deleted, it is
/// rejected with 409 `idempotency_sandbox_deleted`. A different request with the same key is rejected with 409; requests
/// that differ only in their JSON formatting, or in defaults that are written out, are the same. A request that failed can
/// be repeated with its key, and is then tried again.
///
/// With `image` instead of `template` a host imports an image of a registry first, unless it has it: the response may take many
/// minutes then. If the client leaves meanwhile, the import goes on, and no sandbox is created.
#[utoipa::path(
    post, path = "/v1/sandboxes", operation_id = "createSandbox", tag = "sandboxes",
    params(("Idempotency-Key" = Option<String>, Header,
        description = "Any text that is unique to this sandbox, for example a UUID. It makes it safe to repeat the request.",
        min_length = 1, max_length = 255, pattern = "^[!-~]+$", example = "01890a5d-ac96-774b-bcce-b302099a8057")),
    request_body = CreateSandbox,
    responses((status = 201, description = "The sandbox is running.", body = Sandbox), OfCreate)
)]
pub(super) async fn create(
    State(services): State<Services>,
    Extension(in_work): Extension<InWork>,
    caller: Caller,
    OptionalKey(idempotency): OptionalKey,
    body: Body<CreateSandbox>,
) -> Result<(StatusCode, Json<Sandbox>), Fault> {
    if body.value.image.is_some() {
        in_work.exchange(services.state().admission.commands.take(Some(caller.team().uuid()))?);
    }
    let sandbox = services.sandboxes().create(&caller, body.value, idempotency).await?;
    deeds::about(AuditResource::new("sandbox", sandbox.id));
    Ok((StatusCode::CREATED, Json(sandbox)))
}

/// List the team's sandboxes, newest first.
///
/// Without `status`, sandboxes of every status but `stopped` are listed. With several filters, a sandbox passes all of them.
#[utoipa::path(
    get, path = "/v1/sandboxes", operation_id = "listSandboxes", tag = "sandboxes",
    params(
        ("limit" = Option<u32>, Query, description = "Maximum number of sandboxes in the response. Default: 50.", minimum = 1, maximum = 100),
        ("cursor" = Option<String>, Query, description = "The header `x-next-cursor` of the previous page.", pattern = "^sb[0-9a-e][0-9a-z]{24}$"),
        ("status" = Option<Vec<SandboxStatus>>, Query, description = "List only sandboxes of this status; `stopped` lists deleted ones. May be repeated."),
        ("name" = Option<String>, Query, description = "List only the sandbox with this name.", pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"),
        ("template" = Option<String>, Query, description = "List only sandboxes that were created from this template or snapshot, by this name: `web` does not list those from `web:v1`.", pattern = "^[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}(:[a-zA-Z0-9_][a-zA-Z0-9._-]{0,63})?$"),
        ("label" = inline(Option<Vec<LabelFilter>>), Query, description = "List only sandboxes with this label: `NAME=VALUE`, or `NAME` for any value. May be repeated up to 32 times.", max_items = 32),
    ),
    responses((status = 200, description = "A page of sandboxes.", body = Vec<Sandbox>,
        headers(("x-next-cursor" = String, description = "Pass it as `cursor` to get the next page; absent on the last page."))), OfLook)
)]
pub(super) async fn list(
    State(services): State<Services>,
    caller: Caller,
    Parameters(parameters): Parameters,
) -> Result<(HeaderMap, Json<Vec<Sandbox>>), Fault> {
    let listed = services.sandboxes().list(&caller, page(parameters)?).await?;
    let mut headers = HeaderMap::new();
    if let Some(Ok(next)) = listed.next.map(|id| id.to_string().parse()) {
        headers.insert(NEXT_CURSOR, next);
    }
    Ok((headers, Json(listed.sandboxes)))
}

/// Parses the parameters of a list one by one, so that each error names the parameter and its allowed values.
fn page(parameters: Vec<(String, String)>) -> Result<Page, Fault> {
    let (mut limit, mut cursor, mut page) = (None, None, Page::default());
    for (name, value) in parameters {
        let shown = Foreign(&value);
        let repeated = match name.as_str() {
            "limit" => {
                let parsed = value.parse().ok().filter(|limit| (1..=Page::MAX).contains(limit));
                let wrong = || Fault::invalid(format!("limit is {shown}: it must be 1 to {}", Page::MAX));
                limit.replace(parsed.ok_or_else(wrong)?).is_some()
            }
            "cursor" => {
                let wrong = |error| Fault::invalid(format!("cursor is {shown}: {error}"));
                cursor.replace(value.parse::<SandboxId>().map_err(wrong)?).is_some()
            }
            "status" => {
                let all = SandboxStatus::ALL.map(SandboxStatus::as_str).join(", ");
                let wrong = |()| Fault::invalid(format!("status is {shown}: it must be one of {all}"));
                let status = value.parse().map_err(wrong)?;
                if !page.statuses.contains(&status) {
                    page.statuses.push(status);
                }
                false
            }
            "name" => {
                names::check_sandbox_name(&value)?;
                page.name.replace(value).is_some()
            }
            "template" => {
                names::template_reference(&value)?;
                page.template.replace(value).is_some()
            }
            "label" => {
                if page.labels.len() == names::LABELS_MAX {
                    let message = format!("label is given more than {} times", names::LABELS_MAX);
                    return Err(Fault::invalid(message));
                }
                page.labels.push(label(&value)?);
                false
            }
            other => {
                let message = format!(
                    "there is no parameter {}: use limit, cursor, status, name, template and label",
                    Foreign(other)
                );
                return Err(Fault::invalid(message));
            }
        };
        if repeated {
            return Err(Fault::invalid(format!("{name} is given twice")));
        }
    }
    Ok(Page { limit: limit.unwrap_or(page.limit), before: cursor, ..page })
}

/// Parses the filter `NAME=VALUE` or `NAME`.
fn label(text: &str) -> Result<(String, Option<String>), Fault> {
    let (name, value) = text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)));
    names::check_label_name(name)?;
    if let Some(value) = value {
        names::check_label_value(name, value)?;
    }
    Ok((name.to_owned(), value.map(str::to_owned)))
}

/// Get a sandbox.
///
/// A deleted sandbox gives 404; `GET /v1/sandboxes?status=stopped` lists its record. The older path `/v1/capsules/{id}`
/// returns the record, as the clients of that path expect.
#[utoipa::path(
    get, path = "/v1/sandboxes/{id}", operation_id = "getSandbox", tag = "sandboxes",
    params(("id" = String, Path, description = "Id of the sandbox, a beginning of its id that no other has, or its name.", pattern = "^[0-9a-z]([0-9a-z-]{0,61}[0-9a-z])?$", example = "sb03halx8fdhw2fu3txwbd0kdw0")),
    responses((status = 200, description = "The sandbox.", body = Sandbox), OfGet)
)]
pub(super) async fn get(
    State(services): State<Services>,
    older: Option<Extension<OlderPath>>,
    target: Target,
) -> Result<Json<Sandbox>, Fault> {
    let sandbox = services.sandboxes().get(&target.caller, target.id).await?;
    if sandbox.status == SandboxStatus::Stopped && older.is_none() {
        return Err(Fault::new(ErrorCode::NotFound, format!("sandbox {} was deleted", target.id)));
    }
    Ok(Json(sandbox))
}

/// Delete a sandbox and its disk, whatever its status.
///
/// Repeating it is safe. If the host is offline, the sandbox stays in `stopping` and is deleted when the host comes back.
#[utoipa::path(
    delete, path = "/v1/sandboxes/{id}", operation_id = "deleteSandbox", tag = "sandboxes",
    params(("id" = String, Path, description = "Id of the sandbox, a beginning of its id that no other has, or its name.", pattern = "^[0-9a-z]([0-9a-z-]{0,61}[0-9a-z])?$", example = "sb03halx8fdhw2fu3txwbd0kdw0")),
    responses((status = 204, description = "The sandbox is deleted, or will be when its host comes back."), OfDelete)
)]
pub(super) async fn delete(State(services): State<Services>, target: Target) -> Result<StatusCode, Fault> {
    services.sandboxes().destroy(&target.caller, target.id).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(query: &str) -> Result<Page, String> {
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let pairs = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        page(pairs).map_err(|error| error.message)
    }

    #[test]
    fn wrong_parameters_are_named_with_what_they_may_be() {
        assert_eq!(parsed(""), Ok(Page::default()));
        let (statuses, default) = (vec![SandboxStatus::Stopped, SandboxStatus::Error], Page::default());
        let expected = Page { limit: 100, statuses, ..default.clone() };
        assert_eq!(parsed("limit=100&status=stopped&status=error&status=error"), Ok(expected));
        let labels = vec![("a".to_owned(), Some("b=c".to_owned())), ("d".to_owned(), None)];
        let (name, template) = (Some("web".to_owned()), Some("minimal".to_owned()));
        let expected = Page { name, template, labels, ..default };
        assert_eq!(parsed("name=web&template=minimal&label=a=b=c&label=d"), Ok(expected));
        for (query, message) in [
            ("status=nope", r#"status is "nope": it must be one of pending, starting, running"#),
            ("limit=0", r#"limit is "0": it must be 1 to 100"#),
            ("limit=x", r#"limit is "x": it must be 1 to 100"#),
            ("cursor=x", r#"cursor is "x": "#),
            (
                "order=x",
                r#"there is no parameter "order": use limit, cursor, status, name, template and label"#,
            ),
            ("name=Web", "name: the name of a sandbox has 1 to 63"),
            ("template=..", r#"".." is not the name of a template: a name has"#),
            ("label==x", r#"labels: "" cannot be the name of a label"#),
            (&["label=a"; 33].join("&"), "label is given more than 32 times"),
            ("limit=1&limit=1", "limit is given twice"),
        ] {
            let told = parsed(query).err().unwrap_or_default();
            assert!(told.starts_with(message), "{query}: {told}");
        }
    }
}
