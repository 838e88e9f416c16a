// SPDX-License-Identifier: Apache-2.0
//! Images: as blobs, as OCI layouts, and as `docker save` wrote them.

use std::{collections::BTreeMap, fs, fs::File, io::Write as _, path::Path};

use serde_json::{Value, json};
use wrenn_oci::{Digest, Platform};

use super::layers::{file, layer};

/// Files of an image by path.
pub(crate) type Files = Vec<(String, Vec<u8>)>;

/// Images that share blobs.
#[derive(Default)]
pub(crate) struct Images {
    pub(crate) blobs: BTreeMap<Digest, Vec<u8>>,
    /// Descriptors of their manifests.
    pub(crate) manifests: Vec<Value>,
}

impl Images {
    /// Makes images with one layer each, for some platforms.
    pub(crate) fn of(platforms: &[&str]) -> Self {
        let mut images = Self::default();
        for platform in platforms {
            let layer = layer(&[file("platform", platform)]);
            images.add(platform, &[(layer.clone(), layer)]);
        }
        images
    }

    /// Makes an image of layers, each as it is stored and uncompressed.
    pub(crate) fn add(&mut self, platform: &str, layers: &[(Vec<u8>, Vec<u8>)]) -> Digest {
        let config = config(platform, layers);
        let config = self.put("application/vnd.oci.image.config.v1+json", config);
        let layers: Vec<_> = layers
            .iter()
            .map(|(stored, _)| self.put("application/vnd.oci.image.layer.v1.tar", stored.clone()))
            .collect();
        let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers });
        let mut manifest =
            self.put("application/vnd.oci.image.manifest.v1+json", manifest.to_string().into_bytes());
        manifest["platform"] = json!(platform.parse::<Platform>().expect("a platform"));
        self.manifests.push(manifest.clone());
        serde_json::from_value(manifest["digest"].clone()).expect("a digest")
    }

    /// Stores a blob, and returns its descriptor.
    pub(crate) fn put(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let (digest, size) = (Digest::of(&bytes), bytes.len());
        self.blobs.insert(digest, bytes);
        json!({ "mediaType": media_type, "digest": digest, "size": size })
    }

    pub(crate) fn index(&self) -> Vec<u8> {
        json!({ "schemaVersion": 2, "manifests": self.manifests }).to_string().into_bytes()
    }

    /// Lists the files of an OCI layout.
    pub(crate) fn layout(&self) -> Files {
        let blobs = self
            .blobs
            .iter()
            .map(|(digest, bytes)| (format!("blobs/sha256/{}", digest.hex()), bytes.clone()));
        let version = ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
        blobs.chain([version, ("index.json".to_owned(), self.index())]).collect()
    }
}

/// Lists the files of an image as older versions of `docker save` wrote it. Layers are as stored and uncompressed.
pub(crate) fn docker_save(tag: &str, layers: &[(Vec<u8>, Vec<u8>)]) -> Files {
    let config = config("linux/amd64", layers);
    let name = format!("{}.json", Digest::of(&config).hex());
    let paths: Vec<_> = (0..layers.len()).map(|number| format!("{number}/layer.tar")).collect();
    let list = json!([{ "Config": name, "RepoTags": [tag], "Layers": paths }]).to_string().into_bytes();
    let stored = layers.iter().map(|(stored, _)| stored.clone());
    let mut files: Files = paths.into_iter().zip(stored).collect();
    files.extend([(name, config), ("manifest.json".to_owned(), list)]);
    files
}

fn config(platform: &str, layers: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let platform: Platform = platform.parse().expect("a platform");
    let diff_ids: Vec<_> = layers.iter().map(|(_, plain)| Digest::of(plain)).collect();
    let rootfs = json!({ "type": "layers", "diff_ids": diff_ids });
    let mut config = json!({ "config": { "User": "app", "Cmd": ["sh"] }, "rootfs": rootfs });
    config["os"] = json!(platform.os);
    config["architecture"] = json!(platform.architecture);
    config["variant"] = json!(platform.variant);
    config.to_string().into_bytes()
}

/// Writes files into a directory.
pub(crate) fn write(files: &[(String, Vec<u8>)], directory: &Path) {
    for (path, content) in files {
        let path = directory.join(path);
        fs::create_dir_all(path.parent().expect("a directory")).expect("made");
        fs::write(path, content).expect("written");
    }
}

/// Packs files into an archive.
pub(crate) fn packed(files: &[(String, Vec<u8>)]) -> File {
    let items: Vec<_> =
        files.iter().map(|(path, content)| super::layers::Item { content, ..file(path, "") }).collect();
    let mut archive = tempfile::tempfile().expect("a file");
    archive.write_all(&layer(&items)).expect("written");
    archive
}
