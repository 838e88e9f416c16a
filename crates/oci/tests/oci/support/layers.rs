// SPDX-License-Identifier: Apache-2.0
//! Layers, written by the `tar` crate.

use std::io::Write as _;

use flate2::{Compression, write::GzEncoder};
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use tar::{Builder, EntryType, Header};

/// An entry of a layer.
#[derive(Clone)]
pub(crate) struct Item<'a> {
    pub(crate) kind: EntryType,
    pub(crate) name: &'a [u8],
    pub(crate) link: &'a [u8],
    pub(crate) content: &'a [u8],
    pub(crate) mode: u32,
    pub(crate) owner: (u64, u64),
    pub(crate) mtime: u64,
    pub(crate) device: (u32, u32),
    pub(crate) attributes: Vec<(&'a str, &'a [u8])>,
}

pub(crate) fn item(kind: EntryType, name: &str) -> Item<'_> {
    Item {
        kind,
        name: name.as_bytes(),
        link: b"",
        content: b"",
        mode: 0o644,
        owner: (0, 0),
        mtime: 1_000_000_000,
        device: (0, 0),
        attributes: Vec::new(),
    }
}

pub(crate) fn file<'a>(name: &'a str, content: &'a str) -> Item<'a> {
    Item { content: content.as_bytes(), ..item(EntryType::Regular, name) }
}

pub(crate) fn dir(name: &str) -> Item<'_> {
    Item { mode: 0o755, ..item(EntryType::Directory, name) }
}

pub(crate) fn symlink<'a>(name: &'a str, link: &'a str) -> Item<'a> {
    Item { link: link.as_bytes(), ..item(EntryType::Symlink, name) }
}

pub(crate) fn hard_link<'a>(name: &'a str, link: &'a str) -> Item<'a> {
    Item { link: link.as_bytes(), ..item(EntryType::Link, name) }
}

/// Lists attributes of pax.
pub(crate) fn attributes<'a>(all: &[(&'a str, &'a [u8])]) -> Vec<(&'a str, &'a [u8])> {
    all.to_vec()
}

/// Packs a layer.
pub(crate) fn layer(items: &[Item<'_>]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for item in items {
        long(&mut builder, b'L', item.name);
        long(&mut builder, b'K', item.link);
        if !item.attributes.is_empty() {
            builder.append_pax_extensions(item.attributes.iter().copied()).expect("attributes");
        }
        let mut header = header(item.kind, item.content.len());
        put(&mut header.as_old_mut().name, item.name);
        put(&mut header.as_old_mut().linkname, item.link);
        header.set_mode(item.mode);
        header.set_uid(item.owner.0);
        header.set_gid(item.owner.1);
        header.set_mtime(item.mtime);
        header.set_device_major(item.device.0).expect("a number");
        header.set_device_minor(item.device.1).expect("a number");
        header.set_cksum();
        builder.append(&header, item.content).expect("an entry");
    }
    builder.into_inner().expect("an archive")
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("compressed");
    encoder.finish().expect("compressed")
}

pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    compress_to_vec(bytes, CompressionLevel::Fastest)
}

fn header(kind: EntryType, size: usize) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size as u64);
    header
}

/// Writes a name that does not fit into a header.
fn long(builder: &mut Builder<Vec<u8>>, kind: u8, text: &[u8]) {
    if text.len() > 100 {
        let mut header = header(EntryType::new(kind), text.len() + 1);
        put(&mut header.as_old_mut().name, b"././@LongLink");
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_cksum();
        builder.append(&header, [text, b"\0"].concat().as_slice()).expect("a name");
    }
}

fn put(place: &mut [u8], text: &[u8]) {
    let length = text.len().min(place.len());
    place[..length].copy_from_slice(&text[..length]);
}
