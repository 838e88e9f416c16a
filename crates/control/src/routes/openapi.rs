//! The OpenAPI 3.1 document, made from the handlers, and its viewer.

use axum::{Router, response::IntoResponse as _, routing::get};
use http::header;
use utoipa::{
    OpenApi as _, ToSchema as _,
    openapi::{
        OpenApi, Ref, RefOr, ResponseBuilder,
        content::ContentBuilder,
        security::{ApiKey, ApiKeyValue, SecurityScheme},
    },
};
use utoipa_swagger_ui::{Config, SwaggerUi};
use wrenn_api::ErrorBody;

use crate::state::App;

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Wrenn",
        description = "Runs untrusted code in microVMs. Every error has the body `{\"error\":{\"code\",\"message\"}}`.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    components(schemas(ErrorBody)),
    tags(
        (name = "sandboxes", description = "MicroVMs, and code and files in them."),
        (name = "events", description = "What happens to sandboxes."),
        (name = "service", description = "The control plane itself."),
    )
)]
struct Frame;

/// The document.
pub(crate) fn document() -> OpenApi {
    let mut document = Frame::openapi();
    let (_, open) = super::open().split_for_parts();
    let (_, protected) = super::protected().split_for_parts();
    document.merge(open);
    document.merge(protected);
    let scheme = SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::with_description(
        "X-API-Key",
        "A key of the team. `wrenn up` makes the first one.",
    )));
    document.components.get_or_insert_default().add_security_scheme("api_key", scheme);
    add_errors(&mut document);
    document
}

/// Every operation can be refused; what it may be refused with beyond its own list is the same for all.
fn add_errors(document: &mut OpenApi) {
    let reference = RefOr::Ref(Ref::from_schema_name(ErrorBody::name()));
    let refusal = |description: &str| {
        let content = ContentBuilder::new().schema(Some(reference.clone())).build();
        RefOr::T(ResponseBuilder::new().description(description).content("application/json", content).build())
    };
    for (path, item) in &mut document.paths.paths {
        if !path.starts_with("/v1/") {
            continue;
        }
        let operations = [&mut item.get, &mut item.post, &mut item.put, &mut item.patch, &mut item.delete];
        for operation in operations.into_iter().flatten() {
            let responses = &mut operation.responses.responses;
            for (status, description) in [
                ("400", "The request is malformed."),
                ("401", "The API key is missing or not valid."),
                ("default", "Any other refusal; the code says which."),
            ] {
                responses.entry(status.to_owned()).or_insert_with(|| refusal(description));
            }
        }
    }
}

/// The document in both notations, and its viewer.
pub(super) fn routes() -> Router<App> {
    let document = document();
    let json = document.to_json().unwrap_or_default();
    let yaml = document.to_yaml().unwrap_or_default();
    let served = |kind: &'static str, text: String| {
        get(async move || ([(header::CONTENT_TYPE, kind)], text).into_response())
    };
    Router::new()
        .route("/openapi.json", served("application/json", json))
        .route("/openapi.yaml", served("application/yaml", yaml))
        .merge(SwaggerUi::new("/docs").config(Config::from("/openapi.json")))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_committed_document_is_the_one_of_the_code() {
        let committed = include_str!("../../../../openapi.yaml");
        let current = super::document().to_yaml().expect("YAML");
        assert!(committed == current, "openapi.yaml is out of date: run `make openapi` and commit it");
    }
}
