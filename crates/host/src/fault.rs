//! Points at which a test ends the process as `kill -9` would. Nothing without feature `fault-points`.

/// Ends the process with SIGKILL when `WRENN_FAULT_AGENT` names this point.
#[cfg(feature = "fault-points")]
pub fn point(name: &str) {
    if std::env::var("WRENN_FAULT_AGENT").is_ok_and(|wanted| wanted == name) {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

/// Does nothing: this build has no fault points.
#[cfg(not(feature = "fault-points"))]
pub fn point(_name: &str) {}
