// SPDX-License-Identifier: Apache-2.0
//! Path of the URL at which users reach the server (`server.public_url`). A reverse proxy may serve it below a path, which it takes away
//! before it passes a request on: where browsers are sent to, and the paths of cookies, have it nevertheless.

use anyhow::{Context as _, ensure};
use reqwest::Url;

/// Returns the path of the URL, without a slash at its end: mostly nothing. Fails if it is no URL of a server.
pub(crate) fn path(public_url: Option<&str>) -> anyhow::Result<String> {
    let Some(text) = public_url else { return Ok(String::new()) };
    let told = || {
        format!(
            "server.public_url is {text:?}: give a URL such as https://wrenn.example.com or https://example.com/wrenn"
        )
    };
    let url = Url::parse(text).with_context(told)?;
    let is_of_server =
        matches!(url.scheme(), "http" | "https") && url.query().is_none() && url.fragment().is_none();
    let path = url.path().trim_end_matches('/');
    // It is a part of `Set-Cookie`, and what begins with two slashes is another server.
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~%".contains(&byte);
    ensure!(is_of_server && path.bytes().all(is_plain) && !path.contains("//"), "{}", told());
    Ok(path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_may_be_below_a_path() {
        for (url, expected) in [
            ("https://wrenn.example.com", ""),
            ("http://127.0.0.1:9725/", ""),
            ("https://example.com/wrenn", "/wrenn"),
            ("https://example.com:8443/a/wrenn-1/", "/a/wrenn-1"),
        ] {
            assert_eq!(path(Some(url)).expect("a URL"), expected, "{url}");
        }
        assert_eq!(path(None).expect("no URL"), "");
    }

    #[test]
    fn what_is_no_url_of_a_server_is_refused() {
        for url in [
            "",
            "wrenn",
            "wrenn.example.com:443",
            "ftp://example.com",
            "https://example.com/?a=b",
            "https://example.com/#a",
            "https://example.com//other.example",
            "https://example.com/a;Domain=example.com",
        ] {
            let refusal = path(Some(url)).expect_err(url).to_string();
            assert!(refusal.contains("server.public_url"), "{url}: {refusal}");
        }
    }
}
