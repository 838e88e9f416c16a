// SPDX-License-Identifier: Apache-2.0
//! API keys and tickets.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{ApiKeyId, Secret, UserId};

/// An API key of a team, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"id": "key03halx8fdhw2fu3txwbd0kdw0", "name": "ci", "prefix": "wrn_3f9a",
    "scopes": ["sandbox.read", "sandbox.create"],
    "created_by": {"id": "us03halx8fdhw2fu3txwbd0kdw0", "name": "Ada", "email": "ada@example.com"},
    "created_at": "2026-01-31T09:30:00.000000Z", "last_used_at": "2026-01-31T10:00:00.000000Z",
    "expires_at": "2027-01-31T09:30:00.000000Z"}))]
pub struct ApiKey {
    /// Its id.
    #[schema(value_type = String, pattern = "^key[0-9a-e][0-9a-z]{24}$")]
    pub id: ApiKeyId,
    /// Its name.
    pub name: String,
    /// The first characters of its secret.
    pub prefix: String,
    /// Permissions that it has at most; it never does more than its maker may. Absent: all that an administrator of the team has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub scopes: Option<Vec<String>>,
    /// Who made it; absent if the operator of the server did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub created_by: Option<KeyMaker>,
    /// When it was created.
    pub created_at: DateTime<Utc>,
    /// When it was used last, to a minute or so; absent if never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub last_used_at: Option<DateTime<Utc>>,
    /// When it ends; absent if never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub expires_at: Option<DateTime<Utc>>,
}

/// The user who made an API key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"id": "us03halx8fdhw2fu3txwbd0kdw0", "name": "Ada", "email": "ada@example.com"}))]
pub struct KeyMaker {
    /// Id of the user.
    #[schema(value_type = String, pattern = "^us[0-9a-e][0-9a-z]{24}$")]
    pub id: UserId,
    /// Name of the user; absent if the account is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub name: Option<String>,
    /// E-mail address of the user; absent if the account is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub email: Option<String>,
}

/// Request for an API key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"name": "ci", "scopes": ["sandbox.read", "sandbox.create"]}))]
#[serde(deny_unknown_fields)]
pub struct CreateApiKey {
    /// Its name: 1 to 100 characters, none of them a control character, and no spaces around it.
    #[schema(min_length = 1, max_length = 100)]
    pub name: String,
    /// Permissions that it has, each named as in `x-permission` of the operations. You must have them all. Absent: all that an
    /// administrator of the team has, as far as you have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_items = 1, max_items = 64)]
    pub scopes: Option<Vec<String>>,
    /// When it ends; absent: never. What a key makes ends with it at the latest, also without this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<DateTime<Utc>>,
}

/// A new API key, with its secret.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"key": "wrn_3f9ac2d17b0e64851f2a9c0d83e57b416f08d2c9", "api_key": {"id": "key03halx8fdhw2fu3txwbd0kdw0",
    "name": "ci", "prefix": "wrn_3f9a", "scopes": ["sandbox.read", "sandbox.create"],
    "created_by": {"id": "us03halx8fdhw2fu3txwbd0kdw0", "name": "Ada", "email": "ada@example.com"},
    "created_at": "2026-01-31T09:30:00.000000Z"}}))]
pub struct CreatedApiKey {
    /// The key itself, for the header `X-API-Key`. It is shown this one time. `e2b_` instead of `wrn_` at its beginning is the same
    /// key, for clients that want it so.
    #[schema(value_type = String, pattern = "^wrn_[0-9a-f]{40}$")]
    pub key: Secret,
    /// What is known of it.
    pub api_key: ApiKey,
}

/// Change of an API key. What is absent stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"scopes": ["sandbox.read"]}))]
#[serde(deny_unknown_fields)]
pub struct UpdateApiKey {
    /// Its new name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 100)]
    pub name: Option<String>,
    /// Permissions that it has from now on. You must have them all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_items = 1, max_items = 64)]
    pub scopes: Option<Vec<String>>,
    /// When it ends. A key gives no later end than its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<DateTime<Utc>>,
}

/// Request for a ticket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"method": "GET", "path": "/v1/events/stream"}))]
#[serde(deny_unknown_fields)]
pub struct CreateTicket {
    /// Method of the request: `GET`.
    #[schema(pattern = "^GET$")]
    pub method: String,
    /// Path of the request, as it stands in the URL, without the query: that of a stream or a WebSocket.
    #[schema(max_length = 4096, pattern = "^/v1/")]
    pub path: String,
}

/// A ticket.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"ticket": "pJ3v0m8sX1bqkz5Yw2c7nR4tUeHf9aGd6LhTiOoQyVs", "expires_at": "2026-01-31T09:30:30.000000Z"}))]
pub struct CreatedTicket {
    /// Value of the parameter `ticket` of the request.
    #[schema(value_type = String)]
    pub ticket: Secret,
    /// Until when it can be used.
    pub expires_at: DateTime<Utc>,
}
