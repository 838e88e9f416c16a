// SPDX-License-Identifier: Apache-2.0
//! Users and groups from `/etc/passwd` and `/etc/group`, parsed here because static glibc cannot load NSS.

use std::{collections::HashMap, path::Path};

use base64::Engine as _;
use connectrpc::ConnectError;
use http::HeaderMap;
use wrenn_rpc::fault::{self, Of};

use crate::regular;

/// Maximum number of bytes read of `/etc/passwd` and `/etc/group`.
const MOST: u64 = 4 << 20;
/// Maximum number of characters of a name in an error message.
const SHOWN: usize = 64;

/// User of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Group ids, including the primary group.
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
    pub(crate) shell: String,
}

/// Errors of finding a request's user.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UserError {
    #[error("invalid username: '{0}'")]
    Unknown(String),
    #[error("there is no group '{0}'")]
    UnknownGroup(String),
    #[error("the Authorization header must be `Basic` with base64 of \"user:\"")]
    Header,
}

/// Returns the user of a Connect call: the requested one, else the sandbox's default, else root.
pub(crate) async fn of_call(headers: &HeaderMap, default: Option<String>) -> Result<User, ConnectError> {
    let named = requested(headers).map_err(|error| ConnectError::unauthenticated(error.to_string()))?;
    let found = find(named.or(default).unwrap_or_else(|| "root".into())).await;
    // Clients of this wire contract expect `unauthenticated` for an unknown user.
    found.map_err(|error| {
        fault::attach(ConnectError::unauthenticated(error.to_string()), "user_not_found", Of::OF_CALLER)
    })
}

/// Finds a user by name. Reads files on a blocking thread.
pub(crate) async fn find(name: String) -> Result<User, UserError> {
    let shown = name.chars().take(SHOWN).collect();
    let found = tokio::task::spawn_blocking(move || parse(&name, &read("/etc/passwd"), &read("/etc/group")));
    found.await.ok().flatten().ok_or(UserError::Unknown(shown))
}

/// Finds the id of a group by its name. Reads the file on a blocking thread.
pub(crate) async fn find_group(name: String) -> Result<u32, UserError> {
    let shown = name.chars().take(SHOWN).collect();
    let found = tokio::task::spawn_blocking(move || group_id(&name, &read("/etc/group")));
    found.await.ok().flatten().ok_or(UserError::UnknownGroup(shown))
}

/// User and group of a file; `None` is as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ids {
    pub(crate) user: Option<u32>,
    pub(crate) group: Option<u32>,
}

impl Ids {
    /// Finds user and group by name or number; empty is as it is.
    pub(crate) async fn find(user: &str, group: &str) -> Result<Self, UserError> {
        let number = |text: &str| text.parse::<u32>().ok();
        let user = match (user, number(user)) {
            ("", _) => None,
            (_, Some(id)) => Some(id),
            (name, None) => Some(find(name.into()).await?.uid),
        };
        let group = match (group, number(group)) {
            ("", _) => None,
            (_, Some(id)) => Some(id),
            (name, None) => Some(find_group(name.into()).await?),
        };
        Ok(Self { user, group })
    }
}

fn group_id(name: &str, group: &str) -> Option<u32> {
    let mut lines = group.lines().map(|line| line.split(':').collect::<Vec<_>>());
    lines.find(|fields| fields.len() >= 3 && fields[0] == name)?[2].parse().ok()
}

/// Reads a file; empty if it cannot be read or is not a regular file.
fn read(path: &str) -> String {
    regular::read_text(Path::new(path), MOST).unwrap_or_default()
}

fn parse(name: &str, passwd: &str, group: &str) -> Option<User> {
    let Some(fields) =
        passwd.lines().map(|l| l.split(':').collect::<Vec<_>>()).find(|f| f.len() >= 7 && f[0] == name)
    else {
        // Without /etc/passwd, root still exists.
        return (name == "root").then(|| User {
            name: name.into(),
            uid: 0,
            gid: 0,
            groups: vec![0],
            home: "/root".into(),
            shell: "/bin/sh".into(),
        });
    };
    let (uid, gid) = (fields[2].parse().ok()?, fields[3].parse().ok()?);
    let mut groups = vec![gid];
    for line in group.lines() {
        let f: Vec<_> = line.split(':').collect();
        if f.len() >= 4
            && f[3].split(',').any(|member| member == name)
            && let Ok(id) = f[2].parse()
            && !groups.contains(&id)
        {
            groups.push(id);
        }
    }
    let or = |value: &str, default: &str| if value.is_empty() { default.into() } else { value.to_owned() };
    Some(User {
        name: name.into(),
        uid,
        gid,
        groups,
        home: or(fields[5], "/"),
        shell: or(fields[6].trim_end(), "/bin/sh"),
    })
}

/// Returns the user of `Authorization: Basic`, if any.
pub(crate) fn requested(headers: &HeaderMap) -> Result<Option<String>, UserError> {
    let Some(value) = headers.get(http::header::AUTHORIZATION) else { return Ok(None) };
    let text = value.to_str().map_err(|_| UserError::Header)?;
    // Ignore other schemes, which a proxy may have added.
    let Some(code) = text.strip_prefix("Basic ").or_else(|| text.strip_prefix("basic ")) else {
        return Ok(None);
    };
    let raw = base64::engine::general_purpose::STANDARD.decode(code.trim()).map_err(|_| UserError::Header)?;
    let pair = String::from_utf8(raw).map_err(|_| UserError::Header)?;
    let name = pair.split(':').next().unwrap_or_default();
    Ok((!name.is_empty()).then(|| name.to_owned()))
}

/// Names of all users and groups, for listings.
pub(crate) struct Names {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

impl Names {
    /// Reads both files.
    pub(crate) fn load() -> Self {
        let load = |path| {
            let mut map = HashMap::new();
            for line in read(path).lines() {
                let f: Vec<_> = line.split(':').collect();
                if f.len() >= 3
                    && let Ok(id) = f[2].parse()
                {
                    map.entry(id).or_insert_with(|| f[0].to_owned());
                }
            }
            map
        };
        Self { users: load("/etc/passwd"), groups: load("/etc/group") }
    }

    /// Returns the user's name, or its number.
    pub(crate) fn user(&self, uid: u32) -> String {
        self.users.get(&uid).cloned().unwrap_or_else(|| uid.to_string())
    }

    /// Returns the group's name, or its number.
    pub(crate) fn group(&self, gid: u32) -> String {
        self.groups.get(&gid).cloned().unwrap_or_else(|| gid.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nann:x:1000:1001:,,,:/home/ann:\n";
    const GROUP: &str = "root:x:0:\nann:x:1001:\nsudo:x:27:bob,ann\n";

    #[test]
    fn finds_a_user_with_groups() {
        let ann = parse("ann", PASSWD, GROUP).unwrap();
        assert_eq!((ann.uid, ann.gid, ann.groups), (1000, 1001, vec![1001, 27]));
        assert_eq!(ann.shell, "/bin/sh");
        assert_eq!(parse("eve", PASSWD, GROUP), None);
        assert_eq!(parse("root", "", "").unwrap().uid, 0);
        assert_eq!((group_id("sudo", GROUP), group_id("su", GROUP)), (Some(27), None));
    }

    #[test]
    fn reads_the_basic_header() {
        let mut headers = HeaderMap::new();
        assert_eq!(requested(&headers).unwrap(), None);
        headers.insert("authorization", "Basic YW5uOg==".parse().unwrap());
        assert_eq!(requested(&headers).unwrap().as_deref(), Some("ann"));
        headers.insert("authorization", "Basic ???".parse().unwrap());
        assert!(requested(&headers).is_err());
    }
}
