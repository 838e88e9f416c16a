// SPDX-License-Identifier: Apache-2.0
//! Caller of an operation: who it is, for which team, and what it may do. Surfaces find it out from the
//! request; services get it, and never take a team from a path or a body.

use std::{fmt, fmt::Display};

use wrenn_api::{ApiKeyId, ErrorCode, SandboxId, TeamId};

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
    /// Somebody with a signed URL for a file of this sandbox.
    SignedUrl(SandboxId),
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

    /// Team for which the caller acts.
    pub const fn team(&self) -> TeamId {
        self.team
    }

    /// Fails if the caller does not have the permission.
    pub fn require(&self, permission: Permission) -> Result<(), Fault> {
        if self.permissions.contains(permission) {
            return Ok(());
        }
        let message = format!("this needs the permission {permission}, which you do not have");
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
            /// Name of the permission, as in the OpenAPI document.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }

        impl Permissions {
            /// Every permission.
            pub const ALL: Self = Self::NONE$(.and(Permission::$name))*;
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
    /// See templates.
    TemplateRead = "template.read";
    /// Run commands in sandboxes.
    SandboxExec = "sandbox.exec";
    /// Read files of sandboxes.
    FileRead = "file.read";
    /// Write files of sandboxes.
    FileWrite = "file.write";
    /// Receive events.
    EventRead = "event.read";
}

impl Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Set of permissions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permissions(u32);

impl Permissions {
    /// No permission.
    pub const NONE: Self = Self(0);

    /// Returns the set with one more permission.
    #[must_use]
    pub const fn and(self, permission: Permission) -> Self {
        Self(self.0 | 1 << permission as u32)
    }

    /// Returns whether the set has the permission.
    pub const fn contains(self, permission: Permission) -> bool {
        self.0 & 1 << permission as u32 != 0
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
}
