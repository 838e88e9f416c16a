// SPDX-License-Identifier: Apache-2.0
//! Cookies of the sign-ins by providers that a browser has begun. Each sign-in has one of its own, so that of two tabs none takes away what
//! the other one needs.

use http::{HeaderMap, HeaderValue, header};

use crate::{
    oauth::{Begun, LIFETIME},
    routes::{came_from::CameFrom, cookie},
    secrets::hash,
};

/// Beginning of their names.
const PREFIX: &str = "wrenn_oauth_";
/// Path to which they are sent, below that of the server.
const PATH: &str = "/auth/oauth";
/// Number of bytes of the hash of a state that tell a sign-in from others.
const ID: usize = 8;
/// Maximum number of sign-ins that a browser may have begun. Of more, the oldest cannot be ended.
const MOST: usize = 8;

/// Where cookies are set: the path of the server as browsers reach it, and where the request came from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) public_path: &'a str,
    pub(super) from: CameFrom,
}

/// Returns the browser's half of the sign-in with this state.
pub(super) fn of<'a>(headers: &'a HeaderMap, state: &str) -> Option<&'a str> {
    cookie::value(headers, &name(state))
}

/// Lets the browser that sent a request keep its half of a sign-in.
pub(super) fn keep(response: &mut HeaderMap, request: &HeaderMap, begun: &Begun, place: Place<'_>) {
    let before: Vec<&str> = cookie::names(request).filter(|name| is_one(name)).collect();
    // Browsers send the oldest first.
    let too_many = (before.len() + 1).saturating_sub(MOST);
    for old in before.iter().take(too_many) {
        append(response, header_of(old, "", 0, place));
    }
    append(response, header_of(&name(&begun.state), &begun.browser, LIFETIME.as_secs(), place));
}

/// Removes the browser's half of the sign-in with this state, which has ended.
pub(super) fn remove(response: &mut HeaderMap, state: &str, place: Place<'_>) {
    append(response, header_of(&name(state), "", 0, place));
}

fn append(response: &mut HeaderMap, cookie: Option<HeaderValue>) {
    if let Some(cookie) = cookie {
        response.append(header::SET_COOKIE, cookie);
    }
}

/// Name of the cookie of a sign-in. It tells nothing of the state, and whatever somebody gives as a state is a name.
fn name(state: &str) -> String {
    let digits: String = hash(state)[..ID].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{PREFIX}{digits}")
}

fn is_one(name: &str) -> bool {
    let id = name.strip_prefix(PREFIX);
    id.is_some_and(|id| id.len() == 2 * ID && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Lax: the browser comes from another site, by a link.
fn header_of(name: &str, value: &str, seconds: u64, place: Place<'_>) -> Option<HeaderValue> {
    let secure = if place.from.is_https { "; Secure" } else { "" };
    let path = place.public_path;
    let text =
        format!("{name}={value}; Path={path}{PATH}; Max-Age={seconds}; HttpOnly; SameSite=Lax{secure}");
    let mut value = HeaderValue::from_str(&text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HTTPS: Place<'static> =
        Place { public_path: "/wrenn", from: CameFrom { address: None, is_https: true } };

    fn begun(state: &str) -> Begun {
        Begun { url: String::new(), state: state.to_owned(), browser: "abc".to_owned() }
    }

    fn set(response: &HeaderMap) -> Vec<&str> {
        response.get_all(header::SET_COOKIE).iter().filter_map(|value| value.to_str().ok()).collect()
    }

    #[test]
    fn the_half_of_the_browser_is_for_the_way_back_only() {
        let mut response = HeaderMap::new();
        keep(&mut response, &HeaderMap::new(), &begun("state"), HTTPS);
        let name = name("state");
        let path = "Path=/wrenn/auth/oauth";
        assert_eq!(
            set(&response),
            [format!("{name}=abc; {path}; Max-Age=600; HttpOnly; SameSite=Lax; Secure")]
        );
        assert!(response[header::SET_COOKIE].is_sensitive());
        let mut response = HeaderMap::new();
        remove(&mut response, "state", HTTPS);
        assert_eq!(set(&response), [format!("{name}=; {path}; Max-Age=0; HttpOnly; SameSite=Lax; Secure")]);
    }

    #[test]
    fn each_sign_in_has_its_own() {
        let pair = format!("a=b; {}=one; {}=other", name("1"), name("2"));
        let mut request = HeaderMap::new();
        request.insert(header::COOKIE, HeaderValue::from_str(&pair).expect("a header"));
        assert_eq!((of(&request, "1"), of(&request, "2")), (Some("one"), Some("other")));
        assert_eq!(of(&request, "3"), None);
    }

    #[test]
    fn of_too_many_the_oldest_go() {
        let mut request = HeaderMap::new();
        let names: Vec<String> = (0..MOST).map(|state| name(&state.to_string())).collect();
        let pairs: Vec<String> = names.iter().map(|name| format!("{name}=x")).collect();
        let pairs = format!("wrenn_oauth_else=y; {}", pairs.join("; "));
        request.insert(header::COOKIE, HeaderValue::from_str(&pairs).expect("a header"));
        let mut response = HeaderMap::new();
        keep(&mut response, &request, &begun("new"), HTTPS);
        let set = set(&response);
        assert_eq!(set.len(), 2, "{set:?}");
        assert!(set[0].starts_with(&format!("{}=; ", names[0])), "{set:?}");
        assert!(set[1].starts_with(&format!("{}=abc; ", name("new"))), "{set:?}");
    }
}
