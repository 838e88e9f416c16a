// SPDX-License-Identifier: Apache-2.0
//! Signed URLs of files: what they allow, for how long, and their signature.

use wrenn_api::{ErrorCode, FileOperation, SandboxId, SandboxStatus};

use super::{lookup::find, paths::FilePath, rights::OfUser};
use crate::{
    caller::Caller,
    error::Fault,
    signatures::{self, Signature, Subject},
    state::App,
};

/// Lifetime of a URL in seconds, if none is given.
const USUAL: u32 = 3600;

/// Signs a URL for a file of a sandbox.
pub(super) async fn sign(
    app: &App,
    caller: &Caller,
    id: SandboxId,
    (path, user): (FilePath, OfUser),
    operation: FileOperation,
    seconds: Option<u32>,
) -> Result<(Subject, Signature), Fault> {
    let seconds = seconds.unwrap_or(USUAL);
    let longest = signatures::LONGEST.as_secs();
    if !(1..=longest).contains(&u64::from(seconds)) {
        return Err(Fault::invalid(format!("expires_in_sec is {seconds}: it must be 1 to {longest}")));
    }
    let row = find(app, caller.team().uuid(), id).await?;
    if matches!(row.status(), SandboxStatus::Stopping | SandboxStatus::Stopped) {
        return Err(Fault::new(ErrorCode::NotFound, format!("sandbox {id} was deleted")));
    }
    let expires = signatures::end(seconds).timestamp();
    let subject = Subject { operation, sandbox: id, path: path.into_text(), user: user.into_name(), expires };
    let signature = app.signatures.sign(&subject).await?;
    Ok((subject, signature))
}
