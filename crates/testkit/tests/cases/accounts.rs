// SPDX-License-Identifier: Apache-2.0
//! The commands of `wrenn` for users, sign-ins, contexts, API keys, teams, channels, the audit log and usage, as people use them who
//! are not on the server's machine.

mod contexts;
mod home;
mod keys;
mod records;
mod sign_in;
mod teams;
mod users;

pub(crate) use self::{
    contexts::servers_are_kept_apart,
    keys::{a_lost_key_is_no_dead_end, keys_do_what_their_scopes_say},
    records::what_a_team_does_is_delivered_recorded_and_counted,
    sign_in::{keys_are_kept_and_forgotten, passwords_are_typed_and_sessions_end},
    teams::members_come_and_go_and_the_owner_changes,
    users::users_are_made_shut_out_and_deleted,
};
