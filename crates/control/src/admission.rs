// SPDX-License-Identifier: Apache-2.0
//! Admission control of a server: limits on concurrent requests of each kind, and on bytes in memory. No team
//! gets more than its share, so that greedy teams leave room for the others, however many they are.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use uuid::Uuid;
use wrenn_api::ErrorCode;

use crate::{config::Limits, error::Fault};

/// Maximum number of concurrent health and metrics requests.
const PROBES: usize = 32;
/// Maximum number of concurrent requests for documentation.
const PAGES: usize = 32;

/// Maximum number of archives, for builds and of images, that are received at a time.
const UPLOADS: usize = 16;

/// All limits of a server.
#[derive(Debug)]
pub(crate) struct Admission {
    /// Short requests.
    pub(crate) requests: Places,
    /// Deletes, which release resources, so other requests must not block them.
    pub(crate) deletes: Places,
    /// Commands that may take long.
    pub(crate) commands: Places,
    /// Event and command streams.
    pub(crate) streams: Places,
    /// Archives of files for builds and of images, which are stored on the disk as they arrive.
    pub(crate) uploads: Places,
    /// Health and metrics requests: a busy server must not be taken for a dead one.
    pub(crate) probes: Places,
    /// The documentation, and paths that do not exist.
    pub(crate) pages: Places,
    /// Bytes of requests and answers.
    pub(crate) memory: Arc<Memory>,
}

impl Admission {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            requests: Places::new("requests", limits.concurrent_requests),
            deletes: Places::new("deletes", limits.concurrent_deletes),
            commands: Places::new("commands of more than a minute", limits.long_commands),
            streams: Places::new("streams", limits.event_streams),
            uploads: Places::new("archives", UPLOADS),
            probes: Places::new("probes", PROBES),
            pages: Places::new("pages", PAGES),
            memory: Arc::new(Memory::new(limits.memory)),
        }
    }
}

/// A limit on concurrent requests, of which each team gets at most its share.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    /// Name of the limited requests, for messages.
    of: &'static str,
    all: Arc<Semaphore>,
    share: Bound,
    teams: Arc<Mutex<HashMap<Uuid, usize>>>,
}

/// The most that one team gets.
#[derive(Debug, Clone, Copy)]
enum Bound {
    /// As many as are free: one team alone gets half of all, two a third each, and there is always one for the next team.
    Fair,
    /// A number.
    Fixed(usize),
}

impl Places {
    /// Creates places that teams share fairly.
    pub(crate) fn new(of: &'static str, all: usize) -> Self {
        Self::of(of, all, Bound::Fair)
    }

    /// Creates places of which one team, or whatever else has an id, gets at most `share`.
    pub(crate) fn with_share(of: &'static str, all: usize, share: usize) -> Self {
        Self::of(of, all, Bound::Fixed(share))
    }

    fn of(of: &'static str, all: usize, share: Bound) -> Self {
        Self { of, all: Arc::new(Semaphore::new(all)), share, teams: Arc::default() }
    }

    fn refused(&self, who: &str) -> Fault {
        metrics::counter!("wrenn_requests_refused_total", "places" => self.of).increment(1);
        let message = format!("{who} too many {} at a time; try again when one has ended", self.of);
        Fault::new(ErrorCode::TooManyRequests, message)
    }

    /// Takes a permit for a team, or without a team.
    pub(crate) fn take(&self, team: Option<Uuid>) -> Result<Place, Fault> {
        let share = team.map(|team| self.share_of(team)).transpose()?;
        let permit =
            self.all.clone().try_acquire_owned().map_err(|_| self.refused("the control plane has"))?;
        Ok(Place { _share: share, _permit: permit })
    }

    fn share_of(&self, team: Uuid) -> Result<Share, Fault> {
        let mut teams = self.teams.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = teams.get(&team).copied().unwrap_or_default();
        let share = match self.share {
            // Without any, it is not the team that has too many.
            Bound::Fair => self.all.available_permits().max(1),
            Bound::Fixed(share) => share,
        };
        if taken >= share {
            return Err(self.refused("your team has"));
        }
        teams.insert(team, taken + 1);
        Ok(Share { team, teams: self.teams.clone() })
    }
}

/// A permit; dropping it releases it.
#[derive(Debug)]
pub(crate) struct Place {
    _share: Option<Share>,
    _permit: OwnedSemaphorePermit,
}

#[derive(Debug)]
struct Share {
    team: Uuid,
    teams: Arc<Mutex<HashMap<Uuid, usize>>>,
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut teams = self.teams.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(taken) = teams.get_mut(&self.team) {
            *taken -= 1;
            if *taken == 0 {
                teams.remove(&self.team);
            }
        }
    }
}

/// Permit of a concurrent request. Whatever outlives its handler, such as the response body, keeps it.
#[derive(Debug, Clone)]
pub(crate) struct InWork(Arc<Mutex<Option<Place>>>);

impl InWork {
    pub(crate) fn new(place: Place) -> Self {
        Self(Arc::new(Mutex::new(Some(place))))
    }

    /// Exchanges the permit for one of another kind, before a request that may take long.
    pub(crate) fn exchange(&self, place: Place) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(place);
    }
}

/// Limit on bytes of requests and responses in memory, beyond a small part of each; one team gets at most
/// half.
#[derive(Debug)]
pub(crate) struct Memory {
    all: Arc<Semaphore>,
    share: usize,
    /// Shares of the teams that use memory; others are removed when a new team is added.
    teams: Mutex<HashMap<Uuid, Arc<Semaphore>>>,
}

/// Number of bytes of each request and each response that do not count.
pub(crate) const UNCOUNTED: usize = 64 << 10;

impl Memory {
    pub(crate) fn new(all: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(all)), share: all / 2, teams: Mutex::default() }
    }

    fn of(&self, team: Uuid) -> Arc<Semaphore> {
        let mut teams = self.teams.lock().unwrap_or_else(PoisonError::into_inner);
        if !teams.contains_key(&team) {
            teams.retain(|_, bytes| Arc::strong_count(bytes) > 1);
        }
        teams.entry(team).or_insert_with(|| Arc::new(Semaphore::new(self.share))).clone()
    }

    /// Number of bytes to take, at most a team's whole share.
    fn counted(&self, bytes: usize) -> u32 {
        let bytes = if bytes <= UNCOUNTED { 0 } else { bytes.min(self.share) };
        bytes.try_into().unwrap_or(u32::MAX)
    }

    /// Number of free bytes.
    #[cfg(test)]
    pub(crate) fn available(&self) -> usize {
        self.all.available_permits()
    }

    /// Waits for free memory, in the order of the calls.
    pub(crate) async fn take(&self, team: Uuid, bytes: usize) -> Held {
        let bytes = self.counted(bytes);
        if bytes == 0 {
            // A little does not wait behind others, as it would in the semaphores' queues.
            return Held { permits: [None, None] };
        }
        // The semaphores are never closed.
        let share = self.of(team).acquire_many_owned(bytes).await.ok();
        let all = self.all.clone().acquire_many_owned(bytes).await.ok();
        Held { permits: [share, all] }
    }

    /// Takes memory without waiting.
    pub(crate) fn try_take(&self, team: Uuid, bytes: usize) -> Result<Held, Fault> {
        let bytes = self.counted(bytes);
        if bytes == 0 {
            return Ok(Held { permits: [None, None] });
        }
        let share = self.of(team).try_acquire_many_owned(bytes);
        let all = self.all.clone().try_acquire_many_owned(bytes);
        let (Ok(share), Ok(all)) = (share, all) else {
            metrics::counter!("wrenn_requests_refused_total", "places" => "bytes in memory").increment(1);
            let message =
                "the control plane holds too many bytes of requests and answers; try again in a moment";
            return Err(Fault::new(ErrorCode::TooManyRequests, message));
        };
        Ok(Held { permits: [Some(share), Some(all)] })
    }
}

/// Reserved bytes; dropping it releases them.
#[derive(Debug)]
pub(crate) struct Held {
    permits: [Option<OwnedSemaphorePermit>; 2],
}

impl Held {
    /// Releases all but `bytes`.
    pub(crate) fn shrink(mut self, bytes: usize) -> Self {
        for permit in self.permits.iter_mut().flatten() {
            drop(permit.split(permit.num_permits().saturating_sub(bytes)));
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_team_leaves_half_of_the_places() {
        let places = Places::new("requests", 5);
        let (a, b) = (Uuid::now_v7(), Uuid::now_v7());
        let of_a: Vec<_> = (0..5).map_while(|_| places.take(Some(a)).ok()).collect();
        assert_eq!(of_a.len(), 3);
        let of_b: Vec<_> = (0..5).map_while(|_| places.take(Some(b)).ok()).collect();
        assert_eq!(of_b.len(), 1);
        let last = places.take(Some(Uuid::now_v7())).expect("one for the next team");
        let message = places.take(None).err().map(|error| error.message).unwrap_or_default();
        assert!(message.contains("the control plane has too many requests"), "{message}");
        drop((of_a, last));
        assert!(places.take(Some(b)).is_ok() && places.take(Some(a)).is_ok());
        drop(of_b);
        assert!(places.teams.lock().is_ok_and(|teams| teams.is_empty()));
    }

    #[test]
    fn many_greedy_teams_come_to_equal_shares_and_starve_nobody() {
        let places = Places::new("requests", 120);
        let mut greedy: Vec<(Uuid, Vec<Place>)> = (0..5).map(|_| (Uuid::now_v7(), Vec::new())).collect();
        // The first one takes all that it gets; then places end one by one, and each team asks for more all the time.
        for _ in 0..400 {
            for (team, held) in &mut greedy {
                while let Ok(place) = places.take(Some(*team)) {
                    held.push(place);
                }
                assert!(places.take(Some(Uuid::now_v7())).is_ok(), "a modest team gets none");
                held.pop();
            }
        }
        let shares: Vec<_> = greedy.iter().map(|(_, held)| held.len()).collect();
        assert!(shares.iter().all(|share| (18..=22).contains(share)), "{shares:?}");
    }

    #[test]
    fn a_fixed_share_is_a_number() {
        let places = Places::with_share("connections", 5, 4);
        let id = Uuid::now_v7();
        let held: Vec<_> = (0..5).map_while(|_| places.take(Some(id)).ok()).collect();
        assert_eq!(held.len(), 4);
    }

    #[test]
    fn a_place_that_was_exchanged_is_free() {
        let (short, long) = (Places::new("requests", 1), Places::new("commands", 1));
        let work = InWork::new(short.take(None).expect("a place"));
        let body = work.clone();
        assert!(short.take(None).is_err());
        work.exchange(long.take(None).expect("a place"));
        assert!(short.take(None).is_ok() && long.take(None).is_err());
        drop((work, body));
        assert!(long.take(None).is_ok());
    }

    #[tokio::test]
    async fn one_team_leaves_half_of_the_memory_and_waits_for_its_own() {
        const ALL: usize = 1 << 20;
        let memory = Memory::new(ALL);
        let (a, b) = (Uuid::now_v7(), Uuid::now_v7());
        // More than the share is the share.
        let held = memory.take(a, 8 * ALL).await;
        assert!(memory.try_take(a, UNCOUNTED + 1).is_err());
        assert!(memory.try_take(a, UNCOUNTED).is_ok(), "a little is never refused");
        assert!(memory.try_take(b, ALL / 2).is_ok());
        let mut waiting = std::pin::pin!(memory.take(a, ALL / 2));
        assert!(futures::poll!(&mut waiting).is_pending());
        let mut little = std::pin::pin!(memory.take(a, UNCOUNTED));
        assert!(futures::poll!(&mut little).is_ready(), "a little never waits");
        drop(held);
        assert!(futures::poll!(&mut waiting).is_ready());
        // Teams that use nothing are removed.
        drop(memory.try_take(Uuid::now_v7(), 0));
        assert!(memory.teams.lock().is_ok_and(|teams| teams.len() <= 2));
    }
}
