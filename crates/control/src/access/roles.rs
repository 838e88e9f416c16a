// SPDX-License-Identifier: Apache-2.0
//! What each role in a team may do.

use wrenn_api::TeamRole;

use crate::caller::{Permission, Permissions};

/// What members may do.
const MEMBER: Permissions = Permissions::OF_TEAM
    .without(Permission::TeamUpdate)
    .without(Permission::TeamDelete)
    .without(Permission::MemberManage)
    .without(Permission::KeyManage)
    .without(Permission::ChannelManage)
    .without(Permission::AuditRead);
/// What administrators of a team may do.
pub(super) const ADMIN: Permissions = Permissions::OF_TEAM.without(Permission::TeamDelete);

/// Returns what a role may do in its team.
pub(crate) const fn permissions(role: TeamRole) -> Permissions {
    match role {
        TeamRole::Member => MEMBER,
        TeamRole::Admin => ADMIN,
        TeamRole::Owner => Permissions::OF_TEAM,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_role_may_do_what_the_ones_before_it_may() {
        for [lower, higher] in [[TeamRole::Member, TeamRole::Admin], [TeamRole::Admin, TeamRole::Owner]] {
            assert!(permissions(higher).has_all(permissions(lower)));
            assert!(!permissions(lower).has_all(permissions(higher)));
        }
        for of_user in [Permission::PlatformAdmin, Permission::AccountSelf] {
            assert!(!permissions(TeamRole::Owner).contains(of_user), "{of_user}");
        }
    }

    #[test]
    fn what_a_role_may_do_beyond_the_one_before_it() {
        let more = |role, than| -> Vec<&str> {
            let beyond = permissions(role).each().filter(|one| !permissions(than).contains(*one));
            beyond.map(Permission::as_str).collect()
        };
        assert_eq!(more(TeamRole::Owner, TeamRole::Admin), ["team.delete"]);
        let of_admin = ["team.update", "member.manage", "key.manage", "channel.manage", "audit.read"];
        assert_eq!(more(TeamRole::Admin, TeamRole::Member), of_admin);
    }
}
