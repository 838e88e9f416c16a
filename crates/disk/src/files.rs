// SPDX-License-Identifier: Apache-2.0
//! Store whose volumes are files: reflinks or copies of their image.
//!
//! Volumes are `volumes/ID.img`. They get their name only when they are complete, and are independent of
//! their image.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{MetadataExt, chown, fchown},
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;

use crate::{
    BlockDevice, DiskError, Health, Image, Pressure, Reclaimed, StoreConfig, Volumes, blocking, checked,
    ext4, failed,
    free_space::FreeSpace,
    images::{Images, names, remove_file},
    partial_file::PartialFile,
};

/// Store of images and volumes in one directory.
#[derive(Debug, Clone)]
pub struct FileStore {
    dir: Arc<Path>,
    images: Images,
    reflink: bool,
    free_space: FreeSpace,
}

impl FileStore {
    pub(crate) fn new(config: &StoreConfig, reflink: bool) -> Self {
        let free_space = config.free_space(false);
        let images = Images::new(free_space.clone(), reflink);
        Self { dir: config.dir.as_path().into(), images, reflink, free_space }
    }

    fn volume(&self, id: &str) -> Result<PathBuf, DiskError> {
        Ok(self.dir.join("volumes").join(format!("{}.img", checked(id)?)))
    }

    fn present(&self, id: &str) -> Result<(PathBuf, fs::Metadata), DiskError> {
        let path = self.volume(id)?;
        match fs::metadata(&path) {
            Ok(meta) => Ok((path, meta)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(DiskError::UnknownVolume(id.to_owned()))
            }
            Err(error) => Err(failed("look at the volume")(error)),
        }
    }

    fn clone_now(&self, image: &str, id: &str, size_mb: u64, owner: u32) -> Result<BlockDevice, DiskError> {
        let fail = || failed("clone the image");
        let target = self.volume(id)?;
        let source = self.images.open(image)?;
        let size = size_mb << 20;
        if size < source.size {
            return Err(DiskError::TooSmall { asked_mb: size_mb, image_mb: source.size.div_ceil(1 << 20) });
        }
        self.free_space.check()?;
        let partial = PartialFile::new(&target, 0o600).map_err(fail())?;
        self.images.fill(&source.file, &partial.file).map_err(fail())?;
        partial.file.set_len(size).map_err(fail())?;
        fchown(&partial.file, Some(owner), Some(owner)).map_err(fail())?;
        // Not synced: after a power loss the volume's microVM is gone anyway.
        partial.rename().map_err(fail())?;
        Ok(BlockDevice { path: target, size, numbers: None })
    }

    fn attach_now(&self, id: &str, owner: u32) -> Result<BlockDevice, DiskError> {
        let (path, meta) = self.present(id)?;
        chown(&path, Some(owner), Some(owner)).map_err(failed("hand over the volume"))?;
        Ok(BlockDevice { path, size: meta.len(), numbers: None })
    }

    fn sync_now(&self, id: &str) -> Result<(), DiskError> {
        let fail = || failed(format!("keep volume {id:?}"));
        let path = self.present(id)?.0;
        File::open(path).and_then(|file| file.sync_all()).map_err(fail())?;
        File::open(self.dir.join("volumes")).and_then(|dir| dir.sync_all()).map_err(fail())
    }

    /// Syncs the volume. File volumes have no kernel resources to release.
    fn detach_now(&self, id: &str) -> Result<(), DiskError> {
        match self.sync_now(id) {
            Err(DiskError::UnknownVolume(_)) => Ok(()),
            synced => synced,
        }
    }

    fn flatten_now(&self, id: &str, name: &str) -> Result<Image, DiskError> {
        let (path, _) = self.present(id)?;
        self.free_space.check()?;
        let made = self.images.begin(name, id)?;
        let source = File::open(path).map_err(failed("read the volume"))?;
        self.images.fill(&source, &made.file).map_err(failed("copy the volume"))?;
        ext4::shrink(&made, &format!("volume {id:?}"))?;
        self.images.adopt(name, made, "flattened")
    }

    fn copy_now(&self, from: &str, to: &str) -> Result<(), DiskError> {
        let fail = || failed(format!("copy volume {from:?}"));
        let (path, _) = self.present(from)?;
        self.free_space.check()?;
        let source = File::open(path).map_err(fail())?;
        let partial = PartialFile::new(&self.volume(to)?, 0o600).map_err(fail())?;
        self.images.fill(&source, &partial.file).map_err(fail())?;
        partial.rename().map_err(fail())
    }

    fn reclaim_now(&self, keep: &[String]) -> Result<Reclaimed, DiskError> {
        let volumes = self.dir.join("volumes");
        let mut found = Reclaimed { images: self.images.sweep(|_, _| false)?, ..Reclaimed::default() };
        for partial in names(&volumes, PartialFile::SUFFIX)? {
            remove_file(&volumes.join(format!("{partial}{}", PartialFile::SUFFIX)))?;
            found.images += 1;
        }
        for id in names(&volumes, ".img")? {
            if !keep.contains(&id) {
                remove_file(&volumes.join(format!("{id}.img")))?;
                found.volumes.push(id);
            }
        }
        Ok(found)
    }
}

#[async_trait]
impl Volumes for FileStore {
    fn backend(&self) -> &'static str {
        if self.reflink { "reflink" } else { "copy" }
    }

    fn shares_images(&self) -> bool {
        false
    }

    async fn prepare(&self, name: &str, source: &Path) -> Result<(), DiskError> {
        let (images, name, source) = (self.images.clone(), name.to_owned(), source.to_owned());
        blocking(move || images.prepare(&name, &source)).await
    }

    async fn images(&self) -> Result<Vec<String>, DiskError> {
        let images = self.images.clone();
        blocking(move || images.list()).await
    }

    async fn image(&self, name: &str) -> Result<Image, DiskError> {
        let (images, name) = (self.images.clone(), name.to_owned());
        blocking(move || images.image(&name)).await
    }

    async fn open_image(&self, name: &str) -> Result<File, DiskError> {
        let (images, name) = (self.images.clone(), name.to_owned());
        blocking(move || Ok(images.open(&name)?.file)).await
    }

    async fn take_image(&self, name: &str, file: &Path) -> Result<Image, DiskError> {
        let (images, name, file) = (self.images.clone(), name.to_owned(), file.to_owned());
        blocking(move || images.take(&name, &file)).await
    }

    async fn remove_image(&self, name: &str) -> Result<(), DiskError> {
        let (images, name) = (self.images.clone(), name.to_owned());
        blocking(move || images.remove(&name)).await
    }

    async fn clone_image(
        &self,
        image: &str,
        id: &str,
        size_mb: u64,
        owner: u32,
    ) -> Result<BlockDevice, DiskError> {
        let (store, image, id) = (self.clone(), image.to_owned(), id.to_owned());
        blocking(move || store.clone_now(&image, &id, size_mb, owner)).await
    }

    async fn attach(&self, id: &str, owner: u32) -> Result<BlockDevice, DiskError> {
        let (store, id) = (self.clone(), id.to_owned());
        blocking(move || store.attach_now(&id, owner)).await
    }

    async fn sync(&self, id: &str) -> Result<(), DiskError> {
        let (store, id) = (self.clone(), id.to_owned());
        blocking(move || store.sync_now(&id)).await
    }

    async fn detach(&self, id: &str) -> Result<(), DiskError> {
        let (store, id) = (self.clone(), id.to_owned());
        blocking(move || store.detach_now(&id)).await
    }

    async fn flatten(&self, id: &str, name: &str) -> Result<Image, DiskError> {
        let (store, id, name) = (self.clone(), id.to_owned(), name.to_owned());
        blocking(move || store.flatten_now(&id, &name)).await
    }

    async fn copy(&self, from: &str, to: &str) -> Result<(), DiskError> {
        let (store, from, to) = (self.clone(), from.to_owned(), to.to_owned());
        blocking(move || store.copy_now(&from, &to)).await
    }

    async fn usage(&self, id: &str) -> Result<u64, DiskError> {
        let (store, id) = (self.clone(), id.to_owned());
        blocking(move || Ok(store.present(&id)?.1.blocks() * 512)).await
    }

    async fn health(&self, id: &str) -> Result<Health, DiskError> {
        let (store, id) = (self.clone(), id.to_owned());
        blocking(move || {
            match store.present(&id) {
                // Without its file nothing shows that the volume ever existed.
                Err(DiskError::UnknownVolume(_)) => return Ok(Health::CowMissing),
                other => other?,
            };
            store.free_space.health()
        })
        .await
    }

    async fn pressure(&self) -> Result<Pressure, DiskError> {
        let store = self.clone();
        blocking(move || store.free_space.pressure()).await
    }

    async fn list(&self) -> Result<Vec<String>, DiskError> {
        let dir = self.dir.join("volumes");
        blocking(move || names(&dir, ".img")).await
    }

    async fn remove(&self, id: &str) -> Result<(), DiskError> {
        let path = self.volume(id)?;
        blocking(move || remove_file(&path)).await
    }

    async fn reclaim(&self, keep: &[String]) -> Result<Reclaimed, DiskError> {
        let (store, keep) = (self.clone(), keep.to_vec());
        blocking(move || store.reclaim_now(&keep)).await
    }
}
