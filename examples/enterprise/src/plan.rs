// SPDX-License-Identifier: Apache-2.0
//! The plan: how large sandboxes may be, and the record of their starts, which is what is billed.

use futures::future::{self, BoxFuture};
use sqlx::{PgConnection, PgPool};
use wrenn_api::{CreateSandbox, ErrorCode, Event, EventKind, SandboxStatus, TeamId};
use wrenn_control::{Caller, Fault, Hooks};

/// Maximum number of virtual CPUs of a sandbox.
pub const VCPUS: u32 = 4;

/// Hooks of the plan.
pub(crate) struct Plan;

impl Hooks for Plan {
    fn before_create<'a>(
        &'a self,
        _: &'a PgPool,
        _: &'a Caller,
        new: &'a mut CreateSandbox,
    ) -> BoxFuture<'a, Result<(), Fault>> {
        let told = match new.vcpus {
            Some(vcpus) if vcpus > VCPUS => {
                let message =
                    format!("vcpus is {vcpus}, and the plan of your team has {VCPUS}: ask for less");
                Err(Fault::of_extension("plan_exceeded", ErrorCode::Forbidden, message))
            }
            _ => Ok(()),
        };
        Box::pin(future::ready(told))
    }

    fn on_event<'a>(
        &'a self,
        transaction: &'a mut PgConnection,
        team: TeamId,
        event: &'a Event,
    ) -> BoxFuture<'a, Result<(), Fault>> {
        Box::pin(async move {
            let Event::Sandbox(event) = event else { return Ok(()) };
            if event.kind == EventKind::Sandbox(SandboxStatus::Running) {
                // Not checked at compile time: the table is not part of Wrenn's schema.
                sqlx::query("INSERT INTO enterprise.starts (team_id, at) VALUES ($1, $2)")
                    .bind(team.uuid())
                    .bind(event.at)
                    .execute(transaction)
                    .await?;
            }
            Ok(())
        })
    }
}
