// SPDX-License-Identifier: Apache-2.0
//! New generations whose memory comes from elsewhere, such as another host: somebody writes it, each block at its place.

use std::{fs::File, io, path::PathBuf, sync::Arc};

use crate::{
    BLOCK_SIZE, BuildId, Generations, Header, Layout, Manifest, MemoryError, Origin, Part, Written,
    error::failed, mapping_of_flat, partial::Partial,
};

/// What is not done when this fails.
const ACTION: &str = "take in a snapshot's memory";

/// A generation whose memory and state are still to be written. Dropping it removes it.
#[derive(Debug)]
pub struct Incoming {
    partial: Partial,
    memory: Arc<File>,
    memory_size: u64,
}

impl Generations {
    /// Begins a flat generation with a memory of this size in bytes, a multiple of [`BLOCK_SIZE`]. It needs no other generation.
    pub fn receive(&self, build: BuildId, memory_size: u64) -> Result<Incoming, MemoryError> {
        let fail = || failed(ACTION);
        if !memory_size.is_multiple_of(u64::from(BLOCK_SIZE)) {
            let reason = format!("{memory_size} bytes are no whole blocks of {BLOCK_SIZE}");
            return Err(fail()(io::Error::new(io::ErrorKind::InvalidInput, reason)));
        }
        let partial = self.begin(build)?;
        let memory = partial.new_data().map_err(fail())?;
        memory.set_len(memory_size).map_err(fail())?;
        Ok(Incoming { partial, memory: Arc::new(memory), memory_size })
    }
}

impl Incoming {
    /// Identity of the generation.
    pub fn build(&self) -> BuildId {
        self.partial.build
    }

    /// File of the memory. What is not written is zero.
    pub fn memory(&self) -> &Arc<File> {
        &self.memory
    }

    /// Path of a file of the generation. [`Written::keep`] needs the state.
    pub fn path(&self, part: Part) -> PathBuf {
        self.partial.path(part)
    }

    /// Ends the writing of the memory, for an owner of this name. The memory was made with what `origin` says.
    pub fn written(self, label: &str, origin: Origin) -> Result<Written, MemoryError> {
        let Self { partial, memory, memory_size } = self;
        let build = partial.build;
        let mapping = mapping_of_flat(&memory, build).map_err(failed(ACTION))?;
        let header =
            Header { block_size: BLOCK_SIZE, memory_size, generation: 0, build, parent: None, mapping };
        Ok(Written::new(partial, header, Manifest::new(build, label, Layout::Flat, origin)))
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::FileExt as _};

    use super::*;

    #[test]
    fn what_was_written_elsewhere_is_a_generation_that_stands_alone() {
        let dir = tempfile::tempdir().unwrap();
        let all = Generations::new(&dir.path().join("memory")).unwrap();
        let origin = Origin { vmm: "another".into(), ..Origin::default() };
        let incoming = all.receive(BuildId::new(), 1 << 20).unwrap();
        let build = incoming.build();
        incoming.memory().write_all_at(&[7; 4096], 8192).unwrap();
        fs::write(incoming.path(Part::State), "state").unwrap();
        assert_eq!(all.list().unwrap(), [], "it is not complete");
        let kept = incoming.written("x", origin.clone()).unwrap().keep().unwrap();
        let loaded = all.load(build).unwrap();
        assert_eq!(loaded, kept);
        all.verify(&loaded).unwrap();
        assert_eq!((&loaded.manifest.origin, loaded.header.memory_size), (&origin, 1 << 20));
        let whole = tempfile::tempfile().unwrap();
        all.open(&loaded.header).unwrap().write_flat(&whole).unwrap();
        let mut content = vec![1; 1 << 20];
        whole.read_exact_at(&mut content, 0).unwrap();
        assert!(content.iter().zip(0_u32..).all(|(byte, at)| *byte == if at / 4096 == 2 { 7 } else { 0 }));
    }

    #[test]
    fn parts_of_blocks_and_half_a_generation_leave_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let all = Generations::new(&dir.path().join("memory")).unwrap();
        assert!(all.receive(BuildId::new(), 5000).is_err());
        drop(all.receive(BuildId::new(), 8192).unwrap());
        // Without its state.
        let incoming = all.receive(BuildId::new(), 8192).unwrap();
        assert!(incoming.written("x", Origin::default()).unwrap().keep().is_err());
        assert_eq!(fs::read_dir(dir.path().join("memory")).unwrap().count(), 0);
    }
}
