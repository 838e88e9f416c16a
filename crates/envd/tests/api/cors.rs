// SPDX-License-Identifier: Apache-2.0
//! Calls of web pages: preflights, and headers that let a page read the answer.

use serde_json::json;

use crate::client::Envd;

#[test]
fn a_page_may_call_and_needs_the_token_only_for_the_call_itself() {
    let envd = Envd::start();
    let settings = json!({"accessToken": "secret"}).to_string();
    let json = ("content-type", "application/json");
    assert_eq!(envd.http("POST", "/init", &[json], settings.as_bytes()).0, 204);
    let origin = ("origin", "https://page.example");
    for path in
        ["/files?path=/etc/passwd", "/process.Process/Start", "/filesystem.Filesystem/Stat", "/health", "/x"]
    {
        let asked = [
            origin,
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "authorization,x-access-token,x-metadata-a"),
        ];
        let preflight = envd.answer("OPTIONS", path, &asked, b"");
        assert_eq!(preflight.status, 204, "{path}");
        assert_eq!(preflight.header("access-control-allow-origin"), Some("*"));
        let allowed = preflight.header("access-control-allow-headers").unwrap();
        assert_eq!(allowed, "authorization,x-access-token,x-metadata-a");
        let methods = preflight.header("access-control-allow-methods").unwrap();
        assert!(["GET", "POST", "DELETE"].iter().all(|method| methods.contains(method)), "{methods}");
        // The call itself: not without the token, which the page can read too.
        let answer = envd.answer("POST", path, &[origin, json], b"{}");
        assert_eq!(answer.header("access-control-allow-origin"), Some("*"), "{path}");
        assert!(answer.header("access-control-expose-headers").unwrap().contains("ETag"));
        if path != "/health" {
            assert_eq!(answer.status, 401, "{path}");
        }
    }
    // What is no preflight needs the token.
    assert_eq!(envd.http("OPTIONS", "/envs", &[origin], b"").0, 401);
    let with_token =
        envd.answer("GET", "/files?path=/etc/passwd", &[origin, ("x-access-token", "secret")], b"");
    assert_eq!((with_token.status, with_token.header("access-control-allow-origin")), (200, Some("*")));
}
