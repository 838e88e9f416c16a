// SPDX-License-Identifier: Apache-2.0
//! The program of `examples/extension.rs`, as a server of its own.

#[allow(dead_code, reason = "its main function is that of a program")]
#[path = "../../examples/extension.rs"]
mod program;

use std::sync::Arc;

use anyhow::{Result, ensure};
use serde_json::json;
use wrenn_control::{Extension, Limits, Services};
use wrenn_testkit::wait_until;

use crate::{
    fixture::{Fixture, SOON},
    stores::Stores,
};

/// Its route needs a key, gets the caller, and is documented; its worker runs.
pub(crate) async fn another_program_adds_a_route_and_a_worker(
    stores: &Arc<Stores>,
    name: &str,
) -> Result<()> {
    let mut fixture = Fixture::start(stores, name, 1, Limits::default()).await?;
    let api = fixture.serve_with(|builder| builder.with_extension(program::Census::default())).await?;
    api.with_key("").get("/census").await?.expect_error(401, "unauthorized")?;
    fixture.create().await?;
    ensure!(api.get("/census").await?.expect(200)?.json()[0] == 1, "it does not know its caller");
    let document = api.get("/openapi.json").await?.json();
    let operation = &document["paths"]["/census"]["get"];
    ensure!(
        operation["x-permission"] == "sandbox.read" && operation["security"][0].is_object(),
        "{operation}"
    );
    let counted = async || (api.get("/census").await.ok()?.json() == json!([1, 1])).then_some(());
    wait_until("a round of its worker", SOON, counted).await?;
    fixture.stop().await
}

/// A route that anybody could call.
struct Open;

impl Extension for Open {
    fn name(&self) -> &'static str {
        "open"
    }

    fn routes(&self) -> utoipa_axum::router::OpenApiRouter<Services> {
        utoipa_axum::router::OpenApiRouter::new().routes(utoipa_axum::routes!(anybody))
    }
}

#[utoipa::path(get, path = "/anybody", responses((status = 200)))]
async fn anybody() {}

/// A route without a permission is refused when the server is built.
pub(crate) async fn a_route_without_a_permission_is_refused(stores: &Arc<Stores>, name: &str) -> Result<()> {
    let fixture = Fixture::start(stores, name, 0, Limits::default()).await?;
    let error = fixture.build_error(|builder| builder.with_extension(Open)).await?;
    ensure!(error.contains("/anybody") && error.contains("needs("), "{error}");
    fixture.stop().await
}
