// SPDX-License-Identifier: Apache-2.0
//! Page server: a process that copies the pages of a snapshot into the memory of one microVM when its guest needs
//! them, by userfaultfd.
//!
//! It has no privileges, opens nothing and outlives the process that started it: what it needs are open files that it
//! inherits. It ends when the VMM does. If it ends before, the guest waits for ever for its next page, so whoever
//! started both ends the VMM.

mod blocks;
mod confine;
mod handshake;
mod server;
mod userfault;

use std::{
    env,
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read as _},
    os::{
        fd::{FromRawFd as _, OwnedFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::{Header, Layers, working_set::WorkingSet};
use server::Server;
use userfault::Userfault;

/// First argument of a program that shall serve pages. The second one names the microVM, and is for those who look for
/// the process. The others are numbers of inherited files: the socket that the VMM connects to, the header of the
/// memory, the working set, which is read and appended to, and the data of the generations, sorted by their build ids.
pub const COMMAND: &str = "page-server";
/// Time in which the VMM connects.
const CONNECT_LIMIT: Duration = Duration::from_secs(120);

/// Serves pages if the program was started for that; returns its exit status then. To be called before anything else.
pub fn run_if_asked() -> Option<ExitCode> {
    if env::args_os().nth(1).as_deref() != Some(OsStr::new(COMMAND)) {
        return None;
    }
    // It would be "exe"; an error is of no matter.
    let _ = rustix::thread::set_name(c"wrenn-pages");
    Some(match run(env::args_os().skip(3)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the page server of the microVM's memory ended: {error}");
            ExitCode::FAILURE
        }
    })
}

/// Takes the inherited file that the next argument names.
fn inherited(arguments: &mut impl Iterator<Item = OsString>) -> io::Result<OwnedFd> {
    let number = arguments.next().and_then(|number| number.to_str()?.parse::<RawFd>().ok());
    // SAFETY: a system call on a number.
    let open = |number: &RawFd| unsafe { libc::fcntl(*number, libc::F_GETFD) } >= 0;
    match number.filter(|number| *number > libc::STDERR_FILENO).filter(open) {
        // SAFETY: it is open, and nothing else in this process refers to it.
        Some(number) => Ok(unsafe { OwnedFd::from_raw_fd(number) }),
        None => Err(io::Error::other("it is started by the driver of a VMM, and by nobody else")),
    }
}

fn run(mut arguments: impl Iterator<Item = OsString>) -> io::Result<()> {
    let listener = UnixListener::from(inherited(&mut arguments)?);
    let mut bytes = Vec::new();
    File::from(inherited(&mut arguments)?).read_to_end(&mut bytes)?;
    let header = Header::decode(&bytes).map_err(io::Error::other)?;
    let working_set = File::from(inherited(&mut arguments)?);
    let builds = header.mapping.builds().into_iter();
    let data = builds.map(|build| Ok((build, Arc::new(File::from(inherited(&mut arguments)?)))));
    let data = data.collect::<io::Result<_>>()?;
    let layers = Layers::new(header, data)?;
    confine::confine()?;
    serve(accept(listener)?, &layers, &working_set)
}

/// Waits for the VMM, the only one who may connect.
#[expect(clippy::needless_pass_by_value, reason = "nobody else may connect afterwards")]
fn accept(listener: UnixListener) -> io::Result<UnixStream> {
    let limit = Timespec { tv_sec: CONNECT_LIMIT.as_secs() as i64, tv_nsec: 0 };
    if poll(&mut [PollFd::new(&listener, PollFlags::IN)], Some(&limit))? == 0 {
        return Err(io::Error::other("the VMM did not connect"));
    }
    Ok(listener.accept()?.0)
}

/// Serves the memory of the VMM at the other end, until that ends.
fn serve(stream: UnixStream, layers: &Layers, working_set: &File) -> io::Result<()> {
    let (regions, userfault) = handshake::receive(&stream, layers.header().memory_size)?;
    let guest = (stream, regions, Userfault::new(userfault));
    Server::new(guest, layers, WorkingSet::open(working_set, layers.header().blocks())?).serve()
}

#[cfg(test)]
mod tests;
