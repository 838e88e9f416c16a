// SPDX-License-Identifier: Apache-2.0
//! envd, the guest agent: PID 1 of every microVM. It boots the system, reaps processes, and serves the
//! sandbox's API.
//!
//! As an ordinary process (`envd --port N`) it only serves, which its tests use. Its limits can be given as
//! options (`--kept BYTES`, `--drains N`, `--running N`, `--terminals N`, `--readable SECONDS`, `--watchers N`,
//! `--watched-events N`, `--watcher-idle SECONDS`); those of PID 1 depend on the machine's memory.

mod accounts;
mod boot;
mod connections;
mod console;
mod cors;
mod entry;
mod files;
mod filesystem;
mod identity;
mod init;
mod keepalive;
mod limits;
mod log;
mod metadata;
mod metrics;
mod network;
mod out_of_memory;
mod parents;
mod paths;
mod ports;
mod power;
mod process;
mod random;
mod reaper;
mod regular;
mod reset;
mod respond;
mod rights;
mod secrets;
mod server;
mod settings;
mod unread;
mod upload;
mod users;
mod watch;

use std::{process::ExitCode, time::Duration};

use process::registry::Bounds;

/// Port that sandbox clients use.
const PORT: u16 = 49983;

fn main() -> ExitCode {
    let first = std::process::id() == 1;
    if first {
        boot::run();
    }
    // Processes of the sandbox must not inherit open descriptors.
    // SAFETY: marking descriptors close-on-exec closes none now.
    unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int) };
    limits::raise(first);
    let options = match options(std::env::args().skip(1)) {
        Ok(options) => options,
        // The kernel passes words of its command line to PID 1; ignore them.
        Err(_) if first => Options::default(),
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
    match runtime.and_then(|runtime| {
        if first {
            runtime.spawn(power::obey());
        }
        runtime.block_on(server::run(options.port, options.bounds, options.watching))
    }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("envd: cannot serve on port {}: {error}", options.port);
            ExitCode::FAILURE
        }
    }
}

struct Options {
    port: u16,
    bounds: Bounds,
    watching: watch::Limits,
}

impl Default for Options {
    fn default() -> Self {
        Self { port: PORT, bounds: Bounds::default(), watching: watch::Limits::default() }
    }
}

fn options(mut args: impl Iterator<Item = String>) -> Result<Options, String> {
    const USAGE: &str = "usage: envd [--port N] [--kept BYTES] [--drains N] [--running N] [--terminals N] \
                         [--readable SECONDS] [--watchers N] [--watched-events N] [--watcher-idle SECONDS]";
    let mut options = Options::default();
    while let Some(name) = args.next() {
        let value = args.next().ok_or(USAGE)?;
        let number = || value.parse().map_err(|_| format!("{name}: '{value}' is not a number"));
        match name.as_str() {
            "--port" => {
                options.port = value.parse().map_err(|_| format!("'{value}' is not a port (0 to 65535)"))?;
            }
            "--kept" => options.bounds.kept = number()?,
            "--drains" => options.bounds.drains = number()?,
            "--running" => options.bounds.running = number()?,
            "--terminals" => options.bounds.terminals = number()?,
            "--readable" => options.bounds.readable = Duration::from_secs(number()? as u64),
            "--watchers" => options.watching.watchers = number()?,
            "--watched-events" => options.watching.kept = number()?,
            "--watcher-idle" => options.watching.idle = Duration::from_secs(number()? as u64),
            _ => return Err(USAGE.into()),
        }
    }
    Ok(options)
}
