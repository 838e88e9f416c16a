// SPDX-License-Identifier: Apache-2.0
//! Secrets of a step: files that its user can read while its command runs.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::error::{RecipeErrorCode as Code, shown};

/// Directory in which the files are.
const DIR: &str = "/run/secrets/";
/// Maximum length of an id, and of a target, in bytes.
const ID: usize = 64;
const TARGET: usize = 1024;

/// A secret that a step gets. Its value is no part of a recipe.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Secret {
    /// Its name, by which the request for a build gives its value.
    pub id: String,
    /// Absolute path at which the command finds it, if that is not `/run/secrets/ID`.
    pub target: Option<String>,
    /// Whether the step is done also if the request has no such secret: there is no file then.
    pub optional: bool,
}

/// Error of a text that is not a secret of a step.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SecretError {
    pub(crate) code: Code,
    message: String,
}

impl Secret {
    /// Path at which the command finds it.
    pub fn path(&self) -> String {
        self.target.clone().unwrap_or_else(|| format!("{DIR}{}", self.id))
    }

    /// Whether there is nothing to say of it but its id.
    pub(crate) const fn is_plain(&self) -> bool {
        self.target.is_none() && !self.optional
    }

    fn new(id: &str) -> Result<Self, SecretError> {
        if is_secret_id(id) {
            return Ok(Self { id: id.to_owned(), target: None, optional: false });
        }
        let message = format!(
            "{} is not the name of a secret: it has 1 to {ID} letters, digits, '_', '.' or '-', and begins with none of the \
             last two; values of secrets do not belong here",
            shown(id)
        );
        Err(SecretError { code: Code::Name, message })
    }

    /// Sets an option. One that Dockerfiles have and recipes do not is refused with what to do instead.
    fn set(&mut self, key: &str, value: &str) -> Result<(), SecretError> {
        match (key, value) {
            ("target" | "dst" | "destination", _) if self.target.is_some() => {
                Err(flag(format!("the secret {} has two targets: remove one", shown(&self.id))))
            }
            ("target" | "dst" | "destination", path) => {
                self.target = Some(target(path)?);
                Ok(())
            }
            ("required", "true" | "1") => {
                self.optional = false;
                Ok(())
            }
            ("required", "false" | "0") => {
                self.optional = true;
                Ok(())
            }
            ("required", other) => Err(flag(format!("required is {}: write true or false", shown(other)))),
            ("env", _) => Err(unsupported(
                "a secret cannot be a variable, which all that the command starts would get and could leave behind: let the \
                 command read the file",
            )),
            ("mode" | "uid" | "gid", _) => Err(unsupported(
                "the file of a secret belongs to the user of the step, who alone can read it: leave mode, uid and gid out",
            )),
            // What stands there may be a value.
            _ => Err(flag(
                "a secret has target and required only: remove what else there is; values of secrets do not belong here",
            )),
        }
    }

    /// The same without a target that is where the file is anyway.
    fn plain(mut self) -> Self {
        let default = format!("{DIR}{}", self.id);
        self.target = self.target.filter(|target| *target != default);
        self
    }
}

/// Returns whether a text can be the id of a secret.
pub fn is_secret_id(text: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    (1..=ID).contains(&text.len()) && !text.starts_with(['.', '-']) && text.bytes().all(known)
}

/// Reads the value of `--secret=`: names of secrets, each with its options behind it.
pub(crate) fn list(text: &str) -> Result<Vec<Secret>, SecretError> {
    let mut found: Vec<Secret> = Vec::new();
    for part in text.split(',') {
        match (part.split_once('='), found.last_mut()) {
            (None, _) => found.push(Secret::new(part)?),
            (Some(("id", id)), _) => found.push(Secret::new(id)?),
            (Some((key, value)), Some(last)) => last.set(key, value)?,
            (Some(_), None) => {
                return Err(flag("the name of the secret stands first: write --secret=NAME,target=/path"));
            }
        }
    }
    Ok(found.into_iter().map(Secret::plain).collect())
}

/// Reads the value of a Dockerfile's `--mount=`; `None` if that is no secret. As there, it is optional unless `required` says
/// otherwise, and is named after its target if it has no id.
pub(crate) fn mount(text: &str) -> Result<Option<Secret>, SecretError> {
    let parts: Vec<_> = text.split(',').map(|part| part.split_once('=').unwrap_or((part, ""))).collect();
    if !parts.contains(&("type", "secret")) {
        return Ok(None);
    }
    let mut secret = Secret { id: String::new(), target: None, optional: true };
    for (key, value) in parts {
        match (key, value) {
            ("type", "secret") => {}
            ("id", id) => secret.id = Secret::new(id)?.id,
            ("required", "") => secret.optional = false,
            _ => secret.set(key, value)?,
        }
    }
    if secret.id.is_empty() {
        let last = secret.target.as_deref().and_then(|target| target.rsplit('/').next());
        let last = last.ok_or_else(|| flag("the secret has no name: write id=NAME"))?;
        secret.id = Secret::new(last)?.id;
    }
    Ok(Some(secret.plain()))
}

fn target(path: &str) -> Result<String, SecretError> {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"/_.-+@".contains(&byte);
    let is_name = |part: &str| !matches!(part, "" | "." | "..");
    let is_target = path.len() <= TARGET
        && path.strip_prefix('/').is_some_and(|path| path.split('/').all(is_name))
        && path.bytes().all(known);
    if is_target {
        return Ok(path.to_owned());
    }
    let message = format!(
        "{} cannot be the target of a secret: write an absolute path of letters, digits, '_', '.', '-', '+' or '@'",
        shown(path)
    );
    Err(SecretError { code: Code::Path, message })
}

fn flag(message: impl Into<String>) -> SecretError {
    SecretError { code: Code::Flag, message: message.into() }
}

fn unsupported(message: &str) -> SecretError {
    SecretError { code: Code::Unsupported, message: message.to_owned() }
}

impl FromStr for Secret {
    type Err = SecretError;

    fn from_str(text: &str) -> Result<Self, SecretError> {
        let mut found = list(text)?;
        let one = found.pop().filter(|_| found.is_empty());
        one.ok_or_else(|| flag("there are several secrets: write each for itself"))
    }
}

impl TryFrom<String> for Secret {
    type Error = SecretError;

    fn try_from(text: String) -> Result<Self, SecretError> {
        text.parse()
    }
}

impl From<Secret> for String {
    fn from(secret: Secret) -> Self {
        secret.to_string()
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id)?;
        self.target.iter().try_for_each(|target| write!(f, ",target={target}"))?;
        if self.optional { f.write_str(",required=false") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_printed_as_they_are_read() {
        for text in
            ["a", "npm_token.1", "a,target=/root/.npmrc", "a,required=false", "a,target=/b,required=false"]
        {
            assert_eq!(text.parse::<Secret>().unwrap().to_string(), text);
        }
        for (text, printed) in [
            ("id=a", "a"),
            ("a,dst=/b", "a,target=/b"),
            ("a,required=0,required=true", "a"),
            ("a,target=/run/secrets/a", "a"),
            ("a,target=/run/secrets/b", "a,target=/run/secrets/b"),
        ] {
            assert_eq!(text.parse::<Secret>().unwrap().to_string(), printed);
        }
        let secret: Secret = "a".parse().unwrap();
        assert_eq!(secret.path(), "/run/secrets/a");
        assert_eq!("a,target=/b".parse::<Secret>().unwrap().path(), "/b");
    }

    #[test]
    fn mounts_of_dockerfiles_are_secrets() {
        let of = |text: &str| mount(text).unwrap().map(|secret| secret.to_string());
        assert_eq!(of("type=secret,id=a").as_deref(), Some("a,required=false"));
        assert_eq!(of("type=secret,id=a,required").as_deref(), Some("a"));
        assert_eq!(of("id=a,type=secret,required=true,target=/b").as_deref(), Some("a,target=/b"));
        let named_after_its_target = of("type=secret,dst=/etc/npm.rc,required");
        assert_eq!(named_after_its_target.as_deref(), Some("npm.rc,target=/etc/npm.rc"));
        assert_eq!((of("type=cache,target=/x"), of("target=/x"), of("type=ssh")), (None, None, None));
    }

    #[test]
    fn what_is_wrong_is_refused_with_its_code() {
        for (text, code) in [
            ("", Code::Name),
            ("a,b", Code::Flag),
            ("target=/x", Code::Flag),
            ("a,target=b", Code::Path),
            ("a,target=/b/", Code::Path),
            ("a,target=/b/../c", Code::Path),
            ("a,target=/b c", Code::Path),
            ("a,target=/b,dst=/c", Code::Flag),
            ("a,required=maybe", Code::Flag),
            ("a,env=A", Code::Unsupported),
            ("a,mode=0444", Code::Unsupported),
            ("a=hunter2", Code::Flag),
        ] {
            let error = text.parse::<Secret>().unwrap_err();
            assert_eq!(error.code, code, "{text}");
            assert!(error.to_string().contains(": ") && !error.to_string().contains("hunter2"), "{error}");
        }
        for text in
            ["type=secret", "type=secret,id=a,b", "type=secret,id=a,env=B", "type=secret,target=/x/.y"]
        {
            assert!(mount(text).is_err(), "{text}");
        }
    }
}
