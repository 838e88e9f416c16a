// SPDX-License-Identifier: Apache-2.0
//! Settings that the host sends to `/init`: token, variables, user; and the token check.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// Values read by calls.
#[derive(Clone, Debug, Default)]
pub(crate) struct Values {
    pub(crate) envs: BTreeMap<String, String>,
    pub(crate) default_user: Option<String>,
    pub(crate) default_workdir: Option<String>,
    pub(crate) sandbox_id: Option<String>,
    pub(crate) template_id: Option<String>,
}

impl Values {
    /// Returns the variables that all processes get: those that tell a program where it runs, overridden by the sandbox's own.
    pub(crate) fn variables(self) -> BTreeMap<String, String> {
        let mut all = BTreeMap::new();
        // The second family is what programs of E2B's templates look for.
        for family in ["WRENN", "E2B"] {
            if let Some(id) = &self.sandbox_id {
                all.insert(format!("{family}_SANDBOX"), "true".into());
                all.insert(format!("{family}_SANDBOX_ID"), id.clone());
            }
            if let Some(id) = &self.template_id {
                all.insert(format!("{family}_TEMPLATE_ID"), id.clone());
            }
        }
        all.extend(self.envs);
        all
    }
}

/// Settings of this sandbox.
#[derive(Default)]
pub(crate) struct Settings {
    values: Mutex<Values>,
    token: Mutex<Option<String>>,
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Settings {
    /// Returns a copy of the values.
    pub(crate) fn snapshot(&self) -> Values {
        guard(&self.values).clone()
    }

    /// Changes the values.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Values)) {
        change(&mut guard(&self.values));
    }

    /// Sets the token that all later calls must have.
    pub(crate) fn set_token(&self, token: String) {
        *guard(&self.token) = Some(token);
    }

    /// Returns the token, to check signatures.
    pub(crate) fn token(&self) -> Option<String> {
        guard(&self.token).clone()
    }

    /// Returns whether a call with this token may proceed. Runs in constant time.
    pub(crate) fn admits(&self, given: Option<&str>) -> bool {
        match &*guard(&self.token) {
            None => true,
            Some(token) => same(token, given.unwrap_or_default()),
        }
    }
}

/// Compares secrets in constant time, independent of their length.
pub(crate) fn same(a: &str, b: &str) -> bool {
    Sha256::digest(a)[..].ct_eq(&Sha256::digest(b)[..]).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_once_set_is_required() {
        let settings = Settings::default();
        assert!(settings.admits(None));
        settings.set_token("secret".into());
        assert!(settings.admits(Some("secret")));
        assert!(!settings.admits(Some("secreT")) && !settings.admits(Some("")) && !settings.admits(None));
    }
}
