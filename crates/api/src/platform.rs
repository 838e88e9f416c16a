// SPDX-License-Identifier: Apache-2.0
//! What administrators of the platform see and change: users, teams, hosts, sandboxes and templates of all teams.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{HostId, Sandbox, TeamId, TeamQuotas, TemplateKind, UserId};

/// State of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = "active")]
#[serde(rename_all = "snake_case")]
pub enum UserStatus {
    /// Has not activated the account.
    Inactive,
    /// Can sign in.
    Active,
    /// Was shut out by an administrator.
    Disabled,
    /// Is to be deleted for good.
    Deleted,
}

/// What becomes of the API keys that a user has made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = "revoke")]
#[serde(rename_all = "snake_case")]
pub enum MadeKeys {
    /// They end now.
    Revoke,
    /// They stay, and are the team's.
    Keep,
}

/// A user, as administrators see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"id": "us03halx8fdhw2fu3txwbd0kdw0", "email": "ada@example.com", "name": "Ada", "is_admin": true,
    "status": "active", "created_at": "2026-01-31T09:30:00.000000Z", "last_login_at": "2026-02-01T08:00:00.000000Z",
    "teams_joined": 2, "teams_owned": 1}))]
pub struct AdminUser {
    /// Its id.
    #[schema(value_type = String, pattern = "^us[0-9a-e][0-9a-z]{24}$")]
    pub id: UserId,
    /// Its address.
    pub email: String,
    /// Its name.
    pub name: String,
    /// Whether it administers the platform.
    pub is_admin: bool,
    /// Its state.
    pub status: UserStatus,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it last signed in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub last_login_at: Option<DateTime<Utc>>,
    /// Number of teams of which it is a member, its own included.
    pub teams_joined: u64,
    /// Number of teams that it owns.
    pub teams_owned: u64,
}

/// Shuts a user out, or lets it in again.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"active": false, "keys": "revoke"}))]
#[serde(deny_unknown_fields)]
pub struct SetActive {
    /// Whether the user can sign in.
    pub active: bool,
    /// What becomes of the API keys that a user has made who is shut out; needed if there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<MadeKeys>,
}

/// Makes a user an administrator of the platform, or takes that back.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"admin": true}))]
#[serde(deny_unknown_fields)]
pub struct SetAdmin {
    /// Whether the user administers the platform.
    pub admin: bool,
}

/// A team, as administrators see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"id": "team03halx8fdhw2fu3txwbd0kdw0", "name": "Analytical Engines", "slug": "5f0c1a-93be27",
    "is_byoc": false, "created_at": "2026-01-31T09:30:00.000000Z", "member_count": 3, "owner_name": "Ada",
    "owner_email": "ada@example.com", "active_sandbox_count": 7, "channel_count": 1, "quotas": {"running": 50}}))]
pub struct AdminTeam {
    /// Its id.
    #[schema(value_type = String, pattern = "^team[0-9a-e][0-9a-z]{24}$")]
    pub id: TeamId,
    /// Its name.
    pub name: String,
    /// Its name in URLs. Absent for a team that was made before there were any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub slug: Option<String>,
    /// Whether it brings hosts of its own.
    pub is_byoc: bool,
    /// When it was created.
    pub created_at: DateTime<Utc>,
    /// When it was deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub deleted_at: Option<DateTime<Utc>>,
    /// When nothing was left of the deleted team; until then something of it is still on a host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub emptied_at: Option<DateTime<Utc>>,
    /// Number of its members.
    pub member_count: u64,
    /// Name of its owner. Absent for a team without members.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub owner_name: Option<String>,
    /// Address of its owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub owner_email: Option<String>,
    /// Number of its sandboxes that are neither deleted nor failed.
    pub active_sandbox_count: u64,
    /// Number of its channels.
    pub channel_count: u64,
    /// Quotas that differ from those of the server.
    pub quotas: TeamQuotas,
}

/// Lets a team bring hosts of its own.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"enabled": true}))]
#[serde(deny_unknown_fields)]
pub struct SetByoc {
    /// Whether it may. It can be taken back while the team has no host.
    pub enabled: bool,
}

/// A host, as administrators see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"id": "host03halx8fdhw2fu3txwbd0kdw0", "kind": "regular", "address": "10.0.0.7:9726", "status": "online",
    "agent_version": "0.3.0", "driver": "firecracker", "driver_reason": "", "security_boundary": true, "cpus": 16,
    "memory_mb": 65_536, "disk_mb": 512_000, "disk_free_mb": 400_000, "max_sandboxes": 500, "reserved_sandboxes": 7,
    "reserved_vcpus": 7, "reserved_memory_mb": 3584, "templates": ["minimal"], "created_at": "2026-01-31T09:30:00.000000Z"}))]
pub struct AdminHost {
    /// Its id.
    #[schema(value_type = String, pattern = "^host[0-9a-e][0-9a-z]{24}$")]
    pub id: HostId,
    /// `regular`, a host of the platform, or `byoc`, one of a team.
    pub kind: String,
    /// Team that brought it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, nullable = false, pattern = "^team[0-9a-e][0-9a-z]{24}$")]
    pub team_id: Option<TeamId>,
    /// Address of its agent.
    pub address: String,
    /// `online` or `unreachable`.
    pub status: String,
    /// When its agent last answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub last_seen_at: Option<DateTime<Utc>>,
    /// Version of its agent.
    pub agent_version: String,
    /// Driver of its virtual machines.
    pub driver: String,
    /// Why it is this driver.
    pub driver_reason: String,
    /// Whether the driver keeps hostile code inside.
    pub security_boundary: bool,
    /// Why its agent destroys nothing for this control plane.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub quarantine: Option<String>,
    /// Until when it gets no new sandboxes, because creates failed there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub ejected_until: Option<DateTime<Utc>>,
    /// Number of its processors.
    pub cpus: u32,
    /// Its memory in MiB.
    pub memory_mb: u64,
    /// Size of its disk in MiB.
    pub disk_mb: u64,
    /// What is free of its disk, in MiB.
    pub disk_free_mb: u64,
    /// Maximum number of sandboxes that run on it.
    pub max_sandboxes: u32,
    /// Number of sandboxes that run on it.
    pub reserved_sandboxes: u64,
    /// Number of virtual CPUs of these.
    pub reserved_vcpus: u64,
    /// Memory of these in MiB.
    pub reserved_memory_mb: u64,
    /// Templates of the platform in its files.
    pub templates: Vec<String>,
    /// When it was registered.
    pub created_at: DateTime<Utc>,
}

/// A sandbox of any team, as administrators see it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"team_id": "team03halx8fdhw2fu3txwbd0kdw0", "host_id": "host03halx8fdhw2fu3txwbd0kdw0",
    "sandbox": {"id": "sb03halx8fdhw2fu3txwbd0kdw0", "status": "running", "template": "minimal", "vcpus": 1, "memory_mb": 512,
        "disk_size_mb": 5120, "created_at": "2026-01-31T09:20:00Z", "last_updated": "2026-01-31T09:30:02.500001Z"}}))]
pub struct AdminSandbox {
    /// Team that it belongs to.
    #[schema(value_type = String, pattern = "^team[0-9a-e][0-9a-z]{24}$")]
    pub team_id: TeamId,
    /// Host that it is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, nullable = false, pattern = "^host[0-9a-e][0-9a-z]{24}$")]
    pub host_id: Option<HostId>,
    /// The sandbox.
    pub sandbox: Sandbox,
}

/// A template that a team or the platform has built, by its newest version, as administrators see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"team_id": "team03halx8fdhw2fu3txwbd0kdw0", "name": "web", "kind": "base", "version": 3, "size_mb": 912,
    "host_id": "host03halx8fdhw2fu3txwbd0kdw0", "created_at": "2026-01-31T09:30:00.000000Z"}))]
pub struct AdminTemplate {
    /// Team that built it; of the platform's templates, the platform's own.
    #[schema(value_type = String, pattern = "^team[0-9a-e][0-9a-z]{24}$")]
    pub team_id: TeamId,
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: TemplateKind,
    /// Number of its newest version.
    pub version: u32,
    /// Size of the smallest disk of a sandbox from it, in MiB.
    pub size_mb: u64,
    /// Host that made the version.
    #[schema(value_type = String, pattern = "^host[0-9a-e][0-9a-z]{24}$")]
    pub host_id: HostId,
    /// When the version was made.
    pub created_at: DateTime<Utc>,
}

impl UserStatus {
    /// Every state.
    pub const ALL: [Self; 4] = [Self::Inactive, Self::Active, Self::Disabled, Self::Deleted];

    /// Name of the state, as in JSON and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inactive => "inactive",
            Self::Active => "active",
            Self::Disabled => "disabled",
            Self::Deleted => "deleted",
        }
    }
}

impl std::str::FromStr for UserStatus {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|status| status.as_str() == text).ok_or(())
    }
}

impl MadeKeys {
    /// Name of the choice, as in JSON and in a query.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Revoke => "revoke",
            Self::Keep => "keep",
        }
    }
}

impl std::str::FromStr for MadeKeys {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        [Self::Revoke, Self::Keep].into_iter().find(|keys| keys.as_str() == text).ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_those_of_json() {
        for status in UserStatus::ALL {
            assert_eq!(serde_json::json!(status), status.as_str());
            assert_eq!(status.as_str().parse(), Ok(status));
        }
        for keys in [MadeKeys::Revoke, MadeKeys::Keep] {
            assert_eq!(serde_json::json!(keys), keys.as_str());
            assert_eq!(keys.as_str().parse(), Ok(keys));
        }
        assert!("".parse::<MadeKeys>().is_err() && "Active".parse::<UserStatus>().is_err());
    }
}
