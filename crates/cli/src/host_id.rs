// SPDX-License-Identifier: Apache-2.0
//! Id of this host, in a file of the state directory.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use wrenn_api::HostId;
use wrenn_os::atomic_file;

use crate::layout::Layout;

/// Reads the id of this host; generates it at the first start.
pub(crate) fn load(layout: &Layout) -> Result<HostId> {
    let path = layout.host_id_file();
    match fs::read_to_string(&path) {
        Ok(text) => {
            text.trim().parse().with_context(|| format!("{} is no host id: remove it", path.display()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => new_host_id(&path),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

fn new_host_id(path: &Path) -> Result<HostId> {
    let id = HostId::new();
    // An incomplete file after a loss of power would change this host's id.
    atomic_file::write(path, format!("{id}\n").as_bytes(), 0o644, None)
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(id)
}
