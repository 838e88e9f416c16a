// SPDX-License-Identifier: Apache-2.0
//! Connect service `filesystem.Filesystem`.

mod directories;
mod entry;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use connectrpc::{ConnectError, Encodable, RequestContext, Response, ServiceRequest, ServiceResult};
use wrenn_rpc::filesystem::{
    EntryInfo, Filesystem, ListDirRequest, ListDirResponse, MakeDirRequest, MakeDirResponse, MoveRequest,
    MoveResponse, RemoveRequest, RemoveResponse, StatRequest, StatResponse,
};

pub(crate) use self::{directories::make_parents, entry::entry};
use crate::{
    paths,
    settings::Settings,
    users::{self, Names, User},
};

/// Service over the guest's file system.
pub(crate) struct Service {
    pub(crate) settings: Arc<Settings>,
}

impl Filesystem for Service {
    async fn stat<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, StatRequest>,
    ) -> ServiceResult<impl Encodable<StatResponse> + Send + use<'a>> {
        let path = self.caller(&ctx).await?.resolve(&request.to_owned_message().path)?;
        let entry = blocking(move || described(&path)).await?;
        Response::ok(StatResponse { entry: entry.into(), ..Default::default() })
    }

    async fn list_dir<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, ListDirRequest>,
    ) -> ServiceResult<impl Encodable<ListDirResponse> + Send + use<'a>> {
        let request = request.to_owned_message();
        let path = self.caller(&ctx).await?.resolve(&request.path)?;
        let entries = blocking(move || directories::list(&path, request.depth.max(1))).await?;
        Response::ok(ListDirResponse { entries, ..Default::default() })
    }

    async fn make_dir<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, MakeDirRequest>,
    ) -> ServiceResult<impl Encodable<MakeDirResponse> + Send + use<'a>> {
        let caller = self.caller(&ctx).await?;
        let path = caller.resolve(&request.to_owned_message().path)?;
        let entry = blocking(move || directories::make_dir(&path, &caller.user)).await?;
        Response::ok(MakeDirResponse { entry: entry.into(), ..Default::default() })
    }

    async fn r#move<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, MoveRequest>,
    ) -> ServiceResult<impl Encodable<MoveResponse> + Send + use<'a>> {
        let caller = self.caller(&ctx).await?;
        let request = request.to_owned_message();
        let (from, to) = (caller.named(&request.source)?, caller.named(&request.destination)?);
        let entry = blocking(move || {
            make_parents(&to, &caller.user).map_err(|e| failed("make the parents of", &to, &e))?;
            fs::rename(&from, &to).map_err(|e| failed("move", &from, &e))?;
            described(&to)
        })
        .await?;
        Response::ok(MoveResponse { entry: entry.into(), ..Default::default() })
    }

    async fn remove<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, RemoveRequest>,
    ) -> ServiceResult<impl Encodable<RemoveResponse> + Send + use<'a>> {
        let path = self.caller(&ctx).await?.named(&request.to_owned_message().path)?;
        blocking(move || remove(&path)).await?;
        Response::ok(RemoveResponse::default())
    }
}

impl Service {
    async fn caller(&self, ctx: &RequestContext) -> Result<Caller, ConnectError> {
        let values = self.settings.snapshot();
        let user = users::of_call(ctx.headers(), values.default_user).await?;
        Ok(Caller { user, workdir: values.default_workdir })
    }
}

/// Who calls: the user, and where the user's empty path leads.
struct Caller {
    user: User,
    workdir: Option<String>,
}

impl Caller {
    fn resolve(&self, path: &str) -> Result<PathBuf, ConnectError> {
        paths::resolve(path, &self.user, self.workdir.as_deref()).map_err(|e| invalid(&e))
    }

    /// Resolves the path of a call that changes what is there: it must not be empty.
    fn named(&self, path: &str) -> Result<PathBuf, ConnectError> {
        paths::named(path, &self.user).map_err(|e| invalid(&e))
    }
}

fn invalid(error: &paths::PathError) -> ConnectError {
    ConnectError::invalid_argument(error.to_string())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ConnectError> + Send + 'static,
) -> Result<T, ConnectError> {
    tokio::task::spawn_blocking(work).await.map_err(|e| ConnectError::internal(e.to_string()))?
}

/// The error for a failed action on a file.
pub(crate) fn failed(action: &str, path: &Path, error: &io::Error) -> ConnectError {
    use io::ErrorKind as K;
    let text = format!("cannot {action} {}: {error}", path.display());
    match error.kind() {
        K::NotFound => ConnectError::not_found(text),
        K::PermissionDenied | K::ReadOnlyFilesystem => ConnectError::permission_denied(text),
        K::AlreadyExists => ConnectError::already_exists(text),
        K::NotADirectory | K::IsADirectory | K::InvalidFilename | K::InvalidInput | K::DirectoryNotEmpty => {
            ConnectError::invalid_argument(text)
        }
        K::StorageFull | K::QuotaExceeded => ConnectError::resource_exhausted(text),
        _ => ConnectError::internal(text),
    }
}

fn described(path: &Path) -> Result<EntryInfo, ConnectError> {
    entry(path, &Names::load()).map_err(|e| failed("stat", path, &e))
}

/// Removes a file, or a directory with its content; succeeds if there is none.
fn remove(path: &Path) -> Result<(), ConnectError> {
    let result = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path, &error)),
        _ => Ok(()),
    }
}
