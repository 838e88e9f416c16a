// SPDX-License-Identifier: Apache-2.0
//! Sandbox for the ext4 tools, which read untrusted file systems.
//!
//! A tool sees one file and the read-only system directories, in new namespaces without a network, as a user
//! that owns nothing else, with limits on memory, processes, CPU time, run time and output. Concurrent tools
//! run as different users, so that none can signal or trace another.

use std::{
    ffi::{CString, OsStr},
    fs::{self, File},
    io::{self, Read},
    os::unix::{ffi::OsStrExt, fs::fchown, process::CommandExt, process::ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    ptr,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

/// First user id of tools. No account has one, and each user owns at most one file at a time.
const FIRST_USER: u32 = 2_147_000_000;
/// Number of user ids; far fewer tools run concurrently.
const USERS: u32 = 4096;
/// Maximum number of processes of one tool. The tools themselves start none.
const PROCESSES: u64 = 16;
/// Path at which the tool finds its file.
pub(crate) const FILE: &str = "/image";
/// Limit of the address space in bytes. Valid file systems of terabytes need less.
const MEMORY: u64 = 2 << 30;
/// Number of bytes kept from the end of a tool's output.
const SAID_MAX: usize = 2048;
/// Interval between checks whether a tool has exited.
const TICK: Duration = Duration::from_millis(5);
const OPEN_TREE_CLONE: libc::c_uint = 1;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;
/// Directories that dynamically linked programs need; missing ones are skipped.
const SYSTEM: [&str; 5] = ["/usr", "/lib", "/lib64", "/bin", "/sbin"];

/// Result of a tool.
#[derive(Debug)]
pub(crate) struct Ended {
    /// How the tool ended.
    pub(crate) end: End,
    /// Last part of the output, in one line.
    pub(crate) said: String,
}

/// Exit code, signal or time limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Code(i32),
    Signal(i32),
    TooLong,
}

/// Step of building the tool's root directory.
enum Step {
    Directory(CString),
    Empty(CString),
    Link {
        target: CString,
        path: CString,
    },
    /// Read-only bind mount of a directory.
    Bind {
        source: CString,
        path: CString,
    },
}

fn text(path: impl AsRef<OsStr>) -> io::Result<CString> {
    Ok(CString::new(path.as_ref().as_bytes())?)
}

/// Steps that build the root directory in `jail`.
fn steps(jail: &Path) -> io::Result<Vec<Step>> {
    let inside = |path: &str| text(jail.join(path.trim_start_matches('/')));
    let mut steps = Vec::new();
    for source in SYSTEM {
        match fs::symlink_metadata(source) {
            Ok(meta) if meta.is_symlink() => {
                steps.push(Step::Link { target: text(fs::read_link(source)?)?, path: inside(source)? });
            }
            Ok(_) => {
                steps.push(Step::Directory(inside(source)?));
                steps.push(Step::Bind { source: text(source)?, path: inside(source)? });
            }
            Err(_) => {}
        }
    }
    // The tools check whether their file is mounted, and fail if they cannot.
    for dir in ["/proc", "/etc"] {
        steps.push(Step::Directory(inside(dir)?));
    }
    for empty in ["/proc/mounts", "/etc/mtab", FILE] {
        steps.push(Step::Empty(inside(empty)?));
    }
    Ok(steps)
}

fn done(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Calls mount(2) in the child: makes only system calls and does not allocate.
fn mount(source: &CString, path: &CString, kind: Option<&CString>, flags: libc::c_ulong) -> io::Result<()> {
    let kind = kind.map_or(ptr::null(), |kind| kind.as_ptr());
    // SAFETY: all strings are zero-terminated and outlive the call.
    done(unsafe { libc::mount(source.as_ptr(), path.as_ptr(), kind, flags, ptr::null()) })
}

impl Step {
    fn take(&self) -> io::Result<()> {
        match self {
            // SAFETY: the string is zero-terminated and outlives the call; the same holds for the next arms.
            Self::Directory(path) => done(unsafe { libc::mkdir(path.as_ptr(), 0o755) }),
            Self::Link { target, path } => done(unsafe { libc::symlink(target.as_ptr(), path.as_ptr()) }),
            // mknod instead of open, because a descriptor open for writing would keep the jail writable.
            Self::Empty(path) => done(unsafe { libc::mknod(path.as_ptr(), libc::S_IFREG | 0o644, 0) }),
            Self::Bind { source, path } => {
                mount(source, path, None, libc::MS_BIND)?;
                let only = libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV;
                mount(source, path, None, libc::MS_BIND | libc::MS_REMOUNT | only)
            }
        }
    }
}

/// Opens the file at `path` as a detached mount, because the jail will cover the path.
fn detached(path: &CString) -> io::Result<libc::c_int> {
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC as libc::c_uint;
    // SAFETY: the string is zero-terminated and outlives the call.
    let mount = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    done(mount as libc::c_int)?;
    Ok(mount as libc::c_int)
}

/// Attaches a detached mount at `path`.
fn placed(mount: libc::c_int, path: &CString) -> io::Result<()> {
    let (here, nothing) = (libc::AT_FDCWD, c"".as_ptr());
    // SAFETY: both strings are zero-terminated and outlive the call.
    let result = unsafe {
        libc::syscall(libc::SYS_move_mount, mount, nothing, here, path.as_ptr(), MOVE_MOUNT_F_EMPTY_PATH)
    };
    done(result as libc::c_int)
}

/// Returns the user id of the next tool. Starts at the process id, because other agents run tools too.
fn next_user() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed).wrapping_add(std::process::id());
    FIRST_USER + number % USERS
}

/// Data of the child, allocated before the fork: after it, nothing may be allocated.
struct Prison {
    jail: CString,
    /// Path of the file outside, then inside the jail.
    file: CString,
    place: CString,
    root: CString,
    here: CString,
    tmpfs: CString,
    steps: Vec<Step>,
    user: u32,
    /// Length of the file, which is also the limit of written files.
    length: u64,
    seconds: u64,
}

impl Prison {
    fn enter(&self) -> io::Result<()> {
        let own = libc::CLONE_NEWNS | libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
        // SAFETY: changes only this process, which has one thread.
        done(unsafe { libc::unshare(own) })?;
        mount(&self.root, &self.root, None, libc::MS_REC | libc::MS_PRIVATE)?;
        let file = detached(&self.file)?;
        mount(&self.tmpfs, &self.jail, Some(&self.tmpfs), libc::MS_NOSUID | libc::MS_NODEV)?;
        for step in &self.steps {
            step.take()?;
        }
        placed(file, &self.place)?;
        mount(&self.tmpfs, &self.jail, None, libc::MS_REMOUNT | libc::MS_RDONLY | libc::MS_NOSUID)?;
        // SAFETY: all strings are zero-terminated. The old root is stacked below the new one and then
        // unmounted.
        unsafe {
            done(libc::chdir(self.jail.as_ptr()))?;
            let here = self.here.as_ptr();
            done(libc::syscall(libc::SYS_pivot_root, here, here) as libc::c_int)?;
            done(libc::umount2(here, libc::MNT_DETACH))?;
            done(libc::chdir(self.root.as_ptr()))?;
        }
        self.limit()?;
        // SAFETY: plain system calls. The user id is changed last, because that drops the right to change the
        // others.
        unsafe {
            done(libc::setgroups(0, ptr::null()))?;
            done(libc::setresgid(self.user, self.user, self.user))?;
            done(libc::setresuid(self.user, self.user, self.user))?;
            let (one, zero): (libc::c_ulong, libc::c_ulong) = (1, 0);
            done(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, one, zero, zero, zero))?;
            done(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong))
        }
    }

    fn limit(&self) -> io::Result<()> {
        let limits = [
            (libc::RLIMIT_AS, MEMORY),
            (libc::RLIMIT_NPROC, PROCESSES),
            (libc::RLIMIT_CPU, self.seconds),
            (libc::RLIMIT_FSIZE, self.length),
            (libc::RLIMIT_NOFILE, 64),
            (libc::RLIMIT_CORE, 0),
        ];
        for (which, value) in limits {
            let limit = libc::rlimit { rlim_cur: value, rlim_max: value };
            // SAFETY: the limit outlives the call.
            done(unsafe { libc::setrlimit(which, &raw const limit) })?;
        }
        Ok(())
    }
}

/// Finds a tool's program; the error says which package to install.
fn program(name: &str) -> io::Result<PathBuf> {
    let places = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
    places.iter().map(|place| Path::new(place).join(name)).find(|path| path.exists()).ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, format!("{name} is not installed: install e2fsprogs"))
    })
}

/// Reads to the end and returns the last part as one line of printable characters.
fn last_words(mut from: impl Read) -> String {
    let (mut kept, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        kept.extend_from_slice(&buffer[..read]);
        kept.drain(..kept.len().saturating_sub(SAID_MAX));
    }
    let text = String::from_utf8_lossy(&kept);
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn wait(child: &mut Child, deadline: Instant) -> io::Result<End> {
    loop {
        if let Some(status) = child.try_wait()? {
            let signal = || End::Signal(status.signal().unwrap_or_default());
            return Ok(status.code().map_or_else(signal, End::Code));
        }
        if Instant::now() >= deadline {
            // Kill the whole process group, because a child of the tool could keep the pipe open.
            // SAFETY: the process group is the child's own, and the child has not been reaped.
            done(unsafe { libc::kill(-(child.id() as libc::pid_t), libc::SIGKILL) })?;
            child.wait()?;
            return Ok(End::TooLong);
        }
        thread::sleep(TICK);
    }
}

/// Runs `name ARGUMENTS /image` until `deadline`; `/image` is the file at `path`. Needs root.
pub(crate) fn run(name: &str, arguments: &[&str], path: &Path, deadline: Instant) -> io::Result<Ended> {
    // On a new thread, because `unshare` below changes the PID namespace of all its children, and because the
    // tool is killed when this thread exits.
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("ext4-tool".into());
        let tool = thread.spawn_scoped(scope, || run_here(name, arguments, path, deadline))?;
        tool.join().unwrap_or_else(|_| Err(io::Error::other("the thread of a tool died")))
    })
}

fn run_here(name: &str, arguments: &[&str], path: &Path, deadline: Instant) -> io::Result<Ended> {
    let file = File::options().read(true).write(true).open(path)?;
    let user = next_user();
    fchown(&file, Some(user), Some(user))?;
    let jail = path.parent().unwrap_or(Path::new("/"));
    let prison = Prison {
        jail: text(jail)?,
        file: text(path)?,
        place: text(jail.join(FILE.trim_start_matches('/')))?,
        root: text("/")?,
        here: text(".")?,
        tmpfs: text("tmpfs")?,
        steps: steps(jail)?,
        user,
        length: file.metadata()?.len(),
        seconds: deadline.saturating_duration_since(Instant::now()).as_secs() + 1,
    };
    let (output, input) = io::pipe()?;
    let mut command = Command::new(program(name)?);
    command.args(arguments).arg(FILE).env_clear().current_dir("/").process_group(0);
    command.stdin(Stdio::null()).stdout(input.try_clone()?).stderr(input);
    // SAFETY: the closure only makes system calls on memory allocated before the fork.
    unsafe { command.pre_exec(move || prison.enter()) };
    let listener = thread::Builder::new().name("ext4-said".into()).spawn(move || last_words(output))?;
    // The tool is the first process of a PID namespace: it cannot signal processes outside, and the kernel
    // kills all its children when it exits, before the exit is reported.
    // SAFETY: affects only the children of this thread, which starts no others.
    done(unsafe { libc::unshare(libc::CLONE_NEWPID) })?;
    let mut child = command.spawn()?;
    // Close the write end of the pipe, so that the listener sees its end when the tool exits.
    drop(command);
    let end = wait(&mut child, deadline)?;
    let said = listener.join().unwrap_or_default();
    fchown(&file, Some(0), Some(0))?;
    Ok(Ended { end, said })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn a_tool_sees_its_file_and_no_other_and_ends_in_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "content\n").unwrap();
        fs::write(dir.path().join("secret"), "other").unwrap();
        let script = "id -u; cat /image; echo; echo *; echo /proc/* /etc/*; ip -o link 2>&1 | wc -l;\
                      echo x > /proc/mounts; echo changed > /image; ulimit -v; exit 7; :";
        let ended = run("sh", &["-c", script], &path, soon()).unwrap();
        assert_eq!(ended.end, End::Code(7), "{}", ended.said);
        let words: Vec<&str> = ended.said.split(' ').collect();
        let user: u32 = words[0].parse().unwrap();
        assert!((FIRST_USER..FIRST_USER + USERS).contains(&user) && words[1] == "content", "{}", ended.said);
        assert!(!ended.said.contains("secret"), "{}", ended.said);
        assert!(
            ended.said.contains("/proc/mounts /etc/mtab 1 "),
            "other processes or devices: {}",
            ended.said
        );
        assert!(ended.said.contains("Read-only"), "{}", ended.said);
        assert!(ended.said.ends_with("2097152"), "{}", ended.said);
        assert_eq!(fs::read(&path).unwrap(), b"changed\n");
        assert_eq!(fs::read(dir.path().join("secret")).unwrap(), b"other");
        // Another tool has another user id.
        let ended = run("sh", &["-c", "id -u; :"], &path, soon()).unwrap();
        assert_ne!(ended.said.parse(), Ok(user));
        // Writing more than the old length fails. The tool is the first process of its namespace, so SIGXFSZ
        // does not kill it.
        let ended =
            run("sh", &["-c", "echo far more than there was before > /image"], &path, soon()).unwrap();
        assert!(ended.end != End::Code(0), "{ended:?}");
        let begin = Instant::now();
        let ended = run("sh", &["-c", "sleep 600; :"], &path, begin + Duration::from_millis(50)).unwrap();
        assert_eq!(ended.end, End::TooLong);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "mounts or files were left");
    }

    /// Counts the processes of a user.
    fn processes_of(user: u32) -> usize {
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let owner = |entry: fs::DirEntry| Some(std::os::unix::fs::MetadataExt::uid(&entry.metadata().ok()?));
        entries.filter_map(owner).filter(|owner| *owner == user).count()
    }

    #[test]
    fn what_a_tool_starts_ends_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "content\n").unwrap();
        // One child with the pipe open, one without.
        for child in ["setsid sleep 600", "setsid sleep 600 > /proc/mounts 2>&1"] {
            let begin = Instant::now();
            let ended = run("sh", &["-c", &format!("id -u; {child} & exit 0; :")], &path, soon()).unwrap();
            assert_eq!(ended.end, End::Code(0), "{}", ended.said);
            assert!(begin.elapsed() < Duration::from_secs(30), "it waited for what the tool had started");
            let user = ended.said.split(' ').next().unwrap().parse().unwrap();
            assert_eq!(processes_of(user), 0, "something of the tool still runs");
        }
    }

    #[test]
    fn a_tool_cannot_harm_another() {
        let dir = tempfile::tempdir().unwrap();
        let [one, other] = ["one", "other"].map(|name| dir.path().join(name).join("file"));
        for path in [&one, &other] {
            fs::create_dir(path.parent().unwrap()).unwrap();
            fs::write(path, "content\n").unwrap();
        }
        let patient = thread::spawn(move || {
            let script =
                "echo here > /image; while read line < /image && [ $line = here ]; do sleep 0.1; done; :";
            run("sh", &["-c", script], &one, soon()).map(|ended| (ended, one))
        });
        let here = dir.path().join("one/file");
        while fs::read(&here).unwrap() != b"here\n" {
            assert!(!patient.is_finished(), "{:?}", patient.join().unwrap().unwrap().0);
            thread::yield_now();
        }
        run("sh", &["-c", "kill -9 -1; :"], &other, soon()).unwrap();
        assert!(!patient.is_finished(), "the other tool ended");
        fs::write(&here, "over\n").unwrap();
        assert_eq!(patient.join().unwrap().unwrap().0.end, End::Code(0));
    }
}
