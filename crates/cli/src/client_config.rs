// SPDX-License-Identifier: Apache-2.0
//! The client's configuration file: its path, and how `wrenn up` writes URL and key to it.

use std::{
    fs, io,
    os::unix::fs::{OpenOptionsExt as _, fchown},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use wrenn_os::atomic_file;

use crate::users::{self, User};

/// Maximum size of the file, in bytes.
const SIZE_MAX: u64 = 1 << 20;

/// Path of the file: `WRENN_CONFIG`, else in the home directory.
pub(crate) fn path() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("WRENN_CONFIG").filter(|path| !path.is_empty()) {
        return std::path::absolute(PathBuf::from(path)).context("WRENN_CONFIG");
    }
    let home = match invoker() {
        Some(user) => user.home,
        None => std::env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from),
    };
    Ok(home.join(".config/wrenn/config.toml"))
}

/// The user who called `sudo`, unless `HOME` was set to another directory.
fn invoker() -> Option<User> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let uid = std::env::var("SUDO_UID").ok().filter(|uid| uid != "0")?;
    let user = users::find(&uid)?;
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let usual = home.is_none_or(|home| home == user.home || users::find("0").is_some_and(|r| r.home == home));
    usual.then_some(user)
}

/// Reads the file; empty if it does not exist.
pub(crate) fn read(path: &Path) -> Result<String> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let mut text = String::new();
    io::Read::read_to_string(&mut io::Read::take(file, SIZE_MAX), &mut text)
        .with_context(|| format!("cannot read {}", path.display()))?;
    Ok(text)
}

/// Writes URL and key to the file and leaves the rest unchanged.
pub(crate) fn write(path: &Path, url: &str, api_key: &str) -> Result<()> {
    save(path, &merge(&read(path)?, url, api_key)?)
}

/// Writes a file of the client, which only its owner can read.
pub(crate) fn save(path: &Path, text: &str) -> Result<()> {
    let owner = invoker().map(|user| (user.uid, user.gid));
    make_dirs(path.parent().context("the configuration file is in no directory")?, owner)?;
    atomic_file::write(path, text.as_bytes(), 0o600, owner)
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Creates the missing directories for their owner. The owner may replace a new directory by a symbolic link,
/// which is not followed.
fn make_dirs(dir: &Path, owner: Option<(u32, u32)>) -> Result<()> {
    let missing: Vec<&Path> = dir.ancestors().take_while(|dir| !dir.exists()).collect();
    for dir in missing.into_iter().rev() {
        let give = |(user, group)| {
            let flags = libc::O_NOFOLLOW | libc::O_DIRECTORY;
            let made = fs::File::options().read(true).custom_flags(flags).open(dir)?;
            fchown(&made, Some(user), Some(group))
        };
        fs::create_dir(dir)
            .and_then(|()| owner.map_or(Ok(()), give))
            .with_context(|| format!("cannot make {}", dir.display()))?;
    }
    Ok(())
}

fn merge(old: &str, url: &str, api_key: &str) -> Result<String> {
    let mut wanted: toml::Table = old.parse().context("the configuration file is not TOML")?;
    for (name, value) in [("url", url), ("api_key", api_key)] {
        wanted.insert(name.to_owned(), value.into());
    }
    let head = format!("url = {}\napi_key = {}\n", toml::Value::from(url), toml::Value::from(api_key));
    // Line by line first, which keeps comments and order.
    let mut top = true;
    let kept: Vec<&str> = old
        .lines()
        .filter(|line| {
            top &= !line.trim_start().starts_with('[');
            let name = line.split('=').next().unwrap_or_default().trim();
            !(top && matches!(name, "url" | "api_key"))
        })
        .collect();
    let text = format!("{head}{}{}", kept.join("\n"), if kept.is_empty() { "" } else { "\n" });
    if text.parse::<toml::Table>().is_ok_and(|table| table == wanted) {
        return Ok(text);
    }
    // If this fails, as for multi-line strings, the file is written anew.
    wanted.retain(|name, _| name != "url" && name != "api_key");
    Ok(format!("{head}{}", toml::to_string(&wanted).context("cannot write the configuration")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_keys_and_comments_stay() -> Result<()> {
        let old = "# mine\nurl = \"http://old\"\nlog = \"debug\"\n[server]\nlisten = \"127.0.0.1:1\"\n";
        let new = merge(old, "http://new", "k\"1")?;
        let rest = "# mine\nlog = \"debug\"\n[server]\nlisten = \"127.0.0.1:1\"\n";
        assert!(new.starts_with("url = \"http://new\"\napi_key = ") && new.ends_with(rest), "{new}");
        assert_eq!(new.parse::<toml::Table>()?["api_key"].as_str(), Some("k\"1"));
        assert_eq!(merge(&new, "http://new", "k\"1")?, new, "not idempotent");
        Ok(())
    }

    #[test]
    fn unusual_files_are_written_anew() -> Result<()> {
        let new = merge("log = '''\nurl = 1\n'''\n", "http://new", "key")?;
        let table: toml::Table = new.parse()?;
        assert_eq!(table["log"].as_str(), Some("url = 1\n"));
        assert_eq!(table["url"].as_str(), Some("http://new"));
        Ok(())
    }

    #[test]
    fn the_file_is_private_and_replaced_at_once() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("a/b/config.toml");
        write(&path, "http://127.0.0.1:1", "first")?;
        write(&path, "http://127.0.0.1:1", "second")?;
        assert!(read(&path)?.lines().any(|line| line == "api_key = \"second\""));
        assert_eq!(
            std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path)?.permissions()) & 0o777,
            0o600
        );
        assert_eq!(fs::read_dir(dir.path().join("a/b"))?.count(), 1);
        Ok(())
    }
}
