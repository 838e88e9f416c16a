// SPDX-License-Identifier: Apache-2.0
//! REST API of version 1: it renders requests and responses of the services, strictly as documented.

mod directories;
pub(super) mod error_responses;
mod events;
mod exec;
mod exec_body;
mod extract;
mod fault;
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
mod utf8;

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
        .routes(needs(Permission::SandboxExec, routes!(processes::list)))
        .routes(needs(Permission::SandboxExec, routes!(processes::signal)))
        .routes(needs(Permission::SandboxExec, routes!(ports::get)))
        .routes(needs(Permission::SandboxExec, routes!(ports::stream)))
        .routes(needs(Permission::FileWrite, routes!(files::write)))
        .routes(needs(Permission::FileRead, routes!(files::read)))
        .routes(needs(Permission::FileRead, routes!(directories::list)))
        .routes(needs(Permission::FileRead, routes!(directories::stat)))
        .routes(needs(Permission::FileWrite, routes!(directories::mkdir)))
        .routes(needs(Permission::FileWrite, routes!(directories::r#move)))
        .routes(needs(Permission::FileWrite, routes!(directories::remove)))
        .routes(needs(Permission::SnapshotCreate, routes!(snapshots::create)))
        .routes(needs(Permission::SnapshotRead, routes!(snapshots::list)))
        .routes(needs(Permission::SnapshotDelete, routes!(snapshots::delete)))
        .routes(needs(Permission::TemplateRead, routes!(templates::list)))
        .routes(needs(Permission::EventRead, routes!(events::stream)))
}
