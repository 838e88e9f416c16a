// SPDX-License-Identifier: Apache-2.0
//! Work on files with the rights of a user: on a thread of its own, whose identity for file systems is the user's.

use std::{io, thread};

use tokio::sync::oneshot;

use crate::users::User;

/// Does blocking work with a user's rights.
pub(crate) async fn with<T: Send + 'static>(
    user: User,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (done, result) = oneshot::channel();
    let builder = thread::Builder::new().name("files".into());
    builder.spawn(move || {
        // Nobody may wait for the result any more.
        let _ = done.send(become_user(&user).map(|()| work()));
    })?;
    result.await.map_err(io::Error::other)?
}

/// Gives the calling thread a user's identity for file systems, for good. The kernel takes the capabilities that concern
/// files away with it.
fn become_user(user: &User) -> io::Result<()> {
    if user.uid == 0 {
        return Ok(());
    }
    // By system calls, because the functions of the C library change all threads.
    // SAFETY: the list of groups is valid for the call.
    if unsafe { libc::syscall(libc::SYS_setgroups, user.groups.len(), user.groups.as_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    for (call, id) in [(libc::SYS_setfsgid, user.gid), (libc::SYS_setfsuid, user.uid)] {
        // SAFETY: these calls take a number. They tell the previous one, and of failures nothing; -1 changes nothing.
        let now = unsafe {
            libc::syscall(call, id);
            libc::syscall(call, -1)
        };
        if now != i64::from(id) {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt as _};

    use super::*;

    #[tokio::test]
    async fn a_user_reaches_and_makes_its_own_files_only() {
        // Only root can be another user.
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (open, closed) = (dir.path().join("open"), dir.path().join("closed"));
        fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        fs::write(&closed, "secret").unwrap();
        fs::set_permissions(&closed, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let user = User {
            name: "ann".into(),
            uid: 12_345,
            gid: 23_456,
            groups: vec![23_456],
            home: "/".into(),
            shell: "/bin/sh".into(),
        };
        let (made, shut) = (open.clone(), closed.clone());
        let (read, written) =
            with(user, move || (fs::read(shut).map_err(|e| e.kind()), fs::write(made, "x"))).await.unwrap();
        assert_eq!((read, written.is_ok()), (Err(io::ErrorKind::PermissionDenied), true));
        let meta = fs::metadata(&open).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (12_345, 23_456));
        assert_eq!(fs::read(&closed).unwrap(), b"secret", "this thread is as it was");
    }
}
