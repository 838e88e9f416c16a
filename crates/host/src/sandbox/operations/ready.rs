// SPDX-License-Identifier: Apache-2.0
//! Wait for the first answer of a guest that was started.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use wrenn_api::ErrorCode;
use wrenn_vmm::MicroVm;

use super::steps::{Cancel, unless_cancelled};
use crate::{
    error::AgentError,
    sandbox::{last_words, record::Sandbox},
};

/// Part of what envd writes to the console if the template's file system does not mount. A guest that ends before
/// envd runs is the fault of the host's kernel or initial RAM disk.
const TEMPLATE_FAULT: &str = "check the template's image";

/// Waits for the guest's answer: fails if the microVM ends, at `until`, or when the operation is cancelled.
pub(super) async fn unless_it_ends(
    sandbox: &Sandbox,
    vm: &dyn MicroVm,
    token: &CancellationToken,
    until: Instant,
    answered: impl Future<Output = Result<(), AgentError>>,
) -> Result<(), AgentError> {
    tokio::select! {
        answered = answered => answered,
        () = token.cancelled() => unless_cancelled(&Cancel::Undo(token.clone())),
        exit = vm.exited() => {
            tracing::error!(id = sandbox.id, status = ?exit.status, log = exit.log, "a microVM ended while booting");
            let how = "the microVM ended while it booted";
            let message = last_words::of(how, vm, &exit, &sandbox.id, &sandbox.shared.dir).await.text;
            let of_template = message.contains(TEMPLATE_FAULT);
            let error = AgentError::new(ErrorCode::AgentError, message);
            Err(if of_template { error.of_template() } else { error })
        }
        () = tokio::time::sleep(until.saturating_duration_since(Instant::now())) => {
            Err(not_ready(vm, &sandbox.id, sandbox.shared.boot_limit).await)
        }
    }
}

/// Error of a guest that did not get ready in time.
async fn not_ready(vm: &dyn MicroVm, id: &str, limit: Duration) -> AgentError {
    let console = String::from_utf8_lossy(&vm.console(4096).await).into_owned();
    tracing::error!(id, console, "a guest did not get ready");
    let message = format!(
        "the guest did not get ready within {} s; the host may be overloaded: try again",
        limit.as_secs()
    );
    AgentError::new(ErrorCode::AgentError, message)
}
