//! Users of the system, from `getent`.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result};

/// Users that PostgreSQL, Redis and the control plane may run as, the best first.
pub(crate) const SERVICE_USERS: &[&str] = &["wrenn", "postgres"];

/// A user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) home: PathBuf,
}

/// Finds a user by name or number.
pub(crate) fn find(name: &str) -> Option<User> {
    let output = Command::new("getent").args(["passwd", name]).output().ok()?;
    parse(&String::from_utf8_lossy(&output.stdout))
}

/// The unprivileged user for everything that needs no root.
pub(crate) fn service() -> Result<User> {
    SERVICE_USERS.iter().find_map(|name| find(name)).filter(|user| user.uid != 0).with_context(|| {
        "there is neither a user wrenn nor a user postgres to run as: \
         useradd --system --no-create-home --shell /usr/sbin/nologin wrenn"
    })
}

fn parse(line: &str) -> Option<User> {
    let fields: Vec<&str> = line.lines().next()?.split(':').collect();
    let [name, _, uid, gid, _, home, ..] = fields[..] else { return None };
    Some(User { name: name.to_owned(), uid: uid.parse().ok()?, gid: gid.parse().ok()?, home: home.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read() {
        let user = parse("wrenn:x:999:995::/home/wrenn:/usr/sbin/nologin\n");
        assert_eq!(user.map(|user| (user.uid, user.gid)), Some((999, 995)));
        for text in ["", "x", "a:b:c:d:e:f:g"] {
            assert_eq!(parse(text), None);
        }
    }
}
