// SPDX-License-Identifier: Apache-2.0
//! Model of what sandboxes and snapshots must contain, and of what can be done with them.

use std::collections::BTreeMap;

use super::dice::Dice;

/// Maximum number of sandboxes and of snapshots at a time: each more makes every step longer.
const SANDBOXES: usize = 3;
const SNAPSHOTS: usize = 2;

/// Process that counts in its memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Counter {
    pub(super) pid: String,
    /// Number that it had reached; it never has a smaller one.
    pub(super) at: u64,
}

/// What a sandbox, or a snapshot, must contain.
#[derive(Debug, Clone, Default)]
pub(super) struct Content {
    /// Files that were written and synced, with their content.
    pub(super) files: BTreeMap<String, String>,
    /// `None` if it has to be started.
    pub(super) counter: Option<Counter>,
}

/// Status on which a user can act.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Running,
    /// Paused with its memory.
    Paused,
    /// Paused without its memory, or failed: it can be booted from its disk.
    Lost,
}

#[derive(Debug)]
pub(super) struct Sandbox {
    pub(super) id: String,
    pub(super) status: Status,
    pub(super) content: Content,
}

#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) name: String,
    pub(super) content: Content,
}

/// Operation on the sandbox, or the snapshot, with this number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Create,
    Write(usize),
    Pause(usize),
    Resume(usize),
    /// Resume from the disk.
    Boot(usize),
    Snapshot(usize),
    /// Create from a snapshot.
    Clone(usize),
    Delete(usize),
    DeleteSnapshot(usize),
}

/// Everything that there must be.
#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) sandboxes: Vec<Sandbox>,
    pub(super) snapshots: Vec<Snapshot>,
}

impl Step {
    /// Whether it makes a sandbox.
    pub(super) fn creates(self) -> bool {
        matches!(self, Self::Create | Self::Clone(_))
    }

    /// Returns whether it reaches this fault point when it does something.
    pub(super) fn reaches(self, point: &str) -> bool {
        let (part, rest) = point.split_once('.').unwrap_or_default();
        let (operation, place) = rest.split_once('.').unwrap_or_default();
        match self {
            // It is only reached if the template's memory is captured.
            Self::Create | Self::Clone(_) => operation == "create" && place != "captured",
            Self::Write(_) => false,
            Self::Pause(_) => operation == "pause",
            Self::Resume(_) => operation == "resume" && place != "memory_given_up",
            Self::Boot(_) => operation == "resume",
            // That of a paused sandbox captures nothing.
            Self::Snapshot(_) => operation == "snapshot" && place != "doomed" && place != "captured",
            Self::Delete(_) => operation == "destroy",
            Self::DeleteSnapshot(_) => part == "server" && place == "doomed",
        }
    }
}

impl Model {
    /// Chooses what to do next. What does nothing, as a pause of a paused sandbox, is chosen, too, but rarely.
    pub(super) fn choose(&self, dice: &mut Dice) -> Step {
        let mut steps = Vec::new();
        if self.sandboxes.len() < SANDBOXES {
            steps.push((if self.sandboxes.is_empty() { 20 } else { 1 }, Step::Create));
            steps.extend((0..self.snapshots.len()).map(|index| (4, Step::Clone(index))));
        }
        steps.extend((0..self.snapshots.len()).map(|index| (1, Step::DeleteSnapshot(index))));
        for (index, sandbox) in self.sandboxes.iter().enumerate() {
            let of_it = match sandbox.status {
                Status::Running => [
                    (4, Step::Write(index)),
                    (6, Step::Pause(index)),
                    (1, Step::Resume(index)),
                    (3, Step::Snapshot(index)),
                    (1, Step::Delete(index)),
                ],
                Status::Paused => [
                    (1, Step::Pause(index)),
                    (6, Step::Resume(index)),
                    (2, Step::Boot(index)),
                    (3, Step::Snapshot(index)),
                    (1, Step::Delete(index)),
                ],
                Status::Lost => [
                    (0, Step::Pause(index)),
                    (0, Step::Resume(index)),
                    (8, Step::Boot(index)),
                    (0, Step::Snapshot(index)),
                    (2, Step::Delete(index)),
                ],
            };
            let full = self.snapshots.len() >= SNAPSHOTS;
            steps.extend(of_it.into_iter().filter(|(_, step)| !(full && matches!(step, Step::Snapshot(_)))));
        }
        dice.weighted(steps)
    }

    /// Returns whether a step does nothing.
    pub(super) fn is_idle(&self, step: Step) -> bool {
        match step {
            Step::Pause(index) => self.sandboxes[index].status == Status::Paused,
            Step::Resume(index) => self.sandboxes[index].status == Status::Running,
            _ => false,
        }
    }
}
