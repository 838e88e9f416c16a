// SPDX-License-Identifier: Apache-2.0
//! The log of a build, followed from any place to its end.

use std::{pin::Pin, time::Duration};

use wrenn_api::{Build, BuildId, BuildLogEntry};

use super::Builds;
use crate::{caller::Caller, error::Fault};

/// Interval between looks for further entries.
const LOOK: Duration = Duration::from_millis(500);

/// The log of a build that a caller follows.
pub(crate) struct FollowedLog {
    place: Place,
    revoked: Pin<Box<dyn Future<Output = ()> + Send>>,
    has_ended: bool,
}

/// What comes next in a log.
#[derive(Debug)]
pub(crate) enum News {
    /// Further entries, at least one.
    Entries(Vec<BuildLogEntry>),
    /// The build has ended so, and all entries were read.
    End(Box<Build>),
}

/// How far a log was read.
struct Place {
    builds: Builds,
    caller: Caller,
    id: BuildId,
    after: i64,
    step: Option<u32>,
}

impl FollowedLog {
    /// Begins after the entry `after` (0: from the beginning), with the entries of all steps or of one. Fails if the team has no
    /// such build.
    pub(crate) async fn open(
        builds: &Builds,
        caller: &Caller,
        id: BuildId,
        after: i64,
        step: Option<u32>,
    ) -> Result<Self, Fault> {
        builds.get(caller, id).await?;
        let (app, caller) = (builds.app.clone(), *caller);
        let revoked = Box::pin(async move { app.access.ended(&caller).await });
        let place = Place { builds: builds.clone(), caller, id, after, step };
        Ok(Self { place, revoked, has_ended: false })
    }

    /// Offset of the last entry that was read.
    pub(crate) const fn offset(&self) -> i64 {
        self.place.after
    }

    /// Waits for what comes next. `None` after the end of the build, and if the caller is to ask again after the last entry: the
    /// server stops, the caller's key was revoked, or the database failed.
    pub(crate) async fn next(&mut self) -> Option<News> {
        if self.has_ended {
            return None;
        }
        let news = tokio::select! {
            () = self.place.builds.app.shutdown.cancelled() => None,
            () = &mut self.revoked => None,
            news = self.place.news() => news.ok(),
        };
        match &news {
            Some(News::Entries(entries)) => {
                self.place.after = entries.last().map_or(self.place.after, |entry| entry.offset);
            }
            Some(News::End(_)) | None => self.has_ended = true,
        }
        news
    }
}

impl Place {
    async fn news(&self) -> Result<News, Fault> {
        let Self { builds, caller, id, after, step } = self;
        loop {
            // First the status: the entries of a build that has ended are all there.
            let build = builds.get(caller, *id).await?;
            let entries = builds.log(caller, *id, *after, *step).await?;
            if !entries.is_empty() {
                return Ok(News::Entries(entries));
            }
            if build.status.is_final() {
                return Ok(News::End(Box::new(build)));
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}
