-- A key is that of a sandbox or of a named snapshot, whose row goes when the snapshot is deleted. `snapshot_made` tells that from
-- a snapshot that could not be made.
ALTER TABLE idempotency_keys
    ALTER COLUMN sandbox_id DROP NOT NULL,
    ADD COLUMN snapshot_id uuid,
    ADD COLUMN snapshot_made boolean NOT NULL DEFAULT false,
    ADD CONSTRAINT idempotency_keys_of_one CHECK (num_nonnulls(sandbox_id, snapshot_id) = 1);
CREATE INDEX idempotency_keys_snapshot ON idempotency_keys (snapshot_id) WHERE snapshot_id IS NOT NULL;
