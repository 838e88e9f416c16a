// SPDX-License-Identifier: Apache-2.0
//! `wrenn channel`: where events of the team are delivered. What a channel is configured with has secrets, so it comes from a
//! file or standard input.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde_json::json;
use wrenn_api::{
    Channel, ChannelConfig, ChannelId, ChannelProvider, CreateChannel, Delivery, DeliveryId, DeliveryStatus,
    TestChannel, UpdateChannel, Wanted,
};
use wrenn_client::Client;

use crate::{
    failure::Failure,
    output::{self, Format, note, time},
};

/// Text after the help.
pub(crate) const EXAMPLES: &str = "\
The configuration is a JSON object of the provider's fields: url and secret for webhook; webhook_url for slack, discord, teams and
googlechat; bot_token and chat_id for telegram; homeserver_url, access_token and room_id for matrix.

Examples:
  echo '{\"url\":\"https://hooks.example.com/wrenn\"}' | wrenn channel create ops --provider webhook --event sandbox.error
  wrenn channel deliveries ops";
/// Name of standard input.
const STDIN: &str = "-";
/// Maximum size of a configuration in bytes.
const CONFIG_MAX: u64 = 64 << 10;

/// Where a configuration comes from.
#[derive(Debug, clap::Args)]
pub(crate) struct FromFile {
    /// File with the configuration, a JSON object; - for standard input
    #[arg(long = "config", value_name = "FILE", default_value = STDIN)]
    config_file: PathBuf,
}

/// Subcommands of `wrenn channel`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Make a channel; if the server makes the secret of a webhook, it is printed this one time
    Create {
        /// Its name
        name: String,
        /// webhook, slack, discord, teams, googlechat, telegram or matrix
        #[arg(long)]
        provider: ChannelProvider,
        /// A type of events that are delivered, such as sandbox.running; may be repeated
        #[arg(long = "event", required = true, value_name = "TYPE")]
        events: Vec<Wanted>,
        #[command(flatten)]
        from: FromFile,
    },
    /// List the channels of the team
    #[command(visible_alias = "list")]
    Ls,
    /// Change name or events of a channel
    Update {
        /// The channel: its name or its id
        channel: String,
        /// Its new name
        #[arg(long)]
        name: Option<String>,
        /// A type of events that are delivered from now on, instead of the others; may be repeated
        #[arg(long = "event", value_name = "TYPE", required_unless_present = "name")]
        events: Vec<Wanted>,
    },
    /// Let a channel lead to somewhere else, or give it other secrets
    Configure {
        /// The channel: its name or its id
        channel: String,
        #[command(flatten)]
        from: FromFile,
    },
    /// Send a message for a try to where a configuration leads
    Test {
        /// Its provider
        #[arg(long)]
        provider: ChannelProvider,
        #[command(flatten)]
        from: FromFile,
    },
    /// Remove channels
    #[command(visible_alias = "delete")]
    Rm {
        /// The channels: names or ids
        #[arg(required = true, value_name = "CHANNEL")]
        channels: Vec<String>,
    },
    /// List the newest deliveries to a channel
    Deliveries {
        /// The channel: its name or its id
        channel: String,
        /// Maximum number of deliveries
        #[arg(
            long,
            short = 'n',
            value_name = "COUNT",
            default_value_t = 20,
            value_parser = clap::value_parser!(u32).range(1..=100)
        )]
        number: u32,
    },
    /// Deliver events again
    Redeliver {
        /// The channel: its name or its id
        channel: String,
        /// The deliveries, by their ids
        #[arg(required = true, value_name = "DELIVERY")]
        deliveries: Vec<DeliveryId>,
    },
}

/// Runs `wrenn channel`.
pub(crate) async fn run(client: &Client, what: &Command, format: Format) -> Result<u8> {
    match what {
        Command::Create { name, provider, events, from } => {
            let (name, provider, config) = (name.clone(), *provider, from.read()?);
            let new = CreateChannel { name, provider, config, events: set(events) };
            print(&client.create_channel(&new).await?, format)?;
        }
        Command::Ls => {
            let all = client.list_channels().await?;
            format.print(&all, || table(&all))?;
        }
        Command::Update { channel, name, events } => {
            let events = (!events.is_empty()).then(|| set(events));
            let update = UpdateChannel { name: name.clone(), events };
            print(&client.update_channel(find(client, channel).await?, &update).await?, format)?;
        }
        Command::Configure { channel, from } => {
            let id = find(client, channel).await?;
            print(&client.configure_channel(id, &from.read()?).await?, format)?;
        }
        Command::Test { provider, from } => {
            client.test_channel(&TestChannel { provider: *provider, config: from.read()? }).await?;
            format.print(&json!({ "status": "ok" }), || "the receiver took the message".to_owned())?;
        }
        Command::Rm { channels } => {
            for channel in channels {
                client.delete_channel(find(client, channel).await?).await?;
            }
            format.print(&json!({ "removed": channels }), || channels.join("\n"))?;
        }
        Command::Deliveries { channel, number } => {
            let (all, _) = client.list_deliveries(find(client, channel).await?, *number, None).await?;
            format.print(&all, || deliveries_table(&all))?;
        }
        Command::Redeliver { channel, deliveries } => {
            let channel = find(client, channel).await?;
            for delivery in deliveries {
                client.redeliver(channel, *delivery).await?;
            }
            let ids: Vec<_> = deliveries.iter().map(ToString::to_string).collect();
            format.print(&json!({ "redelivered": ids }), || ids.join("\n"))?;
        }
    }
    Ok(0)
}

fn set(events: &[Wanted]) -> BTreeSet<Wanted> {
    events.iter().copied().collect()
}

/// Prints a channel; its secret, if the server made one, alone on standard output.
fn print(channel: &Channel, format: Format) -> Result<()> {
    if format == Format::Text && channel.secret.is_some() {
        note(&format!("channel {} ({}); its secret is shown this one time:", channel.id, channel.name));
    }
    let secret = channel.secret.as_ref().map(|secret| secret.reveal().to_owned());
    format.print(channel, || secret.unwrap_or_else(|| channel.id.to_string()))
}

/// Finds a channel by its id or its name.
async fn find(client: &Client, text: &str) -> Result<ChannelId> {
    if let Ok(id) = text.parse() {
        return Ok(id);
    }
    let all = client.list_channels().await?;
    let found = all.iter().find(|channel| channel.name == text).map(|channel| channel.id);
    let message = || format!("there is no channel {text:?}: `wrenn channel ls` lists them");
    found.ok_or_else(|| Failure::new("not_found", message()).into())
}

impl FromFile {
    fn read(&self) -> Result<ChannelConfig> {
        if self.config_file == Path::new(STDIN) {
            return parse(io::stdin().lock()).context("standard input");
        }
        let name = || format!("--config {}", self.config_file.display());
        parse(File::open(&self.config_file).with_context(name)?).with_context(name)
    }
}

fn parse(input: impl Read) -> Result<ChannelConfig> {
    let mut text = String::new();
    input.take(CONFIG_MAX).read_to_string(&mut text)?;
    // The error of what is no JSON quotes nothing of it.
    let value: serde_json::Value = serde_json::from_str(&text).context("it is no JSON object")?;
    let known = serde_json::from_value(value).ok();
    known.context("a field has no such name, or is no text: see `wrenn channel --help`")
}

fn table(all: &[Channel]) -> String {
    let rows = all.iter().map(|channel| {
        let failing = channel.failing_since.map(|since| format!("failing since {}", time(since)));
        [
            channel.id.to_string(),
            channel.name.clone(),
            channel.provider.to_string(),
            failing.unwrap_or_else(|| "ok".to_owned()),
            channel.events.join(","),
        ]
    });
    output::table(["ID", "NAME", "PROVIDER", "STATE", "EVENTS"], rows)
}

fn deliveries_table(all: &[Delivery]) -> String {
    let rows = all.iter().map(|delivery| {
        let status = match delivery.status {
            DeliveryStatus::Pending => "pending",
            DeliveryStatus::Delivered => "delivered",
            DeliveryStatus::Failed => "failed",
        };
        [
            delivery.id.to_string(),
            time(delivery.created_at),
            delivery.event.clone(),
            output::plain(&delivery.subject),
            status.to_owned(),
            delivery.attempts.to_string(),
            output::plain(delivery.error.as_deref().unwrap_or("-")),
        ]
    });
    output::table(["ID", "CREATED", "EVENT", "ABOUT", "STATE", "ATTEMPTS", "ERROR"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_an_object_and_is_not_quoted() -> Result<()> {
        let config = parse(&br#"{"url": "https://hooks.example.com/s3cret"}"#[..])?;
        assert_eq!(
            config.url.as_ref().map(wrenn_api::Secret::reveal),
            Some("https://hooks.example.com/s3cret")
        );
        for wrong in [
            &b"https://hooks.example.com/s3cret"[..],
            br#"{"webhook": "s3cret"}"#,
            br#"{"url": ["s3cret"]}"#,
            b"",
        ] {
            let told = parse(wrong).err().map(|error| format!("{error:#}")).unwrap_or_default();
            assert!(!told.is_empty() && !told.contains("s3cret"), "{told}");
        }
        Ok(())
    }
}
