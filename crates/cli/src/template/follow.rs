// SPDX-License-Identifier: Apache-2.0
//! Follows a build: its log as a stream, and its steps by looking at it.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use futures::StreamExt as _;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use wrenn_api::Build;
use wrenn_client::{BuildLogEvent, Client};

use super::{
    of::flag,
    screen::Screen,
    view::{View, in_work},
};

/// Interval between looks at the steps.
const LOOK: Duration = Duration::from_secs(1);
/// Time for the log of a build that is not followed; without an entry for one look it is all that there is.
const WITHOUT_FOLLOWING: Duration = Duration::from_secs(60);

/// How far a build is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// To its end.
    End,
    /// To the end of what its log has now.
    Now,
}

/// Shows a build from its beginning on, as far as it is followed, and returns what is then known of it. A log that breaks off is
/// read on where it was.
pub(super) async fn follow(
    client: &Client,
    mut build: Build,
    step: Option<u32>,
    view: &mut View,
    screen: &Screen,
    until: Until,
) -> Result<Build> {
    let id = build.id;
    let flag = flag(client);
    let goes_on =
        || format!("build {id} may go on: `wrenn template logs{flag} --follow {id}` shows it again");
    let mut log = client.build_log(id, 0, step).await?;
    let begin = Instant::now();
    let mut looks = interval_at(begin + LOOK, LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    screen.show(&view.look(&build))?;
    loop {
        screen.set_in_work(in_work(&build));
        tokio::select! {
            event = log.next() => match event {
                Some(Ok(BuildLogEvent::Entry(entry))) => {
                    if view.is_behind(&entry) {
                        look(client, &mut build).await;
                    }
                    screen.show(&view.entry(&build, &entry))?;
                    if until == Until::Now {
                        if begin.elapsed() > WITHOUT_FOLLOWING {
                            return Ok(build);
                        }
                        looks.reset();
                    }
                }
                Some(Ok(BuildLogEvent::End(ended))) => {
                    screen.show(&view.end(&ended))?;
                    return Ok(*ended);
                }
                Some(Err(error)) => return Err(error).with_context(goes_on),
                None => bail!("the log of build {id} ended without its end"),
            },
            _ = looks.tick() => {
                look(client, &mut build).await;
                if until == Until::Now {
                    screen.show(&view.end(&build))?;
                    return Ok(build);
                }
                screen.show(&view.look(&build))?;
            }
        }
    }
}

/// Looks at a build. Whether the server is away is decided by its log, which waits for it.
async fn look(client: &Client, build: &mut Build) {
    if let Ok(now) = client.get_build(build.id).await {
        *build = now;
    }
}
