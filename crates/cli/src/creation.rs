// SPDX-License-Identifier: Apache-2.0
//! Creation of sandboxes without leaving unknown ones: after a lost response the request is repeated with the
//! same idempotency key, and an interrupted create runs to its end.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::time::sleep;
use wrenn_api::{CreateSandbox, ErrorCode, OnTimeout, Sandbox, SandboxId};
use wrenn_client::{Client, Error};

use crate::{output::note, registry::Registry, signals::Stop, variables::Variables};

/// Time limit for repeating a create after a lost response, and the wait in between.
const REPEATS: Duration = Duration::from_secs(20);
const REPEAT_WAIT: Duration = Duration::from_millis(500);
/// Number of attempts to remove a sandbox, and the wait in between.
const REMOVALS: u32 = 4;
const REMOVAL_WAIT: Duration = Duration::from_secs(1);

/// Options of a new sandbox.
#[derive(Debug, clap::Args)]
pub(crate) struct New {
    /// The template or snapshot to start from [default: minimal]
    #[arg(long, value_name = "NAME")]
    template: Option<String>,
    /// Image to start from, instead of a template: one of a registry, debian:bookworm, registry.example.com/team/app:1.2, or one
    /// that was uploaded, uploaded:app:1
    #[arg(long, value_name = "NAME", conflicts_with = "template")]
    image: Option<String>,
    #[command(flatten)]
    registry: Registry,
    /// Name of the sandbox, by which other commands take it: lower-case letters, digits and '-'
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Label to find the sandbox by; may be repeated
    #[arg(long = "label", short = 'l', value_name = "NAME=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    #[command(flatten)]
    variables: Variables,
    /// Virtual CPUs [default: 1]
    #[arg(long, value_name = "N")]
    vcpus: Option<u32>,
    /// Memory in MiB, or with a unit, such as 1g [default: 512]
    #[arg(long, visible_alias = "memory", value_name = "MIB", value_parser = mebibytes)]
    memory_mb: Option<u32>,
    /// Size of the root file system in MiB, or with a unit, such as 10g [default: 5120, or 1024 more than a larger image]
    #[arg(long, visible_alias = "disk", value_name = "MIB", value_parser = mebibytes)]
    disk_size_mb: Option<u32>,
    /// Pause the sandbox when it was not used for so long: seconds, or with a unit, such as 10m; 0 is never
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    idle_timeout: Option<u32>,
    /// What becomes of the sandbox then: pause or delete
    #[arg(long, value_name = "ACTION")]
    on_timeout: Option<OnTimeout>,
    /// Resume the paused sandbox when a command, a file request or a request to a port comes
    #[arg(long)]
    auto_resume: bool,
    /// Let everybody use its ports; otherwise only who has the token in their URLs
    #[arg(long)]
    public_ports: bool,
}

impl New {
    /// What is waited for while it is created.
    pub(crate) const fn work(&self) -> &'static str {
        if self.image.is_some() {
            "importing the image and creating the sandbox"
        } else {
            "creating the sandbox"
        }
    }

    /// Returns the request. Reads the files of variables, and the password of a registry.
    pub(crate) fn request(&self) -> Result<CreateSandbox> {
        Ok(CreateSandbox {
            template: self.template.clone(),
            image: self.image.clone(),
            registry: self.registry.account()?,
            vcpus: self.vcpus,
            memory_mb: self.memory_mb,
            disk_size_mb: self.disk_size_mb,
            envs: self.variables.all()?,
            name: self.name.clone(),
            labels: self.labels.iter().cloned().collect(),
            timeout_sec: self.idle_timeout,
            on_timeout: self.on_timeout,
            auto_resume: self.auto_resume.then_some(true),
            public_ports: self.public_ports.then_some(true),
        })
    }
}

/// Parses a label: `NAME=VALUE`, or `NAME` for one with an empty value.
pub(crate) fn label(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    if name.is_empty() {
        return Err("write NAME=VALUE".to_owned());
    }
    Ok((name.to_owned(), value.to_owned()))
}

/// Parses a size: a number of MiB, or a number with the unit `m` or `g`.
pub(crate) fn mebibytes(text: &str) -> Result<u32, String> {
    let lower = text.to_ascii_lowercase();
    let plain = lower.trim_end_matches("ib").trim_end_matches('b');
    let (number, factor) = match plain.strip_suffix('g') {
        Some(number) => (number, 1024),
        None => (plain.strip_suffix('m').unwrap_or(plain), 1),
    };
    let size = number.parse::<u32>().ok().and_then(|number| number.checked_mul(factor));
    size.ok_or_else(|| "write a number of MiB, such as 1024, or a number with a unit, such as 1g".to_owned())
}

/// Parses a time: a number of seconds, or a number with the unit `s`, `m`, `h` or `d`. 0 is never.
pub(crate) fn seconds(text: &str) -> Result<u32, String> {
    let units = [('s', 1), ('m', 60), ('h', 3600), ('d', 86_400)];
    let unit = units.into_iter().find(|(unit, _)| text.ends_with(*unit));
    let (number, factor) = unit.map_or((text, 1), |(unit, factor)| (text.trim_end_matches(unit), factor));
    let time = number.parse::<u32>().ok().and_then(|number| number.checked_mul(factor));
    time.ok_or_else(|| {
        "write a number of seconds, such as 600, or a number with a unit, such as 10m".to_owned()
    })
}

/// The idempotency key of a create.
#[derive(Debug)]
pub(crate) enum Key {
    /// Generated for this create: the sandbox that it leaves may be removed.
    Own(String),
    /// From the user: an earlier create with it may have made the sandbox, which may be in use.
    Given(String),
}

impl Key {
    /// A new key that makes repeated requests one.
    pub(crate) fn own() -> Self {
        Self::Own(uuid::Uuid::now_v7().to_string())
    }

    fn text(&self) -> &str {
        match self {
            Self::Own(text) | Self::Given(text) => text,
        }
    }
}

/// Creates the sandbox, and returns it with a signal that arrived meanwhile. The create runs to its end all
/// the same, because only then it is known what to remove. A second signal aborts it.
pub(crate) async fn create(
    client: &Client,
    request: &CreateSandbox,
    key: &Key,
    stop: &mut Stop,
) -> Result<(Sandbox, Option<&'static str>)> {
    let mut creation = std::pin::pin!(settled(client, request, key));
    let name = tokio::select! {
        created = &mut creation => return Ok((created?, None)),
        name = stop.received() => name,
    };
    note(
        "wrenn: interrupted. Waiting for the sandbox to start, to see which one it is. Press Ctrl-C again to exit now (the \
         sandbox may keep running).",
    );
    tokio::select! {
        created = creation => Ok((created?, Some(name))),
        _ = stop.received() => {
            anyhow::bail!("the sandbox may still be created; check `wrenn sandbox ls`")
        }
    }
}

/// Waits for the response, and removes the sandbox that a failed create left.
async fn settled(client: &Client, request: &CreateSandbox, key: &Key) -> Result<Sandbox> {
    let error = match until_answered(client, request, key.text()).await {
        Ok(sandbox) => return Ok(sandbox),
        Err(error) => error,
    };
    let left = match error.downcast_ref::<Error>() {
        Some(Error::Api { sandbox_id: Some(id), .. }) => *id,
        _ => return Err(error),
    };
    match key {
        Key::Own(_) => {
            if let Err(kept) = remove(client, left).await {
                note(&format!("wrenn: {kept:#}"));
            }
        }
        Key::Given(_) => {
            note(&format!("wrenn: the failed sandbox is {left}; remove it by `wrenn sandbox rm {left}`"));
        }
    }
    Err(error)
}

/// Repeats the request until there is a response: the same idempotency key returns the result of a request
/// whose response was lost.
async fn until_answered(client: &Client, request: &CreateSandbox, key: &str) -> Result<Sandbox> {
    let first = match client.create(request, Some(key)).await {
        Err(error) if is_open(&error) => error,
        answer => return Ok(answer?),
    };
    note(&format!("wrenn: {first}; asking again what became of the sandbox"));
    let begin = Instant::now();
    loop {
        sleep(REPEAT_WAIT).await;
        match client.create(request, Some(key)).await {
            // While the server restarts, it refuses connections.
            Err(error) if is_open(&error) || matches!(error, Error::Connect { .. }) => {
                if begin.elapsed() > REPEATS {
                    return Err(error).context("the sandbox may still be created; check `wrenn sandbox ls`");
                }
            }
            answer => return Ok(answer?),
        }
    }
}

/// Returns whether the result of the request is unknown.
fn is_open(error: &Error) -> bool {
    let open = [ErrorCode::ServiceUnavailable, ErrorCode::IdempotencyInProgress];
    error.may_have_happened() || open.iter().any(|code| error.code() == Some(code.as_str()))
}

/// Removes a sandbox, with several attempts.
pub(crate) async fn remove(client: &Client, id: SandboxId) -> Result<()> {
    let mut attempt = 1;
    loop {
        match client.delete(id).await {
            Ok(()) => return Ok(()),
            Err(error) if error.code() == Some(ErrorCode::NotFound.as_str()) => return Ok(()),
            Err(error) if attempt == REMOVALS => {
                return Err(error).with_context(|| {
                    format!("sandbox {id} was not removed: remove it by `wrenn sandbox rm {id}`")
                });
            }
            Err(_) => sleep(REMOVAL_WAIT).await,
        }
        attempt += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_need_a_name() {
        assert_eq!(label("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert_eq!(label("a"), Ok(("a".to_owned(), String::new())));
        assert!(label("=b").is_err());
    }

    #[test]
    fn times_have_units_or_are_seconds() {
        for (text, time) in [("0", 0), ("90", 90), ("90s", 90), ("10m", 600), ("2h", 7200), ("1d", 86_400)] {
            assert_eq!(seconds(text), Ok(time), "{text}");
        }
        for text in ["", "m", "-1", "1.5h", "99999999h", "1w", "mm"] {
            assert!(seconds(text).is_err_and(|error| error.contains("10m")), "{text}");
        }
    }

    #[test]
    fn sizes_have_units_or_are_mebibytes() {
        for (text, size) in [("512", 512), ("512m", 512), ("1g", 1024), ("2GiB", 2048), ("3GB", 3072)] {
            assert_eq!(mebibytes(text), Ok(size), "{text}");
        }
        for text in ["", "g", "1k", "-1", "1.5g", "9999999g", "one"] {
            assert!(mebibytes(text).is_err_and(|error| error.contains("1024")), "{text}");
        }
    }
}
