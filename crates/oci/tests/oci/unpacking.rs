// SPDX-License-Identifier: Apache-2.0
//! Layers become what they say, with owners, modes, times, attributes, links and holes.

use std::{
    fs::{self, File},
    os::{
        fd::AsFd as _,
        unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    },
    path::{Path, PathBuf},
};

use rustix::fs::fgetxattr;
use tar::EntryType;
use wrenn_oci::{Digest, Layer, Progress, Rules, UnpackError, unpack};

use crate::support::{
    disk::{paths, tree, unpacked},
    layers::{Item, attributes, dir, file, gzip, hard_link, item, layer, symlink, zstd},
};

fn home() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

/// Unpacks layers onto a new directory, which must succeed.
fn made(layers: &[Vec<u8>]) -> tempfile::TempDir {
    let home = home();
    let unpacked = unpacked(home.path(), layers, &Rules::default()).expect("unpacked");
    assert_eq!((unpacked.layers, unpacked.skipped), (layers.len(), 0));
    home
}

fn attribute(path: &Path, name: &str) -> Option<Vec<u8>> {
    let (file, mut value) = (File::open(path).expect("a file"), [0; 256]);
    let length = fgetxattr(&file, name, &mut value[..]).ok()?;
    Some(value[..length].to_vec())
}

/// Capabilities as `setcap` writes them. There is a newline in them, which not all readers of tar get right.
const CAPABILITY: &[u8] = &[1, 0, 0, 2, 0, b'\n', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

#[test]
fn everything_of_an_entry_is_kept() {
    let odd = b"odd \xff\xfe \n name";
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(200));
    let far = "../".repeat(50);
    let layer = layer(&[
        Item { mode: 0o1777, owner: (7, 8), mtime: 1, ..dir("./") },
        Item { mode: 0o2750, owner: (2345, 2346), mtime: 2, ..dir("srv") },
        Item { mode: 0o4755, owner: (2_000_000_000, 5), ..file("srv/set-id", "x") },
        Item { name: odd, ..file("", "odd") },
        file(&long, "long"),
        Item { owner: (3, 4), ..symlink("far", &far) },
        symlink("nowhere", "/does/not/exist"),
        hard_link("srv/second", "srv/set-id"),
        Item { mode: 0o620, ..item(EntryType::Fifo, "pipe") },
        Item {
            attributes: attributes(&[
                ("SCHILY.xattr.user.note", b"a\nb=c"),
                ("SCHILY.xattr.security.capability", CAPABILITY),
                ("mtime", b"5.25"),
            ]),
            ..file("capable", "")
        },
        Item { attributes: attributes(&[("SCHILY.xattr.user.note", b"")]), ..dir("noted") },
    ]);
    let home = made(&[layer]);
    let all = tree(home.path());
    let at = |path: &str| &all[&PathBuf::from(path)];
    assert_eq!((at("srv").mode, at("srv").owner, at("srv").mtime), (0o42750, (2345, 2346), (2, 0)));
    let set_id = at("srv/set-id");
    assert_eq!((set_id.mode, set_id.owner, set_id.names), (0o104_755, (2_000_000_000, 5), 2));
    assert_eq!(at("srv/second"), set_id);
    assert_eq!(all[Path::new(std::ffi::OsStr::from_bytes(odd))].content, b"odd");
    assert_eq!(at(&long).content, b"long");
    assert_eq!((at("far").link.as_deref(), at("far").owner), (Some(Path::new(&far)), (3, 4)));
    assert_eq!((at("far").mtime, at("pipe").mode), ((1_000_000_000, 0), 0o10620));
    assert_eq!(at("nowhere").link.as_deref(), Some(Path::new("/does/not/exist")));
    assert_eq!(at("capable").mtime, (5, 250_000_000));
    let top = fs::metadata(home.path()).unwrap();
    assert_eq!((top.mode() & 0o7777, top.uid(), top.gid(), top.mtime()), (0o1777, 7, 8, 1));
    let capable = home.path().join("capable");
    assert_eq!(attribute(&capable, "security.capability").as_deref(), Some(CAPABILITY));
    assert_eq!(attribute(&capable, "user.note").as_deref(), Some(&b"a\nb=c"[..]));
    assert_eq!(attribute(&home.path().join("noted"), "user.note").as_deref(), Some(&b""[..]));
}

#[test]
fn upper_layers_replace_merge_and_hide() {
    let lower = layer(&[
        Item { mode: 0o700, mtime: 5, ..dir("merged") },
        file("merged/low", "low"),
        dir("file-later"),
        file("file-later/x/y", "gone"),
        file("dir-later", "gone"),
        file("hidden", "gone"),
        dir("opaque"),
        file("opaque/deep/low", "gone"),
        hard_link("kept", "hidden"),
        dir("usr/lib"),
        symlink("lib", "usr/lib"),
        symlink("absolute", "/usr/lib"),
        symlink("link-later", "usr"),
    ]);
    let upper = layer(&[
        Item { mode: 0o750, mtime: 6, ..dir("merged") },
        file("merged/high", "high"),
        file("file-later", "file"),
        dir("dir-later"),
        file("dir-later/x", "dir"),
        file(".wh.hidden", ""),
        file(".wh.never-there", ""),
        // After a sibling that is this layer's own, which stays.
        file("opaque/deep/own", "own"),
        file("opaque/.wh..wh..opq", ""),
        file("lib/one", "one"),
        file("absolute/two", "two"),
        dir("link-later"),
        hard_link("from-below", "merged/low"),
        file(".wh..wh.plnk/1.2", ""),
    ]);
    let home = made(&[lower, upper]);
    let expected = [
        "absolute",
        "dir-later",
        "dir-later/x",
        "file-later",
        "from-below",
        "kept",
        "lib",
        "link-later",
        "merged",
        "merged/high",
        "merged/low",
        "opaque",
        "opaque/deep",
        "opaque/deep/own",
        "usr",
        "usr/lib",
        "usr/lib/one",
        "usr/lib/two",
    ];
    assert_eq!(paths(home.path()), expected);
    let all = tree(home.path());
    let at = |path: &str| &all[&PathBuf::from(path)];
    assert_eq!((at("merged").mode, at("merged").mtime.0), (0o40750, 6), "filled after its entry");
    assert_eq!((&at("kept").content[..], at("kept").names), (&b"gone"[..], 1));
    assert_eq!((&at("from-below").content[..], at("from-below").names), (&b"low"[..], 2));
    assert!(at("link-later").link.is_none() && at("file-later").content == b"file");
}

#[test]
fn a_whiteout_hides_lower_layers_only() {
    let lower = layer(&[file("a/low", "gone"), file("b", "gone"), dir("c"), file("c/low", "gone")]);
    let upper = layer(&[
        dir("a"),
        file("a/own", "own"),
        file("b", "own"),
        file("c/deep/own", "own"),
        file(".wh.a", ""),
        file(".wh.b", ""),
        file(".wh.c", ""),
    ]);
    let home = made(&[lower, upper]);
    assert_eq!(paths(home.path()), ["a", "a/own", "b", "c", "c/deep", "c/deep/own"]);
    assert_eq!(fs::read(home.path().join("b")).unwrap(), b"own");
}

#[test]
fn what_a_link_leads_to_is_made_within() {
    let home = home();
    let root = home.path().join("root");
    fs::create_dir(&root).unwrap();
    let layer = layer(&[
        symlink("a", "/x/../y"),
        symlink("y", "../../z"),
        file("a/b/file", "1"),
        hard_link("c/d", "a/b/file"),
    ]);
    unpacked(&root, &[layer], &Rules::default()).unwrap();
    assert_eq!(paths(&root), ["a", "c", "c/d", "x", "y", "z", "z/b", "z/b/file"]);
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
}

#[test]
fn devices_are_made_if_they_may_be() {
    let device = |kind, name| Item { mode: 0o666, device: (1, 3), ..item(kind, name) };
    let label = item(EntryType::new(b'V'), "label");
    let layer = layer(&[device(EntryType::Char, "dev/null"), device(EntryType::Block, "dev/disk"), label]);
    let (with, without) = (home(), home());
    let rules = Rules { devices: true, ..Rules::default() };
    let done = unpacked(with.path(), std::slice::from_ref(&layer), &rules).unwrap();
    assert_eq!((done.entries, done.skipped, done.first_skipped[0].entry.as_str()), (3, 1, "label"));
    let all = tree(with.path());
    let kinds = ["dev/null", "dev/disk"].map(|path| &all[&PathBuf::from(path)]);
    assert_eq!(kinds.map(|seen| (seen.mode, seen.device)), [(0o20666, 0x103), (0o60666, 0x103)]);
    let done = unpacked(without.path(), &[layer], &Rules::default()).unwrap();
    assert_eq!((done.skipped, done.first_skipped[1].entry.as_str()), (3, "dev/disk"));
    assert!(paths(without.path()).is_empty());
}

#[test]
fn what_wrenn_packs_is_unpacked_with_its_holes_and_links() {
    let (from, to) = (home(), home());
    let top = from.path();
    fs::create_dir_all(top.join("deep/er")).unwrap();
    fs::write(top.join("deep/file"), vec![7; 300_000]).unwrap();
    fs::hard_link(top.join("deep/file"), top.join("again")).unwrap();
    fs::write(top.join("n".repeat(200)), "x").unwrap();
    let sparse = File::create(top.join("sparse")).unwrap();
    sparse.set_len(20 << 20).unwrap();
    for at in 0..30 {
        std::os::unix::fs::FileExt::write_all_at(&sparse, b"middle", at * (600 << 10)).unwrap();
    }
    drop(sparse);
    let mut packed = Vec::new();
    wrenn_archive::pack(top, &mut packed, true).unwrap();
    assert!(packed.len() < 5 << 20, "{} bytes with holes", packed.len());
    unpacked(to.path(), &[packed], &Rules::default()).unwrap();
    // The format of these archives has whole seconds.
    let seconds = |path: &Path| {
        let mut all = tree(path);
        all.values_mut().for_each(|seen| seen.mtime.1 = 0);
        all
    };
    assert!(seconds(top) == seconds(to.path()));
    assert!(fs::metadata(to.path().join("sparse")).unwrap().blocks() * 512 < 5 << 20, "its holes are filled");
}

#[test]
fn compressed_layers_are_verified_and_progress_is_told() {
    let home = home();
    let plain =
        [layer(&[file("a", &"a".repeat(17 << 20))]), layer(&[file("b", "b")]), layer(&[file("c", "c")])];
    let compressed = [gzip(&plain[0]), zstd(&plain[1]), plain[2].clone()];
    let layers = || {
        compressed.iter().zip(&plain).map(|(stored, plain)| Layer {
            digest: Digest::of(stored),
            diff_id: Digest::of(plain),
            input: stored.as_slice(),
        })
    };
    let root = File::open(home.path()).unwrap();
    let mut told: Vec<Progress> = Vec::new();
    unpack(root.as_fd(), layers(), &Rules::default(), &mut |progress| told.push(progress)).unwrap();
    assert_eq!(paths(home.path()), ["a", "b", "c"]);
    assert!(
        told.len() >= 5 && told.is_sorted_by_key(|progress| (progress.layer, progress.bytes)),
        "{told:?}"
    );
    assert_eq!((told[0].layer, told[told.len() - 1].layer), (1, 3));
    let other = layers().map(|layer| Layer { diff_id: Digest::of(b"other"), ..layer });
    let error = unpack(root.as_fd(), other, &Rules::default(), &mut |_| {}).unwrap_err();
    assert!(
        matches!(&error, UnpackError::Content { layer, .. } if *layer == Digest::of(&compressed[0])),
        "{error}"
    );
    // Also what follows the end of the archive.
    let more = [&plain[2][..], b"more"].concat();
    let layer = Layer { digest: Digest::of(&more), diff_id: Digest::of(&plain[2]), input: &more[..] };
    assert!(unpack(root.as_fd(), std::iter::once(layer), &Rules::default(), &mut |_| {}).is_err());
    let cut = &compressed[0][..compressed[0].len() / 2];
    let layer = Layer { digest: Digest::of(cut), diff_id: Digest::of(&plain[0]), input: cut };
    assert!(unpack(root.as_fd(), std::iter::once(layer), &Rules::default(), &mut |_| {}).is_err());
}
