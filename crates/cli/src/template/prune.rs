// SPDX-License-Identifier: Apache-2.0
//! `wrenn template prune`: removes results of steps from the cache of builds.

use anyhow::Result;
use indicatif::HumanBytes;
use wrenn_client::Client;

use super::of::Of;
use crate::output::Format;

/// Text after the help.
pub(super) const EXAMPLES: &str = "\
Templates stay as they are; the next build does the steps again whose results are gone. What builds that run now use stays,
and the room on the hosts' disks is free within the hour.

Examples:
  wrenn template prune                     results that no build has used for 7 days
  wrenn template prune --older-than 1d
  wrenn template prune --all";

/// Arguments of `wrenn template prune`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// All results
    #[arg(long, conflicts_with = "older_than")]
    all: bool,
    /// Results that no build has used for so many days
    #[arg(long, value_name = "DAYS", value_parser = days, default_value = "7d")]
    older_than: u32,
    #[command(flatten)]
    of: Of,
}

/// Runs `wrenn template prune`.
pub(super) async fn run(client: &Client, args: &Args, format: Format) -> Result<u8> {
    let days = if args.all { 0 } else { args.older_than };
    let pruned = args.of.client(client).prune_cache(days).await?;
    let (results, bytes) = (pruned.results, HumanBytes(pruned.bytes));
    format.print(&pruned, || format!("removed the results of {results} steps, which had added {bytes}"))?;
    Ok(0)
}

/// Parses a number of days, such as `7d`.
fn days(text: &str) -> Result<u32, String> {
    let number = text.strip_suffix('d').unwrap_or(text).parse().ok();
    let wrong = || "write a number of days, 0 to 3650, such as 7d".to_owned();
    number.filter(|days| *days <= 3650).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_days() {
        assert_eq!(["7d", "7", "0", "3650d"].map(days), [Ok(7), Ok(7), Ok(0), Ok(3650)]);
        for wrong in ["", "d", "7h", "-1", "3651", "1.5d"] {
            assert!(days(wrong).is_err_and(|error| error.contains("such as 7d")), "{wrong}");
        }
    }
}
