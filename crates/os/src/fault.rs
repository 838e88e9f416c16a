// SPDX-License-Identifier: Apache-2.0
//! Fault points, at which a test kills the process like `kill -9`, or stops it. They need the feature `fault-points`.

/// Kills the process with SIGKILL if the directory `WRENN_FAULT_DIR` has a file `PROCESS.OPERATION.NAME`, or stops it with
/// SIGSTOP if that contains `stop`. Removes the file first, so that the next start passes the point.
#[cfg(feature = "fault-points")]
pub fn point(process: &str, operation: &str, name: &str) {
    let Some(dir) = std::env::var_os("WRENN_FAULT_DIR") else { return };
    let armed = std::path::Path::new(&dir).join(format!("{process}.{operation}.{name}"));
    let Ok(how) = std::fs::read(&armed) else { return };
    if std::fs::remove_file(armed).is_ok() {
        let signal =
            if how == b"stop" { rustix::process::Signal::STOP } else { rustix::process::Signal::KILL };
        let _ = rustix::process::kill_process(rustix::process::getpid(), signal);
    }
}

/// Does nothing: this build has no fault points.
#[cfg(not(feature = "fault-points"))]
pub fn point(_process: &str, _operation: &str, _name: &str) {}
