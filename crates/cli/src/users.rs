// SPDX-License-Identifier: Apache-2.0
//! Users of the system, from `getent`.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result};

/// Users that the control plane may run as, in order of preference.
const SERVER_USERS: &[&str] = &["wrenn", "postgres"];
/// Users of PostgreSQL and of Redis.
const STORE_USERS: [&str; 2] = ["wrenn-db", "wrenn-redis"];

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

/// Users of the services, one each, so that an exploit of one does not reach the others.
#[derive(Debug, Clone)]
pub(crate) struct Services {
    pub(crate) postgres: User,
    pub(crate) redis: User,
    /// User of the control plane. Its group may connect to PostgreSQL and Redis.
    pub(crate) server: User,
    /// Names of users that do not exist; the server's user replaces them.
    pub(crate) missing: Vec<&'static str>,
}

impl Services {
    /// Finds the existing users.
    pub(crate) fn find() -> Result<Self> {
        Self::choose(find)
    }

    fn choose(find: impl Fn(&str) -> Option<User>) -> Result<Self> {
        let unprivileged = |name: &&str| find(name).filter(|user| user.uid != 0);
        let server = SERVER_USERS.iter().find_map(unprivileged).with_context(|| {
            format!(
                "there is neither a user wrenn nor a user postgres to run as: {}; the same for {}",
                command("wrenn"),
                STORE_USERS.join(" and ")
            )
        })?;
        let [postgres, redis] = STORE_USERS.map(|name| unprivileged(&name));
        let absent = |(name, user): (&'static str, &Option<User>)| user.is_none().then_some(name);
        let missing = STORE_USERS.into_iter().zip([&postgres, &redis]).filter_map(absent).collect();
        let or_server = |user: Option<User>| user.unwrap_or_else(|| server.clone());
        Ok(Self { postgres: or_server(postgres), redis: or_server(redis), server, missing })
    }

    /// Weakness of missing users, and the remedy.
    pub(crate) fn lack(&self) -> Option<(String, String)> {
        let names = self.missing.join(" and ");
        let remedy = self.missing.iter().map(|name| command(name)).collect::<Vec<_>>().join("; ");
        let detail =
            format!("no user {names}: {} is used instead, together with the control plane", self.server.name);
        (!self.missing.is_empty()).then_some((detail, remedy))
    }
}

fn command(name: &str) -> String {
    format!("useradd --system --user-group --no-create-home --shell /usr/sbin/nologin {name}")
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

    fn user(name: &str, uid: u32) -> User {
        User { name: name.to_owned(), uid, gid: uid, home: PathBuf::new() }
    }

    #[test]
    fn each_service_has_a_user_of_its_own_where_there_is_one() -> Result<()> {
        let all = [("wrenn", 1), ("wrenn-db", 2), ("wrenn-redis", 3)];
        let found =
            |name: &str| all.iter().find(|(known, _)| *known == name).map(|&(name, uid)| user(name, uid));
        let services = Services::choose(found)?;
        assert_eq!([services.server.uid, services.postgres.uid, services.redis.uid], [1, 2, 3]);
        assert_eq!(services.lack(), None);
        let services = Services::choose(|name| found(name).filter(|user| user.name != "wrenn-redis"))?;
        assert_eq!([services.server.uid, services.postgres.uid, services.redis.uid], [1, 2, 1]);
        let (detail, remedy) = services.lack().unwrap_or_default();
        assert!(
            detail.contains("no user wrenn-redis") && remedy.ends_with("nologin wrenn-redis"),
            "{detail} {remedy}"
        );
        assert!(Services::choose(|name| Some(user(name, 0))).is_err(), "root is none of them");
        Ok(())
    }
}
