// SPDX-License-Identifier: Apache-2.0
//! An image with every kind of entry, imported and compared entry by entry with what umoci unpacks of it.

mod expected;
mod stored;

use std::collections::BTreeSet;

use wrenn_testkit::oci_images::{SPARSE, every_kind, tool};

use super::*;

/// What an image has that is not in its layers: the directory of e2fsck, and those that a guest needs.
const ADDED: [&str; 5] = ["dev", "lost+found", "proc", "run", "sys"];

/// Entries by path; the top has an empty one. Paths and all other bytes are escaped, so that messages show them.
type Tree = BTreeMap<String, Entry>;

/// Everything that an entry has.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    /// Type and permissions.
    mode: u32,
    owner: (u32, u32),
    /// Seconds since 1970.
    mtime: i64,
    /// Size of a file, with its holes.
    size: u64,
    /// Content of a file as its digest, or what a symbolic link leads to.
    content: String,
    /// Major and minor number.
    device: (u32, u32),
    attributes: BTreeMap<String, String>,
    /// All paths of the same file, for hard links.
    names: BTreeSet<String>,
}

/// Escapes bytes, different ones differently.
fn escaped(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

/// Lists what differs, a line for each entry.
fn differences(expected: &Tree, found: &Tree) -> Vec<String> {
    let paths: BTreeSet<_> = expected.keys().chain(found.keys()).collect();
    let of = |path: &String| match (expected.get(path), found.get(path)) {
        (Some(expected), Some(found)) if expected == found => None,
        (expected, found) => Some(format!("{path}:\n  {expected:?}\n  {found:?}")),
    };
    paths.into_iter().filter_map(of).collect()
}

/// Publishes an image of a layout as `team/app:TAG`.
fn publish_layout(contents: &mut Contents, layout: &Path, tag: &str) -> anyhow::Result<()> {
    let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json"))?)?;
    let manifests = index["manifests"].as_array().context("no manifests")?;
    let named = |manifest: &&Value| manifest["annotations"]["org.opencontainers.image.ref.name"] == tag;
    let manifest = manifests.iter().find(named).context("no such image")?;
    let digest = manifest["digest"].as_str().context("no digest")?;
    for entry in fs::read_dir(layout.join("blobs/sha256"))? {
        let bytes = fs::read(entry?.path())?;
        if Digest::of(&bytes).to_string() == digest {
            contents.insert(format!("/v2/team/app/manifests/{tag}"), bytes.clone());
        }
        put(contents, "", &bytes);
    }
    Ok(())
}

#[tokio::test]
async fn every_kind_of_entry_is_as_umoci_unpacks_it() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let home = tempfile::tempdir()?;
    tool(home.path(), "umoci", &["init", "--layout", "oci"])?;
    every_kind(home.path())?;
    tool(home.path(), "umoci", &["raw", "unpack", "--image", "oci:kinds", "reference"])?;
    let mut expected = expected::tree(&home.path().join("reference"))?;

    let mut contents = Contents::new();
    publish_layout(&mut contents, &home.path().join("oci"), "kinds")?;
    let server = Server::start(contents).await?;
    let agent = Agent::new(&server, ImageSettings::default()).await?;
    let image = agent.start().await?.import(TEAM, &server.reference("kinds"), None).await?;
    assert_eq!(image.skipped, 0, "{:?}", image.first_skipped);
    let content = agent.content(&image.image_id)?;
    let mut found = stored::tree(&content)?;

    for added in ADDED {
        let entry = found.remove(added).with_context(|| format!("no {added}"))?;
        assert_eq!((entry.mode & 0o170_000, entry.owner), (0o040_000, (0, 0)), "{added}");
    }
    // The top is always that of root, and has the time of everything that has none.
    assert_eq!(found.remove("").map(|top| (top.mode, top.owner)), Some((0o040_755, (0, 0))));
    expected.remove("");
    // That it is compared at all.
    let at = |path: &str| found.get(path).with_context(|| format!("no {path}"));
    assert_eq!(at("bin/suid")?.mode, 0o104_755);
    assert_eq!(at("bin/capable")?.attributes.len(), 1);
    assert_eq!(at("srv/tool")?.names.len(), 2);
    assert_eq!(at("srv/disk")?.device, (259, 70_000));
    assert_eq!(at("srv/sparse")?.size, SPARSE);
    assert!(found.keys().any(|path| path.len() > 255) && !found.contains_key("srv/opaque/deep"));
    let differences = differences(&expected, &found);
    assert!(differences.is_empty(), "what umoci unpacks, and what is imported:\n{}", differences.join("\n"));
    let blocks = stored::blocks(&content, "/srv/sparse")?;
    assert!(blocks * 512 < 1 << 20, "the sparse file has {blocks} blocks");
    Ok(())
}
