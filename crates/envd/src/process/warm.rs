// SPDX-License-Identifier: Apache-2.0
//! `POST /snapshot/warm`: runs a first command in a guest whose memory others go on from. What it reads from the disk and
//! sets up in the kernel, none of them has to.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse as _, Response},
};

use super::{output::Item, registry::Registry, spawn::Spec, supervision::Limits, table::Description};
use crate::{respond::error, users};

/// The command: the shell and the C library are what most others begin with.
const COMMAND: [&str; 3] = ["sh", "-c", "exec true"];
/// Time after which it is killed.
const LIMIT: Duration = Duration::from_secs(10);

/// Runs the command as the user of the request and waits for its end.
pub(crate) async fn post(State(registry): State<Arc<Registry>>, headers: HeaderMap) -> Response {
    match run(&registry, &headers).await {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(cause) => error(StatusCode::INTERNAL_SERVER_ERROR, format!("no command can be run: {cause}")),
    }
}

async fn run(registry: &Arc<Registry>, headers: &HeaderMap) -> Result<(), String> {
    let user = users::of_call(headers, None).await.map_err(|cause| cause.to_string())?;
    let [cmd, args @ ..] = COMMAND.map(str::to_owned);
    let (envs, cwd) = (BTreeMap::new(), String::new());
    let description = Description { cmd: cmd.clone(), args: args.to_vec(), envs: Vec::new(), cwd: None };
    let spec = Spec { cmd, args: args.to_vec(), envs, cwd, user, stdin: false, pty: None };
    let limits = Limits { deadline: Some(Instant::now() + LIMIT), idle: None };
    let started = registry.start(spec, description, None, limits).await;
    let (_, mut reader) = started.map_err(|cause| cause.to_string())?;
    while !matches!(reader.next().await, Item::End(..)) {}
    Ok(())
}
