// SPDX-License-Identifier: Apache-2.0
//! Receivers of events, to which channels lead: where they are, which secrets the server keeps of them, and how a message gets there.

pub(crate) mod message;
pub(crate) mod sealing;
pub(crate) mod sender;
pub(crate) mod target;

use std::time::Duration;

use anyhow::anyhow;
use wrenn_outbound::Guard;

use self::{sealing::SealingKeys, sender::Sender};
use crate::{config::ChannelSettings, networks::Networks};

pub use sealing::new_channel_key;

/// What a server needs to reach receivers.
pub(crate) struct Receivers {
    /// Keys of their configurations.
    pub(crate) keys: SealingKeys,
    pub(crate) sender: Sender,
    /// Time after which a delivery is given up.
    pub(crate) give_up: Duration,
}

impl Receivers {
    /// Reads the settings and the key file.
    pub(crate) fn new(settings: &ChannelSettings) -> anyhow::Result<Self> {
        let allowed = Networks::parse(settings.allow.as_deref().unwrap_or_default()).map_err(|part| {
            anyhow!("server.channels_allow has {part:?}, which is neither an address nor a network such as 10.0.0.0/8")
        })?;
        let guard = Guard::public_and(move |address| allowed.contain(address));
        let keys = SealingKeys::read(settings.key_file.as_deref())?;
        Ok(Self { keys, sender: Sender::new(guard), give_up: settings.retry })
    }
}
