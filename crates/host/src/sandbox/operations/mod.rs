// SPDX-License-Identifier: Apache-2.0
//! Operations on a sandbox as lists of steps, their runner, and their undo.
//!
//! A step says what is in the journal before it runs; the runner writes that, runs the step, passes its fault
//! points and takes its time. Undo belongs to resources and not to steps: it releases what the journal says
//! exists, because the next agent has nothing else.

mod create;
mod destroy;
mod fail;

use std::time::Instant;

use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;
use wrenn_api::ErrorCode;
use wrenn_vmm::MicroVm;

pub(crate) use self::fail::Fail;
pub(super) use self::{
    create::Create,
    destroy::{Destroy, take_back},
};
use super::{
    journal::{Entry, Thing},
    phase::Timings,
    record::Sandbox,
    release,
};
use crate::{error::AgentError, fault};

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
    inner: &'static [Step<S>],
    /// Fault points after the step; several if it does several things at once.
    points: &'static [&'static str],
    /// Name of the duration that ends with the step.
    timing: Option<&'static str>,
}

type Run<S> = for<'a> fn(&'a mut S, &'a mut Sandbox) -> BoxFuture<'a, Result<(), AgentError>>;

impl<S: Steps> Step<S> {
    /// Step that runs this.
    const fn new(run: Run<S>) -> Self {
        Self { entries: |_, _| Vec::new(), creates: &[], run, inner: &[], points: &[], timing: None }
    }

    /// Step that only writes entries.
    const fn write(entries: fn(&S, &Sandbox) -> Vec<Entry>) -> Self {
        Self { entries, ..Self::new(|_, _| Box::pin(async { Ok(()) })) }
    }

    /// Declares the resources that the step may create.
    const fn creates(self, creates: &'static [Thing]) -> Self {
        Self { creates, ..self }
    }

    /// Declares the steps that the step passes to the runner.
    const fn inner(self, inner: &'static [Self]) -> Self {
        Self { inner, ..self }
    }

    /// Sets the fault points.
    const fn points(self, points: &'static [&'static str]) -> Self {
        Self { points, ..self }
    }

    /// Sets the name of the duration that ends with the step.
    const fn timed(self, timing: &'static str) -> Self {
        Self { timing: Some(timing), ..self }
    }
}

/// Runs an operation; returns the durations of its steps.
pub(crate) async fn run<S: Steps>(state: &mut S, sandbox: &mut Sandbox) -> Result<Timings, AgentError> {
    run_steps(S::STEPS, state, sandbox).await
}

async fn run_steps<S: Steps>(
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
        step.points.iter().for_each(|point| fault::point(S::NAME, point));
        if let Some(name) = step.timing {
            timings.push((name, last.elapsed()));
            last = Instant::now();
        }
    }
    Ok(timings)
}

fn unless_cancelled(cancel: &Cancel) -> Result<(), AgentError> {
    match cancel {
        Cancel::Undo(token) if token.is_cancelled() => {
            Err(AgentError::new(ErrorCode::Conflict, "the sandbox was deleted while it was starting"))
        }
        Cancel::Undo(_) | Cancel::Finish => Ok(()),
    }
}

/// Releases what the record says exists, the latest first, except `keep`; kills `vm` before.
pub(crate) async fn undo(
    sandbox: &mut Sandbox,
    vm: &mut Option<Box<dyn MicroVm>>,
    keep: Option<Thing>,
) -> Result<(), AgentError> {
    kill(vm).await?;
    for step in sandbox.record.summary().undo() {
        if Some(step.thing()) == keep {
            continue;
        }
        release::resource(&sandbox.shared, &sandbox.id, &step).await?;
        sandbox.record.forget(&step);
        // A create that is undone passes the same points.
        fault::point(Destroy::NAME, step.thing().name());
    }
    Ok(())
}

/// Kills a microVM; keeps it if that fails.
async fn kill(vm: &mut Option<Box<dyn MicroVm>>) -> Result<(), AgentError> {
    if let Some(running) = vm {
        running.kill().await?;
        *vm = None;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Names of all fault points of a list of steps.
    fn points<S: Steps>(steps: &'static [Step<S>]) -> Vec<String> {
        let own =
            |step: &'static Step<S>| step.points.iter().map(|point| format!("agent.{}.{point}", S::NAME));
        steps.iter().flat_map(|step| points(step.inner).into_iter().chain(own(step))).collect()
    }

    /// The end-to-end tests kill the agent at each point of their list.
    #[test]
    fn the_tests_know_every_fault_point() {
        let mut all = [points(Create::STEPS), points(Destroy::STEPS), points(Fail::STEPS)].concat();
        all.extend(Thing::ALL.map(|thing| format!("agent.{}.{}", Destroy::NAME, thing.name())));
        let listed = include_str!("../../../../testkit/tests/cases/fault_points.txt");
        let listed = listed.lines().filter(|point| point.starts_with("agent."));
        assert_eq!(
            all.iter().map(String::as_str).collect::<BTreeSet<_>>(),
            listed.collect::<BTreeSet<_>>(),
            "the steps' points, and those in testkit/tests/cases/fault_points.txt"
        );
    }

    /// Clients show these names.
    #[test]
    fn the_durations_of_a_create_keep_their_names() {
        let names = Create::STEPS.iter().filter_map(|step| step.timing).collect::<Vec<_>>();
        assert_eq!(names, ["network", "journal", "disk", "boot", "init"]);
    }
}
