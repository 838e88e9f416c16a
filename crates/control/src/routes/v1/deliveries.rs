// SPDX-License-Identifier: Apache-2.0
//! The log of deliveries to a channel.

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
};
use http::{HeaderMap, StatusCode};
use wrenn_api::{Delivery, DeliveryId, ErrorCode};
use wrenn_rpc::Foreign;

use super::{
    channels::{OfPath, next, page},
    error_responses::OfChannel,
    extract::Parameters,
};
use crate::{caller::Caller, error::Fault, services::Services};

/// List deliveries to a channel, newest first.
///
/// Those that wait are there, and those that ended in the last seven days.
#[utoipa::path(
    get, path = "/v1/channels/{id}/deliveries", operation_id = "listDeliveries", tag = "channels",
    params(
        ("id" = String, Path, description = "Id of the channel.", pattern = "^ch[0-9a-e][0-9a-z]{24}$", example = "ch03halx8fdhw2fu3txwbd0kdw0"),
        ("limit" = Option<u32>, Query, description = "Maximum number of deliveries in the response. Default: 50.", minimum = 1, maximum = 100),
        ("cursor" = Option<String>, Query, description = "The header `x-next-cursor` of the previous page.", pattern = "^de[0-9a-e][0-9a-z]{24}$"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    responses((status = 200, description = "A page of deliveries.", body = Vec<Delivery>,
        headers(("x-next-cursor" = String, description = "Pass it as `cursor` to get the next page; absent on the last page."))), OfChannel)
)]
pub(super) async fn list(
    State(services): State<Services>,
    caller: Caller,
    OfPath(id): OfPath,
    parameters: Parameters,
) -> Result<(HeaderMap, Json<Vec<Delivery>>), Fault> {
    let (limit, before) = page(parameters)?;
    let listed = services.channels().deliveries(&caller, id, before, limit).await?;
    Ok((next(listed.next), Json(listed.items)))
}

/// Deliver an event again.
///
/// It is tried at once, also if it was delivered or given up, and then as a new one is. Its ids are those that it had, and its body is the
/// same; events of its subject that wait come after it.
#[utoipa::path(
    post, path = "/v1/channels/{id}/deliveries/{delivery}/redeliver", operation_id = "repeatDelivery", tag = "channels",
    params(
        ("id" = String, Path, description = "Id of the channel.", pattern = "^ch[0-9a-e][0-9a-z]{24}$", example = "ch03halx8fdhw2fu3txwbd0kdw0"),
        ("delivery" = String, Path, description = "Id of the delivery.", pattern = "^de[0-9a-e][0-9a-z]{24}$", example = "de03halx8fdhw2fu3txwbd0kdw0"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    responses((status = 202, description = "The delivery, which waits for its attempt.", body = Delivery), OfChannel)
)]
pub(super) async fn redeliver(
    State(services): State<Services>,
    caller: Caller,
    OfPath(id): OfPath,
    place: Result<Path<(String, String)>, PathRejection>,
) -> Result<(StatusCode, Json<Delivery>), Fault> {
    let Path((_, text)) = place.map_err(|_| Fault::invalid("the delivery in the path is not text"))?;
    // What is no id is of no delivery either.
    let none = |_| Fault::new(ErrorCode::NotFound, format!("the channel has no delivery {}", Foreign(&text)));
    let delivery: DeliveryId = text.parse().map_err(none)?;
    Ok((StatusCode::ACCEPTED, Json(services.channels().redeliver(&caller, id, delivery).await?)))
}
