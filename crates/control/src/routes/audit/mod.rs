// SPDX-License-Identifier: Apache-2.0
//! The layer that records what requests do: every operation that changes something, connections that run something, and sign-ins. The
//! record is written before the response is sent, and also if the client does not wait for it.

mod actions;

use std::{borrow::Cow, collections::HashMap, sync::Arc};

use axum::{
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::Response,
};
use http::{Method, StatusCode};
use percent_encoding::percent_decode_str;
use utoipa::openapi::OpenApi;
use wrenn_api::{AuditOutcome, TeamId};

use self::actions::action;
use super::came_from::CameFrom;
use crate::{
    by::By,
    caller::Caller,
    deeds::{AuditResource, Deed, Notes, noted},
    error::Fault,
    request_trace,
    services::Services,
};

/// What the layer records: the action of each operation, by its method and route.
#[derive(Clone)]
pub(super) struct Recorder {
    services: Services,
    actions: Arc<HashMap<(Method, String), Cow<'static, str>>>,
}

impl Recorder {
    /// Creates it from the document of all operations.
    pub(super) fn new(services: Services, document: &OpenApi) -> Self {
        Self { services, actions: Arc::new(actions(document)) }
    }
}

/// Returns the action of each operation that is recorded.
pub(super) fn actions(document: &OpenApi) -> HashMap<(Method, String), Cow<'static, str>> {
    let mut found = HashMap::new();
    for (path, item) in &document.paths.paths {
        let all = [
            (Method::GET, &item.get),
            (Method::POST, &item.post),
            (Method::PUT, &item.put),
            (Method::PATCH, &item.patch),
            (Method::DELETE, &item.delete),
        ];
        for (method, operation) in all {
            let id = operation.as_ref().and_then(|operation| operation.operation_id.as_deref());
            if let Some(action) = id.and_then(|id| action(&method, id)) {
                found.insert((method, path.clone()), action);
            }
        }
    }
    found
}

/// Records what a request does.
pub(super) async fn record(State(recorder): State<Recorder>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    let Some(action) = recorder.actions.get(&(request.method().clone(), route.to_owned())) else {
        return next.run(request).await;
    };
    let team = team_of_path(route, request.uri().path());
    let mut pending = Pending::new(&recorder.services, begun(&request, route, action.clone()));
    let mut response = noted(pending.notes.clone(), next.run(request)).await;
    let made = response.extensions_mut().remove::<AuditResource>().or_else(|| left(&response));
    let Some(mut deed) = pending.end(made) else { return response };
    let (status, code) = (response.status(), response.extensions().get::<Fault>().map(|fault| fault.code));
    // A path may name any team, also one that the caller has nothing to do with: for them it does not exist.
    if let Some(team) = team.filter(|_| status != StatusCode::NOT_FOUND) {
        deed.team = team;
    }
    let outcome = match status.as_u16() {
        // A sign-in by a provider is refused by a redirection.
        300..400 if code.is_some() => AuditOutcome::Refused,
        ..400 => AuditOutcome::Succeeded,
        400..500 => AuditOutcome::Refused,
        _ => AuditOutcome::Failed,
    };
    let (services, deed) = (recorder.services, deed.with_outcome(outcome, code));
    // By a task of its own, which goes on if the client goes away now. If it panicked, it said so.
    let _ = tokio::spawn(async move { services.state().record(deed).await }).await;
    response
}

/// Returns the sandbox that a failed create leaves.
fn left(response: &Response) -> Option<AuditResource> {
    let id = response.extensions().get::<Fault>()?.sandbox_id?;
    Some(AuditResource::new("sandbox", id))
}

/// Returns the deed that a request begins.
fn begun(request: &Request, route: &str, action: Cow<'static, str>) -> Deed {
    let caller = request.extensions().get::<Caller>();
    let (by, team) = match caller {
        Some(caller) => (By::caller(caller), caller.team()),
        None => (By::VISITOR, TeamId::NONE),
    };
    // What administrators of the platform do is in its log, unless the handler names a team.
    let team = if route.starts_with("/v1/admin/") { TeamId::PLATFORM } else { team };
    let mut deed = Deed::new(by, team, action);
    deed.address = request.extensions().get::<CameFrom>().and_then(|from| from.address);
    deed.request_id = request_trace::request_id().and_then(|id| id.to_str().ok().map(str::to_owned));
    deed.resource = of_path(route, request.uri().path());
    deed
}

/// A deed whose outcome is not known yet. If this is dropped, because the client went away, it is recorded so.
struct Pending {
    services: Services,
    deed: Option<Deed>,
    notes: Notes,
}

impl Pending {
    fn new(services: &Services, deed: Deed) -> Self {
        Self { services: services.clone(), deed: Some(deed), notes: Notes::default() }
    }

    /// Returns the deed with all that is known at its end: what the handler has made, and what was noted.
    fn end(&mut self, made: Option<AuditResource>) -> Option<Deed> {
        let mut deed = self.deed.take()?;
        let noted = self.notes.take();
        if let Some((who, team)) = noted.who {
            (deed.who, deed.team) = (who, team);
        }
        match made.or(noted.resource) {
            Some(resource) => Some(deed.on(resource)),
            None => Some(deed),
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let (Some(deed), Ok(runtime)) = (self.end(None), tokio::runtime::Handle::try_current()) else {
            return;
        };
        let services = self.services.clone();
        runtime.spawn(async move {
            services.state().record(deed.with_outcome(AuditOutcome::Unknown, None)).await;
        });
    }
}

/// Returns the team that the path names.
fn team_of_path(route: &str, path: &str) -> Option<TeamId> {
    route.strip_prefix("/v1/teams/{id}").filter(|rest| rest.is_empty() || rest.starts_with('/'))?;
    path.split('/').nth(3)?.parse().ok()
}

/// Returns what the path names: the first parameter, but of what belongs to a team or a user the one after it.
fn of_path(route: &str, path: &str) -> Option<AuditResource> {
    let (route, path): (Vec<&str>, Vec<&str>) = (route.split('/').collect(), path.split('/').collect());
    let is_parameter = |part: &str| part.starts_with('{');
    let parameters: Vec<usize> = (1..route.len()).filter(|place| is_parameter(route[*place])).collect();
    let first = *parameters.first()?;
    let nested = route[first - 1] == "teams";
    let place = parameters.get(1).copied().filter(|_| nested).unwrap_or(first);
    let id = percent_decode_str(path.get(place)?).decode_utf8_lossy();
    Some(AuditResource::new(kind(route[place - 1]), id))
}

/// Returns the kind of thing that a part of a path is the collection of.
fn kind(collection: &str) -> String {
    let one = match collection.strip_suffix("ies") {
        Some(one) => format!("{one}y"),
        None => collection.strip_suffix('s').unwrap_or(collection).to_owned(),
    };
    match one.strip_suffix("xe") {
        Some(one) => format!("{one}x"),
        None => one.replace('-', "_"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_what_something_is_done_to() {
        let of = |route: &str, path: &str| of_path(route, path);
        let is = |kind: &'static str, id: &str| Some(AuditResource::new(kind, id));
        assert_eq!(of("/v1/sandboxes/{id}/exec", "/v1/sandboxes/web/exec"), is("sandbox", "web"));
        let process = "/v1/sandboxes/{id}/processes/{selector}";
        assert_eq!(of(process, "/v1/sandboxes/web/processes/12"), is("sandbox", "web"));
        assert_eq!(of("/v1/api-keys/{id}", "/v1/api-keys/x"), is("api_key", "x"));
        assert_eq!(
            of("/v1/templates/{name}/tags/{tag}", "/v1/templates/a%2Fb/tags/c"),
            is("template", "a/b")
        );
        assert_eq!(of("/v1/teams/{id}/members/{user_id}", "/v1/teams/a/members/b"), is("member", "b"));
        assert_eq!(of("/v1/teams/{id}/leave", "/v1/teams/a/leave"), is("team", "a"));
        let delivery = "/v1/channels/{id}/deliveries/{delivery}/redeliver";
        assert_eq!(of(delivery, "/v1/channels/a/deliveries/b/redeliver"), is("channel", "a"));
        assert_eq!(of("/v1/sandboxes", "/v1/sandboxes"), None);
        assert_eq!(kind("deliveries"), "delivery");
    }

    #[test]
    fn a_path_names_its_team() {
        let team = TeamId::new();
        assert_eq!(team_of_path("/v1/teams/{id}/leave", &format!("/v1/teams/{team}/leave")), Some(team));
        assert_eq!(team_of_path("/v1/teams/{id}", &format!("/v1/teams/{team}")), Some(team));
        assert_eq!(team_of_path("/v1/teams", "/v1/teams"), None);
        assert_eq!(team_of_path("/v1/sandboxes/{id}", &format!("/v1/sandboxes/{team}")), None);
    }
}
