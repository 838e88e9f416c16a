// SPDX-License-Identifier: Apache-2.0
//! Sandboxes as users write them.

use anyhow::Result;
use wrenn_api::{SandboxId, SandboxRef};
use wrenn_client::Client;

/// Returns the id of a sandbox. A name or the beginning of an id is looked up by the control plane.
pub(crate) async fn find(client: &Client, sandbox: &SandboxRef) -> Result<SandboxId> {
    match sandbox {
        SandboxRef::Id(id) => Ok(*id),
        SandboxRef::Lookup(_) => Ok(client.get(sandbox.clone()).await?.id),
    }
}
