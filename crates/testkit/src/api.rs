// SPDX-License-Identifier: Apache-2.0
//! HTTP client of the public API that returns status, headers and body without interpreting them.

use anyhow::{Context, Result};
use reqwest::{Method, multipart};
use serde_json::{Value, json};

/// Response to a request.
#[derive(Debug)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// Response headers.
    pub headers: reqwest::header::HeaderMap,
    /// Body, unchanged.
    pub bytes: Vec<u8>,
}

impl Reply {
    /// Returns the body as JSON, or null if it is not JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or(Value::Null)
    }

    /// Returns the error code of the error object, or an empty string.
    pub fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }

    /// Fails and prints the whole response unless the status is `status`.
    pub fn expect(self, status: u16) -> Result<Self> {
        anyhow::ensure!(
            self.status == status,
            "expected status {status}, got {}: {}",
            self.status,
            String::from_utf8_lossy(&self.bytes)
        );
        Ok(self)
    }

    /// Fails unless the response has this status and error code.
    pub fn expect_error(self, status: u16, code: &str) -> Result<Self> {
        let reply = self.expect(status)?;
        anyhow::ensure!(reply.code() == code, "expected code {code}, got {}", reply.json());
        let message = reply.json()["error"]["message"].as_str().unwrap_or_default().to_owned();
        anyhow::ensure!(message.len() > 10, "the message does not help: {message:?}");
        Ok(reply)
    }
}

/// Client of one control plane.
#[derive(Debug, Clone)]
pub struct Api {
    http: reqwest::Client,
    url: String,
    key: String,
}

impl Api {
    /// Creates a client for `url`. With an empty `key` it sends no API key.
    pub fn new(url: &str, key: &str) -> Self {
        Self { http: reqwest::Client::new(), url: url.to_owned(), key: key.to_owned() }
    }

    /// Returns a client of the same control plane with another key.
    #[must_use]
    pub fn with_key(&self, key: &str) -> Self {
        Self { key: key.to_owned(), ..self.clone() }
    }

    /// Base URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// API key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Builds a request with the API key.
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.url));
        if self.key.is_empty() { request } else { request.header("X-API-Key", &self.key) }
    }

    /// Sends a request.
    pub async fn send(&self, request: reqwest::RequestBuilder) -> Result<Reply> {
        let response = request.send().await.context("no answer from the control plane")?;
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        Ok(Reply { status, headers, bytes: response.bytes().await?.to_vec() })
    }

    /// Sends a GET request.
    pub async fn get(&self, path: &str) -> Result<Reply> {
        self.send(self.request(Method::GET, path)).await
    }

    /// Sends a DELETE request.
    pub async fn delete(&self, path: &str) -> Result<Reply> {
        self.send(self.request(Method::DELETE, path)).await
    }

    /// Sends a POST request with a JSON body.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Reply> {
        self.send(self.request(Method::POST, path).json(body)).await
    }

    /// Creates a sandbox and returns its id.
    pub async fn create(&self, body: &Value) -> Result<String> {
        let reply = self.post("/v1/sandboxes", body).await?.expect(201)?;
        let sandbox = reply.json();
        anyhow::ensure!(sandbox["status"] == "running", "not running: {sandbox}");
        Ok(sandbox["id"].as_str().context("no id")?.to_owned())
    }

    /// Runs a command in a sandbox.
    pub async fn exec(&self, id: &str, command: &[&str]) -> Result<Value> {
        let (cmd, args) = command.split_first().context("no command")?;
        let body = json!({ "cmd": cmd, "args": args });
        Ok(self.post(&format!("/v1/sandboxes/{id}/exec"), &body).await?.expect(200)?.json())
    }

    /// Writes a file.
    pub async fn write(&self, id: &str, path: &str, content: Vec<u8>) -> Result<Reply> {
        let form = multipart::Form::new()
            .text("path", path.to_owned())
            .part("file", multipart::Part::bytes(content).file_name("upload"));
        self.send(self.request(Method::POST, &format!("/v1/sandboxes/{id}/files/write")).multipart(form))
            .await
    }

    /// Reads a file.
    pub async fn read(&self, id: &str, path: &str) -> Result<Reply> {
        self.post(&format!("/v1/sandboxes/{id}/files/read"), &json!({ "path": path })).await
    }

    /// Deletes a sandbox.
    pub async fn remove(&self, id: &str) -> Result<Reply> {
        self.delete(&format!("/v1/sandboxes/{id}")).await?.expect(204)
    }
}
