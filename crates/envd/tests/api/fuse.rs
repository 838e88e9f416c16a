// SPDX-License-Identifier: Apache-2.0
//! A FUSE file system with one empty directory, whose requests are answered here.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    thread,
};

/// Unmounts when dropped.
pub(crate) struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

/// Mounts it for all users, or for one that root is not.
pub(crate) fn mount(path: &Path, for_all: bool) -> Mounted {
    let device = File::options().read(true).write(true).open("/dev/fuse").expect("this test needs /dev/fuse");
    let users = if for_all { "user_id=0,group_id=0,allow_other" } else { "user_id=1,group_id=1" };
    let options = format!("fd={},rootmode=40755,{users}", device.as_raw_fd());
    let options = std::ffi::CString::new(options).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("test", path, "fuse", flags, options.as_c_str()).expect("this test needs root");
    thread::spawn(move || serve(device));
    Mounted(path.to_owned())
}

/// Answers until it is unmounted (linux/fuse.h).
fn serve(mut device: File) {
    let mut request = vec![0; 1 << 17];
    while let Ok(length) = device.read(&mut request) {
        let word = |at: usize| u32::from_le_bytes(request[at..at + 4].try_into().unwrap());
        let operation = word(4);
        let unique = &request[8..16];
        assert!(length >= 40);
        let answer: Result<Vec<u8>, i32> = match operation {
            // FORGET, BATCH_FORGET and INTERRUPT are not answered.
            2 | 36 | 42 => continue,
            // INIT: version 7.23, and no more.
            26 => Ok([7_u32, 23, 0, 0, 0, 4096, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
                .iter()
                .flat_map(|word| word.to_le_bytes())
                .collect()),
            // GETATTR: validity, then inode 1, a directory.
            3 => {
                let mut answer = vec![0; 104];
                answer[16] = 1;
                answer[16 + 60..16 + 64].copy_from_slice(&0o40_755_u32.to_le_bytes());
                answer[16 + 64..16 + 68].copy_from_slice(&2_u32.to_le_bytes());
                Ok(answer)
            }
            // STATFS.
            17 => Ok(vec![0; 80]),
            // OPENDIR, READDIR, RELEASEDIR.
            27 => Ok(vec![0; 16]),
            28 | 29 => Ok(Vec::new()),
            // LOOKUP.
            1 => Err(libc::ENOENT),
            _ => Err(libc::ENOSYS),
        };
        let (error, data) = answer.map_or_else(|error| (-error, Vec::new()), |data| (0, data));
        let mut reply = ((16 + data.len()) as u32).to_le_bytes().to_vec();
        reply.extend(error.to_le_bytes());
        reply.extend(unique);
        reply.extend(data);
        if device.write_all(&reply).is_err() {
            return;
        }
    }
}
