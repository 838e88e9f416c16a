// SPDX-License-Identifier: Apache-2.0
//! Layers that try to leave their directory, or to take everything.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::fd::AsFd as _,
    path::Path,
};

use proptest::{collection::vec, prop_assert_eq, proptest, test_runner::Config};
use tar::EntryType;
use wrenn_oci::{Digest, Layer, Limits, Rules, UnpackError, unpack};

use crate::support::{
    disk::{paths, tree, unpacked},
    layers::{Item, attributes, dir, file, gzip, hard_link, item, layer, symlink},
};

/// Unpacks layers beside something that must not change; returns the error.
fn attacked(what: &str, layers: &[Vec<u8>]) -> Option<UnpackError> {
    let home = tempfile::tempdir().expect("a directory");
    let (outside, root) = (home.path().join("outside"), home.path().join("root"));
    for path in [&outside, &root] {
        fs::create_dir(path).expect("made");
    }
    fs::write(outside.join("victim"), "as it was").expect("written");
    let before = tree(&outside);
    let error = unpacked(&root, layers, &Rules::default()).err();
    assert_eq!(tree(&outside), before, "{what}");
    assert_eq!(fs::read_dir(home.path()).expect("a directory").count(), 2, "{what}");
    error
}

#[test]
fn what_leads_out_is_refused() {
    let nothing = |item: Item<'_>| vec![layer(&[item])];
    let of_host = attributes(&[("SCHILY.xattr.trusted.overlay.opaque", b"y")]);
    let large = attributes(&[("SCHILY.xattr.user.large", &[b'x'; 4000])]);
    for (what, layers) in [
        ("dots", nothing(file("../outside/victim", "bad"))),
        ("dots within", nothing(file("a/../../outside/victim", "bad"))),
        ("dots at the end", nothing(dir("a/.."))),
        ("a whiteout of the directory above", nothing(file("a/.wh...", ""))),
        ("a whiteout of everything", nothing(file(".wh..", ""))),
        ("a whiteout of nothing", nothing(file(".wh.", ""))),
        ("no name", nothing(file(".", ""))),
        ("a hard link out", nothing(hard_link("a", "../outside/victim"))),
        ("a hard link to nothing", nothing(hard_link("a", "outside/victim"))),
        ("a hard link to the top", nothing(hard_link("a", "."))),
        ("a hard link to a directory", vec![layer(&[dir("a"), hard_link("b", "a")])]),
        ("attributes that no ext4 takes", nothing(Item { attributes: large.clone(), ..file("a", "") })),
        ("a name that is a file", vec![layer(&[file("a/b", "")]), layer(&[file("a/b/c", "")])]),
        ("a circle", vec![layer(&[symlink("a", "b"), symlink("b", "a"), file("a/c", "")])]),
        ("an owner that is none", nothing(Item { owner: (u64::from(u32::MAX), 0), ..file("a", "") })),
        ("an attribute of the host", nothing(Item { attributes: of_host, ..dir("a") })),
    ] {
        let error = attacked(what, &layers);
        let upper = Digest::of(&layers[layers.len() - 1]);
        let refused = matches!(error, Some(UnpackError::Refused { layer, .. }) if layer == upper);
        assert!(refused, "{what}: {error:?}");
    }
}

#[test]
fn what_would_lead_out_stays_within() {
    for (what, items) in [
        ("absolute", vec![file("/outside/victim", "bad")]),
        ("through a link", vec![symlink("a", "../outside"), file("a/victim", "bad")]),
        ("through an absolute link", vec![symlink("a", "/"), file("a/outside/victim", "bad")]),
        (
            "through links of links",
            vec![symlink("a", "b/../../.."), dir("b"), symlink("c", "a/outside"), file("c/victim", "bad")],
        ),
        ("a directory through a link", vec![symlink("a", "../outside"), dir("a/victim")]),
        ("over a link", vec![symlink("a", "../outside/victim"), file("a", "bad")]),
        ("a directory over a link", vec![symlink("a", "../outside"), dir("a"), file("a/victim", "bad")]),
        (
            "a hard link to a link",
            vec![symlink("a", "../outside/victim"), hard_link("b", "a"), file("b", "bad")],
        ),
        (
            "whiteouts",
            vec![
                symlink("a", "../outside"),
                file("a/.wh.victim", ""),
                file("a/.wh..wh..opq", ""),
                file(".wh.a", ""),
            ],
        ),
    ] {
        // In one layer, and each entry in one of its own.
        let one = attacked(what, &[layer(&items)]);
        let each: Vec<_> = items.iter().map(|item| layer(std::slice::from_ref(item))).collect();
        assert!(one.is_none() && attacked(what, &each).is_none(), "{what}: {one:?}");
    }
}

#[test]
fn a_link_into_proc_leads_into_the_image() {
    let home = tempfile::tempdir().unwrap();
    let layer = layer(&[symlink("a", "/proc/self/root"), file("a/file", "x")]);
    unpacked(home.path(), &[layer], &Rules::default()).unwrap();
    assert_eq!(paths(home.path()), ["a", "proc", "proc/self", "proc/self/root", "proc/self/root/file"]);
}

/// Repeats bytes for ever.
struct Endless<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Read for Endless<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = buffer.len().min(self.bytes.len() - self.at);
        buffer[..length].copy_from_slice(&self.bytes[self.at..self.at + length]);
        self.at = (self.at + length) % self.bytes.len();
        Ok(length)
    }
}

fn limited(home: &Path, input: impl Read, limits: Limits) -> UnpackError {
    let (digest, root) = (Digest::of(b"layer"), File::open(home).expect("a directory"));
    let layer = Layer { digest, diff_id: digest, input };
    let rules = Rules { limits, ..Rules::default() };
    unpack(root.as_fd(), std::iter::once(layer), &rules, &mut |_| {}).expect_err("it is too much")
}

#[test]
fn what_goes_on_for_ever_is_stopped() {
    let home = tempfile::tempdir().unwrap();
    let entry = &layer(&[file("same", "")])[..512];
    let limits = Limits { entries: 20_000, ..Limits::default() };
    let error = limited(home.path(), Endless { bytes: entry, at: 0 }, limits);
    assert!(matches!(error, UnpackError::TooLarge { most: 20_000, .. }), "{error}");
    // A bomb: 16 MiB of zeros in a file, and behind the end of the archive.
    let large = "\0".repeat(16 << 20);
    let bomb = gzip(&layer(&[file("bomb", &large)]));
    assert!(bomb.len() < 200_000);
    for (input, name) in [(&bomb[..], "bomb"), (&gzip(large.as_bytes())[..], "zeros")] {
        let error = limited(home.path(), input, Limits { bytes: 1 << 20, ..Limits::default() });
        assert!(matches!(error, UnpackError::TooLarge { most: 0x10_0000, .. }), "{name}: {error}");
    }
    assert!(fs::metadata(home.path().join("bomb")).unwrap().len() < 2 << 20);
}

#[test]
fn each_limit_holds() {
    let home = tempfile::tempdir().unwrap();
    let long = "a".repeat(300);
    let deep = "a/".repeat(50);
    let default = Limits::default;
    for (what, items, limits) in [
        ("name", vec![file(&long, "")], Limits { name_bytes: 200, ..default() }),
        ("link", vec![symlink("a", &long)], Limits { name_bytes: 200, ..default() }),
        ("depth", vec![dir(&deep)], Limits { depth: 20, ..default() }),
        ("file", vec![file("a", "content")], Limits { file_bytes: 6, ..default() }),
        ("entries", vec![dir("a"), dir("b")], Limits { entries: 1, ..default() }),
        ("layers", vec![dir("a")], Limits { layers: 0, ..default() }),
        (
            "attributes",
            vec![Item {
                attributes: attributes(&[("SCHILY.xattr.user.x", long.as_bytes())]),
                ..file("a", "")
            }],
            Limits { attribute_bytes: 200, ..default() },
        ),
    ] {
        let bytes = layer(&items);
        let error = limited(home.path(), &bytes[..], limits);
        assert!(!matches!(error, UnpackError::Content { .. } | UnpackError::Files { .. }), "{what}: {error}");
    }
    // A sparse file that says to be larger than it may be.
    let attributes = attributes(&[
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"huge"),
        ("GNU.sparse.realsize", b"9000000000000000000"),
    ]);
    let map = format!("0\n{}", "\0".repeat(510));
    let bytes = layer(&[Item { attributes, ..file("huge", &map) }]);
    let error = limited(home.path(), &bytes[..], Limits::default());
    assert!(matches!(error, UnpackError::TooLarge { .. }), "{error}");
}

#[test]
fn directories_that_grow_through_links_are_bounded() {
    let home = tempfile::tempdir().unwrap();
    let hundred = "d/".repeat(100);
    let layers = [
        layer(&[dir(&hundred), symlink("one", &hundred)]),
        layer(&[dir(&format!("one/{hundred}")), symlink("two", &format!("one/{hundred}"))]),
        layer(&[dir(&format!("two/{hundred}")), symlink("three", &format!("two/{hundred}"))]),
        layer(&[dir(&format!("three/{hundred}")), file(".wh.d", "")]),
    ];
    let error = unpacked(home.path(), &layers, &Rules::default()).unwrap_err();
    assert!(matches!(error, UnpackError::Refused { .. }), "{error}");
}

proptest! {
    #![proptest_config(Config { failure_persistence: None, ..Config::with_cases(200) })]

    /// Whatever layers say, nothing beside the directory changes.
    #[test]
    fn whatever_is_unpacked_stays_within(
        entries in vec((0_usize..6, "(\\.wh\\.)?[ab./]{1,6}", "[ab./]{0,6}"), 1..10),
    ) {
        use EntryType::{Char, Directory, Fifo, Link, Regular, Symlink};
        let kinds = [Regular, Directory, Symlink, Link, Fifo, Char];
        let items: Vec<_> = entries
            .iter()
            .map(|(kind, name, link)| Item { link: link.as_bytes(), ..item(kinds[*kind], name) })
            .collect();
        let _ = attacked("random", &[layer(&items)]);
        let home = tempfile::tempdir()?;
        let root = home.path().join("a");
        fs::create_dir(&root)?;
        let each: Vec<_> = items.iter().map(|item| layer(std::slice::from_ref(item))).collect();
        let _ = unpacked(&root, &each, &Rules::default());
        prop_assert_eq!(fs::read_dir(home.path())?.count(), 1);
    }
}
