// SPDX-License-Identifier: Apache-2.0
//! A generation that is being written: a directory of another name, which is synced and renamed when it is complete.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    thread,
};

use wrenn_os::sparse_file::Extent;

use crate::{
    BuildId, Generation, Header, Layout, Manifest, Mapping, MemoryError, Part, Sums, error::failed,
    generation::MANIFEST,
};

/// A generation that is being written; dropping it removes it.
#[derive(Debug)]
pub(crate) struct Partial {
    /// Its identity.
    pub(crate) build: BuildId,
    pub(crate) dir: PathBuf,
    pub(crate) target: PathBuf,
    kept: bool,
}

impl Partial {
    /// A generation that is being written into `dir`, which becomes `target`.
    pub(crate) fn new(build: BuildId, dir: PathBuf, target: PathBuf) -> Self {
        Self { build, dir, target, kept: false }
    }

    /// Path of a file of the generation.
    pub(crate) fn path(&self, part: Part) -> PathBuf {
        self.dir.join(part.name())
    }

    /// Makes the file for the data.
    pub(crate) fn new_data(&self) -> io::Result<File> {
        // It may be the memory of somebody.
        File::options().read(true).write(true).create_new(true).mode(0o600).open(self.path(Part::Data))
    }

    /// Completes the generation: writes its header, sums and syncs its files, and gives it its name. Reads and
    /// writes all its data, so the guest should already run on.
    pub(crate) fn keep(self, header: &Header, manifest: Manifest) -> Result<Generation, MemoryError> {
        self.keep_after(header, manifest, None)
    }

    /// The same for data that is a copy of that of another generation with these changes: reads only them.
    pub(crate) fn keep_after(
        mut self,
        header: &Header,
        manifest: Manifest,
        copied: Option<(&Manifest, &Mapping)>,
    ) -> Result<Generation, MemoryError> {
        let fail = || failed("keep a snapshot's memory");
        let manifest = self.complete(header, manifest, copied)?;
        fs::rename(&self.dir, &self.target).map_err(fail())?;
        self.kept = true;
        sync(self.target.parent().unwrap_or(&self.target)).map_err(fail())?;
        Ok(Generation { manifest, header: header.clone() })
    }

    /// Writes header and manifest with the sums of all files, and syncs everything.
    pub(crate) fn complete(
        &self,
        header: &Header,
        mut manifest: Manifest,
        copied: Option<(&Manifest, &Mapping)>,
    ) -> Result<Manifest, MemoryError> {
        let fail = || failed("keep a snapshot's memory");
        fs::write(self.path(Part::Header), header.encode()).map_err(fail())?;
        let open = |part| Ok((part, File::open(self.path(part))?));
        let files = Part::ALL.map(open).into_iter().collect::<io::Result<Vec<_>>>().map_err(fail())?;
        // The files are written to the disk while they are summed: one waits for the disk, the other computes.
        thread::scope(|scope| {
            let syncs: Vec<_> = files.iter().map(|(_, file)| scope.spawn(|| file.sync_all())).collect();
            for (part, file) in &files {
                let sums = match (part, manifest.layout) {
                    (Part::Data, Layout::Flat) => sum_flat(file, header, copied),
                    _ => Sums::of(file),
                };
                manifest.files.insert(part.name().to_owned(), sums?);
            }
            let died = |_| Err(io::Error::other("a thread that writes a snapshot to the disk died"));
            syncs.into_iter().try_for_each(|sync| sync.join().unwrap_or_else(died))
        })
        .map_err(fail())?;
        let text = manifest.encode().map_err(io::Error::from).map_err(fail())?;
        wrenn_os::atomic_file::write(&self.dir.join(MANIFEST), text.as_bytes(), 0o600, None)
            .map_err(fail())?;
        Ok(manifest)
    }
}

/// Sums flat data, or only the changes of a copy.
fn sum_flat(file: &File, header: &Header, copied: Option<(&Manifest, &Mapping)>) -> io::Result<Sums> {
    let size = u64::from(header.block_size);
    let extents = |mapping: &Mapping| -> Vec<Extent> {
        let ranges = mapping.ranges().iter();
        ranges.map(|range| Extent { start: range.start * size, end: range.end() * size }).collect()
    };
    let (all, nothing) = (extents(&header.mapping), Sums::of_nothing());
    let former = copied.and_then(|(of, changed)| Some((of.files.get(Part::Data.name())?, extents(changed))));
    let (former, changed) = former.as_ref().map_or((&nothing, &[][..]), |(sums, changed)| (*sums, changed));
    former.after(file, &all, changed)
}

/// Writes a directory to the disk.
pub(crate) fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Removes a directory with all that is in it, if it is there.
pub(crate) fn remove_all(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.kept {
            // What is left is removed by the next `clean`.
            let _ = remove_all(&self.dir);
        }
    }
}
