// SPDX-License-Identifier: Apache-2.0
//! Generates Rust code for the services and messages of proto/, without protoc.

use std::{env, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["process.proto", "filesystem.proto", "host.proto"];
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    for file in files {
        println!("cargo::rerun-if-changed={}", root.join(file).display());
    }
    let mut compiler = protox::Compiler::new([&root])?;
    compiler.include_imports(true).open_files(files)?;
    let descriptors = PathBuf::from(env::var("OUT_DIR")?).join("descriptors.bin");
    fs::write(&descriptors, compiler.encode_file_descriptor_set())?;
    // cargo watches this generated file too. Give it the age of its inputs, else cargo would rerun this
    // script, and rebuild all dependents, on every build.
    let ages = files.iter().map(|file| fs::metadata(root.join(file))?.modified());
    if let Some(newest) = ages.collect::<Result<Vec<_>, _>>()?.into_iter().max() {
        fs::File::options().write(true).open(&descriptors)?.set_modified(newest)?;
    }
    connectrpc_build::Config::new()
        .descriptor_set(&descriptors)
        .files(&files)
        .gate_client_feature(true)
        .include_file("_connectrpc.rs")
        .compile()?;
    Ok(())
}
