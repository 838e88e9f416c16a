// SPDX-License-Identifier: Apache-2.0
//! A context: files that were uploaded for a build.

use std::{fs::File, sync::Arc};

use wrenn_recipe::Copied;

use crate::{error::SelectError, limits::Limits, select::select, selection::Selection, tree::Tree};

/// Files that were uploaded for a build. A copy of it costs nothing. It can be read also after it was removed from where it
/// was kept.
#[derive(Debug, Clone)]
pub struct Context {
    /// Digest of everything in it but times.
    pub digest: String,
    tree: Arc<Tree>,
    file: Option<Arc<File>>,
    limits: Limits,
}

impl Context {
    pub(crate) fn new(digest: String, tree: Tree, file: File, limits: Limits) -> Self {
        Self { digest, tree: Arc::new(tree), file: Some(Arc::new(file)), limits }
    }

    /// Makes a context without files, for builds without an archive: `COPY` takes nothing from it but files of the recipe.
    pub fn empty() -> Self {
        let tree = Tree::default();
        Self { digest: tree.digest(), tree: Arc::new(tree), file: None, limits: Limits::default() }
    }

    /// Finds the files that a `COPY` takes, as that of a Dockerfile of one stage:
    ///
    /// - Of a directory its content is copied, and of `.` everything.
    /// - A file is copied to the destination, or into it if this is a directory: if it is written as one, or if more than one
    ///   thing is copied.
    /// - In each name of a path `*`, `?` and `[…]` are patterns with the rules of Go's `filepath.Match`. One that matches
    ///   nothing is missing.
    /// - A symbolic link is copied as a link, also if it is the source itself. None is followed to find a source.
    ///
    /// Of several files in one place the last counts.
    pub fn select(&self, copied: &Copied) -> Result<Selection, SelectError> {
        let (directory, items) = select(&self.tree, &self.limits, copied)?;
        Ok(Selection::new(directory, items, self.file.clone()))
    }
}
