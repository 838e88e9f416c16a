// SPDX-License-Identifier: Apache-2.0
//! Teams: their members, invitations into them, and their quotas.

use std::{fmt, fmt::Display, str::FromStr};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{InvitationId, Secret, TeamId, UserId, integer};

/// Role of a user in a team. A role may do all that the ones before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[schema(example = "member")]
#[serde(rename_all = "snake_case")]
pub enum TeamRole {
    /// Works with what the team has.
    Member,
    /// Also manages members, API keys and channels.
    Admin,
    /// The one user whose team it is; only the owner can delete it.
    Owner,
}

/// Role that can be given: an owner is made by a transfer only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = "member")]
#[serde(rename_all = "snake_case")]
pub enum GivenRole {
    /// Works with what the team has.
    Member,
    /// Also manages members, API keys and channels.
    Admin,
}

/// A team.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"id": "team03halx8fdhw2fu3txwbd0kdw0", "name": "Analytical Engines", "slug": "5f0c1a-93be27",
    "is_byoc": false, "created_at": "2026-01-31T09:30:00.000000Z", "role": "owner"}))]
pub struct Team {
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
    /// Role of the caller in it; absent for an API key, and in the platform's team, which has no members.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub role: Option<TeamRole>,
}

/// Request for a team, which the caller owns then.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"name": "Analytical Engines"}))]
#[serde(deny_unknown_fields)]
pub struct CreateTeam {
    /// Its name: 1 to 128 characters, none of them a control character, and no spaces around it. Several teams may have one name.
    #[schema(min_length = 1, max_length = 128)]
    pub name: String,
}

/// Change of a team.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"name": "Difference Engines"}))]
#[serde(deny_unknown_fields)]
pub struct UpdateTeam {
    /// Its new name, as for a new team.
    #[schema(min_length = 1, max_length = 128)]
    pub name: String,
}

/// A member of a team.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"user_id": "us03halx8fdhw2fu3txwbd0kdw0", "name": "Ada", "email": "ada@example.com", "role": "owner",
    "joined_at": "2026-01-31T09:30:00.000000Z"}))]
pub struct TeamMember {
    /// The user.
    #[schema(value_type = String, pattern = "^us[0-9a-e][0-9a-z]{24}$")]
    pub user_id: UserId,
    /// Name of the user.
    pub name: String,
    /// Address of the user.
    pub email: String,
    /// Role in the team.
    pub role: TeamRole,
    /// When the user became a member.
    pub joined_at: DateTime<Utc>,
}

/// Change of a member's role.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"role": "admin"}))]
#[serde(deny_unknown_fields)]
pub struct UpdateMember {
    /// The new role.
    pub role: GivenRole,
}

/// Transfer of a team to another owner.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"user_id": "us03halx8fdhw2fu3txwbd0kdw0"}))]
#[serde(deny_unknown_fields)]
pub struct TransferTeam {
    /// A member of the team, who owns it then. Who owned it before is an admin of it.
    #[schema(value_type = String, pattern = "^us[0-9a-e][0-9a-z]{24}$")]
    pub user_id: UserId,
}

/// Request for an invitation.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"email": "grace@example.com", "role": "member"}))]
#[serde(deny_unknown_fields)]
pub struct CreateInvitation {
    /// Address of who is invited. There need be no user with it yet.
    #[schema(min_length = 3, max_length = 254)]
    pub email: String,
    /// Role that the user gets.
    pub role: GivenRole,
}

/// An invitation that was not accepted yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"id": "iv03halx8fdhw2fu3txwbd0kdw0", "email": "grace@example.com", "role": "member",
    "inviter": "ada@example.com", "created_at": "2026-01-31T09:30:00.000000Z", "expires_at": "2026-02-07T09:30:00.000000Z"}))]
pub struct Invitation {
    /// Its id.
    #[schema(value_type = String, pattern = "^iv[0-9a-e][0-9a-z]{24}$")]
    pub id: InvitationId,
    /// Address of who is invited.
    pub email: String,
    /// Role that the user gets.
    pub role: GivenRole,
    /// Address of who invites.
    pub inviter: String,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it is over.
    pub expires_at: DateTime<Utc>,
}

/// An invitation that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"invitation": {"id": "iv03halx8fdhw2fu3txwbd0kdw0", "email": "grace@example.com", "role": "member",
    "inviter": "ada@example.com", "created_at": "2026-01-31T09:30:00.000000Z", "expires_at": "2026-02-07T09:30:00.000000Z"},
    "mailed": true}))]
pub struct MadeInvitation {
    /// The invitation.
    pub invitation: Invitation,
    /// Whether it is sent by mail. Without a mail, because the server sends none, the user finds it among their invitations
    /// after signing in.
    pub mailed: bool,
}

/// An invitation of the caller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"id": "iv03halx8fdhw2fu3txwbd0kdw0", "team_id": "team03halx8fdhw2fu3txwbd0kdw0",
    "team_name": "Analytical Engines", "role": "member", "inviter": "ada@example.com",
    "created_at": "2026-01-31T09:30:00.000000Z", "expires_at": "2026-02-07T09:30:00.000000Z"}))]
pub struct MyInvitation {
    /// Its id, with which it is accepted.
    #[schema(value_type = String, pattern = "^iv[0-9a-e][0-9a-z]{24}$")]
    pub id: InvitationId,
    /// The team.
    #[schema(value_type = String, pattern = "^team[0-9a-e][0-9a-z]{24}$")]
    pub team_id: TeamId,
    /// Name of the team.
    pub team_name: String,
    /// Role that the caller gets.
    pub role: GivenRole,
    /// Address of who invites.
    pub inviter: String,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it is over.
    pub expires_at: DateTime<Utc>,
}

/// Acceptance of an invitation, by the token of its mail or by its id: one of both. It must be one of the caller's own address.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"id": "iv03halx8fdhw2fu3txwbd0kdw0"}))]
#[serde(deny_unknown_fields)]
pub struct AcceptInvitation {
    /// Token of the link in the mail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, min_length = 1, max_length = 128)]
    pub token: Option<Secret>,
    /// Id of the invitation, as the list of the caller's invitations has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, pattern = "^iv[0-9a-e][0-9a-z]{24}$")]
    pub id: Option<InvitationId>,
}

/// A limit on what a team has at a time, and how much of it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"name": "running", "limit": 1000, "used": 3}))]
pub struct Quota {
    /// What is limited.
    pub name: QuotaName,
    /// The limit.
    pub limit: u64,
    /// What the team has now.
    pub used: u64,
}

/// Quotas of a team that differ from those of the server. One that is left out is that of the server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"running": 50, "vcpus": 100, "memory_mb": 204_800}))]
#[serde(deny_unknown_fields)]
pub struct TeamQuotas {
    /// Maximum number of sandboxes, running ones and others.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "integer::quota_sandboxes")]
    #[schema(maximum = 1_000_000)]
    pub sandboxes: Option<u32>,
    /// Maximum number of sandboxes that run.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "integer::quota_running")]
    #[schema(maximum = 1_000_000)]
    pub running: Option<u32>,
    /// Maximum number of sandboxes that are paused, or failed after they ran.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "integer::quota_paused")]
    #[schema(maximum = 1_000_000)]
    pub paused: Option<u32>,
    /// Maximum number of virtual CPUs of the sandboxes that run.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "integer::quota_vcpus")]
    #[schema(maximum = 1_000_000)]
    pub vcpus: Option<u32>,
    /// Maximum memory in MiB of the sandboxes that run.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "integer::quota_memory_mb")]
    #[schema(maximum = 1_073_741_824)]
    pub memory_mb: Option<u32>,
    /// Maximum size in MiB of the disks of all sandboxes.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "integer::quota_disk_mb")]
    #[schema(maximum = 1_073_741_824)]
    pub disk_mb: Option<u32>,
    /// Maximum number of named snapshots.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "integer::quota_snapshots")]
    #[schema(maximum = 1_000_000)]
    pub snapshots: Option<u32>,
    /// Maximum number of templates that the team has built or builds.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "integer::quota_templates")]
    #[schema(maximum = 1_000_000)]
    pub templates: Option<u32>,
    /// Maximum number of builds that have not ended.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "integer::quota_builds")]
    #[schema(maximum = 1_000_000)]
    pub builds: Option<u32>,
    /// Maximum number of sandboxes that are created in a minute.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "integer::quota_creates_per_minute"
    )]
    #[schema(maximum = 1_000_000)]
    pub creates_per_minute: Option<u32>,
}

macro_rules! quotas {
    ($($(#[doc = $doc:literal])* $name:ident = $text:literal, $field:ident, $max:literal;)*) => {
        /// What a quota limits.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
        #[schema(example = "running")]
        #[serde(rename_all = "snake_case")]
        pub enum QuotaName {
            $($(#[doc = $doc])* $name,)*
        }

        impl QuotaName {
            /// Every quota.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// Name of the quota, as in JSON.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }

            /// The largest limit that can be set.
            pub const fn max(self) -> u32 {
                match self { $(Self::$name => $max),* }
            }
        }

        impl TeamQuotas {
            /// The team's own limit, if it has one.
            pub const fn get(&self, name: QuotaName) -> Option<u32> {
                match name { $(QuotaName::$name => self.$field),* }
            }
        }
    };
}

quotas! {
    /// Number of sandboxes, running ones and others.
    Sandboxes = "sandboxes", sandboxes, 1_000_000;
    /// Number of sandboxes that run.
    Running = "running", running, 1_000_000;
    /// Number of sandboxes that are paused, or failed after they ran.
    Paused = "paused", paused, 1_000_000;
    /// Number of virtual CPUs of the sandboxes that run.
    Vcpus = "vcpus", vcpus, 1_000_000;
    /// Memory in MiB of the sandboxes that run.
    MemoryMb = "memory_mb", memory_mb, 1_073_741_824;
    /// Size in MiB of the disks of all sandboxes.
    DiskMb = "disk_mb", disk_mb, 1_073_741_824;
    /// Number of named snapshots.
    Snapshots = "snapshots", snapshots, 1_000_000;
    /// Number of templates that the team has built or builds.
    Templates = "templates", templates, 1_000_000;
    /// Number of builds that have not ended.
    Builds = "builds", builds, 1_000_000;
    /// Number of sandboxes that were created in the last minute.
    CreatesPerMinute = "creates_per_minute", creates_per_minute, 1_000_000;
}

impl Display for QuotaName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl TeamRole {
    /// Every role.
    pub const ALL: [Self; 3] = [Self::Member, Self::Admin, Self::Owner];

    /// Name of the role, as in JSON and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Member => "member",
            Self::Admin => "admin",
            Self::Owner => "owner",
        }
    }
}

impl Display for TeamRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for TeamRole {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|role| role.as_str() == text).ok_or(())
    }
}

impl From<GivenRole> for TeamRole {
    fn from(role: GivenRole) -> Self {
        match role {
            GivenRole::Member => Self::Member,
            GivenRole::Admin => Self::Admin,
        }
    }
}

impl GivenRole {
    /// Every role that can be given.
    pub const ALL: [Self; 2] = [Self::Member, Self::Admin];

    /// Name of the role, as in JSON and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Member => "member",
            Self::Admin => "admin",
        }
    }
}

impl Display for GivenRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for GivenRole {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|role| role.as_str() == text).ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_those_of_json() {
        for name in QuotaName::ALL {
            assert_eq!(serde_json::json!(name), name.as_str());
        }
        for role in TeamRole::ALL {
            assert_eq!(serde_json::json!(role), role.as_str());
            assert_eq!(role.to_string().parse(), Ok(role));
        }
        for role in GivenRole::ALL {
            assert_eq!(serde_json::json!(role), role.as_str());
            assert_eq!((role.to_string().parse(), TeamRole::from(role).as_str()), (Ok(role), role.as_str()));
        }
        assert!("owner".parse::<GivenRole>().is_err());
    }

    #[test]
    fn a_quota_has_the_name_of_its_field() {
        for name in QuotaName::ALL {
            let own: TeamQuotas =
                serde_json::from_value(serde_json::json!({name.as_str(): 7})).expect("quotas");
            let set = QuotaName::ALL.iter().filter(|other| own.get(**other).is_some());
            assert!(set.eq([name]) && own.get(*name) == Some(7), "{name}");
        }
    }
}
