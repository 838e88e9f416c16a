//! Starts one process as a user, in its own session, cgroup and directory, connected to pipes or a terminal.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::{fs::PermissionsExt as _, process::CommandExt as _},
    },
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
};

use rustix::{fs::OFlags, pipe::PipeFlags, pty::OpenptFlags, termios::Winsize};
use tokio::sync::oneshot;

use super::{cgroup::Cgroup, output::Channel};
use crate::{reaper::Reaper, users::User};

/// PATH of a process when nobody set one.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What to start.
pub(crate) struct Spec {
    pub(crate) cmd: String,
    pub(crate) args: Vec<String>,
    /// Sandbox variables overlaid with those of the request.
    pub(crate) envs: BTreeMap<String, String>,
    /// Empty: the user's home.
    pub(crate) cwd: String,
    pub(crate) user: User,
    pub(crate) stdin: bool,
    pub(crate) pty: Option<Winsize>,
}

/// Why a process was not started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpawnError {
    #[error("command not found: {0}")]
    CommandNotFound(String),
    #[error("cwd '{0}' does not exist or is not a directory")]
    Cwd(String),
    #[error("{0} must not contain a NUL byte")]
    Nul(&'static str),
    #[error(
        "cannot execute {cmd}: {cause}; check that it is executable by the user and that its format fits"
    )]
    Denied { cmd: String, cause: io::Error },
    #[error("cannot start {cmd}: {cause}; the sandbox may be out of processes, memory or open files")]
    Resources { cmd: String, cause: io::Error },
}

/// A started process with our ends of its channels.
pub(crate) struct Spawned {
    pub(crate) pid: i32,
    pub(crate) status: oneshot::Receiver<ExitStatus>,
    pub(crate) outputs: Vec<(Channel, OwnedFd)>,
    pub(crate) input: Option<OwnedFd>,
}

/// Starts the process. Blocks until its program runs.
pub(crate) fn spawn(reaper: &Reaper, spec: &Spec, group: Option<&Cgroup>) -> Result<Spawned, SpawnError> {
    let nul = |text: &str| text.contains('\0');
    if nul(&spec.cmd) || spec.args.iter().any(|a| nul(a)) {
        return Err(SpawnError::Nul("command and arguments"));
    }
    if spec.envs.iter().any(|(k, v)| k.is_empty() || k.contains('=') || nul(k) || nul(v)) {
        return Err(SpawnError::Nul("an environment variable must have a name without '=', and it"));
    }
    let cwd = directory(spec)?;
    let envs = environment(spec);
    let program = find(&spec.cmd, envs.get("PATH").map_or(DEFAULT_PATH, String::as_str), &cwd)?;
    let resources = |cause: io::Error| SpawnError::Resources { cmd: spec.cmd.clone(), cause };

    let mut command = Command::new(&program);
    command.arg0(&spec.cmd).args(&spec.args).env_clear().envs(&envs);
    let (outputs, input) = connect(&mut command, spec).map_err(resources)?;
    prepare_child(&mut command, spec, &cwd, group).map_err(resources)?;
    let result = reaper.spawn(&mut command);
    match result {
        Ok((pid, status)) => Ok(Spawned { pid, status, outputs, input }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Err(SpawnError::CommandNotFound(spec.cmd.clone())),
        Err(cause) => Err(match cause.raw_os_error() {
            Some(libc::EACCES | libc::EPERM | libc::ENOEXEC | libc::EISDIR | libc::E2BIG) => {
                SpawnError::Denied { cmd: spec.cmd.clone(), cause }
            }
            _ => resources(cause),
        }),
    }
}

fn directory(spec: &Spec) -> Result<PathBuf, SpawnError> {
    let home = PathBuf::from(&spec.user.home);
    if spec.cwd.is_empty() {
        // A user without a home still gets a shell.
        return Ok(if home.is_dir() { home } else { PathBuf::from("/") });
    }
    let cwd = match spec.cwd.strip_prefix('~') {
        Some("") => home,
        Some(rest) if rest.starts_with('/') => home.join(&rest[1..]),
        _ => home.join(&spec.cwd),
    };
    if spec.cwd.contains('\0') || !cwd.is_dir() {
        return Err(SpawnError::Cwd(spec.cwd.replace('\0', "\\0")));
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

/// Finds the program as a shell would.
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
    candidates
        .iter()
        .filter(file)
        .find(executable)
        .or_else(|| candidates.iter().find(file))
        .cloned()
        .ok_or_else(|| SpawnError::CommandNotFound(cmd.into()))
}

type Ends = (Vec<(Channel, OwnedFd)>, Option<OwnedFd>);

/// Gives the child its standard files; returns our ends.
fn connect(command: &mut Command, spec: &Spec) -> io::Result<Ends> {
    if let Some(size) = spec.pty {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = rustix::pty::openpt(flags)?;
        rustix::pty::grantpt(&master)?;
        rustix::pty::unlockpt(&master)?;
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
        rustix::termios::tcsetwinsize(&master, size)?;
        // Not every kernel lets the user write to its own terminal unless it owns it.
        let _ = rustix::fs::fchown(&slave, Some(rustix::fs::Uid::from_raw(spec.user.uid)), None);
        command.stdin(slave.try_clone()?).stdout(slave.try_clone()?).stderr(slave);
        let input = master.try_clone()?;
        return Ok((vec![(Channel::Pty, master)], Some(input)));
    }
    let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC);
    let (out, out_child) = pipe()?;
    let (err, err_child) = pipe()?;
    command.stdout(out_child).stderr(err_child);
    let input = if spec.stdin {
        let (child, ours) = pipe()?;
        command.stdin(child);
        Some(ours)
    } else {
        command.stdin(Stdio::null());
        None
    };
    Ok((vec![(Channel::Stdout, out), (Channel::Stderr, err)], input))
}

/// Registers what the child does between fork and exec: only system calls, nothing that allocates.
fn prepare_child(command: &mut Command, spec: &Spec, cwd: &Path, group: Option<&Cgroup>) -> io::Result<()> {
    let procs: Option<File> = group.map(|g| g.procs.try_clone()).transpose()?;
    let dir = std::ffi::CString::new(cwd.as_os_str().as_encoded_bytes()).map_err(io::Error::other)?;
    let (uid, gid, groups, pty) =
        (spec.user.uid, spec.user.gid, spec.user.groups.clone(), spec.pty.is_some());
    // SAFETY: geteuid cannot fail.
    let switch = unsafe { libc::geteuid() } == 0;
    let check = |result: libc::c_int| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    let child = move || {
        // SAFETY: async-signal-safe calls on values made before the fork.
        unsafe {
            check(libc::setsid())?;
            if pty {
                check(libc::ioctl(0, libc::TIOCSCTTY, 0))?;
            }
            if let Some(procs) = &procs {
                // Without the cgroup the process group still works.
                libc::write(procs.as_raw_fd(), c"0".as_ptr().cast(), 1);
            }
            // envd is protected from the OOM killer; its children are not.
            let score = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            if score >= 0 {
                libc::write(score, c"0".as_ptr().cast(), 1);
                libc::close(score);
            }
            libc::umask(0o022);
            if switch {
                check(libc::setgroups(groups.len(), groups.as_ptr()))?;
                check(libc::setgid(gid))?;
                check(libc::setuid(uid))?;
            }
            check(libc::chdir(dir.as_ptr()))
        }
    };
    // SAFETY: the closure only makes async-signal-safe calls.
    unsafe { command.pre_exec(child) };
    Ok(())
}

/// Makes a descriptor of ours non-blocking.
pub(crate) fn nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    Ok(rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK)?)
}
