// SPDX-License-Identifier: Apache-2.0
//! Connect service `filesystem.Filesystem`.

use std::{
    fs::{self, Metadata},
    io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, lchown},
    path::{Path, PathBuf},
    sync::Arc,
};

use buffa_types::google::protobuf::Timestamp;
use connectrpc::{ConnectError, Encodable, RequestContext, Response, ServiceRequest, ServiceResult};
use wrenn_rpc::filesystem::{
    EntryInfo, FileType, Filesystem, ListDirRequest, ListDirResponse, MakeDirRequest, MakeDirResponse,
    MoveRequest, MoveResponse, RemoveRequest, RemoveResponse, StatRequest, StatResponse,
};

use crate::{
    paths,
    settings::Settings,
    users::{self, Names, User},
};

/// Maximum number of entries in a ListDir response; more would exceed the message limit of clients.
const MAX_ENTRIES: usize = 20_000;

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
        let user = self.user(&ctx).await?;
        let path = resolve(&request.to_owned_message().path, &user)?;
        let entry =
            blocking(move || entry(&path, &Names::load()).map_err(|e| failed("stat", &path, &e))).await?;
        Response::ok(StatResponse { entry: entry.into(), ..Default::default() })
    }

    async fn list_dir<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, ListDirRequest>,
    ) -> ServiceResult<impl Encodable<ListDirResponse> + Send + use<'a>> {
        let user = self.user(&ctx).await?;
        let request = request.to_owned_message();
        let path = resolve(&request.path, &user)?;
        let entries = blocking(move || list(&path, request.depth.max(1))).await?;
        Response::ok(ListDirResponse { entries, ..Default::default() })
    }

    async fn make_dir<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, MakeDirRequest>,
    ) -> ServiceResult<impl Encodable<MakeDirResponse> + Send + use<'a>> {
        let user = self.user(&ctx).await?;
        let path = resolve(&request.to_owned_message().path, &user)?;
        let entry = blocking(move || make_dir(&path, &user)).await?;
        Response::ok(MakeDirResponse { entry: entry.into(), ..Default::default() })
    }

    async fn r#move<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, MoveRequest>,
    ) -> ServiceResult<impl Encodable<MoveResponse> + Send + use<'a>> {
        let user = self.user(&ctx).await?;
        let request = request.to_owned_message();
        let (from, to) = (resolve(&request.source, &user)?, resolve(&request.destination, &user)?);
        let entry = blocking(move || {
            make_parents(&to, &user).map_err(|e| failed("make the parents of", &to, &e))?;
            fs::rename(&from, &to).map_err(|e| failed("move", &from, &e))?;
            entry(&to, &Names::load()).map_err(|e| failed("stat", &to, &e))
        })
        .await?;
        Response::ok(MoveResponse { entry: entry.into(), ..Default::default() })
    }

    async fn remove<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, RemoveRequest>,
    ) -> ServiceResult<impl Encodable<RemoveResponse> + Send + use<'a>> {
        let user = self.user(&ctx).await?;
        let path = resolve(&request.to_owned_message().path, &user)?;
        blocking(move || {
            let result = match fs::symlink_metadata(&path) {
                Ok(meta) if meta.is_dir() => fs::remove_dir_all(&path),
                Ok(_) => fs::remove_file(&path),
                Err(error) => Err(error),
            };
            match result {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &path, &error)),
                _ => Ok(()),
            }
        })
        .await?;
        Response::ok(RemoveResponse::default())
    }
}

impl Service {
    async fn user(&self, ctx: &RequestContext) -> Result<User, ConnectError> {
        users::of_call(ctx.headers(), self.settings.snapshot().default_user).await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ConnectError> + Send + 'static,
) -> Result<T, ConnectError> {
    tokio::task::spawn_blocking(work).await.map_err(|e| ConnectError::internal(e.to_string()))?
}

fn resolve(path: &str, user: &User) -> Result<PathBuf, ConnectError> {
    paths::resolve(path, user).map_err(|e| ConnectError::invalid_argument(e.to_string()))
}

fn failed(action: &str, path: &Path, error: &io::Error) -> ConnectError {
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

fn list(path: &Path, depth: u32) -> Result<Vec<EntryInfo>, ConnectError> {
    let meta = fs::metadata(path).map_err(|e| failed("list", path, &e))?;
    if !meta.is_dir() {
        return Err(ConnectError::invalid_argument(format!("{} is not a directory", path.display())));
    }
    let names = Names::load();
    let mut entries = Vec::new();
    let mut open = vec![(path.to_owned(), depth)];
    while let Some((dir, left)) = open.pop() {
        let items = match fs::read_dir(&dir) {
            Ok(items) => items,
            // Skip directories below the requested one that vanished or are not readable.
            Err(_) if dir != path => continue,
            Err(error) => return Err(failed("list", &dir, &error)),
        };
        for item in items.flatten() {
            if entries.len() >= MAX_ENTRIES {
                return Err(ConnectError::resource_exhausted(format!(
                    "{} has more than {MAX_ENTRIES} entries; list its parts or use a smaller depth",
                    path.display()
                )));
            }
            let Ok(info) = entry(&item.path(), &names) else { continue };
            if left > 1 && item.file_type().is_ok_and(|t| t.is_dir()) {
                open.push((item.path(), left - 1));
            }
            entries.push(info);
        }
    }
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(entries)
}

fn make_dir(path: &Path, user: &User) -> Result<EntryInfo, ConnectError> {
    match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => {
            return Err(ConnectError::already_exists(format!("directory {} exists already", path.display())));
        }
        Ok(_) => {
            return Err(ConnectError::invalid_argument(format!(
                "{} exists and is not a directory",
                path.display()
            )));
        }
        Err(_) => {}
    }
    make_owned_dirs(path, user).map_err(|e| failed("make", path, &e))?;
    entry(path, &Names::load()).map_err(|e| failed("stat", path, &e))
}

/// Creates the missing parents of a path for a user.
pub(crate) fn make_parents(path: &Path, user: &User) -> io::Result<()> {
    path.parent().map_or(Ok(()), |parent| make_owned_dirs(parent, user))
}

fn make_owned_dirs(path: &Path, user: &User) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    make_parents(path, user)?;
    match fs::create_dir(path) {
        // lchown, because a symbolic link may have been put in its place.
        Ok(()) => lchown(path, Some(user.uid), Some(user.gid)),
        // Another process has created it meanwhile.
        Err(_) if path.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

/// Describes one entry; for a symbolic link, its target.
fn entry(path: &Path, names: &Names) -> io::Result<EntryInfo> {
    let own = fs::symlink_metadata(path)?;
    let link = own.file_type().is_symlink();
    let target = if link { fs::metadata(path).ok() } else { None };
    let symlink_target = link
        .then(|| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()).to_string_lossy().into_owned());
    let shown = target.as_ref().unwrap_or(&own);
    Ok(EntryInfo {
        name: path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
        r#type: kind(shown).into(),
        path: path.to_string_lossy().into_owned(),
        size: own.size() as i64,
        mode: shown.mode() & 0o7777,
        permissions: permissions(&own),
        owner: names.user(own.uid()),
        group: names.group(own.gid()),
        modified_time: Timestamp {
            seconds: own.mtime(),
            nanos: own.mtime_nsec() as i32,
            ..Default::default()
        }
        .into(),
        symlink_target,
        ..Default::default()
    })
}

fn kind(meta: &Metadata) -> FileType {
    match meta.file_type() {
        t if t.is_dir() => FileType::FILE_TYPE_DIRECTORY,
        t if t.is_file() => FileType::FILE_TYPE_FILE,
        t if t.is_symlink() => FileType::FILE_TYPE_SYMLINK,
        _ => FileType::FILE_TYPE_UNSPECIFIED,
    }
}

/// Formats permissions as clients show them: special bits as leading letters, then nine permission
/// characters.
fn permissions(meta: &Metadata) -> String {
    let (mode, file_type) = (meta.mode(), meta.file_type());
    let mut text = String::new();
    for (set, letters) in [
        (file_type.is_dir(), "d"),
        (file_type.is_symlink(), "L"),
        (file_type.is_block_device(), "D"),
        (file_type.is_fifo(), "p"),
        (file_type.is_socket(), "S"),
        (mode & 0o4000 != 0, "u"),
        (mode & 0o2000 != 0, "g"),
        (file_type.is_char_device(), "Dc"),
        (mode & 0o1000 != 0, "t"),
    ] {
        if set {
            text.push_str(letters);
        }
    }
    if text.is_empty() {
        text.push('-');
    }
    for (index, letter) in "rwxrwxrwx".chars().enumerate() {
        text.push(if mode & (0o400 >> index) != 0 { letter } else { '-' });
    }
    text
}
