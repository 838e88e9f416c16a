DROP INDEX idempotency_keys_sandbox;
ALTER TABLE idempotency_keys
    ALTER CONSTRAINT idempotency_keys_sandbox_id_fkey NOT DEFERRABLE,
    ADD COLUMN response_status integer,
    ADD COLUMN response_body jsonb;
DROP INDEX sandboxes_ended;
DROP INDEX sandboxes_on_host;
CREATE INDEX sandboxes_on_host ON sandboxes (host_id) WHERE status <> 'stopped';
ALTER TABLE hosts
    DROP COLUMN quarantine,
    DROP COLUMN security_boundary,
    DROP COLUMN reserved_memory_mb,
    DROP COLUMN reserved_vcpus,
    DROP COLUMN reserved_sandboxes;
ALTER TABLE sandboxes DROP COLUMN reserved;
DROP TABLE fleet;
