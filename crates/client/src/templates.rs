// SPDX-License-Identifier: Apache-2.0
//! Templates: what sandboxes are created from, their versions and tags.

use reqwest::Method;
use wrenn_api::{MoveTag, PrunedCache, Template, TemplateVersion};

use crate::{
    Client, Error, Result,
    transport::{ANSWER_MAX, REQUEST_LIMIT},
};

/// Maximum size of a list in bytes.
const LIST_MAX: usize = 64 << 20;
/// Number of versions per page.
const PAGE: usize = 100;
/// Maximum number of pages, in case a server repeats them.
const PAGES_MAX: usize = 10_000;

impl Client {
    /// Path of what is changed of the templates that were built.
    const fn templates_path(&self) -> &'static str {
        if self.is_of_platform() { "/v1/admin/templates" } else { "/v1/templates" }
    }

    /// Lists what sandboxes can be created from.
    pub async fn list_templates(&self) -> Result<Vec<Template>> {
        let call = self.request(Method::GET, "/v1/templates").timeout(REQUEST_LIMIT);
        self.json(call, LIST_MAX).await
    }

    /// Lists all versions of a template that the team has built, or else the platform, newest first.
    pub async fn template_versions(&self, name: &str) -> Result<Vec<TemplateVersion>> {
        let mut all: Vec<TemplateVersion> = Vec::new();
        for _ in 0..PAGES_MAX {
            let mut query = vec![("limit", PAGE.to_string())];
            query.extend(all.last().map(|oldest| ("before", oldest.version.to_string())));
            let call = self.request(Method::GET, &format!("/v1/templates/{name}/versions")).query(&query);
            let page: Vec<TemplateVersion> = self.json(call.timeout(REQUEST_LIMIT), LIST_MAX).await?;
            let is_last = page.len() < PAGE;
            all.extend(page);
            if is_last {
                return Ok(all);
            }
        }
        Err(Error::Protocol(format!("the list of versions does not end after {PAGES_MAX} pages")))
    }

    /// Lets a tag of a template lead to one of its versions; returns the version.
    pub async fn move_tag(&self, name: &str, tag: &str, version: u32) -> Result<TemplateVersion> {
        let call = self.request(Method::PUT, &format!("{}/{name}/tags/{tag}", self.templates_path()));
        self.json(call.timeout(REQUEST_LIMIT).json(&MoveTag { version }), ANSWER_MAX).await
    }

    /// Deletes a template that was built, with all its versions.
    pub async fn delete_template(&self, name: &str) -> Result<()> {
        let call = self.request(Method::DELETE, &format!("{}/{name}", self.templates_path()));
        self.send(call.timeout(REQUEST_LIMIT)).await.map(drop)
    }

    /// Removes results of steps of builds from the cache that no build has used for so many days.
    pub async fn prune_cache(&self, older_than_days: u32) -> Result<PrunedCache> {
        let call = self.request(Method::DELETE, &format!("{}/cache", self.templates_path()));
        let call = call.query(&[("older_than_days", older_than_days)]).timeout(REQUEST_LIMIT);
        self.json(call, ANSWER_MAX).await
    }
}
