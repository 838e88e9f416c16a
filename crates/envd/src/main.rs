//! envd, the guest agent: PID 1 of every microVM. It boots the system, reaps, and serves the sandbox's API.
//!
//! Started as an ordinary process (`envd --port N`) it only serves, which is how its tests run it.

mod boot;
mod files;
mod filesystem;
mod init;
mod metrics;
mod network;
mod paths;
mod process;
mod reaper;
mod server;
mod settings;
mod users;

use std::process::ExitCode;

/// The port that sandbox clients know.
const PORT: u16 = 49983;

fn main() -> ExitCode {
    let first = std::process::id() == 1;
    if first {
        boot::run();
    }
    // Whatever was inherited stays here and does not reach the processes of the sandbox.
    // SAFETY: marking descriptors close-on-exec closes nothing now.
    unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int) };
    let port = match port(std::env::args().skip(1)) {
        Ok(port) => port,
        // The kernel passes words of its command line to PID 1; they are not for us.
        Err(_) if first => PORT,
        Err(message) => {
            eprintln!("envd: {message}");
            return ExitCode::FAILURE;
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(64)
        .enable_all()
        .build();
    match runtime.and_then(|runtime| runtime.block_on(server::run(port))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("envd: cannot serve on port {port}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn port(mut args: impl Iterator<Item = String>) -> Result<u16, String> {
    match (args.next().as_deref(), args.next()) {
        (None, _) => Ok(PORT),
        (Some("--port"), Some(value)) => {
            value.parse().map_err(|_| format!("'{value}' is not a port (0 to 65535)"))
        }
        _ => Err("usage: envd [--port N]".into()),
    }
}
