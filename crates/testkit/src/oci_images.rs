// SPDX-License-Identifier: Apache-2.0
//! Makes container images for tests as others make them: with GNU tar and umoci.

use std::{
    ffi::OsStr,
    fs::{self, File, Permissions},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{FileExt as _, PermissionsExt as _, chown, lchown, symlink},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{
    AtFlags, CWD, Dev, FileType, Mode, Timespec, Timestamps, XattrFlags, makedev, mknodat, setxattr,
    utimensat,
};

/// Program without libraries, which is all that the images have. `scripts/setup` installs it.
pub const BUSYBOX: &str = "/bin/busybox";
/// `security.capability` (capabilities(7), version 2): CAP_NET_BIND_SERVICE, permitted and effective.
pub const MAY_BIND: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// Size of the sparse file in the image with every kind of entry.
pub const SPARSE: u64 = 16 << 20;
/// A name that is no UTF-8, and has a newline.
const ODD: &[u8] = b"odd \xff\xfe\n\xc3\xa4";

/// Runs a program in a directory. Fails with what it says if it does not succeed.
pub fn tool(dir: &Path, program: &str, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(dir).stdin(Stdio::null());
    let output = command.output().with_context(|| format!("{program}: run scripts/setup"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {arguments:?}: {said}");
    Ok(())
}

/// Writes a file with a mode.
pub fn put(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    fs::write(path, content).with_context(|| path.display().to_string())?;
    Ok(fs::set_permissions(path, Permissions::from_mode(mode))?)
}

/// Makes an image of two layers with every kind of entry that layers can have, as `kinds` in the layout `oci` of the directory, which
/// is there. The upper layer hides, replaces and merges what the lower one has. Its shell is busybox's. Needs root.
pub fn every_kind(dir: &Path) -> Result<()> {
    let [lower, upper] = ["lower", "upper"].map(|name| dir.join(name));
    for root in [&lower, &upper] {
        fs::create_dir(root)?;
        fs::set_permissions(root, Permissions::from_mode(0o755))?;
    }
    programs(&lower)?;
    to_be_changed(&lower)?;
    to_be_kept(&lower)?;
    changes(&upper)?;
    tool(dir, "umoci", &["new", "--image", "oci:kinds"])?;
    for name in ["lower", "upper"] {
        let archive = format!("{name}.tar");
        let what =
            ["--create", "--file", &archive, "--directory", name, "--sort=name", "--numeric-owner", "."];
        let attributes = ["--xattrs", "--xattrs-include=user.*", "--xattrs-include=security.capability"];
        tool(dir, "tar", &[&["--format=posix", "--sparse"][..], &attributes, &what].concat())?;
        tool(dir, "umoci", &["raw", "add-layer", "--image", "oci:kinds", &archive])?;
    }
    tool(dir, "umoci", &["config", "--image", "oci:kinds", "--config.env", "PATH=/bin"])
}

/// Programs, with all that makes them more than files.
fn programs(root: &Path) -> Result<()> {
    let busybox = fs::read(BUSYBOX).context("busybox-static: run scripts/setup")?;
    file(root, "bin/busybox", &busybox, 0o755, (0, 0))?;
    symlink("busybox", root.join("bin/sh"))?;
    file(root, "bin/tool", b"tool", 0o755, (0, 0))?;
    file(root, "bin/suid", b"suid", 0o4755, (0, 0))?;
    file(root, "bin/sgid", b"sgid", 0o2755, (0, 42))?;
    attribute(&file(root, "bin/capable", b"capable", 0o755, (0, 0))?, "security.capability", &MAY_BIND)?;
    fs::create_dir(root.join("srv"))?;
    Ok(fs::hard_link(root.join("bin/tool"), root.join("srv/tool"))?)
}

/// What the upper layer hides, replaces and merges.
fn to_be_changed(root: &Path) -> Result<()> {
    for name in [
        "srv/gone",
        "srv/gone-directory/deep/gone",
        "srv/opaque/gone",
        "srv/opaque/deep/gone",
        "srv/to-directory",
        "srv/to-link/deep/gone",
        "srv/replaced",
        "srv/second",
    ] {
        file(root, name, b"low", 0o600, (1, 2))?;
    }
    symlink("tool", root.join("srv/to-file"))?;
    file(root, "srv/merged/low", b"low", 0o640, (2_000_000_000, 70_000))?;
    owned(&root.join("srv/merged"), 0o750, (5, 6))
}

/// What stays as it is, of all types, with names, owners, attributes and times of all kinds.
fn to_be_kept(root: &Path) -> Result<()> {
    let srv = root.join("srv");
    file(root, "etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n", 0o644, (0, 0))?;
    fs::create_dir(root.join("tmp"))?;
    owned(&root.join("tmp"), 0o1777, (0, 0))?;
    put(&srv.join(OsStr::from_bytes(ODD)), b"odd", 0o644)?;
    let long = format!("srv/{}/{}/{}", "d".repeat(120), "e".repeat(150), "f".repeat(200));
    file(root, &long, b"long", 0o644, (0, 0))?;
    attribute(&file(root, "srv/noted", b"noted", 0o644, (0, 0))?, "user.note", b"a\nb\xff=c")?;
    fs::create_dir(srv.join("noted-directory"))?;
    attribute(&srv.join("noted-directory"), "user.note", b"plain")?;
    let sparse = File::create(srv.join("sparse"))?;
    sparse.set_len(SPARSE)?;
    sparse.write_all_at(b"middle", 5 << 20)?;
    special(&srv.join("pipe"), FileType::Fifo, 0, 0o620)?;
    special(&srv.join("null"), FileType::CharacterDevice, makedev(1, 3), 0o666)?;
    // Both of its numbers need more than eight bits.
    special(&srv.join("disk"), FileType::BlockDevice, makedev(259, 70_000), 0o660)?;
    symlink("/does/not/exist", srv.join("nowhere"))?;
    let far = srv.join("far");
    symlink(OsStr::from_bytes(&[&b"../".repeat(50)[..], b"\xff"].concat()), &far)?;
    lchown(&far, Some(3), Some(4))?;
    let time = Timespec { tv_sec: 1_000_000_000, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, &far, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    dated(&file(root, "srv/empty", b"", 0o644, (0, 0))?, 1)?;
    dated(&root.join("srv/merged"), 1_100_000_000)
}

/// The upper layer.
fn changes(root: &Path) -> Result<()> {
    for whiteout in ["srv/.wh.gone", "srv/.wh.gone-directory", "srv/opaque/.wh..wh..opq"] {
        file(root, whiteout, b"", 0o644, (0, 0))?;
    }
    file(root, "srv/opaque/new", b"new", 0o644, (0, 0))?;
    file(root, "srv/to-directory/inside", b"inside", 0o644, (0, 0))?;
    symlink("merged", root.join("srv/to-link"))?;
    file(root, "srv/to-file", b"file", 0o644, (0, 0))?;
    file(root, "srv/replaced", b"replaced", 0o4711, (7, 8))?;
    file(root, "bin/second", b"second", 0o644, (0, 0))?;
    fs::hard_link(root.join("bin/second"), root.join("srv/second"))?;
    file(root, "srv/merged/high", b"high", 0o644, (0, 0))?;
    owned(&root.join("srv/merged"), 0o2700, (7, 8))?;
    dated(&root.join("srv/merged"), 1_200_000_000)
}

/// Makes a file with the directories that it is in; returns its path.
fn file(root: &Path, name: &str, content: &[u8], mode: u32, owner: (u32, u32)) -> Result<PathBuf> {
    let path = root.join(name);
    fs::create_dir_all(path.parent().context("no directory")?)?;
    fs::write(&path, content)?;
    owned(&path, mode, owner)?;
    Ok(path)
}

/// Sets owner and mode, in this order: a new owner takes the set-id bits away.
fn owned(path: &Path, mode: u32, owner: (u32, u32)) -> Result<()> {
    chown(path, Some(owner.0), Some(owner.1))?;
    Ok(fs::set_permissions(path, Permissions::from_mode(mode))?)
}

/// Makes a pipe or a device.
fn special(path: &Path, kind: FileType, device: Dev, mode: u32) -> Result<()> {
    mknodat(CWD, path, kind, Mode::from_raw_mode(0o600), device)?;
    Ok(fs::set_permissions(path, Permissions::from_mode(mode))?)
}

fn attribute(path: &Path, name: &str, value: &[u8]) -> Result<()> {
    let set = setxattr(path, name, value, XattrFlags::empty());
    set.with_context(|| format!("{name}: the file system of temporary files must have extended attributes"))
}

/// Sets the time of a file or directory, in seconds since 1970.
fn dated(path: &Path, seconds: u64) -> Result<()> {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    Ok(File::open(path)?.set_modified(time)?)
}
