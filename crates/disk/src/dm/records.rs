// SPDX-License-Identifier: Apache-2.0
//! Records of volumes: the image and content from which each was cloned. An unreadable record may name any image.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{DiskError, checked, failed, images::names, partial_file::PartialFile};

/// File name extension of records.
const SUFFIX: &str = ".json";

/// Image from which a volume was cloned.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) image: String,
    pub(super) hash: String,
    pub(super) size: u64,
}

/// Id of a volume and its record, or why that cannot be read.
pub(super) type Found = (String, Result<Record, DiskError>);

/// Records of a store's volumes.
#[derive(Debug)]
pub(super) struct Records {
    dir: PathBuf,
}

impl Records {
    /// Opens the records in a directory.
    pub(super) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    pub(super) fn path(&self, id: &str) -> Result<PathBuf, DiskError> {
        Ok(self.dir.join(format!("{}{SUFFIX}", checked(id)?)))
    }

    pub(super) fn ids(&self) -> Result<Vec<String>, DiskError> {
        names(&self.dir, SUFFIX)
    }

    pub(super) fn read(&self, id: &str) -> Result<Record, DiskError> {
        let text = fs::read(self.path(id)?).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => DiskError::UnknownVolume(id.to_owned()),
            _ => failed("read the volume's record")(error),
        })?;
        serde_json::from_slice(&text).map_err(|error| failed("read the volume's record")(error.into()))
    }

    pub(super) fn write(&self, id: &str, record: &Record) -> Result<(), DiskError> {
        let fail = || failed(format!("make volume {id:?}"));
        let text = serde_json::to_vec(record).map_err(|error| fail()(error.into()))?;
        let partial = PartialFile::new(&self.path(id)?, 0o600).map_err(fail())?;
        io::Write::write_all(&mut &partial.file, &text).and_then(|()| partial.rename()).map_err(fail())
    }

    /// Reads all records. A record that is removed meanwhile is left out.
    pub(super) fn all(&self) -> Result<Vec<Found>, DiskError> {
        let read = |id: String| match self.read(&id) {
            Err(DiskError::UnknownVolume(_)) => None,
            record => Some((id, record)),
        };
        Ok(self.ids()?.into_iter().filter_map(read).collect())
    }

    /// Counts the volumes of an image. Fails if a record cannot be read, because its volume may depend on the image.
    pub(super) fn users_of(&self, image: &str) -> Result<usize, DiskError> {
        let mut users = 0;
        for (id, record) in self.all()? {
            let unreadable = |source| DiskError::Unreadable { volume: id, source: Box::new(source) };
            users += usize::from(record.map_err(unreadable)?.image == image);
        }
        Ok(users)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(dir: &Path) -> Records {
        let records = Records::new(dir);
        let record = Record { image: "minimal".to_owned(), hash: "aa".to_owned(), size: 1 };
        records.write("sb1", &record).unwrap();
        records
    }

    #[test]
    fn a_record_that_cannot_be_read_is_not_absent() {
        let dir = tempfile::tempdir().unwrap();
        let records = records(dir.path());
        assert_eq!((records.users_of("minimal").unwrap(), records.users_of("other").unwrap()), (1, 0));
        fs::write(dir.path().join("sb2.json"), "{\"image\":").unwrap();
        let error = records.users_of("other").unwrap_err().to_string();
        assert!(error.contains("\"sb2\""), "{error}");
        let all: Vec<_> =
            records.all().unwrap().into_iter().map(|(id, record)| (id, record.is_ok())).collect();
        assert_eq!(all, [("sb1".to_owned(), true), ("sb2".to_owned(), false)]);
        fs::remove_file(dir.path().join("sb2.json")).unwrap();
        // As a disk that fails, or a process without descriptors, would find it.
        fs::create_dir(dir.path().join("sb3.json")).unwrap();
        assert!(records.users_of("other").is_err());
    }

    #[test]
    fn a_directory_that_cannot_be_read_holds_no_certain_records() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Records::new(&dir.path().join("absent")).users_of("minimal").is_err());
    }
}
