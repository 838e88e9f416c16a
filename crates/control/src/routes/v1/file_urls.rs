// SPDX-License-Identifier: Apache-2.0
//! Signed URLs of files: made for callers, and read from requests of those who have one.

use axum::{
    Json,
    extract::{Query, State},
};
use chrono::DateTime;
use http::{Method, Uri};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use wrenn_api::{FileOperation, SandboxId, SignFile, SignedFile};

use super::{
    error_responses::OfSign,
    extract::{Body, Target},
};
use crate::{
    caller::Caller,
    error::Fault,
    sandboxes::{FilePath, OfUser},
    services::Services,
    signatures::{Signature, Subject, invalid},
};

/// Route that signed URLs lead to.
const ROUTE: &str = "/v1/sandboxes/{id}/files/content";
/// What is escaped in a parameter.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Sign a URL with which a file is read or written without an API key.
///
/// The URL is bound to the method, the file, the user and the sandbox, and ends after the given time, with the sandbox, or when
/// the operator revokes the key that signs. It works for any number of requests until then.
#[utoipa::path(
    post, path = "/v1/sandboxes/{id}/files/sign", operation_id = "signFile", tag = "files",
    params(
        ("id" = String, Path, description = "Id of the sandbox, a beginning of its id that no other has, or its name.", pattern = "^[0-9a-z]([0-9a-z-]{0,61}[0-9a-z])?$", example = "sb03halx8fdhw2fu3txwbd0kdw0"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    request_body = SignFile,
    responses((status = 200, description = "The URL.", body = SignedFile), OfSign)
)]
pub(super) async fn sign(
    State(services): State<Services>,
    target: Target,
    body: Body<SignFile>,
) -> Result<Json<SignedFile>, Fault> {
    let SignFile { path, operation, expires_in_sec, user } = body.value;
    let what = (FilePath::new(path)?, OfUser::new(user)?);
    // Nobody gives away more than they may do themselves.
    target.caller.require(match operation {
        FileOperation::Read => crate::caller::Permission::FileRead,
        FileOperation::Write => crate::caller::Permission::FileWrite,
    })?;
    let (subject, signature) =
        services.sandboxes().sign_file(&target.caller, target.id, what, operation, expires_in_sec).await?;
    let method = match operation {
        FileOperation::Read => Method::GET,
        FileOperation::Write => Method::PUT,
    };
    let expires_at = DateTime::from_timestamp(subject.expires, 0).unwrap_or_default();
    Ok(Json(SignedFile { method: method.to_string(), url: url(&subject, &signature), expires_at }))
}

fn url(subject: &Subject, signature: &Signature) -> String {
    let escaped = |text| utf8_percent_encode(text, ESCAPED);
    let user = match subject.user.as_str() {
        "" => String::new(),
        user => format!("&user={}", escaped(user)),
    };
    format!(
        "{}?path={}{user}&expires={}&key={}&signature={}",
        ROUTE.replace("{id}", &subject.sandbox.to_string()),
        escaped(&subject.path),
        subject.expires,
        signature.key,
        signature.digits
    )
}

/// Returns the caller of a request with a signed URL; `None` if its URL has no signature. `route` is the one that it has come
/// to.
pub(in crate::routes) async fn caller(
    services: &Services,
    method: &Method,
    uri: &Uri,
    route: &str,
) -> Result<Option<Caller>, Fault> {
    let signed = |query: &str| query.split('&').any(|part| part.starts_with("signature="));
    if !uri.query().is_some_and(signed) {
        return Ok(None);
    }
    let (subject, signature) = read(method, uri, route).ok_or_else(invalid)?;
    services.signatures().caller(&subject, &signature).await.map(Some)
}

/// Reads what a URL is signed for; `None` if it cannot be one that was signed here.
fn read(method: &Method, uri: &Uri, route: &str) -> Option<(Subject, Signature)> {
    let operation = match *method {
        Method::GET | Method::HEAD => FileOperation::Read,
        Method::PUT => FileOperation::Write,
        _ => return None,
    };
    let sandbox: SandboxId = (route == ROUTE).then(|| uri.path().split('/').nth(3))??.parse().ok()?;
    // The parser replaces invalid bytes.
    percent_decode_str(uri.query()?).decode_utf8().ok()?;
    let Query(parameters) = Query::<Vec<(String, String)>>::try_from_uri(uri).ok()?;
    let [mut path, mut user, mut expires, mut key, mut digits] = [const { None }; 5];
    for (name, value) in parameters {
        let place = match name.as_str() {
            "path" => &mut path,
            "user" => &mut user,
            "expires" => &mut expires,
            "key" => &mut key,
            "signature" => &mut digits,
            _ => return None,
        };
        if place.replace(value).is_some() {
            return None;
        }
    }
    let user = user.unwrap_or_default();
    let path = path?;
    if path.contains('\0') || user.contains('\0') {
        return None;
    }
    let subject = Subject { operation, sandbox, path, user, expires: expires?.parse().ok()? };
    Some((subject, Signature { key: key?.parse().ok()?, digits: digits? }))
}

#[cfg(test)]
mod tests {
    use proptest::{prop_assert_eq, proptest};

    use super::*;

    fn signed(path: &str, user: &str) -> (Subject, Signature) {
        let subject = Subject {
            operation: FileOperation::Write,
            sandbox: SandboxId::new(),
            path: path.into(),
            user: user.into(),
            expires: 1_900_000_000,
        };
        (subject, Signature { key: 3, digits: "0f".repeat(32) })
    }

    proptest! {
        #[test]
        fn what_is_in_a_url_is_read_from_it(path in "[^\\x00]{1,20}", user in "[^\\x00]{0,8}") {
            let (subject, signature) = signed(&path, &user);
            let uri: Uri = url(&subject, &signature).parse()?;
            prop_assert_eq!(read(&Method::PUT, &uri, ROUTE), Some((subject, signature)));
        }
    }

    #[test]
    fn what_was_not_signed_here_is_no_subject() {
        let (subject, signature) = signed("/a", "");
        let url = url(&subject, &signature);
        let read =
            |method: Method, url: String, route: &str| read(&method, &url.parse().expect("a URL"), route);
        assert!(read(Method::PUT, url.clone(), ROUTE).is_some());
        assert!(read(Method::DELETE, url.clone(), ROUTE).is_none());
        assert!(read(Method::PUT, url.clone(), "/v1/sandboxes/{id}/files/archive").is_none());
        for added in
            ["&mode=4755", "&owner=root", "&path=/b", "&signature=00", "&x", "&user=%ff", "&user=%00"]
        {
            assert!(read(Method::PUT, format!("{url}{added}"), ROUTE).is_none(), "{added}");
        }
    }
}
