// SPDX-License-Identifier: Apache-2.0
//! Upkeep of what builds leave: layers that are not used any more, snapshots that nothing refers to, uploaded files, and old
//! builds with their logs; and of images of registries that nobody uses any more.

use std::time::Duration;

use super::files;
use crate::{
    db::{builds, images, layers, snapshots as snapshot_rows},
    error::Fault,
    snapshots,
    state::App,
};

/// Interval between rounds.
const ROUND: Duration = Duration::from_secs(10);
/// Age at which a snapshot of a build is removed that nothing refers to; a build in work refers to it soon, or never.
const SNAPSHOT: Duration = Duration::from_secs(3600);
/// Maximum number of snapshots and of layers that are removed in a round, and of builds that one statement deletes.
const SNAPSHOTS: i64 = 16;
const LAYERS: i64 = 1000;
const BUILDS: i64 = 1;
/// Maximum number of uses of images that are forgotten in a round.
const IMAGES: i64 = 100;
/// Age at which removals of images are forgotten, longer than any import takes.
const REMOVALS: Duration = Duration::from_secs(24 * 3600);

/// Removes what is not needed any more, until the server stops.
pub(crate) async fn run(app: App) {
    let mut unused = Vec::new();
    loop {
        let jobs = [
            ("layers that are not used", unused_layers(&app).await),
            ("snapshots of builds", unreferenced(&app).await),
            ("uploaded files", uploads(&app, &mut unused).await),
            ("images that are not used", unused_images(&app).await),
            ("old builds", old(&app).await),
        ];
        for (what, done) in jobs {
            if let Err(error) = done {
                tracing::warn!(%error, "{what} cannot be removed");
            }
        }
        tokio::select! {
            () = app.shutdown.cancelled() => return,
            () = tokio::time::sleep(ROUND) => {}
        }
    }
}

/// Time for which layers and images that are not used are kept, and builds that have ended.
fn kept(app: &App) -> Duration {
    Duration::from_secs(u64::from(app.builds.cache_days) * 24 * 3600)
}

async fn unused_layers(app: &App) -> Result<(), Fault> {
    let forgotten = layers::forget_unused(&app.db, kept(app), LAYERS).await?;
    if forgotten > 0 {
        tracing::info!(forgotten, "results of steps were not used for long and are removed");
    }
    Ok(())
}

async fn unused_images(app: &App) -> Result<(), Fault> {
    let doomed = images::forget_unused(&app.db, kept(app), IMAGES).await?;
    if doomed > 0 {
        tracing::info!(
            doomed,
            "images of registries were not used for long and are removed from their hosts"
        );
    }
    Ok(images::forget_removals(&app.db, REMOVALS).await?)
}

async fn unreferenced(app: &App) -> Result<(), Fault> {
    for row in snapshot_rows::take_unreferenced(&app.db, SNAPSHOT, app.limits.lease, SNAPSHOTS).await? {
        snapshots::remove_or_later(app, &row).await;
    }
    Ok(())
}

/// Removes files that no build needs, if that was so a round ago, too: `unused` are those. A server that shares the directory may
/// have files of a build that it is about to record.
async fn uploads(app: &App, unused: &mut Vec<String>) -> Result<(), Fault> {
    // This server is about to record a build.
    let Ok(_alone) = app.uploads.try_write() else { return Ok(()) };
    let mut all = files::tidy(app).await?;
    let in_use = builds::contexts_in_use(&app.db).await?;
    all.retain(|digest| !in_use.contains(digest));
    let (gone, later): (Vec<_>, Vec<_>) = all.into_iter().partition(|digest| unused.contains(digest));
    *unused = later;
    files::remove(app, gone).await
}

async fn old(app: &App) -> Result<(), Fault> {
    while builds::forget_ended(&app.db, kept(app), BUILDS).await? == BUILDS as u64 {}
    Ok(())
}
