// SPDX-License-Identifier: Apache-2.0
//! Channels: create, list, change, delete and test.

use axum::{
    Extension, Json, RequestPartsExt as _,
    extract::{FromRequestParts, Path, State},
};
use http::{HeaderMap, HeaderName, StatusCode, request::Parts};
use serde::Deserialize;
use wrenn_api::{
    Channel, ChannelId, ConfigureChannel, CreateChannel, TestChannel, TestedChannel, UpdateChannel,
};
use wrenn_rpc::Foreign;

use super::{
    error_responses::{
        OfChannel, OfConfigureChannel, OfCreateChannel, OfLook, OfTestChannel, OfUpdateChannel,
    },
    extract::{Body, Parameters},
    templates::number,
};
use crate::{
    caller::Caller,
    channels::{Channels, missing},
    deeds::AuditResource,
    error::Fault,
    services::Services,
};

const NEXT_CURSOR: HeaderName = HeaderName::from_static("x-next-cursor");
/// Number of channels or deliveries on a page, if the request says none.
const PAGE: u32 = 50;

/// Create a channel.
///
/// Events of the team that happen from now on are delivered to it. Nothing is sent before: try the configuration out with
/// `testChannel`.
#[utoipa::path(
    post, path = "/v1/channels", operation_id = "createChannel", tag = "channels",
    params(("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log.")),
    request_body = CreateChannel,
    responses((status = 201, description = "The channel. If the server made the secret of a webhook, it is in this response only.", body = Channel), OfCreateChannel)
)]
pub(super) async fn create(
    State(services): State<Services>,
    caller: Caller,
    body: Body<CreateChannel>,
) -> Result<(StatusCode, Extension<AuditResource>, Json<Channel>), Fault> {
    let channel = services.channels().create(&caller, body.value).await?;
    let made = AuditResource::new("channel", channel.id).named(channel.name.clone());
    Ok((StatusCode::CREATED, Extension(made), Json(channel)))
}

/// List the team's channels, newest first.
#[utoipa::path(
    get, path = "/v1/channels", operation_id = "listChannels", tag = "channels",
    params(
        ("limit" = Option<u32>, Query, description = "Maximum number of channels in the response. Default: 50.", minimum = 1, maximum = 100),
        ("cursor" = Option<String>, Query, description = "The header `x-next-cursor` of the previous page.", pattern = "^ch[0-9a-e][0-9a-z]{24}$"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    responses((status = 200, description = "A page of channels.", body = Vec<Channel>,
        headers(("x-next-cursor" = String, description = "Pass it as `cursor` to get the next page; absent on the last page."))), OfLook)
)]
pub(super) async fn list(
    State(services): State<Services>,
    caller: Caller,
    parameters: Parameters,
) -> Result<(HeaderMap, Json<Vec<Channel>>), Fault> {
    let (limit, before) = page(parameters)?;
    let listed = services.channels().list(&caller, before, limit).await?;
    Ok((next(listed.next), Json(listed.items)))
}

/// Get a channel.
#[utoipa::path(
    get, path = "/v1/channels/{id}", operation_id = "getChannel", tag = "channels",
    params(
        ("id" = String, Path, description = "Id of the channel.", pattern = "^ch[0-9a-e][0-9a-z]{24}$", example = "ch03halx8fdhw2fu3txwbd0kdw0"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    responses((status = 200, description = "The channel.", body = Channel), OfChannel)
)]
pub(super) async fn get(
    State(services): State<Services>,
    caller: Caller,
    OfPath(id): OfPath,
) -> Result<Json<Channel>, Fault> {
    services.channels().get(&caller, id).await.map(Json)
}

/// Change the name or the events of a channel.
///
/// What waits for it already is delivered all the same.
#[utoipa::path(
    patch, path = "/v1/channels/{id}", operation_id = "updateChannel", tag = "channels",
    params(
        ("id" = String, Path, description = "Id of the channel.", pattern = "^ch[0-9a-e][0-9a-z]{24}$", example = "ch03halx8fdhw2fu3txwbd0kdw0"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    request_body = UpdateChannel,
    responses((status = 200, description = "The channel.", body = Channel), OfUpdateChannel)
)]
pub(super) async fn update(
    State(services): State<Services>,
    caller: Caller,
    OfPath(id): OfPath,
    body: Body<UpdateChannel>,
) -> Result<Json<Channel>, Fault> {
    services.channels().update(&caller, id, body.value).await.map(Json)
}

/// Replace where a channel leads to.
///
/// What waits for it goes there, at once. This is also how the secret of a webhook is exchanged.
#[utoipa::path(
    put, path = "/v1/channels/{id}/config", operation_id = "configureChannel", tag = "channels",
    params(
        ("id" = String, Path, description = "Id of the channel.", pattern = "^ch[0-9a-e][0-9a-z]{24}$", example = "ch03halx8fdhw2fu3txwbd0kdw0"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    request_body = ConfigureChannel,
    responses((status = 200, description = "The channel. If the server made the secret of a webhook, it is in this response only.", body = Channel), OfConfigureChannel)
)]
pub(super) async fn configure(
    State(services): State<Services>,
    caller: Caller,
    OfPath(id): OfPath,
    body: Body<ConfigureChannel>,
) -> Result<Json<Channel>, Fault> {
    services.channels().configure(&caller, id, body.value.config).await.map(Json)
}

/// Delete a channel.
///
/// What waits for it is not delivered, and its log of deliveries is gone.
#[utoipa::path(
    delete, path = "/v1/channels/{id}", operation_id = "deleteChannel", tag = "channels",
    params(
        ("id" = String, Path, description = "Id of the channel.", pattern = "^ch[0-9a-e][0-9a-z]{24}$", example = "ch03halx8fdhw2fu3txwbd0kdw0"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    responses((status = 204, description = "The channel is deleted."), OfChannel)
)]
pub(super) async fn delete(
    State(services): State<Services>,
    caller: Caller,
    OfPath(id): OfPath,
) -> Result<StatusCode, Fault> {
    services.channels().delete(&caller, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Try a configuration out.
///
/// A message of the type `channel.test` is sent once, and nothing is kept.
#[utoipa::path(
    post, path = "/v1/channels/test", operation_id = "testChannel", tag = "channels",
    params(("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log.")),
    request_body = TestChannel,
    responses((status = 200, description = "The receiver took the message.", body = TestedChannel), OfTestChannel)
)]
pub(super) async fn test(
    State(services): State<Services>,
    caller: Caller,
    body: Body<TestChannel>,
) -> Result<Json<TestedChannel>, Fault> {
    services.channels().test(&caller, body.value).await?;
    Ok(Json(TestedChannel { status: "ok".to_owned() }))
}

/// The channel in the path: the parameter `{id}`.
pub(super) struct OfPath(pub(super) ChannelId);

impl FromRequestParts<Services> for OfPath {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, _: &Services) -> Result<Self, Fault> {
        #[derive(Deserialize)]
        struct Named {
            id: String,
        }
        let Path(Named { id }): Path<Named> =
            parts.extract().await.map_err(|_| Fault::invalid("the channel in the path is not text"))?;
        // What is no id is of no channel either.
        id.parse().map(Self).map_err(|_| missing(&id))
    }
}

/// Parses the parameters of a list: the size of the page, and the id that it begins after.
pub(super) fn page<Id: std::str::FromStr<Err: std::fmt::Display>>(
    parameters: Parameters,
) -> Result<(u32, Option<Id>), Fault> {
    let [limit, cursor] = parameters.known(["limit", "cursor"])?;
    let limit = limit.map_or(Ok(PAGE), |text| number("limit", &text, Channels::PAGE_MAX))?;
    let parse = |text: String| -> Result<Id, Fault> {
        text.parse().map_err(|error| Fault::invalid(format!("cursor is {}: {error}", Foreign(&text))))
    };
    Ok((limit, cursor.map(parse).transpose()?))
}

/// The header with the cursor of the next page, if there is one.
pub(super) fn next(cursor: Option<impl ToString>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if let Some(Ok(next)) = cursor.map(|id| id.to_string().parse()) {
        headers.insert(NEXT_CURSOR, next);
    }
    headers
}
