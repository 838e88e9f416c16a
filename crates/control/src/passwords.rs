// SPDX-License-Identifier: Apache-2.0
//! Passwords: what is one, and their hashes by Argon2id. A hash takes much work on purpose, so it is done on threads of its own,
//! and a few at a time.

use std::{
    fmt,
    sync::{Arc, OnceLock},
    thread,
    time::Duration,
};

use argon2::{
    Argon2,
    password_hash::{PasswordHasher as _, PasswordVerifier as _, phc::PasswordHash},
};
use tokio::{sync::Semaphore, time::timeout};
use wrenn_api::{ErrorCode, Secret};

use crate::error::Fault;

/// Lengths of passwords, in characters.
const LENGTHS: std::ops::RangeInclusive<usize> = 8..=256;
/// Maximum number of hashes at a time: each takes 19 MiB and a core.
const AT_A_TIME: usize = 4;
/// Maximum number of hashes that wait for their turn.
const WAITING: usize = 64;
/// Time after which one that waits is refused.
const TURN: Duration = Duration::from_secs(10);

/// Stored hash of a password, in the form `$argon2id$…`.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Hashed(pub(crate) String);

// By hand: it is worth a try to guess the password of a hash.
impl fmt::Debug for Hashed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hashed(..)")
    }
}

/// Hashes passwords and compares them.
pub(crate) struct Passwords {
    turns: Arc<Semaphore>,
    queue: Arc<Semaphore>,
    /// Hash of no password, with which one is compared if there is no account: this takes as long as if there were one.
    nobody: OnceLock<Hashed>,
}

impl Default for Passwords {
    fn default() -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let turns = Arc::new(Semaphore::new(cores.min(AT_A_TIME)));
        Self { turns, queue: Arc::new(Semaphore::new(WAITING)), nobody: OnceLock::new() }
    }
}

impl Passwords {
    /// Hashes a password with a salt of its own. Fails if it is too short, too long, or the address.
    pub(crate) async fn hash(&self, password: &Secret, email: &str) -> Result<Hashed, Fault> {
        check(password, email)?;
        let password = password.clone();
        self.work(move || hashed(password.reveal())).await?
    }

    /// Returns whether this is the password of the hash. Without a hash it is not, and that takes as long.
    pub(crate) async fn verify(&self, password: &Secret, hash: Option<&Hashed>) -> Result<bool, Fault> {
        // None that is longer was ever taken.
        if password.reveal().chars().count() > *LENGTHS.end() {
            return Ok(false);
        }
        let (password, is_known) = (password.clone(), hash.is_some());
        let hash = match hash {
            Some(hash) => hash.clone(),
            None => self.nobody().await?,
        };
        let fits = self.work(move || verified(password.reveal(), &hash)).await??;
        Ok(fits && is_known)
    }

    async fn nobody(&self) -> Result<Hashed, Fault> {
        if let Some(hash) = self.nobody.get() {
            return Ok(hash.clone());
        }
        let hash = self.work(|| hashed("nobody has this one")).await??;
        Ok(self.nobody.get_or_init(|| hash).clone())
    }

    /// Does work on a thread of its own, when its turn comes.
    async fn work<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Fault> {
        let busy = || {
            let message = "the control plane compares too many passwords; try again in a moment";
            Fault::new(ErrorCode::TooManyRequests, message)
        };
        let _place = self.queue.clone().try_acquire_owned().map_err(|_| busy())?;
        let turn = timeout(TURN, self.turns.clone().acquire_owned()).await.map_err(|_| busy())?;
        let turn = turn.map_err(|_| busy())?;
        let done = tokio::task::spawn_blocking(move || {
            // The turn lasts as long as the work, also when nobody waits for it any more.
            let _turn = turn;
            work()
        });
        done.await.map_err(|error| {
            tracing::error!(%error, "a password could not be hashed");
            Fault::internal()
        })
    }
}

fn check(password: &Secret, email: &str) -> Result<(), Fault> {
    let (least, most) = LENGTHS.into_inner();
    let length = password.reveal().chars().count();
    if !(least..=most).contains(&length) {
        return Err(Fault::invalid(format!(
            "a password has {least} to {most} characters, and this one {length}"
        )));
    }
    if password.reveal().eq_ignore_ascii_case(email) {
        return Err(Fault::invalid("the password is the e-mail address: choose another one"));
    }
    Ok(())
}

fn hashed(password: &str) -> Result<Hashed, Fault> {
    let hash: PasswordHash = Argon2::default().hash_password(password.as_bytes()).map_err(|error| {
        tracing::error!(%error, "a password could not be hashed");
        Fault::internal()
    })?;
    Ok(Hashed(hash.to_string()))
}

fn verified(password: &str, hash: &Hashed) -> Result<bool, Fault> {
    let hash = PasswordHash::new(&hash.0).map_err(|error| {
        tracing::error!(%error, "a stored hash of a password cannot be read");
        Fault::internal()
    })?;
    // The parameters are those of the hash.
    Ok(Argon2::default().verify_password(password.as_bytes(), &hash).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(text: &str) -> Secret {
        Secret::from(text.to_owned())
    }

    #[tokio::test]
    async fn only_the_password_of_the_hash_fits() {
        let passwords = Passwords::default();
        let right = password("correct horse");
        let hash = passwords.hash(&right, "jo@example.com").await.expect("a hash");
        assert!(hash.0.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{}", hash.0);
        assert!(passwords.verify(&right, Some(&hash)).await.expect("an answer"));
        for wrong in ["correct horsf", "", "correct horse ", &"x".repeat(1 << 20)] {
            assert!(
                !passwords.verify(&password(wrong), Some(&hash)).await.expect("an answer"),
                "{wrong:.20}"
            );
        }
        assert!(!passwords.verify(&right, None).await.expect("an answer"));
        assert!(!passwords.verify(&password("nobody has this one"), None).await.expect("an answer"));
        let again = passwords.hash(&right, "jo@example.com").await.expect("a hash");
        assert_ne!(hash, again, "the salt is the same");
        assert!(!format!("{hash:?}").contains("argon2"));
    }

    #[test]
    fn what_is_easy_to_guess_or_much_work_is_refused() {
        let refused = |text: &str| check(&password(text), "jo@example.com").is_err();
        assert!(refused("1234567") && refused(&"x".repeat(257)) && refused("JO@example.com"));
        // Characters, not bytes.
        assert!(!refused("12345678") && !refused(&"é".repeat(256)));
    }

    #[tokio::test]
    async fn no_more_wait_than_there_are_places() {
        let passwords = Passwords::default();
        let _all = passwords.queue.clone().try_acquire_many_owned(WAITING as u32).expect("places");
        let fault = passwords.verify(&password("x"), None).await.expect_err("refused");
        assert_eq!(fault.code, ErrorCode::TooManyRequests);
    }
}
