// SPDX-License-Identifier: Apache-2.0
//! Callers of rows of the database: what a key, or a user in a team, may do.

use uuid::Uuid;
use wrenn_api::{TeamId, TeamRole};

use super::roles::{ADMIN, permissions};
use crate::{
    caller::{Caller, Permission, Permissions, Principal},
    db::{keys::Key, sessions::Session},
};

/// Returns the caller with a key.
pub(super) fn caller_of_key(row: &Key) -> Caller {
    Caller::new(Principal::Key(row.id.into()), row.team_id.into(), of_key(row))
}

/// Returns what a key may do: what its scopes name, but no more than its maker may, as long as that one is in the team.
fn of_key(row: &Key) -> Permissions {
    let wished: Permissions = match &row.scopes {
        Some(names) => names.iter().filter_map(|name| name.parse().ok()).collect(),
        None => ADMIN.and(Permission::PlatformAdmin),
    };
    let most = match (row.created_by, role(row.maker_role.as_deref())) {
        (_, Some(role)) => permissions(role),
        // Nobody in the team made it: the operator did.
        (None, None) => Permissions::OF_TEAM,
        // The maker left, and the team kept the key.
        (Some(_), None) => ADMIN,
    };
    let is_admin = row.is_admin && (row.created_by.is_none() || row.maker_is_admin == Some(true));
    wished.both(if is_admin { most.and(Permission::PlatformAdmin) } else { most })
}

/// Returns the caller of a session, in the session's team if the user is in it still.
pub(super) fn caller_of_session(row: &Session) -> Caller {
    caller_in(row, row.team_id.map_or(TeamId::NONE, TeamId::from))
}

/// Returns the user of a session as the caller in a team; in none, if the user is not in it. Nobody is in the platform's team: who
/// administers the platform acts for it.
pub(super) fn caller_in(row: &Session, team: TeamId) -> Caller {
    let is_platform = team == TeamId::PLATFORM;
    let role = role(row.role.as_deref()).filter(|_| !is_platform);
    let team = role.map_or(TeamId::NONE, |_| team);
    let of_user = role.map_or(Permissions::NONE, permissions).and(Permission::AccountSelf);
    let may = if row.is_admin { of_user.and(Permission::PlatformAdmin) } else { of_user };
    let (user, session): (Uuid, Uuid) = (row.user_id, row.id);
    let caller = Caller::new(Principal::User { user: user.into(), session: session.into() }, team, may);
    if is_platform { caller.for_platform().unwrap_or(caller) } else { caller }
}

fn role(name: Option<&str>) -> Option<TeamRole> {
    name?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key {
        Key {
            id: Uuid::now_v7(),
            team_id: Uuid::now_v7(),
            secret_sha256: Vec::new(),
            is_admin: false,
            scopes: None,
            expires_at: None,
            created_by: None,
            maker_role: None,
            maker_is_admin: None,
            unnoted: false,
        }
    }

    #[expect(clippy::unnecessary_wraps, reason = "as the fields have it")]
    fn scopes(names: &[&str]) -> Option<Vec<String>> {
        Some(names.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn a_key_without_scopes_does_what_administrators_of_the_team_may() {
        assert_eq!(of_key(&key()), ADMIN);
        let of_operator = Key { is_admin: true, ..key() };
        assert_eq!(of_key(&of_operator), ADMIN.and(Permission::PlatformAdmin));
    }

    #[test]
    fn a_key_does_no_more_than_its_maker_may_now() {
        let made = |role: Option<&str>, names: &[&str]| {
            let maker_role = role.map(str::to_owned);
            of_key(&Key { created_by: Some(Uuid::now_v7()), maker_role, scopes: scopes(names), ..key() })
        };
        let expected = Permissions::NONE.and(Permission::SandboxRead);
        assert_eq!(made(Some("member"), &["sandbox.read", "key.manage", "unknown"]), expected);
        assert_eq!(made(Some("admin"), &["sandbox.read", "team.delete"]), expected);
        assert_eq!(made(None, &["sandbox.read", "team.delete"]), expected);
        let both = expected.and(Permission::TeamDelete);
        assert_eq!(made(Some("owner"), &["sandbox.read", "team.delete"]), both);
        assert_eq!(made(Some("owner"), &["account.self", "platform.admin"]), Permissions::NONE);
    }

    #[test]
    fn a_key_of_who_administers_the_platform_no_more_does_not_either() {
        let made = |maker_is_admin, names: &[&str]| {
            let row = Key {
                is_admin: true,
                created_by: Some(Uuid::now_v7()),
                maker_role: Some("owner".to_owned()),
                maker_is_admin,
                scopes: scopes(names),
                ..key()
            };
            of_key(&row).contains(Permission::PlatformAdmin)
        };
        assert!(made(Some(true), &["platform.admin"]));
        assert!(!made(Some(true), &["sandbox.read"]));
        assert!(!made(Some(false), &["platform.admin"]));
        assert!(!made(None, &["platform.admin"]));
    }

    #[test]
    fn a_user_who_left_the_team_may_only_manage_the_account() {
        let team = Uuid::now_v7();
        let row = Session {
            id: Uuid::now_v7(),
            user_id: Uuid::now_v7(),
            team_id: Some(team),
            is_admin: false,
            role: None,
            unnoted: false,
        };
        let left = caller_of_session(&row);
        assert_eq!(left.team(), TeamId::NONE);
        assert_eq!(left.permissions(), Permissions::NONE.and(Permission::AccountSelf));
        let member = caller_of_session(&Session { role: Some("member".to_owned()), ..row });
        assert_eq!(member.permissions(), permissions(TeamRole::Member).and(Permission::AccountSelf));
        assert_eq!(member.team().uuid(), team);
    }

    #[test]
    fn only_who_administers_the_platform_acts_for_it() {
        let row = Session {
            id: Uuid::now_v7(),
            user_id: Uuid::now_v7(),
            team_id: Some(TeamId::PLATFORM.uuid()),
            is_admin: true,
            role: None,
            unnoted: false,
        };
        let admin = caller_of_session(&row);
        assert_eq!(admin.team(), TeamId::PLATFORM);
        let expected = Permissions::OF_PLATFORM.and(Permission::PlatformAdmin).and(Permission::AccountSelf);
        assert_eq!(admin.permissions(), expected);
        // Whatever the table of members has.
        let member = Session { is_admin: false, role: Some("owner".to_owned()), ..row };
        let member = caller_of_session(&member);
        assert_eq!(member.team(), TeamId::NONE);
        assert_eq!(member.permissions(), Permissions::NONE.and(Permission::AccountSelf));
    }
}
