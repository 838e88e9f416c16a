// SPDX-License-Identifier: Apache-2.0
//! Calls for sandboxes, for commands that run to their end, and for the health check.

use std::time::Duration;

use reqwest::Method;
use wrenn_api::{
    CreateSandbox, CreateSnapshot, ExecRequest, ExecResponse, Health, ResumeSandbox, Sandbox, SandboxId,
    SandboxRef, SandboxStatus, Snapshot, UpdateSandbox,
};

use crate::{
    Client, Error, Result,
    transport::{ANSWER_MAX, REQUEST_LIMIT, decode, read_all},
};

/// Time limit of a create. Emulated guests take tens of seconds; the server's limit is 180 s.
const CREATE_LIMIT: Duration = Duration::from_secs(210);
/// Additional time of a create from an image of a registry, which a host may have to import: the largest limit of a server.
const IMPORT_LIMIT: Duration = Duration::from_secs(7200);
/// Time limit of a pause, which writes the memory of the sandbox to a disk; the server's limit is 300 s.
const PAUSE_LIMIT: Duration = Duration::from_secs(330);
/// Time limit of a health check.
const HEALTH_LIMIT: Duration = Duration::from_secs(10);
/// Time limit of a command in seconds that the API uses if the request has none.
const EXEC_DEFAULT_SECONDS: u32 = 30;
/// Maximum number of entries per page.
const PAGE: &str = "100";
/// Maximum size of a health response in bytes.
const HEALTH_MAX: usize = 64 << 10;
/// Maximum size of a list in bytes.
const LIST_MAX: usize = 64 << 20;
/// Maximum of `agent.exec_output`, the size of one output of a command, in bytes.
const OUTPUT_MAX: usize = 31 << 20;
/// Maximum length of a byte in JSON: `\u0000`.
const ESCAPE_MAX: usize = 6;
/// Maximum size of the response to an exec in bytes: two outputs with every byte escaped.
const EXEC_MAX: usize = 2 * OUTPUT_MAX * ESCAPE_MAX + ANSWER_MAX;

/// Which sandboxes a list has: those that pass all of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SandboxFilter {
    /// One of these statuses. Default: every one but `stopped`.
    pub statuses: Vec<SandboxStatus>,
    /// This name.
    pub name: Option<String>,
    /// Created from this template or snapshot.
    pub template: Option<String>,
    /// All these labels: `NAME=VALUE`, or `NAME` for any value.
    pub labels: Vec<String>,
}

impl SandboxFilter {
    fn query(&self) -> Vec<(&'static str, &str)> {
        let statuses = self.statuses.iter().map(|status| ("status", status.as_str()));
        let name = self.name.iter().map(|name| ("name", name.as_str()));
        let template = self.template.iter().map(|template| ("template", template.as_str()));
        let labels = self.labels.iter().map(|label| ("label", label.as_str()));
        statuses.chain(name).chain(template).chain(labels).collect()
    }
}

impl Client {
    /// Creates a sandbox and waits until it can run commands; from an image of a registry that may take long. A repeated request
    /// with the same `idempotency_key` returns the sandbox of the first one.
    pub async fn create(&self, request: &CreateSandbox, idempotency_key: Option<&str>) -> Result<Sandbox> {
        let limit = if request.image.is_some() { CREATE_LIMIT + IMPORT_LIMIT } else { CREATE_LIMIT };
        let mut call = self.request(Method::POST, "/v1/sandboxes").timeout(limit).json(request);
        if let Some(key) = idempotency_key {
            call = call.header("Idempotency-Key", key);
        }
        self.json(call, ANSWER_MAX).await
    }

    /// Lists one page of sandboxes, newest first; also returns the cursor of the next page.
    pub async fn list(
        &self,
        filter: &SandboxFilter,
        limit: u32,
        cursor: Option<&str>,
    ) -> Result<(Vec<Sandbox>, Option<String>)> {
        let limit = limit.to_string();
        let mut query = filter.query();
        query.push(("limit", limit.as_str()));
        self.page("/v1/sandboxes", &query, cursor).await
    }

    /// Lists all sandboxes that pass the filter, newest first.
    pub async fn list_all(&self, filter: &SandboxFilter) -> Result<Vec<Sandbox>> {
        let mut query = filter.query();
        query.push(("limit", PAGE));
        self.every("/v1/sandboxes", &query).await
    }

    /// Returns one sandbox, by its id, by the beginning of its id, or by its name.
    pub async fn get(&self, sandbox: impl Into<SandboxRef>) -> Result<Sandbox> {
        let call = self.request(Method::GET, &format!("/v1/sandboxes/{}", sandbox.into()));
        self.json(call.timeout(REQUEST_LIMIT), ANSWER_MAX).await
    }

    /// Deletes a sandbox and waits until its host has removed it.
    pub async fn delete(&self, id: SandboxId) -> Result<()> {
        let call = self.request(Method::DELETE, &format!("/v1/sandboxes/{id}")).timeout(REQUEST_LIMIT);
        self.send(call).await.map(drop)
    }

    /// Pauses a sandbox and waits until it is paused.
    pub async fn pause(&self, id: SandboxId) -> Result<Sandbox> {
        let call = self.request(Method::POST, &format!("/v1/sandboxes/{id}/pause"));
        self.json(call.timeout(PAUSE_LIMIT), ANSWER_MAX).await
    }

    /// Resumes a sandbox and waits until it can run commands.
    pub async fn resume(&self, id: SandboxId, how: &ResumeSandbox) -> Result<Sandbox> {
        let call = self.request(Method::POST, &format!("/v1/sandboxes/{id}/resume"));
        self.json(call.timeout(CREATE_LIMIT).json(how), ANSWER_MAX).await
    }

    /// Puts off the pause of an idle sandbox.
    pub async fn ping(&self, id: SandboxId) -> Result<()> {
        let call = self.request(Method::POST, &format!("/v1/sandboxes/{id}/ping")).timeout(REQUEST_LIMIT);
        self.send(call).await.map(drop)
    }

    /// Changes a sandbox.
    pub async fn update(&self, id: SandboxId, update: &UpdateSandbox) -> Result<Sandbox> {
        let call = self.request(Method::PATCH, &format!("/v1/sandboxes/{id}"));
        self.json(call.timeout(REQUEST_LIMIT).json(update), ANSWER_MAX).await
    }

    /// Makes a named snapshot of a sandbox and waits until it is kept.
    pub async fn create_snapshot(&self, new: &CreateSnapshot) -> Result<Snapshot> {
        let call = self.request(Method::POST, "/v1/snapshots").timeout(PAUSE_LIMIT).json(new);
        self.json(call, ANSWER_MAX).await
    }

    /// Lists the snapshots, newest first.
    pub async fn list_snapshots(&self) -> Result<Vec<Snapshot>> {
        let call = self.request(Method::GET, "/v1/snapshots").timeout(REQUEST_LIMIT);
        self.json(call, LIST_MAX).await
    }

    /// Deletes a snapshot.
    pub async fn delete_snapshot(&self, name: &str) -> Result<()> {
        let call = self.request(Method::DELETE, &format!("/v1/snapshots/{name}")).timeout(REQUEST_LIMIT);
        self.send(call).await.map(drop)
    }

    /// Runs a command to its end and returns its output.
    pub async fn exec(&self, id: SandboxId, request: &ExecRequest) -> Result<ExecResponse> {
        let seconds = request.timeout_sec.unwrap_or(EXEC_DEFAULT_SECONDS);
        let limit = Duration::from_secs(u64::from(seconds)) + REQUEST_LIMIT;
        let call = self.request(Method::POST, &format!("/v1/sandboxes/{id}/exec"));
        self.json(call.timeout(limit).json(request), EXEC_MAX).await
    }

    /// Returns the state of the control plane, also if it is `degraded`.
    pub async fn health(&self) -> Result<Health> {
        let call = self.request(Method::GET, "/health").timeout(HEALTH_LIMIT);
        let response = self.send_unchecked(call).await?;
        let status = response.status().as_u16();
        let body = read_all(response, HEALTH_MAX).await?;
        // A degraded control plane answers 503 with the same body.
        decode(&body).map_err(|_| Error::from_answer(status, None, &body))
    }
}
