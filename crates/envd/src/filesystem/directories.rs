// SPDX-License-Identifier: Apache-2.0
//! Directories: listed and made.

use std::{fs, path::Path};

use connectrpc::ConnectError;
use wrenn_rpc::filesystem::EntryInfo;

use crate::{
    entry::{entry, failed},
    parents::make_owned_dirs,
    users::{Names, User},
};

/// Maximum number of entries in a ListDir response; more would exceed the message limit of clients.
const MAX_ENTRIES: usize = 20_000;

/// Lists a directory, `depth` levels deep.
pub(super) fn list(path: &Path, depth: u32) -> Result<Vec<EntryInfo>, ConnectError> {
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

/// Makes a directory and its parents for a user.
pub(super) fn make_dir(path: &Path, user: &User) -> Result<EntryInfo, ConnectError> {
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
