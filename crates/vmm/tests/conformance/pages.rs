// SPDX-License-Identifier: Apache-2.0
//! Page servers: what a guest finds in its memory, and who ends when somebody else does.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::Arc,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use wrenn_memory::{BLOCK_SIZE, BuildId, Header, Layers, Layout, Mapping, capture, mapping_of_flat};
use wrenn_testguest as guest;
use wrenn_vmm::{
    BootSpec, MemorySource, MicroVm, PagedMemory, ProcessId, Snapshot, SnapshotFiles, SnapshotKind, process,
};

use crate::{
    rig::{Dir, Rig, console_grows, in_lab},
    snapshots::{counter, differing, heir, page, pages, run_on, take},
};

/// Time limit for an end that follows another.
const END: Duration = Duration::from_secs(5);
/// Number of bytes of a record of a working set.
const RECORD: u64 = 12;

/// Memory of which a part is in each of several generations.
pub(crate) struct Memory {
    data: BTreeMap<BuildId, Arc<File>>,
    mapping: Mapping,
    size: u64,
    pub(crate) working_set: Arc<File>,
}

impl Memory {
    /// Memory that a VMM wrote as a whole.
    pub(crate) fn flat(path: &Path) -> Self {
        let (file, build) = (File::open(path).unwrap(), BuildId::new());
        let (mapping, size) = (mapping_of_flat(&file, build).unwrap(), file.metadata().unwrap().len());
        let working_set = Arc::new(tempfile::tempfile().unwrap());
        Self { data: BTreeMap::from([(build, Arc::new(file))]), mapping, size, working_set }
    }

    /// The same with what changed since.
    fn with(mut self, diff: &Path) -> Self {
        let (changes, data, build) =
            (File::open(diff).unwrap(), tempfile::tempfile().unwrap(), BuildId::new());
        let changed = capture(&changes, build, &data, Layout::Packed, || Ok(())).unwrap();
        self.mapping = changed.over(&self.mapping);
        self.data.insert(build, Arc::new(data));
        self
    }

    pub(crate) fn source(&self) -> MemorySource {
        let header = Header {
            block_size: BLOCK_SIZE,
            memory_size: self.size,
            generation: 0,
            build: BuildId::new(),
            parent: None,
            mapping: self.mapping.clone(),
        };
        let layers = Layers::new(header, self.data.clone()).unwrap();
        MemorySource::Layers(PagedMemory { layers, working_set: self.working_set.clone() })
    }

    /// Number of parts of the memory that a guest has waited for.
    pub(crate) fn used(&self) -> u64 {
        self.working_set.metadata().unwrap().size() / RECORD
    }
}

/// Lets a guest go on from this memory.
async fn go_on(rig: &Rig, state: &Path, memory: &Memory, spec: &BootSpec) -> Box<dyn MicroVm> {
    let snapshot = Snapshot { state: state.to_owned(), memory: memory.source(), run: true };
    let vm = rig.driver.restore(&snapshot, spec).await.unwrap();
    assert!(console_grows(&*vm, 1).await, "it runs at once");
    vm
}

async fn base(rig: &Rig, dir: &Dir) -> SnapshotFiles {
    let vm = rig.boot(dir).await;
    let files = take(&*vm, SnapshotKind::Full, dir, "base").await;
    vm.kill().await.unwrap();
    files
}

/// A guest goes on from its memory in one generation, and then from that and its changes in another.
pub(crate) async fn a_guest_goes_on_from_layers(rig: &Rig) {
    let (dir, other, third) = (Dir::new(), Dir::new(), Dir::new());
    let files = base(rig, &dir).await;
    let memory = Memory::flat(&files.memory);
    let clone = go_on(rig, &files.state, &memory, &heir(rig, &other)).await;
    clone.pause().await.unwrap();
    assert!((1..64).contains(&memory.used()), "it loads what it touches: {} parts", memory.used());
    run_on(&*clone).await;
    clone.pause().await.unwrap();
    let diff = take(&*clone, SnapshotKind::Diff, &other, "diff").await;
    let changed = pages(&diff.memory);
    assert!(counter(&diff.memory) > counter(&files.memory));
    // Firecracker's page with the generation id is in the first MiB.
    let strays = changed.iter().filter(|&&address| address >= 1 << 20 && !guest::changes(address));
    for &address in strays {
        // On some CPUs KVM maps a page writable at its first read and counts it as written.
        assert!(in_lab(), "page {address:x} did not change");
        assert_eq!(page(&diff.memory, address), page(&files.memory, address), "page {address:x}");
    }
    // Reads every page through the server, which takes minutes in the emulated lab.
    if !in_lab() {
        let now = take(&*clone, SnapshotKind::Full, &other, "now").await;
        let differing = differing(&files.memory, &now.memory);
        assert!(differing.iter().all(|address| changed.contains(address)), "{differing:x?} of {changed:x?}");
    }
    clone.kill().await.unwrap();
    let memory = memory.with(&diff.memory);
    let heir = go_on(rig, &diff.state, &memory, &heir(rig, &third)).await;
    let next = take(&*heir, SnapshotKind::Diff, &third, "next").await;
    assert!(counter(&next.memory) > counter(&diff.memory), "it goes on from its changes");
    assert!(heir.console(1 << 20).await.iter().all(|&byte| byte == guest::INTACT), "with its memory");
    heir.kill().await.unwrap();
}

fn server_of(spec: &BootSpec) -> Option<ProcessId> {
    process::page_server(&spec.run_dir).unwrap()
}

fn kill(id: &ProcessId) {
    kill_process(Pid::from_raw(id.pid).unwrap(), Signal::KILL).unwrap();
}

async fn ends(id: &ProcessId) {
    let gone = async {
        while runs(id) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(END, gone).await.expect("it ends in time");
}

fn runs(id: &ProcessId) -> bool {
    wrenn_os::process::is_alive(id).unwrap()
}

/// Whoever of the VMM, its server and its starter ends first: nothing of the microVM hangs or stays.
pub(crate) async fn a_vmm_and_its_page_server_end_together(rig: &Rig) {
    let dir = Dir::new();
    let files = base(rig, &dir).await;
    let memory = Memory::flat(&files.memory);
    let place = Dir::new();
    let spec = heir(rig, &place);

    // The VMM first.
    let vm = go_on(rig, &files.state, &memory, &spec).await;
    let server = server_of(&spec).expect("a page server");
    has_few_rights(&server, &spec);
    kill(&vm.process());
    tokio::time::timeout(END, vm.exited()).await.expect("noticed");
    ends(&server).await;
    drop(vm);

    // The server first.
    let vm = go_on(rig, &files.state, &memory, &spec).await;
    kill(&server_of(&spec).expect("a page server"));
    let exit = tokio::time::timeout(END, vm.exited()).await.expect("the VMM is ended");
    assert!(exit.log.contains("page server"), "{exit:?}");
    drop(vm);

    // The starter first, and then the server, while the next one looks after both.
    let former = go_on(rig, &files.state, &memory, &spec).await;
    drop(former);
    let vm = rig.driver.adopt(&spec, None).await.unwrap().expect("it runs");
    run_on(&*vm).await;
    kill(&server_of(&spec).expect("it outlives its starter"));
    tokio::time::timeout(END, vm.exited()).await.expect("the VMM is ended");
    drop(vm);

    // The server, while nobody looks.
    let vm = go_on(rig, &files.state, &memory, &spec).await;
    let id = vm.process();
    drop(vm);
    let server = server_of(&spec).expect("a page server");
    kill(&server);
    ends(&server).await;
    assert!(rig.driver.adopt(&spec, Some(&id)).await.unwrap().is_none(), "it could only hang");
    ends(&id).await;

    // A kill ends both.
    let vm = go_on(rig, &files.state, &memory, &spec).await;
    let server = server_of(&spec).expect("a page server");
    vm.kill().await.unwrap();
    ends(&server).await;
}

/// The server runs as the VMM's user, without privileges and behind a filter of system calls.
fn has_few_rights(server: &ProcessId, spec: &BootSpec) {
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid)).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.trim_start_matches(':').trim().to_owned()
    };
    assert_eq!(field("Uid"), format!("{0}\t{0}\t{0}\t{0}", spec.uid));
    for (name, value) in [
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
        ("CapEff", "0000000000000000"),
        ("CapBnd", "0000000000000000"),
    ] {
        assert_eq!(field(name), value, "{name}");
    }
}
