// SPDX-License-Identifier: Apache-2.0
//! Images imported from a registry in this process into a store of files, and read back with debugfs.

mod faults;
mod load;
mod progress;
mod reference;

use std::{
    collections::{BTreeMap, HashMap},
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Command, exit},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use axum::{
    Router,
    body::Body,
    extract::State,
    http::{HeaderMap, Uri},
    response::Response,
};
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle};
use wrenn_disk::{Backend, StoreConfig};
use wrenn_memory::Origin;
use wrenn_vmm::Diffs;

use super::{unpack_image::COMMAND, *};
use crate::{
    records,
    snapshots::{Snapshots, templates::TemplateSnapshots},
};

/// The process that unpacks, if this program was started as one. Else there is nothing to do.
#[test]
fn process() {
    let mut arguments = env::args_os().skip_while(|argument| argument != COMMAND);
    // Command and image; the numbers of its files follow.
    if let (Some(_), Some(_)) = (arguments.next(), arguments.next()) {
        exit(i32::from(!unpack_image::run(arguments)));
    }
}

/// This test, as the program that unpacks.
fn program() -> Program {
    let arguments = ["oci::tests::process", "--exact", "--nocapture", COMMAND];
    Program { path: "/proc/self/exe".into(), arguments: arguments.map(OsString::from).to_vec() }
}

#[test]
fn a_working_directory_is_an_absolute_path_below_the_top() {
    for (path, expected) in [
        ("", "/"),
        ("/", "/"),
        ("srv", "/srv"),
        ("/srv//app/.", "/srv/app"),
        ("/srv/../../etc/..", "/"),
        ("../a/../b", "/b"),
        ("/ä b", "/ä b"),
    ] {
        assert_eq!(absolute(path), expected, "{path}");
    }
}

#[test]
fn an_image_has_the_same_id_everywhere_in_the_form_of_a_uuid() {
    let id = image_id(&Digest::of(b"manifest"));
    assert_eq!(id, image_id(&Digest::of(b"manifest")));
    assert_ne!(id, image_id(&Digest::of(b"other")));
    let parts: Vec<&str> = id.split('-').collect();
    assert_eq!(parts.iter().map(|part| part.len()).collect::<Vec<_>>(), [8, 4, 4, 4, 12]);
    assert!(id.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-'), "{id}");
    assert!(parts[2].starts_with('8') && parts[3].starts_with('8'), "{id}");
}

/// An entry of a layer.
struct Item<'a> {
    kind: EntryType,
    name: &'a str,
    link: &'a str,
    content: &'a [u8],
    mode: u32,
    owner: (u64, u64),
    attributes: Vec<(&'a str, &'a [u8])>,
}

fn item(kind: EntryType, name: &str) -> Item<'_> {
    Item { kind, name, link: "", content: b"", mode: 0o644, owner: (0, 0), attributes: Vec::new() }
}

fn file<'a>(name: &'a str, content: &'a [u8]) -> Item<'a> {
    Item { content, ..item(EntryType::Regular, name) }
}

fn link<'a>(kind: EntryType, name: &'a str, link: &'a str) -> Item<'a> {
    Item { link, ..item(kind, name) }
}

/// Lists attributes of pax.
fn attributes<'a>(all: &[(&'a str, &'a [u8])]) -> Vec<(&'a str, &'a [u8])> {
    all.to_vec()
}

fn layer(items: &[Item<'_>]) -> anyhow::Result<Vec<u8>> {
    let mut builder = Builder::new(Vec::new());
    for item in items {
        if !item.attributes.is_empty() {
            builder.append_pax_extensions(item.attributes.iter().copied())?;
        }
        let mut header = Header::new_gnu();
        header.set_entry_type(item.kind);
        header.set_size(item.content.len() as u64);
        header.as_old_mut().name[..item.name.len()].copy_from_slice(item.name.as_bytes());
        header.as_old_mut().linkname[..item.link.len()].copy_from_slice(item.link.as_bytes());
        header.set_mode(item.mode);
        header.set_uid(item.owner.0);
        header.set_gid(item.owner.1);
        header.set_mtime(1_000_000_000);
        header.set_cksum();
        builder.append(&header, item.content)?;
    }
    Ok(builder.into_inner()?)
}

/// Team that imports.
const TEAM: &str = "team";

/// Content of a registry by path.
type Contents = HashMap<String, Vec<u8>>;

/// Stores a blob, and returns its descriptor.
fn put(contents: &mut Contents, media_type: &str, bytes: &[u8]) -> Value {
    let (digest, size) = (Digest::of(bytes), bytes.len());
    for kind in ["blobs", "manifests"] {
        contents.insert(format!("/v2/team/app/{kind}/{digest}"), bytes.to_vec());
    }
    json!({ "mediaType": media_type, "digest": digest, "size": size })
}

/// Stores an image for this machine as `team/app:TAG`.
fn publish(contents: &mut Contents, tag: &str, process: &Value, layers: &[Vec<u8>]) {
    let machine = Platform::of_this_machine();
    publish_for(contents, tag, process, layers, &machine.architecture);
}

fn publish_for(contents: &mut Contents, tag: &str, process: &Value, layers: &[Vec<u8>], architecture: &str) {
    let diff_ids: Vec<_> = layers.iter().map(|layer| Digest::of(layer)).collect();
    let config = json!({
        "os": "linux", "architecture": architecture, "config": process,
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = put(contents, "application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
    let stored = layers.iter().map(|layer| put(contents, "application/vnd.oci.image.layer.v1.tar", layer));
    let stored: Vec<_> = stored.collect();
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": stored }).to_string();
    contents.insert(format!("/v2/team/app/manifests/{tag}"), manifest.into_bytes());
}

struct Shared {
    contents: Contents,
    asked: Mutex<Vec<String>>,
}

/// A registry. It wants an account for what has `private` in its path.
struct Server {
    host: String,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Server {
    async fn start(contents: Contents) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared { contents, asked: Mutex::default() });
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let host = listener.local_addr()?.to_string();
        let router = Router::new().fallback(answer).with_state(shared.clone());
        let task = tokio::spawn(async move {
            axum::serve(listener, router).await.expect("it serves");
        });
        Ok(Self { host, shared, task })
    }

    /// Counts the requests whose path has a text.
    fn asked(&self, text: &str) -> usize {
        let asked = self.shared.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.iter().filter(|path| path.contains(text)).count()
    }

    fn reference(&self, tag: &str) -> String {
        format!("{}/team/app:{tag}", self.host)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(State(shared): State<Arc<Shared>>, uri: Uri, headers: HeaderMap) -> Response {
    let path = uri.path();
    shared.asked.lock().unwrap_or_else(PoisonError::into_inner).push(path.to_owned());
    let response = Response::builder();
    // `app:secret` in base 64.
    let known = headers.get("authorization").is_some_and(|value| value == "Basic YXBwOnNlY3JldA==");
    let response = if path.contains("private") && !known {
        response.status(401).header("www-authenticate", "Basic realm=\"x\"").body(Body::empty())
    } else {
        match shared.contents.get(path) {
            Some(bytes) => response.body(Body::from(bytes.clone())),
            None => response.status(404).body(Body::empty()),
        }
    };
    response.expect("a response")
}

/// What an agent has for imports.
struct Agent {
    home: TempDir,
    volumes: Arc<dyn Volumes>,
    settings: ImageSettings,
}

impl Agent {
    async fn new(server: &Server, settings: ImageSettings) -> anyhow::Result<Self> {
        let home = tempfile::tempdir()?;
        let volumes =
            wrenn_disk::open(StoreConfig::new(home.path().join("disks"), Backend::Copy, "t")).await?;
        let settings = ImageSettings { registries_plain_http: Some(server.host.clone()), ..settings };
        Ok(Self { home, volumes, settings })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Imports as an agent has them when it starts.
    async fn start(&self) -> anyhow::Result<Arc<Imports>> {
        let snapshots =
            Snapshots::open(&self.path("memory"), Origin::default(), Diffs::SinceStart, |_| false)?;
        let shapes = TemplateSnapshots::open(snapshots, 64, self.volumes.clone(), self.path("captures"))?;
        let records = records::read(&self.path("images"))?;
        let images = Images::new(&self.path("images"), records, self.volumes.clone(), shapes);
        let (settings, volumes) = (self.settings.clone(), self.volumes.clone());
        Ok(Imports::with_program(self.path("imports"), settings, volumes, images, program()).await?)
    }

    /// Lists everything on the disk.
    fn listed(&self) -> anyhow::Result<Vec<PathBuf>> {
        let (mut all, mut open) = (Vec::new(), vec![self.home.path().to_owned()]);
        while let Some(at) = open.pop() {
            for entry in fs::read_dir(&at)? {
                let path = entry?.path();
                if fs::symlink_metadata(&path)?.is_dir() {
                    open.push(path.clone());
                }
                all.push(path);
            }
        }
        all.sort();
        Ok(all)
    }

    /// File with the content of an image in the store.
    fn content(&self, id: &str) -> anyhow::Result<PathBuf> {
        let entries = fs::read_dir(self.path("disks/images").join(images::name_of(id)))?;
        let mut paths = entries.flatten().map(|entry| entry.path());
        paths.find(|path| path.extension().is_some_and(|ending| ending == "img")).context("no content")
    }
}

/// Only root can confine the process that unpacks.
fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn debugfs(image: &Path, request: &str) -> anyhow::Result<String> {
    Ok(String::from_utf8_lossy(&debugfs_bytes(image, request)?).into_owned())
}

fn debugfs_bytes(image: &Path, request: &str) -> anyhow::Result<Vec<u8>> {
    let output = Command::new("debugfs").args(["-R", request]).arg(image).output()?;
    ensure!(output.status.success(), "{request}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}

/// Mode, owner and size of what is in a directory of an image, by name.
fn entries(image: &Path, directory: &str) -> anyhow::Result<BTreeMap<String, (u32, u32, u32, u64)>> {
    let mut all = BTreeMap::new();
    for line in debugfs(image, &format!("ls -l {directory}"))?.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [_, mode, _, uid, gid, size, .., name] = words[..] {
            let entry = (u32::from_str_radix(mode, 8)?, uid.parse()?, gid.parse()?, size.parse()?);
            all.insert(name.to_owned(), entry);
        }
    }
    Ok(all)
}

/// Capabilities as `setcap` writes them. There is a newline in them.
const CAPABILITY: &[u8] = &[1, 0, 0, 2, 0, b'\n', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/srv/app:/bin/sh\n";

/// Layers of a small image. The upper one removes a file and adds another one.
fn small() -> anyhow::Result<[Vec<u8>; 2]> {
    // Its parts: one of 6 bytes in the middle.
    let sparse = [format!("1\n{}\n6\n", 5 << 20).as_bytes(), &[0; 512]].concat();
    let sparse = [&sparse[..512], b"middle"].concat();
    let lower = layer(&[
        Item { mode: 0o755, ..item(EntryType::Directory, "bin") },
        Item { mode: 0o4755, ..file("bin/busybox", b"program") },
        link(EntryType::Link, "bin/sh", "bin/busybox"),
        link(EntryType::Symlink, "bin/ls", "busybox"),
        file("etc/passwd", PASSWD),
        Item { mode: 0o2750, owner: (1000, 1001), ..item(EntryType::Directory, "srv/app") },
        Item { mode: 0o640, owner: (1000, 1001), ..file("srv/app/data", b"data") },
        Item {
            attributes: attributes(&[
                ("SCHILY.xattr.security.capability", CAPABILITY),
                ("SCHILY.xattr.user.note", b"hello"),
            ]),
            ..file("bin/ping", b"ping")
        },
        Item {
            attributes: attributes(&[
                ("GNU.sparse.major", b"1"),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.name", b"sparse"),
                ("GNU.sparse.realsize", b"10485760"),
            ]),
            ..file("GNUSparseFile.0/sparse", &sparse)
        },
        link(EntryType::Symlink, "run", "/var/run"),
        file("gone", b"x"),
    ])?;
    let upper = layer(&[file(".wh.gone", b""), file("added", b"upper")])?;
    Ok([lower, upper])
}

#[tokio::test]
async fn an_image_is_imported_once_with_all_that_its_files_have() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let process = json!({
        "User": "app:1000", "Env": ["PATH=/bin", "EMPTY="], "WorkingDir": "srv/app/work", "Entrypoint": ["/bin/sh"],
        "Cmd": ["-c", "true"],
    });
    let mut contents = Contents::new();
    publish(&mut contents, "latest", &process, &small()?);
    let server = Server::start(contents).await?;
    let agent = Agent::new(&server, ImageSettings::default()).await?;
    let (imports, reference) = (agent.start().await?, server.reference("latest"));
    let (one, other) =
        tokio::join!(imports.import(TEAM, &reference, None), imports.import(TEAM, &reference, None));
    let image = one?;
    assert_eq!(other?, image);
    assert_eq!(server.asked("/blobs/"), 2 + 2, "the configuration twice, and each layer once");
    assert_eq!(
        image.env,
        [("PATH", "/bin"), ("EMPTY", "")].map(|(name, value)| (name.to_owned(), value.to_owned()))
    );
    assert_eq!((image.user.as_str(), image.workdir.as_str()), ("app:1000", "/srv/app/work"));
    assert_eq!(
        (image.entrypoint, image.cmd),
        (vec!["/bin/sh".to_owned()], vec!["-c".to_owned(), "true".to_owned()])
    );
    assert_eq!(image.size_mb, 65, "{:?}", image.first_skipped);

    // Nothing is left but the image, which the next agent has, too.
    assert_eq!(fs::read_dir(agent.path("imports"))?.count(), 0);
    let pinned = format!("{}/team/app@{}", server.host, image.digest);
    let next = agent.start().await?;
    let again = next.import(TEAM, &server.reference("latest"), None).await?;
    assert_eq!((&again.image_id, &again.sha256), (&image.image_id, &image.sha256));
    assert_eq!(server.asked("/blobs/"), 5, "only the configuration");
    let missing = next.import(TEAM, &pinned, None).await.map_err(|error| error.code);
    assert_eq!(missing, Err(ErrorCode::ImageNotFound), "this registry has its manifests by tag");
    // An image that the store has lost is imported again.
    agent.volumes.remove_image(&images::name_of(&image.image_id)).await?;
    assert_eq!(next.import(TEAM, &server.reference("latest"), None).await?.image_id, image.image_id);
    assert_eq!(server.asked("/blobs/"), 8);

    let content = agent.content(&image.image_id)?;
    let (top, bin) = (entries(&content, "/")?, entries(&content, "/bin")?);
    assert_eq!(bin["busybox"], (0o104_755, 0, 0, 7));
    assert_eq!(bin["sh"], bin["busybox"]);
    assert_eq!(bin["ls"].0, 0o120_777);
    assert!(debugfs(&content, "stat /bin/busybox")?.contains("Links: 2"));
    assert!(debugfs(&content, "stat /bin/ls")?.contains("Fast link dest: \"busybox\""));
    assert_eq!(debugfs(&content, "cat /bin/sh")?, "program");
    assert_eq!(entries(&content, "/srv")?["app"].0, 0o042_750);
    let app = entries(&content, "/srv/app")?;
    assert_eq!(app["data"], (0o100_640, 1000, 1001, 4));
    assert_eq!(app["work"].0, 0o040_755, "the working directory");
    let attributes = debugfs(&content, "ea_list /bin/ping")?;
    assert!(attributes.contains("security.capability (20) = 01 00 00 02 00 0a 00"), "{attributes}");
    assert!(attributes.contains("user.note (5) = \"hello\"") || image.skipped > 0, "{attributes}");
    assert_eq!(top["sparse"].3, 10 << 20);
    let sparse = debugfs(&content, "stat /sparse")?;
    assert!(sparse.contains("Blockcount: 8"), "its holes are filled: {sparse}");
    assert!(!top.contains_key("gone") && top.contains_key("added"));
    for (name, mode) in [("proc", 0o040_555), ("sys", 0o040_555), ("dev", 0o040_755), ("tmp", 0o041_777)] {
        assert_eq!(top[name].0, mode, "{name}");
    }
    assert_eq!(top["run"].0, 0o120_777, "a link stays");
    let checked = Command::new("e2fsck").args(["-f", "-n"]).arg(&content).output()?;
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
    Ok(())
}

#[tokio::test]
async fn an_image_that_is_hostile_or_too_large_leaves_nothing() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let long = "x".repeat(300);
    let deep = "d/".repeat(40);
    // Each link leads further down, so that directories are deeper within each other than any name tells.
    let names: Vec<(String, String)> = (0..20)
        .map(|number| {
            let above = if number == 0 { String::new() } else { format!("l{}/", number - 1) };
            (format!("l{number}"), format!("{above}{deep}"))
        })
        .collect();
    let mut deeper = Vec::new();
    for (name, path) in &names {
        deeper.push(item(EntryType::Directory, path.as_str()));
        deeper.push(link(EntryType::Symlink, name.as_str(), path.as_str()));
    }
    let many: Vec<String> = (0..5000).map(|number| number.to_string()).collect();
    let many: Vec<_> = many.iter().map(|name| file(name, b"")).collect();
    let content = vec![7_u8; 17 << 20];
    let cases = [
        ("dots", layer(&[file("a", b""), file("../../victim", b"bad")])?, ErrorCode::ImageDamaged),
        ("out", layer(&[link(EntryType::Link, "a", "../../victim")])?, ErrorCode::ImageDamaged),
        (
            "through",
            layer(&[
                link(EntryType::Symlink, "a", "/proc/self/root"),
                file("a/b", b""),
                link(EntryType::Link, "c", "x"),
            ])?,
            ErrorCode::ImageDamaged,
        ),
        (
            "host",
            layer(&[Item {
                attributes: attributes(&[("SCHILY.xattr.trusted.overlay.opaque", b"y")]),
                ..file("a", b"")
            }])?,
            ErrorCode::ImageDamaged,
        ),
        (
            "name",
            layer(&[Item { attributes: attributes(&[("path", long.as_bytes())]), ..file("a", b"") }])?,
            ErrorCode::ImageDamaged,
        ),
        ("deep", layer(&deeper)?, ErrorCode::ImageDamaged),
        ("cut", layer(&[file("a", &[7; 4000])])?[..2000].to_vec(), ErrorCode::ImageDamaged),
        ("many", layer(&many)?, ErrorCode::ImageTooLarge),
        ("large", layer(&[file("a", &content)])?, ErrorCode::ImageTooLarge),
    ];
    let mut contents = Contents::new();
    for (tag, layer, _) in &cases {
        publish(&mut contents, tag, &json!({}), std::slice::from_ref(layer));
    }
    // What is sent is not what the manifest says, and what is packed is not what the configuration says.
    let honest = layer(&[file("a", b"honest")])?;
    publish(&mut contents, "changed", &json!({}), std::slice::from_ref(&honest));
    let other = layer(&[file("a", b"other!")])?;
    contents.insert(format!("/v2/team/app/blobs/{}", Digest::of(&honest)), other.clone());
    publish(&mut contents, "user", &json!({ "User": "u".repeat(1000) }), std::slice::from_ref(&other));
    let server = Server::start(contents).await?;
    let settings = ImageSettings { image_max_mb: 16, ..ImageSettings::default() };
    let agent = Agent::new(&server, settings).await?;
    let imports = agent.start().await?;
    fs::write(agent.path("victim"), "as it was")?;
    let before = agent.listed()?;
    let more = [("changed", ErrorCode::ImageDamaged), ("user", ErrorCode::ImageDamaged)];
    for (tag, code) in cases.iter().map(|(tag, _, code)| (*tag, *code)).chain(more) {
        let refused = imports.import(TEAM, &server.reference(tag), None).await;
        let error = refused.expect_err(tag);
        assert_eq!(error.code, code, "{tag}: {error}");
        assert!(!error.message.contains(&*agent.home.path().to_string_lossy()), "{error}");
        assert_eq!(agent.listed()?, before, "{tag}");
        assert_eq!(fs::read_to_string(agent.path("victim"))?, "as it was", "{tag}");
    }
    Ok(())
}

#[tokio::test]
async fn an_unpacking_that_takes_too_long_is_ended() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let mut contents = Contents::new();
    publish(&mut contents, "latest", &json!({}), &small()?);
    let server = Server::start(contents).await?;
    let settings = ImageSettings { unpack_limit: Duration::ZERO, ..ImageSettings::default() };
    let agent = Agent::new(&server, settings).await?;
    let imports = agent.start().await?;
    let before = agent.listed()?;
    let refused = imports.import(TEAM, &server.reference("latest"), None).await.map_err(|error| error.code);
    assert_eq!(refused, Err(ErrorCode::Timeout));
    assert_eq!(agent.listed()?, before);
    Ok(())
}

#[tokio::test]
async fn what_a_registry_does_not_give_is_told_apart() -> anyhow::Result<()> {
    let mut contents = Contents::new();
    publish_for(&mut contents, "foreign", &json!({}), &[], "s390x");
    let server = Server::start(contents).await?;
    let agent = Agent::new(&server, ImageSettings::default()).await?;
    let imports = agent.start().await?;
    let before = agent.listed()?;
    let account = |password: &str| Credentials { username: "app".to_owned(), password: password.to_owned() };
    let private = format!("{}/team/private:latest", server.host);
    let cases = [
        (server.reference("absent"), None, ErrorCode::ImageNotFound),
        (server.reference("foreign"), None, ErrorCode::ImagePlatformMismatch),
        (private.clone(), None, ErrorCode::RegistryDenied),
        (private.clone(), Some(account("wrong")), ErrorCode::RegistryDenied),
        // The account is right, and there is no image.
        (private, Some(account("secret")), ErrorCode::ImageNotFound),
        ("localhost:1/x".to_owned(), None, ErrorCode::RegistryDenied),
        ("Not An Image".to_owned(), None, ErrorCode::InvalidRequest),
    ];
    for (reference, credentials, code) in cases {
        let error = imports.import(TEAM, &reference, credentials).await.expect_err(&reference);
        assert_eq!(error.code, code, "{reference}: {error}");
        assert!(code != ErrorCode::ImagePlatformMismatch || error.message.contains("linux/s390x"), "{error}");
        assert!(!error.message.contains("secret") && !error.message.contains("wrong"), "{error}");
    }
    assert_eq!(agent.listed()?, before);
    Ok(())
}
