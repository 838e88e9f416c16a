// SPDX-License-Identifier: Apache-2.0
//! `wrenn events`: prints events, one per line, until interrupted.

use anyhow::{Context, Result};
use futures::StreamExt as _;
use wrenn_client::{Client, Event};

use crate::output::{Format, line};

/// Arguments of `wrenn events`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Show events after this event id (the first column of the output)
    #[arg(long, value_name = "ID")]
    after: Option<String>,
}

/// Runs `wrenn events`. With JSON it prints one value per line, because the stream has no end.
pub(crate) async fn run(client: &Client, args: &Args, format: Format) -> Result<u8> {
    let mut events = client.events(args.after.as_deref()).await?;
    while let Some(event) = events.next().await {
        let event = event?;
        match format {
            Format::Json => line(&serde_json::to_string(&event).context("cannot write JSON")?)?,
            Format::Text => line(&text(&event))?,
        }
    }
    Ok(0)
}

fn text(event: &Event) -> String {
    format!("{}  {}  {}", event.id.as_deref().unwrap_or("-"), event.event, event.data)
}
