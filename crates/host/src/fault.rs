//! Points at which a test ends the process as `kill -9` would. Nothing without feature `fault-points`.

/// Ends the process with SIGKILL when the directory `WRENN_FAULT_DIR` has a file named `agent.NAME`. The
/// file is removed first, so that the next start gets past the point.
#[cfg(feature = "fault-points")]
pub(crate) fn point(name: &str) {
    let Some(dir) = std::env::var_os("WRENN_FAULT_DIR") else { return };
    let armed = std::path::Path::new(&dir).join(format!("agent.{name}"));
    if std::fs::remove_file(armed).is_ok() {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

/// Does nothing: this build has no fault points.
#[cfg(not(feature = "fault-points"))]
pub(crate) fn point(_name: &str) {}
