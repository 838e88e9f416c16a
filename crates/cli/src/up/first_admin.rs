// SPDX-License-Identifier: Apache-2.0
//! The link with which the first administrator signs in. It is told to whoever starts Wrenn, and written to no log.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::timeout;
use wrenn_control::Admin;

use crate::{config::Config, layout::Layout, output::note};

/// Time limit for the database.
const LIMIT: Duration = Duration::from_secs(30);

/// Tells the link, unless the first administrator has signed in before. Without it everything else works, so a failure is only told.
pub(super) async fn tell(config: &Config, layout: &Layout) {
    if goes_to_journal() {
        return;
    }
    match link(config, layout).await {
        Ok(Some(link)) => note(&format!(
            "Sign in as the first administrator, once and within 24 hours, in a browser or with `wrenn login --link`:\n  {link}"
        )),
        Ok(None) => {}
        Err(error) => note(&format!(
            "There is no link to sign in: {error:#}. Make one with `wrenn user create ADDRESS --admin`."
        )),
    }
}

/// Returns whether what is told is kept in the journal of systemd: it names its device and inode.
fn goes_to_journal() -> bool {
    let Ok(journal) = std::env::var("JOURNAL_STREAM") else { return false };
    rustix::fs::fstat(std::io::stderr())
        .is_ok_and(|stat| format!("{}:{}", stat.st_dev, stat.st_ino) == journal)
}

async fn link(config: &Config, layout: &Layout) -> Result<Option<String>> {
    let database_url = config.machine().database_url.unwrap_or_else(|| layout.database_url());
    let admin = Admin::new(&database_url)?;
    let link = timeout(LIMIT, admin.first_admin_link()).await.context("the database did not answer")??;
    let url = config.server().mail.public_url.unwrap_or_else(|| config.local_url());
    Ok(link.map(|link| link.url(&url)))
}
