// SPDX-License-Identifier: Apache-2.0
//! Changes that users make to a sandbox: name, labels, timeout.

use uuid::Uuid;
use wrenn_api::{ErrorCode, Sandbox, SandboxId, UpdateSandbox};

use super::{lookup, timeout};
use crate::{
    db::sandboxes::{self, Update, Updated},
    error::Fault,
    names::{self, LABELS_MAX},
    state::App,
};

/// Changes what is given of a sandbox. A new timeout begins now.
pub(super) async fn update(
    app: &App,
    team: Uuid,
    id: SandboxId,
    request: UpdateSandbox,
) -> Result<Sandbox, Fault> {
    let name = request.name.clone().unwrap_or_default();
    let update = check(request)?;
    let row = lookup::find(app, team, id).await?;
    match sandboxes::update(&app.db, &row, &update, LABELS_MAX).await? {
        Updated::Done(row) => Ok(row.public()),
        Updated::NameTaken => Err(names::taken(&name)),
        Updated::TooManyLabels(count) => Err(names::too_many_labels(count)),
        Updated::Stopped => Err(Fault::new(ErrorCode::NotFound, format!("sandbox {id} was deleted"))),
    }
}

fn check(request: UpdateSandbox) -> Result<Update, Fault> {
    let UpdateSandbox { name, labels, timeout_sec, on_timeout, auto_resume, public_ports } = request;
    if let Some(name) = name.as_ref().filter(|name| !name.is_empty()) {
        names::check_sandbox_name(name)?;
    }
    if labels.len() > LABELS_MAX {
        return Err(Fault::invalid(format!(
            "labels: {} are changed at once: at most {LABELS_MAX}",
            labels.len()
        )));
    }
    let timeout_sec = timeout::check(timeout_sec)?.map(|seconds| seconds as i32);
    let mut update = Update { name, timeout_sec, on_timeout, auto_resume, public_ports, ..Update::default() };
    for (name, value) in labels {
        names::check_label_name(&name)?;
        match value {
            Some(value) => {
                names::check_label_value(&name, &value)?;
                update.labels.insert(name, value);
            }
            None => update.unlabelled.push(name),
        }
    }
    Ok(update)
}
