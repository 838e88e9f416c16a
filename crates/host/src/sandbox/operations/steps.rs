// SPDX-License-Identifier: Apache-2.0
//! Steps of operations, and their runner.
//!
//! A step says what is in the journal before it runs; the runner writes that, runs the step, passes its fault
//! points and takes its time.

use std::time::Instant;

use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;
use wrenn_api::ErrorCode;
use wrenn_os::fault;

use crate::{
    error::AgentError,
    sandbox::{
        entry::{Entry, Thing},
        phase::Timings,
        record::Sandbox,
    },
};

/// First part of the names of the agent's fault points.
pub(super) const PROCESS: &str = "agent";

/// A list of steps, with the state that they share.
pub(crate) trait Steps: Sized + Send + Sync + 'static {
    /// Name of the operation, the first part of its fault points' names.
    const NAME: &'static str;
    /// Steps in their order.
    const STEPS: &'static [Step<Self>];

    /// What a request that makes the operation pointless does.
    fn cancel(&self) -> Cancel;
}

/// Whether an operation can be cancelled.
pub(crate) enum Cancel {
    /// It ends before its next step when the token is cancelled, and is undone.
    Undo(CancellationToken),
    /// It runs to its end.
    Finish,
}

/// One step of an operation with the state `S`.
pub(crate) struct Step<S: 'static> {
    /// Entries that are in the journal before the step runs.
    entries: fn(&S, &Sandbox) -> Vec<Entry>,
    /// Resources that the step may create: their entries are in the journal, possibly by an earlier step.
    creates: &'static [Thing],
    run: Run<S>,
    /// Steps that `run` passes to the runner.
    #[cfg_attr(not(test), expect(dead_code, reason = "only the test of the fault points reads it"))]
    pub(super) inner: &'static [Step<S>],
    /// Fault points after the step; several if it does several things at once.
    pub(super) points: &'static [&'static str],
    /// Name of the duration that ends with the step.
    pub(super) timing: Option<&'static str>,
}

type Run<S> = for<'a> fn(&'a mut S, &'a mut Sandbox) -> BoxFuture<'a, Result<(), AgentError>>;

impl<S: Steps> Step<S> {
    /// Step that runs this.
    pub(super) const fn new(run: Run<S>) -> Self {
        Self { entries: |_, _| Vec::new(), creates: &[], run, inner: &[], points: &[], timing: None }
    }

    /// Step that only writes entries.
    pub(super) const fn write(entries: fn(&S, &Sandbox) -> Vec<Entry>) -> Self {
        Self { entries, ..Self::new(|_, _| Box::pin(async { Ok(()) })) }
    }

    /// Declares the resources that the step may create.
    pub(super) const fn creates(self, creates: &'static [Thing]) -> Self {
        Self { creates, ..self }
    }

    /// Declares the steps that the step passes to the runner.
    pub(super) const fn inner(self, inner: &'static [Self]) -> Self {
        Self { inner, ..self }
    }

    /// Sets the fault points.
    pub(super) const fn points(self, points: &'static [&'static str]) -> Self {
        Self { points, ..self }
    }

    /// Sets the name of the duration that ends with the step.
    pub(super) const fn timed(self, timing: &'static str) -> Self {
        Self { timing: Some(timing), ..self }
    }
}

/// Runs an operation; returns the durations of its steps.
pub(crate) async fn run<S: Steps>(state: &mut S, sandbox: &mut Sandbox) -> Result<Timings, AgentError> {
    run_steps(S::STEPS, state, sandbox).await
}

/// Runs steps one after another, until one fails or the operation is cancelled.
pub(super) async fn run_steps<S: Steps>(
    steps: &'static [Step<S>],
    state: &mut S,
    sandbox: &mut Sandbox,
) -> Result<Timings, AgentError> {
    let (mut timings, mut last) = (Timings::new(), Instant::now());
    for step in steps {
        unless_cancelled(&state.cancel())?;
        let entries = (step.entries)(state, sandbox);
        sandbox.record.write(entries).await?;
        if let Some(thing) = step.creates.iter().find(|thing| !sandbox.record.summary().has(**thing)) {
            let cause = format!("{thing:?} would be created without an entry in the journal");
            return Err(AgentError::fault("changing the sandbox", &cause));
        }
        (step.run)(state, sandbox).await?;
        step.points.iter().for_each(|point| fault::point(PROCESS, S::NAME, point));
        if let Some(name) = step.timing {
            timings.push((name, last.elapsed()));
            last = Instant::now();
        }
    }
    Ok(timings)
}

/// Fails if the operation was cancelled.
pub(super) fn unless_cancelled(cancel: &Cancel) -> Result<(), AgentError> {
    match cancel {
        Cancel::Undo(token) if token.is_cancelled() => {
            Err(AgentError::new(ErrorCode::Conflict, "the sandbox was deleted while it was starting"))
        }
        Cancel::Undo(_) | Cancel::Finish => Ok(()),
    }
}
