// SPDX-License-Identifier: Apache-2.0
//! Shutdown of the guest on signals to PID 1: SIGTERM and SIGINT reboot, SIGUSR1 and SIGUSR2 power off, as
//! with busybox init. Either ends the microVM.

use std::{
    fs, io, thread,
    time::{Duration, Instant},
};

use tokio::signal::unix::{SignalKind, signal};

use crate::console::say;

/// Time that programs have to exit after SIGTERM.
const GRACE: Duration = Duration::from_secs(2);

/// Waits for a signal and shuts the guest down.
pub(crate) async fn obey() {
    match asked().await {
        Ok(how) => drop(tokio::task::spawn_blocking(move || end(how)).await),
        Err(error) => say(&format!("signals cannot be awaited: {error}")),
    }
}

#[derive(Clone, Copy)]
enum How {
    Reboot,
    PowerOff,
}

async fn asked() -> io::Result<How> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut halt = signal(SignalKind::user_defined1())?;
    let mut power = signal(SignalKind::user_defined2())?;
    Ok(tokio::select! {
        _ = terminate.recv() => How::Reboot,
        _ = interrupt.recv() => How::Reboot,
        _ = halt.recv() => How::PowerOff,
        _ = power.recv() => How::PowerOff,
    })
}

fn end(how: How) {
    let (word, command) = match how {
        How::Reboot => ("reboot", libc::RB_AUTOBOOT),
        How::PowerOff => ("power off", libc::RB_POWER_OFF),
    };
    say(&format!("shutting down: {word} requested"));
    // SAFETY: neither call has memory effects; -1 means every process but this one.
    unsafe { libc::kill(-1, libc::SIGTERM) };
    let until = Instant::now() + GRACE;
    while programs_run() && Instant::now() < until {
        thread::sleep(Duration::from_millis(20));
    }
    // SAFETY: as above.
    unsafe {
        libc::kill(-1, libc::SIGKILL);
        libc::sync();
        libc::reboot(command);
    }
    say(&format!("{word}: {}", io::Error::last_os_error()));
}

/// Returns whether another program runs; kernel threads have no command line.
fn programs_run() -> bool {
    let Ok(entries) = fs::read_dir("/proc") else { return false };
    entries.flatten().any(|entry| {
        let pid = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
        pid.is_some_and(|pid| pid != 1)
            && fs::read(entry.path().join("cmdline")).is_ok_and(|line| !line.is_empty())
    })
}
