// SPDX-License-Identifier: Apache-2.0
//! Images: load, list, delete.

use axum::{
    Extension, Json,
    body::Body,
    extract::{Path, Request, State, rejection::PathRejection},
};
use http::StatusCode;
use http_body::Body as _;
use http_body_util::BodyExt as _;
use tokio::io::AsyncWriteExt as _;
use wrenn_api::{ErrorCode, Image};
use wrenn_recipe::UploadedImage;

use super::{
    content::check,
    download::Content,
    error_responses::{OfDeleteImage, OfLoadImage, OfLook},
    extract::Parameters,
};
use crate::{
    admission::InWork,
    caller::Caller,
    deeds::{self, AuditResource},
    error::Fault,
    services::Services,
    stall::{By, moving},
    upload::{Upload, not_stored},
};

/// Load an image.
///
/// The body is a tar archive with one image: an OCI layout, or what `docker save` writes, also compressed with gzip or zstd. Its size
/// is bounded by `server.image_upload_max_mb`. A host verifies and unpacks it, which may take minutes; sandboxes and recipes name it
/// `uploaded:NAME:TAG` then. An image with the same name is replaced; what began with that stays as it is. If the client leaves when
/// everything was sent, the image is made all the same.
#[utoipa::path(
    post, path = "/v1/images", operation_id = "loadImage", tag = "images",
    params(
        ("name" = Option<String>, Query, description = "Name of the image, `NAME` or `NAME:TAG`; without a tag it is `latest`. It also says which image is meant, if the archive has several. Default: the name that the archive gives to it, without registry and directories.",
            pattern = "^[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}(:[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127})?$", example = "app:1"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    request_body(content = inline(Content), content_type = "application/octet-stream"),
    responses((status = 201, description = "The image is there.", body = Image), OfLoadImage)
)]
pub(super) async fn load(
    State(services): State<Services>,
    Extension(in_work): Extension<InWork>,
    caller: Caller,
    parameters: Parameters,
    request: Request,
) -> Result<(StatusCode, Json<Image>), Fault> {
    let [name] = parameters.known(["name"])?;
    let name = name.map(|text| text.parse::<UploadedImage>()).transpose();
    let name = name.map_err(|error| Fault::invalid(format!("name: {error}")))?;
    check(request.headers())?;
    let (admission, team) = (&services.state().admission, caller.team().uuid());
    in_work.exchange(admission.commands.take(Some(team))?);
    let (upload, size) = stored(&services, &caller, request.into_body()).await?;
    let image = services.images().load(&caller, name, upload, size).await?;
    deeds::about(AuditResource::new("image", &image.reference));
    Ok((StatusCode::CREATED, Json(image)))
}

/// List the images that the team has uploaded, and those of registries that hosts have for it, by reference.
#[utoipa::path(
    get, path = "/v1/images", operation_id = "listImages", tag = "images",
    params(("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log.")),
    responses((status = 200, description = "The images.", body = Vec<Image>), OfLook)
)]
pub(super) async fn list(
    State(services): State<Services>,
    caller: Caller,
) -> Result<Json<Vec<Image>>, Fault> {
    Ok(Json(services.images().list(&caller).await?))
}

/// Delete an image that was uploaded.
///
/// It must not be in use: by sandboxes that are not deleted, builds that have not ended, or templates that are this image. Images of
/// registries are removed by themselves.
#[utoipa::path(
    delete, path = "/v1/images/{name}", operation_id = "deleteImage", tag = "images",
    params(
        ("name" = String, Path, description = "Name of the image, `NAME` or `NAME:TAG`; without a tag it is `latest`.",
            pattern = "^[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}(:[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127})?$", example = "app:1"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    responses((status = 204, description = "The image is deleted."), OfDeleteImage)
)]
pub(super) async fn delete(
    State(services): State<Services>,
    caller: Caller,
    name: Result<Path<String>, PathRejection>,
) -> Result<StatusCode, Fault> {
    let Path(name) = name.map_err(|_| Fault::invalid("the image in the path is not text"))?;
    services.images().delete(&caller, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Stores the body of a request in a file; returns it with its size.
async fn stored(services: &Services, caller: &Caller, mut body: Body) -> Result<(Upload, u64), Fault> {
    let state = services.state();
    let most_mb = state.limits.image_upload_mb;
    let too_large = || {
        let message = format!(
            "the archive is larger than {most_mb} MiB (server.image_upload_max_mb): use a smaller image"
        );
        Fault::new(ErrorCode::TooLarge, message)
    };
    let most = most_mb << 20;
    if body.size_hint().lower() > most {
        return Err(too_large());
    }
    let place = state.admission.uploads.take(Some(caller.team().uuid()))?;
    let (upload, mut file) = Upload::begin(services.builds().upload_path(), place).await?;
    let mut size = 0;
    while let Some(frame) = moving(By::ClientSends, body.frame()).await? {
        let broken = |_| Fault::invalid("the body broke off: the connection or the client failed");
        let Ok(bytes) = frame.map_err(broken)?.into_data() else { continue };
        size += bytes.len() as u64;
        if size > most {
            return Err(too_large());
        }
        file.write_all(&bytes).await.map_err(|error| not_stored(&error))?;
    }
    file.flush().await.map_err(|error| not_stored(&error))?;
    Ok((upload, size))
}
