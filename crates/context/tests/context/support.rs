// SPDX-License-Identifier: Apache-2.0
//! Trees of files as archives of all formats, and what contexts make of them.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Cursor, Read as _, Write as _},
};

use ::tar::{Archive, Builder, EntryType, Header};
use ::zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};
use flate2::{Compression, write::GzEncoder};
use tempfile::TempDir;
use wrenn_context::{Context, ContextError, Contexts, Limits, Selection};
use wrenn_recipe::{Copied, Source};

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Thing {
    /// With a mode.
    Directory(u32),
    /// With a mode and content.
    File(u32, Vec<u8>),
    /// With a target.
    Link(String),
}

pub(crate) fn file(content: &str) -> Thing {
    Thing::File(0o644, content.into())
}

pub(crate) fn directory() -> Thing {
    Thing::Directory(0o755)
}

pub(crate) fn link(target: &str) -> Thing {
    Thing::Link(target.to_owned())
}

/// Packs a tar archive by another implementation.
pub(crate) fn tar(entries: &[(&str, Thing)], time: u64) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (name, thing) in entries {
        let mut header = Header::new_gnu();
        header.set_mtime(time);
        header.set_uid(1000);
        header.set_gid(time);
        match thing {
            Thing::Directory(mode) => {
                header.set_entry_type(EntryType::Directory);
                header.set_mode(*mode);
                header.set_size(0);
                builder.append_data(&mut header, format!("{name}/"), io::empty()).unwrap();
            }
            Thing::File(mode, content) => {
                header.set_mode(*mode);
                header.set_size(content.len() as u64);
                builder.append_data(&mut header, name, &content[..]).unwrap();
            }
            Thing::Link(target) => {
                header.set_entry_type(EntryType::Symlink);
                header.set_mode(0o777);
                header.set_size(0);
                builder.append_link(&mut header, name, target).unwrap();
            }
        }
    }
    builder.into_inner().unwrap()
}

/// Makes an entry of a tar archive that no tool would make.
pub(crate) fn raw(kind: EntryType, name: &[u8], link: &[u8], content: &[u8]) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(content.len() as u64);
    header.set_cksum();
    let mut bytes = [&header.as_bytes()[..], content].concat();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// Ends a tar archive of such entries.
pub(crate) fn ended(entries: &[Vec<u8>]) -> Vec<u8> {
    [entries.concat(), vec![0; 1024]].concat()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Packs a zip archive, of which every other file is compressed.
pub(crate) fn zip(entries: &[(&str, Thing)]) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for (at, (name, thing)) in entries.iter().enumerate() {
        let method = if at % 2 == 0 { CompressionMethod::Deflated } else { CompressionMethod::Stored };
        let options = SimpleFileOptions::default().compression_method(method);
        match thing {
            Thing::Directory(mode) => writer.add_directory(*name, options.unix_permissions(*mode)).unwrap(),
            Thing::File(mode, content) => {
                writer.start_file(*name, options.unix_permissions(*mode)).unwrap();
                writer.write_all(content).unwrap();
            }
            Thing::Link(target) => writer.add_symlink(*name, target, options).unwrap(),
        }
    }
    writer.finish().unwrap().into_inner()
}

/// Contexts in a directory of their own.
pub(crate) struct Store {
    pub(crate) home: TempDir,
    pub(crate) contexts: Contexts,
}

impl Store {
    pub(crate) fn new(limits: Limits) -> Self {
        let home = tempfile::tempdir().unwrap();
        let contexts = Contexts::open(&home.path().join("contexts"), limits).unwrap();
        Self { home, contexts }
    }

    /// Uploads an archive, of which nothing is left.
    pub(crate) fn take(&self, archive: &[u8]) -> Result<Context, ContextError> {
        let path = self.contexts.upload_path();
        fs::write(&path, archive).unwrap();
        let taken = self.contexts.add(&path);
        assert!(!path.exists(), "the upload is left");
        taken
    }

    /// Returns the names of all files.
    pub(crate) fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.home.path().join("contexts")).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// Uploads an archive to contexts of its own.
pub(crate) fn taken(archive: &[u8]) -> Result<Context, ContextError> {
    let store = Store::new(Limits::default());
    let taken = store.take(archive);
    let files = if taken.is_ok() { 3 } else { 1 };
    assert_eq!(store.files().len(), files, "{:?}", store.files());
    taken
}

/// Makes what a COPY of files of the context is. A destination that ends with a slash is a directory.
pub(crate) fn copied(sources: &[&str], destination: &str) -> Copied {
    let trimmed = destination.trim_end_matches('/');
    Copied {
        sources: sources.iter().map(|source| Source::Context((*source).to_owned())).collect(),
        destination: if trimmed.is_empty() { "/" } else { trimmed }.to_owned(),
        into_directory: destination.ends_with('/'),
        owner: None,
        mode: None,
    }
}

/// Unpacks a selection by another implementation.
pub(crate) fn unpacked(selection: &Selection) -> BTreeMap<String, Thing> {
    let mut bytes = Vec::new();
    let size = selection.write_tar(&mut bytes).unwrap();
    assert_eq!(size, bytes.len() as u64);
    let (mut archive, mut things) = (Archive::new(&bytes[..]), BTreeMap::new());
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
        let name = name.strip_suffix('/').unwrap_or(&name).to_owned();
        let header = entry.header();
        assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (0, 0));
        let (mode, kind) = (header.mode().unwrap(), header.entry_type());
        let thing = if kind.is_dir() {
            Thing::Directory(mode)
        } else if kind.is_symlink() {
            Thing::Link(String::from_utf8(entry.link_name_bytes().unwrap().into_owned()).unwrap())
        } else {
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            Thing::File(mode, content)
        };
        assert!(things.insert(name, thing).is_none(), "an entry comes twice");
    }
    things
}

/// Returns everything in a context.
pub(crate) fn all(context: &Context) -> BTreeMap<String, Thing> {
    unpacked(&context.select(&copied(&["."], "/x/")).unwrap())
}

/// Makes a tree of entries.
pub(crate) fn tree(entries: &[(&str, Thing)]) -> BTreeMap<String, Thing> {
    entries.iter().map(|(name, thing)| ((*name).to_owned(), thing.clone())).collect()
}
