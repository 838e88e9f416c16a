// SPDX-License-Identifier: Apache-2.0
//! Confinement of the process that unpacks an image, which it imposes on itself before it reads anything of the image.
//!
//! It sees the tree that it fills, the file that becomes the file system, and the system directories, read-only. It has
//! namespaces of its own without a network, the capabilities that files of all owners need, few system calls, and limits.
//! Its process namespace is made by whoever starts it.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::{fd::OwnedFd, unix::fs::symlink},
};

use rustix::{
    fs::CWD,
    mount::{
        MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_bind,
        mount_change, mount_remount, move_mount, open_tree, unmount,
    },
    process::{Resource, Rlimit, chdir, getrlimit, pivot_root, setrlimit},
    thread::{CapabilitySet, CapabilitySets, UnshareFlags, set_capabilities, unshare_unsafe},
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};
use wrenn_os::inherit;

/// Paths of the tree and of the file that becomes the file system, once the process is confined.
pub(super) const TREE: &str = "/tree";
pub(super) const IMAGE: &str = "/image";
/// Directory over which the new root is mounted. It is there on every Linux, and is not needed meanwhile.
const JAIL: &str = "/proc";
/// Directories that mke2fs needs to run; missing ones are skipped.
const SYSTEM: [&str; 5] = ["/usr", "/lib", "/lib64", "/bin", "/sbin"];
/// Directories and files that mke2fs looks for, because it makes no file system on what is mounted.
const DIRECTORIES: [&str; 3] = ["proc", "etc", "tree"];
const EMPTY_FILES: [&str; 3] = ["proc/mounts", "etc/mtab", "image"];
/// Limit of the address space in bytes: some 80 bytes for each entry of an image, and windows of decompression.
const MEMORY: u64 = 2 << 30;
/// Limit of a file's size in bytes, holes included: that of the files in an image.
const FILE_SIZE: u64 = 256 << 30;
/// Maximum number of open files: some for each directory on the way to one, and the blobs.
const FILES: u64 = 4096;
/// Capabilities that remain, by their numbers: CHOWN, DAC_OVERRIDE, FOWNER, FSETID, MKNOD, SETFCAP.
const CAPABILITIES: [u32; 6] = [0, 1, 3, 4, 27, 31];

/// System calls with any arguments. None of them mounts, connects, traces, or asks for a key.
const CALLS: &[libc::c_long] = &[
    // Files, by open ones and by paths.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_fcntl,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    libc::SYS_flock,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_truncate,
    libc::SYS_copy_file_range,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_chdir,
    libc::SYS_fchdir,
    libc::SYS_getcwd,
    libc::SYS_umask,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_unlinkat,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_getxattr,
    libc::SYS_lgetxattr,
    libc::SYS_fgetxattr,
    libc::SYS_listxattr,
    libc::SYS_llistxattr,
    libc::SYS_flistxattr,
    // Memory.
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_madvise,
    // The process itself, and mke2fs.
    libc::SYS_execve,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_set_tid_address,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_prlimit64,
    libc::SYS_getrusage,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_getrandom,
    // Signals, waiting and time.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigsuspend,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_tgkill,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_times,
];

/// Older ones of these processors, which libraries use still.
#[cfg(target_arch = "x86_64")]
const OTHER_CALLS: &[libc::c_long] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_mkdir,
    libc::SYS_mknod,
    libc::SYS_link,
    libc::SYS_symlink,
    libc::SYS_unlink,
    libc::SYS_rmdir,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_dup2,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_select,
    libc::SYS_time,
    libc::SYS_getrlimit,
    libc::SYS_arch_prctl,
    libc::SYS_fork,
    libc::SYS_vfork,
];
#[cfg(not(target_arch = "x86_64"))]
const OTHER_CALLS: &[libc::c_long] = &[];

/// Flags of `clone` that make a namespace.
const NAMESPACES: libc::c_int = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET;

/// Confines this thread, and what it starts, for good. Afterwards the directory `outside` is at [`TREE`], and the file `image` at
/// [`IMAGE`]. No directory that was opened before stays open: it would lead out.
pub(super) fn confine(outside: File, image: &File) -> io::Result<()> {
    // Before the namespace: files that were opened outside cannot be mounted in it.
    let (tree, image) = (detached(&outside)?, detached(image)?);
    drop(outside);
    let own = UnshareFlags::NEWNS
        | UnshareFlags::NEWNET
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWUTS
        | UnshareFlags::NEWCGROUP;
    // SAFETY: open files are shared as before.
    unsafe { unshare_unsafe(own) }?;
    enter_root(&tree, &image)?;
    drop((tree, image));
    limit()?;
    let few =
        inherit::Identity { user: None, groups: &[], capabilities: &CAPABILITIES, new_privileges: false };
    few.assume()?;
    drop_capabilities()?;
    filter()
}

/// Makes a mount of a file or a directory, which is nowhere yet.
fn detached(file: &File) -> io::Result<OwnedFd> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    Ok(open_tree(file, "", flags)?)
}

/// Replaces the root by one that has little else than a tree and a file.
fn enter_root(tree: &OwnedFd, image: &OwnedFd) -> io::Result<()> {
    let safe = MountFlags::NOSUID | MountFlags::NODEV;
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?;
    mount("tmpfs", JAIL, "tmpfs", safe | MountFlags::NOEXEC, c"mode=755,size=1m")?;
    chdir(JAIL)?;
    for source in SYSTEM {
        let inside = source.trim_start_matches('/');
        match fs::symlink_metadata(source) {
            Ok(meta) if meta.is_symlink() => symlink(fs::read_link(source)?, inside)?,
            Ok(_) => {
                fs::create_dir(inside)?;
                mount_bind(source, inside)?;
                mount_remount(inside, MountFlags::BIND | MountFlags::RDONLY | safe, "")?;
            }
            Err(_) => {}
        }
    }
    DIRECTORIES.into_iter().try_for_each(fs::create_dir)?;
    EMPTY_FILES.into_iter().try_for_each(|file| File::create_new(file).map(drop))?;
    for (made, path) in [(tree, "tree"), (image, "image")] {
        move_mount(made, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        mount_change(path, MountPropagationFlags::PRIVATE)?;
        // Nothing in an image means anything to this host: no device, no program, no rights of a user.
        mount_remount(path, MountFlags::BIND | MountFlags::NOEXEC | safe, "")?;
    }
    mount_remount(".", MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOEXEC | safe, "")?;
    // The old root is stacked below the new one, and then unmounted.
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    Ok(chdir("/")?)
}

fn limit() -> io::Result<()> {
    let limits = [
        (Resource::As, MEMORY),
        (Resource::Fsize, FILE_SIZE),
        (Resource::Nofile, FILES),
        (Resource::Memlock, 0),
        (Resource::Core, 0),
    ];
    for (which, most) in limits {
        // It may be lower already.
        let most = getrlimit(which).maximum.map_or(most, |maximum| maximum.min(most));
        setrlimit(which, Rlimit { current: Some(most), maximum: Some(most) })?;
    }
    Ok(())
}

/// Takes the other capabilities from this process; they were taken from the programs that it starts.
fn drop_capabilities() -> io::Result<()> {
    let few = CAPABILITIES.iter().fold(CapabilitySet::empty(), |few, number| {
        few | CapabilitySet::from_bits_retain(1 << u64::from(*number))
    });
    let sets = CapabilitySets { effective: few, permitted: few, inheritable: CapabilitySet::empty() };
    Ok(set_capabilities(None, sets)?)
}

fn error(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::other(error)
}

/// Returns the system calls that remain.
fn rules() -> io::Result<BTreeMap<i64, Vec<SeccompRule>>> {
    let any = CALLS.iter().chain(OTHER_CALLS).map(|call| (*call, Vec::new()));
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = any.collect();
    let none = SeccompCmpOp::MaskedEq(NAMESPACES as u64);
    let condition = SeccompCondition::new(0, SeccompCmpArgLen::Qword, none, 0).map_err(error)?;
    rules.insert(libc::SYS_clone, vec![SeccompRule::new(vec![condition]).map_err(error)?]);
    Ok(rules)
}

fn filter() -> io::Result<()> {
    let filter = SeccompFilter::new(
        rules()?,
        // As if the kernel were older: libraries have another way then, above all to start programs.
        SeccompAction::Errno(libc::ENOSYS as u32),
        SeccompAction::Allow,
        std::env::consts::ARCH.try_into().map_err(error)?,
    );
    let program: BpfProgram = filter.map_err(error)?.try_into().map_err(error)?;
    seccompiler::apply_filter(&program).map_err(error)
}

#[cfg(test)]
mod tests {
    use std::{
        env,
        net::UdpSocket,
        os::unix::fs::{PermissionsExt as _, chown},
        path::Path,
        process::{self, Command, Stdio},
    };

    use rustix::fs::{FileType, Mode, makedev, mknodat};

    use super::*;

    /// Argument of a process that is to confine itself. The next one is a directory with a tree and an image.
    const CONFINED: &str = "confined-in";

    fn tell<T>(what: &str, result: io::Result<T>) {
        println!("{what} {:?}", result.map(drop).map_err(|error| error.raw_os_error()));
    }

    /// Confines this process if it was started for that, and tells what it can do still. Else there is nothing to do.
    #[test]
    fn confined() {
        let mut arguments = env::args_os().skip_while(|argument| argument != CONFINED);
        let Some(home) = arguments.nth(1) else { return };
        let [tree, image] = ["tree", "image"].map(|name| Path::new(&home).join(name));
        let image = File::options().read(true).write(true).open(image).expect("the image");
        confine(File::open(tree).expect("the tree"), &image).expect("confined");
        let mut root: Vec<_> =
            fs::read_dir("/").expect("the root").flatten().map(|entry| entry.file_name()).collect();
        root.sort();
        println!("root {root:?}");
        tell("write a file of the tree", fs::write("/tree/file", "text"));
        tell("give it away", chown("/tree/file", Some(1000), Some(1000)));
        tell("read it", fs::read("/tree/file"));
        tell("write the image", fs::write(IMAGE, "text"));
        tell("run a program of the system", Command::new("/bin/true").stdin(Stdio::inherit()).status());
        tell("run a program of the tree", Command::new("/tree/program").stdin(Stdio::inherit()).status());
        tell("open a device", File::open("/tree/device"));
        tell("write elsewhere", fs::write("/elsewhere", ""));
        tell("write the system", fs::write("/usr/elsewhere", ""));
        let flags = MountFlags::empty();
        tell("mount", mount("tmpfs", TREE, "tmpfs", flags, c"").map_err(io::Error::from));
        // SAFETY: open files are shared as before.
        tell("make a namespace", unsafe { unshare_unsafe(UnshareFlags::NEWUSER) }.map_err(io::Error::from));
        tell("connect", UdpSocket::bind("127.0.0.1:0"));
        process::exit(0);
    }

    #[test]
    fn a_confined_process_fills_its_tree_and_does_nothing_else() -> anyhow::Result<()> {
        // Only root can confine.
        if !rustix::process::geteuid().is_root() {
            return Ok(());
        }
        let home = tempfile::tempdir()?;
        let path = |name: &str| home.path().join(name);
        fs::create_dir(path("tree"))?;
        fs::write(path("image"), "")?;
        fs::write(path("tree/program"), "#!/bin/sh\n")?;
        fs::set_permissions(path("tree/program"), fs::Permissions::from_mode(0o755))?;
        // The null device, which everyone may open elsewhere.
        let mode = Mode::from_raw_mode(0o666);
        mknodat(CWD, path("tree/device"), FileType::CharacterDevice, mode, makedev(1, 3))?;
        let mut command = Command::new("/proc/self/exe");
        command.args(["oci::confine::tests::confined", "--exact", "--nocapture", CONFINED]).arg(home.path());
        let output = command.env_clear().output()?;
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{told} {}", String::from_utf8_lossy(&output.stderr));
        let refused = |what: &str, code: i32| format!("{what} Err(Some({code}))");
        for expected in [
            "write a file of the tree Ok(())".to_owned(),
            "give it away Ok(())".to_owned(),
            "read it Ok(())".to_owned(),
            "write the image Ok(())".to_owned(),
            "run a program of the system Ok(())".to_owned(),
            refused("run a program of the tree", libc::EACCES),
            refused("open a device", libc::EACCES),
            refused("write elsewhere", libc::EROFS),
            refused("write the system", libc::EROFS),
            refused("mount", libc::ENOSYS),
            refused("make a namespace", libc::ENOSYS),
            refused("connect", libc::ENOSYS),
        ] {
            assert!(told.lines().any(|line| line.ends_with(&expected)), "{expected}: {told}");
        }
        let root = told.lines().find(|line| line.contains("root [")).unwrap_or_default();
        assert!(
            root.contains("\"tree\"") && !root.contains("\"home\"") && !root.contains("\"root\""),
            "{root}"
        );
        assert_eq!(fs::read(path("image"))?, b"text");
        Ok(())
    }

    #[test]
    fn no_system_call_leads_out() {
        let rules = rules().expect("rules");
        let no = [
            libc::SYS_mount,
            libc::SYS_move_mount,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_clone3,
            libc::SYS_ptrace,
            libc::SYS_socket,
            libc::SYS_bpf,
            libc::SYS_keyctl,
            libc::SYS_ioctl,
            libc::SYS_prctl,
            libc::SYS_open_by_handle_at,
            libc::SYS_io_uring_setup,
            libc::SYS_userfaultfd,
            libc::SYS_memfd_create,
        ];
        assert!(no.iter().all(|call| !rules.contains_key(call)));
        assert_eq!(rules[&libc::SYS_clone].len(), 1, "not with a namespace");
        assert_eq!(rules.len(), CALLS.len() + OTHER_CALLS.len() + 1, "one is listed twice");
    }

    #[test]
    fn capabilities_are_those_that_files_need() {
        let named = CapabilitySet::CHOWN
            | CapabilitySet::DAC_OVERRIDE
            | CapabilitySet::FOWNER
            | CapabilitySet::FSETID
            | CapabilitySet::MKNOD
            | CapabilitySet::SETFCAP;
        let bits = CAPABILITIES.iter().fold(0_u64, |bits, number| bits | 1 << number);
        assert_eq!(bits, named.bits());
    }
}
