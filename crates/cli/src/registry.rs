// SPDX-License-Identifier: Apache-2.0
//! Account of a registry: `--registry-user`. Its password comes from standard input or from a variable, and never from the command
//! line, which process lists show.

use std::io::{self, Read as _};

use anyhow::{Context as _, Result, ensure};
use wrenn_api::RegistryAccount;

/// Variable with the password.
pub(crate) const PASSWORD: &str = "WRENN_REGISTRY_PASSWORD";
/// Maximum size of a password in bytes; the API takes less.
const PASSWORD_MAX: u64 = 1 << 20;

/// Options of the account of a registry.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Registry {
    /// Account of the image's registry, if it needs one; its password, or a token, is WRENN_REGISTRY_PASSWORD, or comes by
    /// --registry-password-stdin
    #[arg(long, value_name = "NAME")]
    registry_user: Option<String>,
    /// Read the password of the account from standard input, up to its end
    #[arg(long, requires = "registry_user")]
    registry_password_stdin: bool,
}

impl Registry {
    /// Returns the account, if one is given. Reads its password.
    pub(crate) fn account(&self) -> Result<Option<RegistryAccount>> {
        let Some(username) = self.registry_user.clone() else { return Ok(None) };
        let password = if self.registry_password_stdin {
            read(io::stdin().lock()).context("the password cannot be read from standard input")?
        } else {
            let password = std::env::var_os(PASSWORD).unwrap_or_default().into_string().ok();
            password.with_context(|| format!("the value of {PASSWORD} is no UTF-8"))?
        };
        ensure!(
            !password.is_empty(),
            "--registry-user needs a password: set {PASSWORD}, or give it by --registry-password-stdin"
        );
        Ok(Some(RegistryAccount { username, password }))
    }
}

/// Reads a password, which may end with a line break that does not belong to it.
pub(crate) fn read(input: impl io::Read) -> io::Result<String> {
    let mut text = String::new();
    input.take(PASSWORD_MAX).read_to_string(&mut text)?;
    let password = text.strip_suffix('\n').unwrap_or(&text);
    Ok(password.strip_suffix('\r').unwrap_or(password).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_ends_before_the_line_break() -> Result<()> {
        for (given, password) in [
            ("secret", "secret"),
            ("secret\n", "secret"),
            ("se cret\r\n", "se cret"),
            ("a\n\n", "a\n"),
            ("", ""),
        ] {
            assert_eq!(read(given.as_bytes())?, password, "{given:?}");
        }
        assert!(read(&b"\xff\n"[..]).is_err());
        Ok(())
    }

    #[test]
    fn without_a_user_nothing_is_read() -> Result<()> {
        assert_eq!(Registry::default().account()?, None);
        Ok(())
    }
}
