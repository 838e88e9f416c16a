// SPDX-License-Identifier: Apache-2.0
//! Extractors of v1: strict, with its error messages.

use std::time::{Duration, Instant};

use axum::{
    RequestPartsExt as _,
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Path, Query, Request, rejection::QueryRejection},
};
use bytes::BytesMut;
use http::{header, request::Parts};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use percent_encoding::percent_decode_str;
use serde::{Deserialize, de::DeserializeOwned};
use wrenn_api::{ErrorCode, SandboxId, SandboxRef};

use crate::{
    admission::{Held, UNCOUNTED},
    caller::Caller,
    error::Fault,
    idempotency::Idempotency,
    request_trace,
    sandboxes::Selector,
    services::Services,
    state::State,
};

/// Time limit for receiving a JSON body.
const ARRIVES: Duration = Duration::from_secs(60);
/// Time after which the caller of a body that is still coming is not taken for granted any more.
const SLOW: Duration = Duration::from_secs(1);

/// A JSON object of a known type.
pub(super) struct Body<T> {
    pub(super) value: T,
    /// Memory reserved for it.
    _held: Option<Held>,
}

/// A JSON object of a known type; its default if there is no body, or null.
pub(super) struct OptionalBody<T> {
    pub(super) value: T,
    /// Memory reserved for it.
    _held: Option<Held>,
}

impl<T: DeserializeOwned> FromRequest<Services> for Body<T> {
    type Rejection = Fault;

    async fn from_request(request: Request, services: &Services) -> Result<Self, Fault> {
        require_json(&request)?;
        let (raw, held) = read_in_time(request, services).await?;
        if raw.is_empty() {
            return Err(Fault::invalid("the body is empty: send a JSON object, at least {}"));
        }
        Ok(Self { value: parse(&raw)?, _held: held })
    }
}

impl<T: DeserializeOwned + Default> FromRequest<Services> for OptionalBody<T> {
    type Rejection = Fault;

    async fn from_request(request: Request, services: &Services) -> Result<Self, Fault> {
        let json = require_json(&request);
        let (raw, held) = read_in_time(request, services).await?;
        if raw.is_empty() {
            return Ok(Self { value: T::default(), _held: held });
        }
        json?;
        let value = if raw.trim_ascii() == b"null" { T::default() } else { parse(&raw)? };
        Ok(Self { value, _held: held })
    }
}

fn require_json(request: &Request) -> Result<(), Fault> {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let is_json = kind.is_some_and(|kind| {
        let essence = kind.split(';').next().unwrap_or_default().trim();
        essence.eq_ignore_ascii_case("application/json")
    });
    if is_json {
        return Ok(());
    }
    let message = "send the body as JSON, with the header Content-Type: application/json";
    Err(Fault::new(ErrorCode::UnsupportedMediaType, message))
}

/// Reads a body in time. If it took its time, its caller is looked up again: what a request does counts when it is whole.
async fn read_in_time(request: Request, services: &Services) -> Result<(Bytes, Option<Held>), Fault> {
    let (caller, begun) = (request.extensions().get::<Caller>().copied(), Instant::now());
    let late = |_| {
        let message = format!("the body did not come within {} s", ARRIVES.as_secs());
        Fault::new(ErrorCode::Timeout, message)
    };
    let read = tokio::time::timeout(ARRIVES, read(request, services.state())).await.map_err(late)??;
    if let Some(caller) = caller
        && begun.elapsed() > SLOW
        && !services.access().is_valid(&caller).await?
    {
        let message =
            "what you sent with the request to show who you are has lost its force while the body came";
        return Err(Fault::new(ErrorCode::Unauthorized, message));
    }
    Ok(read)
}

fn parse<T: DeserializeOwned>(raw: &[u8]) -> Result<T, Fault> {
    // serde would also accept an array for an object.
    if raw.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
        return Err(Fault::invalid("the body must be a JSON object"));
    }
    serde_json::from_slice(raw).map_err(|error| {
        let what = if error.is_data() { "as documented" } else { "JSON" };
        Fault::invalid(format!("the body is not {what}: {error}"))
    })
}

/// Reads the whole body, of at most `max` bytes, and reserves memory for it.
async fn read(request: Request, state: &State) -> Result<(Bytes, Option<Held>), Fault> {
    let max = state.limits.json_body;
    let team = request.extensions().get::<Caller>().map(|caller| caller.team().uuid()).unwrap_or_default();
    let mut body = request.into_body();
    let announced = body.size_hint().exact().and_then(|size| usize::try_from(size).ok());
    let too_large = || Fault::new(ErrorCode::TooLarge, format!("the body is larger than {max} bytes"));
    if announced.is_some_and(|size| size > max) {
        return Err(too_large());
    }
    let (mut bytes, mut held) = (BytesMut::new(), None);
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|_| Fault::invalid("the body broke off: the connection or the client failed"))?;
        let Ok(data) = frame.into_data() else { continue };
        let size = bytes.len() + data.len();
        if size > max {
            return Err(too_large());
        }
        if size > UNCOUNTED && held.is_none() {
            held = Some(state.admission.memory.try_take(team, announced.unwrap_or(max))?);
        }
        bytes.extend_from_slice(&data);
    }
    Ok((bytes.freeze(), held))
}

/// The client's idempotency key, if it sends one.
pub(super) struct OptionalKey(pub(super) Option<Idempotency>);

impl FromRequestParts<Services> for OptionalKey {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, _: &Services) -> Result<Self, Fault> {
        let given = parts.headers.get("idempotency-key");
        // One that is no text is as wrong as an empty one.
        let key = given.map(|key| Idempotency::new(key.to_str().unwrap_or_default())).transpose()?;
        Ok(Self(key))
    }
}

/// Parameters of the query, in their order.
pub(super) struct Parameters(pub(super) Vec<(String, String)>);

impl Parameters {
    /// Returns the values of the only parameter that is known.
    pub(super) fn only(self, known: &str) -> Result<Vec<String>, Fault> {
        let value = |(name, value): (String, String)| {
            if name == known {
                return Ok(value);
            }
            let name: String = name.chars().take(64).collect();
            Err(Fault::invalid(format!("the parameter {name:?} is not known: there is `{known}`")))
        };
        self.0.into_iter().map(value).collect()
    }

    /// Returns the values of these parameters. Fails if there is another one, or one of them twice.
    pub(super) fn known<const N: usize>(self, names: [&str; N]) -> Result<[Option<String>; N], Fault> {
        let mut values = [const { None }; N];
        for (name, value) in self.0 {
            let place = names.iter().position(|known| *known == name);
            let shown = || name.chars().take(64).collect::<String>();
            let Some(place) = place else {
                let all = names.join(", ");
                return Err(Fault::invalid(format!(
                    "the parameter {:?} is not known: there are {all}",
                    shown()
                )));
            };
            if values[place].replace(value).is_some() {
                return Err(Fault::invalid(format!(
                    "the parameter {} is there twice: send it once",
                    shown()
                )));
            }
        }
        Ok(values)
    }
}

/// Parses the value of a parameter that is true or false; false if it is not there.
pub(super) fn flag(name: &str, value: Option<&str>) -> Result<bool, Fault> {
    match value {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(_) => Err(Fault::invalid(format!("{name}: give true or false"))),
    }
}

impl FromRequestParts<Services> for Parameters {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, _: &Services) -> Result<Self, Fault> {
        let malformed =
            |_: QueryRejection| Fault::invalid("the query is malformed: send name=value pairs in UTF-8");
        let Query(parameters) = parts.extract().await.map_err(malformed)?;
        // The parser replaces invalid bytes, and what is meant would be something else.
        if percent_decode_str(parts.uri.query().unwrap_or_default()).decode_utf8().is_err() {
            return Err(Fault::invalid("the query is malformed: send name=value pairs in UTF-8"));
        }
        Ok(Self(parameters))
    }
}

/// The caller, and the sandbox in the path.
pub(super) struct Target {
    pub(super) caller: Caller,
    pub(super) id: SandboxId,
}

/// The parameter `{id}` of a path.
#[derive(Deserialize)]
struct Named {
    id: String,
}

impl FromRequestParts<Services> for Target {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, services: &Services) -> Result<Self, Fault> {
        let caller = Caller::from_request_parts(parts, services).await?;
        let Path(Named { id: text }): Path<Named> =
            parts.extract().await.map_err(|_| Fault::invalid("the sandbox in the path is not text"))?;
        let wrong = |error| Fault::invalid(format!("the sandbox in the path: {error}"));
        let reference: SandboxRef = text.parse().map_err(wrong)?;
        let id = services.sandboxes().resolve(&caller, &reference).await?;
        request_trace::sandbox(id);
        Ok(Self { caller, id })
    }
}

/// A process of a sandbox: the parameter `{selector}` of a path.
pub(super) struct OfProcess(pub(super) Selector);

impl FromRequestParts<Services> for OfProcess {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, _: &Services) -> Result<Self, Fault> {
        #[derive(Deserialize)]
        struct Named {
            selector: String,
        }
        let Path(Named { selector }): Path<Named> =
            parts.extract().await.map_err(|_| Fault::invalid("the process in the path is not text"))?;
        selector.parse().map(Self)
    }
}
