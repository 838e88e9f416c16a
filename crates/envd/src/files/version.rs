// SPDX-License-Identifier: Apache-2.0
//! Version of a file's content, by which a client asks only for what it does not have yet (RFC 9110, section 13).

use std::{
    fs::Metadata,
    os::unix::fs::MetadataExt as _,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::http::{HeaderMap, HeaderName, header};

/// Last second that an HTTP date can name (the end of the year 9999).
const LAST_SECOND: u64 = 253_402_300_799;

/// Version of a file.
pub(super) struct Version {
    tag: String,
    /// In seconds since 1970; `None` if HTTP cannot name the time.
    modified: Option<u64>,
}

impl Version {
    /// Reads the version from the file's metadata.
    pub(super) fn of(meta: &Metadata) -> Self {
        Self::new(meta.mtime(), meta.mtime_nsec(), meta.size(), meta.ino())
    }

    fn new(seconds: i64, nanos: i64, size: u64, inode: u64) -> Self {
        let tag = format!("\"{seconds:x}.{nanos:x}-{size:x}-{inode:x}\"");
        let modified = u64::try_from(seconds).ok().filter(|seconds| *seconds <= LAST_SECOND);
        Self { tag, modified }
    }

    /// Returns the entity tag; `coded` if the response is not the file byte for byte.
    pub(super) fn tag(&self, coded: bool) -> String {
        if coded { format!("W/{}", self.tag) } else { self.tag.clone() }
    }

    /// Returns the value of `Last-Modified`.
    pub(super) fn date(&self) -> Option<String> {
        self.modified.map(|seconds| httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds)))
    }

    /// Returns whether the client has this version already.
    pub(super) fn is_held(&self, headers: &HeaderMap) -> bool {
        let mut tags = headers.get_all(header::IF_NONE_MATCH).into_iter().peekable();
        if tags.peek().is_some() {
            let mut tags = tags.filter_map(|value| value.to_str().ok()).flat_map(|list| list.split(','));
            return tags
                .any(|tag| matches!(tag.trim(), "*") || self.is_tag(tag.trim().trim_start_matches("W/")));
        }
        match (self.modified, date(headers, &header::IF_MODIFIED_SINCE)) {
            (Some(modified), Some(since)) => modified <= since,
            _ => false,
        }
    }

    /// Returns whether a range may be sent: unless the client has a part of another version.
    pub(super) fn continues(&self, headers: &HeaderMap) -> bool {
        let Some(value) = headers.get(header::IF_RANGE) else { return true };
        value.to_str().is_ok_and(|tag| self.is_tag(tag.trim()))
            || self.modified.is_some() && date(headers, &header::IF_RANGE) == self.modified
    }

    fn is_tag(&self, tag: &str) -> bool {
        tag == self.tag
    }
}

/// Returns the time of a header in seconds since 1970.
fn date(headers: &HeaderMap, name: &HeaderName) -> Option<u64> {
    let time: SystemTime = httpdate::parse_http_date(headers.get(name)?.to_str().ok()?).ok()?;
    time.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(modified: Option<u64>) -> Version {
        Version { tag: "\"a\"".into(), modified }
    }

    fn with(name: HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, value.parse().unwrap())])
    }

    #[test]
    fn a_client_holds_the_version_it_names() {
        let version = version(Some(784_111_777));
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        assert_eq!(version.date().as_deref(), Some(date));
        assert_eq!((version.tag(false).as_str(), version.tag(true).as_str()), ("\"a\"", "W/\"a\""));
        for held in ["\"a\"", "W/\"a\"", "\"x\", \"a\"", "*"] {
            assert!(version.is_held(&with(header::IF_NONE_MATCH, held)), "{held}");
        }
        assert!(!version.is_held(&with(header::IF_NONE_MATCH, "\"b\"")));
        assert!(version.is_held(&with(header::IF_MODIFIED_SINCE, date)));
        assert!(!version.is_held(&with(header::IF_MODIFIED_SINCE, "Sun, 06 Nov 1994 08:49:36 GMT")));
        assert!(!version.is_held(&with(header::IF_MODIFIED_SINCE, "yesterday")));
        // The tag counts if both are given.
        let mut both = with(header::IF_MODIFIED_SINCE, date);
        both.insert(header::IF_NONE_MATCH, "\"b\"".parse().unwrap());
        assert!(!version.is_held(&both));
        assert!(version.continues(&HeaderMap::new()));
        assert!(version.continues(&with(header::IF_RANGE, "\"a\"")));
        assert!(version.continues(&with(header::IF_RANGE, date)));
        assert!(!version.continues(&with(header::IF_RANGE, "W/\"a\"")));
        assert!(!version.continues(&with(header::IF_RANGE, "Sun, 06 Nov 1994 08:49:38 GMT")));
    }

    #[test]
    fn a_time_that_http_cannot_name_is_left_out() {
        let date = |seconds| Version::new(seconds, 0, 0, 0).date();
        assert_eq!((date(-1), date(LAST_SECOND as i64 + 1)), (None, None));
        assert_eq!(date(LAST_SECOND as i64).as_deref(), Some("Fri, 31 Dec 9999 23:59:59 GMT"));
        assert!(!version(None).continues(&with(header::IF_RANGE, "x")));
    }
}
