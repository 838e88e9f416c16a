// SPDX-License-Identifier: Apache-2.0
//! Lists that come in pages: the response has the cursor of the next page in a header.

use reqwest::Method;
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    Client, Error, Result,
    transport::{REQUEST_LIMIT, decode, read_all},
};

/// A list without a filter.
pub(crate) const ALL: [(&str, &str); 0] = [];
/// Maximum size of a page in bytes.
const PAGE_MAX: usize = 64 << 20;
/// Maximum number of pages, in case a server repeats cursors.
const PAGES_MAX: usize = 10_000;

impl Client {
    /// Lists one page; also returns the cursor of the next one.
    pub(crate) async fn page<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &(impl Serialize + ?Sized),
        cursor: Option<&str>,
    ) -> Result<(Vec<T>, Option<String>)> {
        let mut call = self.request(Method::GET, path).timeout(REQUEST_LIMIT).query(query);
        if let Some(cursor) = cursor {
            call = call.query(&[("cursor", cursor)]);
        }
        let response = self.send(call).await?;
        let next = response.headers().get("x-next-cursor").and_then(|value| value.to_str().ok());
        let next = next.filter(|cursor| !cursor.is_empty()).map(str::to_owned);
        Ok((decode(&read_all(response, PAGE_MAX).await?)?, next))
    }

    /// Lists all pages.
    pub(crate) async fn every<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &(impl Serialize + ?Sized),
    ) -> Result<Vec<T>> {
        let (mut all, mut cursor) = (Vec::new(), None);
        for _ in 0..PAGES_MAX {
            let (page, next) = self.page(path, query, cursor.as_deref()).await?;
            all.extend(page);
            if next.is_none() {
                return Ok(all);
            }
            cursor = next;
        }
        Err(Error::Protocol(format!("the list {path} does not end after {PAGES_MAX} pages")))
    }
}
