// SPDX-License-Identifier: Apache-2.0
//! What guests say of themselves. A task of its own asks them, so that one that hangs does not delay the sampler. Those that were
//! silent when they were asked last are asked apart from the others, which do not wait for them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures::{StreamExt as _, stream};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::Metrics;
use crate::sandbox::{
    guest::Guest,
    spec::Spec,
    usage::{self, Figures, Kill, Usage},
};

/// Interval between two questions to a guest, longer if there are many silent ones.
const PERIOD: Duration = Duration::from_secs(5);
/// Maximum number of guests that are asked at a time, of those that are silent and of the others.
const AT_A_TIME: usize = 32;
/// Time for which what a guest has said is taken for what is.
const FRESH: Duration = Duration::from_secs(15);

/// A sandbox that runs, whose guest is asked.
pub(crate) struct Asked {
    /// Its id.
    pub(crate) id: String,
    /// What it was given.
    pub(crate) spec: Arc<Spec>,
    /// Its guest.
    pub(crate) guest: Guest,
}

/// Asks the guests that run, every five seconds, until it is cancelled.
pub(crate) async fn ask_all(
    metrics: Arc<Metrics>,
    running: impl Fn() -> Vec<Asked> + Send + Sync,
    shutdown: CancellationToken,
) {
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = ask_those(&metrics, &running, false) => {}
        () = ask_those(&metrics, &running, true) => {}
    }
}

/// Asks those that are silent, or all others, in rounds without end.
async fn ask_those(metrics: &Metrics, running: impl Fn() -> Vec<Asked>, silent: bool) {
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let mut those = running();
        those.retain(|asked| metrics.guests.is_silent(&asked.id) == silent);
        stream::iter(those).for_each_concurrent(AT_A_TIME, |asked| ask(metrics, asked)).await;
    }
}

async fn ask(metrics: &Metrics, asked: Asked) {
    match usage::ask(&asked.guest, &asked.spec).await {
        Some(usage) => metrics.guests.heard(&asked.id, usage, now_ms()),
        // It may be about to end or to be paused, or it has an envd that does not answer.
        None => {
            tracing::debug!(id = asked.id, "a guest does not say what it uses");
            metrics.guests.not_heard(&asked.id);
        }
    }
}

fn now_ms() -> u64 {
    chrono::Utc::now().timestamp_millis().max(0) as u64
}

/// What the guests of all sandboxes have said.
#[derive(Default)]
pub(super) struct Guests {
    said: Mutex<HashMap<String, Said>>,
}

/// What one guest has said.
#[derive(Default)]
struct Said {
    /// Figures, and when it said them.
    figures: Option<(Figures, Instant)>,
    /// The last kill as it says, and its time, which is not in the future.
    kill: Option<(Kill, u64)>,
    /// Whether it had no answer when it was asked last.
    is_silent: bool,
}

impl Guests {
    /// Adds a sandbox that has said nothing yet. Sandboxes that were not added say nothing.
    pub(super) fn add(&self, id: &str) {
        self.said().entry(id.to_owned()).or_default();
    }

    /// Removes a sandbox.
    pub(super) fn remove(&self, id: &str) {
        self.said().remove(id);
    }

    /// Returns the figures of a guest; unknown ones if it has said none lately.
    pub(super) fn figures(&self, id: &str) -> Figures {
        let latest = self.said().get(id).and_then(|said| said.figures);
        latest.filter(|(_, at)| at.elapsed() < FRESH).map(|(figures, _)| figures).unwrap_or_default()
    }

    /// Returns whether a guest had no answer when it was asked last.
    fn is_silent(&self, id: &str) -> bool {
        self.said().get(id).is_some_and(|said| said.is_silent)
    }

    /// Returns the last kill of a guest.
    pub(super) fn last_kill(&self, id: &str) -> Option<Kill> {
        let said = self.said();
        let (kill, at_ms) = said.get(id)?.kill.as_ref()?;
        Some(Kill { at_ms: *at_ms, ..kill.clone() })
    }

    /// Notes what a guest has said. Its clock may be wrong: a kill was not later than now, and keeps the time that it got first.
    fn heard(&self, id: &str, usage: Usage, now_ms: u64) {
        let mut all = self.said();
        let Some(said) = all.get_mut(id) else { return };
        said.figures = Some((usage.figures, Instant::now()));
        said.is_silent = false;
        if let Some(kill) = usage.last_kill
            && said.kill.as_ref().is_none_or(|(known, _)| *known != kill)
        {
            let at_ms = kill.at_ms.min(now_ms);
            said.kill = Some((kill, at_ms));
        }
    }

    /// Notes that a guest had no answer.
    fn not_heard(&self, id: &str) {
        if let Some(said) = self.said().get_mut(id) {
            said.is_silent = true;
        }
    }

    fn said(&self) -> MutexGuard<'_, HashMap<String, Said>> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(mem_used: u32, kill: Option<(u64, u32)>) -> Usage {
        let figures = Figures { mem_used, mem_total: 1000, ..Figures::default() };
        let last_kill = kill.map(|(at_ms, pid)| Kill { at_ms, pid, command: "python3".to_owned() });
        Usage { figures, last_kill }
    }

    fn kill(guests: &Guests) -> Option<(u64, u32)> {
        guests.last_kill("a").map(|kill| (kill.at_ms, kill.pid))
    }

    #[test]
    fn what_was_said_last_counts_until_the_sandbox_is_gone() {
        let guests = Guests::default();
        guests.heard("a", usage(5, Some((1, 2))), 10);
        assert_eq!((guests.figures("a"), kill(&guests)), (Figures::default(), None), "it was not added");
        guests.add("a");
        assert_eq!((guests.figures("a"), kill(&guests)), (Figures::default(), None));
        guests.heard("a", usage(5, None), 10);
        guests.heard("a", usage(7, Some((3, 2))), 20);
        assert_eq!((guests.figures("a").mem_used, kill(&guests)), (7, Some((3, 2))));
        // A boot from its disk: the new kernel has killed nothing, but there was a kill.
        guests.heard("a", usage(8, None), 30);
        assert_eq!(kill(&guests), Some((3, 2)));
        guests.add("a");
        assert_eq!(guests.figures("a").mem_used, 8, "adding it again changes nothing");
        guests.remove("a");
        guests.heard("a", usage(9, Some((4, 2))), 40);
        assert_eq!((guests.figures("a"), kill(&guests)), (Figures::default(), None));
    }

    #[test]
    fn a_kill_is_told_once_whatever_the_clock_of_the_guest() {
        let guests = Guests::default();
        guests.add("a");
        guests.heard("a", usage(1, Some((9000, 2))), 100);
        assert_eq!(kill(&guests), Some((100, 2)), "not in the future");
        guests.heard("a", usage(1, Some((9000, 2))), 5100);
        assert_eq!(kill(&guests), Some((100, 2)), "the same one");
        guests.heard("a", usage(1, Some((9000, 3))), 10_100);
        assert_eq!(kill(&guests), Some((9000, 3)), "another one");
    }

    #[test]
    fn a_guest_is_silent_until_its_next_answer() {
        let guests = Guests::default();
        guests.not_heard("a");
        guests.add("a");
        assert!(!guests.is_silent("a"), "it was not asked yet");
        guests.heard("a", usage(5, None), 10);
        guests.not_heard("a");
        guests.add("a");
        assert!(guests.is_silent("a"));
        assert_eq!(guests.figures("a").mem_used, 5, "what it has said lately counts");
        assert!(!guests.is_silent("b"), "others are not");
        guests.heard("a", usage(7, None), 20);
        assert!(!guests.is_silent("a"));
    }

    #[test]
    fn figures_grow_old() {
        let guests = Guests::default();
        guests.add("a");
        guests.heard("a", usage(5, None), 10);
        if let Some(said) = guests.said().get_mut("a") {
            said.figures = said.figures.and_then(|(figures, at)| Some((figures, at.checked_sub(FRESH)?)));
        }
        assert_eq!(guests.figures("a"), Figures::default());
    }
}
