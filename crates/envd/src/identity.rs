// SPDX-License-Identifier: Apache-2.0
//! Identity of the machine: machine-id and host name, which must resolve.

use std::{fs, io, path::Path};

use crate::{console::say, regular};

const MACHINE_ID: &str = "/etc/machine-id";
/// Older path of the machine-id; usually a link, or absent.
const DBUS_MACHINE_ID: &str = "/var/lib/dbus/machine-id";
const HOSTS: &str = "/etc/hosts";
const HOST_NAME: &str = "/etc/hostname";
/// Address of a Debian machine's own name in /etc/hosts.
const OWN_ADDRESS: &str = "127.0.1.1";
/// Maximum number of bytes read of these files.
const MOST: u64 = 1 << 20;

/// Sets the host name stored on the disk, and creates a machine-id at the first boot.
pub(crate) fn begin() {
    if let Err(error) = take_machine_id() {
        say(&format!("machine-id: {error}"));
    }
    let name = regular::read_text(Path::new(HOST_NAME), MOST).unwrap_or_default();
    let name = if name.trim().is_empty() { "sandbox" } else { name.trim() };
    if let Err(error) = take_name(name) {
        say(&format!("host name: {error}"));
    }
}

/// Sets the host name, now and for later boots, and adds it to /etc/hosts. Does nothing unless this is PID 1,
/// because the machine would not be a sandbox.
pub(crate) fn take_name(name: &str) -> io::Result<()> {
    let letters = |part: &str| part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.');
    if name.is_empty() || name.len() > 64 || !letters(name) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{name:?} is not a valid host name"),
        ));
    }
    if std::process::id() != 1 {
        return Ok(());
    }
    rustix::system::sethostname(name.as_bytes())?;
    if regular::read_text(Path::new(HOST_NAME), MOST).unwrap_or_default().trim() != name {
        regular::write_text(Path::new(HOST_NAME), &format!("{name}\n"), 0o644)?;
    }
    let hosts = regular::read_text(Path::new(HOSTS), MOST).unwrap_or_default();
    match hosts_with(&hosts, name) {
        Some(hosts) => regular::write_text(Path::new(HOSTS), &hosts, 0o644),
        None => Ok(()),
    }
}

/// Returns `/etc/hosts` with the machine's own name added; `None` if it has the name already.
fn hosts_with(hosts: &str, name: &str) -> Option<String> {
    let words = |line: &str| -> Vec<String> {
        line.split('#').next().unwrap_or_default().split_whitespace().map(str::to_owned).collect()
    };
    let has = |wanted: &str| hosts.lines().any(|line| words(line).iter().skip(1).any(|word| word == wanted));
    if has(name) {
        return None;
    }
    let mut text = String::new();
    if !has("localhost") {
        text.push_str("127.0.0.1 localhost\n::1 localhost\n");
    }
    // Drop the line of a previous host name.
    for line in hosts.lines().filter(|line| words(line).first().is_none_or(|word| word != OWN_ADDRESS)) {
        text.push_str(line);
        text.push('\n');
    }
    text.push_str(&format!("{OWN_ADDRESS} {name}\n"));
    Some(text)
}

/// Creates a machine-id at the first boot, because templates have an empty one.
fn take_machine_id() -> io::Result<()> {
    let id = regular::read_text(Path::new(MACHINE_ID), MOST).unwrap_or_default();
    match id.trim() {
        "" | "uninitialized" => renew_machine_id(),
        id => tell_dbus(id),
    }
}

/// Writes the machine-id into the file of D-Bus, if that is one of its own.
fn tell_dbus(id: &str) -> io::Result<()> {
    let dbus = Path::new(DBUS_MACHINE_ID);
    let separate = fs::symlink_metadata(dbus).is_ok_and(|meta| meta.is_file());
    if separate && regular::read_text(dbus, MOST)?.trim() != id {
        regular::write_text(dbus, &format!("{id}\n"), 0o444)?;
    }
    Ok(())
}

/// Replaces the machine-id by a new one. Does nothing unless this is PID 1, because the machine would not be a
/// sandbox.
pub(crate) fn renew_machine_id() -> io::Result<()> {
    if std::process::id() != 1 {
        return Ok(());
    }
    let id = new_machine_id()?;
    regular::write_text(Path::new(MACHINE_ID), &format!("{id}\n"), 0o444)?;
    tell_dbus(&id)
}

/// Generates a random machine-id as in machine-id(5): a version 4 UUID without hyphens.
fn new_machine_id() -> io::Result<String> {
    let mut bytes = [0_u8; 16];
    // SAFETY: the buffer has this length. Blocks until the kernel has entropy; so few bytes are never split.
    if unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) } != bytes.len() as isize {
        return Err(io::Error::last_os_error());
    }
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_name_is_added_once_and_replaces_an_earlier_one() {
        let template = "127.0.0.1 localhost sandbox\n::1 localhost\n10.0.0.1 db # sb2\n";
        let first = hosts_with(template, "sb1").unwrap();
        assert_eq!(first, format!("{template}127.0.1.1 sb1\n"));
        assert_eq!(hosts_with(&first, "sb1"), None);
        let second = hosts_with(&first, "sb2").unwrap();
        assert_eq!(second, format!("{template}127.0.1.1 sb2\n"));
        assert_eq!(hosts_with("", "a").unwrap(), "127.0.0.1 localhost\n::1 localhost\n127.0.1.1 a\n");
    }

    #[test]
    fn machine_ids_differ_and_names_are_checked() {
        let (one, other) = (new_machine_id().unwrap(), new_machine_id().unwrap());
        assert!(one != other && one.len() == 32 && one.bytes().all(|byte| byte.is_ascii_hexdigit()));
        for name in ["", "a b", "a\nb", &"x".repeat(65)] {
            assert!(take_name(name).is_err());
        }
    }
}
