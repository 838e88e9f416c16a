// SPDX-License-Identifier: Apache-2.0
//! Secrets that people type, which are not shown, or that a program sends to standard input. None comes from the command line,
//! which process lists show.

use std::io;

use anyhow::{Context as _, Result, ensure};
use console::Term;
use wrenn_api::Secret;

use crate::{failure::Failure, registry};

/// Options of a secret.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct FromStdin {
    /// Read the password, the key or the link from standard input, up to its end, instead of asking for it
    #[arg(long)]
    stdin: bool,
}

impl FromStdin {
    /// Returns the secret: what standard input has, or what the user types.
    pub(crate) fn read(&self, prompt: &str) -> Result<Secret> {
        let secret = if self.stdin {
            registry::read(io::stdin().lock()).context("standard input cannot be read")?
        } else {
            ask(prompt)?
        };
        ensure!(!secret.is_empty(), "nothing was given: {prompt} is needed");
        Ok(Secret::from(secret))
    }

    /// Returns the present password, if there is one, and the new one, which is typed twice. Standard input has a line for each.
    pub(crate) fn read_change(&self, has_password: bool) -> Result<(Option<Secret>, Secret)> {
        if self.stdin {
            return change(
                &registry::read(io::stdin().lock()).context("standard input cannot be read")?,
                has_password,
            );
        }
        let present = if has_password { Some(Secret::from(ask("present password")?)) } else { None };
        let new = ask("new password")?;
        ensure!(ask("new password again")? == new, "the two are not the same");
        Ok((present, Secret::from(new)))
    }
}

/// Reads a change of a password: a line with the present one, if there is one, and a line with the new one.
fn change(text: &str, has_password: bool) -> Result<(Option<Secret>, Secret)> {
    let mut lines = text.lines().map(|line| Secret::from(line.to_owned()));
    let present = if has_password { lines.next() } else { None };
    let told = if has_password {
        "a line with the present password, and one with the new one"
    } else {
        "the new password"
    };
    let new = lines.next().with_context(|| format!("standard input needs {told}"))?;
    ensure!(lines.next().is_none(), "standard input has more than {told}");
    Ok((present, new))
}

/// Asks the user, without showing what is typed.
fn ask(prompt: &str) -> Result<String> {
    let terminal = Term::stderr();
    if !terminal.is_term() || !crate::stdin::is_terminal() {
        let message =
            format!("{prompt} is needed, and there is no terminal to ask for it: send it by --stdin");
        return Err(Failure::new("no_terminal", message).into());
    }
    terminal.write_str(&format!("{prompt}: ")).context("the terminal cannot be written to")?;
    let typed = terminal.read_secure_line().context("the terminal cannot be read")?;
    Ok(typed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_has_a_line_for_each_password() -> Result<()> {
        let secret = |text: &str| Secret::from(text.to_owned());
        assert_eq!(change("old\nnew one\n", true)?, (Some(secret("old")), secret("new one")));
        assert_eq!(change("new", false)?, (None, secret("new")));
        for (text, has_password) in [("", false), ("old", true), ("old\nnew", false), ("a\nb\nhunter2", true)]
        {
            let told = change(text, has_password).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(told.contains("standard input") && !told.contains("hunter2"), "{told}");
        }
        Ok(())
    }
}
