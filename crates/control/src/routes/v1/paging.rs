// SPDX-License-Identifier: Apache-2.0
//! Parts of requests and responses that lists have in common: their limit and cursor, the header with the next cursor, and ids.

use std::{fmt::Display, str::FromStr};

use axum::{
    Json,
    extract::{Path, rejection::PathRejection},
};
use http::{HeaderMap, HeaderName};
use wrenn_api::IdError;
use wrenn_rpc::Foreign;

use super::templates::number;
use crate::error::Fault;

const NEXT_CURSOR: HeaderName = HeaderName::from_static("x-next-cursor");
/// Number of entries of a page if the client does not say it, and the maximum.
const LIMIT: u32 = 50;
const LIMIT_MAX: u32 = 100;

/// Parses the parameter `limit`.
pub(super) fn limit(value: Option<&str>) -> Result<u32, Fault> {
    value.map_or(Ok(LIMIT), |text| number("limit", text, LIMIT_MAX))
}

/// Parses a parameter that is an id, such as `cursor`.
pub(super) fn id<T: FromStr<Err = IdError>>(name: &str, value: Option<&str>) -> Result<Option<T>, Fault> {
    let parse = |text: &str| {
        let wrong = |error| Fault::invalid(format!("{name} is {}: {error}", Foreign(text)));
        text.parse::<T>().map_err(wrong)
    };
    value.map(parse).transpose()
}

/// Parses the only id in a path, of this kind of thing.
pub(super) fn id_in_path<T: FromStr<Err = IdError>>(
    what: &str,
    path: Result<Path<String>, PathRejection>,
) -> Result<T, Fault> {
    let Path(text) = path.map_err(|_| Fault::invalid(format!("the {what} in the path is not text")))?;
    part(what, &text)
}

/// Parses the second id in a path, of this kind of thing; the first one was checked before.
pub(super) fn second_in_path<T: FromStr<Err = IdError>>(
    what: &str,
    path: Result<Path<(String, String)>, PathRejection>,
) -> Result<T, Fault> {
    let Path((_, text)) = path.map_err(|_| Fault::invalid(format!("the {what} in the path is not text")))?;
    part(what, &text)
}

fn part<T: FromStr<Err = IdError>>(what: &str, text: &str) -> Result<T, Fault> {
    text.parse().map_err(|error| Fault::invalid(format!("the {what} in the path: {error}")))
}

/// Renders a page, with the cursor of the next one if there is one.
pub(super) fn page<T>(entries: Vec<T>, next: Option<impl Display>) -> (HeaderMap, Json<Vec<T>>) {
    let mut headers = HeaderMap::new();
    if let Some(Ok(next)) = next.map(|next| next.to_string().parse()) {
        headers.insert(NEXT_CURSOR, next);
    }
    (headers, Json(entries))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use wrenn_api::{TeamId, UserId};

    use super::*;

    #[test]
    fn parameters_are_checked_by_name() {
        assert_eq!(limit(None).ok(), Some(50));
        assert_eq!(limit(Some("100")).ok(), Some(100));
        assert!(limit(Some("101")).is_err_and(|fault| fault.message.starts_with("limit is \"101\"")));
        let team = TeamId::new();
        assert_eq!(id::<TeamId>("cursor", Some(&team.to_string())).ok(), Some(Some(team)));
        assert_eq!(id::<TeamId>("cursor", None).ok(), Some(None));
        let wrong = id::<UserId>("cursor", Some(&team.to_string())).expect_err("a team is no user");
        assert!(wrong.message.starts_with("cursor is \"team"), "{}", wrong.message);
    }

    #[test]
    fn the_next_cursor_is_in_a_header() {
        let (headers, Json(entries)) = page(vec![1], Some("us0"));
        assert_eq!(
            (headers.get("x-next-cursor").map(HeaderValue::as_bytes), entries),
            (Some(&b"us0"[..]), vec![1])
        );
        assert!(page(vec![1], None::<String>).0.is_empty());
    }
}
