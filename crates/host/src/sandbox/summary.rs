//! What the journal of a sandbox adds up to: what the sandbox is, and what it holds. The living sandbox and the next agent
//! go by the same sum.

use wrenn_vmm::ProcessId;

use super::{
    journal::{Entry, Thing},
    spec::Spec,
};

/// The sum of a journal's entries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    /// What was asked for.
    pub(crate) spec: Option<Spec>,
    /// The network slot that it holds.
    pub(crate) slot: Option<u16>,
    /// Whether it holds a volume.
    volume: bool,
    /// Its VMM, which may run.
    vmm: Option<Vmm>,
    running: bool,
    /// Code and message of its failure.
    pub(crate) failure: Option<(String, String)>,
    destroy: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Vmm {
    /// About to be started.
    Intended,
    Started(ProcessId),
}

/// One thing to take back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Undo {
    /// End the VMM; without a process it is looked for by its run directory.
    Vmm(Option<ProcessId>),
    /// Remove the volume.
    Volume,
    /// Give the slot back.
    Slot(u16),
}

impl Undo {
    /// What is taken back.
    pub(crate) fn thing(&self) -> Thing {
        match self {
            Self::Vmm(_) => Thing::Vmm,
            Self::Volume => Thing::Volume,
            Self::Slot(_) => Thing::Slot,
        }
    }
}

impl Summary {
    /// The sum of these entries.
    pub(crate) fn of(entries: &[Entry]) -> Self {
        let mut summary = Self::default();
        entries.iter().for_each(|entry| summary.add(entry));
        summary
    }

    /// A sandbox of which nothing is known for certain but where it may have its VMM, its volume and this slot.
    pub(crate) fn presumed(slot: Option<u16>) -> Self {
        Self { slot, volume: true, vmm: Some(Vmm::Intended), ..Self::default() }
    }

    /// Adds an entry. What it says last of a thing counts.
    pub(crate) fn add(&mut self, entry: &Entry) {
        match entry.clone() {
            Entry::Spec(spec) => self.spec = Some(spec),
            Entry::Slot { index } => self.slot = Some(index),
            Entry::Volume => self.volume = true,
            Entry::VmmIntent => self.vmm = Some(Vmm::Intended),
            Entry::Vmm { process } => self.vmm = Some(Vmm::Started(process)),
            Entry::Running => self.running = true,
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

    /// The fewest entries with this sum.
    pub(crate) fn entries(&self) -> Vec<Entry> {
        let failed = |(code, message): (String, String)| Entry::Failed { code, message };
        let vmm = self.vmm.clone().map(|vmm| match vmm {
            Vmm::Intended => Entry::VmmIntent,
            Vmm::Started(process) => Entry::Vmm { process },
        });
        let all = [
            self.spec.clone().map(Entry::Spec),
            self.slot.map(|index| Entry::Slot { index }),
            self.volume.then_some(Entry::Volume),
            vmm,
            self.running.then_some(Entry::Running),
            self.failure.clone().map(failed),
            self.destroy.then_some(Entry::Destroy),
        ];
        all.into_iter().flatten().collect()
    }

    /// The VMM process that was started last.
    pub(crate) fn process(&self) -> Option<&ProcessId> {
        match &self.vmm {
            Some(Vmm::Started(process)) => Some(process),
            _ => None,
        }
    }

    /// Whether it may still run: it ran, did not fail, no destroy began, and enough of it is known.
    pub(crate) fn adoptable(&self) -> bool {
        let ended = self.failure.is_some() || self.destroy;
        self.running && !ended && self.spec.is_some() && self.slot.is_some()
    }

    /// What must be taken back, latest first.
    pub(crate) fn undo(&self) -> Vec<Undo> {
        let vmm = self.vmm.as_ref().map(|_| Undo::Vmm(self.process().cloned()));
        let volume = self.volume.then_some(Undo::Volume);
        [vmm, volume, self.slot.map(Undo::Slot)].into_iter().flatten().collect()
    }

    /// Forgets what was taken back, so that it is taken back once: a slot's next owner is another sandbox.
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
            assert_eq!(summary.adoptable(), len == 6, "prefix of {len}");
            assert_eq!(Summary::of(&summary.entries()), summary, "prefix of {len}");
        }
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
        assert!(!summary.adoptable());
    }

    #[test]
    fn a_slot_that_was_released_is_never_taken_back() {
        let mut entries = life();
        entries.pop();
        let things = [Thing::Vmm, Thing::Slot];
        entries.extend(things.map(|thing| Entry::Released { thing }));
        assert_eq!(Summary::of(&entries).undo(), [Undo::Volume]);
        let process = ProcessId { pid: 8, start_time: 10 };
        entries.extend([Entry::Slot { index: 5 }, Entry::Vmm { process: process.clone() }]);
        let summary = Summary::of(&entries);
        assert_eq!(summary.undo(), [Undo::Vmm(Some(process)), Undo::Volume, Undo::Slot(5)]);
        assert!(summary.adoptable());
    }
}
