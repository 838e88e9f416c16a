// SPDX-License-Identifier: Apache-2.0
//! Monitor of the volume store's free space. While there is too little, sandboxes are paused: a guest whose
//! writes fail would lose data, a paused one does not.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;
use wrenn_disk::{Pressure, Volumes};

/// Interval between checks. In this time a fast disk writes some hundred MiB, less than half of the reserve.
const PERIOD: Duration = Duration::from_millis(100);

/// Starts the monitor; the receiver has whether sandboxes must be paused. It stops with the last receiver.
pub(crate) async fn watch(volumes: Arc<dyn Volumes>) -> watch::Receiver<bool> {
    let first = volumes.pressure().await.is_ok_and(|now| hold(false, now));
    let mut unknown = false;
    let (sender, receiver) = watch::channel(first);
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(PERIOD);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !sender.is_closed() {
            ticks.tick().await;
            let now = match volumes.pressure().await {
                Ok(now) => now,
                Err(error) => {
                    // Change nothing: an error says nothing about the free space.
                    if !unknown {
                        tracing::error!(%error, "cannot measure the volume store's free space: sandboxes are not paused if it fills up");
                    }
                    unknown = true;
                    continue;
                }
            };
            if std::mem::take(&mut unknown) {
                tracing::info!("the volume store's free space can be measured again");
            }
            let held = *sender.borrow();
            let wanted = hold(held, now);
            if wanted != held {
                tracing::warn!(
                    held = wanted,
                    available = now.available(),
                    reserve = now.reserve,
                    "the volume store's free space changed; sandboxes are paused if held is true"
                );
                sender.send_replace(wanted);
            }
        }
    });
    receiver
}

/// Returns whether sandboxes must be paused: below half of the reserve, until the whole reserve is free
/// again. Creates are rejected earlier, below the whole reserve.
fn hold(held: bool, now: Pressure) -> bool {
    now.available() < if held { now.reserve } else { now.reserve / 2 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_goes_on_when_there_is_clearly_room() {
        let with = |free| Pressure { total: 1000, free, unwritten: 0, reserve: 100 };
        assert!(!hold(false, with(60)));
        assert!(hold(false, with(49)));
        assert!(hold(true, with(60)), "no flapping");
        assert!(!hold(true, with(100)));
    }
}
