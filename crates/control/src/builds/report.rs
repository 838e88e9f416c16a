// SPDX-License-Identifier: Apache-2.0
//! What is told of the steps of a build: their status, and how long they took. Pure.

use std::time::Duration;

use serde_json::Value;
use wrenn_api::{BuildStep, BuildStepStatus as Status};

use super::plan::{Plan, Planned};

/// Number of digits of a key that are told.
const KEY_SHOWN: usize = 12;

/// The steps of a build, as they are told.
#[derive(Debug)]
pub(super) struct Report(Vec<BuildStep>);

impl Report {
    /// Tells that no step was begun.
    pub(super) fn new(plan: &Plan) -> Self {
        Self(plan.steps.iter().map(pending).collect())
    }

    /// Tells that no step was begun, and nothing of their results.
    pub(super) fn without_keys(plan: &Plan) -> Self {
        let keyless = |step: &Planned| BuildStep { cache_key: None, ..pending(step) };
        Self(plan.steps.iter().map(keyless).collect())
    }

    /// Tells what is known of a build whose plan cannot be made: what is stored of its steps.
    pub(super) fn stored(steps: &Value) -> Self {
        Self(serde_json::from_value(steps.clone()).unwrap_or_default())
    }

    /// Returns the steps as they are stored.
    pub(super) fn to_json(&self) -> Value {
        serde_json::to_value(&self.0).unwrap_or_default()
    }

    /// Tells that all steps up to this one are in the cache, and that those after it are not begun. What a worker before has done
    /// with the same result is told as it was.
    pub(super) fn begin_after(&mut self, number: u32, before: &Self) {
        for step in &mut self.0 {
            step.miss = None;
            if step.number > number {
                step.status = Status::Pending;
                continue;
            }
            let same = |old: &&BuildStep| {
                let is_done = old.status == Status::Succeeded && old.cache_key.is_some();
                is_done && old.number == step.number && old.cache_key == step.cache_key
            };
            match before.0.iter().find(same) {
                Some(old) => *step = old.clone(),
                None => step.status = Status::Cached,
            }
        }
    }

    /// Tells that all steps are in the cache.
    pub(super) fn all_cached(&mut self) {
        self.0.iter_mut().for_each(|step| step.status = Status::Cached);
    }

    /// Tells why the result of a step is not taken from the cache.
    pub(super) fn miss(&mut self, number: u32, reason: impl Into<String>) {
        if let Some(step) = self.step(number) {
            step.miss = Some(reason.into());
        }
    }

    /// Tells how many bytes a step has added to the disk, if that is known.
    pub(super) fn added(&mut self, number: u32, bytes: Option<u64>) {
        if let Some(step) = self.step(number) {
            step.bytes_added = bytes.or(step.bytes_added);
        }
    }

    /// Tells that a step is being done.
    pub(super) fn running(&mut self, number: u32) {
        if let Some(step) = self.step(number) {
            step.status = Status::Running;
        }
    }

    /// Tells that a step was done.
    pub(super) fn done(&mut self, number: u32, took: Option<Duration>, exit_code: Option<i32>) {
        self.ended(number, Status::Succeeded, took, exit_code);
    }

    /// Tells that a step failed.
    pub(super) fn failed(&mut self, number: u32, took: Option<Duration>, exit_code: Option<i32>) {
        self.ended(number, Status::Failed, took, exit_code);
    }

    fn ended(&mut self, number: u32, status: Status, took: Option<Duration>, exit_code: Option<i32>) {
        if let Some(step) = self.step(number) {
            step.status = status;
            step.duration_ms = took.map(|took| took.as_millis() as u64);
            step.exit_code = exit_code;
        }
    }

    fn step(&mut self, number: u32) -> Option<&mut BuildStep> {
        self.0.iter_mut().find(|step| step.number == number)
    }
}

fn pending(step: &Planned) -> BuildStep {
    BuildStep {
        number: step.place.number,
        line: step.place.line,
        instruction: step.text.clone(),
        status: Status::Pending,
        cache_key: step.layer().map(|link| link.key.chars().take(KEY_SHOWN).collect()),
        miss: None,
        bytes_added: None,
        duration_ms: None,
        exit_code: None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use wrenn_recipe::Context;

    use super::*;
    use crate::builds::plan::plan;

    fn report(recipe: &str) -> Report {
        let recipe = wrenn_recipe::parse(recipe.as_bytes()).expect("a recipe");
        let plan = plan(&recipe, "base".to_owned(), Context::default(), |_| Ok(BTreeMap::new()));
        Report::new(&plan.expect("a plan"))
    }

    fn statuses(report: &Report) -> Vec<Status> {
        report.0.iter().map(|step| step.status).collect()
    }

    #[test]
    fn steps_are_told_as_they_go() {
        let mut report = report("RUN a\nENV A=1\nRUN b");
        let keys: Vec<_> = report.0.iter().map(|step| step.cache_key.as_ref().map(String::len)).collect();
        assert_eq!(keys, [Some(KEY_SHOWN), None, Some(KEY_SHOWN)]);
        report.begin_after(1, &Report(Vec::new()));
        assert_eq!(statuses(&report), [Status::Cached, Status::Pending, Status::Pending]);
        report.miss(3, "it is new");
        report.done(2, None, None);
        report.running(3);
        report.failed(3, Some(Duration::from_millis(7)), Some(100));
        report.added(1, Some(4096));
        report.added(1, None);
        let added: Vec<_> = report.0.iter().map(|step| step.bytes_added).collect();
        assert_eq!(added, [Some(4096), None, None]);
        let last = report.0.last().expect("a step");
        assert_eq!((last.status, last.duration_ms, last.exit_code), (Status::Failed, Some(7), Some(100)));
        assert_eq!((last.number, last.line, last.miss.as_deref()), (3, 3, Some("it is new")));
        let stored = Report::stored(&report.to_json());
        assert_eq!(stored.0, report.0);
    }

    #[test]
    fn a_plan_on_what_is_not_known_has_steps_without_keys() {
        let recipe = wrenn_recipe::parse(b"RUN a\nENV A=1").expect("a recipe");
        let plan = plan(&recipe, "base".to_owned(), Context::default(), |_| Ok(BTreeMap::new()));
        let report = Report::without_keys(&plan.expect("a plan"));
        assert!(report.0.len() == 2 && report.0.iter().all(|step| step.cache_key.is_none()), "{report:?}");
    }

    #[test]
    fn what_a_worker_before_has_done_is_told_as_it_was() {
        let mut before = report("RUN a\nRUN b");
        before.miss(1, "nothing was built with this step before");
        before.done(1, Some(Duration::from_secs(1)), Some(0));
        before.running(2);
        let mut now = report("RUN a\nRUN b");
        now.begin_after(1, &before);
        assert_eq!(statuses(&now), [Status::Succeeded, Status::Pending]);
        assert_eq!(now.0[0], before.0[0]);
        // Another result with this number is none.
        let mut other = report("RUN c\nRUN b");
        other.begin_after(1, &before);
        assert_eq!(statuses(&other), [Status::Cached, Status::Pending]);
    }
}
