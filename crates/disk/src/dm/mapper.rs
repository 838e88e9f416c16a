// SPDX-License-Identifier: Apache-2.0
//! Device-mapper devices of one volume, created and removed together.
//!
//! ```text
//! wrINSTANCE-ID       snapshot   opened by the VMM
//! ├── loop            volumes/ID.cow, the changes
//! └── wrINSTANCE-ID+base         read-only: the image, then zeros up to the disk's size
//!     └── loop        images/NAME/HASH.img, read-only, one for all volumes of the image
//! ```
//! The kernel frees a loop device when the last table that uses it is removed, so nothing here counts users,
//! and a killed agent leaves at most devices with names of its own.

use std::{
    collections::{BTreeSet, HashMap},
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use super::{
    ioctl::{Control, Info, is_missing},
    numbers::Numbers,
    table::{self, SnapshotStatus, Target},
};
use crate::{
    DiskError, failed,
    loopdev::{self, Loop, Use},
};

/// Suffix of base devices. `+` is not allowed in ids, so no id can equal the name of another's base.
const BASE: &str = "+base";
const SECTOR: u64 = 512;
/// Time limit for a device to be closed before its removal: a killed VMM takes a moment to close it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
const TICK: Duration = Duration::from_millis(10);

/// Creates and removes the devices of one instance.
#[derive(Debug)]
pub(crate) struct Mapper {
    control: Control,
    prefix: String,
    /// Last known loop devices of images; each is verified before use. Locked while one is looked up, so that
    /// two concurrent clones do not attach two.
    images: Mutex<HashMap<(u64, u64), PathBuf>>,
}

/// Returns whether requests to a device are in progress; true if that cannot be read.
fn in_flight(numbers: Numbers) -> bool {
    match fs::read_to_string(format!("/sys/dev/block/{numbers}/inflight")) {
        Ok(text) => text.split_whitespace().any(|count| count != "0"),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

/// Returns whether the error means that the machine has no device-mapper.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::ENXIO))
}

impl Mapper {
    pub(crate) fn new(instance: &str) -> io::Result<Self> {
        let control = Control::open()?;
        Ok(Self { control, prefix: format!("wr{instance}-"), images: Mutex::default() })
    }

    /// Opens device-mapper; `None` if the machine has none.
    pub(crate) fn present(instance: &str) -> Result<Option<Self>, DiskError> {
        match Self::new(instance) {
            Ok(mapper) => Ok(Some(mapper)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(failed("ask device-mapper for the volumes' devices")(error)),
        }
    }

    fn snapshot_name(&self, id: &str) -> String {
        format!("{}{id}", self.prefix)
    }

    fn base_name(&self, id: &str) -> String {
        format!("{}{id}{BASE}", self.prefix)
    }

    /// Returns the loop device of an image; attaches one if there is none.
    fn image_loop(&self, image: &File) -> io::Result<Loop> {
        let meta = image.metadata()?;
        let key = (meta.dev(), meta.ino());
        let mut known = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        let hinted = known.get(&key).cloned();
        let present = hinted.map_or(Ok(None), |path| loopdev::held(path, image))?;
        let found = match present {
            Some(found) => found,
            None => match loopdev::find(image)? {
                Some(found) => found,
                None => loopdev::attach(image, Use::Shared)?,
            },
        };
        known.insert(key, found.path.clone());
        Ok(found)
    }

    fn make(&self, name: &str, table: &[Target], read_only: bool) -> io::Result<Numbers> {
        let numbers = self.control.create(name, &format!("wrenn-{name}"))?;
        self.control.load(name, table, read_only)?;
        self.control.resume(name)?;
        Ok(numbers)
    }

    fn make_both(&self, id: &str, image: &File, cow: &File, size: u64) -> io::Result<Numbers> {
        let numbers = |device: &Loop| device.numbers().map(|(major, minor)| Numbers { major, minor });
        // Keep both open until the tables use them.
        let (image_loop, cow_loop) = (self.image_loop(image)?, loopdev::attach(cow, Use::Private)?);
        let (sectors, size) = (image.metadata()?.len() / SECTOR, size / SECTOR);
        let base = table::base(numbers(&image_loop)?, sectors, size);
        let base = self.make(&self.base_name(id), &base, true)?;
        let snapshot = table::snapshot(base, numbers(&cow_loop)?, size);
        self.make(&self.snapshot_name(id), &snapshot, false)
    }

    /// Creates the devices of volume `id`: `image` with the changes in `cow`, `size` bytes in total. First
    /// removes what an interrupted mapping of the same id left.
    pub(crate) fn map(&self, id: &str, image: &File, cow: &File, size: u64) -> Result<Numbers, DiskError> {
        self.unmap(id, PATIENCE)?;
        self.make_both(id, image, cow, size).map_err(|error| {
            // The next reclaim finds what cannot be removed now.
            if let Err(left) = self.unmap(id, PATIENCE) {
                tracing::warn!(%left, volume = id, "a volume that failed is not all gone");
            }
            failed(format!("map volume {id:?}"))(error)
        })
    }

    /// Returns the device of volume `id` if it is active.
    pub(crate) fn mapped(&self, id: &str) -> Result<Option<Info>, DiskError> {
        let info =
            self.control.info(&self.snapshot_name(id)).map_err(failed("ask for the volume's device"))?;
        Ok(info.filter(|info| info.active))
    }

    /// Returns the snapshot status of volume `id`, or `None` if it is not mapped.
    pub(crate) fn status(&self, id: &str) -> Result<Option<SnapshotStatus>, DiskError> {
        match self.control.status(&self.snapshot_name(id)) {
            Ok(targets) => Ok(targets.first().and_then(table::TargetStatus::snapshot)),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(failed("ask for the snapshot's status")(error)),
        }
    }

    /// Returns whether the mapped volume `id` stores its changes in the file `cow`, not in a deleted one.
    pub(crate) fn uses(&self, id: &str, cow: &File) -> Result<bool, DiskError> {
        let fail = || failed("look up the volume's devices");
        let deps = self.control.deps(&self.snapshot_name(id)).map_err(fail())?;
        for numbers in deps {
            let sys = format!("/sys/dev/block/{numbers}");
            let Ok(real) = fs::canonicalize(&sys) else { continue };
            let Some(name) = real.file_name() else { continue };
            let is_loop = real.join("loop").try_exists().map_err(fail())?;
            if is_loop && loopdev::backs(&PathBuf::from("/dev").join(name), cow).map_err(fail())? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Removes one device; waits until its users close it.
    fn remove(&self, name: &str, deadline: Instant) -> Result<(), DiskError> {
        let fail = || failed(format!("remove device {name}"));
        loop {
            let Some(info) = self.control.info(name).map_err(fail())? else { return Ok(()) };
            if info.open_count == 0 && !in_flight(info.numbers) {
                match self.control.remove(name) {
                    Ok(()) => return Ok(()),
                    Err(error) if is_missing(&error) => return Ok(()),
                    Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                    Err(error) => return Err(fail()(error)),
                }
            }
            // No deferred removal, because then the device would disappear at an unknown time, after its
            // file.
            if Instant::now() >= deadline {
                return Err(DiskError::Busy { device: name.to_owned(), open_count: info.open_count });
            }
            thread::sleep(TICK);
        }
    }

    /// Removes the devices of volume `id`. Does nothing if there are none. A busy device stays, with the
    /// devices below it.
    pub(crate) fn unmap(&self, id: &str, patience: Duration) -> Result<(), DiskError> {
        let deadline = Instant::now() + patience;
        self.remove(&self.snapshot_name(id), deadline)?;
        self.remove(&self.base_name(id), deadline)
    }

    /// Lists the ids of all volumes with at least one device.
    pub(crate) fn ids(&self) -> Result<BTreeSet<String>, DiskError> {
        let devices = self.control.list().map_err(failed("list the devices"))?;
        let id = |(name, _): (String, Numbers)| {
            let id = name.strip_prefix(&self.prefix)?;
            Some(id.strip_suffix(BASE).unwrap_or(id).to_owned())
        };
        Ok(devices.into_iter().filter_map(id).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_not_taken_for_a_machine_without_device_mapper() {
        let absent = |code| is_absent(&io::Error::from_raw_os_error(code));
        assert!([libc::ENOENT, libc::ENODEV, libc::ENXIO].into_iter().all(absent));
        assert!(
            ![libc::EMFILE, libc::ENFILE, libc::EACCES, libc::EPERM, libc::ENOMEM].into_iter().any(absent)
        );
    }
}
