// SPDX-License-Identifier: Apache-2.0
//! Images that teams upload: the archive is sent to a host, which makes an image of it, and the image is recorded under its name.

use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::{Stream, StreamExt as _, stream};
use tokio::{fs::File, io::AsyncReadExt as _};
use uuid::Uuid;
use wrenn_api::{ErrorCode, Image};
use wrenn_recipe::UploadedImage;
use wrenn_rpc::host::v1::{
    __buffa::oneof::load_image_request::Part,
    ImportImageResponse, LoadImageRequest,
    load_image_request::{Commit, Open},
};

use super::{Imported, TRIES, being_removed, until_removed};
use crate::{
    db::{
        hosts,
        images::{self, Use},
        uploaded_images::{self, Put, doom},
    },
    error::Fault,
    place::{Need, On, place},
    request_trace,
    state::App,
    upload::Upload,
};

/// Maximum number of images that a team has uploaded.
const UPLOADED_MAX: i64 = 100;
/// Bytes of an archive that are sent at once.
const PIECE: usize = 256 << 10;

/// An archive that was received, to be made an image of.
#[derive(Debug)]
pub(super) struct Archive {
    pub(super) team: Uuid,
    /// Name of the image; without one it is what the archive says.
    pub(super) name: Option<UploadedImage>,
    pub(super) upload: Upload,
    /// Number of its bytes.
    pub(super) size: u64,
}

/// Finds an image that the team has uploaded, and records that it is used now.
pub(crate) async fn find(app: &App, team: Uuid, image: &UploadedImage) -> Result<Imported, Fault> {
    let found = uploaded_images::find(&app.db, team, &image.reference()).await?;
    let missing = || {
        let message =
            format!("the team has uploaded no image {image}: load it (`wrenn image load`), or list them");
        Fault::new(ErrorCode::ImageNotFound, message)
    };
    Imported::of_uploaded(found.ok_or_else(missing)?)
}

/// Makes an image of an archive on a host, and records it. Both are completed if the caller does not wait: nobody would remove an
/// image that is not recorded.
pub(super) async fn load(app: &App, archive: Archive) -> Result<Image, Fault> {
    let known_as = archive.name.as_ref().map(UploadedImage::reference).unwrap_or_default();
    if uploaded_images::count_others(&app.db, archive.team, &known_as).await? >= UPLOADED_MAX {
        return Err(too_many());
    }
    let app = app.clone();
    let task = request_trace::spawn(async move { recorded(&app, &archive).await });
    task.await.map_err(|error| {
        tracing::error!(%error, "the task that loads an image failed");
        Fault::internal()
    })?
}

/// Makes an image of an archive and records it; once more if it was removed meanwhile.
async fn recorded(app: &App, archive: &Archive) -> Result<Image, Fault> {
    for _ in 0..TRIES {
        let asked_at = images::now(&app.db).await?;
        let (host, answer) = on_a_host(app, archive).await?;
        if let Some(image) = record(app, archive, host, answer, asked_at).await? {
            return Ok(image);
        }
    }
    Err(being_removed())
}

/// Sends an archive to a host with room, another one if a host does not answer.
async fn on_a_host(app: &App, archive: &Archive) -> Result<(Uuid, ImportImageResponse), Fault> {
    // The smallest sandbox: what starts from the image is placed later.
    let need =
        Need { template: "an uploaded image", vcpus: 1, memory_mb: 128, disk_size_mb: 512, on: On::Any };
    let mut away = None;
    for host in place(&hosts::candidates(&app.db).await?, &need)? {
        match on(app, host, archive).await {
            Err(fault) if fault.code == ErrorCode::HostUnavailable => away = Some(fault),
            ended => return ended.map(|answer| (host, answer)),
        }
    }
    Err(away.unwrap_or_else(Fault::internal))
}

async fn on(app: &App, host: Uuid, archive: &Archive) -> Result<ImportImageResponse, Fault> {
    let gone = || Fault::new(ErrorCode::HostUnavailable, "the host for the image is no longer registered");
    let address = hosts::address(&app.db, host).await?.ok_or_else(gone)?;
    let file = File::open(archive.upload.path()).await.map_err(|error| {
        tracing::error!(%error, "an archive that was uploaded cannot be read");
        Fault::internal()
    })?;
    let name = archive.name.as_ref().map(ToString::to_string).unwrap_or_default();
    let team_id = archive.team.to_string();
    let open = Open { size: archive.size, name, team_id, ..Default::default() };
    let limit = app.limits.image_import;
    let agent = app.agents.dedicated(host.into(), &address);
    let loaded = tokio::time::timeout(limit, agent.load_image(requests(open, file))).await;
    Ok(loaded.map_err(|_| late(limit))??.into_owned())
}

/// The messages of an archive. If it cannot be read to its end, the last one is missing.
fn requests(open: Open, file: File) -> impl Stream<Item = LoadImageRequest> + Send + 'static {
    let message = |part| LoadImageRequest { part: Some(part), ..Default::default() };
    let rest = stream::unfold(Some(file), |file| async move {
        let mut file = file?;
        let mut piece = Vec::with_capacity(PIECE);
        match (&mut file).take(PIECE as u64).read_to_end(&mut piece).await {
            Ok(0) => Some((Part::Commit(Commit::default().into()), None)),
            Ok(_) => Some((Part::Chunk(piece), Some(file))),
            Err(error) => {
                tracing::error!(%error, "an archive that was uploaded cannot be read");
                None
            }
        }
    });
    stream::once(async move { Part::Open(open.into()) }).chain(rest).map(message)
}

fn late(limit: Duration) -> Fault {
    let message = format!(
        "no host made an image of the archive within {} s (server.image_import_secs): load it again, or use a smaller one",
        limit.as_secs()
    );
    Fault::new(ErrorCode::Timeout, message)
}

fn too_many() -> Fault {
    let message = format!("the team has uploaded {UPLOADED_MAX} images, as many as it may: delete some");
    Fault::new(ErrorCode::TooManyRequests, message)
}

/// Records an image that a host has made. The one that had its name before is removed, if nothing needs it. `None` if the image may
/// have been removed since the host was asked for it; no removal is in work any more then.
async fn record(
    app: &App,
    archive: &Archive,
    host: Uuid,
    answer: ImportImageResponse,
    asked_at: DateTime<Utc>,
) -> Result<Option<Image>, Fault> {
    let told = answer.told_name.clone();
    let imported = Imported::of(host, answer)?;
    let name = match &archive.name {
        Some(name) => name.clone(),
        None => match told.parse::<UploadedImage>() {
            Ok(name) => name,
            Err(error) => {
                let mut db = app.db.acquire().await?;
                doom(&mut db, imported.image_id, host).await?;
                return Err(Fault::invalid(format!("name: the archive gives the image a name, and {error}")));
            }
        },
    };
    let reference = name.reference();
    let new = Use {
        team_id: archive.team,
        reference: &reference,
        host_id: host,
        image_id: imported.image_id,
        digest: &imported.digest,
        size_mb: imported.size_mb.into(),
        config: serde_json::to_value(&imported.config).unwrap_or_default(),
        asked_at,
    };
    let at = match uploaded_images::put(&app.db, new, UPLOADED_MAX).await? {
        Put::Done(at) => at,
        Put::TooMany => return Err(too_many()),
        Put::Removed => {
            until_removed(app, imported.image_id, host).await?;
            return Ok(None);
        }
    };
    tracing::info!(image = %imported.image_id, %host, skipped = imported.skipped, "an image was uploaded");
    Ok(Some(Image {
        reference,
        uploaded: true,
        digest: imported.digest,
        size_mb: imported.size_mb.into(),
        hosts: vec![host.into()],
        last_used_at: at,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_archive_is_sent_in_pieces_with_an_end() -> anyhow::Result<()> {
        for size in [0, 1, PIECE, 2 * PIECE + 5] {
            let archive = tempfile::NamedTempFile::new()?;
            std::fs::write(archive.path(), vec![7; size])?;
            let open = Open { size: size as u64, ..Default::default() };
            let parts: Vec<_> = requests(open, File::open(archive.path()).await?).collect().await;
            let mut sizes = Vec::new();
            for part in &parts[1..parts.len() - 1] {
                let Some(Part::Chunk(bytes)) = &part.part else { anyhow::bail!("{part:?}") };
                sizes.push(bytes.len());
            }
            assert!(matches!(parts[0].part, Some(Part::Open(_))));
            assert!(matches!(parts[parts.len() - 1].part, Some(Part::Commit(_))));
            assert_eq!(sizes.iter().sum::<usize>(), size);
            assert!(sizes.iter().all(|size| (1..=PIECE).contains(size)), "{sizes:?}");
        }
        Ok(())
    }
}
