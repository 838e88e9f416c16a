// SPDX-License-Identifier: Apache-2.0
//! Limits on what can be guessed, and on mails that strangers cause: attempts are counted per address and per account, in Redis
//! for all servers, and while Redis is away by each server for itself.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use wrenn_api::ErrorCode;

use crate::{error::Fault, event_store::EventStore, secrets::hash};

/// Maximum number of counters that a server has by itself.
const COUNTERS: usize = 10_000;
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// What is counted. In parentheses: whose attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attempt {
    /// Signing in (an address).
    LoginFrom,
    /// Signing in (an account, from one address).
    LoginFromTo,
    /// Signing in (an account).
    LoginTo,
    /// Using a link (an address).
    LinkFrom,
    /// Naming the present password (a user).
    Password,
    /// Mails that strangers cause (an address).
    MailFrom,
    /// Mails that strangers cause (the recipient).
    MailTo,
    /// Mails that strangers cause (the whole server).
    Mail,
    /// Inviting into a team (the team).
    InviteFrom,
    /// Inviting into a team (an address).
    InviteTo,
}

impl Attempt {
    const fn name(self) -> &'static str {
        match self {
            Self::LoginFrom => "login_from",
            Self::LoginFromTo => "login_from_to",
            Self::LoginTo => "login_to",
            Self::LinkFrom => "link_from",
            Self::Password => "password",
            Self::MailFrom => "mail_from",
            Self::MailTo => "mail_to",
            Self::Mail => "mail",
            Self::InviteFrom => "invite_from",
            Self::InviteTo => "invite_to",
        }
    }

    /// Maximum number, and the time for which it counts.
    const fn bound(self, mails_per_hour: u32) -> (u32, Duration) {
        match self {
            Self::LoginFrom => (60, MINUTE.saturating_mul(15)),
            Self::LoginFromTo => (10, MINUTE.saturating_mul(15)),
            // Higher, so that nobody easily keeps a user out by guessing.
            Self::LoginTo => (100, HOUR),
            Self::LinkFrom => (60, MINUTE.saturating_mul(15)),
            Self::Password => (10, MINUTE.saturating_mul(15)),
            Self::MailFrom => (20, HOUR),
            Self::MailTo => (5, HOUR),
            Self::Mail => (mails_per_hour, HOUR),
            Self::InviteFrom => (100, HOUR),
            Self::InviteTo => (10, HOUR),
        }
    }
}

/// Counts attempts.
pub(crate) struct Attempts {
    mails_per_hour: u32,
    /// Counters of this server, for the time that Redis is away.
    own: Mutex<HashMap<String, (u32, Instant)>>,
}

impl Attempts {
    /// Creates the service.
    pub(crate) fn new(mails_per_hour: u32) -> Self {
        Self { mails_per_hour, own: Mutex::default() }
    }

    /// Counts an attempt before it is made. Fails with `too_many_attempts` if there were too many.
    pub(crate) async fn count(&self, redis: &EventStore, attempt: Attempt, whose: &str) -> Result<(), Fault> {
        let (most, time) = attempt.bound(self.mails_per_hour);
        let key = key(attempt, whose);
        let number = match counted(redis, &key, time).await {
            Ok(number) => number,
            Err(error) => {
                tracing::debug!(%error, "attempts are counted by this server alone");
                self.count_here(key, time)
            }
        };
        if number <= most {
            return Ok(());
        }
        metrics::counter!("wrenn_refused_attempts_total", "of" => attempt.name()).increment(1);
        let minutes = time.as_secs() / 60;
        let message = format!("there were too many attempts; try again in {minutes} minutes");
        Err(Fault::new(ErrorCode::TooManyAttempts, message))
    }

    /// Forgets the attempts of somebody, who has succeeded. A failure only keeps the counter until its time is over.
    pub(crate) async fn forget(&self, redis: &EventStore, attempt: Attempt, whose: &str) {
        let key = key(attempt, whose);
        self.own.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
        if let Err(error) = forgotten(redis, &key).await {
            tracing::debug!(%error, "attempts could not be forgotten");
        }
    }

    fn count_here(&self, key: String, time: Duration) -> u32 {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if own.len() >= COUNTERS && !own.contains_key(&key) {
            own.retain(|_, (_, end)| *end > now);
            if own.len() >= COUNTERS {
                // Somebody fills it on purpose: nobody gets another counter until some end.
                return u32::MAX;
            }
        }
        let counter = own.entry(key).or_insert((0, now + time));
        if counter.1 <= now {
            *counter = (0, now + time);
        }
        counter.0 = counter.0.saturating_add(1);
        counter.0
    }
}

/// Who attempts something, by an address: of IPv6 the network, since whoever has one address has all of it.
pub(crate) fn from(address: Option<IpAddr>) -> String {
    match address.map(|address| address.to_canonical()) {
        Some(IpAddr::V4(address)) => address.to_string(),
        Some(IpAddr::V6(address)) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).to_string()
        }
        // What has no address comes from this machine.
        None => "here".to_owned(),
    }
}

/// The same for whoever is not on this machine.
pub(crate) fn remote(address: Option<IpAddr>) -> Option<String> {
    address.filter(|address| !address.to_canonical().is_loopback()).map(|address| from(Some(address)))
}

/// Key of a counter. It has the hash of whose it is, since an e-mail address is nothing for another store.
fn key(attempt: Attempt, whose: &str) -> String {
    let digits: String = hash(whose)[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("wrenn:attempts:{}:{digits}", attempt.name())
}

async fn counted(redis: &EventStore, key: &str, time: Duration) -> Result<u32, redis::RedisError> {
    let mut connection = redis.shared().await?;
    // First the counter with its end, if there is none: one without an end would count for ever.
    let (number,): (u32,) = redis::pipe()
        .atomic()
        .cmd("SET")
        .arg(key)
        .arg(0)
        .arg("PX")
        .arg(time.as_millis() as u64)
        .arg("NX")
        .ignore()
        .cmd("INCR")
        .arg(key)
        .query_async(&mut connection)
        .await?;
    Ok(number)
}

async fn forgotten(redis: &EventStore, key: &str) -> Result<(), redis::RedisError> {
    let mut connection = redis.shared().await?;
    redis::cmd("DEL").arg(key).query_async(&mut connection).await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nobody listens there.
    fn no_redis() -> EventStore {
        EventStore::new("redis://127.0.0.1:1").expect("a URL")
    }

    #[tokio::test]
    async fn each_counts_for_itself_also_without_redis() {
        let (attempts, redis) = (Attempts::new(2), no_redis());
        for _ in 0..5 {
            attempts.count(&redis, Attempt::MailTo, "jo@example.com").await.expect("not yet too many");
        }
        let fault = attempts.count(&redis, Attempt::MailTo, "jo@example.com").await.expect_err("too many");
        assert_eq!(fault.code, ErrorCode::TooManyAttempts);
        assert!(fault.message.contains("60 minutes"), "{}", fault.message);
        attempts.count(&redis, Attempt::MailTo, "al@example.com").await.expect("another one");
        attempts.forget(&redis, Attempt::MailTo, "jo@example.com").await;
        attempts.count(&redis, Attempt::MailTo, "jo@example.com").await.expect("forgotten");
    }

    #[test]
    fn the_counters_of_a_server_are_bounded() {
        let attempts = Attempts::new(2);
        for number in 0..2 * COUNTERS {
            attempts.count_here(number.to_string(), HOUR);
        }
        let counters = attempts.own.lock().expect("no panic").len();
        assert_eq!(counters, COUNTERS);
        assert_eq!(attempts.count_here("another".to_owned(), HOUR), u32::MAX);
        assert_eq!(attempts.count_here("0".to_owned(), HOUR), 2);
    }

    #[test]
    fn a_counter_ends() {
        let attempts = Attempts::new(2);
        assert_eq!(attempts.count_here("a".to_owned(), Duration::ZERO), 1);
        assert_eq!(attempts.count_here("a".to_owned(), Duration::ZERO), 1);
    }

    #[test]
    fn whoever_has_a_network_is_one() {
        let of = |text: &str| from(text.parse().ok());
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
        for here in ["127.0.0.1", "::1", "::ffff:127.0.0.2"] {
            assert_eq!(remote(here.parse().ok()), None, "{here}");
        }
        assert_eq!(remote("192.0.2.1".parse().ok()).as_deref(), Some("192.0.2.1"));
    }

    #[test]
    fn no_address_is_in_a_key() {
        let key = key(Attempt::LoginTo, "jo@example.com");
        assert!(!key.contains("jo@") && key.starts_with("wrenn:attempts:login_to:"), "{key}");
    }
}
