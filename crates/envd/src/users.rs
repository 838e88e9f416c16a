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

/// Finds a user by name or number. A number that no account has is a user with the group of the same number. After a colon
/// there can be a group, by name or number, which the user has then instead of all of its own, as in Docker. Reads files on
/// a blocking thread.
pub(crate) async fn find(name: String) -> Result<User, UserError> {
    let shown = cut(&name);
    let looking = move || look(&name, &read("/etc/passwd"), &read("/etc/group"));
    let found = tokio::task::spawn_blocking(looking).await;
    found.unwrap_or(Err(UserError::Unknown(shown)))
}

fn look(name: &str, passwd: &str, groups: &str) -> Result<User, UserError> {
    let (user, group) = parts(name);
    let found = parse(user, passwd, groups).ok_or_else(|| UserError::Unknown(cut(name)))?;
    match group {
        Some(group) => within(found, group, groups).ok_or_else(|| UserError::UnknownGroup(cut(group))),
        None => Ok(found),
    }
}

/// Shortens a name for an error message; it may be long, because requests choose it.
fn cut(name: &str) -> String {
    name.chars().take(SHOWN).collect()
}

/// Splits `USER:GROUP`, of which the group may be absent.
pub(crate) fn parts(name: &str) -> (&str, Option<&str>) {
    name.split_once(':').map_or((name, None), |(user, group)| (user, Some(group)))
}

/// Gives a user this group instead of all of its own; `None` if there is no such group.
fn within(user: User, group: &str, groups: &str) -> Option<User> {
    let gid = number(group).or_else(|| group_id(group, groups))?;
    Some(User { gid, groups: vec![gid], ..user })
}

/// Finds the id of a group by its name. Reads the file on a blocking thread.
pub(crate) async fn find_group(name: String) -> Result<u32, UserError> {
    let shown = cut(&name);
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

/// Parses the number of a user or a group. The largest one stands for nobody in the kernel.
pub(crate) fn number(text: &str) -> Option<u32> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|id| digits && *id != u32::MAX)
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
    let account = |is_it: &dyn Fn(&[&str]) -> bool| {
        passwd.lines().map(|l| l.split(':').collect::<Vec<_>>()).find(|f| f.len() >= 7 && is_it(f))
    };
    let of_number = |id| account(&|f| number(f[2]) == Some(id));
    let found = account(&|f| f[0] == name).or_else(|| number(name).and_then(of_number));
    let Some(fields) = found else { return without_account(name) };
    let name = fields[0];
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

/// User without an account: root exists also without /etc/passwd, and every number is a user.
fn without_account(name: &str) -> Option<User> {
    let (id, home) = if name == "root" { (0, "/root") } else { (number(name)?, "/") };
    Some(User {
        name: name.into(),
        uid: id,
        gid: id,
        groups: vec![id],
        home: home.into(),
        shell: "/bin/sh".into(),
    })
}

/// Returns the user of `Authorization: Basic`, if any. With an empty password, which is what clients of this wire contract send,
/// the rest may be a user with a group; a password that is not empty is ignored.
pub(crate) fn requested(headers: &HeaderMap) -> Result<Option<String>, UserError> {
    let Some(value) = headers.get(http::header::AUTHORIZATION) else { return Ok(None) };
    let text = value.to_str().map_err(|_| UserError::Header)?;
    // Ignore other schemes, which a proxy may have added.
    let Some(code) = text.strip_prefix("Basic ").or_else(|| text.strip_prefix("basic ")) else {
        return Ok(None);
    };
    let raw = base64::engine::general_purpose::STANDARD.decode(code.trim()).map_err(|_| UserError::Header)?;
    let pair = String::from_utf8(raw).map_err(|_| UserError::Header)?;
    let without_password = || pair.split(':').next().unwrap_or_default();
    let name = pair.strip_suffix(':').unwrap_or_else(without_password);
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
    fn a_number_is_the_user_who_has_it_or_one_of_its_own() {
        assert_eq!(parse("1000", PASSWD, GROUP), parse("ann", PASSWD, GROUP));
        assert_eq!(parse("0", "", "").map(|root| (root.uid, root.gid)), Some((0, 0)));
        let other = parse("4242", PASSWD, GROUP).unwrap();
        assert_eq!((other.uid, other.gid, other.groups, other.home.as_str()), (4242, 4242, vec![4242], "/"));
        for text in ["", "+1", "-1", "4294967295", "4294967296", "1a", "١"] {
            assert_eq!((number(text), parse(text, PASSWD, GROUP)), (None, None), "{text:?}");
        }
        let named = format!("{PASSWD}1000:x:7:8::/:\n");
        assert_eq!(parse("1000", &named, GROUP).map(|user| user.uid), Some(7), "a name is stronger");
    }

    #[test]
    fn a_group_that_is_named_is_the_only_one() {
        assert_eq!(
            (parts("ann"), parts("ann:sudo"), parts(":")),
            (("ann", None), ("ann", Some("sudo")), ("", Some("")))
        );
        let ann = || parse("ann", PASSWD, GROUP).unwrap();
        let of = |group: &str| within(ann(), group, GROUP).map(|user| (user.uid, user.gid, user.groups));
        assert_eq!(of("sudo"), Some((1000, 27, vec![27])));
        assert_eq!(of("4242"), Some((1000, 4242, vec![4242])), "a number needs no entry");
        assert_eq!((of("staff"), of(""), of("4294967295")), (None, None, None));
    }

    #[tokio::test]
    async fn what_is_unknown_is_named() {
        let error = async |name: &str| find(name.to_owned()).await.unwrap_err().to_string();
        assert_eq!(error("no-such-user:root").await, "invalid username: 'no-such-user:root'");
        assert_eq!(error("root:no-such-group").await, "there is no group 'no-such-group'");
        let root = find("root:7".to_owned()).await.unwrap();
        assert_eq!((root.uid, root.gid, root.groups), (0, 7, vec![7]));
    }

    #[test]
    fn reads_the_basic_header() {
        let mut headers = HeaderMap::new();
        assert_eq!(requested(&headers).unwrap(), None);
        headers.insert("authorization", "Basic YW5uOg==".parse().unwrap());
        assert_eq!(requested(&headers).unwrap().as_deref(), Some("ann"));
        let mut of = |pair: &str| {
            let code = base64::engine::general_purpose::STANDARD.encode(pair);
            headers.insert("authorization", format!("Basic {code}").parse().unwrap());
            requested(&headers).unwrap()
        };
        assert_eq!((of("ann:sudo:").as_deref(), of("ann").as_deref()), (Some("ann:sudo"), Some("ann")));
        assert_eq!((of("ann:password").as_deref(), of(":"), of("")), (Some("ann"), None, None));
        headers.insert("authorization", "Basic ???".parse().unwrap());
        assert!(requested(&headers).is_err());
    }
}
