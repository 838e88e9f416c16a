// SPDX-License-Identifier: Apache-2.0
//! Choice between flat and packed generations, and files beside packed ones.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    sync::Arc,
};

use rustix::fs::ioctl_ficlone;

use crate::config::MemoryLayout;

/// Returns whether the memory of sandboxes is kept packed. Flat is better where a copy of the whole memory takes no
/// time; the VMM must be able to load what is packed.
pub(crate) fn packs(wish: MemoryLayout, page_server: bool, shares_extents: bool) -> bool {
    match wish {
        MemoryLayout::Flat => false,
        MemoryLayout::Packed => page_server,
        MemoryLayout::Auto => page_server && !shares_extents,
    }
}

/// Returns whether files in a directory can share extents.
pub(super) fn shares_extents(dir: &Path) -> bool {
    let shared = || -> io::Result<()> {
        let (one, other) = (tempfile_in(dir)?, tempfile_in(dir)?);
        io::Write::write_all(&mut &one, &[1; 4096])?;
        Ok(ioctl_ficlone(&other, &one)?)
    };
    shared().is_ok()
}

/// Opens a file without a name.
fn tempfile_in(dir: &Path) -> io::Result<File> {
    File::options().read(true).write(true).custom_flags(libc::O_TMPFILE).mode(0o600).open(dir)
}

/// Makes the file of a guest's working set, which begins with that of the generation, if it has one.
pub(super) fn working_set(of_generation: &Path, path: &Path) -> io::Result<Arc<File>> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    copy_if_present(of_generation, path)?;
    let file = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    Ok(Arc::new(file))
}

/// Copies a file, if there is one.
pub(super) fn copy_if_present(from: &Path, to: &Path) -> io::Result<()> {
    match fs::copy(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        copied => copied.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_is_for_stores_that_cannot_share_and_vmms_that_can_load_it() {
        use MemoryLayout::{Auto, Flat, Packed};
        assert!(packs(Auto, true, false));
        assert!(!packs(Auto, true, true) && !packs(Auto, false, false));
        assert!(packs(Packed, true, true) && !packs(Packed, false, false));
        assert!(!packs(Flat, true, false));
    }

    #[test]
    fn a_working_set_begins_with_that_of_the_generation() {
        let dir = tempfile::tempdir().unwrap();
        let (kept, own) = (dir.path().join("kept"), dir.path().join("own"));
        let length = || working_set(&kept, &own).unwrap().metadata().unwrap().len();
        assert_eq!(length(), 0);
        fs::write(&kept, "twelve bytes").unwrap();
        fs::write(&own, "of a former run, and longer").unwrap();
        assert_eq!(length(), 12);
    }
}
