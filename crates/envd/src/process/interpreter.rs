// SPDX-License-Identifier: Apache-2.0
//! Finds the missing interpreter of a script or the missing loader of a binary that cannot be executed.

use std::{
    fs::File,
    io::Read as _,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use crate::regular;

/// Number of bytes of a script's first line that the kernel reads.
const LINE: u64 = 256;
/// `PT_INTERP` in elf.h.
const INTERPRETER: u32 = 3;

/// Returns the interpreter or loader of a program if it does not exist.
pub(super) fn missing(program: &Path) -> Option<String> {
    let file = regular::open(program).ok()?;
    let mut head = Vec::new();
    (&file).take(LINE).read_to_end(&mut head).ok()?;
    let named = if head.starts_with(b"#!") { of_script(&head)? } else { of_binary(&file, &head)? };
    let absent = !PathBuf::from(&named).exists();
    absent.then_some(named)
}

fn of_script(head: &[u8]) -> Option<String> {
    let line = head[2..].split(|byte| *byte == b'\n').next()?;
    let line = String::from_utf8_lossy(line).into_owned();
    // For the kernel, a carriage return is part of the name.
    let name = line.trim_start_matches([' ', '\t']).split([' ', '\t']).next()?;
    (!name.is_empty()).then(|| name.to_owned())
}

/// Returns the loader of a 64-bit little-endian ELF file.
fn of_binary(file: &File, head: &[u8]) -> Option<String> {
    let number = |bytes: &[u8], at: usize, size: usize| -> Option<u64> {
        let mut wide = [0; 8];
        wide[..size].copy_from_slice(bytes.get(at..at.checked_add(size)?)?);
        Some(u64::from_le_bytes(wide))
    };
    if !head.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (table, size, count) = (number(head, 32, 8)?, number(head, 54, 2)?, number(head, 56, 2)?);
    for index in 0..count.min(64) {
        let mut entry = [0; 56];
        file.read_exact_at(&mut entry, table.checked_add(index * size)?).ok()?;
        if number(&entry, 0, 4)? == u64::from(INTERPRETER) {
            let length = usize::try_from(number(&entry, 32, 8)?).ok().filter(|length| *length <= 4096)?;
            let mut name = vec![0; length];
            file.read_exact_at(&mut name, number(&entry, 8, 8)?).ok()?;
            let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
            return String::from_utf8(name[..end].to_vec()).ok();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_what_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let of = |content: &[u8]| {
            let path = dir.path().join("program");
            std::fs::write(&path, content).unwrap();
            missing(&path)
        };
        assert_eq!(of(b"#!/no/such -x\necho").as_deref(), Some("/no/such"));
        assert_eq!(of(b"#! /bin/sh\r\necho").as_deref(), Some("/bin/sh\r"));
        assert_eq!(
            (of(b"#!/bin/sh\n"), of(b"echo"), of(b""), of(b"#!"), of(b"\x7fELF\x02\x01")),
            <_>::default()
        );
        let mut binary = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(of(&binary), None);
        let loader = b"/ld-linux";
        let at = binary.windows(loader.len()).position(|part| part == loader).unwrap();
        binary[at..at + 3].copy_from_slice(b"/no");
        assert!(of(&binary).unwrap().contains("/no-linux"));
    }
}
