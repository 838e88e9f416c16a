// SPDX-License-Identifier: Apache-2.0
//! The form of a build whose recipe copies files. The archive of the files is stored as it arrives.

use axum::extract::Request;
use http::{HeaderMap, header};
use serde::Deserialize;
use tokio::{fs::File, io::AsyncWriteExt as _};
use utoipa::ToSchema;
use uuid::Uuid;
use wrenn_api::{CreateBuild, ErrorCode};
use wrenn_rpc::Foreign;

use super::form::{Form, Part};
use crate::{
    admission::{Held, UNCOUNTED},
    caller::Caller,
    error::Fault,
    services::Services,
    state::State,
    upload::{Upload, not_stored},
};

/// A template to build, with the files that its recipe copies.
#[derive(ToSchema, Deserialize)]
#[serde(deny_unknown_fields)]
#[schema(as = BuildUpload, example = json!({
    "config": {"name": "web", "recipe": "FROM minimal\nCOPY site /srv\n"}, "archive": "the bytes of site.tar.gz"
}))]
#[allow(dead_code, reason = "describes the form; its parts are read one by one")]
pub(super) struct BuildForm {
    /// The template to build.
    config: CreateBuild,
    /// The files: a tar, tar.gz or zip archive of at most 1 GiB.
    #[schema(value_type = String, format = Binary)]
    archive: Vec<u8>,
}

/// A form that was received.
pub(super) struct Received {
    pub(super) config: CreateBuild,
    pub(super) archive: Upload,
    /// Memory reserved for the first part.
    _held: Option<Held>,
}

/// Returns whether the body of a request is a form.
pub(super) fn is_one(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    kind.split(';').next().is_some_and(|essence| essence.trim().eq_ignore_ascii_case("multipart/form-data"))
}

/// Reads a form, whose parts may come in any order.
pub(super) async fn read(services: &Services, caller: &Caller, request: Request) -> Result<Received, Fault> {
    let (state, team) = (services.state(), caller.team().uuid());
    let mut form = Form::of(request).await.map_err(|_| no_boundary())?;
    let (mut config, mut archive) = (None, None);
    while let Some(mut part) = form.next().await? {
        match part.name() {
            Some("config") if config.is_none() => config = Some(config_of(&mut part, state, team).await?),
            Some("archive") if archive.is_none() => {
                let place = state.admission.uploads.take(Some(team))?;
                let (upload, file) = Upload::begin(services.builds().upload_path(), place).await?;
                store(&mut part, file).await?;
                archive = Some(upload);
            }
            _ => return Err(unexpected(&part)),
        }
    }
    let missing = |part: &str| {
        Fault::invalid(format!(
            "the form has no part `{part}`: send both, or JSON if the recipe copies no files"
        ))
    };
    let (config, held) = config.ok_or_else(|| missing("config"))?;
    let archive = archive.ok_or_else(|| missing("archive"))?;
    Ok(Received { config, archive, _held: held })
}

/// Reads the part `config`, and reserves memory for it.
async fn config_of(
    part: &mut Part<'_>,
    state: &State,
    team: Uuid,
) -> Result<(CreateBuild, Option<Held>), Fault> {
    let max = state.limits.json_body;
    let (mut bytes, mut held) = (Vec::new(), None);
    while let Some(chunk) = part.chunk().await? {
        let size = bytes.len() + chunk.len();
        if size > max {
            let message = format!("the part `config` is larger than {max} bytes");
            return Err(Fault::new(ErrorCode::TooLarge, message));
        }
        if size > UNCOUNTED && held.is_none() {
            held = Some(state.admission.memory.try_take(team, max)?);
        }
        bytes.extend_from_slice(&chunk);
    }
    // serde would also accept an array for an object.
    if bytes.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
        return Err(Fault::invalid("the part `config` must be a JSON object"));
    }
    let wrong = |error| Fault::invalid(format!("the part `config` is not as documented: {error}"));
    Ok((serde_json::from_slice(&bytes).map_err(wrong)?, held))
}

/// Stores the part `archive` in a file.
async fn store(part: &mut Part<'_>, mut file: File) -> Result<(), Fault> {
    let max = wrenn_context::Limits::default().archive_bytes;
    let mut size: u64 = 0;
    while let Some(chunk) = part.chunk().await? {
        size += chunk.len() as u64;
        if size > max {
            let message =
                format!("the archive is larger than {max} bytes: leave out what the recipe does not copy");
            return Err(Fault::new(ErrorCode::TooLarge, message));
        }
        file.write_all(&chunk).await.map_err(|error| not_stored(&error))?;
    }
    file.flush().await.map_err(|error| not_stored(&error))
}

fn no_boundary() -> Fault {
    let message = "send JSON, or multipart/form-data with the parts `config` and `archive`";
    Fault::new(ErrorCode::UnsupportedMediaType, message)
}

/// Error for an unknown part, which must not be ignored silently.
fn unexpected(part: &Part<'_>) -> Fault {
    let name = Foreign(part.name().unwrap_or_default());
    Fault::invalid(format!("the form has a part {name} too many: send `config` and `archive`, once each"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_told_by_its_media_type() {
        let is = |kind: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, kind.parse().expect("a value"));
            is_one(&headers)
        };
        assert!(
            is("multipart/form-data; boundary=x")
                && is("Multipart/Form-Data")
                && is("multipart/form-data ;a=b")
        );
        assert!(!is("application/json") && !is("multipart/form-datax") && !is("multipart/mixed"));
        assert!(!is_one(&HeaderMap::new()));
    }
}
