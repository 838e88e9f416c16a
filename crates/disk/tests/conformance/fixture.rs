// SPDX-License-Identifier: Apache-2.0
//! Store of one backend in a temporary directory, with a check that nothing of it is left.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{self, Command},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use tempfile::TempDir;
use wrenn_disk::{Backend, StoreConfig, Volumes, loopfs};

/// Backend under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Copy,
    Reflink,
    Dm,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Reflink => "reflink",
            Self::Dm => "dm-snapshot",
        }
    }

    fn backend(self) -> Backend {
        match self {
            Self::Copy => Backend::Copy,
            Self::Reflink => Backend::Reflink,
            Self::Dm => Backend::Dm,
        }
    }
}

/// Size of a store that a test fills, in bytes.
const SMALL: u64 = 320 << 20;
const LARGE: u64 = 8 << 30;

/// Creates a temporary directory; in the lab on a disk, because /tmp is in memory there.
fn scratch() -> TempDir {
    let dir = if env::var_os("IN_LAB").is_some() { "/var/lib/wrenn".into() } else { env::temp_dir() };
    tempfile::Builder::new().prefix("disk-").tempdir_in(dir).unwrap()
}

async fn open(dir: &Path, kind: Kind, instance: &str) -> anyhow::Result<Arc<dyn Volumes>> {
    Ok(wrenn_disk::open(StoreConfig::new(dir, kind.backend(), instance)).await?)
}

/// Returns whether a device-mapper store can be opened, or why not.
pub(crate) fn dm_works() -> anyhow::Result<()> {
    let dir = scratch();
    tokio::runtime::Runtime::new()?.block_on(open(dir.path(), Kind::Dm, &instance())).map(drop)
}

/// Returns a unique instance tag.
pub(crate) fn instance() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("t{}n{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Kernel resources of a directory, of device-mapper and of this process.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Resources {
    loops: usize,
    mapped: usize,
    mounts: usize,
    descriptors: usize,
}

pub(crate) fn resources(dir: &Path) -> Resources {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count();
    let descriptors = fs::read_dir("/proc/self/fd").unwrap().count();
    Resources { loops: loops(dir), mapped: mapped(""), mounts, descriptors }
}

/// Counts loop devices whose file is below `dir`.
pub(crate) fn loops(dir: &Path) -> usize {
    let devices = fs::read_dir("/sys/block").unwrap().flatten();
    let backing = |entry: fs::DirEntry| fs::read_to_string(entry.path().join("loop/backing_file")).ok();
    devices.filter_map(backing).filter(|file| Path::new(file.trim()).starts_with(dir)).count()
}

/// Counts device-mapper devices whose names start with `prefix`.
pub(crate) fn mapped(prefix: &str) -> usize {
    let devices = fs::read_dir("/sys/block").unwrap().flatten();
    let name = |entry: fs::DirEntry| fs::read_to_string(entry.path().join("dm/name")).ok();
    devices.filter_map(name).filter(|name| name.starts_with(prefix)).count()
}

pub(crate) fn run(program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program).args(arguments).output().with_context(|| program.to_owned())?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{program} {arguments:?}: {}: {said}{complaint}", output.status);
    Ok(said)
}

/// Arguments of a case.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) kind: Kind,
    pub(crate) store: Arc<dyn Volumes>,
    /// Directory of the store.
    pub(crate) dir: PathBuf,
    /// Directory for files of the case; the store is below it.
    pub(crate) scratch: PathBuf,
    pub(crate) instance: String,
}

impl Shared {
    /// Opens the store again, as after a restart of the agent.
    pub(crate) async fn reopened(&self) -> Arc<dyn Volumes> {
        open(&self.dir, self.kind, &self.instance).await.unwrap()
    }
}

/// Store and its directory.
pub(crate) struct Place {
    shared: Shared,
    scratch: TempDir,
    mounted: bool,
}

impl Place {
    /// Creates a store; a `small` one is on a small file system that can be filled.
    pub(crate) fn new(kind: Kind, small: bool) -> anyhow::Result<Self> {
        let scratch = scratch();
        let dir = scratch.path().join("store");
        fs::create_dir(&dir)?;
        let mounted = kind == Kind::Reflink || small;
        if kind == Kind::Reflink {
            let size = if small { SMALL } else { LARGE };
            loopfs::mount_store(&scratch.path().join("store.xfs"), &dir, size)?;
        } else if small {
            // Mounted with support for device nodes, unlike the store above.
            let file = scratch.path().join("store.ext4");
            fs::File::create(&file)?.set_len(SMALL)?;
            let (file, dir) = (file.to_str().context("path")?, dir.to_str().context("path")?);
            run("mke2fs", &["-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=0,lazy_journal_init=0", file])?;
            run("mount", &["-o", "loop", file, dir])?;
        }
        let instance = instance();
        let store = tokio::runtime::Runtime::new()?.block_on(open(&dir, kind, &instance))?;
        ensure!(store.backend() == kind.name());
        let path = scratch.path().to_owned();
        Ok(Self { shared: Shared { kind, store, dir, scratch: path, instance }, scratch, mounted })
    }

    pub(crate) fn share(&self) -> Shared {
        self.shared.clone()
    }

    /// Fails if the case left volumes, or if kernel resources of the store are left.
    pub(crate) fn end(self) -> Result<(), String> {
        let Shared { store, dir, instance, .. } = self.share();
        let found = tokio::runtime::Runtime::new().unwrap().block_on(store.reclaim(&[]));
        let found = found.map_err(|error| format!("the last reclaim: {error}"))?;
        if !found.volumes.is_empty() || !found.busy.is_empty() {
            return Err(format!("the case left {found:?}"));
        }
        if self.mounted {
            loopfs::unmount_store(&dir).map_err(|error| error.to_string())?;
        }
        // The kernel frees a loop device a moment after its last user has closed it.
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let left = (mapped(&format!("wr{instance}")), loops(self.scratch.path()));
            if left == (0, 0) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("devices and loop devices left: {left:?}"));
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Shared { dir, instance, .. } = &self.shared;
        // There is something to do only if the case failed.
        let runtime = tokio::runtime::Runtime::new().unwrap();
        if let Err(error) = runtime.block_on(wrenn_disk::cleanup(dir, instance, &[])) {
            eprintln!("{error}");
        }
        if self.mounted {
            let _ = loopfs::unmount_store(dir);
        }
    }
}
