// SPDX-License-Identifier: Apache-2.0
//! Entry of a directory as clients see it, and the error for a failed action on one.

use std::{
    fs::{self, Metadata},
    io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::Path,
};

use buffa_types::google::protobuf::Timestamp;
use connectrpc::ConnectError;
use wrenn_rpc::filesystem::{EntryInfo, FileType};

use crate::{metadata, users::Names};

/// Describes one entry; for a symbolic link, its target. Blocking.
pub(crate) fn entry(path: &Path, names: &Names) -> io::Result<EntryInfo> {
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
        // Of the target too: symbolic links cannot have any.
        metadata: metadata::of_path(path).into_iter().collect(),
        is_symlink: link,
        ..Default::default()
    })
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
