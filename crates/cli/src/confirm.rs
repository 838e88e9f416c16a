// SPDX-License-Identifier: Apache-2.0
//! Question before something is removed that cannot be had again.

use std::io::{self, IsTerminal as _, Write as _};

use anyhow::{Context as _, Result};

use crate::failure::Failure;

/// Asks on the terminal whether this is to be removed, with all that it has. Without a terminal it is not.
pub(crate) async fn removal(what: &str, with: &str) -> Result<()> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        let message = format!("{what} would be removed: confirm it by --yes");
        return Err(Failure::new("not_confirmed", message).into());
    }
    let question = format!("Remove {what} {with}? [y/N] ");
    let ask = move || {
        let _ = write!(io::stderr(), "{question}");
        let mut answer = String::new();
        io::stdin().read_line(&mut answer).map(|_| answer)
    };
    let answer = tokio::task::spawn_blocking(ask).await?.context("the answer cannot be read")?;
    if ["y", "yes"].contains(&answer.trim().to_lowercase().as_str()) {
        return Ok(());
    }
    Err(Failure::new("not_confirmed", "nothing was removed").into())
}
