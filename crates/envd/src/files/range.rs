// SPDX-License-Identifier: Apache-2.0
//! The part of a file that a `Range` header asks for.

/// Start and length of a part, in bytes.
pub(super) type Part = (u64, u64);

/// Parses a single range; `Ok(None)` for what RFC 9110 says to ignore, an error if the file has no such part.
pub(super) fn parse(text: &str, size: u64) -> Result<Option<Part>, ()> {
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|r| r.split_once('-')) else {
        return Ok(None);
    };
    let (first, last) = (first.trim(), last.trim());
    if first.is_empty() {
        let Ok(suffix) = last.parse::<u64>() else { return Ok(None) };
        let length = suffix.min(size);
        return if length == 0 { Err(()) } else { Ok(Some((size - length, length))) };
    }
    let Ok(start) = first.parse::<u64>() else { return Ok(None) };
    let end = if last.is_empty() { u64::MAX } else { last.parse().unwrap_or(0) };
    if last.parse::<u64>().is_err() && !last.is_empty() || end < start {
        return Ok(None);
    }
    if start >= size { Err(()) } else { Ok(Some((start, end.min(size - 1) - start + 1))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_ranges() {
        assert_eq!(parse("bytes=0-9", 100), Ok(Some((0, 10))));
        assert_eq!(parse("bytes=90-", 100), Ok(Some((90, 10))));
        assert_eq!(parse("bytes=-5", 100), Ok(Some((95, 5))));
        assert_eq!(parse("bytes=50-500", 100), Ok(Some((50, 50))));
        assert_eq!(parse("bytes=100-", 100), Err(()));
        assert_eq!((parse("lines=1-2", 100), parse("bytes=5-2", 100)), (Ok(None), Ok(None)));
    }
}
