// SPDX-License-Identifier: Apache-2.0
//! Converts a volume written by a guest into an image: checks, repairs and shrinks its ext4.
//!
//! All of it is untrusted input: the file system is never mounted on this host. The tools run confined; this
//! code itself reads only the superblock's size, and accepts it only within the file's length.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::Path,
    time::{Duration, Instant},
};

use crate::{
    DiskError,
    confined::{self, End},
    failed,
    partial_file::PartialFile,
};

/// Time limit for all tools together. A valid file system of 20 GiB takes seconds.
const LIMIT: Duration = Duration::from_secs(600);
const SUPERBLOCK: u64 = 1024;
const MAGIC: u16 = 0xef53;
/// `INCOMPAT_64BIT`: the block count has an upper half.
const WIDE: u32 = 0x80;
/// Maximum number of e2fsck runs, because a repair can uncover another fault.
const CHECKS: usize = 3;

/// Parses the file system's length in bytes from a superblock.
fn length(bytes: &[u8; 1024]) -> Result<u64, &'static str> {
    let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    if u16_at(56) != MAGIC {
        return Err("there is no ext4 superblock");
    }
    let upper = if u32_at(96) & WIDE == 0 { 0 } else { u32_at(336) };
    let blocks = u64::from(upper) << 32 | u64::from(u32_at(4));
    let shift = u32_at(24);
    if shift > 6 {
        return Err("its blocks have no valid size");
    }
    blocks.checked_mul(1024 << shift).filter(|&length| length > 0).ok_or("its length makes no sense")
}

/// Reads the length of the file system in `file`; fails if it is longer than the file.
fn measured(file: &File) -> Result<u64, String> {
    let mut bytes = [0; 1024];
    file.read_exact_at(&mut bytes, SUPERBLOCK).map_err(|_| "it is too short for a file system")?;
    let (length, room) = (length(&bytes)?, file.metadata().map_err(|e| e.to_string())?.len());
    if length > room {
        Err(format!("it says that it is {length} bytes long, and has {room}"))
    } else {
        Ok(length)
    }
}

struct Tools<'a> {
    path: &'a Path,
    deadline: Instant,
}

impl Tools<'_> {
    /// Runs a tool; returns its exit code and output, and fails if it was killed.
    fn run(&self, name: &str, arguments: &[&str]) -> Result<(i32, String), Failure> {
        let ended = confined::run(name, arguments, self.path, self.deadline).map_err(Failure::Host)?;
        match ended.end {
            End::Code(code) => Ok((code, ended.said)),
            End::Signal(signal) => {
                Err(Failure::Guest(format!("{name} was ended by signal {signal}: {}", ended.said)))
            }
            End::TooLong => Err(Failure::Guest(format!("{name} took too long: {}", ended.said))),
        }
    }

    /// Runs e2fsck until there is nothing to repair.
    fn check(&self, arguments: &[&str]) -> Result<(), Failure> {
        let mut said = String::new();
        for _ in 0..CHECKS {
            match self.run("e2fsck", arguments)? {
                (0, _) => return Ok(()),
                // 1 and 2: repaired; 4: partly repaired; others: e2fsck itself failed.
                (1..8, words) => said = words,
                (code, words) => return Err(Failure::Guest(format!("e2fsck ended with {code}: {words}"))),
            }
        }
        Err(Failure::Guest(format!("e2fsck does not get it clean: {said}")))
    }
}

/// Origin of a failure.
enum Failure {
    Host(io::Error),
    Guest(String),
}

fn shrink_file(file: &File, path: &Path) -> Result<(), Failure> {
    let tools = Tools { path, deadline: Instant::now() + LIMIT };
    measured(file).map_err(Failure::Guest)?;
    tools.check(&["-f", "-y"])?;
    let (code, said) = tools.run("resize2fs", &["-M"])?;
    if code != 0 {
        return Err(Failure::Guest(format!("resize2fs ended with {code}: {said}")));
    }
    let length = measured(file).map_err(Failure::Guest)?;
    file.set_len(length).map_err(Failure::Host)?;
    // Punch holes into unused blocks: deleted files may contain secrets and take space.
    tools.check(&["-f", "-y", "-E", "discard"])
}

/// Checks, repairs and shrinks the ext4 in an unfinished image; `what` names it in errors.
pub(crate) fn shrink(made: &PartialFile, what: &str) -> Result<(), DiskError> {
    shrink_file(&made.file, &made.path).map_err(|failure| match failure {
        Failure::Host(error) => failed(format!("shrink {what}"))(error),
        Failure::Guest(reason) => DiskError::BadFileSystem { what: what.to_owned(), reason },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn superblock(blocks: u32, shift: u32, wide: Option<u32>) -> [u8; 1024] {
        let mut bytes = [0; 1024];
        bytes[4..8].copy_from_slice(&blocks.to_le_bytes());
        bytes[24..28].copy_from_slice(&shift.to_le_bytes());
        bytes[56..58].copy_from_slice(&MAGIC.to_le_bytes());
        if let Some(upper) = wide {
            bytes[96..100].copy_from_slice(&WIDE.to_le_bytes());
            bytes[336..340].copy_from_slice(&upper.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn a_superblock_tells_its_length_or_is_refused() {
        assert_eq!(length(&superblock(100, 2, None)), Ok(409_600));
        assert_eq!(length(&superblock(1, 2, Some(1))), Ok(((1 << 32) + 1) * 4096));
        assert!(length(&superblock(u32::MAX, 6, Some(u32::MAX))).is_err());
        assert!(length(&superblock(0, 2, None)).is_err());
        assert!(length(&superblock(1, 7, None)).is_err());
        assert!(length(&superblock(1, u32::MAX, None)).is_err());
        assert!(length(&[0; 1024]).is_err());
    }
}
