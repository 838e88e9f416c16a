// SPDX-License-Identifier: Apache-2.0
//! REST API of version 1: it renders requests and responses of the services, strictly as documented.

mod content;
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
mod lifecycle;
#[cfg(test)]
mod overload_tests;
mod ports;
mod process_stream;
mod processes;
mod sandboxes;
mod snapshots;
mod templates;
mod terminals;
mod utf8;
mod web_socket;

use utoipa_axum::{router::OpenApiRouter, routes};

use super::permission::needs;
use crate::{caller::Permission, services::Services};

/// Routes of the API, each with the permission that it needs.
pub(super) fn routes() -> OpenApiRouter<Services> {
    OpenApiRouter::new()
        .routes(needs(Permission::SandboxCreate, routes!(sandboxes::create)))
        .routes(needs(Permission::SandboxRead, routes!(sandboxes::list)))
        .routes(needs(Permission::SandboxRead, routes!(sandboxes::get)))
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
        .routes(needs(Permission::EventRead, routes!(events::stream)))
}
