// SPDX-License-Identifier: Apache-2.0
//! Records of deeds that wait in memory while the database does not answer.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use super::Deed;

/// Maximum number of records that wait for the database.
const WAITING_MAX: usize = 10_000;

/// Records that could not be written yet.
#[derive(Default)]
pub(crate) struct Unwritten(Mutex<VecDeque<Deed>>);

impl Unwritten {
    /// Keeps a record until the database answers. If too many wait it is only in the log of the server.
    pub(crate) fn keep(&self, deed: Deed) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() < WAITING_MAX {
            waiting.push_back(deed);
            return;
        }
        drop(waiting);
        lose(&deed);
    }

    /// Returns the record that waits longest.
    pub(crate) fn first(&self) -> Option<Deed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).front().cloned()
    }

    /// Removes a record that was written, or lost, if it is still the first.
    pub(crate) fn written(&self, deed: &Deed) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.front().is_some_and(|first| first.id == deed.id) {
            waiting.pop_front();
        }
    }

    /// Whether none waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

/// Writes a record, which the database does not have, into the log of the server.
pub(crate) fn lose(deed: &Deed) {
    metrics::counter!("wrenn_audit_lost_total").increment(1);
    tracing::error!(
        team = %deed.team, actor = ?deed.who, action = %deed.action, resource = ?deed.resource, outcome = %deed.outcome,
        address = ?deed.address, request = ?deed.request_id, "a record could not be written into the audit log"
    );
}

#[cfg(test)]
mod tests {
    use wrenn_api::TeamId;

    use super::*;
    use crate::by::By;

    #[test]
    fn what_waits_is_bounded_and_in_order() {
        let unwritten = Unwritten::default();
        let deeds = [(); 2].map(|()| Deed::new(By::SYSTEM, TeamId::new(), "sandbox.pause"));
        for deed in deeds.iter().cycle().take(WAITING_MAX + 1) {
            unwritten.keep(deed.clone());
        }
        assert_eq!(unwritten.0.lock().expect("no panic").len(), WAITING_MAX);
        let first = unwritten.first().expect("one waits");
        assert_eq!(first.id, deeds[0].id);
        // Another task may have written it meanwhile.
        unwritten.written(&deeds[1]);
        unwritten.written(&first);
        assert_eq!(unwritten.first().map(|deed| deed.id), Some(deeds[1].id));
        assert!(!unwritten.is_empty());
    }
}
