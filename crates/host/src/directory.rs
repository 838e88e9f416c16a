// SPDX-License-Identifier: Apache-2.0
//! Directory of sandboxes: names in it, and its content: sandboxes, remains of removed ones, and foreign
//! files, which the agent must not read, move or remove.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
};

use wrenn_api::SandboxId;

/// Entries of the directory by kind.
#[derive(Debug, Default)]
pub(crate) struct Content {
    /// Ids of sandboxes with a directory.
    pub(crate) ids: Vec<String>,
    /// Directories of sandboxes whose removal was interrupted.
    pub(crate) remains: Vec<PathBuf>,
    /// Names of foreign entries.
    pub(crate) foreign: Vec<OsString>,
}

/// Directory of a sandbox.
pub(crate) fn of(sandboxes: &Path, id: &str) -> PathBuf {
    sandboxes.join(id)
}

/// Directory of a sandbox's VMM, which runs as its owner.
pub(crate) fn of_vmm(sandboxes: &Path, id: &str) -> PathBuf {
    of(sandboxes, id).join("run")
}

/// Path to which the directory of a sandbox is renamed during its removal.
pub(crate) fn of_removed(sandboxes: &Path, id: &str) -> PathBuf {
    sandboxes.join(format!(".{id}"))
}

fn is_id(name: &str) -> bool {
    name.parse::<SandboxId>().is_ok()
}

/// Lists the directory of sandboxes.
pub(crate) fn list(sandboxes: &Path) -> io::Result<Content> {
    let mut content = Content::default();
    for entry in fs::read_dir(sandboxes)? {
        let entry = entry?;
        let (name, is_dir) = (entry.file_name(), entry.file_type()?.is_dir());
        match name.to_str().filter(|_| is_dir) {
            Some(id) if is_id(id) => content.ids.push(id.to_owned()),
            Some(name) if name.strip_prefix('.').is_some_and(is_id) => content.remains.push(entry.path()),
            _ => content.foreign.push(name),
        }
    }
    Ok(content)
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
        fs::create_dir(of_removed(dir.path(), &two))?;
        fs::write(dir.path().join(&file), "")?;
        symlink("/", dir.path().join(&link))?;
        for name in ["lost+found", ".snapshot", "sb1"] {
            fs::create_dir(dir.path().join(name))?;
        }
        let mut content = list(dir.path())?;
        assert_eq!(content.ids, [one]);
        assert_eq!(content.remains, [of_removed(dir.path(), &two)]);
        let mut foreign = [file.as_str(), &link, "lost+found", ".snapshot", "sb1"];
        foreign.sort_unstable();
        content.foreign.sort_unstable();
        assert_eq!(content.foreign, foreign);
        Ok(())
    }
}
