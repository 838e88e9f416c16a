// SPDX-License-Identifier: Apache-2.0
//! Tickets for requests that browsers send without headers of their own.

use axum::{Json, extract::State};
use http::StatusCode;
use wrenn_api::{CreateTicket, CreatedTicket};

use super::{error_responses::OfCreateKey, extract::Body};
use crate::{caller::Caller, error::Fault, services::Services};

/// Make a ticket for a stream or a WebSocket.
///
/// Browsers open a WebSocket or an `EventSource` without headers of their own, and keys and tokens do not belong into URLs. A ticket
/// does: with the parameter `ticket`, one request of this method and path is that of the caller. It is used within 30 s.
#[utoipa::path(
    post, path = "/v1/tickets", operation_id = "createTicket", tag = "accounts",
    params(("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log.")),
    request_body = CreateTicket,
    responses((status = 201, description = "The ticket.", body = CreatedTicket), OfCreateKey)
)]
pub(super) async fn create(
    State(services): State<Services>,
    caller: Caller,
    body: Body<CreateTicket>,
) -> Result<(StatusCode, Json<CreatedTicket>), Fault> {
    let CreateTicket { method, path } = body.value;
    // Requests by the older path come to the newer one before anybody looks at their ticket.
    let path = match path.strip_prefix("/v1/capsules/") {
        Some(rest) => format!("/v1/sandboxes/{rest}"),
        None => path,
    };
    let ticket = services.access().create_ticket(&caller, &method, &path).await?;
    Ok((StatusCode::CREATED, Json(ticket)))
}
