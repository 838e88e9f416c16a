// SPDX-License-Identifier: Apache-2.0
//! Metadata of files: extended attributes `user.e2b.*`, given with an upload as headers `X-Metadata-*`.

use std::{collections::BTreeMap, fs::File, path::Path};

use http::HeaderMap;
use rustix::{
    fs::{XattrFlags, fgetxattr, flistxattr, flistxattr_query, fremovexattr, fsetxattr},
    fs::{getxattr, listxattr, listxattr_query},
    io::{Errno, Result},
};

/// Names of attributes that are metadata, before their key.
const PREFIX: &str = "user.e2b.";
const HEADER: &str = "x-metadata-";
/// Maximum length of a key: that of an attribute's name (255) without the prefix.
const KEY: usize = 255 - PREFIX.len();
/// Maximum size of the metadata of a file, with the prefix of each key. What a program of the guest has set beyond it is not
/// shown, so that a listing of many files stays in bounds.
const MOST: usize = 4096;

/// Keys and values of one file.
pub(crate) type Metadata = BTreeMap<String, String>;

/// Errors of metadata in the headers of a request.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MetadataError {
    #[error("the value of the header X-Metadata-{0} has bytes that are not printable ASCII (0x20 to 0x7e)")]
    Unprintable(String),
    #[error("a name of an X-Metadata header has {0} bytes after its prefix; at most {KEY} are possible")]
    LongKey(usize),
    #[error("the metadata has {0} bytes, with {PREFIX:?} before each key; at most {MOST} are possible")]
    Large(usize),
}

/// Reads the metadata that a request gives. The first of several headers with the same name counts.
pub(crate) fn given(headers: &HeaderMap) -> std::result::Result<Metadata, MetadataError> {
    let mut metadata = Metadata::new();
    for (name, value) in headers {
        let Some(key) = name.as_str().strip_prefix(HEADER).filter(|key| !key.is_empty()) else { continue };
        if metadata.contains_key(key) {
            continue;
        }
        if key.len() > KEY {
            return Err(MetadataError::LongKey(key.len()));
        }
        let printable = value.as_bytes().iter().all(|byte| (0x20..=0x7e).contains(byte));
        let Some(value) = value.to_str().ok().filter(|_| printable) else {
            return Err(MetadataError::Unprintable(key.into()));
        };
        metadata.insert(key.into(), value.into());
    }
    let size = metadata.iter().map(|(key, value)| PREFIX.len() + key.len() + value.len()).sum();
    if size > MOST { Err(MetadataError::Large(size)) } else { Ok(metadata) }
}

/// Returns the metadata of what a path leads to; empty if there is none, or if it cannot have any. Blocking.
pub(crate) fn of_path(path: &Path) -> Metadata {
    // Nearly no file has any: find that out with one call.
    let Some(size) = listxattr_query(path).ok().filter(|size| *size > 0) else { return Metadata::new() };
    collect(size, |list| listxattr(path, list), |name, value| getxattr(path, name, value))
}

/// Returns the metadata of an open file. Blocking.
pub(crate) fn of_file(file: &File) -> Metadata {
    let Some(size) = flistxattr_query(file).ok().filter(|size| *size > 0) else { return Metadata::new() };
    collect(size, |list| flistxattr(file, list), |name, value| fgetxattr(file, name, value))
}

/// Replaces the metadata of an open file: keys that are not among the new ones are removed. A file system without extended
/// attributes is no error as long as there is nothing to set. Blocking.
pub(crate) fn replace(file: &File, metadata: &Metadata) -> Result<()> {
    let old = match flistxattr_query(file) {
        Ok(size) => names(size, |list| flistxattr(file, list)),
        Err(Errno::NOTSUP | Errno::PERM) => Vec::new(),
        Err(error) => return Err(error),
    };
    for name in old.iter().filter(|name| !metadata.contains_key(&name[PREFIX.len()..])) {
        match fremovexattr(file, name.as_str()) {
            // Another process has removed it meanwhile.
            Ok(()) | Err(Errno::NODATA) => {}
            Err(error) => return Err(error),
        }
    }
    for (key, value) in metadata {
        fsetxattr(file, format!("{PREFIX}{key}"), value.as_bytes(), XattrFlags::empty())?;
    }
    Ok(())
}

/// Returns the names of attributes that are metadata. Those that are no UTF-8 cannot be a key on the wire.
fn names(size: usize, list: impl FnOnce(&mut [u8]) -> Result<usize>) -> Vec<String> {
    let mut buffer = vec![0; size];
    // If attributes were added since, the list does not fit: as good as an empty one at that time.
    let Ok(length) = list(&mut buffer) else { return Vec::new() };
    let names = buffer[..length.min(size)].split(|byte| *byte == 0);
    let text = names.filter_map(|name| std::str::from_utf8(name).ok());
    text.filter(|name| name.len() > PREFIX.len() && name.starts_with(PREFIX)).map(str::to_owned).collect()
}

fn collect(
    size: usize,
    list: impl FnOnce(&mut [u8]) -> Result<usize>,
    get: impl Fn(&str, &mut [u8]) -> Result<usize>,
) -> Metadata {
    let mut names = names(size, list);
    names.sort_unstable();
    let mut metadata = Metadata::new();
    let mut left = MOST;
    let mut buffer = [0; MOST];
    for name in names {
        let Some(room) = left.checked_sub(name.len()) else { continue };
        // A value that does not fit is an error of the kernel's.
        let Ok(length) = get(&name, &mut buffer[..room]) else { continue };
        // A buffer without room asks for the length only.
        if length > room {
            continue;
        }
        left = room - length;
        let value = String::from_utf8_lossy(&buffer[..length]).into_owned();
        metadata.insert(name[PREFIX.len()..].to_owned(), value);
    }
    metadata
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn headers(list: &[(&str, &[u8])]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in list {
            let name: HeaderName = name.parse().unwrap();
            headers.append(name, HeaderValue::from_bytes(value).unwrap());
        }
        headers
    }

    #[test]
    fn headers_become_keys_in_lower_case() {
        let given = given(&headers(&[
            ("X-Metadata-Author", b"mish"),
            ("x-metadata-author", b"second"),
            ("X-Metadata-", b"without a key"),
            ("X-Metadata-Empty", b""),
            ("X-Access-Token", b"secret"),
        ]));
        let wanted = [("author", "mish"), ("empty", "")];
        assert_eq!(given.unwrap(), wanted.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
    }

    #[test]
    fn what_cannot_be_stored_is_an_error() {
        let invalid = |list: &[(&str, &[u8])]| given(&headers(list)).unwrap_err();
        assert_eq!(invalid(&[("x-metadata-a", b"tab\there")]), MetadataError::Unprintable("a".into()));
        assert_eq!(invalid(&[("x-metadata-a", "é".as_bytes())]), MetadataError::Unprintable("a".into()));
        let name = |length| format!("x-metadata-{}", "k".repeat(length));
        assert!(given(&headers(&[(&name(246), b"v")])).is_ok());
        assert_eq!(invalid(&[(&name(247), b"v")]), MetadataError::LongKey(247));
        let value = vec![b'v'; 4096 - 10];
        assert!(given(&headers(&[("x-metadata-a", &value)])).is_ok());
        assert_eq!(invalid(&[("x-metadata-ab", &value)]), MetadataError::Large(4097));
    }

    #[test]
    fn a_file_keeps_what_was_set_last() {
        let file = tempfile::tempfile().unwrap();
        let set = |list: &[(&str, &str)]| {
            let metadata = list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            replace(&file, &metadata).unwrap();
            assert_eq!(of_file(&file), metadata);
        };
        fsetxattr(&file, "user.other", b"x", XattrFlags::empty()).unwrap();
        set(&[("a", "1"), ("b", "")]);
        set(&[("b", "2"), ("c", "3")]);
        set(&[]);
        assert_eq!(fgetxattr(&file, "user.other", &mut [0; 8][..]).unwrap(), 1, "not metadata");
    }

    #[test]
    fn what_is_shown_of_one_file_is_bounded() {
        let list = b"user.e2b.a\0security.x\0user.e2b.\0user.e2b.c\0user.e2b.b\0";
        let listed = |buffer: &mut [u8]| {
            buffer.copy_from_slice(list);
            Ok(list.len())
        };
        let get = |name: &str, buffer: &mut [u8]| {
            let value = if name.ends_with('c') { vec![b'v'; 7] } else { vec![b'v'; 3000] };
            let room = buffer.get_mut(..value.len()).ok_or(Errno::RANGE)?;
            room.copy_from_slice(&value);
            Ok(value.len())
        };
        let shown = collect(list.len(), listed, get);
        assert_eq!(
            shown.into_iter().map(|(key, value)| (key, value.len())).collect::<Vec<_>>(),
            [("a".to_owned(), 3000), ("c".to_owned(), 7)]
        );
    }
}
