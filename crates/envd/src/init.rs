// SPDX-License-Identifier: Apache-2.0
//! `POST /init`: settings that the host sends before the first call and after every resume.

use std::{collections::BTreeMap, io, net::SocketAddr, path::Path, sync::Arc};

use axum::{
    Json,
    body::Bytes,
    extract::{ConnectInfo, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;

use crate::{
    accounts, connections::Peer, identity, log, out_of_memory::Kills, process::service, random, reset,
    respond::error, settings::Settings,
};

/// Request body; absent fields keep their values.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Init {
    env_vars: Option<BTreeMap<String, String>>,
    access_token: Option<String>,
    /// User of calls that name none. It is created, with sudo, if there is none of this name; the call fails if it cannot be.
    default_user: Option<String>,
    /// Directory of commands that name none, and where an empty path leads; empty for the user's home.
    default_workdir: Option<String>,
    /// Time in RFC 3339 to which the clock is set. The call fails if it cannot be.
    timestamp: Option<String>,
    hostname: Option<String>,
    sandbox_id: Option<String>,
    template_id: Option<String>,
    /// Base 64 of random bytes for the kernel's generator. The call fails if it does not take them.
    entropy: Option<String>,
    /// Whether others go on from the same memory, so that the guest becomes a machine of its own.
    new_machine: bool,
    /// Whether the guest goes on after a pause: its connections lead nowhere, and are reset.
    resumed: bool,
}

/// Applies the settings. The caller's token has been checked.
pub(crate) async fn post(
    State((settings, kills)): State<(Arc<Settings>, Arc<Kills>)>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let request = log::request_id(&headers);
    let init: Init = match if body.is_empty() { Ok(Init::default()) } else { serde_json::from_slice(&body) } {
        Ok(init) => init,
        Err(cause) => {
            return error(StatusCode::BAD_REQUEST, format!("the body is not valid JSON for /init: {cause}"));
        }
    };
    let now = match init.timestamp.as_deref().map(parse_rfc3339) {
        Some(None) => {
            return error(StatusCode::BAD_REQUEST, "timestamp must be RFC 3339, as 2026-01-31T12:00:00Z");
        }
        now => now.flatten(),
    };
    if let Some((seconds, nanos)) = now {
        let time = rustix::time::Timespec { tv_sec: seconds, tv_nsec: nanos };
        if let Err(cause) = rustix::time::clock_settime(rustix::time::ClockId::Realtime, time) {
            return error(StatusCode::INTERNAL_SERVER_ERROR, format!("the clock cannot be set: {cause}"));
        }
    }
    // On one thread: a guest that goes on executes each piece of code for the first time.
    let request = request.map(str::to_owned);
    let applied =
        tokio::task::spawn_blocking(move || apply(&init, peer.remote, request.as_deref()).map(|()| init));
    let init = match applied.await.unwrap_or_else(|cause| Err(cause.to_string())) {
        Ok(init) => init,
        Err(cause) => return error(StatusCode::INTERNAL_SERVER_ERROR, cause),
    };
    if init.new_machine {
        kills.forget();
    }
    settings.update(|values| {
        if let Some(envs) = init.env_vars {
            values.envs = envs;
        }
        if let Some(user) = init.default_user {
            values.default_user = Some(user).filter(|u| !u.is_empty());
        }
        if let Some(dir) = init.default_workdir {
            values.default_workdir = Some(dir).filter(|d| !d.is_empty());
        }
        if init.sandbox_id.is_some() {
            values.sandbox_id = init.sandbox_id;
        }
        if init.template_id.is_some() {
            values.template_id = init.template_id;
        }
    });
    if let Some(token) = init.access_token.filter(|t| !t.is_empty()) {
        settings.set_token(token);
    }
    StatusCode::NO_CONTENT.into_response()
}

/// Makes the guest a machine of its own: randomness, connections, name, user. What it needs to be one is an error; the rest is
/// only logged.
fn apply(init: &Init, host: SocketAddr, request: Option<&str>) -> Result<(), String> {
    if let Some(entropy) = &init.entropy {
        let renewed = renew(entropy, init.new_machine);
        renewed.map_err(|cause| format!("the sandbox has no randomness of its own: {cause}"))?;
    }
    if init.resumed {
        // Who has started the commands is not there any more, and they go on.
        service::leave_commands();
        if let Err(cause) = reset::all_but(host) {
            log::line(request, format_args!("cannot reset the connections from before the pause: {cause}"));
        }
    }
    if let Some(name) = init.hostname.as_deref().filter(|name| !name.is_empty())
        && let Err(cause) = identity::take_name(name)
    {
        log::line(request, format_args!("cannot set the host name: {cause}"));
    }
    // What goes on after a pause has had its user, and may have removed it.
    if !init.resumed
        && let Some(user) = init.default_user.as_deref().filter(|user| !user.is_empty())
    {
        let created = accounts::ensure(Path::new("/"), user);
        created.map_err(|cause| format!("the user {user:?} cannot be created: {cause}"))?;
    }
    Ok(())
}

/// Gives this guest randomness that no other one has, and a machine-id if it is a new machine.
fn renew(entropy: &str, new_machine: bool) -> io::Result<()> {
    let seed =
        STANDARD.decode(entropy).map_err(|cause| io::Error::new(io::ErrorKind::InvalidInput, cause))?;
    random::reseed(&seed)?;
    if new_machine { identity::renew_machine_id() } else { Ok(()) }
}

/// `POST /snapshot/prepare`: makes the disk as complete as it can be before a pause, for a boot from it if the
/// memory is lost.
pub(crate) async fn prepare() -> Response {
    match tokio::task::spawn_blocking(rustix::fs::sync).await {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(cause) => error(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot prepare a pause: {cause}")),
    }
}

/// `GET /envs`: returns the variables of the sandbox.
pub(crate) async fn envs(State(settings): State<Arc<Settings>>) -> Response {
    Json(settings.snapshot().envs).into_response()
}

/// Parses RFC 3339 into seconds and nanoseconds since 1970.
fn parse_rfc3339(text: &str) -> Option<(i64, i64)> {
    let bytes = text.as_bytes();
    if !text.is_ascii() || bytes.len() < 20 || bytes[4] != b'-' || bytes[7] != b'-' {
        return None;
    }
    let number = |range: std::ops::Range<usize>| text.get(range)?.parse::<i64>().ok();
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let mut rest = &text[19..];
    let mut nanos = 0;
    if let Some(fraction) = rest.strip_prefix('.') {
        let digits = fraction.bytes().take_while(u8::is_ascii_digit).count();
        let shown = &fraction[..digits.min(9)];
        nanos = shown.parse::<i64>().ok()? * 10_i64.pow(9 - shown.len() as u32);
        rest = &fraction[digits..];
    }
    let offset = match rest {
        "Z" | "z" => 0,
        _ => {
            let sign = if rest.starts_with('-') { -1 } else { 1 };
            let (h, m) = rest.get(1..)?.split_once(':')?;
            sign * (h.parse::<i64>().ok()? * 3600 + m.parse::<i64>().ok()? * 60)
        }
    };
    // Days since 1970 of a Gregorian date, with years starting in March.
    let shifted = if month <= 2 { year - 1 } else { year };
    let era = shifted.div_euclid(400);
    let year_of_era = shifted.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days =
        era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468;
    Some((days * 86_400 + hour * 3600 + minute * 60 + second - offset, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_timestamps() {
        assert_eq!(parse_rfc3339("1970-01-01T00:00:00Z"), Some((0, 0)));
        assert_eq!(parse_rfc3339("2024-02-29T12:30:15.25+01:30"), Some((1_709_204_415, 250_000_000)));
        assert_eq!(parse_rfc3339("2026-13-01T00:00:00Z"), None);
        assert_eq!(parse_rfc3339("yesterday"), None);
    }
}
