// SPDX-License-Identifier: Apache-2.0
//! Requests to a registry: with a proof of who asks, with redirects that take no credentials along, and again if a failure may
//! pass.

use std::{
    error::Error as _,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use reqwest::{
    Client, RequestBuilder, Response, StatusCode, Url,
    header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RANGE, RETRY_AFTER, WWW_AUTHENTICATE},
    redirect::Policy,
};
use serde::Deserialize;
use wrenn_outbound::Guard;

use super::{
    RegistryOptions,
    challenge::{self, Challenge},
};
use crate::{manifest::MANIFEST_MAX, reference::Reference, source::SourceError, text::shown};

/// Types of manifests and indexes that are understood.
const ACCEPTED: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json";
/// Maximum number of redirects of a request.
const REDIRECTS: usize = 5;
/// Maximum size of the answer with a token in bytes.
const TOKEN_MAX: u64 = 64 << 10;
/// Time limit of answers that are small: tokens and manifests.
const SMALL_LIMIT: Duration = Duration::from_secs(60);

/// Connections to a registry for one repository.
pub(super) struct Connection {
    http: Client,
    /// URL of the repository in the API.
    base: Url,
    /// What a token must allow.
    scope: String,
    /// Name of the image in messages.
    image: String,
    options: RegistryOptions,
    /// Header that the registry asked for.
    proof: Mutex<Option<HeaderValue>>,
}

/// Why a request failed, and whether it may be tried again.
enum Failure {
    Final(SourceError),
    /// With the time that the server asks to wait.
    Passing(SourceError, Option<Duration>),
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl Connection {
    pub(super) fn new(
        reference: &Reference,
        image: &str,
        options: RegistryOptions,
    ) -> Result<Self, SourceError> {
        let (host, repository) = (reference.api_host(), &reference.repository);
        let unusable = |cause: String| SourceError::malformed(image, "its registry", cause);
        let parse = |scheme: &str| Url::parse(&format!("{scheme}://{host}/v2/{repository}/"));
        let base = parse("https").map_err(|error| unusable(error.to_string()))?;
        let (loopback, configured) = (is_loopback(&base), options.plain_http.contains(&reference.registry));
        let base = if loopback || configured { parse("http") } else { Ok(base) };
        let base = base.map_err(|error| unusable(error.to_string()))?;
        if options.public_only && !Guard::public().admits_url(&base) {
            return Err(unusable("its address is in no public network".to_owned()));
        }
        let mut builder = Client::builder()
            .user_agent(concat!("wrenn/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(options.connect_limit)
            .read_timeout(options.idle_limit)
            // Redirects are followed here: another host must not get the proof.
            .redirect(Policy::none());
        // A proxy resolves names itself, into any network, and its own name may lead into a private one.
        if loopback || options.public_only {
            builder = builder.no_proxy();
        }
        if options.public_only {
            builder = builder.dns_resolver(Guard::public());
        }
        let http = builder.build().map_err(|error| unusable(causes(&error)))?;
        let (scope, image) = (format!("repository:{repository}:pull"), image.to_owned());
        Ok(Self { http, base, scope, image, options, proof: Mutex::new(None) })
    }

    pub(super) fn options(&self) -> &RegistryOptions {
        &self.options
    }

    pub(super) fn image(&self) -> &str {
        &self.image
    }

    /// Reads a manifest or an index by tag or digest.
    pub(super) async fn manifest(&self, selector: &str) -> Result<Vec<u8>, SourceError> {
        let path = format!("manifests/{selector}");
        let mut attempt = 0;
        loop {
            let failure = match self.try_manifest(&path).await {
                Ok(bytes) => return Ok(bytes),
                Err(failure) => failure,
            };
            self.wait(&mut attempt, failure).await?;
        }
    }

    /// Opens a blob from an offset on. The answer may begin at its start nevertheless.
    pub(super) async fn blob(&self, digest: &str, from: u64) -> Result<Response, SourceError> {
        let path = format!("blobs/{digest}");
        let mut attempt = 0;
        loop {
            let failure = match self.answered(&path, |request| part(request, from)).await {
                Ok(response) => return Ok(response),
                Err(failure) => failure,
            };
            self.wait(&mut attempt, failure).await?;
        }
    }

    /// Waits for longer and longer before something is tried again; fails if it was tried often enough.
    pub(super) async fn pause(&self, attempt: &mut u32, error: SourceError) -> Result<(), SourceError> {
        self.wait(attempt, Failure::Passing(error, None)).await
    }

    /// Makes the error that the registry, or the store that it redirects to, did not deliver.
    pub(super) fn unreachable(&self, url: &Url, cause: String) -> SourceError {
        let host = url.host_str().unwrap_or_default().to_owned();
        SourceError::Unreachable { image: self.image.clone(), host, cause }
    }

    async fn wait(&self, attempt: &mut u32, failure: Failure) -> Result<(), SourceError> {
        *attempt += 1;
        let asked = match failure {
            Failure::Passing(_, asked) if *attempt < self.options.attempts => asked,
            Failure::Passing(error, _) | Failure::Final(error) => return Err(error),
        };
        let doubled = self.options.first_wait.saturating_mul(1 << (*attempt - 1).min(16));
        // Many hosts that lost the registry at once must not ask again at once.
        let spread = doubled.min(self.options.longest_wait).mul_f64(0.5 + rand::random::<f64>() / 2.0);
        tokio::time::sleep(spread.max(asked.unwrap_or_default()).min(self.options.longest_wait)).await;
        Ok(())
    }

    async fn try_manifest(&self, path: &str) -> Result<Vec<u8>, Failure> {
        let accepting = |request: RequestBuilder| request.header(ACCEPT, ACCEPTED).timeout(SMALL_LIMIT);
        let response = self.answered(path, accepting).await?;
        self.small(response, MANIFEST_MAX).await
    }

    /// Sends a request, and once more with a proof if the registry asks for one.
    async fn answered(
        &self,
        path: &str,
        more: impl Fn(RequestBuilder) -> RequestBuilder + Send + Sync,
    ) -> Result<Response, Failure> {
        let unusable = |_| Failure::Final(SourceError::malformed(&self.image, "its name", "it makes no URL"));
        let url = self.base.join(path).map_err(unusable)?;
        let response = self.followed(url.clone(), &more).await?;
        // A store that blobs are redirected to gets no proof.
        let asks =
            response.status() == StatusCode::UNAUTHORIZED && response.url().origin() == self.base.origin();
        if !asks {
            return self.judged(response);
        }
        let proof = self.prove(response.headers()).await?;
        *self.proof.lock().unwrap_or_else(PoisonError::into_inner) = Some(proof);
        let response = self.followed(url, &more).await?;
        self.judged(response)
    }

    /// Sends a request and follows redirects. The proof goes to the registry alone.
    async fn followed(
        &self,
        mut url: Url,
        more: &(impl Fn(RequestBuilder) -> RequestBuilder + Send + Sync),
    ) -> Result<Response, Failure> {
        for _ in 0..=REDIRECTS {
            let mut request = more(self.http.get(url.clone()));
            if url.origin() == self.base.origin() {
                let proof = self.proof.lock().unwrap_or_else(PoisonError::into_inner).clone();
                request =
                    proof.into_iter().fold(request, |request, proof| request.header(AUTHORIZATION, proof));
            }
            let response = request.send().await.map_err(|error| self.broken(&url, &error))?;
            let place = response.headers().get(LOCATION).cloned();
            let Some(place) = place.filter(|_| response.status().is_redirection()) else {
                return Ok(response);
            };
            let next = std::str::from_utf8(place.as_bytes()).ok().and_then(|place| url.join(place).ok());
            url = next.filter(|next| self.may_ask(next)).ok_or_else(|| {
                let cause =
                    "it redirects to a URL that is not asked: one without `https`, or with a private address"
                        .to_owned();
                Failure::Final(self.unreachable(&url, cause))
            })?;
        }
        Err(Failure::Final(self.unreachable(&url, "it redirects more than five times".to_owned())))
    }

    /// Returns whether a URL that the registry names may be asked: plain HTTP only if the registry is reached by it, and private
    /// addresses only if they need not be public.
    fn may_ask(&self, url: &Url) -> bool {
        let may = url.scheme() == "https" || (url.scheme() == "http" && self.base.scheme() == "http");
        may && (!self.options.public_only || Guard::public().admits_url(url))
    }

    fn judged(&self, response: Response) -> Result<Response, Failure> {
        let status = response.status();
        let image = self.image.as_str();
        let error = match status {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => return Ok(response),
            StatusCode::NOT_FOUND => SourceError::missing(image, "such manifest or blob in the registry"),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                SourceError::Denied { image: image.to_owned(), cause: format!("it answered {status}") }
            }
            StatusCode::TOO_MANY_REQUESTS => {
                let cause = "too many requests; an account may send more of them".to_owned();
                self.unreachable(response.url(), cause)
            }
            status => self.unreachable(response.url(), format!("it answered {status}")),
        };
        if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() {
            return Err(Failure::Passing(error, asked_wait(response.headers())));
        }
        Err(Failure::Final(error))
    }

    /// Makes the header that a registry asks for.
    async fn prove(&self, headers: &HeaderMap) -> Result<HeaderValue, Failure> {
        let denied = |cause: &str| {
            let (image, cause) = (self.image.clone(), cause.to_owned());
            Failure::Final(SourceError::Denied { image, cause })
        };
        let values = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let header = match challenge::find(values) {
            Some(Challenge::Bearer { realm, service }) => {
                format!("Bearer {}", self.token(&realm, service.as_deref()).await?)
            }
            Some(Challenge::Basic) if self.options.credentials.is_some() => {
                // The same header as that of a request with the credentials.
                let request = self.with_account(self.http.get(self.base.clone())).build();
                let request =
                    request.map_err(|_| denied("the account has characters that no header can have"))?;
                let header = request.headers().get(AUTHORIZATION).cloned();
                return header.ok_or_else(|| denied("it asks for an account"));
            }
            Some(Challenge::Basic) => return Err(denied("it asks for an account")),
            None => return Err(denied("it asks for a proof of a kind that is not supported")),
        };
        let mut header = HeaderValue::from_str(&header).map_err(|_| denied("its token is malformed"))?;
        header.set_sensitive(true);
        Ok(header)
    }

    /// Gets a token that allows to pull the image.
    async fn token(&self, realm: &str, service: Option<&str>) -> Result<String, Failure> {
        let image = self.image.as_str();
        let what = "the token of its registry";
        let unusable = |cause: &str| Failure::Final(SourceError::malformed(image, what, cause));
        let url = Url::parse(realm).ok().filter(|url| self.may_ask(url));
        let url = url.ok_or_else(|| unusable("the server for tokens has no `https` URL"))?;
        let request = self.http.get(url.clone()).query(&[("scope", self.scope.as_str())]);
        let request =
            service.into_iter().fold(request, |request, service| request.query(&[("service", service)]));
        let request = self.with_account(request).timeout(SMALL_LIMIT);
        let response = request.send().await.map_err(|error| self.broken(&url, &error))?;
        let bytes = self.small(self.judged(response)?, TOKEN_MAX).await?;
        let token: Token = serde_json::from_slice(&bytes).map_err(|error| unusable(&error.to_string()))?;
        token.token.or(token.access_token).ok_or_else(|| unusable("the answer has none"))
    }

    fn with_account(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.options.credentials {
            Some(account) => request.basic_auth(&account.username, Some(&account.password)),
            None => request,
        }
    }

    /// Reads an answer of at most this many bytes.
    async fn small(&self, mut response: Response, most: u64) -> Result<Vec<u8>, Failure> {
        let url = response.url().clone();
        let mut all = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(|error| self.broken(&url, &error))? {
            if (all.len() + piece.len()) as u64 > most {
                return Err(Failure::Final(SourceError::too_large(
                    &self.image,
                    "an answer of its registry",
                    most,
                )));
            }
            all.extend_from_slice(&piece);
        }
        Ok(all)
    }

    fn broken(&self, url: &Url, error: &reqwest::Error) -> Failure {
        Failure::Passing(self.unreachable(url, causes(error)), None)
    }
}

/// Asks for the part of a blob from an offset on.
fn part(request: RequestBuilder, from: u64) -> RequestBuilder {
    if from == 0 { request } else { request.header(RANGE, format!("bytes={from}-")) }
}

/// Returns the time that a server asks to wait, in seconds or as a date.
fn asked_wait(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?;
    let date = || httpdate::parse_http_date(text).ok()?.duration_since(SystemTime::now()).ok();
    text.parse().ok().map(Duration::from_secs).or_else(date)
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Returns the innermost cause of an error, which its own text does not show.
pub(super) fn causes(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".to_owned();
    }
    let (mut text, mut source) = (error.to_string(), error.source());
    while let Some(cause) = source {
        text = cause.to_string();
        source = cause.source();
    }
    shown(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, sync::Arc};

    use axum::{Router, body::Body, http::Uri};
    use tokio::net::TcpListener;

    use super::*;

    fn connection(reference: &str, plain: &[&str]) -> Connection {
        let plain_http = plain.iter().map(|host| (*host).to_owned()).collect();
        let options = RegistryOptions { plain_http, ..RegistryOptions::default() };
        Connection::new(&reference.parse().unwrap(), reference, options).unwrap()
    }

    #[test]
    fn plain_http_is_for_loopback_and_where_it_is_configured() {
        for (reference, url) in [
            ("debian", "https://registry-1.docker.io/v2/library/debian/"),
            ("registry.lan:5000/a/b", "http://registry.lan:5000/v2/a/b/"),
            ("registry.lan/a", "https://registry.lan/v2/a/"),
            ("localhost:5000/a", "http://localhost:5000/v2/a/"),
            ("127.0.0.1:5000/a", "http://127.0.0.1:5000/v2/a/"),
            ("[::1]:5000/a", "http://[::1]:5000/v2/a/"),
            ("127.0.0.1.example.com/a", "https://127.0.0.1.example.com/v2/a/"),
        ] {
            let connection = connection(reference, &["registry.lan:5000"]);
            assert_eq!(connection.base.as_str(), url);
            let url = |text: &str| Url::parse(text).unwrap();
            assert!(
                connection.may_ask(&url("https://store/x"))
                    && !connection.may_ask(&url("file:///etc/passwd"))
            );
            assert_eq!(connection.may_ask(&url("http://store/x")), connection.base.scheme() == "http");
        }
    }

    /// What a server was asked for.
    type Asked = Arc<Mutex<Vec<String>>>;

    /// Starts a server that answers everything with this status and this header.
    async fn serve(status: u16, name: &'static str, value: String) -> (SocketAddr, Asked) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, asked) = (listener.local_addr().unwrap(), Asked::default());
        let noted = asked.clone();
        let router = Router::new().fallback(move |uri: Uri| {
            noted.lock().unwrap().push(uri.path().to_owned());
            let response = axum::response::Response::builder().status(status).header(name, value.clone());
            let response = response.body(Body::empty()).unwrap();
            async move { response }
        });
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        (address, asked)
    }

    /// Connection to a registry whose name leads to a server of the test, as if that were in a public network.
    fn to(address: SocketAddr, public_only: bool) -> Connection {
        let http = Client::builder().no_proxy().redirect(Policy::none()).resolve("registry.example", address);
        let base = format!("http://registry.example:{}/v2/team/app/", address.port());
        Connection {
            http: http.build().unwrap(),
            base: Url::parse(&base).unwrap(),
            scope: "repository:team/app:pull".to_owned(),
            image: "app".to_owned(),
            options: RegistryOptions { public_only, attempts: 1, ..RegistryOptions::default() },
            proof: Mutex::new(None),
        }
    }

    #[tokio::test]
    async fn no_hop_leads_into_a_private_network() {
        let (private, reached) = serve(200, "x-secret", "1".to_owned()).await;
        let redirect = (307, "location", format!("http://{private}/secret"), "a private address");
        let realm = format!("Bearer realm=\"http://{private}/secret\"");
        let challenge = (401, "www-authenticate", realm, "the server for tokens has no `https` URL");
        for (status, name, value, told) in [redirect, challenge] {
            let (registry, asked) = serve(status, name, value).await;
            let error = to(registry, true).blob("sha256:0", 0).await.unwrap_err().to_string();
            assert!(error.contains(told), "{name}: {error}");
            assert_eq!((asked.lock().unwrap().len(), reached.lock().unwrap().len()), (1, 0), "{name}");
            // One that may be private is followed.
            drop(to(registry, false).blob("sha256:0", 0).await);
            assert_eq!(std::mem::take(&mut *reached.lock().unwrap()), ["/secret"], "{name}");
        }
    }

    #[tokio::test]
    async fn what_a_name_leads_to_is_looked_at_when_it_is_asked() {
        let (private, reached) = serve(200, "x-secret", "1".to_owned()).await;
        let options = || RegistryOptions { public_only: true, attempts: 1, ..RegistryOptions::default() };
        // A name that has led into a public network before may lead anywhere now.
        let reference = format!("localhost:{}/team/app", private.port());
        let by_name = Connection::new(&reference.parse().unwrap(), "app", options()).unwrap();
        let error = by_name.blob("sha256:0", 0).await.unwrap_err().to_string();
        assert!(error.contains("its name has no address in a public network"), "{error}");
        let reference = format!("{private}/team/app");
        let error = Connection::new(&reference.parse().unwrap(), "app", options()).err().unwrap().to_string();
        assert!(error.contains("in no public network"), "{error}");
        assert!(reached.lock().unwrap().is_empty());
    }

    #[test]
    fn waits_are_seconds_or_dates() {
        let wait = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().unwrap());
            asked_wait(&headers)
        };
        assert_eq!(wait("7"), Some(Duration::from_secs(7)));
        let soon = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(100));
        assert!(wait(&soon).is_some_and(|wait| wait > Duration::from_secs(50)));
        assert_eq!((wait("soon"), wait("Thu, 01 Jan 1970 00:00:00 GMT")), (None, None));
    }
}
