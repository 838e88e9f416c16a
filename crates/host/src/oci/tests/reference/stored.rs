// SPDX-License-Identifier: Apache-2.0
//! Entries of an ext4 file system in a file, which is read with debugfs and is not mounted: inodes and directories as they are
//! stored, so that no name is quoted and no number is rounded.

use super::*;

/// Inode of the top.
const TOP: u32 = 2;
/// Size of an inode in bytes.
const INODE: usize = 256;
/// Maximum length of a symbolic link that is within its inode.
const SHORT: u64 = 60;
/// Types in a mode.
const TYPE: u32 = 0o170_000;
const PIPE: u32 = 0o010_000;
const CHARACTERS: u32 = 0o020_000;
const DIRECTORY: u32 = 0o040_000;
const BLOCKS: u32 = 0o060_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// An inode as it is stored.
struct Inode {
    /// What debugfs knows it by.
    what: String,
    bytes: Vec<u8>,
}

/// Lists a file system.
pub(super) fn tree(image: &Path) -> anyhow::Result<Tree> {
    let (mut all, mut names) = (Tree::new(), HashMap::<u32, BTreeSet<String>>::new());
    let (mut inodes, mut open) = (BTreeMap::new(), vec![(String::new(), TOP)]);
    while let Some((path, number)) = open.pop() {
        let inode = Inode::read(image, format!("<{number}>"))?;
        let entry = inode.entry(image)?;
        if inode.mode() & TYPE == DIRECTORY {
            for (name, number) in inode.directory(image)? {
                let below = if path.is_empty() { name } else { format!("{path}/{name}") };
                open.push((below, number));
            }
        } else {
            names.entry(number).or_default().insert(path.clone());
            inodes.insert(path.clone(), number);
        }
        ensure!(all.insert(path.clone(), entry).is_none(), "{path} is there twice");
    }
    for (path, number) in inodes {
        let entry = all.get_mut(&path).context("an entry is lost")?;
        entry.names = names.get(&number).cloned().unwrap_or_default();
    }
    Ok(all)
}

/// Returns the number of blocks of 512 bytes that a file has.
pub(super) fn blocks(image: &Path, path: &str) -> anyhow::Result<u32> {
    Ok(Inode::read(image, path.to_owned())?.long(28))
}

impl Inode {
    /// Reads an inode: debugfs prints it as lines of an octal offset and eight words, of which equal ones are left out.
    fn read(image: &Path, what: String) -> anyhow::Result<Self> {
        let told = debugfs(image, &format!("inode_dump {what}"))?;
        let mut bytes: Vec<u8> = Vec::new();
        for line in told.lines() {
            let mut words = line.split_whitespace();
            let Some(offset) = words.next().filter(|word| *word != "*") else { continue };
            let offset = usize::from_str_radix(offset, 8).with_context(|| format!("{what}: {told}"))?;
            repeat(&mut bytes, offset)?;
            for word in words.take(8) {
                bytes.extend(u16::from_str_radix(word, 16)?.to_be_bytes());
            }
        }
        repeat(&mut bytes, INODE)?;
        ensure!(bytes.len() == INODE, "{what}: {told}");
        Ok(Self { what, bytes })
    }

    fn short(&self, at: usize) -> u32 {
        u32::from(u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]]))
    }

    fn long(&self, at: usize) -> u32 {
        self.short(at) | (self.short(at + 2) << 16)
    }

    fn mode(&self) -> u32 {
        self.short(0)
    }

    fn size(&self) -> u64 {
        u64::from(self.long(4)) | (u64::from(self.long(108)) << 32)
    }

    fn entry(&self, image: &Path) -> anyhow::Result<Entry> {
        let kind = self.mode() & TYPE;
        ensure!(
            [PIPE, CHARACTERS, DIRECTORY, BLOCKS, FILE, LINK].contains(&kind),
            "a mode {:o}",
            self.mode()
        );
        // With the bits that go beyond 2038.
        let mtime = i64::from(self.long(16).cast_signed()) + (i64::from(self.long(136) & 3) << 32);
        let content = match kind {
            LINK if self.size() < SHORT => escaped(&self.bytes[40..40 + self.size() as usize]),
            LINK => escaped(&self.content(image)?),
            FILE => Digest::of(&self.content(image)?).to_string(),
            _ => String::new(),
        };
        Ok(Entry {
            mode: self.mode(),
            owner: (self.short(2) | (self.short(120) << 16), self.short(24) | (self.short(122) << 16)),
            mtime,
            size: if kind == FILE { self.size() } else { 0 },
            content,
            device: if [CHARACTERS, BLOCKS].contains(&kind) { self.device() } else { (0, 0) },
            attributes: self.attributes(image)?,
            names: BTreeSet::new(),
        })
    }

    /// Numbers of a device: small ones are in the first block, others in the second one.
    fn device(&self) -> (u32, u32) {
        match (self.long(40), self.long(44)) {
            (0, large) => ((large >> 8) & 0xfff, (large & 0xff) | ((large >> 12) & 0xf_ff00)),
            (small, _) => ((small >> 8) & 0xff, small & 0xff),
        }
    }

    fn content(&self, image: &Path) -> anyhow::Result<Vec<u8>> {
        debugfs_bytes(image, &format!("cat {}", self.what))
    }

    /// Names and inodes of what is in a directory.
    fn directory(&self, image: &Path) -> anyhow::Result<Vec<(String, u32)>> {
        let (content, mut at, mut all) = (self.content(image)?, 0, Vec::new());
        while let Some(entry) = content.get(at..).filter(|entry| !entry.is_empty()) {
            let header = entry.first_chunk::<8>().context("an entry is cut")?;
            let inode = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
            let length = usize::from(u16::from_le_bytes([header[4], header[5]]));
            ensure!(length >= 8, "an entry of {length} bytes");
            let name = entry.get(8..8 + usize::from(header[6])).context("a name is cut")?;
            // Those without an inode are free, or have a checksum.
            if inode != 0 && !matches!(name, b"." | b"..") {
                all.push((escaped(name), inode));
            }
            at += length;
        }
        Ok(all)
    }

    fn attributes(&self, image: &Path) -> anyhow::Result<BTreeMap<String, String>> {
        let mut all = BTreeMap::new();
        for line in debugfs(image, &format!("ea_list {}", self.what))?.lines() {
            // `  user.note (6) = …`, where the value is quoted or not.
            let Some((name, _)) = line.strip_prefix("  ").and_then(|line| line.split_once(" (")) else {
                continue;
            };
            let told = debugfs(image, &format!("ea_get -x {} {name}", self.what))?;
            let (_, value) = told.split_once(" = ").with_context(|| format!("{name}: {told}"))?;
            let bytes = value.split_whitespace().map(|byte| u8::from_str_radix(byte, 16));
            all.insert(name.to_owned(), escaped(&bytes.collect::<Result<Vec<u8>, _>>()?));
        }
        Ok(all)
    }
}

/// Repeats the last line up to an offset.
fn repeat(bytes: &mut Vec<u8>, offset: usize) -> anyhow::Result<()> {
    while bytes.len() < offset {
        let last = bytes.len().checked_sub(16).context("no line to repeat")?;
        bytes.extend_from_within(last..);
    }
    Ok(())
}
