// SPDX-License-Identifier: Apache-2.0
//! An extension of Wrenn's control plane: it counts the starts of sandboxes by day, and lets no sandbox have more virtual CPUs than
//! its plan.

mod plan;
mod starts;

use std::sync::Arc;

use utoipa_axum::{router::OpenApiRouter, routes};
use wrenn_control::{Extension, Hooks, Migrations, Permission, Services, Worker, needs};

pub use plan::VCPUS;

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!();

/// The extension.
#[derive(Debug, Clone, Copy)]
pub struct Enterprise;

impl Extension for Enterprise {
    fn name(&self) -> &'static str {
        "enterprise"
    }

    fn routes(&self) -> OpenApiRouter<Services> {
        OpenApiRouter::new().routes(needs(Permission::SandboxRead, routes!(starts::list)))
    }

    fn migrations(&self) -> Option<Migrations> {
        Some(Migrations::new("enterprise", &MIGRATIONS))
    }

    fn workers(&self, services: &Services) -> Vec<Worker> {
        let services = services.clone();
        vec![Worker::new("daily starts", move || starts::sum_up(services.clone())).singleton()]
    }

    fn hooks(&self) -> Option<Arc<dyn Hooks>> {
        Some(Arc::new(plan::Plan))
    }
}
