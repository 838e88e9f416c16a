// SPDX-License-Identifier: Apache-2.0
//! Messages on the guest's console, the only place for them before envd serves.

use std::{fs::OpenOptions, io::Write as _};

/// Writes one line to the console.
pub(crate) fn say(text: &str) {
    let line = format!("envd: {text}\n");
    match OpenOptions::new().write(true).open("/dev/console") {
        Ok(mut console) => drop(console.write_all(line.as_bytes())),
        Err(_) => eprint!("{line}"),
    }
}
