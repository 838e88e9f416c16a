// SPDX-License-Identifier: Apache-2.0
//! Named snapshots of simulated sandboxes.

use connectrpc::ConnectError;
use wrenn_api::ErrorCode;
use wrenn_rpc::host::v1::{
    DeleteSnapshotRequest, DeleteSnapshotResponse, SandboxState, SnapshotRequest, SnapshotResponse,
};

use super::{Agent, refusal};

impl Agent {
    pub(super) async fn snapshot(&self, request: SnapshotRequest) -> Result<SnapshotResponse, ConnectError> {
        let id = request.sandbox_id;
        let what = if request.without_memory { "snapshot_of_disk" } else { "snapshot" };
        self.now().calls.push((what, id.clone()));
        let _open = self.snapshot_gate.acquire().await;
        let mut now = self.now();
        let state = now.sandboxes.get(&id).map(|sandbox| sandbox.state);
        if !matches!(state, Some(SandboxState::SANDBOX_STATE_RUNNING | SandboxState::SANDBOX_STATE_PAUSED)) {
            let message =
                format!("sandbox {id} has the state {state:?}: a snapshot needs a running or paused one");
            return Err(refusal(ErrorCode::InvalidState, message));
        }
        if let Some((code, message)) = now.snapshot_fails.pop() {
            return Err(refusal(code, message));
        }
        now.snapshots.insert(request.snapshot_id);
        // Each has added as much as the one before.
        let disk_bytes = (now.snapshots.len() as u64) << 20;
        Ok(SnapshotResponse { disk_bytes, ..Default::default() })
    }

    pub(super) async fn delete_snapshot(
        &self,
        request: DeleteSnapshotRequest,
    ) -> Result<DeleteSnapshotResponse, ConnectError> {
        self.now().snapshots.remove(&request.snapshot_id);
        Ok(DeleteSnapshotResponse::default())
    }
}
