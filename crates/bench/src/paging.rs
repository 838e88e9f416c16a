// SPDX-License-Identifier: Apache-2.0
//! Time of a restore on Firecracker by a page server until the guest has written to 10 MiB of its memory, compared with a
//! private mapping of the same file.

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rustix::fs::{Advice, fadvise};
use wrenn_memory::{BLOCK_SIZE, BuildId, Header, Layers, mapping_of_flat};
use wrenn_vmm::{MemorySource, PagedMemory, Snapshot, SnapshotFiles, Vmm as _};

use crate::{
    capture,
    restore::{Place, prints},
    row::Row,
};

const ROUNDS: usize = 30;
/// Rounds that fill caches and are not counted.
const WARM: usize = 2;
/// Pause before each measurement, in which the processes of the previous one end.
const REST: Duration = Duration::from_millis(100);

/// A snapshot and its memory as one generation.
struct Paged {
    place: Place,
    files: SnapshotFiles,
    data: Arc<File>,
    layers: Layers,
}

impl Paged {
    async fn new(dir: &Path) -> Result<Self> {
        let place = Place::new(dir, &capture::guest()?)?;
        let files = place.snapshot().await.context("no snapshot of the test guest")?;
        let (data, build) = (Arc::new(File::open(&files.memory)?), BuildId::new());
        let header = Header {
            block_size: BLOCK_SIZE,
            memory_size: data.metadata()?.len(),
            generation: 0,
            build,
            parent: None,
            mapping: mapping_of_flat(&data, build)?,
        };
        let layers = Layers::new(header, [(build, data.clone())].into())?;
        Ok(Self { place, files, data, layers })
    }

    /// Memory by a page server that reads ahead what was recorded in this file.
    fn pages(&self, working_set: &Arc<File>) -> MemorySource {
        let (layers, working_set) = (self.layers.clone(), working_set.clone());
        MemorySource::Layers(PagedMemory { layers, working_set })
    }

    /// Restores a guest of which nothing is in the page cache, until it has written to all its pages.
    async fn restore(&self, memory: MemorySource) -> Result<Duration> {
        tokio::time::sleep(REST).await;
        self.data.sync_all()?;
        fadvise(&self.data, 0, None, Advice::DontNeed)?;
        let spec = self.place.spec(0)?;
        let snapshot = Snapshot { state: self.files.state.clone(), memory, run: true };
        let begin = Instant::now();
        let vm = self.place.driver.restore(&snapshot, &spec).await?;
        prints(&spec.run_dir.join("console.log"), 2).await?;
        let took = begin.elapsed();
        vm.kill().await?;
        Ok(took)
    }

    /// Measures both sides alternately, the page server with this working set or a new one each time.
    async fn rounds(&self, recorded: Option<&Arc<File>>) -> Result<[Vec<Duration>; 2]> {
        let (mut ours, mut floor) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS + WARM {
            let mapped = self.restore(MemorySource::Shared(self.files.memory.clone())).await?;
            let working_set = match recorded {
                Some(recorded) => recorded.clone(),
                None => Arc::new(tempfile::tempfile()?),
            };
            let paged = self.restore(self.pages(&working_set)).await?;
            if round >= WARM {
                ours.push(paged);
                floor.push(mapped);
            }
        }
        Ok([ours, floor])
    }
}

/// Measures restores with and without a recorded working set; none without KVM.
pub(crate) async fn against_mapping() -> Result<Vec<Row>> {
    if !Place::works_here() {
        return Ok(Vec::new());
    }
    let dir = tempfile::Builder::new().prefix("wrenn-bench").tempdir_in("/tmp")?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
    let paged = Paged::new(dir.path()).await?;
    let [ours, floor] = paged.rounds(None).await?;
    let cold = Row::ratio(
        "a restore by a page server, nothing cached, until 10 MiB are written ÷ by a private mapping",
        &ours,
        &floor,
        1.2,
    );
    let working_set = Arc::new(tempfile::tempfile()?);
    paged.restore(paged.pages(&working_set)).await?;
    let [ours, floor] = paged.rounds(Some(&working_set)).await?;
    let ahead = Row::ratio("the same with a recorded working set", &ours, &floor, 1.0);
    Ok(vec![cold, ahead])
}
