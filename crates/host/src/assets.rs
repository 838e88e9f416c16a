// SPDX-License-Identifier: Apache-2.0
//! Kernel, initial RAM disk and templates. Kernel and RAM disk are copied into the state directory, where the
//! unprivileged VMMs can read them.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::Context;
use serde::Deserialize;
use wrenn_disk::{DiskError, Volumes};
use wrenn_os::atomic_file;
use wrenn_vmm::KernelImage;

/// File name of the guest kernel in the format that the driver needs.
pub(crate) fn kernel_file(image: KernelImage) -> &'static str {
    match image {
        KernelImage::Compressed => "vmlinuz",
        KernelImage::Elf => "vmlinux",
    }
}

const INITRD: &str = "initrd.img";

/// Content of a template's `manifest.json`.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Template {
    pub(crate) name: String,
    pub(crate) default_user: String,
    pub(crate) size_mb: u64,
    /// SHA-256 of its content in the store, whatever the manifest says.
    #[serde(skip)]
    pub(crate) sha256: String,
}

/// Files and templates for guests.
#[derive(Debug)]
pub(crate) struct Assets {
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: PathBuf,
    pub(crate) templates: BTreeMap<String, Template>,
}

/// Imports the templates of `share` into the volume store.
pub(crate) async fn take_templates(
    share: &Path,
    volumes: &dyn Volumes,
) -> anyhow::Result<BTreeMap<String, Template>> {
    let mut templates = BTreeMap::new();
    for (mut template, image) in manifests(&share.join("images"))? {
        match volumes.prepare(&template.name, &image).await {
            // Continue, because existing sandboxes keep running and can be deleted to free space.
            Err(DiskError::Full) => {
                tracing::error!(template = template.name, "not enough disk space to import a template");
                continue;
            }
            taken => taken.with_context(|| format!("cannot import template {:?}", template.name))?,
        }
        let taken = volumes.image(&template.name).await;
        template.sha256 = taken
            .with_context(|| format!("the content of template {:?} cannot be read", template.name))?
            .hash;
        templates.insert(template.name.clone(), template);
    }
    Ok(templates)
}

/// Path of the guest kernel: the configured one, or the one of `share` in this format.
pub(crate) fn kernel(configured: Option<&Path>, share: &Path, image: KernelImage) -> PathBuf {
    configured.map_or_else(|| share.join(kernel_file(image)), Path::to_owned)
}

/// Copies the initial RAM disk of `share` and the guest kernel into the state directory.
pub(crate) fn take_boot_files(
    share: &Path,
    kernel: &Path,
    state: &Path,
    image: KernelImage,
) -> anyhow::Result<(PathBuf, PathBuf)> {
    let boot = state.join("boot");
    fs::create_dir_all(&boot)?;
    Ok((copy(kernel, &boot, kernel_file(image))?, copy(&share.join(INITRD), &boot, INITRD)?))
}

fn copy(source: &Path, boot: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let target = boot.join(name);
    let content = fs::read(source).with_context(|| {
        format!("{} cannot be read: run `make assets`, or set share_dir or agent.kernel", source.display())
    })?;
    if fs::read(&target).is_ok_and(|present| present == content) {
        return Ok(target);
    }
    atomic_file::write(&target, &content, 0o644, None)?;
    Ok(target)
}

fn manifests(images: &Path) -> anyhow::Result<Vec<(Template, PathBuf)>> {
    let entries = fs::read_dir(images)
        .with_context(|| format!("{} is missing: run `make assets`, or set share_dir", images.display()))?;
    let mut found = Vec::new();
    for entry in entries {
        let dir = entry?.path();
        let manifest = dir.join("manifest.json");
        let text = match fs::read(&manifest) {
            // Something else is in the directory.
            Err(error) if [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory].contains(&error.kind()) => {
                continue;
            }
            read => read.with_context(|| format!("{} cannot be read", manifest.display()))?,
        };
        let template: Template = serde_json::from_slice(&text)
            .with_context(|| format!("{} is not a manifest: run `make assets`", manifest.display()))?;
        found.push((template, dir.join("rootfs.ext4")));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configured_kernel_is_taken_instead_of_the_usual_one() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let [share, state, own] = ["share", "state", "kernel"].map(|name| dir.path().join(name));
        fs::create_dir(&share)?;
        for (path, text) in
            [(share.join("vmlinux"), "usual"), (share.join(INITRD), "disk"), (own.clone(), "own")]
        {
            fs::write(path, text)?;
        }
        for (configured, expected) in [(None, "usual"), (Some(&*own), "own"), (None, "usual")] {
            let kernel = kernel(configured, &share, KernelImage::Elf);
            let (taken, initrd) = take_boot_files(&share, &kernel, &state, KernelImage::Elf)?;
            assert_eq!(fs::read_to_string(taken)?, expected);
            assert_eq!(fs::read_to_string(initrd)?, "disk");
        }
        let absent = take_boot_files(&share, Path::new("/absent"), &state, KernelImage::Elf).unwrap_err();
        assert!(
            absent.to_string().contains("/absent") && absent.to_string().contains("agent.kernel"),
            "{absent}"
        );
        Ok(())
    }
}
