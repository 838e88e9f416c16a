// SPDX-License-Identifier: Apache-2.0
//! Directories and entries of a sandbox's file system.

use std::time::Duration;

use reqwest::Method;
use serde::Serialize;
use wrenn_api::{
    ChangeFile, CopyFile, EntryPath, FileEntries, FileEntry, ListFiles, MoveFile, OneEntry, SandboxId,
};

use crate::{Client, Result, transport::ANSWER_MAX};

/// Time limit of an operation: a large tree takes long to list or to remove.
const LIMIT: Duration = Duration::from_secs(90);
/// Time limit of a copy, and of a change of all that is in a directory.
const LONG: Duration = Duration::from_secs(330);
/// Maximum size of a list in bytes.
const LIST_MAX: usize = 64 << 20;

impl Client {
    /// Lists a directory, `depth` levels deep, by path.
    pub async fn list_files(&self, id: SandboxId, path: &str, depth: u32) -> Result<Vec<FileEntry>> {
        let body = ListFiles { path: path.to_owned(), depth: Some(depth) };
        let call = self.entries(id, "list", &body);
        self.json(call, LIST_MAX).await.map(|listed: FileEntries| listed.entries)
    }

    /// Describes an entry.
    pub async fn stat_file(&self, id: SandboxId, path: &str) -> Result<FileEntry> {
        self.stat_file_of(id, path, None).await
    }

    /// Describes an entry; a relative path begins at the home directory of this user.
    pub async fn stat_file_of(&self, id: SandboxId, path: &str, user: Option<&str>) -> Result<FileEntry> {
        let path = EntryPath { path: path.to_owned(), user: user.map(str::to_owned) };
        let call = self.entries(id, "stat", &path);
        self.json(call, ANSWER_MAX).await.map(|told: OneEntry| told.entry)
    }

    /// Creates a directory and its parents. Fails if it exists.
    pub async fn make_directory(&self, id: SandboxId, path: &str) -> Result<FileEntry> {
        let call = self.entries(id, "mkdir", &EntryPath { path: path.to_owned(), user: None });
        self.json(call, ANSWER_MAX).await.map(|told: OneEntry| told.entry)
    }

    /// Moves an entry; a file that is there is replaced.
    pub async fn move_file(&self, id: SandboxId, source: &str, destination: &str) -> Result<FileEntry> {
        let body = MoveFile { source: source.to_owned(), destination: destination.to_owned() };
        self.json(self.entries(id, "move", &body), ANSWER_MAX).await.map(|told: OneEntry| told.entry)
    }

    /// Copies an entry, and a directory with its content, to a path where nothing is.
    pub async fn copy_file(&self, id: SandboxId, what: &CopyFile) -> Result<FileEntry> {
        let call = self.entries(id, "copy", what).timeout(LONG);
        self.json(call, ANSWER_MAX).await.map(|told: OneEntry| told.entry)
    }

    /// Changes mode, owner and group of an entry.
    pub async fn change_file(&self, id: SandboxId, what: &ChangeFile) -> Result<FileEntry> {
        let call = self.entries(id, "permissions", what).timeout(LONG);
        self.json(call, ANSWER_MAX).await.map(|told: OneEntry| told.entry)
    }

    /// Removes an entry, and a directory with its content. Fails if there is none.
    pub async fn remove_file(&self, id: SandboxId, path: &str) -> Result<()> {
        self.send(self.entries(id, "remove", &EntryPath { path: path.to_owned(), user: None }))
            .await
            .map(drop)
    }

    fn entries(&self, id: SandboxId, verb: &str, body: &impl Serialize) -> reqwest::RequestBuilder {
        self.request(Method::POST, &format!("/v1/sandboxes/{id}/files/{verb}")).timeout(LIMIT).json(body)
    }
}
