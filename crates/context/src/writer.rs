// SPDX-License-Identifier: Apache-2.0
//! Writes tar archives entry by entry, in the format of GNU tar.

use std::io::{self, Seek, SeekFrom, Write};

use wrenn_archive::{Header, Kind};

/// Size of a block in bytes.
pub(crate) const BLOCK: usize = 512;
/// Length from which on a name has an entry of its own.
const LONG: usize = 100;

/// Makes a header: owned by root, without content and without a link.
pub(crate) fn header(kind: Kind, path: &str, mode: u32, time: i64) -> Header {
    let end = if kind == Kind::Directory { "/" } else { "" };
    let name = format!("{path}{end}").into_bytes();
    Header { name, link: Vec::new(), kind, mode, uid: 0, gid: 0, size: 0, mtime: time }
}

/// An archive that is being written.
pub(crate) struct Writer<W> {
    output: W,
    position: u64,
}

impl<W: Write> Writer<W> {
    pub(crate) const fn new(output: W) -> Self {
        Self { output, position: 0 }
    }

    /// Returns the number of bytes so far.
    pub(crate) const fn position(&self) -> u64 {
        self.position
    }

    /// Writes the header of an entry. Content of its size, and [`pad`](Self::pad), follow.
    pub(crate) fn header(&mut self, header: &Header) -> io::Result<()> {
        self.long(Kind::LongLink, &header.link)?;
        self.long(Kind::LongName, &header.name)?;
        self.write(&header.block())
    }

    /// Writes content.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.output.write_all(bytes)?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    /// Fills the last block of content.
    pub(crate) fn pad(&mut self, size: u64) -> io::Result<()> {
        let over = (size % BLOCK as u64) as usize;
        if over == 0 { Ok(()) } else { self.write(&[0; BLOCK][over..]) }
    }

    /// Ends the archive, and returns its size.
    pub(crate) fn finish(&mut self) -> io::Result<u64> {
        self.write(&[0; 2 * BLOCK])?;
        self.output.flush()?;
        Ok(self.position)
    }

    pub(crate) fn into_output(self) -> W {
        self.output
    }

    /// Writes a name that does not fit into a header as an entry before it.
    fn long(&mut self, kind: Kind, text: &[u8]) -> io::Result<()> {
        if text.len() < LONG {
            return Ok(());
        }
        let size = text.len() as u64 + 1;
        let header = Header { size, ..header(kind, "././@LongLink", 0o644, 0) };
        self.write(&header.block())?;
        self.write(text)?;
        self.write(&[0])?;
        self.pad(size)
    }
}

impl<W: Write + Seek> Writer<W> {
    /// Leaves a hole of this size, which is read as zeros. Something must be written after it.
    pub(crate) fn skip(&mut self, bytes: u64) -> io::Result<()> {
        if bytes > 0 {
            let distance = i64::try_from(bytes).map_err(io::Error::other)?;
            self.output.seek(SeekFrom::Current(distance))?;
            self.position += bytes;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Read as _};

    use super::*;

    #[test]
    fn another_program_reads_what_is_written() {
        let mut writer = Writer::new(Cursor::new(Vec::new()));
        let (long, target) = ("n/".repeat(70) + "f", "../".repeat(60) + "t");
        writer.header(&header(Kind::Directory, "d", 0o700, 5)).unwrap();
        writer.header(&Header { size: 1003, ..header(Kind::File, &long, 0o640, -1) }).unwrap();
        writer.write(b"abc").unwrap();
        writer.skip(1000).unwrap();
        writer.pad(1003).unwrap();
        let link = Header { link: target.clone().into_bytes(), ..header(Kind::Symlink, "l", 0o777, 5) };
        writer.header(&link).unwrap();
        let size = writer.finish().unwrap();
        let bytes = writer.into_output().into_inner();
        assert_eq!(bytes.len() as u64, size);
        let mut archive = tar::Archive::new(Cursor::new(bytes));
        let mut entries = archive.entries().unwrap();
        let directory = entries.next().unwrap().unwrap();
        assert_eq!((&*directory.path_bytes(), directory.header().mode().unwrap()), (&b"d/"[..], 0o700));
        let mut file = entries.next().unwrap().unwrap();
        let mut content = Vec::new();
        file.read_to_end(&mut content).unwrap();
        assert_eq!((&*file.path_bytes(), &content[..3], content.len()), (long.as_bytes(), &b"abc"[..], 1003));
        assert!(content[3..].iter().all(|byte| *byte == 0));
        let link = entries.next().unwrap().unwrap();
        assert_eq!(link.link_name_bytes().as_deref(), Some(target.as_bytes()));
        assert!(entries.next().is_none());
    }
}
