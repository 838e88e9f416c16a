// SPDX-License-Identifier: Apache-2.0
//! Accounts of users: sign-up, sign-in, the user's own data, and their sessions.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Secret, SessionId, TeamId, TeamRole, UserId};

/// Sign-up of a user.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"email": "ada@example.com", "password": "correct horse battery", "name": "Ada"}))]
#[serde(deny_unknown_fields)]
pub struct SignUp {
    /// E-mail address; capital letters are the same as small ones.
    #[schema(min_length = 3, max_length = 254, format = "email")]
    pub email: String,
    /// Password, of 8 to 256 characters.
    #[schema(value_type = String, min_length = 8, max_length = 256, format = "password")]
    pub password: Secret,
    /// Name that others see.
    #[schema(min_length = 1, max_length = 100)]
    pub name: String,
}

/// What happens next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"message": "a mail with a link is on its way to ada@example.com"}))]
pub struct Notice {
    /// For people.
    pub message: String,
}

/// Use of the link that activates a sign-up, or of one that signs in.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"token": "b0pXrXxkcm9Hc2hJQ1d4aVJ6dUZqT2ZQd0FhU0c"}))]
#[serde(deny_unknown_fields)]
pub struct UseLink {
    /// Token of the link: what is behind `token=`.
    #[schema(value_type = String, min_length = 1, max_length = 128)]
    pub token: Secret,
    /// Whether the session is kept in a cookie, as browsers need it, instead of a token. Default: false.
    #[serde(default)]
    pub cookie: bool,
}

/// Sign-in with a password.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"email": "ada@example.com", "password": "correct horse battery"}))]
#[serde(deny_unknown_fields)]
pub struct Login {
    /// E-mail address.
    #[schema(min_length = 3, max_length = 254, format = "email")]
    pub email: String,
    /// Password.
    #[schema(value_type = String, min_length = 1, max_length = 256, format = "password")]
    pub password: Secret,
    /// Whether the session is kept in a cookie, as browsers need it, instead of a token. Default: false.
    #[serde(default)]
    pub cookie: bool,
}

/// Request for a link to set another password.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"email": "ada@example.com"}))]
#[serde(deny_unknown_fields)]
pub struct RequestReset {
    /// E-mail address.
    #[schema(min_length = 3, max_length = 254, format = "email")]
    pub email: String,
}

/// Use of the link to set another password.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"token": "b0pXrXxkcm9Hc2hJQ1d4aVJ6dUZqT2ZQd0FhU0c", "new_password": "staple battery horse"}))]
#[serde(deny_unknown_fields)]
pub struct ConfirmReset {
    /// Token of the link: what is behind `token=`.
    #[schema(value_type = String, min_length = 1, max_length = 128)]
    pub token: Secret,
    /// The new password, of 8 to 256 characters.
    #[schema(value_type = String, min_length = 8, max_length = 256, format = "password")]
    pub new_password: Secret,
}

/// A user who is signed in, and the session.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"token": "eyJhbGciOiJIUzI1NiJ9.e30.c2ln", "user_id": "us03halx8fdhw2fu3txwbd0kdw0",
    "team_id": "team03halx8fdhw2fu3txwbd0kdw0", "email": "ada@example.com", "name": "Ada",
    "expires_at": "2026-02-07T09:30:00.000000Z"}))]
pub struct SignedIn {
    /// Token for the header `Authorization: Bearer TOKEN`. Absent if the session is kept in a cookie.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, nullable = false)]
    pub token: Option<Secret>,
    /// The user.
    #[schema(value_type = String, pattern = "^us[0-9a-e][0-9a-z]{24}$")]
    pub user_id: UserId,
    /// Team that the user acts for; absent for a user who is in no team.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, nullable = false, pattern = "^team[0-9a-e][0-9a-z]{24}$")]
    pub team_id: Option<TeamId>,
    /// E-mail address of the user.
    pub email: String,
    /// Name of the user.
    pub name: String,
    /// When the session ends.
    pub expires_at: DateTime<Utc>,
    /// Value for the header `X-CSRF-Token`, which every request that changes something needs beside the cookie. Absent if there is
    /// no cookie.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, nullable = false)]
    pub csrf_token: Option<Secret>,
}

/// Choice of the team that a session acts for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"team_id": "team03halx8fdhw2fu3txwbd0kdw0"}))]
#[serde(deny_unknown_fields)]
pub struct SwitchTeam {
    /// A team that the user is in; for administrators of the platform also `team0000000000000000000000000`, which is the platform's.
    #[schema(value_type = String, pattern = "^team[0-9a-e][0-9a-z]{24}$")]
    pub team_id: TeamId,
}

/// The signed-in user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"user_id": "us03halx8fdhw2fu3txwbd0kdw0", "email": "ada@example.com", "name": "Ada",
    "has_password": true, "providers": ["github"], "is_admin": false, "team_id": "team03halx8fdhw2fu3txwbd0kdw0",
    "role": "owner", "created_at": "2026-01-31T09:30:00.000000Z"}))]
pub struct Me {
    /// Id of the user.
    #[schema(value_type = String, pattern = "^us[0-9a-e][0-9a-z]{24}$")]
    pub user_id: UserId,
    /// E-mail address.
    pub email: String,
    /// Name that others see.
    pub name: String,
    /// Whether the user can sign in with a password.
    pub has_password: bool,
    /// Providers with which the user can sign in.
    pub providers: Vec<String>,
    /// Whether the user administers the platform.
    pub is_admin: bool,
    /// Team that the session acts for; absent for a user who is in no team.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, nullable = false, pattern = "^team[0-9a-e][0-9a-z]{24}$")]
    pub team_id: Option<TeamId>,
    /// Role in that team; absent for a user who is in no team or acts for the platform.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub role: Option<TeamRole>,
    /// When the account was made.
    pub created_at: DateTime<Utc>,
}

/// Changes of the signed-in user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"name": "Ada Lovelace"}))]
#[serde(deny_unknown_fields)]
pub struct UpdateMe {
    /// Name that others see.
    #[schema(min_length = 1, max_length = 100)]
    pub name: String,
}

/// Change of the password.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"current_password": "correct horse battery", "new_password": "staple battery horse"}))]
#[serde(deny_unknown_fields)]
pub struct ChangePassword {
    /// The present password. A user who has none leaves it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, max_length = 256, format = "password")]
    pub current_password: Option<Secret>,
    /// The new password, of 8 to 256 characters.
    #[schema(value_type = String, min_length = 8, max_length = 256, format = "password")]
    pub new_password: Secret,
}

/// Deletion of the account.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"confirmation": "ada@example.com", "current_password": "correct horse battery"}))]
#[serde(deny_unknown_fields)]
pub struct DeleteMe {
    /// The user's own e-mail address, so that nothing is deleted by mistake.
    #[schema(min_length = 3, max_length = 254, format = "email")]
    pub confirmation: String,
    /// The password. A user who has none leaves it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, max_length = 256, format = "password")]
    pub current_password: Option<Secret>,
}

/// How a session is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = "token")]
#[serde(rename_all = "snake_case")]
pub enum KeptIn {
    /// In a token of a program.
    Token,
    /// In a cookie of a browser.
    Cookie,
}

/// A session: one sign-in of the user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"id": "se03halx8fdhw2fu3txwbd0kdw0", "kept_in": "cookie", "method": "password", "is_current": true,
    "address": "192.0.2.7", "user_agent": "Mozilla/5.0", "created_at": "2026-01-31T09:30:00.000000Z",
    "last_used_at": "2026-01-31T09:45:00.000000Z", "expires_at": "2026-02-07T09:30:00.000000Z"}))]
pub struct Session {
    /// Its id.
    #[schema(value_type = String, pattern = "^se[0-9a-e][0-9a-z]{24}$")]
    pub id: SessionId,
    /// How it is kept.
    pub kept_in: KeptIn,
    /// How the user signed in: `password`, `link`, or a provider.
    pub method: String,
    /// Whether it is the session of this request.
    pub is_current: bool,
    /// Address from which the user signed in, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub address: Option<String>,
    /// Program with which the user signed in, as it calls itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub user_agent: Option<String>,
    /// When the user signed in.
    pub created_at: DateTime<Utc>,
    /// When it was last used, within a minute.
    pub last_used_at: DateTime<Utc>,
    /// When it ends.
    pub expires_at: DateTime<Utc>,
}
