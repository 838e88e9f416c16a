// SPDX-License-Identifier: Apache-2.0
//! Content of the directory of sandboxes: sandboxes, remains of removed ones, and foreign files, which the
//! agent must not read, move or remove.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
};

use wrenn_api::SandboxId;

/// Entries of the directory by kind.
#[derive(Debug, Default)]
pub(crate) struct Present {
    /// Ids of sandboxes with a directory.
    pub(crate) ids: Vec<String>,
    /// Directories of sandboxes whose removal was interrupted.
    pub(crate) remains: Vec<PathBuf>,
    /// Names of foreign entries.
    pub(crate) foreign: Vec<OsString>,
}

/// Path to which the directory of a sandbox is renamed during its removal.
pub(crate) fn remains_of(sandboxes: &Path, id: &str) -> PathBuf {
    sandboxes.join(format!(".{id}"))
}

fn is_id(name: &str) -> bool {
    name.parse::<SandboxId>().is_ok()
}

/// Reads the directory.
pub(crate) fn look(sandboxes: &Path) -> io::Result<Present> {
    let mut present = Present::default();
    for entry in fs::read_dir(sandboxes)? {
        let entry = entry?;
        let (name, is_dir) = (entry.file_name(), entry.file_type()?.is_dir());
        match name.to_str().filter(|_| is_dir) {
            Some(id) if is_id(id) => present.ids.push(id.to_owned()),
            Some(name) if name.strip_prefix('.').is_some_and(is_id) => present.remains.push(entry.path()),
            _ => present.foreign.push(name),
        }
    }
    Ok(present)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_directories_with_names_of_sandboxes_are_ours() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let [one, two, file, link] = [(); 4].map(|()| SandboxId::new().to_string());
        fs::create_dir(dir.path().join(&one))?;
        fs::create_dir(remains_of(dir.path(), &two))?;
        fs::write(dir.path().join(&file), "")?;
        symlink("/", dir.path().join(&link))?;
        for name in ["lost+found", ".snapshot", "sb1"] {
            fs::create_dir(dir.path().join(name))?;
        }
        let mut present = look(dir.path())?;
        assert_eq!(present.ids, [one]);
        assert_eq!(present.remains, [remains_of(dir.path(), &two)]);
        let mut foreign = [file.as_str(), &link, "lost+found", ".snapshot", "sb1"];
        foreign.sort_unstable();
        present.foreign.sort_unstable();
        assert_eq!(present.foreign, foreign);
        Ok(())
    }
}
