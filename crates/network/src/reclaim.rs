// SPDX-License-Identifier: Apache-2.0
//! Finds an agent's kernel resources by name and directory.

use std::{
    collections::BTreeSet,
    ffi::CStr,
    fs, io,
    path::{Path, PathBuf},
};

use crate::{NetworkError, model::Family, netfilter::Socket, nft, plan::Plan, rules};

/// Directories of the journal and of the namespaces' mount points.
pub(crate) fn dirs(state_dir: &Path) -> (PathBuf, PathBuf) {
    (state_dir.join("slots"), state_dir.join("netns"))
}

/// Lists the network links of the calling thread's namespace.
fn links() -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    // SAFETY: the list ends with an index of zero, its names are strings until it is freed, and it is freed
    // once.
    unsafe {
        let list = libc::if_nameindex();
        if list.is_null() {
            return Err(io::Error::last_os_error());
        }
        let mut entry = list;
        while (*entry).if_index != 0 {
            names.push(CStr::from_ptr((*entry).if_name).to_string_lossy().into_owned());
            entry = entry.add(1);
        }
        libc::if_freenameindex(list);
    }
    Ok(names)
}

/// Numbers of slots that are file names in `dir`; none if it does not exist. Fails if it cannot be read,
/// because it may contain any.
fn files(plan: &Plan, dir: &Path) -> Result<Vec<u16>, NetworkError> {
    let failed = |source| NetworkError::Io { action: format!("read {}", dir.display()), source };
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let slot = |name: &str| {
        let index = name.parse().ok()?;
        (plan.slot(index).is_ok() && index.to_string() == name).then_some(index)
    };
    let mut found = Vec::new();
    for entry in entries {
        found.extend(entry.map_err(failed)?.file_name().to_str().and_then(slot));
    }
    Ok(found)
}

fn slot_links(plan: &Plan) -> Result<Vec<(u16, String)>, NetworkError> {
    let failed = |source| NetworkError::Io { action: "list the network links".into(), source };
    let named = |name: String| Some((plan.slot_of_link(&name)?, name));
    Ok(links().map_err(failed)?.into_iter().filter_map(named).collect())
}

/// Lists the slots that have a journal entry, a mount point or a link.
pub(crate) fn slots(plan: &Plan, state_dir: &Path) -> Result<BTreeSet<u16>, NetworkError> {
    let (journal, pins) = dirs(state_dir);
    let mut found: BTreeSet<u16> = files(plan, &journal)?.into_iter().chain(files(plan, &pins)?).collect();
    found.extend(slot_links(plan)?.into_iter().map(|(index, _)| index));
    Ok(found)
}

/// Lists an agent's kernel resources, one line each; empty after a clean stop. Blocking.
pub fn leftovers(state_dir: &Path, instance: &str) -> Result<Vec<String>, NetworkError> {
    let (_, pins) = dirs(state_dir);
    let plan = Plan::new(instance, &pins)?;
    let links = slot_links(&plan)?.into_iter().map(|(_, name)| format!("link {name}"));
    let mut found: Vec<String> = links.collect();
    let pinned = files(&plan, &pins)?.into_iter().map(|index| pins.join(index.to_string()));
    found.extend(pinned.map(|pin| format!("network namespace {}", pin.display())));
    let failed = |source| NetworkError::Io { action: "query nftables".into(), source };
    let socket = Socket::open().map_err(failed)?;
    for table in [rules::host_table(&plan), rules::others_table(&plan)] {
        if nft::has_table(&socket, Family::Ip, &table)? {
            found.push(format!("nftables table ip {table}"));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_cannot_be_read_is_not_empty() {
        let dir = tempfile::tempdir().unwrap();
        let plan = Plan::new("t1", dir.path()).unwrap();
        assert_eq!(files(&plan, &dir.path().join("absent")).unwrap(), Vec::<u16>::new());
        fs::write(dir.path().join("7"), "").unwrap();
        assert_eq!(files(&plan, dir.path()).unwrap(), [7]);
        assert!(files(&plan, &dir.path().join("7")).is_err(), "it is no directory");
    }
}
