// SPDX-License-Identifier: Apache-2.0
//! Records of what outlives sandboxes on this host: a file of JSON per id in a directory, written as a whole.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};
use tokio::task::spawn_blocking;
use wrenn_api::ErrorCode;
use wrenn_os::atomic_file;

use crate::error::AgentError;

/// Ending of the files' names.
const ENDING: &str = ".json";
/// Maximum length of an id of a snapshot or an image, which is a part of names on the disk.
const ID_MAX: usize = 48;

/// Fails unless this can be the id of something that the control plane has kept here.
pub(crate) fn check_id(of: &str, id: &str) -> Result<(), AgentError> {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if (1..=ID_MAX).contains(&id.len()) && id.bytes().all(valid) {
        return Ok(());
    }
    let shown: String = id.chars().take(ID_MAX).collect();
    let message = format!("{shown:?} is not an id of {of}: 1 to {ID_MAX} letters, digits and hyphens");
    Err(AgentError::new(ErrorCode::InvalidRequest, message))
}

fn path(dir: &Path, id: &str) -> PathBuf {
    dir.join(format!("{id}{ENDING}"))
}

/// Reads all records in a directory, which is created if it is missing. Blocks.
pub(crate) fn read<T: DeserializeOwned>(dir: &Path) -> io::Result<Vec<T>> {
    // Records may have tokens and environments.
    fs::DirBuilder::new().mode(0o700).recursive(true).create(dir)?;
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.to_string_lossy().ends_with(ENDING) {
            found.push(serde_json::from_slice(&fs::read(path)?)?);
        }
    }
    Ok(found)
}

/// Writes the record of `id`, which becomes a part of a file's name. It survives a power failure afterwards.
pub(crate) async fn write(dir: &Path, id: &str, record: &(impl Serialize + Sync)) -> io::Result<()> {
    let (path, text) = (path(dir, id), serde_json::to_vec(record)?);
    let written = spawn_blocking(move || atomic_file::write(&path, &text, 0o600, None));
    written.await.unwrap_or_else(|error| Err(error.into()))
}

/// Removes the record of `id`. Does nothing if there is none.
pub(crate) async fn remove(dir: &Path, id: &str) -> io::Result<()> {
    let path = path(dir, id);
    let removed = spawn_blocking(move || match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    });
    removed.await.unwrap_or_else(|error| Err(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_parts_of_file_names() {
        for id in ["a", "01890a5d-ac96-774b-bcce-b302099a8057", &"x".repeat(ID_MAX)] {
            assert!(check_id("an image", id).is_ok(), "{id}");
        }
        for id in ["", ".", "../x", "a/b", "a.b", "a b", "ä", "a\0", &"x".repeat(ID_MAX + 1)] {
            let error = check_id("an image", id).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidRequest, "{id:?}");
            assert!(error.message.contains("an image") && error.message.len() < 256, "{error}");
        }
    }

    #[tokio::test]
    async fn records_are_read_as_they_were_written_and_damage_is_no_absence() -> anyhow::Result<()> {
        let home = tempfile::tempdir()?;
        let dir = home.path().join("records");
        assert!(read::<String>(&dir)?.is_empty());
        for (id, record) in [("a", "one"), ("b", "two"), ("a", "three")] {
            write(&dir, id, &record.to_owned()).await?;
        }
        // What an interrupted write leaves, and what others put there.
        fs::write(dir.join("c.json.7.new"), "\"half")?;
        fs::write(dir.join("README"), "theirs")?;
        let mut found = read::<String>(&dir)?;
        found.sort_unstable();
        assert_eq!(found, ["three", "two"]);
        for _ in 0..2 {
            remove(&dir, "a").await?;
        }
        assert_eq!(read::<String>(&dir)?, ["two"]);
        fs::write(dir.join("b.json"), "\"tw")?;
        assert!(read::<String>(&dir).is_err());
        Ok(())
    }
}
