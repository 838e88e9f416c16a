// SPDX-License-Identifier: Apache-2.0
//! Index of an image that is a tar archive: where in the archive its files are. Nothing is extracted.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufReader, Seek as _},
    os::unix::fs::FileExt as _,
    sync::Arc,
};

use super::{
    SourceError,
    stored::{Files, Part},
};
use crate::tar::{Bounds, Kind, Reader, TarError};

/// Maximum number of entries of an archive; images have some hundreds.
const ENTRIES_MAX: usize = 65_536;
/// Maximum number of links that are followed to a file.
const LINKS_MAX: usize = 8;
/// What is limited of an entry: names are short, and attributes mean nothing here.
const BOUNDS: Bounds = Bounds { name: 1024, attributes: 64 << 10 };

/// An archive, and what is in it.
pub(super) struct TarIndex {
    file: Arc<File>,
    /// Offset and size of regular files.
    files: HashMap<String, (u64, u64)>,
    /// Targets of links, as paths from the top. Archives of older versions of Docker have equal layers only once.
    links: HashMap<String, String>,
}

impl TarIndex {
    /// Reads the headers of an archive; `image` names it in errors.
    pub(super) fn of(file: File, image: &str) -> Result<Self, SourceError> {
        let unusable = |cause: &str| SourceError::malformed(image, "it", cause);
        let failed = |error| SourceError::files(image, error);
        let mut first = [0; 4];
        let read = file.read_at(&mut first, 0).map_err(failed)?;
        if first.starts_with(&[0x1f, 0x8b]) || first == [0x28, 0xb5, 0x2f, 0xfd] {
            return Err(unusable("it is compressed; decompress it before it is uploaded"));
        }
        if read == 0 {
            return Err(unusable("it is empty"));
        }
        let length = file.metadata().map_err(failed)?.len();
        let (mut files, mut links) = (HashMap::new(), HashMap::new());
        let mut input = BufReader::new(file.try_clone().map_err(failed)?);
        input.rewind().map_err(failed)?;
        let mut reader = Reader::passing(input, BOUNDS, pass);
        loop {
            let entry = match reader.next_entry() {
                Ok(Some(entry)) => entry,
                Ok(None) => break,
                Err(TarError::Malformed(cause)) => return Err(unusable(cause)),
                Err(TarError::Stream(error)) => return Err(failed(error)),
            };
            if files.len() + links.len() == ENTRIES_MAX {
                return Err(unusable("it has more than 65536 entries"));
            }
            // Names that are not UTF-8 are of nothing that an image has.
            let Some(name) = top_path("", &entry.header.name) else { continue };
            match entry.header.kind {
                Kind::File if entry.sparse.is_some() => {
                    return Err(unusable("it was packed with `--sparse`; pack it without"));
                }
                Kind::File => {
                    let offset = reader.position();
                    if offset.checked_add(entry.header.size).is_none_or(|end| end > length) {
                        return Err(unusable("it is cut off; upload it again"));
                    }
                    files.insert(name, (offset, entry.header.size));
                }
                Kind::HardLink => links.extend(top_path("", &entry.header.link).map(|target| (name, target))),
                Kind::Symlink => {
                    links.extend(top_path(&name, &entry.header.link).map(|target| (name, target)));
                }
                _ => {}
            }
        }
        Ok(Self { file: Arc::new(file), files, links })
    }
}

impl Files for TarIndex {
    fn find(&self, path: &str) -> io::Result<Option<Part>> {
        let mut name = top_path("", path.as_bytes());
        for _ in 0..=LINKS_MAX {
            let Some(wanted) = name else { break };
            if let Some(&(offset, size)) = self.files.get(&wanted) {
                return Ok(Some(Part { file: Arc::clone(&self.file), offset, size }));
            }
            name = self.links.get(&wanted).cloned();
        }
        Ok(None)
    }
}

/// Returns a path from the top, of what a link at `from` leads to. `None` if it leads out, or is not UTF-8.
fn top_path(from: &str, path: &[u8]) -> Option<String> {
    let path = std::str::from_utf8(path).ok()?;
    let base = if path.starts_with('/') { "" } else { from.rsplit_once('/').map_or("", |(base, _)| base) };
    let mut names: Vec<&str> = Vec::new();
    for name in base.split('/').chain(path.split('/')) {
        match name {
            "" | "." => {}
            ".." => {
                names.pop()?;
            }
            name => names.push(name),
        }
    }
    Some(names.join("/"))
}

fn pass(input: &mut BufReader<File>, bytes: u64) -> io::Result<()> {
    input.seek_relative(i64::try_from(bytes).map_err(io::Error::other)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_to_paths_within() {
        for (from, path, expected) in [
            ("", "./a//b", Some("a/b")),
            ("", "/a", Some("a")),
            ("x/layer.tar", "../y/layer.tar", Some("y/layer.tar")),
            ("x/layer.tar", "/y", Some("y")),
            ("x/layer.tar", "../../y", None),
            ("", "..", None),
        ] {
            assert_eq!(top_path(from, path.as_bytes()).as_deref(), expected, "{from} {path}");
        }
        assert_eq!(top_path("", b"\xff"), None);
    }

    #[test]
    fn what_is_no_archive_is_refused() {
        let cases: [(&[u8], &str); 4] =
            [(b"", "empty"), (b"\x1f\x8b\x08\0", "compressed"), (&[1; 600], "tar"), (b"short", "header")];
        for (content, cause) in cases {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(content, 0).unwrap();
            let error = TarIndex::of(file, "the archive").err().unwrap().to_string();
            assert!(error.contains(cause), "{error}");
        }
    }
}
