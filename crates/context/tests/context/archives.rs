// SPDX-License-Identifier: Apache-2.0
//! Archives as tools make them.

use std::io::{Cursor, Write as _};

use ::tar::{Builder, EntryType, Header};
use ::zip::{System, ZipWriter, write::SimpleFileOptions};
use wrenn_context::Context;

use crate::support::{Thing, all, copied, directory, ended, file, gzip, link, raw, taken, tar, tree, zip};

fn sample() -> Vec<(&'static str, Thing)> {
    vec![
        ("app", directory()),
        ("app/closed", Thing::Directory(0o700)),
        ("app/closed/ä b\n", file("")),
        ("app/run", Thing::File(0o755, b"#!/bin/sh\n".repeat(20_000))),
        ("app/newest", link("../app/run")),
        ("readme", Thing::File(0o600, b"read me".to_vec())),
        ("there", link("app")),
    ]
}

#[test]
fn all_formats_give_one_context() {
    let (sample, packed) = (sample(), tar(&sample(), 1_000_000_000));
    let (begin, end) = packed.split_at(packed.len() / 2);
    let archives = [
        packed.clone(),
        tar(&sample, 7),
        gzip(&packed),
        // As tools that compress in parallel do.
        [gzip(begin), gzip(end)].concat(),
        zip(&sample),
    ];
    let contexts = archives.map(|archive| taken(&archive).unwrap());
    for context in &contexts {
        assert_eq!(all(context), tree(&sample));
        assert_eq!(context.digest, contexts[0].digest);
    }
}

#[test]
fn archives_of_nothing_are_as_no_archive() {
    for nothing in [tar(&[], 0), tar(&[(".", directory())], 0), gzip(&tar(&[], 0)), zip(&[])] {
        let context = taken(&nothing).unwrap();
        assert_eq!(context.digest, Context::empty().digest);
        assert_eq!(all(&context), tree(&[]));
    }
}

#[test]
fn names_are_relative_to_the_context_and_directories_need_no_entry() {
    let entries = [
        raw(EntryType::Directory, b"./", b"", b""),
        raw(EntryType::Regular, b"./a//b", b"", b"1"),
        raw(EntryType::Regular, b"/etc/c", b"", b"2"),
        // A directory in the format of V7.
        raw(EntryType::Regular, b"d/", b"", b""),
    ];
    let expected = [("a", directory()), ("a/b", file("1")), ("etc", directory()), ("etc/c", file("2"))];
    let mut expected = tree(&expected);
    expected.insert("d".to_owned(), Thing::Directory(0o644));
    assert_eq!(all(&taken(&ended(&entries)).unwrap()), expected);
    let bare = zip(&[("/a/b", file("1")), ("./etc/c", file("2"))]);
    expected.remove("d");
    assert_eq!(all(&taken(&bare).unwrap()), expected);
}

#[test]
fn long_names_are_read_in_the_formats_of_gnu_and_pax() {
    let (folder, target) = ("n".repeat(200), "x/".repeat(120) + "y");
    let name = format!("{folder}/{}", "ä".repeat(100));
    let entries = [(name.as_str(), file("1")), ("l", link(&target))];
    let mut builder = Builder::new(Vec::new());
    builder.append_pax_extensions([("path", name.as_bytes()), ("mtime", b"3.25".as_slice())]).unwrap();
    let plain = |builder: &mut Builder<Vec<u8>>, kind: EntryType, size: u64, content: &[u8]| {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(size);
        builder.append_data(&mut header, "short", content).unwrap();
    };
    plain(&mut builder, EntryType::Regular, 1, b"1");
    builder.append_pax_extensions([("path", b"l".as_slice()), ("linkpath", target.as_bytes())]).unwrap();
    plain(&mut builder, EntryType::Symlink, 0, b"");
    let pax = builder.into_inner().unwrap();
    let mut expected = tree(&entries);
    expected.insert(folder, directory());
    let contexts = [tar(&entries, 0), pax, zip(&entries)].map(|archive| taken(&archive).unwrap());
    for context in &contexts {
        assert_eq!(all(context), expected);
        assert_eq!(context.digest, contexts[0].digest);
    }
}

#[test]
fn holes_of_sparse_files_are_zeros() {
    let mut header = Header::new_gnu();
    header.set_path("sparse").unwrap();
    header.set_entry_type(EntryType::GNUSparse);
    header.set_mode(0o644);
    header.set_size(6);
    {
        let gnu = header.as_gnu_mut().unwrap();
        for (at, (offset, length)) in [(70_000, 3), (200_000, 3), (300_000, 0)].into_iter().enumerate() {
            gnu.sparse[at].set_offset(offset);
            gnu.sparse[at].set_length(length);
        }
        gnu.set_real_size(300_000);
    }
    header.set_cksum();
    let mut entry = [&header.as_bytes()[..], b"onetwo"].concat();
    entry.resize(1024, 0);
    let mut content = vec![0; 300_000];
    content[70_000..70_003].copy_from_slice(b"one");
    content[200_000..200_003].copy_from_slice(b"two");
    let context = taken(&ended(&[entry])).unwrap();
    let expected = [("sparse", Thing::File(0o644, content))];
    assert_eq!(all(&context), tree(&expected));
    assert_eq!(taken(&zip(&expected)).unwrap().digest, context.digest);
}

#[test]
fn a_hard_link_is_a_file_of_its_own() {
    let entries = [
        raw(EntryType::Regular, b"d/first", b"", b"content"),
        raw(EntryType::Symlink, b"d/soft", b"first", b""),
        raw(EntryType::Link, b"second", b"./d/first", b""),
        raw(EntryType::Link, b"d/third", b"second", b""),
        raw(EntryType::Link, b"softer", b"d/soft", b""),
        // What is linked stays as it was then.
        raw(EntryType::Regular, b"d/first", b"", b"new"),
    ];
    let expected = [
        ("d", directory()),
        ("d/first", file("new")),
        ("d/soft", link("first")),
        ("d/third", file("content")),
        ("second", file("content")),
        ("softer", link("first")),
    ];
    assert_eq!(all(&taken(&ended(&entries)).unwrap()), tree(&expected));
}

#[test]
fn the_last_entry_of_a_name_counts() {
    let entries = [
        ("a", file("1")),
        ("d", Thing::Directory(0o700)),
        ("b", link("a")),
        ("./a", Thing::File(0o755, b"22".to_vec())),
        ("b", file("3")),
        ("d", Thing::Directory(0o750)),
    ];
    let expected =
        [("a", Thing::File(0o755, b"22".to_vec())), ("b", file("3")), ("d", Thing::Directory(0o750))];
    let context = taken(&tar(&entries, 0)).unwrap();
    assert_eq!(all(&context), tree(&expected));
    assert_eq!(taken(&tar(&expected, 0)).unwrap().digest, context.digest);
}

#[test]
fn only_permission_bits_are_kept() {
    let entries = [("d", Thing::Directory(0o3775)), ("run", Thing::File(0o6755, b"x".to_vec()))];
    let expected = [("d", Thing::Directory(0o775)), ("run", Thing::File(0o755, b"x".to_vec()))];
    let context = taken(&tar(&entries, 0)).unwrap();
    assert_eq!(all(&context), tree(&expected));
    assert_eq!(taken(&zip(&expected)).unwrap().digest, context.digest);
}

#[test]
fn times_are_those_of_the_archive() {
    let times = |archive: &[u8]| {
        let selection = taken(archive).unwrap().select(&copied(&["."], "/")).unwrap();
        let mut bytes = Vec::new();
        selection.write_tar(&mut bytes).unwrap();
        let mut archive = ::tar::Archive::new(&bytes[..]);
        let entries = archive.entries().unwrap();
        entries.map(|entry| entry.unwrap().header().mtime().unwrap()).collect::<Vec<_>>()
    };
    let (given, beginning) = (1_700_000_000, 315_532_800);
    // In the order of the names, of which `d` has no entry in the archive.
    let packed = tar(&[("d/a", file("")), ("b", link("d"))], given);
    assert_eq!(times(&packed), [given, beginning, given]);
    assert_eq!(times(&zip(&[("a", file(""))])), [beginning]);
}

#[test]
fn zip_archives_of_other_tools_are_read() {
    let expected = [("a", file("stream")), ("d", directory()), ("d/b", file(""))];
    // Sizes come after the content, and only the central directory has them before.
    let mut stream = ZipWriter::new_stream(Vec::new());
    stream.start_file("a", SimpleFileOptions::default()).unwrap();
    stream.write_all(b"stream").unwrap();
    stream.start_file("d/b", SimpleFileOptions::default()).unwrap();
    let stream = stream.finish().unwrap().into_inner();
    // A system without modes.
    let mut windows = ZipWriter::new(Cursor::new(Vec::new()));
    let dos = SimpleFileOptions::default().system(System::Dos).external_attributes(0x20);
    windows.start_file("a", dos).unwrap();
    windows.write_all(b"stream").unwrap();
    windows.add_directory("d", dos.external_attributes(0x10)).unwrap();
    windows.start_file("d/b", dos).unwrap();
    windows.set_comment("PK and a comment").unwrap();
    let windows = windows.finish().unwrap().into_inner();
    // Permission bits without what the entry is, and a mode although the system has none.
    let mut bits = ZipWriter::new(Cursor::new(Vec::new()));
    bits.start_file("d/b", SimpleFileOptions::default().external_attributes(0o644 << 16)).unwrap();
    bits.start_file("a", dos.external_attributes(0o100_644 << 16 | 0x8000)).unwrap();
    bits.write_all(b"stream").unwrap();
    bits.add_directory("d", dos.external_attributes(0o040_755 << 16 | 0x8010)).unwrap();
    let bits = bits.finish().unwrap().into_inner();
    for (what, archive) in [("stream", stream), ("windows", windows), ("bits", bits)] {
        assert_eq!(all(&taken(&archive).unwrap()), tree(&expected), "{what}");
    }
}
