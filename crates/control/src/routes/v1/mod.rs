// SPDX-License-Identifier: Apache-2.0
//! REST API of version 1: it renders requests and responses of the services, strictly as documented.

mod accounts;
mod admin_builds;
mod admin_fleet;
mod admin_teams;
mod admin_templates;
mod admin_users;
mod api_keys;
mod audit;
mod build_form;
mod build_logs;
mod builds;
mod channels;
mod content;
mod deliveries;
mod directories;
mod download;
pub(super) mod error_responses;
mod events;
mod exec;
mod exec_body;
mod extract;
mod fault;
pub(super) mod file_urls;
mod file_watch;
mod files;
mod form;
mod images;
mod invitations;
mod lifecycle;
mod me;
mod members;
mod metrics;
mod oauth;
mod oauth_cookie;
#[cfg(test)]
mod overload_tests;
mod paging;
mod ports;
mod process_stream;
mod processes;
mod sandboxes;
mod snapshots;
mod sse;
mod teams;
mod templates;
mod terminals;
mod tickets;
mod usage;
mod utf8;
mod web_socket;

use utoipa_axum::{router::OpenApiRouter, routes};

use super::permission::{needs, needs_caller, needs_in_team};
use crate::{caller::Permission, services::Services};

/// Routes for those who are not signed in: they need no permission.
pub(super) fn open_routes() -> OpenApiRouter<Services> {
    OpenApiRouter::new()
        .routes(routes!(accounts::sign_up))
        .routes(routes!(accounts::activate))
        .routes(routes!(accounts::login))
        .routes(routes!(accounts::sign_in_link))
        .routes(routes!(accounts::request_reset))
        .routes(routes!(accounts::confirm_reset))
        .routes(routes!(oauth::begin))
        .routes(routes!(oauth::finish))
}

/// Routes of the API, each with the permission that it needs.
pub(super) fn routes() -> OpenApiRouter<Services> {
    OpenApiRouter::new()
        .routes(needs(Permission::SandboxCreate, routes!(sandboxes::create)))
        .routes(needs(Permission::SandboxRead, routes!(sandboxes::list)))
        .routes(needs(Permission::SandboxRead, routes!(sandboxes::get)))
        .routes(needs(Permission::SandboxRead, routes!(metrics::read)))
        .routes(needs(Permission::SandboxDelete, routes!(sandboxes::delete)))
        .routes(needs(Permission::SandboxUpdate, routes!(lifecycle::update)))
        .routes(needs(Permission::SandboxUpdate, routes!(lifecycle::pause)))
        .routes(needs(Permission::SandboxUpdate, routes!(lifecycle::resume)))
        .routes(needs(Permission::SandboxUpdate, routes!(lifecycle::ping)))
        .routes(needs(Permission::SandboxExec, routes!(exec::exec)))
        .routes(needs(Permission::SandboxExec, routes!(process_stream::exec_stream)))
        .routes(needs(Permission::SandboxExec, routes!(process_stream::process_stream)))
        .routes(needs(Permission::SandboxExec, routes!(process_stream::terminal)))
        .routes(needs(Permission::SandboxExec, routes!(terminals::screen)))
        .routes(needs(Permission::SandboxExec, routes!(processes::list)))
        .routes(needs(Permission::SandboxExec, routes!(processes::signal)))
        .routes(needs(Permission::SandboxExec, routes!(ports::get)))
        .routes(needs(Permission::SandboxExec, routes!(ports::stream)))
        .routes(needs(Permission::FileWrite, routes!(files::write)))
        .routes(needs(Permission::FileRead, routes!(files::read)))
        .routes(needs(Permission::FileWrite, routes!(files::stream_write)))
        .routes(needs(Permission::FileRead, routes!(files::stream_read)))
        .routes(needs(Permission::FileRead, routes!(content::read)))
        .routes(needs(Permission::FileWrite, routes!(content::write)))
        .routes(needs(Permission::FileRead, routes!(content::read_archive)))
        .routes(needs(Permission::FileWrite, routes!(content::write_archive)))
        .routes(needs(Permission::FileRead, routes!(file_watch::watch)))
        .routes(needs(Permission::FileRead, routes!(file_urls::sign)))
        .routes(needs(Permission::FileRead, routes!(directories::list)))
        .routes(needs(Permission::FileRead, routes!(directories::stat)))
        .routes(needs(Permission::FileWrite, routes!(directories::mkdir)))
        .routes(needs(Permission::FileWrite, routes!(directories::r#move)))
        .routes(needs(Permission::FileWrite, routes!(directories::remove)))
        .routes(needs(Permission::FileWrite, routes!(directories::copy)))
        .routes(needs(Permission::FileWrite, routes!(directories::change)))
        .routes(needs(Permission::SnapshotCreate, routes!(snapshots::create)))
        .routes(needs(Permission::SnapshotRead, routes!(snapshots::list)))
        .routes(needs(Permission::SnapshotDelete, routes!(snapshots::delete)))
        .routes(needs(Permission::TemplateRead, routes!(templates::list)))
        .routes(needs(Permission::TemplateRead, routes!(templates::versions)))
        .routes(needs(Permission::TemplateBuild, routes!(templates::move_tag)))
        .routes(needs(Permission::TemplateDelete, routes!(templates::delete)))
        .routes(needs(Permission::TemplateBuild, routes!(templates::prune)))
        .routes(needs(Permission::PlatformAdmin, routes!(admin_builds::create)))
        .routes(needs(Permission::PlatformAdmin, routes!(admin_builds::list)))
        .routes(needs(Permission::PlatformAdmin, routes!(admin_builds::get)))
        .routes(needs(Permission::PlatformAdmin, routes!(admin_builds::cancel)))
        .routes(needs(Permission::PlatformAdmin, routes!(admin_builds::stream)))
        .routes(needs(Permission::PlatformAdmin, routes!(admin_templates::move_tag)))
        .routes(needs(Permission::PlatformAdmin, routes!(admin_templates::delete)))
        .routes(needs(Permission::PlatformAdmin, routes!(admin_templates::prune)))
        .routes(needs(Permission::TemplateBuild, routes!(builds::create)))
        .routes(needs(Permission::TemplateRead, routes!(builds::list)))
        .routes(needs(Permission::TemplateRead, routes!(builds::get)))
        .routes(needs(Permission::TemplateBuild, routes!(builds::cancel)))
        .routes(needs(Permission::TemplateRead, routes!(build_logs::stream)))
        .routes(needs(Permission::TemplateBuild, routes!(images::load)))
        .routes(needs(Permission::TemplateRead, routes!(images::list)))
        .routes(needs(Permission::TemplateDelete, routes!(images::delete)))
        .routes(needs(Permission::EventRead, routes!(events::stream)))
        .routes(needs(Permission::ChannelManage, routes!(channels::create)))
        .routes(needs(Permission::ChannelRead, routes!(channels::list)))
        .routes(needs(Permission::ChannelRead, routes!(channels::get)))
        .routes(needs(Permission::ChannelManage, routes!(channels::update)))
        .routes(needs(Permission::ChannelManage, routes!(channels::configure)))
        .routes(needs(Permission::ChannelManage, routes!(channels::delete)))
        .routes(needs(Permission::ChannelManage, routes!(channels::test)))
        .routes(needs(Permission::ChannelRead, routes!(deliveries::list)))
        .routes(needs(Permission::ChannelManage, routes!(deliveries::redeliver)))
        .routes(needs(Permission::KeyManage, routes!(api_keys::create)))
        .routes(needs(Permission::KeyRead, routes!(api_keys::list)))
        .routes(needs(Permission::KeyManage, routes!(api_keys::update)))
        .routes(needs(Permission::KeyManage, routes!(api_keys::revoke)))
        .routes(needs_caller(routes!(tickets::create)))
        .routes(needs(Permission::AccountSelf, routes!(me::logout)))
        .routes(needs(Permission::AccountSelf, routes!(me::switch_team)))
        .routes(needs(Permission::AccountSelf, routes!(me::get)))
        .routes(needs(Permission::AccountSelf, routes!(me::update)))
        .routes(needs(Permission::AccountSelf, routes!(me::delete)))
        .routes(needs(Permission::AccountSelf, routes!(me::change_password)))
        .routes(needs(Permission::AccountSelf, routes!(me::sessions)))
        .routes(needs(Permission::AccountSelf, routes!(me::end_session)))
        .routes(needs(Permission::AccountSelf, routes!(oauth::connect)))
        .routes(needs(Permission::AccountSelf, routes!(oauth::disconnect)))
        .routes(needs(Permission::AuditRead, routes!(audit::list)))
        .routes(needs(Permission::AuditRead, routes!(audit::export)))
        .routes(needs(Permission::PlatformAdmin, routes!(audit::list_all)))
        .routes(needs(Permission::UsageRead, routes!(usage::read)))
        .routes(needs(Permission::UsageRead, routes!(usage::stats)))
        .routes(needs(Permission::AccountSelf, routes!(teams::create)))
        .routes(needs_caller(routes!(teams::list)))
        .routes(needs_in_team(Permission::TeamRead, routes!(teams::get)))
        .routes(needs_in_team(Permission::TeamUpdate, routes!(teams::update)))
        .routes(needs_in_team(Permission::TeamDelete, routes!(teams::delete)))
        .routes(needs_in_team(Permission::TeamRead, routes!(teams::quotas)))
        .routes(needs_in_team(Permission::TeamRead, routes!(members::list)))
        .routes(needs_in_team(Permission::MemberManage, routes!(members::update)))
        .routes(needs_in_team(Permission::MemberManage, routes!(members::remove)))
        .routes(needs(Permission::AccountSelf, needs_in_team(Permission::TeamRead, routes!(members::leave))))
        .routes(needs_in_team(Permission::TeamDelete, routes!(members::transfer)))
        .routes(needs_in_team(Permission::MemberManage, routes!(invitations::create)))
        .routes(needs_in_team(Permission::MemberManage, routes!(invitations::list)))
        .routes(needs_in_team(Permission::MemberManage, routes!(invitations::withdraw)))
        .routes(needs(Permission::AccountSelf, routes!(invitations::mine)))
        .routes(needs(Permission::AccountSelf, routes!(invitations::accept)))
        .routes(needs(Permission::PlatformAdmin, routes!(admin_users::list)))
        .routes(needs(Permission::PlatformAdmin, routes!(admin_users::set_active)))
        .routes(needs(Permission::PlatformAdmin, routes!(admin_users::set_admin)))
        .routes(needs(Permission::PlatformAdmin, routes!(admin_users::delete)))
        .routes(needs(Permission::PlatformAdmin, routes!(admin_teams::list)))
        .routes(needs(Permission::PlatformAdmin, routes!(admin_teams::set_byoc)))
        .routes(needs(Permission::PlatformAdmin, routes!(admin_teams::set_quotas)))
        .routes(needs(Permission::PlatformAdmin, routes!(admin_teams::delete)))
        .routes(needs(Permission::PlatformAdmin, routes!(admin_fleet::hosts)))
        .routes(needs(Permission::PlatformAdmin, routes!(admin_fleet::sandboxes)))
        .routes(needs(Permission::PlatformAdmin, routes!(admin_fleet::delete_sandbox)))
        .routes(needs(Permission::PlatformAdmin, routes!(admin_fleet::templates)))
}
