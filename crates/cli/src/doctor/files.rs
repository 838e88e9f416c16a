// SPDX-License-Identifier: Apache-2.0
//! Checks of files: free space and reflinks of the state directory's file system, and the guest's files.

use std::{
    fs::{self, File},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::Result;

use super::Check;
use crate::config::Config;

/// Minimum free space in bytes: less is too little for the first sandboxes.
const SPACE_MIN: u64 = 2 << 30;
/// Free space in bytes below which a warning is given.
const SPACE_WARN: u64 = 10 << 30;

/// Returns the state directory, or its nearest existing parent.
fn existing(config: &Config) -> PathBuf {
    let state = config.machine().state_dir;
    state.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/")).to_owned()
}

pub(super) fn state_dir(config: &Config) -> Check {
    let (name, dir) = ("disk space", existing(config));
    let free = match rustix::fs::statvfs(&dir) {
        Ok(stat) => stat.f_bavail.saturating_mul(stat.f_frsize),
        Err(error) => {
            return Check::fail(name, format!("{}: {error}", dir.display()), "see the state_dir key");
        }
    };
    let detail = format!("{:.1} GiB free in {}", free as f64 / f64::from(1 << 30), dir.display());
    let remedy = "free space, or put WRENN_STATE_DIR on a larger file system";
    match free {
        free if free < SPACE_MIN => Check::fail(name, detail, remedy),
        free if free < SPACE_WARN => Check::warn(name, detail, remedy),
        _ => Check::ok(name, detail),
    }
}

pub(super) fn reflinks(config: &Config) -> Check {
    let (name, dir) = ("reflinks", existing(config));
    match clone_in(&dir) {
        Ok(true) => Check::ok(name, format!("the file system of {} has them", dir.display())),
        Ok(false) => {
            let size = config.agent().store_size_mb;
            let what = format!("no reflinks: disks are stored in a loop-mounted XFS of {size} MiB");
            Check::ok(name, format!("{} has {what}", dir.display()))
        }
        Err(error) => {
            let detail = format!("cannot be tried in {}: {error}", dir.display());
            Check::warn(name, detail, "run as root")
        }
    }
}

/// Clones a file and removes both files.
fn clone_in(dir: &Path) -> std::io::Result<bool> {
    let paths = ["a", "b"].map(|end| dir.join(format!(".wrenn-doctor-{}-{end}", std::process::id())));
    let open = |path: &Path| File::options().read(true).write(true).create_new(true).mode(0o600).open(path);
    let result = (|| {
        let (source, target) = (open(&paths[0])?, open(&paths[1])?);
        source.set_len(4096)?;
        Ok(rustix::fs::ioctl_ficlone(&target, &source).is_ok())
    })();
    for path in &paths {
        let _ = fs::remove_file(path);
    }
    result
}

pub(super) fn share(config: &Config) -> Result<Vec<Check>> {
    let share = config.share_dir()?;
    let remedy = "build them (make assets), or set WRENN_SHARE_DIR";
    let mut checks = Vec::new();
    let mut files =
        vec![("guest kernel", share.join("vmlinuz")), ("guest kernel, ELF", share.join("vmlinux"))];
    if let Some(kernel) = config.agent().kernel {
        files = vec![("guest kernel", kernel)];
    }
    files.push(("initial RAM disk", share.join("initrd.img")));
    for (name, path) in files {
        checks.push(match fs::metadata(&path) {
            Ok(meta) if meta.is_file() => Check::ok(name, path.display().to_string()),
            _ => Check::fail(name, format!("{} is missing", path.display()), remedy),
        });
    }
    let images = share.join("images");
    let mut templates: Vec<String> = fs::read_dir(&images)
        .map(|entries| {
            entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
        })
        .unwrap_or_default();
    templates.sort();
    checks.push(if templates.is_empty() {
        Check::fail("templates", format!("none in {}", images.display()), remedy)
    } else {
        Check::ok("templates", templates.join(", "))
    });
    Ok(checks)
}
