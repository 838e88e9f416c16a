// SPDX-License-Identifier: Apache-2.0
//! What the name of an entry says: where it is, or that something of lower layers is hidden.

/// Prefix of the names that hide something, and of those that mean something to AUFS only.
const WHITEOUT: &[u8] = b".wh.";
const AUFS: &[u8] = b".wh..wh.";
/// Name that hides everything that lower layers have in a directory.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What a name says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Named {
    /// It is the top directory.
    Top,
    /// It is an entry of this layer.
    Entry(Place),
    /// What lower layers have there is hidden.
    Whiteout(Place),
    /// Everything that lower layers have in this directory is hidden.
    Opaque(Vec<u8>),
    /// It means nothing.
    Nothing,
}

/// Path of a directory from the top, which is empty, and a name in it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) directory: Vec<u8>,
    pub(super) name: Vec<u8>,
}

/// Reads a name. One that begins with a slash begins at the top, as all others do.
pub(super) fn read(name: &[u8], depth: usize) -> Result<Named, &'static str> {
    if name.contains(&0) {
        return Err("its name has a NUL byte");
    }
    let parts = name.split(|byte| *byte == b'/');
    let mut names: Vec<&[u8]> = parts.filter(|name| !matches!(*name, b"" | b".")).collect();
    if names.contains(&&b".."[..]) {
        return Err("its name has `..`");
    }
    if names.len() > depth {
        return Err("it is in more directories within each other than the limit");
    }
    let Some(last) = names.pop() else { return Ok(Named::Top) };
    let directory = names.join(&b'/');
    if last == OPAQUE {
        return Ok(Named::Opaque(directory));
    }
    if last.starts_with(AUFS) || names.iter().any(|name| name.starts_with(AUFS)) {
        return Ok(Named::Nothing);
    }
    if names.iter().any(|name| name.starts_with(WHITEOUT)) {
        return Err("it is in a directory whose name hides another one");
    }
    match last.strip_prefix(WHITEOUT) {
        None => Ok(Named::Entry(Place { directory, name: last.to_vec() })),
        Some(b"" | b"." | b"..") => Err("its name hides no name that can be"),
        Some(hidden) => Ok(Named::Whiteout(Place { directory, name: hidden.to_vec() })),
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::any, prop_assert, proptest};

    use super::*;

    fn place(directory: &str, name: &str) -> Place {
        Place { directory: directory.into(), name: name.into() }
    }

    #[test]
    fn names_say_what_is_there_or_hidden() {
        for (name, expected) in [
            ("", Named::Top),
            ("./", Named::Top),
            ("a", Named::Entry(place("", "a"))),
            ("./a//b/", Named::Entry(place("a", "b"))),
            ("/etc/passwd", Named::Entry(place("etc", "passwd"))),
            ("..a/b..", Named::Entry(place("..a", "b.."))),
            ("a/.wh.b", Named::Whiteout(place("a", "b"))),
            (".wh..b", Named::Whiteout(place("", ".b"))),
            ("a/b/.wh..wh..opq", Named::Opaque(b"a/b".to_vec())),
            (".wh..wh..opq", Named::Opaque(Vec::new())),
            (".wh..wh.plnk/1.2", Named::Nothing),
            (".wh..wh.aufs", Named::Nothing),
        ] {
            assert_eq!(read(name.as_bytes(), 4), Ok(expected), "{name}");
        }
    }

    #[test]
    fn names_that_lead_out_or_hide_nothing_are_refused() {
        for name in [
            "..",
            "../a",
            "a/../b",
            "a/..",
            "/..",
            "a\0b",
            ".wh.",
            "a/.wh..",
            ".wh...",
            ".wh.a/b",
            "a/b/c/d/e",
        ] {
            assert!(read(name.as_bytes(), 4).is_err(), "{name}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_taken_stays_within(name in vec(proptest::sample::select(&b"a./wh\0"[..]), 0..16), other in vec(any::<u8>(), 0..16)) {
            for name in [name, other] {
                if let Ok(Named::Entry(place) | Named::Whiteout(place)) = read(&name, 8) {
                    prop_assert!(!place.name.contains(&b'/') && !matches!(&place.name[..], b"" | b"." | b".."));
                    prop_assert!(place.directory.split(|byte| *byte == b'/').all(|name| name != b".."));
                }
            }
        }
    }
}
