// SPDX-License-Identifier: Apache-2.0
//! Dispatch of requests before routing: rules that rewrite a request by its path.

use http::Request;

/// Marks a request by the older path.
#[derive(Debug, Clone, Copy)]
pub(super) struct OlderPath;

/// Rewrites the older path of sandboxes.
pub(super) fn dispatch<B>(mut request: Request<B>) -> Request<B> {
    const OLD: &str = "/v1/capsules";
    let uri = request.uri();
    let Some(rest) = uri.path().strip_prefix(OLD).filter(|rest| rest.is_empty() || rest.starts_with('/'))
    else {
        return request;
    };
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    if let Ok(new) = format!("/v1/sandboxes{rest}{query}").parse() {
        *request.uri_mut() = new;
        request.extensions_mut().insert(OlderPath);
    }
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capsules_are_sandboxes() {
        let path = |uri: &str| dispatch(Request::get(uri).body(()).expect("a request")).uri().to_string();
        assert_eq!(path("/v1/capsules"), "/v1/sandboxes");
        assert_eq!(path("/v1/capsules/x/exec?a=b"), "/v1/sandboxes/x/exec?a=b");
        assert_eq!(path("/v1/capsulesx"), "/v1/capsulesx");
    }
}
