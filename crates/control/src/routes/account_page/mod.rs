// SPDX-License-Identifier: Apache-2.0
//! The pages that one-time links lead to. Their token is behind the `#`, which browsers do not send: the script of the page does.

use axum::{Router, routing::get};
use http::{HeaderName, HeaderValue, header};

use crate::services::Services;

const HTML: &str = include_str!("page.html");
const SCRIPT: &str = include_str!("page.js");
const STYLE: &str = include_str!("page.css");

/// What a page may do: load its script and style from this server, and call it.
const HEADERS: [(HeaderName, &str); 4] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'",
    ),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-cache"),
];

/// Routes of the pages.
pub(super) fn routes() -> Router<Services> {
    let served =
        |kind: &'static str, text: &'static str| get(async move || ([(header::CONTENT_TYPE, kind)], text));
    let page = || served("text/html; charset=utf-8", HTML);
    Router::new()
        .route("/account/activate", page())
        .route("/account/sign-in", page())
        .route("/account/reset-password", page())
        .route("/account/invitation", page())
        .route("/account/page.js", served("text/javascript; charset=utf-8", SCRIPT))
        .route("/account/page.css", served("text/css; charset=utf-8", STYLE))
        .layer(axum::middleware::map_response(async |mut response: axum::response::Response| {
            for (name, value) in HEADERS {
                response.headers_mut().insert(name, HeaderValue::from_static(value));
            }
            response
        }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::links::LinkKind;

    #[test]
    fn every_link_has_a_page() {
        for kind in [LinkKind::Activation, LinkKind::SignIn, LinkKind::PasswordReset, LinkKind::Invitation] {
            assert!(SCRIPT.contains(&format!("\"{}\": {{", kind.page())), "{kind:?}");
        }
    }

    #[test]
    fn the_policy_needs_nothing_inline() {
        assert!(!HTML.contains("style=") && !HTML.contains("onclick") && !HTML.contains("<style"));
        assert_eq!(HTML.matches("<script").count(), HTML.matches("<script src=").count());
    }

    #[test]
    fn all_that_a_page_asks_for_is_relative() {
        for absolute in ["src=\"/", "href=\"/", "path: \"/", "fetch(\"/", "://"] {
            assert!(!HTML.contains(absolute) && !SCRIPT.contains(absolute), "{absolute}");
        }
    }
}
