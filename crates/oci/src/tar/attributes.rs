// SPDX-License-Identifier: Apache-2.0
//! Attributes of an entry in the format of pax, which count more than its header.

/// An extended attribute: its name and its value.
pub(crate) type Extended = (Vec<u8>, Vec<u8>);

/// Prefix of the records with extended attributes.
const EXTENDED: &[u8] = b"SCHILY.xattr.";

/// Attributes that come before an entry. As large as the block that they are read from.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) name: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    /// Seconds since 1970 and nanoseconds.
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) extended: Vec<Extended>,
    /// Size of a sparse file in the format 1.0 of GNU.
    pub(super) sparse_size: Option<u64>,
    sparse_name: Option<Vec<u8>>,
    sparse_version: [Option<u64>; 2],
    /// Whether it is a sparse file in the format 0.0 or 0.1.
    sparse_old: bool,
}

/// Parses records: their length in digits, a space, a key, `=`, a value and a newline. A value may have any bytes, newlines
/// too, so that only the length says where it ends.
pub(super) fn parse(text: &[u8], into: &mut Attributes) -> Result<(), &'static str> {
    let mut rest = text;
    while rest.first().is_some_and(|byte| *byte != 0) {
        let (key, value, after) = record(rest).ok_or("the attributes of an entry are malformed")?;
        take(key, value, into).ok_or("an attribute of an entry is malformed")?;
        rest = after;
    }
    into.finish()
}

fn record(text: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = text.iter().position(|byte| *byte == b' ')?;
    let length = usize::try_from(number(&text[..space])?).ok()?;
    if length <= space + 1 || length > text.len() || text[length - 1] != b'\n' {
        return None;
    }
    let (record, after) = (&text[space + 1..length - 1], &text[length..]);
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((&record[..equals], &record[equals + 1..], after))
}

fn take(key: &[u8], value: &[u8], into: &mut Attributes) -> Option<()> {
    if let Some(name) = key.strip_prefix(EXTENDED) {
        into.extended.push((name.to_vec(), value.to_vec()));
        return Some(());
    }
    // An empty value takes back what was said before.
    let text = (!value.is_empty()).then(|| value.to_vec());
    let digits = || if value.is_empty() { Some(None) } else { number(value).map(Some) };
    match key {
        b"path" => into.name = text,
        b"linkpath" => into.link = text,
        b"size" => into.size = digits()?,
        b"uid" => into.uid = digits()?,
        b"gid" => into.gid = digits()?,
        b"mtime" => into.mtime = if value.is_empty() { None } else { Some(time(value)?) },
        b"GNU.sparse.major" => into.sparse_version[0] = digits()?,
        b"GNU.sparse.minor" => into.sparse_version[1] = digits()?,
        b"GNU.sparse.name" => into.sparse_name = text,
        b"GNU.sparse.realsize" => into.sparse_size = digits()?,
        b"GNU.sparse.map" | b"GNU.sparse.offset" | b"GNU.sparse.numblocks" => into.sparse_old = true,
        // Such as times of access, and names of users, which mean nothing here.
        _ => {}
    }
    Some(())
}

impl Attributes {
    /// Finds out whether the entry is a sparse file.
    fn finish(&mut self) -> Result<(), &'static str> {
        match self.sparse_version {
            [Some(1), Some(0)] if self.sparse_size.is_some() => {
                // The other name says that a tar which does not know sparse files unpacked it.
                self.name = self.sparse_name.take().or(self.name.take());
                Ok(())
            }
            [None, None] if !self.sparse_old => {
                self.sparse_size = None;
                Ok(())
            }
            _ => {
                Err("a sparse file is in a format that is not supported; pack it with `--sparse-version=1.0`")
            }
        }
    }
}

/// Parses digits.
pub(super) fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?.parse().ok()
}

/// Parses seconds with a fraction.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let (seconds, digits): (i64, String) = (whole.parse().ok()?, fraction.chars().take(9).collect());
    let nanoseconds: u32 = number(format!("{digits:0<9}").as_bytes())?.try_into().ok()?;
    if text.starts_with('-') && nanoseconds > 0 {
        Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds))
    } else {
        Some((seconds, nanoseconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &[u8]) -> Result<Attributes, &'static str> {
        let mut attributes = Attributes::default();
        parse(text, &mut attributes).map(|()| attributes)
    }

    #[test]
    fn records_end_where_their_length_says() {
        let text = b"12 path=a/b\n27 SCHILY.xattr.user.x=1\n2\n15 mtime=12.75\n10 path=x\n8 path=\n";
        let attributes = parsed(text).unwrap();
        assert_eq!(attributes.extended, [(b"user.x".to_vec(), b"1\n2".to_vec())]);
        assert_eq!((attributes.mtime, attributes.name), (Some((12, 750_000_000)), None));
        for text in [
            "9 path=a",
            "5 a=b\n",
            "7 path\n",
            "x path=a\n",
            "13 uid=minus\n",
            "999999999999999999999 a=b\n",
            "11 mtime=x\n",
            "11 size=+1\n",
        ] {
            assert!(parsed(text.as_bytes()).is_err(), "{text:?}");
        }
    }

    #[test]
    fn times_have_fractions_and_may_be_before_1970() {
        for (text, expected) in [
            ("0", Some((0, 0))),
            ("1.5", Some((1, 500_000_000))),
            ("1.0000000019", Some((1, 1))),
            ("-1", Some((-1, 0))),
            ("-0.25", Some((-1, 750_000_000))),
            ("1.x", None),
            ("1.-1", None),
            ("", None),
        ] {
            assert_eq!(time(text.as_bytes()), expected, "{text}");
        }
    }
}
