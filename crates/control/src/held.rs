// SPDX-License-Identifier: Apache-2.0
//! Teams whose events wait in the outbox because a hook of an extension has failed for one of them.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use uuid::Uuid;

/// Time until a hook is called again after it has failed: the first one, which doubles, and the maximum.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Teams whose events wait, with the time until which, and the pause that led to it.
#[derive(Debug, Default)]
pub(crate) struct Held(HashMap<Uuid, (Instant, Duration)>);

impl Held {
    /// Teams whose events are not to be taken now.
    pub(crate) fn now(&self) -> Vec<Uuid> {
        let now = Instant::now();
        self.0.iter().filter(|(_, (until, _))| *until > now).map(|(team, _)| *team).collect()
    }

    /// Holds the events of a team, longer each time.
    pub(crate) fn hold(&mut self, team: Uuid) {
        let pause = self.0.get(&team).map_or(PAUSES.0, |(_, last)| PAUSES.1.min(*last * 2));
        self.0.insert(team, (Instant::now() + pause, pause));
    }

    /// Forgets that an event of a team has failed.
    pub(crate) fn release(&mut self, team: Uuid) {
        self.0.remove(&team);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_team_is_held_longer_each_time_and_free_after_a_success() {
        let (mut held, team) = (Held::default(), Uuid::from_u128(1));
        held.release(team);
        assert!(held.now().is_empty());
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            held.hold(team);
            assert_eq!((held.now(), held.0[&team].1), (vec![team], Duration::from_secs(seconds)));
        }
        held.release(team);
        assert!(held.now().is_empty());
        held.hold(team);
        assert_eq!(held.0[&team].1, PAUSES.0);
    }
}
