// SPDX-License-Identifier: Apache-2.0
//! Operations on a sandbox: lists of journaled steps, and what undoes them.

mod create;
mod destroy;
mod fail;
mod pause;
mod place;
mod ready;
mod resume;
pub(super) mod snapshot;
mod steps;
mod undo;

pub(super) use self::{
    create::Create,
    destroy::Destroy,
    pause::{Left as PauseLeft, Pause},
    resume::Resume,
    steps::{Cancel, Steps},
    undo::release_running,
};
pub(crate) use self::{destroy::take_back, fail::Fail, steps::run, undo::undo};

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{
        steps::{PROCESS, Step},
        *,
    };
    use crate::sandbox::entry::Thing;

    /// Names of all fault points of a list of steps.
    fn points<S: Steps>(steps: &'static [Step<S>]) -> Vec<String> {
        let own =
            |step: &'static Step<S>| step.points.iter().map(|point| format!("{PROCESS}.{}.{point}", S::NAME));
        steps.iter().flat_map(|step| points(step.inner).into_iter().chain(own(step))).collect()
    }

    /// The end-to-end tests kill the agent at each point of their list.
    #[test]
    fn the_tests_know_every_fault_point() {
        let mut all = [
            points(Create::STEPS),
            points(Destroy::STEPS),
            points(Fail::STEPS),
            points(Pause::STEPS),
            points(Resume::STEPS),
            points(snapshot::OfRunning::STEPS),
            points(snapshot::OfPaused::STEPS),
        ]
        .concat();
        all.extend(Thing::ALL.map(|thing| format!("{PROCESS}.{}.{}", Destroy::NAME, thing.name())));
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
