// SPDX-License-Identifier: Apache-2.0
//! Snapshots and images of the simulated agent on their way to other hosts. Each has a content of its own, which follows from its
//! id, and is verified as a real agent does it.

use std::collections::BTreeMap;

use connectrpc::{ConnectError, ServiceStream};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use sha2::{Digest as _, Sha256};
use wrenn_api::ErrorCode;
use wrenn_rpc::host::v1::{
    __buffa::oneof::{export_artifact_request::Artifact, export_artifact_response, import_artifact_request},
    ArtifactChunk, ArtifactEnd, ArtifactFile, ArtifactHead, ArtifactKind, ExportArtifactRequest,
    ExportArtifactResponse, ImportArtifactRequest, ImportArtifactResponse,
    artifact_head::File,
};

use super::{Agent, refusal};

/// Number of chunks of each file.
pub(crate) const CHUNKS: u64 = 7;
/// Bytes that an artifact occupies on the host.
const SIZE: u64 = 1 << 20;

const DISK: ArtifactFile = ArtifactFile::ARTIFACT_FILE_DISK;

/// Sends a snapshot or an image.
pub(super) fn export(
    agent: &Agent,
    request: ExportArtifactRequest,
) -> Result<ServiceStream<ExportArtifactResponse>, ConnectError> {
    let mut now = agent.now();
    let (kind, id, is_there) = match request.artifact {
        Some(Artifact::SnapshotId(id)) => {
            let is_there = now.snapshots.contains(&id);
            (ArtifactKind::ARTIFACT_KIND_SNAPSHOT, id, is_there)
        }
        Some(Artifact::ImageId(id)) => {
            let is_there = now.images.contains(&id);
            (ArtifactKind::ARTIFACT_KIND_IMAGE, id, is_there)
        }
        None => return Err(ConnectError::invalid_argument("nothing is asked for")),
    };
    if !is_there {
        return Err(refusal(ErrorCode::NotFound, format!("this host has no {id}")));
    }
    now.exported.push(id.clone());
    let chunks: Vec<_> = (0..CHUNKS).map(|index| chunk(&id, index)).collect();
    let file = File { file: DISK.into(), length: CHUNKS << 22, ..Default::default() };
    let head = ArtifactHead {
        kind: kind.into(),
        id: id.clone(),
        format: 1,
        files: vec![file],
        ..Default::default()
    };
    let record = format!("record of {id}").into_bytes();
    let sha256 = total(&head, &sums(&chunks), &record);
    let end = ArtifactEnd { record, sha256, ..Default::default() };
    let parts = std::iter::once(export_artifact_response::Part::from(head))
        .chain(chunks.into_iter().map(export_artifact_response::Part::from))
        .chain(std::iter::once(export_artifact_response::Part::from(end)))
        .map(|part| Ok(ExportArtifactResponse { part: Some(part), ..Default::default() }));
    Ok(stream::iter(parts.collect::<Vec<_>>()).boxed())
}

/// Takes a snapshot or an image, unless it is here.
pub(super) async fn import(
    agent: &Agent,
    mut requests: ServiceStream<ImportArtifactRequest>,
) -> Result<ImportArtifactResponse, ConnectError> {
    use import_artifact_request::Part;
    let cut = || ConnectError::invalid_argument("the stream ended without an end");
    let Some(Part::Head(head)) = requests.try_next().await?.and_then(|first| first.part) else {
        return Err(refusal(ErrorCode::InvalidRequest, "the stream begins without a head"));
    };
    let head = *head;
    let is_snapshot = head.kind.as_known() == Some(ArtifactKind::ARTIFACT_KIND_SNAPSHOT);
    let answer = || ImportArtifactResponse { size_bytes: SIZE, ..Default::default() };
    {
        let now = agent.now();
        if now.snapshots.contains(&head.id) || now.images.contains(&head.id) {
            return Ok(answer());
        }
    }
    let _open = agent.take_gate.acquire().await;
    if let Some((code, message)) = agent.now().take_fails.pop() {
        return Err(refusal(code, message));
    }
    let code = if is_snapshot { ErrorCode::SnapshotDamaged } else { ErrorCode::ImageDamaged };
    let damaged = |what: &str| refusal(code, format!("{what} is not what was exported"));
    let mut found = BTreeMap::new();
    loop {
        match requests.try_next().await?.ok_or_else(cut)?.part {
            Some(Part::Chunk(chunk)) => {
                let is_right = Sha256::digest(&chunk.data)[..] == chunk.sha256
                    && chunk.length as usize == chunk.data.len();
                let key = (chunk.file.to_i32(), chunk.index);
                if !is_right || found.insert(key, chunk.sha256.clone()).is_some() {
                    return Err(damaged("a chunk"));
                }
            }
            Some(Part::End(end)) => {
                if total(&head, &found, &end.record) != end.sha256 {
                    return Err(damaged("the end"));
                }
                break;
            }
            Some(Part::Head(_)) | None => return Err(damaged("a part")),
        }
    }
    let mut now = agent.now();
    now.taken.push(head.id.clone());
    if is_snapshot {
        now.snapshots.insert(head.id)
    } else {
        now.images.insert(head.id)
    };
    Ok(answer())
}

/// A chunk of the disk, which has the id and the number in it.
fn chunk(id: &str, index: u64) -> ArtifactChunk {
    let data = format!("{id} {index} ").repeat(100).into_bytes();
    ArtifactChunk {
        file: DISK.into(),
        index,
        sha256: Sha256::digest(&data).to_vec(),
        length: data.len() as u32,
        data,
        ..Default::default()
    }
}

/// Digests by file and number.
fn sums(chunks: &[ArtifactChunk]) -> BTreeMap<(i32, u64), Vec<u8>> {
    chunks.iter().map(|chunk| ((chunk.file.to_i32(), chunk.index), chunk.sha256.clone())).collect()
}

/// Digest of all, as host.proto describes it.
fn total(head: &ArtifactHead, sums: &BTreeMap<(i32, u64), Vec<u8>>, record: &[u8]) -> Vec<u8> {
    let mut all = Sha256::new();
    all.update(head.kind.to_i32().to_be_bytes());
    for file in &head.files {
        all.update(file.file.to_i32().to_be_bytes());
        all.update(file.length.to_be_bytes());
    }
    all.update((sums.len() as u64).to_be_bytes());
    for ((file, index), sum) in sums {
        all.update(file.to_be_bytes());
        all.update(index.to_be_bytes());
        all.update(sum);
    }
    all.update(record);
    all.finalize().to_vec()
}
