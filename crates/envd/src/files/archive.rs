// SPDX-License-Identifier: Apache-2.0
//! `/files/archive` (extension): a directory with its content as a tar archive, read and unpacked with the rights of the user.

use std::{
    fs, io,
    io::{Read, Write},
    path::Path,
    sync::Arc,
};

use axum::{
    Json,
    body::{Body, Bytes},
    extract::{Query, Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use futures::{StreamExt as _, stream};
use serde_json::json;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};
use wrenn_archive::{ArchiveError, Owners, Rules};

use super::{Caller, Params};
use crate::{
    log,
    parents::make_dirs_of,
    respond::{error, error_with_reason},
    rights,
    settings::Settings,
    unread,
    users::{self, Ids, User, UserError},
};

/// Number of pieces between the thread that works on an archive and the connection.
const PENDING: usize = 4;
/// Maximum number of archives at once; further ones wait.
static PLACES: Semaphore = Semaphore::const_new(16);

type Piece = io::Result<Bytes>;

/// Sends a directory as an archive. Owners are numbers of this machine.
pub(crate) async fn get(
    State(settings): State<Arc<Settings>>,
    Query(params): Query<Params>,
    headers: HeaderMap,
) -> Response {
    read(&settings, &params, &headers).await.unwrap_or_else(|response| response)
}

async fn read(settings: &Settings, params: &Params, headers: &HeaderMap) -> Result<Response, Response> {
    let caller = Caller::find(settings, headers, params.username.as_deref()).await?;
    let path = caller.resolve(params.path.as_deref().unwrap_or_default())?;
    let place = place().await?;
    let (user, checked) = (caller.user.clone(), path.clone());
    let readable = rights::with(user, move || wrenn_archive::check(&checked)).await;
    readable.map_err(|e| broken(&e))?.map_err(|e| refused("read", &path, &e))?;
    let (pieces, sent) = mpsc::channel::<Piece>(PENDING);
    let request = log::request_id(headers).map(str::to_owned);
    tokio::spawn(async move {
        let sink = Sink(pieces.clone());
        let packing = rights::with(caller.user, move || wrenn_archive::pack(&path, sink, true));
        let cause = match packing.await {
            // It is complete, or the client has left.
            Ok(Ok(_) | Err(ArchiveError::Stream(_))) => return,
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        log::line(request.as_deref(), format_args!("an archive broke off: {cause}"));
        // The transfer must fail visibly.
        let _ = pieces.send(Err(io::Error::other(cause))).await;
    });
    let body =
        stream::unfold((sent, place), async |(mut sent, place)| Some((sent.recv().await?, (sent, place))));
    let head = Response::builder().header(header::CONTENT_TYPE, "application/x-tar");
    head.body(Body::from_stream(body)).map_err(|e| broken(&e))
}

/// Unpacks an archive into a directory, which is made with its parents if it is missing. With `owner` or `group` that is whose
/// everything becomes that is made or replaced. Else owners are those of the archive if root asks by name.
pub(crate) async fn put(
    State(settings): State<Arc<Settings>>,
    Query(params): Query<Params>,
    request: Request,
) -> Response {
    write(&settings, &params, request).await.unwrap_or_else(|response| response)
}

async fn write(settings: &Settings, params: &Params, request: Request) -> Result<Response, Response> {
    let caller = Caller::find(settings, request.headers(), params.username.as_deref()).await?;
    let request = unread::discarding(request);
    let path = caller.resolve(params.path.as_deref().unwrap_or_default())?;
    let owners = owners(&caller.user, params).await?;
    let _place = place().await?;
    let (pieces, given) = mpsc::channel::<Piece>(PENDING);
    let into = path.clone();
    let unpacking = rights::with(caller.user, move || {
        let fresh = make(&into, owners)?;
        let rules = Rules { owners, fresh, sync: true };
        wrenn_archive::unpack(Source { pieces: given, piece: Bytes::new() }, &into, rules)
    });
    let mut body = request.into_body().into_data_stream();
    let feeding = async move {
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(io::Error::other);
            let broken = piece.is_err();
            // It takes no more after an error, which is its result.
            if pieces.send(piece).await.is_err() || broken {
                break;
            }
        }
    };
    let (unpacked, ()) = futures::join!(unpacking, feeding);
    let unpacked = unpacked.map_err(|e| broken(&e))?.map_err(|e| refused("unpack into", &path, &e))?;
    Ok(Json(json!({"entries": unpacked.entries, "bytes": unpacked.bytes})).into_response())
}

/// Finds out whom what is unpacked is to belong to. Without `group` that is the group of `owner`, and without `owner` the user.
/// Fails if the guest does not know them, or if the user may not give files to them.
async fn owners(user: &User, params: &Params) -> Result<Owners, Response> {
    let given = [&params.username, &params.owner, &params.group];
    let [username, owner, group] = given.map(|given| given.as_deref().unwrap_or_default());
    if owner.is_empty() && group.is_empty() {
        let of_archive = user.uid == 0 && !username.is_empty();
        return Ok(if of_archive { Owners::OfArchive } else { Owners::OfProcess });
    }
    let unknown = |cause: UserError| error(StatusCode::BAD_REQUEST, cause.to_string());
    let owner = match owner {
        "" => user.clone(),
        name => users::find(name.to_owned()).await.map_err(unknown)?,
    };
    let group = Ids::find("", group).await.map_err(unknown)?.group.unwrap_or(owner.gid);
    // Before anything is written: the kernel would refuse the first file only.
    if user.uid != 0 && (owner.uid != user.uid || !user.groups.contains(&group)) {
        let text = format!(
            "user '{}' may not give files to user '{}' with group {group}: only root may, so unpack as root",
            user.name, owner.name
        );
        return Err(error(StatusCode::FORBIDDEN, text));
    }
    Ok(Owners::Given { user: owner.uid, group })
}

async fn place() -> Result<SemaphorePermit<'static>, Response> {
    PLACES.acquire().await.map_err(|e| broken(&e))
}

/// Makes the directory with its parents unless it exists; returns whether it did not.
fn make(path: &Path, owners: Owners) -> Result<bool, ArchiveError> {
    // What is no directory is refused when it is opened.
    if fs::metadata(path).is_ok() {
        return Ok(false);
    }
    let made = match owners {
        Owners::Given { user, group } => make_dirs_of(path, user, group),
        Owners::OfProcess | Owners::OfArchive => fs::create_dir_all(path),
    };
    made.map(|()| true).map_err(|source| ArchiveError::at(path, "make", source))
}

fn broken(cause: &dyn std::fmt::Display) -> Response {
    error(StatusCode::INTERNAL_SERVER_ERROR, cause.to_string())
}

/// Response for an archive that could not be made or unpacked.
fn refused(action: &str, path: &Path, cause: &ArchiveError) -> Response {
    use io::ErrorKind as K;
    let text = format!("cannot {action} {}: {cause}", path.display());
    let ArchiveError::Files { source, .. } = cause else { return error(StatusCode::BAD_REQUEST, text) };
    let status = match source.kind() {
        K::NotFound => StatusCode::NOT_FOUND,
        K::PermissionDenied | K::ReadOnlyFilesystem => StatusCode::FORBIDDEN,
        K::StorageFull | K::QuotaExceeded => StatusCode::INSUFFICIENT_STORAGE,
        K::NotADirectory => return error_with_reason(StatusCode::BAD_REQUEST, "not_a_directory", text),
        K::InvalidInput | K::InvalidFilename => StatusCode::BAD_REQUEST,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    error(status, text)
}

/// Writes to the connection, from a thread that may wait.
struct Sink(mpsc::Sender<Piece>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = Bytes::copy_from_slice(bytes);
        let sent = self.0.blocking_send(Ok(piece));
        sent.map(|()| bytes.len()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads from the connection, on a thread that may wait.
struct Source {
    pieces: mpsc::Receiver<Piece>,
    piece: Bytes,
}

impl Read for Source {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.piece = piece?,
                None => return Ok(0),
            }
        }
        let length = into.len().min(self.piece.len());
        into[..length].copy_from_slice(&self.piece.split_to(length));
        Ok(length)
    }
}
