// SPDX-License-Identifier: Apache-2.0
//! Resumes of paused sandboxes, and boots of those that failed from their disks.

use uuid::Uuid;
use wrenn_api::{ErrorCode, ResumeSandbox, SandboxId, SandboxStatus};
use wrenn_rpc::host::v1::{ResumeRequest, ResumeResponse};

use super::{lookup::agent, metadata, settle, timeout};
use crate::{
    agents::within,
    by::By,
    db::{
        hosts,
        sandboxes::{self, Change, Row},
    },
    error::Fault,
    fault,
    lease::Lease,
    quotas,
    state::App,
};

/// Resumes a sandbox and waits until it runs. If it does, only its timeout begins anew, with another value if one is wanted.
pub(super) async fn resume(
    app: &App,
    team: Uuid,
    id: SandboxId,
    wanted: &ResumeSandbox,
    by: By,
) -> Result<Row, Fault> {
    let timeout = timeout::check(wanted.timeout_sec)?.map(|seconds| seconds as i32);
    let memory = wanted.memory.unwrap_or(true);
    loop {
        let transitional = [SandboxStatus::Pausing, SandboxStatus::Resuming];
        let row = settle::settled(app, team, id, &transitional).await?;
        match row.status() {
            SandboxStatus::Paused => {}
            SandboxStatus::Error if !memory && row.started_at.is_some() => {}
            SandboxStatus::Running => match sandboxes::prolong(&app.db, row.id, timeout).await? {
                Some(row) => return Ok(row),
                // It was idle for its timeout, and is being paused.
                None => continue,
            },
            status => return Err(Fault::new(ErrorCode::InvalidState, refusal(&row, status))),
        }
        let Some(row) = mark(app, &row, timeout, by).await? else { continue };
        app.outbox.notify_one();
        fault::point("resume.marked");
        // The resume continues if the client disconnects.
        let task = crate::request_trace::spawn({
            let app = app.clone();
            async move { finish(&app, row, memory).await }
        });
        return task.await.map_err(|error| {
            tracing::error!(%id, %error, "the task of a resume failed; the reconciler finishes it");
            Fault::new(ErrorCode::InternalError, "the resume was interrupted; look at the sandbox's status")
        })?;
    }
}

/// Error message for a sandbox that cannot be resumed, with a remedy.
fn refusal(row: &Row, status: SandboxStatus) -> String {
    let id = row.public_id();
    match status {
        SandboxStatus::Error if row.started_at.is_some() => {
            format!(
                r#"sandbox {id} has failed: resume it with "memory": false, which boots it from its disk"#
            )
        }
        SandboxStatus::Error => {
            format!("sandbox {id} has never run, so there is nothing to resume: delete it")
        }
        status => format!("sandbox {id} is {}: only a paused sandbox can be resumed", status.as_str()),
    }
}

/// Marks the sandbox as `resuming` and reserves its resources on its host; `None` if it changed meanwhile.
async fn mark(app: &App, row: &Row, timeout: Option<i32>, by: By) -> Result<Option<Row>, Fault> {
    let id = row.public_id();
    let mut tx = app.db.begin().await?;
    let quotas = quotas::lock(&mut tx, row.team_id, &app.limits).await?;
    quotas.check_resume(&mut tx, row.vcpus, row.memory_mb).await?;
    let change = Change { timeout_sec: timeout, ..Change::to(SandboxStatus::Resuming).by(by) };
    let marked = sandboxes::change_in(&mut tx, &row.known(), change, app.limits.lease).await?;
    let Some(marked) = marked else { return Ok(None) };
    // Last, because from here on all creates on this host wait until the transaction ends.
    let host = row.host_id.unwrap_or_default();
    if hosts::reserve(&mut tx, host, row.vcpus, row.memory_mb).await?.is_none() {
        let message = format!(
            "the host of sandbox {id} is full or does not answer: delete or pause others on it, or try again in a moment"
        );
        return Err(Fault::new(ErrorCode::NoHostsAvailable, message));
    }
    sandboxes::mark_reserved(&mut tx, marked.id).await?;
    tx.commit().await?;
    Ok(Some(marked))
}

/// Calls the agent to resume a `resuming` sandbox, and records what became of it.
async fn finish(app: &App, row: Row, memory: bool) -> Result<Row, Fault> {
    let lease = Lease::of_sandbox(app, row.known());
    let request =
        ResumeRequest { sandbox_id: row.public_id().to_string(), from_disk: !memory, ..Default::default() };
    let resumed = async {
        let agent = agent(app, row.host_id.unwrap_or_default()).await?;
        let resumed = agent.resume_with_options(request, within(app.limits.create)).await?;
        Ok::<ResumeResponse, Fault>(resumed.into_owned())
    };
    let resumed = resumed.await;
    fault::point("resume.done");
    let change = resumed.map(|response| {
        let sandbox = response.sandbox.into_option().unwrap_or_default();
        let metadata = metadata::of(sandbox, "resume", response.timings);
        Change { metadata, ..Change::to(SandboxStatus::Running) }
    });
    let ended = settle::end(app, &row, change).await;
    drop(lease);
    ended
}
