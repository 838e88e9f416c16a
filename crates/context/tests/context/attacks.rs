// SPDX-License-Identifier: Apache-2.0
//! Archives that try to leave their context, to take everything, or to be what they are not.

use ::tar::EntryType;
use proptest::{collection::vec, prelude::*};
use wrenn_context::{ContextError, Limits};
use wrenn_testkit::fuzz;

use crate::support::{Store, Thing, all, directory, ended, file, gzip, link, raw, taken, tar, zip};

/// Limits that a small archive reaches.
const SMALL: Limits = Limits { archive_bytes: 20_000, unpacked_bytes: 100_000, entries: 20, path_bytes: 200 };

fn refused(archive: &[u8]) -> ContextError {
    taken(archive).unwrap_err()
}

fn refused_by(limits: Limits, archive: &[u8]) -> ContextError {
    let store = Store::new(limits);
    let error = store.take(archive).unwrap_err();
    assert_eq!(store.files(), ["lock"], "{error}");
    error
}

/// Packs one entry of a kind.
fn one(kind: EntryType, name: &[u8], link: &[u8]) -> Vec<u8> {
    ended(&[raw(EntryType::Regular, b"d/file", b"", b""), raw(kind, name, link, b"")])
}

#[test]
fn names_that_lead_out_or_are_none_are_refused() {
    let name = |name: &[u8]| one(EntryType::Regular, name, b"");
    for (what, archive) in [
        ("dots", name(b"../victim")),
        ("dots within", name(b"d/../../victim")),
        ("dots at the end", name(b"d/..")),
        ("dots after a slash", name(b"/../victim")),
        ("not UTF-8", name(b"d/\xff")),
        ("no name", name(b".")),
        ("in a file", name(b"d/file/x")),
        ("a file where a directory is", name(b"d")),
        ("a directory where a file is", one(EntryType::Directory, b"d/file", b"")),
        ("dots in zip", zip(&[("../victim", file(""))])),
        ("dots within zip", zip(&[("a/../../victim", file(""))])),
        ("backslashes", zip(&[("..\\victim", file(""))])),
        ("in a link", tar(&[("d", link("e")), ("d/x", file(""))], 0)),
        ("in a link of zip", zip(&[("d", link("e")), ("d/x", file(""))])),
        ("a link where a directory is", tar(&[("d", directory()), ("d", link("e"))], 0)),
    ] {
        let error = refused(&archive);
        assert!(matches!(error, ContextError::Path { .. }), "{what}: {error}");
    }
    let error = refused(&name(b"d/\xff"));
    assert!(error.to_string().starts_with("\"d/\u{fffd}\": its name is not UTF-8"), "{error}");
}

#[test]
fn links_that_lead_out_are_refused() {
    for (kind, target) in [
        (EntryType::Symlink, &b"/etc/passwd"[..]),
        (EntryType::Symlink, b"../../victim"),
        (EntryType::Symlink, b"x/../../../victim"),
        (EntryType::Symlink, b""),
        (EntryType::Symlink, b"\xff"),
        (EntryType::Link, b"../d/file"),
        (EntryType::Link, b"victim"),
        (EntryType::Link, b"d"),
        (EntryType::Link, b"d/link"),
        (EntryType::Link, b""),
        (EntryType::Link, b"\xff"),
    ] {
        let error = refused(&one(kind, b"d/link", target));
        assert!(matches!(error, ContextError::Link { .. }), "{kind:?} to {target:?}: {error}");
    }
    // In its own place the link stays within, but not in another one.
    let moved = [raw(EntryType::Symlink, b"d/up", b"../x", b""), raw(EntryType::Link, b"up", b"d/up", b"")];
    assert!(matches!(refused(&ended(&moved)), ContextError::Link { .. }));
    assert!(matches!(refused(&zip(&[("a", link("../b"))])), ContextError::Link { .. }));
    let long = zip(&[("a", link(&"b".repeat(5000)))]);
    assert!(matches!(refused(&long), ContextError::Link { .. }));
}

#[test]
fn devices_and_pipes_are_refused_by_name() {
    for kind in [EntryType::Char, EntryType::Block, EntryType::Fifo] {
        let error = refused(&one(kind, b"d/odd", b""));
        assert!(matches!(&error, ContextError::Device { path, .. } if path == "\"d/odd\""), "{error}");
    }
    assert!(matches!(refused(&one(EntryType::new(b'M'), b"odd", b"")), ContextError::Path { .. }));
    for kind in [0o010_000, 0o020_000, 0o060_000, 0o140_000_u32] {
        let mut archive = zip(&[("odd", file("x"))]);
        // The mode is in the last entry of the central directory.
        let at = position(&archive, b"PK\x01\x02");
        archive[at + 40..at + 42].copy_from_slice(&((kind | 0o644) as u16).to_le_bytes());
        let error = refused(&archive);
        assert!(matches!(&error, ContextError::Device { path, .. } if path == "\"odd\""), "{error}");
    }
}

#[test]
fn bombs_are_refused_while_they_are_unpacked() {
    let zeros = |size: usize| Thing::File(0o644, vec![0; size]);
    let large = [("a", zeros(60_000)), ("d", directory()), ("b", zeros(60_000))];
    let mut header = ::tar::Header::new_gnu();
    header.set_path("sparse").unwrap();
    header.set_entry_type(EntryType::GNUSparse);
    header.as_gnu_mut().unwrap().sparse[0].set_offset(1 << 30);
    header.as_gnu_mut().unwrap().sparse[0].set_length(0);
    header.as_gnu_mut().unwrap().set_real_size(1 << 30);
    header.set_size(0);
    header.set_mode(0o644);
    header.set_cksum();
    let sparse = ended(&[header.as_bytes().to_vec()]);
    let links = ended(&[
        raw(EntryType::Regular, b"a", b"", &[7; 8_000]),
        (0..15).flat_map(|n| raw(EntryType::Link, format!("l{n}").as_bytes(), b"a", b"")).collect(),
    ]);
    for (what, archive) in [
        ("files", gzip(&tar(&large, 0))),
        ("zip", zip(&large)),
        ("zeros behind the end", gzip(&ended(&[]).repeat(300))),
        ("holes", sparse),
        ("hard links", links),
        ("an archive", vec![0; 20_001]),
    ] {
        let error = refused_by(SMALL, &archive);
        assert!(matches!(error, ContextError::TooLarge { .. }), "{what}: {error}");
    }
}

#[test]
fn entries_and_names_are_bounded() {
    let names: Vec<String> = (0..21).map(|number| format!("f{number}")).collect();
    let many: Vec<(&str, Thing)> = names.iter().map(|name| (name.as_str(), file(""))).collect();
    let same: Vec<(&str, Thing)> = (0..21).map(|_| ("f", file(""))).collect();
    let deep = "d/".repeat(20) + "f";
    for (what, archive) in [
        ("tar", gzip(&tar(&many, 0))),
        ("zip", zip(&many)),
        ("one name", gzip(&tar(&same, 0))),
        ("directories without an entry", tar(&[(deep.as_str(), file(""))], 0)),
    ] {
        let error = refused_by(SMALL, &archive);
        assert!(matches!(error, ContextError::TooMany { limit: 20, .. }), "{what}: {error}");
    }
    for name in ["p".repeat(256), ["long"; 41].join("/")] {
        let entries = [(name.as_str(), file(""))];
        for archive in [tar(&entries, 0), zip(&entries)] {
            let error = refused_by(SMALL, &archive);
            assert!(matches!(error, ContextError::Path { .. }), "{name}: {error}");
        }
    }
}

#[test]
fn what_is_no_archive_is_refused_with_what_it_is() {
    let packed = tar(&[("a", file("x"))], 0);
    for (what, upload) in [
        ("empty", vec![]),
        ("xz", b"\xfd7zXZ\0 and so on".to_vec()),
        ("zstd", b"\x28\xb5\x2f\xfd and so on".to_vec()),
        ("bzip2", b"BZh91AY and so on".to_vec()),
        ("text", b"FROM python\n".repeat(100)),
        ("twice compressed", gzip(&gzip(&packed))),
        ("a compressed zip", gzip(&zip(&[("a", file("x"))]))),
    ] {
        let error = refused(&upload);
        assert!(matches!(error, ContextError::NotAnArchive { .. }), "{what}: {error}");
        assert!(error.to_string().contains("send a tar, tar.gz or zip archive"), "{error}");
    }
    // What is in an archive may be an archive, and stays one.
    let nested = Thing::File(0o644, gzip(&packed));
    let context = taken(&tar(&[("nested.tar.gz", nested.clone())], 0)).unwrap();
    assert_eq!(all(&context)["nested.tar.gz"], nested);
}

#[test]
fn what_is_cut_or_changed_is_refused() {
    let entries = [("a", file(&"content ".repeat(100))), ("d", directory()), ("d/b", link("../a"))];
    let packed = tar(&entries, 0);
    let (compressed, zipped) = (gzip(&packed), zip(&entries));
    for (what, archive, ends) in [("tar", &packed, 1024), ("gz", &compressed, 0), ("zip", &zipped, 0)] {
        for length in (0..archive.len() - ends).step_by(61) {
            let error = refused(&archive[..length]);
            assert!(!matches!(error, ContextError::Io(_)), "{what} of {length} bytes: {error}");
        }
        let more = [&archive[..], b"and more"].concat();
        assert!(matches!(refused(&more), ContextError::Damaged { .. }), "{what}");
    }
    let mut wrong = zip(&[("a", file("content of a file that is stored"))]);
    let at = position(&wrong, b"PK\x01\x02");
    wrong[at + 16] ^= 1;
    assert!(matches!(refused(&wrong), ContextError::Damaged { .. }), "the checksum is wrong");
}

#[test]
fn zip_archives_that_are_not_for_every_tool_are_refused() {
    let sample = || zip(&[("a", file("content"))]);
    for (what, at, value) in [("encrypted", 8, 1), ("compressed otherwise", 10, 12_u8)] {
        let mut archive = sample();
        let entry = position(&archive, b"PK\x01\x02");
        archive[entry + at] = value;
        let error = refused(&archive);
        assert!(matches!(&error, ContextError::Path { path, .. } if path == "\"a\""), "{what}: {error}");
    }
    // What comes before the archive is not searched for where it begins.
    let moved = [&b"PK\x03\x04 not at all"[..], &sample()].concat();
    assert!(matches!(refused(&moved), ContextError::Damaged { .. }));
}

#[test]
fn errors_name_no_path_of_the_server() {
    let store = Store::new(Limits::default());
    let missing = store.contexts.upload_path();
    let error = store.contexts.add(&missing).unwrap_err();
    assert!(matches!(error, ContextError::Io(_)), "{error}");
    let home = store.home.path().to_str().unwrap();
    assert!(!error.to_string().contains(home), "{error}");
}

fn position(bytes: &[u8], part: &[u8]) -> usize {
    bytes.windows(part.len()).rposition(|window| window == part).unwrap()
}

fn examples() -> Vec<Vec<u8>> {
    let entries = [
        ("d", Thing::Directory(0o700)),
        ("d/file", file(&"content ".repeat(90))),
        ("link", link("d/file")),
        ("e/f/g", file("")),
    ];
    let packed = tar(&entries, 5);
    let odd = ended(&[
        raw(EntryType::GNULongName, b"././@LongLink", b"", b"a/name/that/is/long\0"),
        raw(EntryType::Regular, b"a/name", b"", b"1"),
        raw(EntryType::XHeader, b"x", b"", b"12 path=a/b\n"),
        raw(EntryType::Link, b"x", b"a/name/that/is/long", b""),
        raw(EntryType::GNUSparse, b"sparse", b"", b""),
    ]);
    vec![gzip(&packed), zip(&entries), packed, odd]
}

proptest! {
    #![proptest_config(fuzz::config())]

    /// Whatever bytes come, they are taken within the limits or refused, and nothing is left of what was refused.
    #[test]
    fn whatever_is_uploaded_is_taken_or_refused(archive in fuzz::damaged_bytes(examples())) {
        let store = Store::new(SMALL);
        match store.take(&archive) {
            Ok(context) => {
                let things = all(&context);
                let sizes = things.values().map(|thing| match thing {
                    Thing::File(_, content) => content.len(),
                    _ => 0,
                });
                prop_assert!(things.len() <= 20 && sizes.sum::<usize>() <= 100_000);
                for name in things.keys() {
                    let is_plain = !name.split('/').any(|part| matches!(part, "" | "." | ".."));
                    prop_assert!(is_plain && name.len() <= 200, "{}", name);
                }
                prop_assert_eq!(store.files().len(), 3);
            }
            Err(error) => {
                prop_assert!(!matches!(error, ContextError::Io(_)), "{}", error);
                prop_assert_eq!(store.files(), ["lock"]);
            }
        }
    }

    /// Names and targets of any kind: what is taken has no name that leads out.
    #[test]
    fn whatever_is_named_stays_within(entries in vec((0_usize..4, "[ab./\\\\é]{0,9}", "[ab./]{0,9}"), 1..8)) {
        let kinds = [EntryType::Regular, EntryType::Directory, EntryType::Symlink, EntryType::Link];
        let made = |(kind, name, link): &(usize, String, String)| raw(kinds[*kind], name.as_bytes(), link.as_bytes(), b"");
        let entries: Vec<_> = entries.iter().map(made).collect();
        if let Ok(context) = taken(&ended(&entries)) {
            for (name, thing) in all(&context) {
                prop_assert!(!name.starts_with('/') && !name.split('/').any(|part| part == ".."));
                if let Thing::Link(target) = thing {
                    prop_assert!(!target.starts_with('/'));
                    let mut depth = name.matches('/').count() as i64;
                    for part in target.split('/') {
                        depth += match part { "" | "." => 0, ".." => -1, _ => 1 };
                        prop_assert!(depth >= 0, "{} to {}", name, target);
                    }
                }
            }
        }
    }
}
