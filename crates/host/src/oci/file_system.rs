// SPDX-License-Identifier: Apache-2.0
//! Writes the file system of an image, as `images/build-template` writes that of a template.

use std::{
    io::{self, Read},
    path::Path,
    process::{Command, Stdio},
};

use super::{
    confine::{IMAGE, TREE},
    job::{Failure, Kind},
    tree::{BLOCK, Content},
};

/// Places of the program.
const PROGRAMS: [&str; 4] = ["/usr/sbin/mke2fs", "/sbin/mke2fs", "/usr/bin/mke2fs", "/bin/mke2fs"];
const MIB: u64 = 1 << 20;
/// Room in MiB for the file system's own tables, and a little to work in; disks grow when they are cloned.
const ROOM: u64 = 64 * MIB;
/// Bytes of the file system for each inode, unless the image needs more of them, and further inodes.
const BYTES_PER_INODE: u64 = 8192;
const MORE_INODES: u64 = 1024;
/// Size of an inode in bytes.
const INODE: u64 = 256;
/// Time of everything that has none of its own, as in templates.
const TIME: &str = "1700000000";
/// Number of bytes kept from the end of a program's output.
const SAID_MAX: usize = 2048;
/// What programs say when the host's disk is full. They run without a language.
const FULL: &str = "No space left on device";

/// Size of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    /// Length in bytes, whole MiB.
    pub(super) bytes: u64,
    /// Number of inodes.
    pub(super) inodes: u64,
}

impl Size {
    /// Returns the size of a file system for this content.
    pub(super) fn of(content: Content) -> Self {
        let bytes = (content.bytes / 4 * 5 + ROOM).next_multiple_of(MIB);
        // There is room for their tables, because content counts at least a block for each.
        let inodes = (content.inodes / 4 * 5 + MORE_INODES).max(bytes / BYTES_PER_INODE);
        Self { bytes, inodes }
    }
}

/// Makes the file system of this size with the content of the tree.
pub(super) fn make(size: Size, uuid: &str) -> Result<(), Failure> {
    let program = PROGRAMS.into_iter().find(|program| Path::new(program).exists());
    let program = program
        .ok_or_else(|| Failure::new(Kind::Host, "mke2fs is not installed on the host: install e2fsprogs"))?;
    let (said, succeeded) = run(Command::new(program).args(arguments(size, uuid)))
        .map_err(|error| Failure::new(Kind::Host, format!("cannot run mke2fs: {error}")))?;
    if succeeded {
        return Ok(());
    }
    if said.contains(FULL) {
        return Err(Failure::new(Kind::Full, said));
    }
    let message =
        format!("no ext4 file system can be made of the image: {said}; build it without such files");
    Err(Failure::new(Kind::Damaged, message))
}

fn arguments(size: Size, uuid: &str) -> Vec<String> {
    let extended = format!("hash_seed={uuid},lazy_itable_init=0,root_owner=0:0");
    let (block, inode, inodes) = (BLOCK.to_string(), INODE.to_string(), size.inodes.to_string());
    let all = [
        "-q", "-F", "-t", "ext4", "-b", &block, "-I", &inode, "-N", &inodes, "-m", "0", "-L", "root", "-U",
        uuid, "-E", &extended, "-d", TREE, IMAGE,
    ];
    Vec::from(all.map(str::to_owned))
}

/// Runs a program; returns the last part of what it says, and whether it succeeded.
fn run(command: &mut Command) -> io::Result<(String, bool)> {
    command.env_clear().env("E2FSPROGS_FAKE_TIME", TIME).env("SOURCE_DATE_EPOCH", TIME);
    // What this process has: there is no /dev/null here.
    command.stdin(Stdio::inherit()).stdout(Stdio::inherit()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let said = child.stderr.take().map(last_words).unwrap_or_default();
    Ok((said, child.wait()?.success()))
}

/// Reads to the end and returns the last part as one line of printable characters.
pub(super) fn last_words(mut from: impl Read) -> String {
    let (mut kept, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        kept.extend_from_slice(&buffer[..read]);
        kept.drain(..kept.len().saturating_sub(SAID_MAX));
    }
    let text = String::from_utf8_lossy(&kept);
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_content_tables_and_inodes() {
        let size = |inodes: u64, bytes: u64| Size::of(Content { inodes, bytes });
        assert_eq!(size(1, BLOCK), Size { bytes: 65 * MIB, inodes: 65 * MIB / BYTES_PER_INODE });
        let usual = size(10_000, 800 * MIB);
        assert_eq!(usual.bytes, 1064 * MIB);
        assert_eq!(usual.inodes, usual.bytes / BYTES_PER_INODE);
        // Many empty files: a group of 32768 blocks has at most as many inodes.
        let small = size(1_000_000, 1_000_000 * BLOCK);
        assert_eq!(small.inodes, 1_250_000 + MORE_INODES);
        assert!(small.inodes <= small.bytes / BLOCK);
        assert!(small.inodes * INODE < small.bytes - 1_000_000 * BLOCK, "their tables fit");
    }

    #[test]
    fn what_a_program_says_is_kept_from_its_end_on_one_line() {
        assert_eq!(last_words(&b"a\n\x1b[31m b\n"[..]), "a ?[31m b");
        let long = [&b"begin "[..], &b"x".repeat(10_000), b" end"].concat();
        let said = last_words(&long[..]);
        assert!(said.len() == SAID_MAX && said.ends_with("x end"), "{} bytes", said.len());
    }

    #[test]
    fn programs_run_with_little_and_tell_how_it_went() -> anyhow::Result<()> {
        let script = "echo what went wrong >&2; echo $E2FSPROGS_FAKE_TIME-$USER >&2; exit 3";
        let (said, succeeded) = run(Command::new("/bin/sh").args(["-c", script]))?;
        assert_eq!((said.as_str(), succeeded), ("what went wrong 1700000000-", false));
        assert!(run(Command::new("/bin/sh").args(["-c", "exit 0"]))?.1);
        assert!(run(&mut Command::new("/does/not/exist")).is_err());
        Ok(())
    }
}
