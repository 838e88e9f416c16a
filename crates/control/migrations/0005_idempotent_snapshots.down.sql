DROP INDEX idempotency_keys_snapshot;
DELETE FROM idempotency_keys WHERE snapshot_id IS NOT NULL;
ALTER TABLE idempotency_keys
    DROP CONSTRAINT idempotency_keys_of_one,
    DROP COLUMN snapshot_made,
    DROP COLUMN snapshot_id,
    ALTER COLUMN sandbox_id SET NOT NULL;
