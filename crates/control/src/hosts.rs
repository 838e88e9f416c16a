// SPDX-License-Identifier: Apache-2.0
//! Hosts service: what is known of the hosts of the fleet.

use sqlx::PgPool;
use wrenn_api::DriverHealth;

use crate::{db::hosts, error::Fault};

/// Hosts of the fleet.
#[derive(Clone)]
pub struct Hosts {
    db: PgPool,
}

impl Hosts {
    pub(crate) const fn new(db: PgPool) -> Self {
        Self { db }
    }

    /// Counts the online hosts by VMM driver.
    pub async fn online(&self) -> Result<Vec<DriverHealth>, Fault> {
        let driver = |online: hosts::Online| {
            let hosts::Online { driver, security_boundary, hosts } = online;
            DriverHealth { driver, security_boundary, hosts: hosts.try_into().unwrap_or_default() }
        };
        Ok(hosts::online(&self.db).await?.into_iter().map(driver).collect())
    }
}
