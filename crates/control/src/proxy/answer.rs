// SPDX-License-Identifier: Apache-2.0
//! Answers of the proxy itself: JSON for programs, a page for browsers, readable for scripts of other origins.

use axum::{body::Body, response::Response};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde_json::json;
use wrenn_api::ErrorCode;

use super::address::Address;
use crate::error::Fault;

/// Header that says who answered.
pub(super) const HOP: HeaderName = HeaderName::from_static("x-wrenn-hop");
/// The proxy.
const PROXY: HeaderValue = HeaderValue::from_static("proxy");
/// A server in the sandbox.
pub(super) const SANDBOX: HeaderValue = HeaderValue::from_static("sandbox");
const ANY: HeaderValue = HeaderValue::from_static("*");

/// Status of a fault: what is wrong behind the proxy is 502, as clients of sandboxes expect it.
fn status(code: ErrorCode) -> StatusCode {
    let status = match code {
        ErrorCode::NotFound | ErrorCode::InvalidState | ErrorCode::HostUnavailable => 502,
        other => other.status(),
    };
    StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY)
}

/// Renders a fault of a request for `address`.
pub(super) fn fault(fault: &Fault, address: Option<Address>, asked: &HeaderMap) -> Response {
    let status = status(fault.code);
    let accepts = asked.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let (kind, text) = if accepts.is_some_and(|kinds| kinds.contains("text/html")) {
        ("text/html; charset=utf-8", page(status, &fault.message))
    } else {
        ("application/json", body(status, fault, address))
    };
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'"),
    );
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, ANY);
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("X-Wrenn-Hop"));
    headers.insert(HOP, PROXY);
    response.extensions_mut().insert(fault.clone());
    response
}

/// The error object of v1, with the fields that E2B's clients read beside it.
fn body(status: StatusCode, fault: &Fault, address: Option<Address>) -> String {
    let message = match fault.code {
        ErrorCode::NotFound => "The sandbox was not found",
        ErrorCode::PortNotOpen => "The sandbox is running but port is not open",
        _ => fault.message.as_str(),
    };
    json!({
        "error": {"code": fault.code, "message": fault.message},
        "sandboxId": address.map(|address| address.id),
        "port": address.map(|address| address.port),
        "message": message,
        "code": status.as_u16(),
    })
    .to_string()
}

fn page(status: StatusCode, message: &str) -> String {
    let escape = |text: &str| {
        text.chars().fold(String::new(), |mut safe, letter| {
            match letter {
                '<' => safe.push_str("&lt;"),
                '>' => safe.push_str("&gt;"),
                '&' => safe.push_str("&amp;"),
                other => safe.push(other),
            }
            safe
        })
    };
    let style =
        "body{font:16px/1.5 system-ui,sans-serif;max-width:36em;margin:15vh auto;padding:0 1em;color:#222}";
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{status}</title>\
         <style>{style}</style></head>\n<body><h1>{status}</h1><p>{}</p><p><small>Wrenn's proxy</small></p></body></html>\n",
        escape(message)
    )
}

/// Answers what is not there for anybody outside.
pub(super) fn hidden() -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NOT_FOUND;
    response.headers_mut().insert(HOP, PROXY);
    response
}

/// Answers a preflight of a browser, which has no token.
pub(super) fn preflight(asked: &HeaderMap) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    // `*` would not include Authorization.
    let allowed = asked.get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned().unwrap_or(ANY);
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, allowed);
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, ANY);
    let methods = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(methods));
    headers.insert(HOP, PROXY);
    response
}

/// Sends a browser to another address, with a cookie.
pub(super) fn redirect(to: &str, cookie: Option<HeaderValue>) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
    let headers = response.headers_mut();
    if let Ok(to) = HeaderValue::from_str(to) {
        headers.insert(header::LOCATION, to);
    }
    if let Some(cookie) = cookie {
        headers.insert(header::SET_COOKIE, cookie);
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(HOP, PROXY);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_get_json_and_browsers_a_page() {
        let told = Fault::new(ErrorCode::PortNotOpen, "nothing listens on <port>");
        let address = Address::parse("80-sb03halx8fdhw2fu3txwbd0kdw0");
        let program = fault(&told, address, &HeaderMap::new());
        assert_eq!((program.status(), &program.headers()[HOP]), (StatusCode::BAD_GATEWAY, &PROXY));
        let text = body(program.status(), &told, address);
        let body: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(
            (&body["error"]["code"], &body["port"], &body["code"]),
            (&json!("port_not_open"), &json!(80), &json!(502))
        );
        assert!(body["message"].as_str().is_some_and(|text| text.contains("port is not open")), "{body}");
        let mut asked = HeaderMap::new();
        asked.insert(header::ACCEPT, HeaderValue::from_static("text/html,*/*"));
        let browser = fault(&told, address, &asked);
        assert!(
            browser.headers()[header::CONTENT_TYPE].to_str().is_ok_and(|kind| kind.starts_with("text/html"))
        );
        let page = page(browser.status(), &told.message);
        assert!(page.contains("&lt;port&gt;") && !page.contains("<port>"), "{page}");
    }
}
