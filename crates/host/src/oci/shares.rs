// SPDX-License-Identifier: Apache-2.0
//! Places that teams share, as those of the control plane: none gets more than its share, so that there is always one for the next.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

/// Places of which a team gets at most as many as are free: one team alone gets half of all, two a third each.
#[derive(Debug)]
pub(super) struct Shares {
    all: usize,
    /// Number of places that each team has, of those that have any.
    taken: Mutex<HashMap<String, usize>>,
    freed: Notify,
}

/// A place of a team; dropping it frees it.
#[derive(Debug)]
pub(super) struct Share<'a> {
    of: &'a Shares,
    team: String,
}

/// Who has too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// The team has its share.
    Team,
    /// All places are taken.
    Host,
}

impl Shares {
    /// Creates this many places.
    pub(super) fn new(all: usize) -> Self {
        Self { all, taken: Mutex::default(), freed: Notify::new() }
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place for a team, if it may have one now.
    pub(super) fn try_take(&self, team: &str) -> Result<Share<'_>, Refused> {
        let mut taken = self.taken();
        let free = self.all - taken.values().sum::<usize>();
        let own = taken.get(team).copied().unwrap_or_default();
        // Without any, it is not the team that has too many.
        if own >= free.max(1) {
            return Err(Refused::Team);
        }
        if free == 0 {
            return Err(Refused::Host);
        }
        taken.insert(team.to_owned(), own + 1);
        Ok(Share { of: self, team: team.to_owned() })
    }

    /// Waits for a place for a team.
    pub(super) async fn take(&self, team: &str) -> Share<'_> {
        loop {
            // Before the look, so that what is freed right after it is noticed.
            let freed = self.freed.notified();
            if let Ok(share) = self.try_take(team) {
                return share;
            }
            freed.await;
        }
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        let mut taken = self.of.taken();
        if let Some(own) = taken.get_mut(&self.team) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.team);
            }
        }
        drop(taken);
        self.of.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::{iter, sync::Arc, time::Duration};

    use tokio::time::timeout;

    use super::*;

    /// Takes as many places as the team gets.
    fn all_of<'a>(shares: &'a Shares, team: &str) -> Vec<Share<'a>> {
        iter::from_fn(|| shares.try_take(team).ok()).collect()
    }

    #[test]
    fn there_is_always_a_place_for_the_next_team() {
        let shares = Shares::new(16);
        let first = all_of(&shares, "first");
        let others = ["second", "third", "fourth", "fifth"].map(|team| all_of(&shares, team));
        let counts: Vec<usize> = others.iter().map(Vec::len).collect();
        assert_eq!((first.len(), counts), (8, vec![4, 2, 1, 1]));
        assert_eq!(shares.try_take("first").map(drop), Err(Refused::Team));
        assert_eq!(shares.try_take("sixth").map(drop), Err(Refused::Host));
        drop((first, others));
        assert!(shares.taken().is_empty());
        let few = Shares::new(3);
        assert_eq!(all_of(&few, "first").len(), 2);
    }

    #[tokio::test]
    async fn whoever_waits_gets_what_is_freed() -> anyhow::Result<()> {
        let shares = Arc::new(Shares::new(2));
        let (first, other) = (shares.take("first").await, shares.take("other").await);
        let waiting = shares.clone();
        let waiting = tokio::spawn(async move { drop(waiting.take("first").await) });
        tokio::task::yield_now().await;
        drop(other);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished(), "the team has its share");
        drop(first);
        timeout(Duration::from_secs(60), waiting).await??;
        Ok(())
    }
}
