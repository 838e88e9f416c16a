// SPDX-License-Identifier: Apache-2.0
//! Images that are uploaded: an archive is received into a file without a name, decompressed into another one if it must be, and
//! imported as what a registry has. The files are gone when they are closed, whatever the end.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    pin::pin,
    process,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures::{Stream, TryStreamExt as _};
use tokio::{fs::File as AsyncFile, io::AsyncWriteExt as _, time::timeout};
use wrenn_api::ErrorCode;
use wrenn_oci::{Image as Resolved, ImageSource as _, LocalImage, Platform, SourceError};

use super::{
    ImportedImage, Imports, Wanted, blocking, checked,
    error::{IMPORTING, large_archive, of_source, slow_archive, too_large, unfit},
    image_id, imported,
    process::free,
    pull,
};
use crate::error::{AgentError, full, of_files};

/// Bytes that an archive has besides layers.
const MORE: u64 = 16 << 20;
/// Bytes that are decompressed at once.
const PIECE: usize = 256 << 10;
/// Maximum length of a name and of a tag that an archive gives.
const NAME_MAX: usize = 128;
/// Number of files that this process has made.
static MADE: AtomicU64 = AtomicU64::new(0);

/// An archive that is to come.
#[derive(Debug, Clone)]
pub(crate) struct Archive {
    /// Team that sends it.
    pub(crate) team: String,
    /// Its number of bytes.
    pub(crate) size: u64,
    /// Which image of it, if it has several; without a name it must give one.
    pub(crate) name: Option<String>,
}

/// An image of an archive that is on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Loaded {
    pub(crate) image: ImportedImage,
    /// Name with a tag that the archive gives to it, without registry and directories.
    pub(crate) told_name: Option<String>,
}

impl Imports {
    /// Imports an image of an archive, which comes in pieces, unless the image is here. An import goes on without its caller.
    pub(crate) async fn load<E: From<AgentError>>(
        self: &Arc<Self>,
        archive: Archive,
        pieces: impl Stream<Item = Result<Bytes, E>> + Send,
    ) -> Result<Loaded, E> {
        let _call = self.call(&archive.team)?;
        let limit = self.settings.pull_limit;
        let received = tokio::select! {
            received = timeout(limit, self.receive(archive.size, pieces)) => received.map_err(|_| slow_archive(limit))??,
            // Imports and guests write meanwhile.
            error = self.until_low() => return Err(error.into()),
        };
        Ok(self.load_received(received, archive.team, archive.name).await?)
    }

    async fn load_received(
        self: &Arc<Self>,
        archive: File,
        team: String,
        name: Option<String>,
    ) -> Result<Loaded, AgentError> {
        let archive = self.decompressed(archive).await?;
        let limit = self.settings.pull_limit;
        let reading = timeout(limit, self.read(archive, name.as_deref()));
        let (source, resolved) = reading.await.map_err(|_| slow_archive(limit))??;
        let told_name = source.told_name().and_then(without_place);
        if name.is_none() && told_name.is_none() {
            let message = "the archive gives its image no name and tag: give the image a name";
            return Err(AgentError::new(ErrorCode::InvalidRequest, message));
        }
        let shown = source.name().to_owned();
        let workdir = checked(&shown, &resolved.config)?;
        let id = image_id(&resolved.digest);
        let kept = match self.kept(&id).await? {
            Some(kept) => kept,
            None => {
                let wanted = Wanted { team, source: String::new(), id };
                self.begin(wanted, shown, resolved.clone(), Arc::new(source)).await?
            }
        };
        Ok(Loaded { image: imported(&kept, resolved, workdir), told_name })
    }

    /// Receives an archive of this size into a file.
    async fn receive<E: From<AgentError>>(
        &self,
        size: u64,
        pieces: impl Stream<Item = Result<Bytes, E>> + Send,
    ) -> Result<File, E> {
        let files = |error: io::Error| of_files(IMPORTING, &error);
        if size > self.most_of_archive() {
            return Err(large_archive(self.settings.image_max_mb).into());
        }
        let (dir, reserve) = (self.dir.clone(), self.reserve().await?);
        let begun = blocking(move || {
            let fits = free(&dir)?.saturating_sub(reserve) >= size;
            fits.then(|| unnamed(&dir)).transpose()
        });
        let file = begun.await.map_err(files)?.ok_or_else(full)?;
        let (mut file, mut left) = (AsyncFile::from_std(file), size);
        let mut pieces = pin!(pieces);
        while let Some(piece) = pieces.try_next().await? {
            left = left.checked_sub(piece.len() as u64).ok_or_else(wrong_size)?;
            file.write_all(&piece).await.map_err(files)?;
        }
        if left > 0 {
            return Err(wrong_size().into());
        }
        file.flush().await.map_err(files)?;
        Ok(file.into_std().await)
    }

    /// Maximum size of an archive, compressed or not.
    fn most_of_archive(&self) -> u64 {
        self.most_stored() + MORE
    }

    /// Returns the archive as it is without its compression.
    async fn decompressed(&self, archive: File) -> Result<File, AgentError> {
        let (dir, most, reserve) = (self.dir.clone(), self.most_of_archive(), self.reserve().await?);
        let decompressing = blocking(move || Ok(decompressed(archive, &dir, most, reserve)));
        let done = decompressing.await.map_err(|error| of_files(IMPORTING, &error))?;
        done.map_err(|trouble| match trouble {
            Trouble::TooLarge => large_archive(self.settings.image_max_mb),
            Trouble::Full => full(),
            Trouble::Files(error) => of_files(IMPORTING, &error),
            // What is read is a file of this host; all other errors are those of the content.
            Trouble::Archive(error) if error.raw_os_error().is_some() => of_files(IMPORTING, &error),
            Trouble::Archive(error) => {
                unfit("the archive", format!("it cannot be decompressed ({error}); save the image again"))
            }
        })
    }

    /// Finds the image for this machine in an archive, and reads all of it. An image that is here already is not given to somebody
    /// who knows its digests, but does not have its layers.
    async fn read(&self, archive: File, name: Option<&str>) -> Result<(LocalImage, Resolved), AgentError> {
        let again = archive.try_clone().map_err(|error| of_files(IMPORTING, &error))?;
        let source = match (LocalImage::archive(archive, None).await, name) {
            (Err(SourceError::Ambiguous { .. }), Some(name)) => LocalImage::archive(again, Some(name)).await,
            (opened, _) => opened,
        };
        let source = source.map_err(|error| of_source(&error))?;
        let resolved =
            source.resolve(&Platform::of_this_machine()).await.map_err(|error| of_source(&error))?;
        if pull::bytes(&resolved.manifest) > self.most_stored() {
            return Err(too_large(source.name(), self.settings.image_max_mb));
        }
        pull::check(&source, &resolved.manifest).await?;
        Ok((source, resolved))
    }
}

/// Why an archive was not decompressed.
#[derive(Debug)]
enum Trouble {
    /// It cannot be read.
    Archive(io::Error),
    /// It becomes larger than it may.
    TooLarge,
    /// Less is free than must stay so.
    Full,
    /// A file of the host fails.
    Files(io::Error),
}

/// Decompresses an archive of which at most `most` bytes come into another file in the directory; one that is not compressed stays
/// as it is. Blocks.
fn decompressed(archive: File, dir: &Path, most: u64, reserve: u64) -> Result<File, Trouble> {
    let same = archive.try_clone().map_err(Trouble::Files)?;
    let Some(mut input) = wrenn_oci::decompress(archive).map_err(Trouble::Archive)? else { return Ok(same) };
    let mut output = unnamed(dir).map_err(Trouble::Files)?;
    let (mut buffer, mut size) = (vec![0; PIECE], 0);
    loop {
        let read = match input.read(&mut buffer) {
            Ok(0) => return Ok(output),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Trouble::Archive(error)),
        };
        size += read as u64;
        if size > most {
            return Err(Trouble::TooLarge);
        }
        if free(dir).map_err(Trouble::Files)? < reserve {
            return Err(Trouble::Full);
        }
        output.write_all(&buffer[..read]).map_err(Trouble::Files)?;
    }
}

/// Makes a file in the directory that has no name any more. Blocks. If this ends in between, the next start removes the file.
fn unnamed(dir: &Path) -> io::Result<File> {
    let path = dir.join(format!("archive-{}-{}", process::id(), MADE.fetch_add(1, Ordering::Relaxed)));
    let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

/// Returns the name with the tag of what an archive calls its image, without registry and directories. `None` if it is no such
/// name: some have a tag only.
fn without_place(told: &str) -> Option<String> {
    let last = told.rsplit('/').next()?;
    let (name, tag) = last.split_once(':')?;
    let is_plain = |part: &str| {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        (1..=NAME_MAX).contains(&part.len()) && part.bytes().all(known)
    };
    (is_plain(name) && is_plain(tag)).then(|| last.to_owned())
}

fn wrong_size() -> AgentError {
    AgentError::new(ErrorCode::InvalidRequest, "the archive has another size than was told: send it again")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_taken_without_its_place() {
        let long = format!("{}:1", "x".repeat(NAME_MAX + 1));
        for (told, name) in [
            ("app:1", Some("app:1")),
            ("docker.io/library/app:v1.2", Some("app:v1.2")),
            ("localhost:5000/team/app:latest", Some("app:latest")),
            ("latest", None),
            ("localhost:5000/app", None),
            ("app@sha256:00", None),
            ("a b:1", None),
            ("app:", None),
            (":1", None),
            ("app:1\n", None),
            ("../..", None),
            ("", None),
            (&long, None),
        ] {
            assert_eq!(without_place(told).as_deref(), name, "{told}");
        }
    }

    #[test]
    fn a_file_has_no_name_and_is_bounded() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let mut file = unnamed(dir.path())?;
        file.write_all(b"plain")?;
        assert_eq!(fs::read_dir(dir.path())?.count(), 0);
        let same = decompressed(file, dir.path(), 0, 0).map_err(|trouble| anyhow::anyhow!("{trouble:?}"))?;
        assert_eq!(same.metadata()?.len(), 5);
        assert_eq!(fs::read_dir(dir.path())?.count(), 0);
        Ok(())
    }
}
