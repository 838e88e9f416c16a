// SPDX-License-Identifier: Apache-2.0
//! The files that a recipe copies: a directory as a compressed archive, without what its rules leave out. Symbolic links are
//! packed as they are, so that nothing outside the directory is sent.

use std::path::{Path, PathBuf};

use anyhow::Result;
use flate2::{Compression, write::GzEncoder};
use futures::Stream;
use tokio::task::JoinHandle;
use wrenn_archive::{ArchiveError, pack_chosen};

use super::ignore::Rules;
use crate::{
    pieces::{Piece, written},
    progress::Counter,
};

/// A directory whose files a recipe can copy.
#[derive(Debug)]
pub(super) struct Context {
    directory: PathBuf,
    rules: Rules,
}

impl Context {
    /// Reads the rules of a directory.
    pub(super) fn open(directory: &Path) -> Result<Self> {
        Ok(Self { directory: directory.to_owned(), rules: Rules::read(directory)? })
    }

    /// Packs it as tar.gz; returns the archive and the work, whose error is the cause if the archive breaks off.
    pub(super) fn pack(
        self,
        counter: Counter,
    ) -> (impl Stream<Item = Piece> + Send + 'static, JoinHandle<Result<(), ArchiveError>>) {
        written(counter, move |sink| {
            // Little is gained by more work: the network is the slower part only where it is very slow.
            let mut packed = GzEncoder::new(sink, Compression::fast());
            pack_chosen(&self.directory, &mut packed, &mut |path, is_directory| {
                self.rules.choose(path, is_directory)
            })?;
            packed.finish().map(drop).map_err(ArchiveError::Stream)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Cursor, os::unix::fs::symlink};

    use flate2::read::GzDecoder;
    use futures::StreamExt as _;
    use wrenn_archive::{Rules as Unpacking, unpack};

    use super::*;

    /// Packs and unpacks a directory; returns what is then there, by name.
    async fn packed(directory: &Path) -> Result<Vec<String>> {
        let (pieces, work) = Context::open(directory)?.pack(Counter::new(None));
        let pieces: Vec<Piece> = pieces.collect().await;
        work.await??;
        let archive = pieces.into_iter().collect::<Result<Vec<_>, _>>()?.concat();
        let to = tempfile::tempdir()?;
        unpack(GzDecoder::new(Cursor::new(archive)), to.path(), Unpacking::default())?;
        let mut names = Vec::new();
        let mut left = vec![to.path().to_owned()];
        while let Some(directory) = left.pop() {
            for entry in fs::read_dir(directory)? {
                let path = entry?.path();
                names.push(path.strip_prefix(to.path())?.display().to_string());
                if path.is_dir() && !path.is_symlink() {
                    left.push(path);
                }
            }
        }
        names.sort();
        Ok(names)
    }

    #[tokio::test]
    async fn what_the_rules_leave_is_packed_with_its_directories() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let at = |name: &str| dir.path().join(name);
        let deep = "d".repeat(90);
        for name in ["app/x", "app/deep/keep.md", "app/deep/y", "none/y", "empty"] {
            fs::create_dir_all(at(name))?;
        }
        fs::create_dir_all(at(&format!("{deep}/{deep}")))?;
        for name in ["main.py", "app/x/1.py", "app/x/1.pyc", "app/deep/keep.md/k", "app/deep/y/z", "none/y/z"]
        {
            fs::write(at(name), name)?;
        }
        fs::write(at(&format!("{deep}/{deep}/keep.md")), "long")?;
        symlink("/etc/passwd", at("link"))?;
        let all = packed(dir.path()).await?;
        assert_eq!(all.len(), 18, "{all:?}");

        fs::write(at(".dockerignore"), format!("app/deep\n**/*.pyc\n{deep}\nnone\n!**/keep.md\n"))?;
        let some = packed(dir.path()).await?;
        let expected = [
            ".dockerignore",
            "app",
            "app/deep",
            "app/deep/keep.md",
            "app/deep/keep.md/k",
            "app/x",
            "app/x/1.py",
            &deep,
            &format!("{deep}/{deep}"),
            &format!("{deep}/{deep}/keep.md"),
            "empty",
            "link",
            "main.py",
        ];
        assert_eq!(some, expected, "a directory without anything to keep is not there");
        Ok(())
    }

    #[tokio::test]
    async fn an_archive_that_cannot_be_completed_breaks_off_with_the_cause() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let context = Context::open(dir.path())?;
        dir.close()?;
        let (pieces, work) = context.pack(Counter::new(None));
        let pieces: Vec<Piece> = pieces.collect().await;
        let error = work.await?.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("cannot open"), "{error}");
        assert!(pieces.last().is_some_and(Result::is_err), "what was sent is not taken for the whole");
        Ok(())
    }
}
