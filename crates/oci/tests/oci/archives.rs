// SPDX-License-Identifier: Apache-2.0
//! Images in directories and archives.

use std::{fs, os::unix::fs::symlink, path::Path};

use wrenn_oci::{Digest, Image, ImageSource, LocalImage, Platform, SourceError};

use crate::support::{
    fetched,
    images::{Images, docker_save, packed, write},
    layers::{Item, file, gzip, hard_link, layer, symlink as link, zstd},
};

/// Resolves an image and reads all its layers.
async fn read(source: &dyn ImageSource) -> Result<(Image, Vec<Vec<u8>>), SourceError> {
    let image = source.resolve(&Platform::linux("amd64")).await?;
    let mut layers = Vec::new();
    for (descriptor, _) in image.layers() {
        layers.push(fetched(source, descriptor).await?);
    }
    Ok((image, layers))
}

async fn in_archive(
    files: &[(String, Vec<u8>)],
    tag: Option<&str>,
) -> Result<(Image, Vec<Vec<u8>>), SourceError> {
    read(&LocalImage::archive(packed(files), tag).await?).await
}

async fn in_directory(path: &Path, tag: Option<&str>) -> Result<(Image, Vec<Vec<u8>>), SourceError> {
    read(&LocalImage::directory(path, tag).await?).await
}

/// Some layers, as they are stored and uncompressed.
fn layers() -> Vec<(Vec<u8>, Vec<u8>)> {
    let (one, two, three) = (layer(&[file("a", "1")]), layer(&[file("b", "2")]), layer(&[file("c", "3")]));
    vec![(one.clone(), one), (gzip(&two), two), (zstd(&three), three)]
}

fn stored(layers: &[(Vec<u8>, Vec<u8>)]) -> Vec<Vec<u8>> {
    layers.iter().map(|(stored, _)| stored.clone()).collect()
}

#[tokio::test]
async fn a_layout_is_read_in_a_directory_and_in_an_archive() {
    let mut images = Images::of(&["linux/arm64"]);
    let digest = images.add("linux/amd64", &layers());
    let home = tempfile::tempdir().unwrap();
    write(&images.layout(), home.path());
    for read in [in_directory(home.path(), None).await, in_archive(&images.layout(), None).await] {
        let (image, read) = read.unwrap();
        assert_eq!(image.digest, digest);
        assert!(read == stored(&layers()));
    }
}

#[tokio::test]
async fn what_docker_save_wrote_is_read_whether_layers_are_compressed_or_not() {
    let files = docker_save("team/app:1", &layers());
    for tag in [None, Some("team/app:1"), Some("docker.io/team/app:1")] {
        let (image, read) = in_archive(&files, tag).await.unwrap();
        assert!(read == stored(&layers()));
        assert_eq!(
            image.config.diff_ids,
            layers().iter().map(|(_, plain)| Digest::of(plain)).collect::<Vec<_>>()
        );
        assert_eq!(
            image.digest,
            in_archive(&files, None).await.unwrap().0.digest,
            "it is the same each time"
        );
    }
    assert_eq!(LocalImage::archive(packed(&files), None).await.unwrap().told_name(), Some("team/app:1"));
    let error = in_archive(&files, Some("team/app:2")).await.unwrap_err();
    assert!(matches!(error, SourceError::Missing { .. }), "{error}");
}

#[tokio::test]
async fn equal_layers_of_docker_save_may_be_links() {
    let mut files = docker_save("app:1", &[layers()[0].clone(), layers()[0].clone(), layers()[0].clone()]);
    files.retain(|(path, _)| !["1/layer.tar", "2/layer.tar"].contains(&path.as_str()));
    let mut items: Vec<Item<'_>> =
        files.iter().map(|(path, content)| Item { content, ..file(path, "") }).collect();
    items.push(link("1/layer.tar", "../0/layer.tar"));
    items.push(hard_link("2/layer.tar", "1/layer.tar"));
    items.push(link("3/loop", "loop"));
    let archive = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut &archive, &layer(&items)).unwrap();
    let (_, read) = read(&LocalImage::archive(archive, None).await.unwrap()).await.unwrap();
    assert!(read == vec![layers()[0].0.clone(); 3]);
}

#[tokio::test]
async fn of_several_images_one_must_be_named() {
    let mut images = Images::default();
    let one = images.add("linux/amd64", &layers()[..1]);
    images.add("linux/amd64", &layers()[1..]);
    for (entry, name) in images.manifests.iter_mut().zip(["one", "two"]) {
        entry["annotations"] = serde_json::json!({ "org.opencontainers.image.ref.name": name });
    }
    let error = in_archive(&images.layout(), None).await.unwrap_err();
    assert!(matches!(&error, SourceError::Ambiguous { names, .. } if names == "one, two"), "{error}");
    assert_eq!(in_archive(&images.layout(), Some("one")).await.unwrap().0.digest, one);
    let two = LocalImage::archive(packed(&images.layout()), Some("two")).await.unwrap();
    assert_eq!(two.told_name(), Some("two"));
    let error = in_archive(&images.layout(), Some("three")).await.unwrap_err();
    assert!(matches!(error, SourceError::Missing { .. }), "{error}");
}

#[tokio::test]
async fn what_is_damaged_missing_or_of_another_kind_is_refused() {
    let mut images = Images::default();
    images.add("linux/amd64", &layers());
    let blob = format!("blobs/sha256/{}", Digest::of(&layers()[0].0).hex());
    let damaged = |change: fn(&mut Vec<u8>)| {
        let mut files = images.layout();
        files.iter_mut().filter(|(path, _)| *path == blob).for_each(|(_, content)| change(content));
        files
    };
    let changes: [fn(&mut Vec<u8>); 3] =
        [|content| content[0] ^= 1, |content| content.truncate(100), |content| content.push(0)];
    for files in changes.map(damaged) {
        let error = in_archive(&files, None).await.unwrap_err();
        assert!(matches!(error, SourceError::Damaged { .. }), "{error}");
    }
    let mut files = images.layout();
    files.retain(|(path, _)| *path != blob);
    let error = in_archive(&files, None).await.unwrap_err();
    assert!(matches!(error, SourceError::Missing { .. }), "{error}");
    for (path, content) in [("readme", "x"), ("index.json", "{}"), ("manifest.json", "{}")] {
        let files = [(path.to_owned(), content.as_bytes().to_vec())];
        let error = in_archive(&files, None).await.unwrap_err();
        assert!(matches!(error, SourceError::Malformed { .. }), "{error}");
    }
    // Cut off within the last file, behind which are 1024 zeros.
    let archive = packed(&images.layout());
    archive.set_len(archive.metadata().unwrap().len() - 1436).unwrap();
    let error = LocalImage::archive(archive, None).await.err().unwrap();
    assert!(error.to_string().contains("cut off"), "{error}");
}

#[tokio::test]
async fn nothing_outside_of_a_directory_is_read() {
    let home = tempfile::tempdir().unwrap();
    let (inside, secret) = (home.path().join("inside"), home.path().join("secret"));
    let mut images = Images::default();
    images.add("linux/amd64", &layers());
    write(&images.layout(), &inside);
    let blob = inside.join(format!("blobs/sha256/{}", Digest::of(&layers()[0].0).hex()));
    fs::rename(&blob, &secret).unwrap();
    for target in [secret.to_str().unwrap(), "../../../secret"] {
        symlink(target, &blob).unwrap();
        let error = in_directory(&inside, None).await.unwrap_err();
        assert!(matches!(error, SourceError::Missing { .. }), "{target}: {error}");
        fs::remove_file(&blob).unwrap();
    }
    fs::remove_file(inside.join("index.json")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        inside.join("index.json"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    let error = in_directory(&inside, None).await.unwrap_err();
    assert!(matches!(error, SourceError::Malformed { .. }), "{error}");
}
