// SPDX-License-Identifier: Apache-2.0
//! Joins of a memory that is in many generations.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::{
    BuildId, Generation, Generations, Header, Manifest, MemoryError, Part,
    error::failed,
    partial::{Partial, sync},
};

/// A generation whose memory was written once more, into the data of one other generation.
#[derive(Debug)]
pub struct Collapsed<'a> {
    /// The same generation with another mapping. Its data stays, because descendants may have been made of it.
    remapped: Partial,
    /// The generation with the data.
    joined: BuildId,
    all: &'a Generations,
}

impl Collapsed<'_> {
    /// Generation with the data, which only the collapsed one needs.
    pub fn joined(&self) -> BuildId {
        self.joined
    }

    /// Gives the existing generation its new mapping, in one step. Whoever opens it at this moment may get files of either,
    /// so nobody should. Fails if the generation was removed; nothing remains then.
    pub fn replace(self) -> Result<(), MemoryError> {
        let Partial { dir, target, build, .. } = &self.remapped;
        if let Err(error) = renameat_with(CWD, dir, CWD, target, RenameFlags::EXCHANGE) {
            self.all.discard(self.joined)?;
            return Err(failed("replace a snapshot's memory")(error.into()));
        }
        self.all.needs().remove(build);
        sync(target.parent().unwrap_or(target)).map_err(failed("replace a snapshot's memory"))
        // What was there before has the name of the partial one now, and is removed with it.
    }
}

impl Generations {
    /// Writes what a generation has in the data of generations with the same label into that of a new one. Data of others,
    /// such as of a template, stays where it is, because it is shared. No data of any generation changes, so what is open
    /// and what descends from them stays right.
    pub fn collapse(&self, build: BuildId) -> Result<Collapsed<'_>, MemoryError> {
        let fail = || failed("join a snapshot's memory");
        let Generation { manifest: Manifest { label, layout, origin, .. }, header } = self.load(build)?;
        let mut own = BTreeSet::new();
        for needed in header.mapping.builds() {
            if self.manifest(needed)?.label == label {
                own.insert(needed);
            }
        }
        let layers = self.open(&header)?;
        let new = self.begin(BuildId::new())?;
        let data = File::create(new.path(Part::Data)).map_err(fail())?;
        let mapping = layers.join(&own, new.build, &data).map_err(fail())?;
        self.link(build, Part::State, &new)?;
        let remapped = self.begin(build)?;
        for part in [Part::Data, Part::State, Part::WorkingSet] {
            self.link(build, part, &remapped)?;
        }
        let manifest = |build| Manifest::new(build, &label, layout, origin.clone());
        let of_new = Header { mapping: mapping.clone(), build: new.build, ..header.clone() };
        remapped.complete(&Header { mapping, ..header }, manifest(build), None)?;
        let (joined, of_joined) = (new.build, manifest(new.build));
        new.keep(&of_new, of_joined)?;
        Ok(Collapsed { remapped, joined, all: self })
    }

    /// Makes a file of a generation, if it has it, one of another, too.
    fn link(&self, build: BuildId, part: Part, to: &Partial) -> Result<(), MemoryError> {
        match fs::hard_link(self.path(build, part), to.path(part)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("join a snapshot's memory")(error))
            }
            _ => Ok(()),
        }
    }
}
