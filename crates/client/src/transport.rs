// SPDX-License-Identifier: Apache-2.0
//! HTTP connection pool: sends requests and checks responses.

use std::{error::Error as _, time::Duration};

use bytes::Bytes;
use futures::StreamExt as _;
use reqwest::{Method, RequestBuilder, Response, Url, header::HeaderValue};
use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// Time limit for opening a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Time limit of an ordinary request.
pub(crate) const REQUEST_LIMIT: Duration = Duration::from_secs(60);
/// Maximum size of the JSON response that describes one sandbox, in bytes.
pub(crate) const ANSWER_MAX: usize = 4 << 20;
/// Maximum size of an error response in bytes.
const ERROR_MAX: usize = 64 << 10;

/// Client of one control plane. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    credential: Credential,
    /// Whether its templates and builds are those of the platform.
    is_of_platform: bool,
}

/// By what the client shows who it is. Header values that are sensitive do not appear in debug output.
#[derive(Debug, Clone)]
enum Credential {
    /// Nothing: only what is open works.
    None,
    /// An API key.
    Key(HeaderValue),
    /// The token of a session of a user, as `Bearer …`.
    Token(HeaderValue),
}

impl Client {
    /// Creates a client for the API at `url`. Without an API key only what is open works, such as [`Client::health`] and
    /// [`Client::log_in`].
    pub fn new(url: &str, api_key: Option<&str>) -> Result<Self> {
        let refused = |cause: &str| Error::Url { url: url.to_owned(), cause: cause.to_owned() };
        let form = "write http://HOST:PORT or https://HOST:PORT";
        let base = Url::parse(url).map_err(|_| refused(form))?;
        if !matches!(base.scheme(), "http" | "https") || base.host_str().is_none() {
            return Err(refused(form));
        }
        // WebSocket upgrades exist in HTTP/1.1 only. A redirect would take the API key along to another address.
        let mut builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_LIMIT)
            .http1_only()
            .redirect(reqwest::redirect::Policy::none());
        if is_loopback(&base) {
            builder = builder.no_proxy();
        }
        let http = builder.build().map_err(|error| refused(&causes(&error)))?;
        let credential = match api_key {
            Some(key) => Credential::Key(secret(key, "API key")?),
            None => Credential::None,
        };
        Ok(Self { http, base, credential, is_of_platform: false })
    }

    /// Creates a client for the API at `url` that acts for a user who is signed in, by the token of the session.
    pub fn with_token(url: &str, token: &str) -> Result<Self> {
        let credential = Credential::Token(secret(&format!("Bearer {token}"), "token")?);
        Ok(Self { credential, ..Self::new(url, None)? })
    }

    /// Returns the same client whose builds, tags and deleted templates are those of the platform, as administrators have it.
    #[must_use]
    pub fn for_platform(&self) -> Self {
        Self { is_of_platform: true, ..self.clone() }
    }

    /// Whether its builds are those of the platform.
    pub const fn is_of_platform(&self) -> bool {
        self.is_of_platform
    }

    /// Whether it acts for a user who is signed in.
    pub const fn is_of_user(&self) -> bool {
        matches!(self.credential, Credential::Token(_))
    }

    /// URL of the API.
    pub fn url(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    /// Builds a request with the credential. The caller sets the time limit.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.url()));
        match &self.credential {
            Credential::Key(key) => request.header("X-API-Key", key.clone()),
            Credential::Token(bearer) => request.header("Authorization", bearer.clone()),
            Credential::None => request,
        }
    }

    /// Sends a request and turns an unsuccessful response into an error.
    pub(crate) async fn send(&self, request: RequestBuilder) -> Result<Response> {
        let response = self.send_unchecked(request).await?;
        let status = response.status();
        if status.is_success() || status.as_u16() == 101 {
            return Ok(response);
        }
        if let Some(place) = response.headers().get("location").filter(|_| status.is_redirection()) {
            let place = String::from_utf8_lossy(place.as_bytes());
            let message = format!("{} redirects to {place}: give that server as the URL", self.url());
            return Err(Error::Protocol(message));
        }
        let id = response.headers().get("x-request-id");
        let request_id = id.and_then(|value| value.to_str().ok()).map(str::to_owned);
        let body = read_all(response, ERROR_MAX).await?;
        Err(Error::from_answer(status.as_u16(), request_id, &body))
    }

    /// Sends a request and returns the response with any status.
    pub(crate) async fn send_unchecked(&self, request: RequestBuilder) -> Result<Response> {
        request.send().await.map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &reqwest::Error) -> Error {
        let (url, cause) = (self.url(), causes(error));
        if !error.is_connect() {
            let message = format!("the connection to the API at {url} broke before the answer came: {cause}");
            return Error::Lost(message);
        }
        let cause = match cause {
            cause if cause.contains("InvalidContentType") => {
                "the server does not speak TLS there: use http://".to_owned()
            }
            cause if is_loopback(&self.base) => format!("{cause}; is it running? Start it with `wrenn up`"),
            cause => format!("{cause}; is it running?"),
        };
        Error::Connect { url: url.to_owned(), cause }
    }

    /// Sends a request and decodes its JSON response of at most `max` bytes.
    pub(crate) async fn json<T: DeserializeOwned>(&self, request: RequestBuilder, max: usize) -> Result<T> {
        decode(&read_all(self.send(request).await?, max).await?)
    }
}

/// Makes a header's value of a secret, which debug output does not show.
fn secret(text: &str, what: &str) -> Result<HeaderValue> {
    let unusable = |_| Error::Protocol(format!("the {what} has characters that no {what} has"));
    let mut value = HeaderValue::from_str(text).map_err(unusable)?;
    value.set_sensitive(true);
    Ok(value)
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Returns the innermost cause of an error, which reqwest's own text does not show.
pub(crate) fn causes(error: &reqwest::Error) -> String {
    let mut text = if error.is_timeout() { "no answer in time".to_owned() } else { error.to_string() };
    let mut source = error.source();
    while let Some(cause) = source {
        text = cause.to_string();
        source = cause.source();
    }
    if error.is_timeout() && !text.contains("time") { format!("no answer in time: {text}") } else { text }
}

/// Decodes JSON.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes)
        .map_err(|error| Error::Protocol(format!("not the documented JSON: {error}")))
}

/// Reads a response body of at most `max` bytes.
pub(crate) async fn read_all(response: Response, max: usize) -> Result<Bytes> {
    let mut body = Vec::new();
    let mut chunks = response.bytes_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk =
            chunk.map_err(|error| Error::Lost(format!("the API's answer broke off: {}", causes(&error))))?;
        if body.len() + chunk.len() > max {
            return Err(Error::Protocol(format!("the answer is longer than {max} bytes")));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_url_is_refused_with_the_right_form() {
        for url in ["localhost:9725", "localhost", "nonsense", "ftp://x", ""] {
            let Err(error) = Client::new(url, None) else { panic!("{url} was taken") };
            let text = error.to_string();
            assert!(text.contains("http://HOST:PORT") && !text.contains("wrenn up"), "{text}");
        }
    }

    #[test]
    fn debug_output_has_no_secret() {
        let clients = [
            Client::new("http://127.0.0.1:1", Some("hunter2")),
            Client::with_token("http://127.0.0.1:1", "hunter2"),
        ];
        for client in clients {
            let text = format!("{:?}", client.expect("a client"));
            assert!(!text.contains("hunter2"), "{text}");
        }
        let Err(error) = Client::with_token("http://127.0.0.1:1", "hunter2\n") else {
            panic!("a line break was taken")
        };
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }

    #[tokio::test]
    async fn nobody_listening_says_what_to_do() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").map(|socket| socket.local_addr());
        let Ok(Ok(address)) = free else { panic!("no loopback") };
        let client =
            Client::new(&format!("http://{address}/"), Some("key")).map_err(|error| error.to_string());
        let Ok(client) = client else { panic!("{client:?}") };
        let Err(error) = client.health().await else { panic!("something answered") };
        assert!(error.to_string().contains("wrenn up"), "{error}");
    }
}
