// SPDX-License-Identifier: Apache-2.0
//! Upkeep of channels, on one server at a time: deliveries whose time is over are given up, those that ended long ago are
//! removed, and configurations are encrypted with the present key.

use std::time::Duration;

use wrenn_api::ChannelId;

use crate::{
    db::{
        channels::{self, Config},
        delivery_log,
    },
    receivers::sealing::Sealed,
    state::App,
};

/// Interval between rounds, and number of rows that one statement changes.
const ROUND: Duration = Duration::from_secs(30);
const AT_A_TIME: i64 = 1000;
/// Maximum number of events that wait for one channel.
const WAITING_MAX: i64 = 50_000;
/// Time for which a delivery is kept after its end.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// Looks after channels until the server stops.
pub(crate) async fn run(app: App) {
    loop {
        let more = round(&app).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "the upkeep of channels waits for the database");
            false
        });
        let pause = if more { Duration::ZERO } else { ROUND };
        tokio::select! {
            () = app.shutdown.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Does a part of the work; returns true if there may be more.
async fn round(app: &App) -> sqlx::Result<bool> {
    let given_up = delivery_log::give_up(&app.db, app.channels.give_up, AT_A_TIME).await?;
    let too_many = delivery_log::give_up_beyond(&app.db, WAITING_MAX, AT_A_TIME).await?;
    if given_up + too_many > 0 {
        tracing::warn!(
            given_up,
            too_many,
            "deliveries to channels whose receivers fail or are slow are given up"
        );
    }
    let pruned = delivery_log::prune(&app.db, KEPT, AT_A_TIME).await?;
    reseal(app).await?;
    Ok([given_up, too_many, pruned].contains(&(AT_A_TIME as u64)))
}

/// Encrypts configurations of older keys with the present one.
async fn reseal(app: &App) -> sqlx::Result<()> {
    let keys = &app.channels.keys;
    let Some(current) = keys.current() else { return Ok(()) };
    for old in channels::of_other_keys(&app.db, current, AT_A_TIME).await? {
        let sealed = Sealed { key: old.key_number, bytes: old.config.clone() };
        let Some(new) = keys.open(old.id, &sealed).and_then(|text| keys.seal(old.id, &text)) else {
            let channel = ChannelId::from(old.id);
            tracing::error!(%channel, key = old.key_number, "a channel is encrypted with a key that is not in the key file");
            continue;
        };
        channels::reseal(&app.db, &old, &Config { id: old.id, config: new.bytes, key_number: new.key })
            .await?;
    }
    Ok(())
}
