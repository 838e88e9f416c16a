// SPDX-License-Identifier: Apache-2.0
//! What of a plan is in the cache: where its build begins, and why the steps from there on are done. Pure.

use std::collections::HashMap;

use super::plan::{Plan, Planned, Work};
use crate::db::layers::Layer;

/// The layers that there are of a plan, by their keys.
#[derive(Debug, Default)]
pub(super) struct Cache {
    layers: HashMap<String, (Layer, Use)>,
    /// Number of the first step whose result is not taken from here.
    no_cache_from: Option<u32>,
}

/// Whether a layer can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Possible,
    /// Its host does not respond.
    Unreachable,
    /// Its host does not have it any more, or cannot go on with it.
    Broken,
}

/// Where a build begins.
#[derive(Debug)]
pub(super) struct Begin<'a> {
    /// Number of the last step whose result is there; 0 if the build begins with its base.
    pub(super) after: u32,
    /// The result; `None` for the base.
    pub(super) layer: Option<&'a Layer>,
}

/// Why the result of a step is not taken from the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Miss {
    /// The build is not to.
    Forced,
    /// The host that has it does not respond.
    Unreachable,
    /// It is there and cannot be used.
    Broken,
    /// It is not there. Compared with what is there instead, it can be told why.
    Absent,
    /// What it would be done on is not there.
    Earlier,
}

impl Cache {
    /// Takes what is known of the layers.
    pub(super) fn new(layers: Vec<Layer>, no_cache_from: Option<u32>) -> Self {
        let known = |layer: Layer| {
            let usable = if layer.is_online { Use::Possible } else { Use::Unreachable };
            (layer.key.clone(), (layer, usable))
        };
        Self { layers: layers.into_iter().map(known).collect(), no_cache_from }
    }

    /// Bytes that a step has added to the disk whose result is there, if that is known.
    pub(super) fn bytes_added(&self, step: &Planned) -> Option<u64> {
        let (layer, _) = self.layers.get(&step.layer()?.key)?;
        layer.bytes_added.and_then(|bytes| bytes.try_into().ok())
    }

    /// Notes that the host of a layer cannot be reached.
    pub(super) fn unreachable(&mut self, key: &str) {
        self.set(key, Use::Unreachable);
    }

    /// Notes that a layer cannot be used.
    pub(super) fn broken(&mut self, key: &str) {
        self.set(key, Use::Broken);
    }

    fn set(&mut self, key: &str, now: Use) {
        if let Some((_, usable)) = self.layers.get_mut(key) {
            *usable = now;
        }
    }

    /// Returns where a build begins: after the last step whose result can be used, whatever there is of those before it.
    pub(super) fn begin(&self, plan: &Plan) -> Begin<'_> {
        let usable = |step: &Planned| {
            let (layer, usable) = self.layers.get(&step.layer()?.key)?;
            let good = *usable == Use::Possible && !self.is_forced(step);
            good.then_some(Begin { after: step.place.number, layer: Some(layer) })
        };
        plan.steps.iter().rev().find_map(usable).unwrap_or(Begin { after: 0, layer: None })
    }

    /// Returns whether nothing is left to do that has a result after the step `after`.
    pub(super) fn has_all(plan: &Plan, after: u32) -> bool {
        plan.steps.iter().all(|step| step.layer().is_none() || step.place.number <= after)
    }

    /// Returns whether a template that was made of the same may be taken if [`Self::has_all`]: no process is to be started anew.
    pub(super) fn may_take_template(&self, plan: &Plan) -> bool {
        let is_process = |step: &&Planned| matches!(step.work, Work::Process);
        !plan.steps.iter().filter(is_process).any(|step| self.is_forced(step))
    }

    /// Returns why each step that has a result is done if the build begins after the step `after`.
    pub(super) fn misses(&self, plan: &Plan, after: u32) -> Vec<(u32, Miss)> {
        let done = plan.steps.iter().filter(|step| step.place.number > after);
        let with_result = done.filter_map(|step| Some((step, &step.layer()?.key)));
        let why = |(at, (step, key)): (usize, (&Planned, &String))| {
            let miss = match self.layers.get(key).map(|(_, usable)| *usable) {
                _ if self.is_forced(step) => Miss::Forced,
                _ if at > 0 => Miss::Earlier,
                Some(Use::Unreachable) => Miss::Unreachable,
                Some(Use::Possible | Use::Broken) => Miss::Broken,
                None => Miss::Absent,
            };
            (step.place.number, miss)
        };
        with_result.enumerate().map(why).collect()
    }

    fn is_forced(&self, step: &Planned) -> bool {
        self.no_cache_from.is_some_and(|first| step.place.number >= first)
    }
}

impl Miss {
    /// Says why; of an absent result it is only known that there is none.
    pub(super) const fn reason(self) -> &'static str {
        match self {
            Self::Forced => "forced by no_cache_from",
            Self::Unreachable => "its result is on a host that does not respond",
            Self::Broken => "its result cannot be used any more",
            Self::Absent => "nothing was built with this step before",
            Self::Earlier => "an earlier step is not cached",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use uuid::Uuid;
    use wrenn_recipe::Context;

    use super::*;
    use crate::builds::plan::plan;

    /// Steps 1, 2, 4 and 5 have results, 3 has none, 6 is a process.
    fn planned() -> Plan {
        let recipe =
            wrenn_recipe::parse(b"RUN a\nRUN b\nENV A=1\nRUN c\nCOPY a /x\nSTART d").expect("a recipe");
        plan(&recipe, "base".to_owned(), Context::default(), |_| Ok(BTreeMap::new())).expect("a plan")
    }

    fn key(plan: &Plan, number: u32) -> String {
        let link = plan.steps[number as usize - 1].layer().expect("a step with a result");
        link.key.clone()
    }

    /// The cache with results of these steps, whose hosts respond or not.
    fn cache(plan: &Plan, steps: &[(u32, bool)], no_cache_from: Option<u32>) -> Cache {
        let layer = |&(number, is_online): &(u32, bool)| Layer {
            key: key(plan, number),
            snapshot_id: Uuid::from_u128(number.into()),
            host_id: Uuid::nil(),
            is_online,
            was_online: true,
            disk_bytes: None,
            bytes_added: Some(i64::from(number) << 20),
        };
        Cache::new(steps.iter().map(layer).collect(), no_cache_from)
    }

    fn misses(cache: &Cache, plan: &Plan) -> Vec<(u32, Miss)> {
        cache.misses(plan, cache.begin(plan).after)
    }

    #[test]
    fn a_build_begins_after_the_last_result() {
        let plan = planned();
        let all = cache(&plan, &[(1, true), (2, true), (4, true), (5, true)], None);
        let begin = all.begin(&plan);
        assert_eq!((begin.after, begin.layer.map(|layer| layer.snapshot_id)), (5, Some(Uuid::from_u128(5))));
        assert!(Cache::has_all(&plan, 5) && all.may_take_template(&plan));
        let added: Vec<_> =
            plan.steps.iter().map(|step| all.bytes_added(step).map(|bytes| bytes >> 20)).collect();
        assert_eq!(added, [Some(1), Some(2), None, Some(4), Some(5), None]);
        assert!(all.misses(&plan, 5).is_empty());
        // What is before it does not matter.
        let some = cache(&plan, &[(4, true)], None);
        assert_eq!(some.begin(&plan).after, 4);
        assert_eq!(misses(&some, &plan), [(5, Miss::Absent)]);
        let none = cache(&plan, &[], None);
        assert!(none.begin(&plan).after == 0 && none.begin(&plan).layer.is_none());
        assert_eq!(
            misses(&none, &plan),
            [(1, Miss::Absent), (2, Miss::Earlier), (4, Miss::Earlier), (5, Miss::Earlier)]
        );
    }

    #[test]
    fn what_is_forced_is_done_although_it_is_there() {
        let plan = planned();
        let steps = [(1, true), (2, true), (4, true), (5, true)];
        let from_the_second = cache(&plan, &steps, Some(2));
        assert_eq!(from_the_second.begin(&plan).after, 1);
        let forced = [(2, Miss::Forced), (4, Miss::Forced), (5, Miss::Forced)];
        assert_eq!(misses(&from_the_second, &plan), forced);
        // All results are taken, and the process is started anew.
        let the_process = cache(&plan, &steps, Some(6));
        assert_eq!(the_process.begin(&plan).after, 5);
        assert!(!the_process.may_take_template(&plan));
        // A step before the forced ones may be missing, too.
        let both = cache(&plan, &[], Some(4));
        assert_eq!(
            misses(&both, &plan),
            [(1, Miss::Absent), (2, Miss::Earlier), (4, Miss::Forced), (5, Miss::Forced)]
        );
    }

    #[test]
    fn what_cannot_be_used_is_passed_over() {
        let plan = planned();
        let mut cache = cache(&plan, &[(1, true), (2, true), (4, false)], None);
        assert_eq!(cache.begin(&plan).after, 2);
        assert_eq!(misses(&cache, &plan), [(4, Miss::Unreachable), (5, Miss::Earlier)]);
        cache.broken(&key(&plan, 2));
        assert_eq!(cache.begin(&plan).after, 1);
        assert_eq!(misses(&cache, &plan), [(2, Miss::Broken), (4, Miss::Earlier), (5, Miss::Earlier)]);
        cache.unreachable(&key(&plan, 1));
        assert_eq!(misses(&cache, &plan)[0], (1, Miss::Unreachable));
    }
}
