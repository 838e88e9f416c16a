// SPDX-License-Identifier: Apache-2.0
//! Workers: each claims a build, works on it as long as its lease lasts, and records how it ended. One that dies is followed by
//! another one; a build whose workers die over and over is given up.

use std::time::{Duration, Instant};

use tracing::Instrument as _;
use uuid::Uuid;
use wrenn_api::{BuildId, BuildStatus, ErrorCode};
use wrenn_rpc::Foreign;

use super::{
    builder::Builder,
    guest,
    stop::{Failure, Stop},
};
use crate::{
    announcements::{BUILDS, Listener},
    db::{
        builds::{self, Claim, End, Job},
        sandboxes,
    },
    error::Fault,
    state::App,
    telemetry,
};

/// Number of workers that may begin a build, one after the other.
const ATTEMPTS: i32 = 3;
/// Time after which a build begins again whose host did not answer: an agent that is restarted answers by then.
const AWAY: Duration = Duration::from_secs(5);
/// Interval between looks for builds.
const LOOK: Duration = Duration::from_secs(2);
/// Number of renewals in the time of a lease, and the maximum interval between two: so soon a cancelled build stops.
const RENEWALS: u32 = 3;
const RENEWAL_MAX: Duration = Duration::from_secs(2);

/// Works on builds, one at a time, until the server stops.
pub(crate) async fn run(app: App) {
    let mut listener = Listener::new(BUILDS);
    while !app.shutdown.is_cancelled() {
        match next(&app).await {
            Ok(Some(job)) => work(&app, job).await,
            Ok(None) => tokio::select! {
                () = app.shutdown.cancelled() => {}
                () = listener.wait(&app.events, LOOK) => {}
            },
            Err(error) => {
                tracing::warn!(%error, "builds cannot be looked for");
                tokio::select! {
                    () = app.shutdown.cancelled() => {}
                    () = tokio::time::sleep(LOOK) => {}
                }
            }
        }
    }
}

/// Gives up what was begun too often, and claims a build.
async fn next(app: &App) -> Result<Option<Job>, Fault> {
    let message = format!(
        "its worker died {ATTEMPTS} times, as when the server is killed: look at the servers' logs, and ask for the build again"
    );
    for id in builds::park(&app.db, ATTEMPTS, ErrorCode::BuildParked.as_str(), &message).await? {
        tracing::error!(build_id = %BuildId::from(id), "a build is given up: {message}");
        telemetry::build_ended("parked");
    }
    Ok(builds::claim(&app.db, ATTEMPTS, app.limits.lease).await?)
}

/// Works on a build that was claimed.
async fn work(app: &App, job: Job) {
    let span = tracing::info_span!("build", id = %BuildId::from(job.id), attempt = job.attempt);
    let working = async move {
        tracing::info!(template = job.name, tag = job.tag, "a build begins");
        let mut builder = Builder::new(app, job);
        let (claim, team) = (builder.claim(), builder.job.team_id);
        let ended = tokio::select! {
            ended = builder.run() => ended,
            stop = stopped(app, claim, team) => Err(stop),
        };
        let ended = match ended {
            Ok(version) => {
                succeeded(&builder, version).await;
                Ok(())
            }
            Err(Stop::Lost) => {
                tracing::warn!("a build is left to another worker");
                Ok(())
            }
            Err(Stop::Leaving) => builds::release(&app.db, claim).await.map_err(Fault::from),
            Err(Stop::Cancelled) => cancelled(&mut builder).await,
            Err(Stop::Away(failure)) if builder.job.attempt < ATTEMPTS => away(&mut builder, failure).await,
            Err(Stop::Away(failure) | Stop::Failed(failure)) => failed(&mut builder, failure).await,
        };
        if let Err(error) = ended {
            tracing::warn!(%error, "the end of a build cannot be recorded; another worker goes on with it");
        }
    };
    working.instrument(span).await;
}

/// Waits for a reason to stop. Meanwhile the lease is renewed, and the sandbox is kept in use.
async fn stopped(app: &App, claim: Claim, team: Uuid) -> Stop {
    let renewing = async {
        let lease = app.limits.lease;
        let mut renewed = Instant::now();
        loop {
            tokio::time::sleep(RENEWAL_MAX.min(lease / RENEWALS)).await;
            let now = Instant::now();
            match builds::renew(&app.db, claim, lease).await {
                Ok(None) => return Stop::Lost,
                // This worker has recorded the end of the build, and is about to learn it.
                Ok(Some(found)) if !found.is_running => return std::future::pending().await,
                Ok(Some(found)) if found.cancel_requested => return Stop::Cancelled,
                Ok(Some(found)) => {
                    renewed = now;
                    if let Some(sandbox) = found.sandbox_id
                        && let Err(error) = sandboxes::touch(&app.db, team, sandbox).await
                    {
                        tracing::debug!(%error, "the use of a build's sandbox is not noted");
                    }
                }
                Err(error) if renewed.elapsed() >= lease => {
                    tracing::warn!(%error, "the lease of a build cannot be renewed");
                    return Stop::Lost;
                }
                Err(error) => tracing::debug!(%error, "the lease of a build is not renewed yet"),
            }
        }
    };
    tokio::select! {
        () = app.shutdown.cancelled() => Stop::Leaving,
        stop = renewing => stop,
    }
}

async fn succeeded(builder: &Builder, version: i32) {
    tracing::info!(version, "a build has succeeded");
    telemetry::build_ended("succeeded");
    if let Some(sandbox) = builder.sandbox() {
        guest::remove(&builder.app, builder.job.team_id, sandbox).await;
    }
}

async fn cancelled(builder: &mut Builder) -> Result<(), Fault> {
    builder.log.say(0, "the build was cancelled");
    let end = End { status: BuildStatus::Cancelled, code: None, message: None, step: None };
    if record(builder, end).await? {
        tracing::info!("a build was cancelled");
        telemetry::build_ended("cancelled");
        guest::remove_all(&builder.app, &builder.job).await?;
    }
    Ok(())
}

/// Leaves a build to a later attempt, because its host does not answer.
async fn away(builder: &mut Builder, failure: Failure) -> Result<(), Fault> {
    let step = failure.step.map(|step| step.number).unwrap_or_default();
    tracing::warn!(why = %Foreign(&failure.message), "a build begins again: its host does not answer");
    builder.log.say(step, &failure.message);
    builder.log.say(0, "it begins again after the last step that was kept");
    if builder.log.flush().await.is_err() {
        tracing::debug!("the log of a build that begins again is not written");
    }
    Ok(builds::put_off(&builder.app.db, builder.claim(), AWAY).await?)
}

/// Records a failure. The sandbox stays for a while, so that one can look into it.
async fn failed(builder: &mut Builder, failure: Failure) -> Result<(), Fault> {
    let Failure { code, message, step, exit_code: _ } = failure;
    let number = step.map(|step| step.number);
    builder.log.say(number.unwrap_or_default(), &message);
    if let Some(sandbox) = builder.sandbox() {
        let seconds = builder.app.builds.keep.as_secs();
        let text = format!("its sandbox {sandbox} is there until nobody has used it for {seconds} s");
        builder.log.say(0, text);
    }
    let step = number.map(|number| number as i32);
    let end = End { status: BuildStatus::Failed, code: Some(code), message: Some(&message), step };
    if record(builder, end).await? {
        tracing::info!(code, why = %Foreign(&message), "a build has failed");
        telemetry::build_ended("failed");
    }
    Ok(())
}

/// Records the end of a build without a version; false if another worker has it.
async fn record(builder: &mut Builder, end: End<'_>) -> Result<bool, Fault> {
    // Without its last words, it is ended all the same.
    if builder.log.flush().await.is_err() {
        tracing::debug!("the end of the log of a build is not written");
    }
    let (claim, steps) = (builder.claim(), builder.report.to_json());
    Ok(builds::end(&builder.app.db, claim, steps, end).await?)
}
