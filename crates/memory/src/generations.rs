// SPDX-License-Identifier: Apache-2.0
//! Directory of generations. Each is a directory with its build id as name, which exists only as a whole: it is
//! written under another name, synced and renamed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    BuildId, Generation, Header, Layers, Manifest, MemoryError, Part, Verification,
    error::failed,
    generation::MANIFEST,
    partial::{Partial, remove_all},
    verification::Opened,
};

/// Suffix of directories that are being written.
const PARTIAL: &str = ".partial";
/// Suffix of directories that are being removed.
const REMOVED: &str = ".removed";
/// Mode of directories: who knows a path may open it if its file allows that, and nobody else lists them.
const PASSED: u32 = 0o711;

/// Generations in one directory.
#[derive(Debug)]
pub struct Generations {
    dir: PathBuf,
    /// Which generations those need that were looked at. A generation never changes, unless it is collapsed.
    needs: Mutex<BTreeMap<BuildId, BTreeSet<BuildId>>>,
}

/// Reads a small file of a generation.
fn read(build: BuildId, path: &Path, what: &'static str) -> Result<Vec<u8>, MemoryError> {
    fs::read(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => MemoryError::Missing { build, what },
        _ => failed("read a snapshot")(error),
    })
}

impl Generations {
    /// Generations in this directory, which is created if it is missing.
    pub fn new(dir: &Path) -> Result<Self, MemoryError> {
        let made = DirBuilder::new().recursive(true).mode(PASSED).create(dir);
        made.map_err(failed("make the directory of snapshots"))?;
        Ok(Self { dir: dir.to_owned(), needs: Mutex::default() })
    }

    /// Removes what former processes left half written or half removed.
    pub fn clean(&self) -> Result<(), MemoryError> {
        let fail = || failed("remove half a snapshot");
        for entry in fs::read_dir(&self.dir).map_err(fail())? {
            let path = entry.map_err(fail())?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.ends_with(PARTIAL) || name.ends_with(REMOVED) {
                remove_all(&path).map_err(fail())?;
            }
        }
        Ok(())
    }

    /// Begins a new generation with this identity.
    pub(crate) fn begin(&self, build: BuildId) -> Result<Partial, MemoryError> {
        let (dir, target) = (self.dir.join(format!("{build}{PARTIAL}")), self.home(build));
        DirBuilder::new().mode(PASSED).create(&dir).map_err(failed("make a snapshot's directory"))?;
        Ok(Partial::new(build, dir, target))
    }

    fn home(&self, build: BuildId) -> PathBuf {
        self.dir.join(build.to_string())
    }

    /// Path of a file of a generation.
    pub fn path(&self, build: BuildId, part: Part) -> PathBuf {
        self.home(build).join(part.name())
    }

    /// Lists all complete generations, the oldest first.
    pub fn list(&self) -> Result<Vec<BuildId>, MemoryError> {
        let fail = || failed("list the snapshots");
        let mut builds = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(fail())? {
            let name = entry.map_err(fail())?.file_name();
            builds.extend(name.to_str().and_then(|name| name.parse::<BuildId>().ok()));
        }
        builds.sort();
        Ok(builds)
    }

    /// Reads the manifest of a generation.
    pub(crate) fn manifest(&self, build: BuildId) -> Result<Manifest, MemoryError> {
        let text = read(build, &self.home(build).join(MANIFEST), "the manifest")?;
        Manifest::decode(build, &String::from_utf8_lossy(&text))
    }

    /// Name of a generation's owner. Its other files may be damaged or missing.
    pub fn label(&self, build: BuildId) -> Result<String, MemoryError> {
        Ok(self.manifest(build)?.label)
    }

    /// Loads a generation: reads its manifest and header, and checks that everything that it needs is there with
    /// its former length. Does not read its data.
    pub fn load(&self, build: BuildId) -> Result<Generation, MemoryError> {
        let manifest = self.manifest(build)?;
        let bytes = read(build, &self.path(build, Part::Header), Part::Header.what())?;
        let header = Header::decode(&bytes).map_err(|reason| MemoryError::Header { build, reason })?;
        for part in Part::ALL {
            self.check_length(&manifest, part)?;
        }
        for needed in header.mapping.builds().into_iter().filter(|needed| *needed != build) {
            self.check_length(&self.manifest(needed)?, Part::Data)?;
        }
        Ok(Generation { manifest, header })
    }

    fn check_length(&self, manifest: &Manifest, part: Part) -> Result<(), MemoryError> {
        let (build, what) = (manifest.build, part.what());
        let found =
            fs::metadata(self.path(build, part)).map_err(|_| MemoryError::Missing { build, what })?.len();
        let expected = manifest.files.get(part.name()).ok_or(MemoryError::Missing { build, what })?.length;
        if found == expected {
            return Ok(());
        }
        Err(MemoryError::Damaged { build, what, damage: crate::Damage::Length { found, expected } })
    }

    /// Checks every byte of a generation, and of the data of others that it needs.
    pub fn verify(&self, generation: &Generation) -> Result<(), MemoryError> {
        self.verification(generation)?.run()
    }

    /// Opens the files of a generation, and the data of others that it needs, to check every byte of them.
    pub fn verification(&self, generation: &Generation) -> Result<Verification, MemoryError> {
        let build = generation.manifest.build;
        let own = Part::ALL.map(|part| self.opened(&generation.manifest, part));
        let mut files = own.into_iter().collect::<Result<Vec<_>, _>>()?;
        for needed in generation.header.mapping.builds().into_iter().filter(|needed| *needed != build) {
            files.push(self.opened(&self.manifest(needed)?, Part::Data)?);
        }
        Ok(Verification::of(files))
    }

    fn opened(&self, manifest: &Manifest, part: Part) -> Result<Opened, MemoryError> {
        let (build, what) = (manifest.build, part.what());
        let missing = || MemoryError::Missing { build, what };
        let file = File::open(self.path(build, part)).map_err(|_| missing())?;
        let sums = manifest.files.get(part.name()).ok_or_else(missing)?.clone();
        Ok(Opened { build, what, file, sums })
    }

    /// Opens the memory with this header of one of the generations.
    pub fn open(&self, header: &Header) -> Result<Layers, MemoryError> {
        let open = |build| match File::open(self.path(build, Part::Data)) {
            Ok(file) => Ok((build, Arc::new(file))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(MemoryError::Missing { build, what: Part::Data.what() })
            }
            Err(error) => Err(failed("open a snapshot's memory")(error)),
        };
        let data = header.mapping.builds().into_iter().map(open).collect::<Result<_, _>>()?;
        Layers::new(header.clone(), data).map_err(failed("open a snapshot's memory"))
    }

    pub(crate) fn needs(&self) -> MutexGuard<'_, BTreeMap<BuildId, BTreeSet<BuildId>>> {
        self.needs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns which generations each one needs. What is damaged needs nothing, and is needed as long as something
    /// refers to it.
    fn all_needs(&self) -> Result<BTreeMap<BuildId, BTreeSet<BuildId>>, MemoryError> {
        let (mut known, mut all) = (self.needs(), BTreeMap::new());
        for build in self.list()? {
            let needed = match known.remove(&build) {
                Some(needed) => needed,
                None => match self.load(build) {
                    Ok(loaded) => loaded.header.mapping.builds(),
                    Err(error @ MemoryError::Io { .. }) => return Err(error),
                    Err(_) => BTreeSet::new(),
                },
            };
            all.insert(build, needed);
        }
        known.clone_from(&all);
        Ok(all)
    }

    /// Removes a generation, unless another one needs its data.
    pub fn remove(&self, build: BuildId) -> Result<(), MemoryError> {
        let users: Vec<BuildId> = self
            .all_needs()?
            .into_iter()
            .filter(|(user, needed)| *user != build && needed.contains(&build))
            .map(|(user, _)| user)
            .collect();
        if users.is_empty() { self.discard(build) } else { Err(MemoryError::InUse { build, users }) }
    }

    /// Removes all generations that are neither named nor needed by one that is; returns them.
    pub fn collect(&self, named: &BTreeSet<BuildId>) -> Result<Vec<BuildId>, MemoryError> {
        let needs = self.all_needs()?;
        let needed: BTreeSet<BuildId> =
            named.iter().filter_map(|build| needs.get(build)).flatten().copied().collect();
        let unused: Vec<BuildId> =
            needs.into_keys().filter(|build| !named.contains(build) && !needed.contains(build)).collect();
        unused.iter().try_for_each(|build| self.discard(*build))?;
        Ok(unused)
    }

    /// Removes a generation. Renames it first, so that half of one is never loaded.
    pub(crate) fn discard(&self, build: BuildId) -> Result<(), MemoryError> {
        let gone = self.dir.join(format!("{build}{REMOVED}"));
        match fs::rename(self.home(build), &gone) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => remove_all(&gone),
        }
        .map_err(failed("remove a snapshot"))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt as _, PermissionsExt as _};

    use super::*;
    use crate::{Layout, Mapping, Origin, Range, Source};

    /// Makes a generation in which each named block is its own number, over a parent.
    fn make(all: &Generations, parent: Option<&Generation>, blocks: &[u64]) -> Generation {
        make_labelled(all, "x", parent, blocks)
    }

    fn make_labelled(
        all: &Generations,
        label: &str,
        parent: Option<&Generation>,
        blocks: &[u64],
    ) -> Generation {
        let partial = all.begin(BuildId::new()).unwrap();
        let data = File::create(partial.path(Part::Data)).unwrap();
        let mut changes = Mapping::default();
        for (place, block) in (0..).zip(blocks) {
            data.write_all_at(&[*block as u8; 4096], place * 4096).unwrap();
            let source = Source::Data { build: partial.build, block: place };
            changes.push(Range { start: *block, blocks: 1, source }).unwrap();
        }
        fs::write(partial.path(Part::State), "state").unwrap();
        let (none, build) = (Mapping::default(), partial.build);
        let header = Header {
            block_size: 4096,
            memory_size: 1 << 20,
            generation: parent.map_or(0, |parent| parent.header.generation + 1),
            build,
            parent: parent.map(|parent| parent.header.build),
            mapping: changes.over(parent.map_or(&none, |parent| &parent.header.mapping)),
        };
        partial.keep(&header, Manifest::new(build, label, Layout::Packed, Origin::default())).unwrap()
    }

    fn all() -> (tempfile::TempDir, Generations) {
        let dir = tempfile::tempdir().unwrap();
        let all = Generations::new(&dir.path().join("memory")).unwrap();
        (dir, all)
    }

    #[test]
    fn a_generation_is_loaded_as_it_was_kept() {
        let (_dir, all) = all();
        let first = make(&all, None, &[1, 2, 9]);
        let second = make(&all, Some(&first), &[2, 3]);
        for made in [&first, &second] {
            let loaded = all.load(made.manifest.build).unwrap();
            assert_eq!(&loaded, made);
            all.verify(&loaded).unwrap();
        }
        assert_eq!(second.header.mapping.builds().len(), 2);
        assert_eq!(all.list().unwrap(), [first.manifest.build, second.manifest.build]);
    }

    #[test]
    fn half_a_generation_is_none_and_is_removed() {
        let (dir, all) = all();
        let partial = all.begin(BuildId::new()).unwrap();
        assert_eq!(fs::metadata(&partial.dir).unwrap().permissions().mode() & 0o777, PASSED);
        fs::write(partial.path(Part::Data), "half").unwrap();
        assert_eq!(all.list().unwrap(), []);
        drop(partial);
        let inside = || fs::read_dir(dir.path().join("memory")).unwrap().count();
        assert_eq!(inside(), 0);
        // As after a crash.
        std::mem::forget(all.begin(BuildId::new()).unwrap());
        assert_eq!(inside(), 1);
        all.clean().unwrap();
        assert_eq!(inside(), 0);
    }

    /// A byte of any file, also of an ancestor's data, and a missing file.
    #[test]
    fn damage_and_absence_are_told_apart_and_refused() {
        let (_dir, all) = all();
        let first = make(&all, None, &[1, 2]);
        let second = make(&all, Some(&first), &[2]);
        let files = [
            all.path(second.manifest.build, Part::Header),
            all.path(second.manifest.build, Part::Data),
            all.path(second.manifest.build, Part::State),
            all.path(second.manifest.build, Part::State).with_file_name(MANIFEST),
            all.path(first.manifest.build, Part::Data),
            all.path(first.manifest.build, Part::Data).with_file_name(MANIFEST),
        ];
        let open = || all.load(second.manifest.build).and_then(|loaded| all.verify(&loaded));
        for path in files {
            let whole = fs::read(&path).unwrap();
            for at in [0, whole.len() / 2, whole.len() - 1] {
                let mut changed = whole.clone();
                changed[at] ^= 0x40;
                fs::write(&path, changed).unwrap();
                let error = open().unwrap_err();
                let noticed = matches!(error, MemoryError::Damaged { .. } | MemoryError::Header { .. });
                assert!(noticed, "byte {at} of {}: {error}", path.display());
            }
            fs::remove_file(&path).unwrap();
            let error = open().unwrap_err();
            assert!(matches!(error, MemoryError::Missing { .. }), "{}: {error}", path.display());
            fs::write(&path, whole).unwrap();
            open().unwrap();
        }
    }

    #[test]
    fn only_what_nothing_needs_is_removed() {
        let (_dir, all) = all();
        let first = make(&all, None, &[1, 2]);
        // The third generation has nothing of the second any more.
        let second = make(&all, Some(&first), &[2]);
        let third = make(&all, Some(&second), &[2, 3]);
        let [one, two, three] = [&first, &second, &third].map(|made| made.manifest.build);
        match all.remove(one).unwrap_err() {
            MemoryError::InUse { users, .. } => assert_eq!(users, [two, three]),
            other => panic!("{other}"),
        }
        assert_eq!(all.collect(&BTreeSet::from([three])).unwrap(), [two]);
        all.verify(&all.load(three).unwrap()).unwrap();
        all.remove(three).unwrap();
        all.remove(three).unwrap();
        assert_eq!(all.collect(&BTreeSet::new()).unwrap(), [one]);
        assert_eq!(all.list().unwrap(), []);
    }

    /// Generations of a label become one, those of another stay, and what is open stays as it was.
    #[test]
    fn a_collapsed_generation_has_the_same_memory() {
        let (_dir, all) = all();
        let of_template = make(&all, None, &[1, 2, 9]);
        let mut last = make_labelled(&all, "own", Some(&of_template), &[2, 3]);
        for blocks in [&[4, 5][..], &[3, 7], &[9]] {
            last = make_labelled(&all, "own", Some(&last), blocks);
        }
        let build = last.manifest.build;
        let content = |layers: &Layers| {
            let file = tempfile::tempfile().unwrap();
            layers.write_flat(&file).unwrap();
            (0..20)
                .map(|block| {
                    let mut bytes = [0; 4096];
                    file.read_exact_at(&mut bytes, block * 4096).unwrap();
                    bytes[0]
                })
                .collect::<Vec<_>>()
        };
        let open = all.open(&last.header).unwrap();
        let before = content(&open);
        assert_eq!(before[1..10], [1, 2, 3, 4, 5, 0, 7, 0, 9]);
        // A descendant that was made while it is collapsed.
        let collapsed = all.collapse(build).unwrap();
        assert_eq!(all.load(build).unwrap(), last, "nobody replaced it");
        let child = make_labelled(&all, "own", Some(&last), &[12]);
        let joined = collapsed.joined();
        collapsed.replace().unwrap();
        let now = all.load(build).unwrap();
        all.verify(&now).unwrap();
        assert_eq!(now.header.mapping.builds(), BTreeSet::from([of_template.manifest.build, joined]));
        assert_eq!(content(&all.open(&now.header).unwrap()), before);
        assert_eq!(content(&open), before, "of files that were open");
        let of_child = content(&all.open(&child.header).unwrap());
        assert_eq!((of_child[12], &of_child[..10]), (12, &before[..10]));
        all.verify(&child).unwrap();
        all.remove(child.manifest.build).unwrap();
        assert_eq!(all.collect(&BTreeSet::from([build])).unwrap().len(), 3);
        assert_eq!(content(&all.open(&now.header).unwrap()), before);
        let gone = all.collapse(build).unwrap();
        all.remove(build).unwrap();
        assert!(gone.replace().is_err());
        all.remove(joined).unwrap();
        assert_eq!(all.list().unwrap(), [of_template.manifest.build]);
    }
}
