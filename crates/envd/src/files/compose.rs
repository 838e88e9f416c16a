// SPDX-License-Identifier: Apache-2.0
//! `POST /files/compose`: joins files to one, such as the parts of a large upload, and removes them.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use axum::{
    Json,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse as _, Response},
};
use serde::Deserialize;

use super::{Caller, failed, unreadable, write::described};
use crate::{
    metadata::Metadata,
    regular,
    respond::error,
    settings::Settings,
    upload::{Rights, Upload},
};

/// Request body.
#[derive(Deserialize)]
struct Compose {
    #[serde(default)]
    source_paths: Vec<String>,
    #[serde(default)]
    destination: String,
    username: Option<String>,
}

/// Joins files. The destination is replaced when all is written; the sources are removed only then. The caller's token
/// has been checked.
pub(crate) async fn post(State(settings): State<Arc<Settings>>, headers: HeaderMap, body: Bytes) -> Response {
    join(&settings, &headers, &body).await.unwrap_or_else(|response| response)
}

async fn join(settings: &Settings, headers: &HeaderMap, body: &[u8]) -> Result<Response, Response> {
    let bad = |text: String| error(StatusCode::BAD_REQUEST, text);
    let request: Compose = serde_json::from_slice(body)
        .map_err(|cause| bad(format!("the body is not valid JSON for /files/compose: {cause}")))?;
    if request.source_paths.is_empty() {
        return Err(bad("source_paths is empty; name the files to join".into()));
    }
    if request.destination.is_empty() {
        return Err(bad("destination is missing".into()));
    }
    let caller = Caller::find(settings, headers, request.username.as_deref()).await?;
    let destination = caller.resolve(&request.destination)?;
    let resolve = |path: &String| caller.resolve(path);
    let sources = request.source_paths.iter().map(resolve).collect::<Result<Vec<_>, _>>()?;
    let (owner, place) = (caller.user, destination.clone());
    // Opened before anything is written, so that a missing one changes nothing.
    let opened = tokio::task::spawn_blocking(move || {
        check(&sources, &place)?;
        let upload = Upload::open(&place, &owner, true).map_err(|e| failed("write", &place, &e))?;
        Ok::<_, Response>((upload, sources))
    });
    let lost = |cause: tokio::task::JoinError| error(StatusCode::INTERNAL_SERVER_ERROR, cause.to_string());
    let (upload, sources) = opened.await.map_err(lost)??;
    let output =
        upload.file.try_clone().await.map_err(|e| failed("write", &destination, &e))?.into_std().await;
    let place = destination.clone();
    let copied = tokio::task::spawn_blocking(move || {
        copy(&sources, output, &place)?;
        Ok::<_, Response>(sources)
    });
    let sources = copied.await.map_err(lost)??;
    let kept = upload
        .finish(&Metadata::new(), Rights::default())
        .await
        .map_err(|e| failed("write", &destination, &e))?;
    let removed = tokio::task::spawn_blocking(move || {
        // One that was named twice, or that somebody else has removed, is gone already.
        sources.iter().for_each(|source| drop(fs::remove_file(source)));
    });
    removed.await.map_err(lost)?;
    Ok(Json(described(&destination, &kept)).into_response())
}

/// Checks that the sources can be read and that none of them is the destination, also under another name.
fn check(sources: &[PathBuf], destination: &Path) -> Result<(), Response> {
    let same = fs::metadata(destination).ok().map(|meta| (meta.dev(), meta.ino()));
    for source in sources {
        let meta =
            regular::open(source).and_then(|file| file.metadata()).map_err(|e| unreadable(source, &e))?;
        if source == destination || same == Some((meta.dev(), meta.ino())) {
            let text = format!("{} is both source and destination", source.display());
            return Err(error(StatusCode::BAD_REQUEST, text));
        }
    }
    Ok(())
}

/// Appends the sources to the output, within the kernel where that is possible.
fn copy(sources: &[PathBuf], mut output: File, destination: &Path) -> Result<(), Response> {
    for source in sources {
        let mut input = regular::open(source).map_err(|e| unreadable(source, &e))?;
        io::copy(&mut input, &mut output).map_err(|e| failed("write", destination, &e))?;
    }
    Ok(())
}
