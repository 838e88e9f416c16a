// SPDX-License-Identifier: Apache-2.0
//! Search for bytes in all files below a directory, such as for a secret in all that an agent keeps.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::SystemTime,
};

use aho_corasick::AhoCorasick;
use anyhow::{Context as _, Result};
use rustix::{
    fs::{SeekFrom, seek},
    io::Errno,
};

/// Returns the files below a directory that were changed since `since` and have these bytes. Holes, of which disks and
/// memories are full, are not read; files that are removed meanwhile have nothing.
pub fn files_with(dir: &Path, since: SystemTime, bytes: &[u8]) -> Result<Vec<PathBuf>> {
    let search = AhoCorasick::new([bytes]).context("what is searched for")?;
    let (mut dirs, mut found) = (vec![dir.to_owned()], Vec::new());
    while let Some(dir) = dirs.pop() {
        for path in unless_gone(entries(&dir))?.unwrap_or_default() {
            let Some(about) = unless_gone(fs::symlink_metadata(&path))? else { continue };
            if about.is_dir() {
                dirs.push(path);
            } else if about.is_file() && about.modified()? >= since && has(&path, &search)? {
                found.push(path);
            }
        }
    }
    Ok(found)
}

fn entries(dir: &Path) -> io::Result<Vec<PathBuf>> {
    fs::read_dir(dir)?.map(|entry| entry.map(|entry| entry.path())).collect()
}

fn unless_gone<T>(result: io::Result<T>) -> Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => Ok(Some(result?)),
    }
}

fn has(path: &Path, search: &AhoCorasick) -> Result<bool> {
    let Some(file) = unless_gone(File::open(path))? else { return Ok(false) };
    let mut from = 0;
    loop {
        let begin = match seek(&file, SeekFrom::Data(from)) {
            // The end, or what has no content, as a namespace that is mounted on a file.
            Err(Errno::NXIO | Errno::SPIPE) => return Ok(false),
            begin => begin.with_context(|| path.display().to_string())?,
        };
        from = seek(&file, SeekFrom::Hole(begin))?;
        if let Some(found) = search.stream_find_iter(Extent { file: &file, at: begin, end: from }).next() {
            return found.map(|_| true).with_context(|| path.display().to_string());
        }
    }
}

/// A part of a file without holes, which is read from its beginning.
struct Extent<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl io::Read for Extent<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.file.read_at(&mut buffer[..left], self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn bytes_are_found_in_any_place_of_a_file_with_holes() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("deep/disk");
        fs::create_dir_all(dir.path().join("deep"))?;
        let file = File::create(&path)?;
        file.set_len(1 << 30)?;
        // Across the end of a buffer of any usual size.
        file.write_all_at(b"needle", (512 << 20) + (1 << 20) - 3)?;
        fs::write(dir.path().join("other"), "nothing")?;
        let before = SystemTime::now() - Duration::from_secs(60);
        assert_eq!(files_with(dir.path(), before, b"needle")?, [path]);
        assert!(files_with(dir.path(), before, b"needles")?.is_empty());
        let after = SystemTime::now() + Duration::from_secs(60);
        assert!(files_with(dir.path(), after, b"needle")?.is_empty());
        Ok(())
    }
}
