// SPDX-License-Identifier: Apache-2.0
//! Control groups: entering them in a child process, and groups that limit the memory of a service.

use std::{
    ffi::CString,
    fs, io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

const ROOT: &str = "/sys/fs/cgroup";
/// Name of the parent of all groups of Wrenn.
const PARENT: &str = "wrenn";
/// Interval between attempts to remove a group, which empties shortly after its last process.
const EMPTY: Duration = Duration::from_millis(20);
const TRIES: usize = 50;

/// File of a control group through which a single-threaded child enters it. In cgroup v1 this is `tasks`:
/// moving whole processes takes some milliseconds, until every processor has taken note.
fn entrance(group: &Path) -> io::Result<PathBuf> {
    let threads = group.join("tasks");
    Ok(if threads.try_exists()? { threads } else { group.join("cgroup.procs") })
}

/// Returns the step with which a child enters control groups, between fork and exec. It makes system calls
/// only.
pub fn enter(groups: &[PathBuf]) -> io::Result<impl FnMut() -> io::Result<()> + Send + Sync + 'static> {
    let file = |group: &PathBuf| -> io::Result<CString> {
        Ok(CString::new(entrance(group)?.as_os_str().as_bytes())?)
    };
    let files = groups.iter().map(file).collect::<io::Result<Vec<_>>>()?;
    Ok(move || {
        for file in &files {
            // SAFETY: system calls on a path and a buffer that outlive them; nothing is allocated.
            unsafe {
                let group = libc::open(file.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
                if group < 0 {
                    return Err(io::Error::last_os_error());
                }
                // Zero stands for the writing process.
                let written = libc::write(group, c"0".as_ptr().cast(), 1);
                let error = io::Error::last_os_error();
                libc::close(group);
                if written != 1 {
                    return Err(error);
                }
            }
        }
        Ok(())
    })
}

/// Paths of the group in cgroup v2 and v1.
fn places(root: &Path, name: &str) -> [(PathBuf, &'static str); 2] {
    [
        (root.join(PARENT).join(name), "memory.max"),
        (root.join("memory").join(PARENT).join(name), "memory.limit_in_bytes"),
    ]
}

fn bound_memory_below(root: &Path, name: &str, bytes: u64) -> io::Result<PathBuf> {
    let unified = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    let [second, first] = places(root, name);
    let (group, file) = if unified.split_whitespace().any(|controller| controller == "memory") {
        let parent = root.join(PARENT);
        fs::write(root.join("cgroup.subtree_control"), "+memory")?;
        fs::create_dir_all(&parent)?;
        fs::write(parent.join("cgroup.subtree_control"), "+memory")?;
        second
    } else if root.join("memory/cgroup.procs").try_exists()? {
        first
    } else {
        return Err(io::Error::new(io::ErrorKind::NotFound, "there is no controller of memory"));
    };
    fs::create_dir_all(&group)?;
    fs::write(group.join(file), bytes.to_string())?;
    Ok(group)
}

/// Creates a group whose processes together have at most this many bytes of memory, or changes its limit.
pub fn bound_memory(name: &str, bytes: u64) -> io::Result<PathBuf> {
    bound_memory_below(Path::new(ROOT), name, bytes)
}

/// Removes the group of this name, if any, and the common parent with the last group. Blocks for up to a
/// second until its last process has ended.
pub fn remove(name: &str) -> io::Result<()> {
    places(Path::new(ROOT), name).iter().try_for_each(|(group, _)| remove_directory(group))
}

/// Removes a group by its directory, if it exists, and the common parent with the last group. Blocks for up to
/// a second until its last process has ended.
pub fn remove_directory(group: &Path) -> io::Result<()> {
    for left in (0..TRIES).rev() {
        match fs::remove_dir(group) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && left > 0 => thread::sleep(EMPTY),
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            result => {
                result?;
                break;
            }
        }
    }
    if let Some(parent) = group.parent() {
        let _ = fs::remove_dir(parent);
    }
    Ok(())
}

/// Directories of the group of this name that exist, or of which that cannot be seen.
pub fn present(name: &str) -> Vec<PathBuf> {
    let groups = places(Path::new(ROOT), name).into_iter().map(|(group, _)| group);
    groups.filter(|group| group.try_exists().unwrap_or(true)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bounded_by_the_version_that_has_the_controller() {
        let root = tempfile::tempdir().unwrap();
        assert!(bound_memory_below(root.path(), "a", 7).is_err(), "no control groups");
        fs::create_dir(root.path().join("memory")).unwrap();
        fs::write(root.path().join("memory/cgroup.procs"), "").unwrap();
        let first = bound_memory_below(root.path(), "a", 7).unwrap();
        assert_eq!(fs::read_to_string(first.join("memory.limit_in_bytes")).unwrap(), "7");
        fs::write(root.path().join("cgroup.controllers"), "cpu memory\n").unwrap();
        let second = bound_memory_below(root.path(), "a", 8).unwrap();
        assert_eq!(second, root.path().join("wrenn/a"));
        assert_eq!(fs::read_to_string(second.join("memory.max")).unwrap(), "8");
        assert_eq!(fs::read_to_string(root.path().join("wrenn/cgroup.subtree_control")).unwrap(), "+memory");
    }

    #[test]
    fn a_child_enters_what_it_is_given() {
        let group = tempfile::tempdir().unwrap();
        let procs = group.path().join("cgroup.procs");
        fs::write(&procs, "").unwrap();
        let mut enter = enter(&[group.path().to_owned()]).unwrap();
        enter().unwrap();
        assert_eq!(fs::read_to_string(&procs).unwrap(), "0");
        fs::remove_file(procs).unwrap();
        assert!(enter().is_err());
    }
}
