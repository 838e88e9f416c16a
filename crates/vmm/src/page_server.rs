// SPDX-License-Identifier: Apache-2.0
//! Page server of a microVM, a process beside its VMM: it is started before, with the same user and control groups,
//! and ended after it. If it ends before, so does the VMM, whose guest could only wait for ever.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::{
        fd::{AsRawFd, RawFd},
        unix::{
            fs::{OpenOptionsExt as _, lchown},
            net::UnixListener,
        },
    },
    path::Path,
    process::{Command, Stdio},
};

use rustix::fs::{MemfdFlags, memfd_create};
use wrenn_memory::page_server::COMMAND;
use wrenn_os::control_group;

use crate::{
    BootSpec, PagedMemory, VmmError,
    launch::{self, Identity, Life, check},
    logs,
    logs::vmm_log,
    process::{self, Watched},
    running::{blocking, failed, spawn},
};

/// This program, which serves pages when its first argument says so.
const PROGRAM: &str = "/proc/self/exe";
/// Makes the socket in the run directory, through a handle of that, because its path may be longer than
/// `sockaddr_un` allows.
fn listen(spec: &BootSpec) -> io::Result<UnixListener> {
    let dir = File::options().read(true).custom_flags(libc::O_DIRECTORY).open(&spec.run_dir)?;
    let path = format!("/proc/self/fd/{}/{}", dir.as_raw_fd(), process::PAGES_SOCKET);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    lchown(&path, Some(spec.uid), Some(spec.gid))?;
    Ok(listener)
}

/// File in memory with the header.
fn header(memory: &PagedMemory) -> io::Result<File> {
    let mut file = File::from(memfd_create("header", MemfdFlags::CLOEXEC)?);
    file.write_all(&memory.layers.header().encode())?;
    io::Seek::rewind(&mut file)?;
    Ok(file)
}

/// Starts the process and returns its pid.
fn spawn_server(spec: &BootSpec, memory: &PagedMemory) -> io::Result<u32> {
    let (listener, header) = (listen(spec)?, header(memory)?);
    let mut files = vec![listener.as_raw_fd(), header.as_raw_fd(), memory.working_set.as_raw_fd()];
    files.extend(memory.layers.data().map(AsRawFd::as_raw_fd));
    let mut command = Command::new(PROGRAM);
    command.arg(COMMAND).arg(&spec.run_dir).args(files.iter().map(RawFd::to_string));
    command.env_clear().current_dir("/").stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(logs::open(&vmm_log(&spec.run_dir))?);
    let mut join = control_group::enter(&spec.cgroups)?;
    let inherit = move || {
        join()?;
        // SAFETY: system calls on numbers.
        files.iter().try_for_each(|file| check(unsafe { libc::fcntl(*file, libc::F_SETFD, 0) }).map(drop))
    };
    let identity = Identity { uid: spec.uid, gid: spec.gid, group: None };
    // SAFETY: only system calls; their arguments were allocated above.
    unsafe { launch::detach(&mut command, Some(identity), Life::of(spec), inherit) };
    spawn(command)
}

/// Starts a server that waits for the VMM with files in the same directory.
pub(crate) async fn start(spec: &BootSpec, memory: &PagedMemory) -> Result<Watched, VmmError> {
    let action = "start the page server";
    let (spec, memory) = (spec.clone(), memory.clone());
    let pid = blocking(action, move || spawn_server(&spec, &memory).map_err(|error| failed(action, error)));
    let watched = process::watch_child(pid.await?).map_err(|error| failed(action, error))?;
    watched.ok_or_else(|| failed(action, io::Error::other("it ended at once")))
}

/// Finds the server of a VMM that a former agent started; none if it has ended.
pub(crate) async fn adopt(run_dir: &Path) -> Result<Option<Watched>, VmmError> {
    let (action, dir) = ("look for the page server", run_dir.to_owned());
    let find = move || process::page_server(&dir).map_err(|error| failed(action, error));
    let found = blocking(action, find).await?.map(Watched::open).transpose();
    Ok(found.map_err(|error| failed(action, error))?.flatten())
}
