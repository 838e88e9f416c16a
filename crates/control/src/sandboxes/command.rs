// SPDX-License-Identifier: Apache-2.0
//! Commands in sandboxes: checks of a request, and commands without streaming, whose output is returned after
//! their end.

use std::{collections::BTreeMap, time::Duration};

use wrenn_api::{ExecRequest, ExecStart, KilledProcess, SandboxId};
use wrenn_rpc::host::v1::{Command, ExecRequest as AgentExec, Victim};

use crate::{
    admission::Held,
    agents::{AgentClient, ResponseMemory, deadline, within},
    error::Fault,
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
/// Maximum length of a tag, in bytes.
const TAG_MAX: usize = 128;
/// Maximum number of environment variables of one sandbox.
const ENVS_MAX: usize = 1024;
/// Maximum length of a variable's name, in characters.
const ENV_NAME_MAX: usize = 255;
/// Maximum size of a variable in the kernel, in bytes: `NAME=VALUE` and a NUL.
const ENV_BYTES: usize = 128 << 10;
/// Maximum size of all names and values, in bytes.
const ENVS_BYTES: usize = 1 << 20;

/// A checked command with a timeout.
#[derive(Debug)]
pub struct TimedCommand {
    command: Command,
    seconds: u32,
}

impl TimedCommand {
    /// Checks a request as far as possible without the guest.
    pub fn new(request: ExecRequest) -> Result<Self, Fault> {
        let ExecRequest { cmd, args, envs, cwd, user, timeout_sec, background: _, tag, stdin } = request;
        if stdin {
            let message = "stdin: a command that is waited for has none; start it with \"background\": true, or use exec/stream";
            return Err(Fault::invalid(message));
        }
        let seconds = timeout(timeout_sec)?.unwrap_or(TIMEOUT_SECS);
        Ok(Self { command: check(cmd, args, envs, cwd, user, tag, false)?, seconds })
    }

    /// Returns whether the command may take so long that it should not count as a usual request.
    pub const fn is_long(&self) -> bool {
        self.seconds > LONG_SECS
    }
}

/// A checked command that runs in the background.
#[derive(Debug)]
pub struct BackgroundCommand {
    pub(super) command: Command,
    /// Time in seconds after which it is killed; 0 means never.
    pub(super) seconds: u32,
}

impl BackgroundCommand {
    /// Checks a request as far as possible without the guest. Without a tag, the command gets one.
    pub fn new(request: ExecRequest) -> Result<Self, Fault> {
        let ExecRequest { cmd, args, envs, cwd, user, timeout_sec, background: _, tag, stdin } = request;
        let seconds = timeout(timeout_sec)?.unwrap_or_default();
        let tag = tag.unwrap_or_else(|| format!("proc-{:08x}", rand::random::<u32>()));
        Ok(Self { command: check(cmd, args, envs, cwd, user, Some(tag), stdin)?, seconds })
    }
}

/// Result of a command, with its raw output.
#[derive(Debug)]
#[non_exhaustive]
pub struct Finished {
    /// Sandbox in which it ran.
    pub sandbox_id: SandboxId,
    /// The program.
    pub cmd: String,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// Exit status; 128 + N if signal N ended the command.
    pub exit_code: i32,
    /// Whether it was killed at its timeout.
    pub timed_out: bool,
    /// Whether output is missing.
    pub truncated: bool,
    /// Number of missing bytes.
    pub lost_bytes: u64,
    /// Whether the kernel killed it or a descendant for want of memory.
    pub out_of_memory: bool,
    /// Which one, if that is known.
    pub killed: Option<KilledProcess>,
    /// Duration in milliseconds.
    pub duration_ms: u64,
    /// Memory reserved for the output.
    pub(crate) held: Option<Held>,
}

/// Runs a command and returns its whole output.
pub(crate) async fn run(
    agent: &AgentClient,
    sandbox_id: SandboxId,
    command: TimedCommand,
    memory: &ResponseMemory,
) -> Result<Finished, Fault> {
    let TimedCommand { command, seconds } = command;
    let cmd = command.cmd.clone();
    let request = AgentExec {
        sandbox_id: sandbox_id.to_string(),
        command: command.into(),
        timeout_ms: seconds * 1000,
        ..Default::default()
    };
    let limit = Duration::from_secs(u64::from(seconds)) + deadline::EXEC_EXTRA;
    let ran = agent.exec_with_options(request, within(limit)).await?.into_owned();
    Ok(Finished {
        sandbox_id,
        cmd,
        held: memory.held(ran.stdout.len() + ran.stderr.len()),
        stdout: ran.stdout,
        stderr: ran.stderr,
        exit_code: ran.exit_code,
        timed_out: ran.timed_out,
        truncated: ran.truncated,
        lost_bytes: ran.lost_bytes,
        out_of_memory: ran.out_of_memory,
        killed: ran.victim.into_option().map(killed),
        duration_ms: ran.duration_ms,
    })
}

/// What the kernel of a guest killed, for clients.
pub(super) fn killed(victim: Victim) -> KilledProcess {
    KilledProcess { pid: victim.pid, command: victim.command }
}

/// Checks a command whose output is streamed; returns its timeout in milliseconds, 0 for none, too.
pub(super) fn streamed(start: ExecStart) -> Result<(Command, u32), Fault> {
    let ExecStart { cmd, args, envs, cwd, user, timeout_sec, stdin, tag } = start;
    Ok((check(cmd, args, envs, cwd, user, tag, stdin)?, timeout_sec.unwrap_or_default().saturating_mul(1000)))
}

/// Checks a timeout in seconds.
fn timeout(seconds: Option<u32>) -> Result<Option<u32>, Fault> {
    let outside = seconds.filter(|seconds| !(1..=TIMEOUT_MAX_SECS).contains(seconds));
    outside.map_or(Ok(seconds), |seconds| {
        Err(Fault::invalid(format!("timeout_sec is {seconds}: it must be 1 to {TIMEOUT_MAX_SECS}")))
    })
}

/// Checks a tag: digits alone would be a process id where a process is selected.
pub(super) fn check_tag(tag: &str) -> Result<(), Fault> {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let good = (1..=TAG_MAX).contains(&tag.len())
        && tag.bytes().all(known)
        && !tag.bytes().all(|byte| byte.is_ascii_digit());
    if good {
        return Ok(());
    }
    Err(Fault::invalid(format!(
        "a tag has 1 to {TAG_MAX} letters, digits, dots, underscores and hyphens, and not only digits"
    )))
}

/// Checks a command as far as possible without its guest.
pub(super) fn check(
    cmd: String,
    args: Vec<String>,
    envs: BTreeMap<String, String>,
    cwd: Option<String>,
    user: Option<String>,
    tag: Option<String>,
    stdin: bool,
) -> Result<Command, Fault> {
    if cmd.is_empty() {
        return Err(Fault::invalid("cmd is empty: name a program"));
    }
    if args.len() > ARGUMENTS_MAX {
        return Err(Fault::invalid(format!("args has {} entries: at most {ARGUMENTS_MAX}", args.len())));
    }
    let (cwd, user) = (cwd.unwrap_or_default(), user.unwrap_or_default());
    for (field, text, max) in [("cmd", &cmd, PATH_MAX), ("cwd", &cwd, PATH_MAX), ("user", &user, USER_MAX)] {
        if text.chars().count() > max || text.contains('\0') {
            return Err(Fault::invalid(format!("{field}: at most {max} characters, and no NUL")));
        }
    }
    if args.iter().any(|argument| argument.len() > ARGUMENT_MAX || argument.contains('\0')) {
        return Err(Fault::invalid(format!("args: each has at most {ARGUMENT_MAX} bytes and no NUL")));
    }
    check_envs(&envs)?;
    tag.as_deref().map_or(Ok(()), check_tag)?;
    let (envs, tag) = (envs.into_iter().collect(), tag.unwrap_or_default());
    Ok(Command { cmd, args, envs, cwd, user, tag, stdin, ..Default::default() })
}

/// Checks environment variables: number, sizes, and characters that the kernel does not accept.
pub(super) fn check_envs(envs: &BTreeMap<String, String>) -> Result<(), Fault> {
    if envs.len() > ENVS_MAX {
        return Err(Fault::invalid(format!("envs has {} variables: at most {ENVS_MAX}", envs.len())));
    }
    let size: usize = envs.iter().map(|(name, value)| name.len() + value.len()).sum();
    if size > ENVS_BYTES {
        return Err(Fault::invalid(format!(
            "envs has {size} bytes: at most {ENVS_BYTES}; pass a file instead"
        )));
    }
    let bad = envs.iter().find(|(name, value)| {
        name.is_empty()
            || name.chars().count() > ENV_NAME_MAX
            || name.contains(['=', '\0'])
            || value.contains('\0')
            || name.len() + value.len() + 2 > ENV_BYTES
    });
    let Some((name, _)) = bad else { return Ok(()) };
    let name: String = name.chars().take(64).collect();
    Err(Fault::invalid(format!(
        "envs: {name:?} cannot be a variable: a name has 1 to {ENV_NAME_MAX} characters and no '=', neither part has \
         NUL, and both together are less than {ENV_BYTES} bytes; pass larger values as a file"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_that_no_kernel_takes_are_refused() {
        let with =
            |cmd: &str, args: Vec<String>| check(cmd.into(), args, BTreeMap::new(), None, None, None, false);
        assert!(with("true", vec!["x".repeat(ARGUMENT_MAX)]).is_ok());
        assert!(with("", vec![]).is_err() && with("a\0b", vec![]).is_err());
        assert!(with("true", vec!["x".repeat(ARGUMENT_MAX + 1)]).is_err());
        assert!(with("true", vec![String::new(); ARGUMENTS_MAX + 1]).is_err());
    }

    #[test]
    fn a_tag_is_no_process_id() {
        for tag in ["proc-1", "a", "1.5", "A_b", &"x".repeat(TAG_MAX)] {
            assert!(check_tag(tag).is_ok(), "{tag}");
        }
        for tag in ["", "1", "007", "a b", "a/b", "ä", "a\0", &"x".repeat(TAG_MAX + 1)] {
            assert!(check_tag(tag).is_err(), "{tag:?}");
        }
    }

    #[test]
    fn variables_that_no_kernel_takes_are_refused() {
        let one = |name: &str, value: &str| BTreeMap::from([(name.to_owned(), value.to_owned())]);
        assert!(check_envs(&one("A", "b=c")).is_ok());
        for envs in [one("", "x"), one("A=B", "x"), one("A", "\0"), one("A", &"x".repeat(ENVS_BYTES))] {
            assert!(check_envs(&envs).is_err());
        }
        assert!(check_envs(&(0..=ENVS_MAX).map(|i| (format!("V{i}"), String::new())).collect()).is_err());
    }
}
