//! Who may take how much of a server: places for requests of each kind, and bytes that are held in memory. No team takes
//! more than its share, so that one that takes all it can leaves room for the others.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use uuid::Uuid;
use wrenn_api::ErrorCode;

use crate::{config::Limits, error::ApiError};

/// A bounded number of places, of which one team takes half at most.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    /// What is in the places, for messages.
    of: &'static str,
    all: Arc<Semaphore>,
    share: usize,
    teams: Arc<Mutex<HashMap<Uuid, usize>>>,
}

impl Places {
    pub(crate) fn new(of: &'static str, all: usize) -> Self {
        let share = all.div_ceil(2);
        Self { of, all: Arc::new(Semaphore::new(all)), share, teams: Arc::default() }
    }

    fn refused(&self, who: &str) -> ApiError {
        metrics::counter!("wrenn_requests_refused_total", "places" => self.of).increment(1);
        let message = format!("{who} too many {} at a time; try again when one has ended", self.of);
        ApiError::new(ErrorCode::TooManyRequests, message)
    }

    /// A place for a team, or for nobody in particular.
    pub(crate) fn take(&self, team: Option<Uuid>) -> Result<Place, ApiError> {
        let share = team.map(|team| self.share_of(team)).transpose()?;
        let permit =
            self.all.clone().try_acquire_owned().map_err(|_| self.refused("the control plane has"))?;
        Ok(Place { _share: share, _permit: permit })
    }

    fn share_of(&self, team: Uuid) -> Result<Share, ApiError> {
        let mut teams = self.teams.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = teams.entry(team).or_default();
        if *taken >= self.share {
            return Err(self.refused("your team has"));
        }
        *taken += 1;
        Ok(Share { team, teams: self.teams.clone() })
    }
}

/// A place; free again when dropped.
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

/// A request's place among those in work. What outlives its handler, such as the body of the answer, keeps it.
#[derive(Debug, Clone)]
pub(crate) struct InWork(Arc<Mutex<Option<Place>>>);

impl InWork {
    pub(crate) fn new(place: Place) -> Self {
        Self(Arc::new(Mutex::new(Some(place))))
    }

    /// Exchanges the place for one of another kind, before a request turns out to be long.
    pub(crate) fn exchange(&self, place: Place) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(place);
    }
}

/// What is held in memory of requests and answers, beyond a little of each: in bytes, of which one team takes half at most.
#[derive(Debug)]
pub(crate) struct Memory {
    all: Arc<Semaphore>,
    share: usize,
    /// Those of the teams that hold some; others are forgotten when a new one comes.
    teams: Mutex<HashMap<Uuid, Arc<Semaphore>>>,
}

/// What each request and each answer may hold without being counted.
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

    /// The bytes to ask for: what is larger than a team's share takes the whole share.
    fn counted(&self, bytes: usize) -> u32 {
        let bytes = if bytes <= UNCOUNTED { 0 } else { bytes.min(self.share) };
        bytes.try_into().unwrap_or(u32::MAX)
    }

    /// What nobody has taken.
    #[cfg(test)]
    pub(crate) fn available(&self) -> usize {
        self.all.available_permits()
    }

    /// Waits for room, in the order of asking.
    pub(crate) async fn take(&self, team: Uuid, bytes: usize) -> Held {
        let bytes = self.counted(bytes);
        if bytes == 0 {
            // A little does not wait behind others, as it would in the semaphores' queues.
            return Held { permits: [None, None] };
        }
        // Neither is ever closed.
        let share = self.of(team).acquire_many_owned(bytes).await.ok();
        let all = self.all.clone().acquire_many_owned(bytes).await.ok();
        Held { permits: [share, all] }
    }

    /// Takes room if there is some now.
    pub(crate) fn try_take(&self, team: Uuid, bytes: usize) -> Result<Held, ApiError> {
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
            return Err(ApiError::new(ErrorCode::TooManyRequests, message));
        };
        Ok(Held { permits: [Some(share), Some(all)] })
    }
}

/// Bytes in memory that are accounted for.
#[derive(Debug)]
pub(crate) struct Held {
    permits: [Option<OwnedSemaphorePermit>; 2],
}

impl Held {
    /// Gives back what is more than `bytes`.
    pub(crate) fn shrink(mut self, bytes: usize) -> Self {
        for permit in self.permits.iter_mut().flatten() {
            drop(permit.split(permit.num_permits().saturating_sub(bytes)));
        }
        self
    }
}

/// All that requests of a server share out.
#[derive(Debug)]
pub(crate) struct Admission {
    /// Requests that end by themselves soon.
    pub(crate) requests: Places,
    /// Deletes: what sets others' resources free is never kept out by them.
    pub(crate) deletes: Places,
    /// Commands that may take long.
    pub(crate) commands: Places,
    /// Event and command streams.
    pub(crate) streams: Places,
    /// Looks at health and figures: a server with its hands full is not to be taken for a dead one.
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
            probes: Places::new("probes", PROBES),
            pages: Places::new("pages", PAGES),
            memory: Arc::new(Memory::new(limits.memory)),
        }
    }
}

/// Looks at health and figures at a time.
const PROBES: usize = 32;
/// Pages of documentation at a time.
const PAGES: usize = 32;

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
        assert_eq!(of_b.len(), 2);
        let message = places.take(None).err().map(|error| error.message).unwrap_or_default();
        assert!(message.contains("the control plane has too many requests"), "{message}");
        drop(of_a);
        assert!(places.take(Some(b)).is_ok() && places.take(Some(a)).is_ok());
        drop(of_b);
        assert!(places.teams.lock().is_ok_and(|teams| teams.is_empty()));
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
        // Who holds nothing is forgotten.
        drop(memory.try_take(Uuid::now_v7(), 0));
        assert!(memory.teams.lock().is_ok_and(|teams| teams.len() <= 2));
    }
}
