// SPDX-License-Identifier: Apache-2.0
//! Images of the simulated agent, and users and secrets in its sandboxes.

use connectrpc::{ConnectError, ServiceStream};
use futures::TryStreamExt as _;
use sha2::{Digest as _, Sha256};
use wrenn_api::ErrorCode;
use wrenn_rpc::host::v1::{
    __buffa::oneof::load_image_request::Part, DeleteImageRequest, DeleteImageResponse,
    GetImportProgressRequest, GetImportProgressResponse, ImportImageRequest, ImportImageResponse,
    LoadImageRequest, MakeImageRequest, MakeImageResponse, MakeUserRequest, MakeUserResponse,
    PutSecretRequest, PutSecretResponse, RemoveSecretsRequest, RemoveSecretsResponse,
    import_image_response::Variable, load_image_request::Open,
};

use super::{Agent, refusal};

/// Size of the smallest disk from an image, in MiB, and from one that was imported.
const SIZE_MB: u64 = 912;
const IMPORTED_MB: u64 = 600;

/// Returns the id of the image with this digest, as a real agent makes it.
pub(crate) fn image_id(digest: &str) -> String {
    let hash: String = Sha256::digest(digest).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{}-8{}-8{}-{}", &hash[..8], &hash[8..12], &hash[13..16], &hash[17..20], &hash[20..32])
}

/// The answer about an image: all have the same configuration.
fn imported(image_id: String, digest: String) -> ImportImageResponse {
    let variable = |name: &str, value: &str| Variable {
        name: name.to_owned(),
        value: value.to_owned(),
        ..Default::default()
    };
    ImportImageResponse {
        image_id,
        digest,
        size_mb: IMPORTED_MB,
        env: vec![variable("PATH", "/bin"), variable("A", "image"), variable("B", "image")],
        user: "app:staff".into(),
        workdir: "/srv".into(),
        entrypoint: vec!["/init".into()],
        cmd: vec!["serve".into(), "80".into()],
        skipped: 2,
        first_skipped: vec!["dev/null: a device".into(), "dev/zero: a device".into()],
        ..Default::default()
    }
}

impl Agent {
    pub(super) async fn make_image(
        &self,
        request: MakeImageRequest,
    ) -> Result<MakeImageResponse, ConnectError> {
        self.call("make_image", &request.image_id);
        let _open = self.image_gate.acquire().await;
        let mut now = self.now();
        if !now.snapshots.contains(&request.snapshot_id) {
            let message = format!("this host has no snapshot {}", request.snapshot_id);
            return Err(refusal(ErrorCode::SnapshotMissing, message));
        }
        now.images.insert(request.image_id);
        Ok(MakeImageResponse { size_mb: SIZE_MB, sha256: "0".repeat(64), ..Default::default() })
    }

    /// Imports an image.
    pub(super) async fn import_image(
        &self,
        request: ImportImageRequest,
    ) -> Result<ImportImageResponse, ConnectError> {
        self.now().imports.push(request.clone());
        let _open = self.import_gate.acquire().await;
        let mut now = self.now();
        let given = (request.username.as_str(), request.password.as_str());
        if now.account.is_some_and(|account| account != given) {
            return Err(refusal(ErrorCode::RegistryDenied, "the registry refuses the account"));
        }
        let pinned = request.reference.split_once('@').map(|(_, digest)| digest.to_owned());
        let digest = pinned.or_else(|| now.registry.get(&request.reference).cloned());
        let missing = || refusal(ErrorCode::ImageNotFound, format!("there is no {}", request.reference));
        let digest = digest.ok_or_else(missing)?;
        let image_id = image_id(&digest);
        if now.import_loses > 0 {
            now.import_loses -= 1;
        } else {
            now.images.insert(image_id.clone());
        }
        Ok(imported(image_id, digest))
    }

    /// Tells how far the imports are that hang.
    pub(super) async fn get_import_progress(
        &self,
        request: GetImportProgressRequest,
    ) -> Result<GetImportProgressResponse, ConnectError> {
        let now = self.now();
        let is_of = |asked: &ImportImageRequest| {
            (&asked.reference, &asked.team_id) == (&request.reference, &request.team_id)
        };
        let (total, fetched, unpacked) =
            if now.imports.iter().any(is_of) { now.import_progress } else { (0, 0, 0) };
        Ok(GetImportProgressResponse { total, fetched, unpacked, ..Default::default() })
    }

    /// Makes an image of what is sent, whatever it is: its digest is that of the bytes, and it is named as it was told to be.
    pub(super) async fn load_image(
        &self,
        mut requests: ServiceStream<LoadImageRequest>,
    ) -> Result<ImportImageResponse, ConnectError> {
        let (mut sent, mut loaded) = (Sha256::new(), Open::default());
        let mut size = 0;
        while let Some(request) = requests.try_next().await? {
            match request.part {
                Some(Part::Open(open)) => loaded = *open,
                Some(Part::Chunk(bytes)) => {
                    size += bytes.len() as u64;
                    sent.update(&bytes);
                }
                Some(Part::Commit(_)) => break,
                None => return Err(ConnectError::invalid_argument("an empty message")),
            }
        }
        let mut now = self.now();
        now.loads.push((loaded.name.clone(), size));
        if let Some((code, message)) = now.load_fails.pop() {
            return Err(refusal(code, message));
        }
        if size != loaded.size {
            return Err(refusal(ErrorCode::InvalidRequest, "the archive has another size"));
        }
        let digest: String = sent.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        let digest = format!("sha256:{digest}");
        let image_id = image_id(&digest);
        now.images.insert(image_id.clone());
        Ok(ImportImageResponse { told_name: now.told_name.to_owned(), ..imported(image_id, digest) })
    }

    pub(super) async fn delete_image(
        &self,
        request: DeleteImageRequest,
    ) -> Result<DeleteImageResponse, ConnectError> {
        self.now().images.remove(&request.image_id);
        Ok(DeleteImageResponse::default())
    }

    pub(super) async fn make_user(&self, request: MakeUserRequest) -> Result<MakeUserResponse, ConnectError> {
        self.call("make_user", &request.sandbox_id);
        Ok(MakeUserResponse::default())
    }

    pub(super) async fn put_secret(
        &self,
        request: PutSecretRequest,
    ) -> Result<PutSecretResponse, ConnectError> {
        self.call("put_secret", &request.sandbox_id);
        self.now().secrets.push(request);
        Ok(PutSecretResponse::default())
    }

    pub(super) async fn remove_secrets(
        &self,
        request: RemoveSecretsRequest,
    ) -> Result<RemoveSecretsResponse, ConnectError> {
        self.call("remove_secrets", &request.sandbox_id);
        Ok(RemoveSecretsResponse::default())
    }
}
