// SPDX-License-Identifier: Apache-2.0
//! Creation of sandboxes from images: a host imports that of a registry first, which may take minutes and leaves nothing of the
//! sandbox if it fails; one that was uploaded is there.

use std::sync::Arc;

use uuid::Uuid;
use wrenn_api::{CreateSandbox, ErrorCode, SandboxId};

use super::{
    create::{Wanted, before, begin},
    destroy::destroy,
};
use crate::{
    by::By,
    db::{idempotency, sandboxes::Row},
    error::Fault,
    idempotency::{Idempotency, Key, TRIES, contested},
    images::Source,
    state::App,
    templates::Origin,
};

/// Creates a sandbox from the image with this reference; with an idempotency key at most once. The account of the registry, and
/// what the reference leads to now, do not belong to the meaning of the request.
pub(super) async fn create(
    app: &App,
    team: Uuid,
    reference: &str,
    mut new: CreateSandbox,
    idempotency: Option<Idempotency>,
    by: By,
) -> Result<Row, Fault> {
    let source = Source::of(team, reference, new.registry.take())?;
    let asked = Wanted::of_registry(new, reference, source.known_as())?.by(by);
    let key = idempotency.map(|idempotency| idempotency.of(&asked)).transpose()?;
    let mut is_again = false;
    for _ in 0..TRIES {
        if let Some(row) = before(app, team, key.as_ref()).await? {
            return Ok(row);
        }
        let imported = source.imported(app, &asked.need()).await?;
        let wanted = asked.imported(Origin::of_image(reference, &imported))?;
        let fault = match begin(app, team, Arc::new(wanted), key.clone()).await {
            Ok(Some(row)) => return Ok(row),
            // Another request with this key was faster.
            Ok(None) => continue,
            Err(fault) => fault,
        };
        match fault.sandbox_id {
            // It was removed from its host in between, because nobody had used it for long.
            Some(left) if fault.code == ErrorCode::NotFound && !is_again => {
                is_again = true;
                undo(app, team, key.as_ref(), left).await?;
            }
            _ => return Err(fault),
        }
    }
    Err(contested())
}

/// Removes a sandbox that could not be created, and frees its key and its name.
async fn undo(app: &App, team: Uuid, key: Option<&Key>, id: SandboxId) -> Result<(), Fault> {
    if let Some(key) = key {
        idempotency::release(&app.db, team, &key.text, id.uuid()).await?;
    }
    destroy(app, team, id, By::SYSTEM).await
}
