// SPDX-License-Identifier: Apache-2.0
//! Connect service `filesystem.Filesystem`.

mod copy;
mod directories;
mod permissions;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use connectrpc::{
    ConnectError, Encodable, RequestContext, Response, ServiceRequest, ServiceResult, ServiceStream,
};
use wrenn_rpc::filesystem::{
    ChmodRequest, ChmodResponse, ChownRequest, ChownResponse, CopyRequest, CopyResponse,
    CreateWatcherRequest, CreateWatcherResponse, EntryInfo, Filesystem, GetWatcherEventsRequest,
    GetWatcherEventsResponse, ListDirRequest, ListDirResponse, MakeDirRequest, MakeDirResponse, MoveRequest,
    MoveResponse, RemoveRequest, RemoveResponse, RemoveWatcherRequest, RemoveWatcherResponse, StatRequest,
    StatResponse, WatchDirRequest, WatchDirResponse,
};

use self::{copy::Owner, permissions::Change};
use crate::{
    entry::{entry, failed},
    parents::make_parents,
    paths,
    settings::Settings,
    users::{self, Names, User},
    watch::{Asked, Watchers},
};

/// Service over the guest's file system.
pub(crate) struct Service {
    pub(crate) settings: Arc<Settings>,
    pub(crate) watchers: Arc<Watchers>,
}

impl Filesystem for Service {
    async fn stat<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, StatRequest>,
    ) -> ServiceResult<impl Encodable<StatResponse> + Send + use<'a>> {
        let path = self.caller(&ctx).await?.resolve(&request.to_owned_message().path)?;
        let entry = blocking(move |_| described(&path)).await?;
        Response::ok(StatResponse { entry: entry.into(), ..Default::default() })
    }

    async fn list_dir<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, ListDirRequest>,
    ) -> ServiceResult<impl Encodable<ListDirResponse> + Send + use<'a>> {
        let request = request.to_owned_message();
        let path = self.caller(&ctx).await?.resolve(&request.path)?;
        let entries = blocking(move |_| directories::list(&path, request.depth.max(1))).await?;
        Response::ok(ListDirResponse { entries, ..Default::default() })
    }

    async fn make_dir<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, MakeDirRequest>,
    ) -> ServiceResult<impl Encodable<MakeDirResponse> + Send + use<'a>> {
        let caller = self.caller(&ctx).await?;
        let path = caller.resolve(&request.to_owned_message().path)?;
        let entry = blocking(move |_| directories::make_dir(&path, &caller.user)).await?;
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
        let entry = blocking(move |cancelled| {
            make_parents(&to, &caller.user).map_err(|e| failed("make the parents of", &to, &e))?;
            match fs::rename(&from, &to) {
                Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                    copy::copy(&from, &to, Owner::Kept, cancelled)?;
                    remove(&from)?;
                }
                other => other.map_err(|e| failed("move", &from, &e))?,
            }
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
        blocking(move |_| remove(&path)).await?;
        Response::ok(RemoveResponse::default())
    }

    async fn watch_dir(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, WatchDirRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<WatchDirResponse> + Send + use<>>> {
        let request = request.to_owned_message();
        let asked = Asked {
            path: self.caller(&ctx).await?.resolve(&request.path)?,
            recursive: request.recursive,
            entries: request.include_entry,
            network: request.allow_network_mounts,
        };
        Ok(Response::new(self.watchers.stream(&ctx, asked).await?))
    }

    async fn create_watcher<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, CreateWatcherRequest>,
    ) -> ServiceResult<impl Encodable<CreateWatcherResponse> + Send + use<'a>> {
        let request = request.to_owned_message();
        let asked = Asked {
            path: self.caller(&ctx).await?.resolve(&request.path)?,
            recursive: request.recursive,
            entries: request.include_entry,
            network: request.allow_network_mounts,
        };
        let watcher_id = self.watchers.create(asked).await?;
        Response::ok(CreateWatcherResponse { watcher_id, ..Default::default() })
    }

    async fn get_watcher_events<'a>(
        &'a self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, GetWatcherEventsRequest>,
    ) -> ServiceResult<impl Encodable<GetWatcherEventsResponse> + Send + use<'a>> {
        let (events, overflow) = self.watchers.take(&request.to_owned_message().watcher_id)?;
        Response::ok(GetWatcherEventsResponse { events, overflow, ..Default::default() })
    }

    async fn remove_watcher<'a>(
        &'a self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, RemoveWatcherRequest>,
    ) -> ServiceResult<impl Encodable<RemoveWatcherResponse> + Send + use<'a>> {
        self.watchers.remove(&request.to_owned_message().watcher_id)?;
        Response::ok(RemoveWatcherResponse::default())
    }

    async fn copy<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, CopyRequest>,
    ) -> ServiceResult<impl Encodable<CopyResponse> + Send + use<'a>> {
        let caller = self.caller(&ctx).await?;
        let request = request.to_owned_message();
        let (from, to) = (caller.named(&request.source)?, caller.named(&request.destination)?);
        let entry = blocking(move |cancelled| {
            copy::copy(&from, &to, Owner::User(&caller.user), cancelled)?;
            described(&to)
        })
        .await?;
        Response::ok(CopyResponse { entry: entry.into(), ..Default::default() })
    }

    async fn chmod<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, ChmodRequest>,
    ) -> ServiceResult<impl Encodable<ChmodResponse> + Send + use<'a>> {
        let request = request.to_owned_message();
        let path = self.caller(&ctx).await?.named(&request.path)?;
        let change = Change::mode(request.mode)?;
        let entry = blocking(move |cancelled| {
            permissions::apply(&path, change, request.recursive, cancelled)?;
            described(&path)
        })
        .await?;
        Response::ok(ChmodResponse { entry: entry.into(), ..Default::default() })
    }

    async fn chown<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, ChownRequest>,
    ) -> ServiceResult<impl Encodable<ChownResponse> + Send + use<'a>> {
        let request = request.to_owned_message();
        let path = self.caller(&ctx).await?.named(&request.path)?;
        let ids = permissions::ids(&request.owner, &request.group).await?;
        let entry = blocking(move |cancelled| {
            permissions::apply(&path, Change::Owner(ids), request.recursive, cancelled)?;
            described(&path)
        })
        .await?;
        Response::ok(ChownResponse { entry: entry.into(), ..Default::default() })
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

/// Set when the call is given up: its client has left, or its deadline is over.
struct Cancel(Arc<AtomicBool>);

impl Drop for Cancel {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Works on a blocking thread. Work that takes long ends early when the flag is set.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce(&AtomicBool) -> Result<T, ConnectError> + Send + 'static,
) -> Result<T, ConnectError> {
    let cancel = Cancel(Arc::default());
    let cancelled = Arc::clone(&cancel.0);
    let done = tokio::task::spawn_blocking(move || work(&cancelled)).await;
    done.map_err(|e| ConnectError::internal(e.to_string()))?
}

/// Fails if the call was given up.
fn go_on(cancelled: &AtomicBool) -> Result<(), ConnectError> {
    if cancelled.load(Ordering::Relaxed) {
        return Err(ConnectError::canceled("the call was given up"));
    }
    Ok(())
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
