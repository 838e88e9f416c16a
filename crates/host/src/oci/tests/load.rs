// SPDX-License-Identifier: Apache-2.0
//! Images of archives that are uploaded: what `docker save` writes, and OCI layouts.

use bytes::Bytes;
use futures::stream;

use super::*;

/// Files of an archive, by path.
type Files = Vec<(String, Vec<u8>)>;

/// Configuration of an image of these layers.
fn config(layers: &[Vec<u8>], architecture: &str) -> Vec<u8> {
    let diff_ids: Vec<_> = layers.iter().map(|layer| Digest::of(layer)).collect();
    json!({
        "os": "linux", "architecture": architecture, "config": { "User": "1000", "Cmd": ["sh"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    })
    .to_string()
    .into_bytes()
}

/// What `docker save` writes of an image with this name.
fn saved(name: &str, layers: &[Vec<u8>], architecture: &str) -> Files {
    let paths: Vec<_> = (0..layers.len()).map(|number| format!("{number}/layer.tar")).collect();
    let list = json!([{ "Config": "config.json", "RepoTags": [name], "Layers": paths }]).to_string();
    let mut files: Files = paths.into_iter().zip(layers.iter().cloned()).collect();
    files.push(("config.json".to_owned(), config(layers, architecture)));
    files.push(("manifest.json".to_owned(), list.into_bytes()));
    files
}

/// An OCI layout of an image with this name, and the digest of its manifest.
fn layout(name: &str, layers: &[Vec<u8>]) -> (Files, Digest) {
    let mut files = Files::new();
    let mut put = |bytes: Vec<u8>| {
        let (digest, size) = (Digest::of(&bytes), bytes.len());
        files.push((format!("blobs/sha256/{}", digest.hex()), bytes));
        json!({ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": size })
    };
    let stored: Vec<_> = layers.iter().map(|layer| put(layer.clone())).collect();
    let mut config = put(config(layers, &Platform::of_this_machine().architecture));
    config["mediaType"] = json!("application/vnd.oci.image.config.v1+json");
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": stored }).to_string().into_bytes();
    let digest = Digest::of(&manifest);
    let mut entry = put(manifest);
    entry["mediaType"] = json!("application/vnd.oci.image.manifest.v1+json");
    entry["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
    let index = json!({ "schemaVersion": 2, "manifests": [entry] }).to_string().into_bytes();
    files.push(("index.json".to_owned(), index));
    files.push(("oci-layout".to_owned(), br#"{"imageLayoutVersion": "1.0.0"}"#.to_vec()));
    (files, digest)
}

fn packed(files: &Files) -> anyhow::Result<Vec<u8>> {
    let mut builder = Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, content.as_slice())?;
    }
    Ok(builder.into_inner()?)
}

fn gzip(agent: &Agent, bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    let path = agent.path("plain");
    fs::write(&path, bytes)?;
    let output = Command::new("gzip").arg("-c").arg(&path).output()?;
    fs::remove_file(path)?;
    ensure!(output.status.success(), "gzip");
    Ok(output.stdout)
}

/// Sends an archive in pieces, of which it is told that they have `size` bytes.
async fn send(imports: &Arc<Imports>, bytes: &[u8], size: usize, name: &str) -> Result<Loaded, AgentError> {
    let pieces: Vec<_> = bytes.chunks(100_000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    let name = Some(name.to_owned()).filter(|name| !name.is_empty());
    imports.load(Archive { team: TEAM.to_owned(), size: size as u64, name }, stream::iter(pieces)).await
}

async fn load(imports: &Arc<Imports>, bytes: &[u8], name: &str) -> Result<Loaded, AgentError> {
    send(imports, bytes, bytes.len(), name).await
}

async fn agent(settings: ImageSettings) -> anyhow::Result<(Server, Agent)> {
    let server = Server::start(Contents::new()).await?;
    let agent = Agent::new(&server, settings).await?;
    Ok((server, agent))
}

#[tokio::test]
async fn an_archive_of_each_form_is_an_image_whether_compressed_or_not() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let (_server, agent) = agent(ImageSettings::default()).await?;
    let imports = agent.start().await?;
    let layers = small()?;
    let machine = Platform::of_this_machine();
    let archive = packed(&saved("registry.example.com/team/app:1", &layers, &machine.architecture))?;
    let first = load(&imports, &archive, "").await?;
    assert_eq!(first.told_name.as_deref(), Some("app:1"));
    assert_eq!((first.image.user.as_str(), &first.image.cmd), ("app", &vec!["sh".to_owned()]));
    let content = agent.content(&first.image.image_id)?;
    assert_eq!(entries(&content, "/bin")?["busybox"], (0o104_755, 0, 0, 7));
    assert!(!entries(&content, "/")?.contains_key("gone"));
    // It is here already.
    let again = load(&imports, &gzip(&agent, &archive)?, "other").await?;
    assert_eq!(again, first);

    let (files, digest) = layout("1.0", &layers);
    let archive = gzip(&agent, &packed(&files)?)?;
    let unnamed = load(&imports, &archive, "").await.map_err(|error| error.code);
    assert_eq!(unnamed, Err(ErrorCode::InvalidRequest), "it has a tag, and no name");
    let second = load(&imports, &archive, "app").await?;
    assert_eq!((second.told_name, second.image.digest), (None, digest.to_string()));
    assert_ne!(second.image.image_id, first.image.image_id);
    assert_eq!(second.image.image_id, image_id(&digest), "as if a registry had it");
    assert_eq!(fs::read_dir(agent.path("imports"))?.count(), 0);
    Ok(())
}

#[tokio::test]
async fn of_several_images_the_named_one_is_taken() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let (_server, agent) = agent(ImageSettings::default()).await?;
    let imports = agent.start().await?;
    let (machine, layers) = (Platform::of_this_machine(), small()?);
    let mut files = saved("app:1", &layers, &machine.architecture);
    let list = json!([
        { "Config": "config.json", "RepoTags": ["app:1"], "Layers": ["0/layer.tar", "1/layer.tar"] },
        { "Config": "other.json", "RepoTags": ["app:2"], "Layers": ["0/layer.tar"] },
    ]);
    files.push(("other.json".to_owned(), config(&layers[..1], &machine.architecture)));
    files.iter_mut().filter(|(path, _)| path == "manifest.json").for_each(|(_, content)| {
        *content = list.to_string().into_bytes();
    });
    let archive = packed(&files)?;
    let which = load(&imports, &archive, "").await.expect_err("two");
    assert_eq!(which.code, ErrorCode::InvalidRequest);
    assert!(which.message.contains("app:1, app:2"), "{which}");
    let missing = load(&imports, &archive, "app:3").await.map_err(|error| error.code);
    assert_eq!(missing, Err(ErrorCode::ImageNotFound));
    let other = load(&imports, &archive, "app:2").await?;
    assert!(
        entries(&agent.content(&other.image.image_id)?, "/")?.contains_key("gone"),
        "the lower layer only"
    );
    Ok(())
}

#[tokio::test]
async fn whoever_sends_an_image_that_is_here_has_its_layers() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let (_server, agent) = agent(ImageSettings::default()).await?;
    let imports = agent.start().await?;
    let (files, digest) = layout("app:1", &small()?);
    load(&imports, &packed(&files)?, "").await?;
    let layer = format!("blobs/sha256/{}", Digest::of(&small()?[0]).hex());
    // All that is known of a private image by its digests.
    let without: Files = files.iter().filter(|(path, _)| *path != layer).cloned().collect();
    let refused = load(&imports, &packed(&without)?, "").await.map_err(|error| error.code);
    assert_eq!(refused, Err(ErrorCode::ImageNotFound), "{digest}");
    let mut other = files;
    other.iter_mut().filter(|(path, _)| *path == layer).for_each(|(_, content)| content[0] ^= 1);
    let refused = load(&imports, &packed(&other)?, "").await.map_err(|error| error.code);
    assert_eq!(refused, Err(ErrorCode::ImageDamaged));
    Ok(())
}

#[tokio::test]
async fn a_hostile_or_damaged_archive_leaves_nothing() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let settings = ImageSettings { image_max_mb: 16, ..ImageSettings::default() };
    let (_server, agent) = agent(settings).await?;
    let imports = agent.start().await?;
    fs::write(agent.path("victim"), "as it was")?;
    let machine = Platform::of_this_machine().architecture;
    let of = |items: &[Item<'_>]| -> anyhow::Result<Vec<u8>> {
        packed(&saved("app:1", &[layer(items)?], &machine))
    };
    let good = of(&[file("a", b"content")])?;
    let mut links = Builder::new(Vec::new());
    for (path, target) in [("manifest.json", "/etc/passwd"), ("index.json", "../../victim")] {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Symlink);
        header.set_size(0);
        links.append_link(&mut header, path, target)?;
    }
    let mut wrong = saved("app:1", &[layer(&[file("a", b"content")])?], &machine);
    wrong[0].1 = layer(&[file("a", b"kontent")])?;
    let foreign = saved("app:1", &[layer(&[file("a", b"")])?], "s390x");
    let zeros = gzip(&agent, &vec![0; 48 << 20])?;
    let compressed = gzip(&agent, &good)?;
    let cases = [
        ("dots", of(&[file("../../victim", b"bad")])?, ErrorCode::ImageDamaged),
        ("out", of(&[link(EntryType::Link, "a", "../../victim")])?, ErrorCode::ImageDamaged),
        ("links", links.into_inner()?, ErrorCode::ImageDamaged),
        ("wrong digest", packed(&wrong)?, ErrorCode::ImageDamaged),
        ("foreign", packed(&foreign)?, ErrorCode::ImagePlatformMismatch),
        ("large", of(&[file("a", &vec![7; 17 << 20])])?, ErrorCode::ImageTooLarge),
        ("bomb", zeros, ErrorCode::ImageTooLarge),
        ("cut", good[..good.len() / 3].to_vec(), ErrorCode::ImageDamaged),
        ("cut and compressed", compressed[..compressed.len() / 2].to_vec(), ErrorCode::ImageDamaged),
        ("empty", Vec::new(), ErrorCode::ImageDamaged),
        ("no archive", vec![7; 4096], ErrorCode::ImageDamaged),
    ];
    let before = agent.listed()?;
    for (what, archive, code) in cases {
        let error = load(&imports, &archive, "app:1").await.expect_err(what);
        assert_eq!(error.code, code, "{what}: {error}");
        assert!(!error.message.contains(&*agent.home.path().to_string_lossy()), "{error}");
        assert_eq!(agent.listed()?, before, "{what}");
        assert_eq!(fs::read_to_string(agent.path("victim"))?, "as it was", "{what}");
    }
    // One that is not as long as it was told to be, or longer than any may be.
    for (size, code) in [
        (good.len() + 1, ErrorCode::InvalidRequest),
        (good.len() - 1, ErrorCode::InvalidRequest),
        (64 << 20, ErrorCode::ImageTooLarge),
    ] {
        let refused = send(&imports, &good, size, "app:1").await.map_err(|error| error.code);
        assert_eq!(refused, Err(code), "{size}");
    }
    // One that breaks off.
    let broken = || Err(AgentError::new(ErrorCode::InvalidRequest, "broken off"));
    let pieces = stream::iter([Ok(Bytes::copy_from_slice(&good[..10])), broken()]);
    let archive = Archive { team: TEAM.to_owned(), size: good.len() as u64, name: None };
    assert!(imports.load(archive, pieces).await.is_err_and(|error| error.message == "broken off"));
    assert_eq!(agent.listed()?, before);
    Ok(())
}
