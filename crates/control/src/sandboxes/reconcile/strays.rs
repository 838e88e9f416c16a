// SPDX-License-Identifier: Apache-2.0
//! MicroVMs without a row, and the time since which each was seen. A row may be missing because a database
//! was restored, so they are only destroyed after a grace period.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use uuid::Uuid;

/// MicroVMs of one host without a row.
#[derive(Debug, Default)]
pub(super) struct Strays(HashMap<Uuid, Instant>);

/// Result of a check of a host.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Look {
    /// Seen for the first time.
    pub(super) new: Vec<Uuid>,
    /// Seen for the whole grace period.
    pub(super) due: Vec<Uuid>,
}

impl Strays {
    /// Records which strays a host has now, and forgets the others.
    pub(super) fn seen(&mut self, present: &HashSet<Uuid>, now: Instant, grace: Duration) -> Look {
        self.0.retain(|id, _| present.contains(id));
        let mut look = Look::default();
        for &id in present {
            match self.0.get(&id) {
                None => {
                    self.0.insert(id, now);
                    look.new.push(id);
                }
                Some(since) if now.duration_since(*since) >= grace => look.due.push(id),
                Some(_) => {}
            }
        }
        look
    }

    /// Forgets all strays, so that the grace period starts again for each.
    pub(super) fn forget(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(60);

    #[test]
    fn a_stray_is_due_when_it_was_seen_for_long_enough_without_a_gap() {
        let (id, begin) = (Uuid::from_u128(1), Instant::now());
        let (some, none) = (HashSet::from([id]), HashSet::new());
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut strays = Strays::default();
        assert_eq!(strays.seen(&some, at(0), GRACE), Look { new: vec![id], due: vec![] });
        assert_eq!(strays.seen(&some, at(59), GRACE), Look::default());
        assert_eq!(strays.seen(&some, at(60), GRACE), Look { new: vec![], due: vec![id] });
        // It had a row for a moment.
        assert_eq!(strays.seen(&none, at(61), GRACE), Look::default());
        assert_eq!(strays.seen(&some, at(62), GRACE).due, Vec::<Uuid>::new());
        assert_eq!(strays.seen(&some, at(121), GRACE).due, Vec::<Uuid>::new());
        strays.forget();
        assert_eq!(strays.seen(&some, at(180), GRACE).due, Vec::<Uuid>::new());
    }
}
