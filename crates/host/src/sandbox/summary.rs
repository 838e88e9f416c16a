// SPDX-License-Identifier: Apache-2.0
//! Summary of a sandbox's journal: properties and resources. The running agent and the next one use the same
//! summary.

use std::collections::BTreeSet;

use wrenn_memory::BuildId;
use wrenn_vmm::ProcessId;

use super::{
    entry::{Entry, Thing},
    spec::Spec,
};
use crate::snapshots::Base;

/// Summary of a journal's entries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    spec: Option<Spec>,
    slot: Option<u16>,
    /// Whether there is a volume.
    volume: bool,
    /// VMM, which may be running.
    vmm: Option<Vmm>,
    /// What the guest did last, of a sandbox that has run.
    life: Option<Life>,
    /// Code and message of the failure.
    failure: Option<(String, String)>,
    destroy: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Vmm {
    /// About to be started.
    Intended,
    Started(ProcessId, Base),
}

/// Life of a guest that has run.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Life {
    Running,
    Pausing,
    Paused { memory: Option<BuildId>, lost: Option<String> },
    Resuming,
}

/// How far a sandbox has come, by its journal. The next agent begins there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Nothing is recorded: there are no resources.
    Empty,
    /// It never ran.
    Creating,
    /// It may be running, in this slot.
    Running {
        /// Slot number.
        slot: u16,
    },
    /// Its guest may be stopped, in this slot, for a pause that was not completed.
    Pausing {
        /// Slot number.
        slot: u16,
    },
    /// It is paused. A VMM and a slot, if there are any, are not needed.
    Paused {
        /// Generation with its memory; none if it was lost.
        memory: Option<BuildId>,
        /// Why it was lost.
        lost: Option<String>,
    },
    /// Its guest may be going on, in this slot, and was not yet told who it is.
    Resuming {
        /// Slot number.
        slot: u16,
    },
    /// It failed.
    Failed {
        /// Error code, as in the REST API.
        code: String,
        /// Message with cause and remedy.
        message: String,
    },
    /// It is being destroyed.
    Destroying,
}

/// Resource to be released.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Undo {
    /// Kill the VMM; without a process it is found by its run directory.
    Vmm(Option<ProcessId>),
    /// Remove the volume.
    Volume,
    /// Release the slot.
    Slot(u16),
}

impl Undo {
    /// Kind of the resource.
    pub(crate) fn thing(&self) -> Thing {
        match self {
            Self::Vmm(_) => Thing::Vmm,
            Self::Volume => Thing::Volume,
            Self::Slot(_) => Thing::Slot,
        }
    }
}

impl Summary {
    /// Summarizes entries.
    pub(crate) fn of(entries: &[Entry]) -> Self {
        let mut summary = Self::default();
        entries.iter().for_each(|entry| summary.add(entry));
        summary
    }

    /// Summary of a sandbox with an unknown journal, which may have a VMM, a volume and this slot.
    pub(crate) fn presumed(slot: Option<u16>) -> Self {
        Self { slot, volume: true, vmm: Some(Vmm::Intended), ..Self::default() }
    }

    /// Adds an entry. The last entry about a resource counts.
    pub(crate) fn add(&mut self, entry: &Entry) {
        match entry.clone() {
            Entry::Spec(spec) => self.spec = Some(spec),
            Entry::Slot { index } => self.slot = Some(index),
            Entry::Volume => self.volume = true,
            Entry::VmmIntent => self.vmm = Some(Vmm::Intended),
            Entry::Vmm { process, base } => self.vmm = Some(Vmm::Started(process, base)),
            Entry::Running => self.life = Some(Life::Running),
            Entry::Pausing => self.life = Some(Life::Pausing),
            Entry::Paused { memory, lost } => self.life = Some(Life::Paused { memory, lost }),
            Entry::Resuming => {
                self.life = Some(Life::Resuming);
                self.failure = None;
            }
            Entry::Released { thing } => self.release(thing),
            Entry::Failed { code, message } => self.failure = Some((code, message)),
            Entry::Destroy => self.destroy = true,
        }
    }

    fn release(&mut self, thing: Thing) {
        match thing {
            Thing::Vmm => self.vmm = None,
            Thing::Volume => self.volume = false,
            Thing::Slot => self.slot = None,
        }
    }

    /// Returns the minimal entries with this summary.
    pub(crate) fn entries(&self) -> Vec<Entry> {
        let failed = |(code, message): (String, String)| Entry::Failed { code, message };
        let vmm = self.vmm.clone().map(|vmm| match vmm {
            Vmm::Intended => Entry::VmmIntent,
            Vmm::Started(process, base) => Entry::Vmm { process, base },
        });
        let life = self.life.clone().map(|life| match life {
            Life::Running => Entry::Running,
            Life::Pausing => Entry::Pausing,
            Life::Paused { memory, lost } => Entry::Paused { memory, lost },
            Life::Resuming => Entry::Resuming,
        });
        let all = [
            self.spec.clone().map(Entry::Spec),
            self.slot.map(|index| Entry::Slot { index }),
            self.volume.then_some(Entry::Volume),
            vmm,
            life,
            self.failure.clone().map(failed),
            self.destroy.then_some(Entry::Destroy),
        ];
        all.into_iter().flatten().collect()
    }

    /// Requested properties.
    pub(crate) fn spec(&self) -> Option<&Spec> {
        self.spec.as_ref()
    }

    /// Reserved network slot.
    pub(crate) fn slot(&self) -> Option<u16> {
        self.slot
    }

    /// Returns whether there may be a resource of this kind.
    pub(super) fn has(&self, thing: Thing) -> bool {
        match thing {
            Thing::Vmm => self.vmm.is_some(),
            Thing::Volume => self.volume,
            Thing::Slot => self.slot.is_some(),
        }
    }

    /// VMM process that was started last.
    pub(crate) fn process(&self) -> Option<&ProcessId> {
        match &self.vmm {
            Some(Vmm::Started(process, _)) => Some(process),
            _ => None,
        }
    }

    /// What the memory of the guest began with.
    pub(crate) fn base(&self) -> Base {
        match self.vmm {
            Some(Vmm::Started(_, base)) => base,
            _ => Base::Unknown,
        }
    }

    /// Memory of the sandbox, if it is paused with one.
    fn memory(&self) -> Option<BuildId> {
        match self.life {
            Some(Life::Paused { memory, .. }) => memory,
            _ => None,
        }
    }

    /// Generation that the guest's memory began with.
    fn began_with(&self) -> Option<BuildId> {
        match self.base() {
            Base::Generation(build) => Some(build),
            Base::Zero | Base::Unknown => None,
        }
    }

    /// Generations that the record names: the sandbox's memory, and what its guest's memory began with, which a pause that
    /// was not completed has not released.
    pub(crate) fn generations(&self) -> BTreeSet<BuildId> {
        [self.memory(), self.began_with()].into_iter().flatten().collect()
    }

    /// Generation that the sandbox still needs: its memory if it is paused, and what its guest's memory began with
    /// otherwise.
    pub(crate) fn needed(&self) -> Option<BuildId> {
        if matches!(self.life, Some(Life::Paused { .. })) { self.memory() } else { self.began_with() }
    }

    /// Returns whether the sandbox has run, so that its disk has data of its user.
    pub(crate) fn has_run(&self) -> bool {
        self.life.is_some()
    }

    /// Returns how far the sandbox has come.
    pub(crate) fn stage(&self) -> Stage {
        if self.spec.is_none() {
            return Stage::Empty;
        }
        if self.destroy {
            return Stage::Destroying;
        }
        if let Some((code, message)) = self.failure.clone() {
            return Stage::Failed { code, message };
        }
        match (self.life.clone(), self.slot) {
            (Some(Life::Paused { memory, lost }), _) => Stage::Paused { memory, lost },
            (Some(Life::Running), Some(slot)) => Stage::Running { slot },
            (Some(Life::Pausing), Some(slot)) => Stage::Pausing { slot },
            (Some(Life::Resuming), Some(slot)) => Stage::Resuming { slot },
            // No agent releases the slot of a guest that runs.
            (Some(_), None) => Stage::Paused { memory: None, lost: None },
            (None, _) => Stage::Creating,
        }
    }

    /// Lists the resources to be released, latest first.
    pub(crate) fn undo(&self) -> Vec<Undo> {
        let vmm = self.vmm.as_ref().map(|_| Undo::Vmm(self.process().cloned()));
        let volume = self.volume.then_some(Undo::Volume);
        [vmm, volume, self.slot.map(Undo::Slot)].into_iter().flatten().collect()
    }

    /// Removes a released resource, so that it is released only once: a slot may belong to another sandbox
    /// afterwards.
    pub(crate) fn forget(&mut self, done: &Undo) {
        self.release(done.thing());
    }
}

#[cfg(test)]
mod tests {
    use super::{super::journal::tests::life, *};

    #[test]
    fn every_prefix_undoes_exactly_what_it_lists() {
        let vmm = Undo::Vmm(Some(ProcessId { pid: 7, start_time: 9 }));
        let expected = [
            vec![],
            vec![],
            vec![Undo::Slot(3)],
            vec![Undo::Volume, Undo::Slot(3)],
            vec![Undo::Vmm(None), Undo::Volume, Undo::Slot(3)],
            vec![vmm.clone(), Undo::Volume, Undo::Slot(3)],
            vec![vmm.clone(), Undo::Volume, Undo::Slot(3)],
            vec![vmm, Undo::Volume, Undo::Slot(3)],
        ];
        let life = life();
        for (len, wanted) in expected.iter().enumerate() {
            let summary = Summary::of(&life[..len]);
            assert_eq!(&summary.undo(), wanted, "prefix of {len}");
            let stage = match len {
                0 => Stage::Empty,
                1..6 => Stage::Creating,
                6 => Stage::Running { slot: 3 },
                _ => Stage::Destroying,
            };
            assert_eq!(summary.stage(), stage, "prefix of {len}");
            assert_eq!(Summary::of(&summary.entries()), summary, "prefix of {len}");
        }
    }

    /// What a guest's memory began with is not needed once the sandbox is paused, but named until it is released.
    #[test]
    fn a_paused_sandbox_needs_its_memory_only() {
        let [base, memory] = [1, 2].map(BuildId::from_u128);
        let mut entries = life();
        entries.pop();
        let process = ProcessId { pid: 7, start_time: 9 };
        entries.extend([Entry::Vmm { process, base: Base::Generation(base) }, Entry::Running]);
        let running = Summary::of(&entries);
        assert_eq!((running.needed(), running.generations()), (Some(base), BTreeSet::from([base])));
        entries.push(Entry::Paused { memory: Some(memory), lost: None });
        let paused = Summary::of(&entries);
        assert_eq!((paused.needed(), paused.generations()), (Some(memory), BTreeSet::from([base, memory])));
    }

    #[test]
    fn what_was_taken_back_is_not_taken_back_again() {
        let mut summary = Summary::of(&life());
        for left in (0..3).rev() {
            let steps = summary.undo();
            summary.forget(&steps[0]);
            assert_eq!(summary.undo(), steps[1..]);
            assert_eq!(steps.len() - 1, left);
        }
        assert_eq!(summary.stage(), Stage::Destroying);
    }

    #[test]
    fn a_slot_that_was_released_is_never_taken_back() {
        let mut entries = life();
        entries.pop();
        let things = [Thing::Vmm, Thing::Slot];
        entries.extend(things.map(|thing| Entry::Released { thing }));
        assert_eq!(Summary::of(&entries).undo(), [Undo::Volume]);
        let process = ProcessId { pid: 8, start_time: 10 };
        entries.extend([Entry::Slot { index: 5 }, Entry::Vmm { process: process.clone(), base: Base::Zero }]);
        let summary = Summary::of(&entries);
        assert_eq!(summary.undo(), [Undo::Vmm(Some(process)), Undo::Volume, Undo::Slot(5)]);
        assert_eq!(summary.stage(), Stage::Running { slot: 5 });
    }
}
