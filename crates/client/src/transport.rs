//! HTTP connection pool: sends requests and checks responses.

use std::{error::Error as _, time::Duration};

use bytes::Bytes;
use futures::StreamExt as _;
use reqwest::{Method, RequestBuilder, Response, Url};
use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// Time limit for opening a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Time limit of an ordinary request.
pub(crate) const REQUEST_LIMIT: Duration = Duration::from_secs(60);
/// Maximum size of a JSON response in bytes: the largest is an exec with two outputs of 16 MiB in base 64.
const ANSWER_MAX: usize = 64 << 20;
/// Maximum size of an error response in bytes.
const ERROR_MAX: usize = 64 << 10;

/// Client of one control plane. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    api_key: Option<String>,
}

impl Client {
    /// Creates a client for the API at `url`. Without an API key only [`Client::health`] works.
    pub fn new(url: &str, api_key: Option<&str>) -> Result<Self> {
        let connect = |cause: String| Error::Connect { url: url.to_owned(), cause };
        let base = Url::parse(url).map_err(|error| connect(format!("not a URL: {error}")))?;
        if !matches!(base.scheme(), "http" | "https") {
            return Err(connect("the URL must begin with http:// or https://".to_owned()));
        }
        // WebSocket upgrades exist in HTTP/1.1 only.
        let mut builder = reqwest::Client::builder().connect_timeout(CONNECT_LIMIT).http1_only();
        if is_loopback(&base) {
            builder = builder.no_proxy();
        }
        let http = builder.build().map_err(|error| connect(causes(&error)))?;
        Ok(Self { http, base, api_key: api_key.map(str::to_owned) })
    }

    /// URL of the API.
    pub fn url(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    /// Builds a request with the API key. The caller sets the time limit.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.url()));
        match &self.api_key {
            Some(key) => request.header("X-API-Key", key),
            None => request,
        }
    }

    /// Sends a request and turns an unsuccessful response into an error.
    pub(crate) async fn send(&self, request: RequestBuilder) -> Result<Response> {
        let response = self.send_unchecked(request).await?;
        let status = response.status();
        if status.is_success() || status.as_u16() == 101 {
            return Ok(response);
        }
        let id = response.headers().get("x-request-id");
        let request_id = id.and_then(|value| value.to_str().ok()).map(str::to_owned);
        let body = read_all(response, ERROR_MAX).await?;
        Err(Error::from_answer(status.as_u16(), request_id, &body))
    }

    /// Sends a request and returns the response with any status.
    pub(crate) async fn send_unchecked(&self, request: RequestBuilder) -> Result<Response> {
        let failed =
            |error: reqwest::Error| Error::Connect { url: self.url().to_owned(), cause: causes(&error) };
        request.send().await.map_err(failed)
    }

    /// Sends a request and decodes its JSON response.
    pub(crate) async fn json<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T> {
        decode(&read_all(self.send(request).await?, ANSWER_MAX).await?)
    }
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
            chunk.map_err(|error| Error::Protocol(format!("the answer broke off: {}", causes(&error))))?;
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
    fn a_url_without_scheme_is_refused() {
        assert!(matches!(Client::new("localhost:9725", None), Err(Error::Connect { .. })));
        assert!(matches!(Client::new("nonsense", None), Err(Error::Connect { .. })));
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
