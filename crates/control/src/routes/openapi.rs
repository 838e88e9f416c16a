// SPDX-License-Identifier: Apache-2.0
//! The OpenAPI 3.1 document, made from the handlers, and its viewer.

use std::sync::Arc;

use axum::{
    Router,
    extract::Path,
    response::{IntoResponse, Redirect, Response},
    routing::get,
};
use http::{HeaderName, HeaderValue, StatusCode, header};
use utoipa::{
    OpenApi as _,
    openapi::{
        OpenApi, RefOr, Schema,
        path::{Operation, ParameterIn},
        schema::{SchemaType, Type},
    },
};
use utoipa_swagger_ui::Config;
use wrenn_api::{
    BuildLogEntry, ChannelEvent, ErrorBody, Event, ExecClientFrame, ExecServerFrame, ExportFormat,
    FileWatchFrame, TerminalClientFrame, TerminalServerFrame,
};

use super::{
    permission::{operations, schemes},
    v1::error_responses,
};
use crate::services::Services;

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Wrenn",
        description = "Runs untrusted code in microVMs. Every error response has the body `{\"error\":{\"code\",\"message\"}}`.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    servers(
        (url = "/", description = "The server that this document comes from."),
        (url = "http://127.0.0.1:9725", description = "The default address of `wrenn up`."),
    ),
    components(schemas(
        BuildLogEntry, ChannelEvent, ErrorBody, Event, ExecClientFrame, ExecServerFrame, ExportFormat, FileWatchFrame,
        TerminalClientFrame, TerminalServerFrame
    )),
    tags(
        (name = "sandboxes", description = "Sandboxes: microVMs with a disk and a network of their own."),
        (name = "commands", description = "Commands in sandboxes."),
        (name = "ports", description = "Ports of sandboxes, through the proxy or by API key."),
        (name = "files", description = "Files in sandboxes."),
        (name = "snapshots", description = "Named snapshots of sandboxes."),
        (name = "templates", description = "Templates: what sandboxes are created from."),
        (name = "builds", description = "Builds of templates from recipes."),
        (name = "images", description = "Images that teams upload, and those of registries that hosts have for them."),
        (name = "teams", description = "Teams: members, invitations and quotas."),
        (name = "platform", description = "For administrators of the platform: its templates, which all teams can use, and users, teams, hosts and \
            sandboxes."),
        (name = "audit", description = "The audit log: who did what."),
        (name = "usage", description = "What a team has used, and statistics."),
        (name = "events", description = "Events of sandboxes, named snapshots and hosts."),
        (name = "accounts", description = "Users: sign-up, sign-in, passwords and sessions."),
        (name = "keys", description = "API keys of the team, for programs."),
        (name = "channels", description = "Channels, to which events of the team are delivered."),
        (name = "service", description = "The control plane itself."),
    )
)]
struct Frame;

/// Completes the OpenAPI document, from those of the open and of the protected routes.
pub(super) fn document(mut open: OpenApi, protected: OpenApi) -> OpenApi {
    let mut document = Frame::openapi();
    for operation in operations(&mut open.paths) {
        operation.security = Some(Vec::new());
    }
    document.merge(open);
    document.merge(protected);
    for operation in operations(&mut document.paths) {
        forbid_null_in_headers(operation);
    }
    let components = document.components.get_or_insert_default();
    for (name, scheme) in schemes() {
        components.add_security_scheme(name, scheme);
    }
    let examples = error_responses::examples().map(|(name, example)| (name, RefOr::T(example)));
    components.examples = examples.collect();
    document
}

/// Removes the type `null`, which an `Option` brings, from headers: they are absent or text.
fn forbid_null_in_headers(operation: &mut Operation) {
    for parameter in operation.parameters.iter_mut().flatten() {
        let RefOr::T(parameter) = parameter else { continue };
        if parameter.parameter_in == ParameterIn::Header
            && let Some(RefOr::T(Schema::Object(object))) = &mut parameter.schema
            && let SchemaType::Array(types) = &mut object.schema_type
        {
            types.retain(|kind| *kind != Type::Null);
            if let [only] = types.as_slice() {
                object.schema_type = SchemaType::Type(only.clone());
            }
        }
    }
}

/// Serves the document as JSON and YAML, and its viewer, for browsers that reach the server at this path.
pub(super) fn routes(document: &OpenApi, public_path: &str) -> Router<Services> {
    let mut document = document.clone();
    if let Some(own) = document.servers.iter_mut().flatten().next()
        && !public_path.is_empty()
    {
        public_path.clone_into(&mut own.url);
    }
    let json = document.to_json().unwrap_or_default();
    let yaml = document.to_yaml().unwrap_or_default();
    let served = |kind: &'static str, text: String| {
        get(async move || ([(header::CONTENT_TYPE, kind)], text).into_response())
    };
    Router::new()
        .route("/openapi.json", served("application/json", json))
        .route("/openapi.yaml", served("application/yaml", yaml))
        .merge(viewer())
}

/// Serves Swagger UI at `/docs`, without the bar that offers to open other documents.
fn viewer() -> Router<Services> {
    // Paths are relative, as in its files.
    let config = Config::from("../openapi.json").use_base_layout().persist_authorization(true);
    let config = Arc::new(config.display_operation_id(true).try_it_out_enabled(true));
    let first = config.clone();
    Router::new()
        .route("/docs", get(async || Redirect::to("docs/")))
        .route("/docs/", get(async move || viewer_file("index.html", first)))
        .route("/docs/{*file}", get(async move |Path(file): Path<String>| viewer_file(&file, config)))
        .layer(axum::middleware::map_response(async |mut response: Response| {
            for (name, value) in VIEWER_HEADERS {
                response.headers_mut().insert(name, HeaderValue::from_static(value));
            }
            response
        }))
}

fn viewer_file(name: &str, config: Arc<Config<'static>>) -> Response {
    const TITLE: &str = "<title>Wrenn API</title>";
    match utoipa_swagger_ui::serve(name, config) {
        Ok(Some(file)) if name == "index.html" => {
            let page = String::from_utf8_lossy(&file.bytes).replace("<title>Swagger UI</title>", TITLE);
            ([(header::CONTENT_TYPE, file.content_type)], page).into_response()
        }
        Ok(Some(file)) => {
            ([(header::CONTENT_TYPE, file.content_type)], file.bytes.into_owned()).into_response()
        }
        Ok(None) => StatusCode::NOT_FOUND.into_response(),
        Err(error) => {
            tracing::error!(%error, "cannot serve a file of Swagger UI");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// Security headers of the viewer: it may only load from and call this server, and must not be framed.
const VIEWER_HEADERS: [(HeaderName, &str); 3] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
         font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;
    use crate::routes::Routes;

    fn document() -> OpenApi {
        Routes::new(Vec::new()).expect("routes").document().clone()
    }

    /// Every operation of the document, by its id.
    fn all() -> Vec<(String, Value)> {
        let document = serde_json::to_value(document()).expect("JSON");
        let paths = document["paths"].as_object().expect("paths").values();
        let operations = paths.flat_map(|item| item.as_object().expect("operations").values().cloned());
        operations.map(|it| (it["operationId"].as_str().unwrap_or_default().to_owned(), it)).collect()
    }

    #[test]
    fn the_committed_document_is_the_one_of_the_code() {
        let committed = include_str!("../../../../openapi.yaml");
        let current = document().to_yaml().expect("YAML");
        assert!(committed == current, "openapi.yaml is out of date: run `make openapi` and commit it");
    }

    #[test]
    fn operation_ids_are_different_and_have_two_words() {
        let ids: BTreeSet<_> = all().into_iter().map(|(id, _)| id).collect();
        assert_eq!(ids.len(), all().len(), "{ids:?}");
        for id in ids {
            assert!(id.starts_with(char::is_lowercase) && id.contains(char::is_uppercase), "{id}");
        }
    }

    #[test]
    fn bodies_and_errors_have_examples() {
        let document = serde_json::to_value(document()).expect("JSON");
        let with_example = |content: &Value| {
            let schema = &content["schema"];
            let schema = schema["items"]["$ref"].as_str().or(schema["$ref"].as_str());
            let named = schema.and_then(|path| document.pointer(path.trim_start_matches('#')));
            ["example", "examples"].iter().any(|key| content[key] != Value::Null)
                || named.is_some_and(|schema| schema["example"] != Value::Null)
        };
        for (id, operation) in all() {
            let bodies = std::iter::once(("request", &operation["requestBody"])).chain(
                operation["responses"]
                    .as_object()
                    .into_iter()
                    .flatten()
                    .map(|(status, body)| (status.as_str(), body)),
            );
            for (of, body) in bodies {
                for (kind, content) in body["content"].as_object().into_iter().flatten() {
                    let binary = content["schema"]["format"] == "binary";
                    assert!(binary || with_example(content), "{id}, {of}, {kind}: no example");
                }
            }
        }
    }

    #[test]
    fn every_operation_says_whether_it_needs_a_key_and_which_errors_it_has() {
        for (id, operation) in all() {
            let open = [
                "getHealth",
                "getMetrics",
                "signUp",
                "activateAccount",
                "logIn",
                "useLink",
                "requestReset",
                "confirmReset",
                "beginOauth",
                "finishOauth",
            ]
            .contains(&id.as_str());
            let security = operation["security"].as_array().expect("security");
            assert_eq!(security.is_empty(), open, "{id}");
            assert_eq!(operation["x-permission"].is_null(), open, "{id}");
            for status in ["400", "401", "403", "429", "500", "503"] {
                assert!(open || operation["responses"][status].is_object(), "{id}: {status}");
            }
        }
    }

    #[test]
    fn the_viewer_has_our_title_and_no_foreign_bar() {
        let config = || Arc::new(Config::from("/openapi.json").use_base_layout());
        assert_eq!(viewer_file("index.html", config()).status(), 200);
        let index = utoipa_swagger_ui::serve("index.html", config()).ok().flatten().expect("the page");
        assert!(
            String::from_utf8_lossy(&index.bytes).contains("<title>Swagger UI</title>"),
            "the title moved"
        );
        assert_eq!(viewer_file("nothing", config()).status(), 404);
    }
}
