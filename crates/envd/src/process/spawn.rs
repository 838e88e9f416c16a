// SPDX-License-Identifier: Apache-2.0
//! Starts a process as a user in its own session, cgroup and directory, connected to pipes or a terminal.

use std::{
    collections::BTreeMap,
    ffi::{CString, OsStr},
    fs::File,
    io,
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    },
    path::{Path, PathBuf},
    process::ExitStatus,
    time::Duration,
};

use rustix::{pipe::PipeFlags, pty::OpenptFlags, termios::Winsize};
use tokio::sync::oneshot;

use super::{
    cgroup::Cgroup,
    fork::{self, Image, Step},
    interpreter,
    output::Channel,
};
use crate::{reaper::Reaper, users::User};

/// PATH of a process if it is not set.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Capacity of a pipe for output in bytes.
const OUTPUT_PIPE: usize = 256 << 10;
/// Time limit of an exec, because its file system may hang.
const EXECUTE: Duration = Duration::from_secs(30);
/// Maximum number of characters of a name in an error message.
const SHOWN: usize = 256;

/// Process to start.
pub(crate) struct Spec {
    pub(crate) cmd: String,
    pub(crate) args: Vec<String>,
    /// Sandbox variables, overridden by those of the request.
    pub(crate) envs: BTreeMap<String, String>,
    /// Working directory; empty means the user's home.
    pub(crate) cwd: String,
    pub(crate) user: User,
    pub(crate) stdin: bool,
    pub(crate) pty: Option<Winsize>,
}

/// Errors of starting a process.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpawnError {
    #[error("command not found: {0}")]
    CommandNotFound(String),
    #[error("cannot execute {cmd}: its interpreter {interpreter:?} does not exist{hint}")]
    Interpreter { cmd: String, interpreter: String, hint: &'static str },
    #[error("cwd '{0}' does not exist or is not a directory")]
    Cwd(String),
    #[error("cwd '{cwd}' cannot be entered: {cause}")]
    CwdDenied { cwd: String, cause: io::Error },
    #[error("{0} must not contain a NUL byte")]
    Nul(&'static str),
    #[error(
        "cannot execute {cmd}: {cause}; check that it is executable by the user and that its format fits"
    )]
    Denied { cmd: String, cause: io::Error },
    #[error("cannot start {cmd}: {cause}; the sandbox may be out of processes, memory or open files")]
    Resources { cmd: String, cause: io::Error },
    #[error("{cmd} did not begin within {} s: its file system does not answer", EXECUTE.as_secs())]
    Hung { cmd: String },
}

/// Forked process with envd's ends of its pipes or terminal.
pub(crate) struct Spawned {
    pub(crate) pid: i32,
    pub(crate) status: oneshot::Receiver<ExitStatus>,
    pub(crate) outputs: Vec<(Channel, OwnedFd)>,
    pub(crate) input: Option<OwnedFd>,
    begins: Begins,
}

/// Data for the error message if the exec fails.
struct Begins {
    report: OwnedFd,
    cmd: String,
    cwd: String,
    program: PathBuf,
}

/// Shortens a name for error messages; it may be long, because requests choose it.
fn shown(name: &str) -> String {
    match name.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_owned(),
    }
}

/// Forks the process. Its program may not run yet.
pub(crate) fn spawn(reaper: &Reaper, spec: Spec, group: Option<&Cgroup>) -> Result<Spawned, SpawnError> {
    let nul = |text: &str| text.contains('\0');
    if nul(&spec.cmd) || spec.args.iter().any(|a| nul(a)) {
        return Err(SpawnError::Nul("command and arguments"));
    }
    if spec.envs.iter().any(|(k, v)| k.is_empty() || k.contains('=') || nul(k) || nul(v)) {
        return Err(SpawnError::Nul("an environment variable must have a name without '=', and it"));
    }
    let cwd = directory(&spec)?;
    let envs = environment(&spec);
    let program = find(&spec.cmd, envs.get("PATH").map_or(DEFAULT_PATH, String::as_str), &cwd)?;
    let cmd = shown(&spec.cmd);
    let resources = |cause: io::Error| SpawnError::Resources { cmd: cmd.clone(), cause };
    let (standard, outputs, input) = connect(&spec).map_err(resources)?;
    let group = group.map(Cgroup::joining).transpose().map_err(resources)?.map(File::into);
    let terminal = spec.pty.is_some();
    let text = |text: &OsStr| CString::new(text.as_bytes()).map_err(|error| resources(error.into()));
    let cwd_shown = shown(if spec.cwd.is_empty() { &spec.user.home } else { &spec.cwd });
    let image = Image {
        program: text(program.as_os_str())?,
        arguments: [&spec.cmd]
            .into_iter()
            .chain(&spec.args)
            .map(|a| text(a.as_ref()))
            .collect::<Result<_, _>>()?,
        environment: envs.iter().map(|(k, v)| text(format!("{k}={v}").as_ref())).collect::<Result<_, _>>()?,
        directory: text(cwd.as_os_str())?,
        user: spec.user,
        standard,
        terminal,
        group,
    };
    let child = fork::fork(reaper, &image).map_err(resources)?;
    let begins = Begins { report: child.report, cmd, cwd: cwd_shown, program };
    Ok(Spawned { pid: child.pid, status: child.status, outputs, input, begins })
}

/// Process whose program runs, with envd's ends of its pipes or terminal.
pub(crate) struct Running {
    pub(crate) pid: i32,
    pub(crate) status: oneshot::Receiver<ExitStatus>,
    pub(crate) outputs: Vec<(Channel, OwnedFd)>,
    pub(crate) input: Option<OwnedFd>,
}

impl Spawned {
    /// Waits until the program runs.
    pub(crate) async fn running(self, reaper: &Reaper) -> Result<Running, SpawnError> {
        let Self { pid, status, outputs, input, begins } = self;
        let Begins { report, cmd, cwd, program } = begins;
        let Ok(executed) = tokio::time::timeout(EXECUTE, fork::executed(report)).await else {
            reaper.signal(pid, libc::SIGKILL);
            return Err(SpawnError::Hung { cmd });
        };
        match executed {
            Ok(Ok(())) => Ok(Running { pid, status, outputs, input }),
            Ok(Err((step, cause))) => {
                let why = move || refusal(step, cause, cmd, cwd, &program);
                Err(tokio::task::spawn_blocking(why).await.unwrap_or_else(|error| SpawnError::Resources {
                    cmd: String::new(),
                    cause: error.into(),
                }))
            }
            Err(cause) => {
                reaper.signal(pid, libc::SIGKILL);
                Err(SpawnError::Resources { cmd, cause })
            }
        }
    }
}

/// Converts the failure of a child into an error.
fn refusal(step: Step, cause: io::Error, cmd: String, cwd: String, program: &Path) -> SpawnError {
    match (step, cause.raw_os_error()) {
        (Step::Directory, Some(libc::ENOENT | libc::ENOTDIR)) => SpawnError::Cwd(cwd),
        (Step::Directory, _) => SpawnError::CwdDenied { cwd, cause },
        (Step::Execute, Some(libc::ENOENT | libc::ENOTDIR)) => match interpreter::missing(program) {
            Some(interpreter) => {
                let dos = interpreter.ends_with('\r');
                let hint = if dos {
                    ": the lines of the script end as on Windows (CRLF); they must end with LF"
                } else {
                    ""
                };
                SpawnError::Interpreter { cmd, interpreter: shown(&interpreter), hint }
            }
            None => SpawnError::CommandNotFound(cmd),
        },
        (
            Step::Execute,
            Some(
                libc::EACCES
                | libc::EPERM
                | libc::ENOEXEC
                | libc::EISDIR
                | libc::E2BIG
                | libc::ELOOP
                | libc::ETXTBSY
                | libc::EINVAL
                | libc::ELIBBAD,
            ),
        ) => SpawnError::Denied { cmd, cause },
        _ => SpawnError::Resources { cmd, cause },
    }
}

fn directory(spec: &Spec) -> Result<PathBuf, SpawnError> {
    let home = PathBuf::from(&spec.user.home);
    if spec.cwd.is_empty() {
        // If the user's home does not exist, use the root directory.
        return Ok(if home.is_dir() { home } else { PathBuf::from("/") });
    }
    let cwd = match spec.cwd.strip_prefix('~') {
        Some("") => home,
        Some(rest) if rest.starts_with('/') => home.join(&rest[1..]),
        _ => home.join(&spec.cwd),
    };
    if spec.cwd.contains('\0') || !cwd.is_dir() {
        return Err(SpawnError::Cwd(shown(&spec.cwd.replace('\0', "\\0"))));
    }
    Ok(cwd)
}

fn environment(spec: &Spec) -> BTreeMap<String, String> {
    let user = &spec.user;
    let defaults = [
        ("HOME", &*user.home),
        ("USER", &user.name),
        ("LOGNAME", &user.name),
        ("SHELL", &user.shell),
        ("PATH", DEFAULT_PATH),
    ];
    let mut envs: BTreeMap<_, _> = defaults.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    if spec.pty.is_some() {
        envs.insert("TERM".into(), "xterm-256color".into());
    }
    envs.extend(spec.envs.clone());
    envs
}

/// Finds the program like a shell.
fn find(cmd: &str, path: &str, cwd: &Path) -> Result<PathBuf, SpawnError> {
    let candidates: Vec<PathBuf> = if cmd.contains('/') {
        vec![cwd.join(cmd)]
    } else {
        path.split(':').map(|dir| cwd.join(dir).join(cmd)).collect()
    };
    let file = |path: &&PathBuf| path.metadata().is_ok_and(|m| m.is_file());
    let executable = |path: &&PathBuf| path.metadata().is_ok_and(|m| m.permissions().mode() & 0o111 != 0);
    if cmd.is_empty() {
        return Err(SpawnError::CommandNotFound(String::new()));
    }
    if cmd.contains('/') && candidates.iter().any(|path| path.is_dir()) {
        return Err(SpawnError::Denied { cmd: shown(cmd), cause: io::ErrorKind::IsADirectory.into() });
    }
    candidates
        .iter()
        .filter(file)
        .find(executable)
        .or_else(|| candidates.iter().find(file))
        .cloned()
        .ok_or_else(|| SpawnError::CommandNotFound(shown(cmd)))
}

type Ends = ([OwnedFd; 3], Vec<(Channel, OwnedFd)>, Option<OwnedFd>);

/// Creates the standard files of the child; returns them and envd's ends.
fn connect(spec: &Spec) -> io::Result<Ends> {
    if let Some(size) = spec.pty {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = rustix::pty::openpt(flags)?;
        rustix::pty::grantpt(&master)?;
        rustix::pty::unlockpt(&master)?;
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
        rustix::termios::tcsetwinsize(&master, size)?;
        // Not every kernel lets a user write to a terminal that the user does not own.
        let _ = rustix::fs::fchown(&slave, Some(rustix::fs::Uid::from_raw(spec.user.uid)), None);
        let standard = [slave.try_clone()?, slave.try_clone()?, slave];
        let input = master.try_clone()?;
        return Ok((standard, vec![(Channel::Pty, master)], Some(input)));
    }
    let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC);
    let (out, out_child) = pipe()?;
    let (err, err_child) = pipe()?;
    for output in [&out, &err] {
        // A smaller one does, but is read more often.
        let _ = rustix::pipe::fcntl_setpipe_size(output, OUTPUT_PIPE);
    }
    let (in_child, input) = if spec.stdin {
        let (child, ours) = pipe()?;
        (child, Some(ours))
    } else {
        (File::open("/dev/null")?.into(), None)
    };
    Ok(([in_child, out_child, err_child], vec![(Channel::Stdout, out), (Channel::Stderr, err)], input))
}
