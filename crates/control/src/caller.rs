// SPDX-License-Identifier: Apache-2.0
//! Caller of an operation: who it is, for which team, and what it may do. Surfaces find it out from the
//! request; services get it, and never take a team from a path or a body.

use std::{fmt, fmt::Display, str::FromStr};

use uuid::Uuid;
use wrenn_api::{ApiKeyId, ErrorCode, SandboxId, SessionId, TeamId, UserId};

use crate::error::Fault;

/// Caller of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    principal: Principal,
    team: TeamId,
    permissions: Permissions,
}

/// Identity of a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Principal {
    /// An API key.
    Key(ApiKeyId),
    /// A user, in a session.
    User {
        /// The user.
        user: UserId,
        /// The sign-in.
        session: SessionId,
    },
    /// Somebody with a signed URL for a file of this sandbox.
    SignedUrl(SandboxId),
    /// Somebody whom an extension knows.
    Extension {
        /// Name of the extension.
        name: &'static str,
        /// Who it is, by an id of the extension's.
        id: Uuid,
    },
}

impl Caller {
    /// Creates a caller that acts for a team.
    pub const fn new(principal: Principal, team: TeamId, permissions: Permissions) -> Self {
        Self { principal, team, permissions }
    }

    /// Identity of the caller.
    pub const fn principal(&self) -> Principal {
        self.principal
    }

    /// Team for which the caller acts; [`TeamId::NONE`] for a user who is in no team.
    pub const fn team(&self) -> TeamId {
        self.team
    }

    /// What the caller may do.
    pub const fn permissions(&self) -> Permissions {
        self.permissions
    }

    /// The user, if the caller is one.
    pub const fn user(&self) -> Option<UserId> {
        match self.principal {
            Principal::User { user, .. } => Some(user),
            _ => None,
        }
    }

    /// The session, if the caller is a user.
    pub const fn session(&self) -> Option<SessionId> {
        match self.principal {
            Principal::User { session, .. } => Some(session),
            _ => None,
        }
    }

    /// Returns the same caller acting for the platform, whose templates all teams can use. Fails if it is no administrator.
    pub fn for_platform(&self) -> Result<Self, Fault> {
        self.require(Permission::PlatformAdmin)?;
        let may = Permissions::OF_PLATFORM.and(Permission::PlatformAdmin);
        let is_user = self.has(Permission::AccountSelf);
        let permissions = if is_user { may.and(Permission::AccountSelf) } else { may };
        Ok(Self { team: TeamId::PLATFORM, permissions, ..*self })
    }

    /// Returns whether the caller has the permission.
    pub const fn has(&self, permission: Permission) -> bool {
        self.permissions.contains(permission)
    }

    /// Fails if the caller does not have the permission.
    pub fn require(&self, permission: Permission) -> Result<(), Fault> {
        if self.has(permission) {
            return Ok(());
        }
        let message = match permission {
            Permission::AccountSelf => {
                "this needs the permission account.self, which only users have: sign in, an API key is not enough"
                    .to_owned()
            }
            _ if self.team == TeamId::NONE && permission != Permission::PlatformAdmin => {
                "you are in no team: accept an invitation, create a team, or switch to one of yours".to_owned()
            }
            _ if self.team == TeamId::PLATFORM && Permissions::NOT_OF_PLATFORM.contains(permission) => {
                format!(
                    "this needs the permission {permission}, which nobody has for the platform: its team has no members, API \
                     keys and channels, and stays as it is; switch to another team for that"
                )
            }
            _ => format!("this needs the permission {permission}, which you do not have"),
        };
        Err(Fault::new(ErrorCode::Forbidden, message))
    }
}

macro_rules! permissions {
    ($($(#[doc = $doc:literal])* $name:ident = $text:literal;)*) => {
        /// Permission that an operation needs.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum Permission {
            $($(#[doc = $doc])* $name,)*
        }

        impl Permission {
            /// Every permission.
            pub const EVERY: &'static [Self] = &[$(Self::$name,)*];

            /// Name of the permission, as in the OpenAPI document.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }

        impl Permissions {
            /// Every permission.
            pub const ALL: Self = Self::NONE$(.and(Permission::$name))*;
            /// Every permission that is about what a team has.
            pub const OF_TEAM: Self = Self::ALL.without(Permission::PlatformAdmin).without(Permission::AccountSelf);
            /// What nobody may do for the platform: keys and channels go on without who made them, who may administer the platform
            /// no more, and its team has no members, name and end that somebody could change.
            const NOT_OF_PLATFORM: Self = Self::NONE
                .and(Permission::TeamUpdate)
                .and(Permission::TeamDelete)
                .and(Permission::MemberManage)
                .and(Permission::KeyManage)
                .and(Permission::ChannelManage);
            /// What administrators of the platform may do with what the platform has.
            pub const OF_PLATFORM: Self = Self::OF_TEAM.minus(Self::NOT_OF_PLATFORM);
        }
    };
}

permissions! {
    /// See sandboxes.
    SandboxRead = "sandbox.read";
    /// Create sandboxes.
    SandboxCreate = "sandbox.create";
    /// Pause, resume and change sandboxes.
    SandboxUpdate = "sandbox.update";
    /// Delete sandboxes.
    SandboxDelete = "sandbox.delete";
    /// See snapshots.
    SnapshotRead = "snapshot.read";
    /// Make snapshots of sandboxes.
    SnapshotCreate = "snapshot.create";
    /// Delete snapshots.
    SnapshotDelete = "snapshot.delete";
    /// See templates and builds.
    TemplateRead = "template.read";
    /// Build templates, and move their tags.
    TemplateBuild = "template.build";
    /// Delete templates.
    TemplateDelete = "template.delete";
    /// Run commands in sandboxes.
    SandboxExec = "sandbox.exec";
    /// Read files of sandboxes.
    FileRead = "file.read";
    /// Write files of sandboxes.
    FileWrite = "file.write";
    /// Receive events.
    EventRead = "event.read";
    /// See the team, its members and its quotas.
    TeamRead = "team.read";
    /// Change the team.
    TeamUpdate = "team.update";
    /// Delete the team, or give it to another owner.
    TeamDelete = "team.delete";
    /// Invite and remove members, and change their roles.
    MemberManage = "member.manage";
    /// See API keys, without their secrets.
    KeyRead = "key.read";
    /// Create, change and revoke API keys.
    KeyManage = "key.manage";
    /// See channels and their deliveries.
    ChannelRead = "channel.read";
    /// Create, change and delete channels.
    ChannelManage = "channel.manage";
    /// Read the audit log.
    AuditRead = "audit.read";
    /// See usage and statistics.
    UsageRead = "usage.read";
    /// Manage one's own account. Only users have it.
    AccountSelf = "account.self";
    /// Administer the platform: users, teams, hosts, sandboxes and templates of all teams.
    PlatformAdmin = "platform.admin";
}

impl Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Permission {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::EVERY.iter().copied().find(|permission| permission.as_str() == text).ok_or(())
    }
}

/// Set of permissions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permissions(u64);

impl Permissions {
    /// No permission.
    pub const NONE: Self = Self(0);

    /// Returns the set with one more permission.
    #[must_use]
    pub const fn and(self, permission: Permission) -> Self {
        Self(self.0 | 1 << permission as u32)
    }

    /// Returns the set with one permission less.
    #[must_use]
    pub const fn without(self, permission: Permission) -> Self {
        Self(self.0 & !(1 << permission as u32))
    }

    /// Returns the set without the permissions of another one.
    #[must_use]
    const fn minus(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Returns the permissions that both sets have.
    #[must_use]
    pub const fn both(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Returns whether the set has the permission.
    pub const fn contains(self, permission: Permission) -> bool {
        self.0 & 1 << permission as u32 != 0
    }

    /// Returns whether the set has all permissions of another one.
    pub const fn has_all(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Returns the permissions, in the order in which they are documented.
    pub fn each(self) -> impl Iterator<Item = Permission> {
        Permission::EVERY.iter().copied().filter(move |permission| self.contains(*permission))
    }

    /// Returns the names of the permissions, in the same order.
    pub fn names(self) -> Vec<String> {
        self.each().map(|permission| permission.as_str().to_owned()).collect()
    }
}

impl FromIterator<Permission> for Permissions {
    fn from_iter<T: IntoIterator<Item = Permission>>(all: T) -> Self {
        all.into_iter().fold(Self::NONE, Self::and)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_may_do_only_what_it_has_the_permission_for() {
        let may = |permissions, permission| {
            Caller::new(Principal::Key(ApiKeyId::new()), TeamId::new(), permissions).require(permission)
        };
        let reads = Permissions::NONE.and(Permission::SandboxRead);
        assert!(may(reads, Permission::SandboxRead).is_ok());
        let fault = may(reads, Permission::SandboxExec).expect_err("refused");
        assert_eq!(fault.code, ErrorCode::Forbidden);
        assert!(fault.message.contains("sandbox.exec"), "{}", fault.message);
        assert!(may(Permissions::ALL, Permission::EventRead).is_ok());
    }

    #[test]
    fn only_administrators_act_for_the_platform() {
        let of = |permissions| Caller::new(Principal::Key(ApiKeyId::new()), TeamId::new(), permissions);
        let admin = of(Permissions::ALL).for_platform().expect("an administrator");
        assert_eq!(admin.team(), TeamId::PLATFORM);
        assert!(admin.team().uuid().is_nil() && admin.require(Permission::TemplateBuild).is_ok());
        assert!(of(Permissions::OF_TEAM).require(Permission::EventRead).is_ok());
        let fault = of(Permissions::OF_TEAM).for_platform().expect_err("refused");
        assert_eq!(fault.code, ErrorCode::Forbidden);
        assert!(fault.message.contains("platform.admin"), "{}", fault.message);
    }

    #[test]
    fn nobody_makes_keys_of_the_platform() {
        let session = Principal::User { user: UserId::new(), session: SessionId::new() };
        let admin =
            Caller::new(session, TeamId::new(), Permissions::ALL).for_platform().expect("an administrator");
        assert_eq!(admin.for_platform().ok(), Some(admin));
        for may in [
            Permission::AccountSelf,
            Permission::PlatformAdmin,
            Permission::SandboxExec,
            Permission::AuditRead,
        ] {
            assert!(admin.require(may).is_ok(), "{may}");
        }
        for refused in [Permission::KeyManage, Permission::MemberManage, Permission::TeamDelete] {
            let fault = admin.require(refused).expect_err("refused");
            assert_eq!(fault.code, ErrorCode::Forbidden);
            let expected = format!("{refused}, which nobody has for the platform");
            assert!(fault.message.contains(&expected), "{}", fault.message);
        }
        let key = Caller::new(
            Principal::Key(ApiKeyId::new()),
            TeamId::new(),
            Permissions::OF_TEAM.and(Permission::PlatformAdmin),
        );
        assert!(key.for_platform().is_ok_and(|key| !key.has(Permission::AccountSelf)));
    }

    #[test]
    fn who_is_in_no_team_is_told_so() {
        let session = Principal::User { user: UserId::new(), session: SessionId::new() };
        let caller = Caller::new(session, TeamId::NONE, Permissions::NONE.and(Permission::AccountSelf));
        assert!(caller.require(Permission::AccountSelf).is_ok());
        let fault = caller.require(Permission::SandboxRead).expect_err("refused");
        assert!(fault.message.contains("no team"), "{}", fault.message);
    }

    #[test]
    fn names_are_of_one_permission_each() {
        for permission in Permission::EVERY {
            assert_eq!(permission.as_str().parse(), Ok(*permission));
        }
        assert_eq!("sandbox".parse::<Permission>(), Err(()));
        let all: Permissions = Permission::EVERY.iter().copied().collect();
        assert_eq!(all, Permissions::ALL);
        assert_eq!(all.each().count(), Permission::EVERY.len());
        assert!(all.has_all(Permissions::OF_TEAM) && !Permissions::OF_TEAM.has_all(all));
        assert!(!Permissions::OF_TEAM.contains(Permission::AccountSelf));
    }
}
