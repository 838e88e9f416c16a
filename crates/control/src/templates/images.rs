// SPDX-License-Identifier: Apache-2.0
//! Removal of images from hosts on which nothing refers to them any more: no version of a template, and no use of a team.

use std::time::Duration;

use futures::future::join_all;
use wrenn_api::ErrorCode;
use wrenn_rpc::host::v1::DeleteImageRequest;

use crate::{
    agents::{deadline, within},
    db::{
        hosts,
        templates::{self, DoomedImage},
    },
    error::Fault,
    images,
    state::App,
};

/// Interval between looks for images that are to be removed, and how many are removed at a time.
const LOOK: Duration = Duration::from_secs(2);
const AT_A_TIME: i64 = 16;
/// Time until a removal that failed is tried again, longer than one takes. It fails while sandboxes have disks from the image.
const AGAIN: Duration = deadline::DESTROY.saturating_add(Duration::from_secs(15));

/// Removes images that are not needed any more, until the server stops.
pub(crate) async fn upkeep(app: App) {
    loop {
        match templates::take_doomed_images(&app.db, AGAIN, AT_A_TIME).await {
            // All at once, so that a host that hangs delays no other one's images for long.
            Ok(images) => {
                join_all(images.into_iter().map(|image| try_remove(&app, image))).await;
            }
            Err(error) => tracing::warn!(%error, "images that are to be removed cannot be looked for"),
        }
        tokio::select! {
            () = app.shutdown.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

async fn try_remove(app: &App, image: DoomedImage) {
    match remove(app, image).await {
        Ok(()) => {}
        Err(Fault { code: ErrorCode::Conflict, .. }) => {
            tracing::debug!(image = %image.image_id, "an image is kept while there are disks from it");
            if let Err(error) = templates::removal_ended(&app.db, image.image_id, image.host_id).await {
                tracing::warn!(image = %image.image_id, %error, "that an image is kept cannot be recorded");
            }
        }
        Err(error) => tracing::warn!(image = %image.image_id, %error, "an image is not removed yet"),
    }
}

/// Removes an image from its host, and forgets it.
async fn remove(app: &App, DoomedImage { image_id, host_id }: DoomedImage) -> Result<(), Fault> {
    let gone = || Fault::new(ErrorCode::HostUnavailable, "the image's host is no longer registered");
    let address = hosts::address(&app.db, host_id).await?.ok_or_else(gone)?;
    let agent = app.agents.at(host_id.into(), &address);
    let request = DeleteImageRequest { image_id: images::on_host(image_id), ..Default::default() };
    agent.delete_image_with_options(request, within(deadline::DESTROY)).await?;
    Ok(templates::forget_image(&app.db, image_id, host_id).await?)
}
