//! Watches the room of the volume store. While there is too little, sandboxes are held: a guest that cannot write
//! would lose data, a paused one does not.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;
use wrenn_disk::{Pressure, Volumes};

/// How often it is looked at. A fast disk writes some hundred mebibytes meanwhile, less than half of the reserve.
const PERIOD: Duration = Duration::from_millis(100);

/// Sandboxes are held below a half of the reserve, where creates have long been refused, and go on above it.
fn hold(held: bool, now: Pressure) -> bool {
    now.available() < if held { now.reserve } else { now.reserve / 2 }
}

/// Starts to watch; the receiver says whether sandboxes are to be held. It ends with the last receiver.
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
                    // What is held stays held, and what runs goes on: an error says nothing of the room.
                    if !unknown {
                        tracing::error!(%error, "the volume store's room cannot be seen: nothing is held when it ends");
                    }
                    unknown = true;
                    continue;
                }
            };
            if std::mem::take(&mut unknown) {
                tracing::info!("the volume store's room can be seen again");
            }
            let held = *sender.borrow();
            let wanted = hold(held, now);
            if wanted != held {
                tracing::warn!(
                    held = wanted,
                    available = now.available(),
                    reserve = now.reserve,
                    "the volume store's room changed"
                );
                sender.send_replace(wanted);
            }
        }
    });
    receiver
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
