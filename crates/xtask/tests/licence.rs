// SPDX-License-Identifier: Apache-2.0
//! Checks that every source file of the workspace names its licence.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

const LINE: &str = "// SPDX-License-Identifier: Apache-2.0";

fn sources(dir: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            sources(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(())
}

#[test]
fn every_source_file_names_its_licence() -> io::Result<()> {
    let mut all = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join(".."), &mut all)?;
    assert!(all.len() > 200, "only {} files were found", all.len());
    all.retain(|path| !fs::read_to_string(path).is_ok_and(|text| text.starts_with(LINE)));
    assert!(all.is_empty(), "put {LINE:?} on top of {all:?}");
    Ok(())
}
