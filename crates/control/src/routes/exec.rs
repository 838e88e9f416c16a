// SPDX-License-Identifier: Apache-2.0
//! Commands without streaming: the response is sent after their end.

use std::{collections::BTreeMap, time::Duration};

use axum::{Extension, body::Body as HttpBody, extract::State, response::Response};
use http::header;
use wrenn_api::{ErrorCode, ExecRequest, ExecResponse, SandboxId};
use wrenn_rpc::host::v1::{Command, ExecRequest as AgentExec};

use super::{
    output::{Answer, Ran},
    refusals::OfExec,
};
use crate::{
    admission::InWork,
    agents::{AgentClient, Room, deadline, within},
    error::ApiError,
    extract::{Body, Target},
    sandboxes::{self as service, create::check_envs},
    serving::Holding,
    state::App,
};

const TIMEOUT_SECS: u32 = 30;
const TIMEOUT_MAX_SECS: u32 = 86_400;
/// Timeout in seconds above which a command counts as long, not as another request.
const LONG_SECS: u32 = 60;
/// Maximum length of an argument in Linux, in bytes.
const ARGUMENT_MAX: usize = (128 << 10) - 1;
const ARGUMENTS_MAX: usize = 4096;
/// Maximum length of the program and the directory, in characters.
const PATH_MAX: usize = 4096;
const USER_MAX: usize = 256;

/// Checks a command as far as possible without its guest.
pub(super) fn check(
    cmd: String,
    args: Vec<String>,
    envs: BTreeMap<String, String>,
    cwd: Option<String>,
    user: Option<String>,
) -> Result<Command, ApiError> {
    if cmd.is_empty() {
        return Err(ApiError::invalid("cmd is empty: name a program"));
    }
    if args.len() > ARGUMENTS_MAX {
        return Err(ApiError::invalid(format!("args has {} entries: at most {ARGUMENTS_MAX}", args.len())));
    }
    let (cwd, user) = (cwd.unwrap_or_default(), user.unwrap_or_default());
    for (field, text, max) in [("cmd", &cmd, PATH_MAX), ("cwd", &cwd, PATH_MAX), ("user", &user, USER_MAX)] {
        if text.chars().count() > max || text.contains('\0') {
            return Err(ApiError::invalid(format!("{field}: at most {max} characters, and no NUL")));
        }
    }
    if args.iter().any(|argument| argument.len() > ARGUMENT_MAX || argument.contains('\0')) {
        return Err(ApiError::invalid(format!("args: each has at most {ARGUMENT_MAX} bytes and no NUL")));
    }
    check_envs(&envs)?;
    Ok(Command { cmd, args, envs: envs.into_iter().collect(), cwd, user, ..Default::default() })
}

/// Run a command and wait until it ends.
///
/// The program is started directly, without a shell; for a shell, run `sh -c`. A command that runs longer than `timeout_sec`
/// is killed with its descendants; `timed_out` is then true, and the output is what it wrote until then.
#[utoipa::path(
    post, path = "/v1/sandboxes/{id}/exec", operation_id = "execCommand", tag = "commands", security(("api_key" = [])),
    params(
        ("id" = String, Path, description = "Id of the sandbox.", pattern = "^sb[0-9a-e][0-9a-z]{24}$", example = "sb03halx8fdhw2fu3txwbd0kdw0"),
        ("X-Request-ID" = Option<String>, Header, description = "Id of this request, 1 to 128 printable ASCII characters. It is in the response and in the log."),
    ),
    request_body = ExecRequest,
    responses((status = 200, description = "The command ended, with whatever exit status.", body = ExecResponse), OfExec)
)]
pub(super) async fn exec(
    State(app): State<App>,
    Extension(in_work): Extension<InWork>,
    target: Target,
    body: Body<ExecRequest>,
) -> Result<Response, ApiError> {
    let ExecRequest { cmd, args, envs, cwd, user, timeout_sec } = body.value;
    let seconds = timeout_sec.unwrap_or(TIMEOUT_SECS);
    if !(1..=TIMEOUT_MAX_SECS).contains(&seconds) {
        return Err(ApiError::invalid(format!(
            "timeout_sec is {seconds}: it must be 1 to {TIMEOUT_MAX_SECS}"
        )));
    }
    let command = check(cmd, args, envs, cwd, user)?;
    if seconds > LONG_SECS {
        in_work.exchange(app.admission.commands.take(Some(target.team))?);
    }
    let room = Room::new(app.admission.memory.clone(), target.team);
    let agent = service::running_with_room(&app, target.team, target.id, room.clone()).await?;
    run(&agent, target.id, command, seconds, &room).await
}

/// Runs a command and returns its whole output, whose memory is released after it was sent.
pub(super) async fn run(
    agent: &AgentClient,
    sandbox_id: SandboxId,
    command: Command,
    seconds: u32,
    room: &Room,
) -> Result<Response, ApiError> {
    let cmd = command.cmd.clone();
    let request = AgentExec {
        sandbox_id: sandbox_id.to_string(),
        command: command.into(),
        timeout_ms: seconds * 1000,
        ..Default::default()
    };
    let limit = Duration::from_secs(u64::from(seconds)) + deadline::EXEC_EXTRA;
    let ran = agent.exec_with_options(request, within(limit)).await?.into_owned();
    let held = room.held(ran.stdout.len() + ran.stderr.len());
    let answer = Answer::new(Ran {
        sandbox_id,
        cmd,
        stdout: ran.stdout,
        stderr: ran.stderr,
        exit_code: ran.exit_code,
        timed_out: ran.timed_out,
        truncated: ran.truncated,
        lost_bytes: ran.lost_bytes,
        duration_ms: ran.duration_ms,
    });
    let failed = |error: &dyn std::fmt::Display| {
        tracing::error!(%error, "an answer cannot be made");
        ApiError::new(ErrorCode::InternalError, "the control plane could not do this; its log says why")
    };
    let answer = answer.map_err(|error| failed(&error))?;
    Response::builder()
        .header(header::CONTENT_TYPE, "application/json")
        .body(Holding::body(HttpBody::new(answer), held))
        .map_err(|error| failed(&error))
}

/// A command without arguments.
#[cfg(test)]
pub(super) fn program(cmd: &str) -> Command {
    Command { cmd: cmd.to_owned(), ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_that_no_kernel_takes_are_refused() {
        let with = |cmd: &str, args: Vec<String>| check(cmd.into(), args, BTreeMap::new(), None, None);
        assert!(with("true", vec!["x".repeat(ARGUMENT_MAX)]).is_ok());
        assert!(with("", vec![]).is_err() && with("a\0b", vec![]).is_err());
        assert!(with("true", vec!["x".repeat(ARGUMENT_MAX + 1)]).is_err());
        assert!(with("true", vec![String::new(); ARGUMENTS_MAX + 1]).is_err());
    }
}
