// SPDX-License-Identifier: Apache-2.0
//! `/files`, `/files/archive` and `/files/compose`: whole files and directories over plain HTTP, streamed in pieces of bounded
//! size. Here is what all of their methods share: parameters, who may call, and errors.

mod archive;
mod coding;
mod compose;
mod content;
mod gzip;
mod range;
mod read;
mod version;
mod write;

use std::{
    io,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use axum::{
    http::{HeaderMap, StatusCode},
    response::Response,
};
use base64::Engine as _;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

pub(crate) use self::{
    archive::{get as get_archive, put as put_archive},
    compose::post as compose,
    read::get,
    write::post,
};
use crate::{
    paths,
    respond::{error, error_with_reason},
    settings::{self, Settings},
    users::{self, User},
};

/// Bytes that are read, sent or written at once.
const PIECE: usize = 64 << 10;

/// Query parameters of both methods of `/files`.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(crate) struct Params {
    path: Option<String>,
    username: Option<String>,
    signature: Option<String>,
    signature_expiration: Option<String>,
    /// Whether to write a temporary file, sync and rename it, so that an interrupted upload leaves the old
    /// file.
    atomic: bool,
    /// Extension, only with the token: permission bits in octal digits, owner and group by name or number.
    mode: Option<String>,
    owner: Option<String>,
    group: Option<String>,
}

/// Who calls: the user, and where the user's empty path leads.
struct Caller {
    user: User,
    workdir: Option<String>,
}

impl Caller {
    /// Finds the user: the given one, else that of the header, else the default of the sandbox, else root.
    async fn find(
        settings: &Settings,
        headers: &HeaderMap,
        username: Option<&str>,
    ) -> Result<Self, Response> {
        let unauthorized = |e: users::UserError| error(StatusCode::UNAUTHORIZED, e.to_string());
        let named = match username.filter(|u| !u.is_empty()) {
            Some(name) => Some(name.to_owned()),
            None => users::requested(headers).map_err(unauthorized)?,
        };
        let values = settings.snapshot();
        let name = named.or(values.default_user).unwrap_or_else(|| "root".into());
        let user = users::find(name)
            .await
            .map_err(|e| error_with_reason(StatusCode::UNAUTHORIZED, "user_not_found", e.to_string()))?;
        Ok(Self { user, workdir: values.default_workdir })
    }

    fn resolve(&self, path: &str) -> Result<PathBuf, Response> {
        let resolved = paths::resolve(path, &self.user, self.workdir.as_deref());
        resolved.map_err(|e| error(StatusCode::BAD_REQUEST, e.to_string()))
    }
}

/// Checks the token or the signature and looks up the user.
async fn admit(
    settings: &Settings,
    headers: &HeaderMap,
    params: &Params,
    operation: &str,
) -> Result<Caller, Response> {
    let given = headers.get("x-access-token").and_then(|v| v.to_str().ok());
    if !settings.admits(given) {
        check_signature(settings, params, operation).map_err(|text| error(StatusCode::UNAUTHORIZED, text))?;
    }
    Caller::find(settings, headers, params.username.as_deref()).await
}

fn check_signature(settings: &Settings, params: &Params, operation: &str) -> Result<(), &'static str> {
    const MISSING: &str = "neither X-Access-Token nor a valid signature was given";
    let (Some(token), Some(given)) = (settings.token(), &params.signature) else { return Err(MISSING) };
    let path = params.path.as_deref().unwrap_or_default();
    let user = params.username.as_deref().unwrap_or_default();
    let mut text = format!("{path}:{operation}:{user}:{token}");
    if let Some(expiration) = &params.signature_expiration {
        text = format!("{text}:{expiration}");
    }
    let hash = base64::engine::general_purpose::STANDARD_NO_PAD.encode(Sha256::digest(text));
    if !settings::same(&format!("v1_{hash}"), given) {
        return Err("invalid signature");
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    match params.signature_expiration.as_deref().map(str::parse::<u64>) {
        Some(Ok(at)) if at < now => Err("signature is already expired"),
        Some(Err(_)) => Err("signature_expiration must be a Unix time"),
        _ => Ok(()),
    }
}

/// Response for a failed action on a file that exists, or is to.
fn failed(action: &str, path: &Path, cause: &io::Error) -> Response {
    use io::ErrorKind as K;
    let status = match cause.kind() {
        K::NotFound => StatusCode::NOT_FOUND,
        K::PermissionDenied | K::ReadOnlyFilesystem => StatusCode::FORBIDDEN,
        K::StorageFull | K::QuotaExceeded => StatusCode::INSUFFICIENT_STORAGE,
        K::IsADirectory => {
            let text = format!("cannot {action} {}: it is a directory", path.display());
            return error_with_reason(StatusCode::BAD_REQUEST, "is_a_directory", text);
        }
        K::InvalidInput => StatusCode::BAD_REQUEST,
        // When reading, such a file cannot exist; when writing, an existing file is in the way.
        K::NotADirectory | K::InvalidFilename if action == "read" => StatusCode::NOT_FOUND,
        K::NotADirectory | K::InvalidFilename => StatusCode::CONFLICT,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    error(status, format!("cannot {action} {}: {cause}", path.display()))
}

/// Response for a file that cannot be read.
fn unreadable(path: &Path, cause: &io::Error) -> Response {
    let refused = |what| error(StatusCode::BAD_REQUEST, format!("{} is {what}", path.display()));
    match cause.kind() {
        io::ErrorKind::IsADirectory => {
            let text = format!("{} is a directory", path.display());
            error_with_reason(StatusCode::BAD_REQUEST, "is_a_directory", text)
        }
        io::ErrorKind::InvalidInput => refused("not a regular file"),
        _ => failed("read", path, cause),
    }
}
