-- The fleet that this database speaks for. `epoch` only grows; hosts notice by it that a database was restored or exchanged.
CREATE TABLE fleet (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    epoch bigint NOT NULL DEFAULT 0,
    raised_at timestamptz NOT NULL DEFAULT now()
);
INSERT INTO fleet DEFAULT VALUES;

-- What the sandboxes on a host may use at most. A sandbox is counted here from its creation until it is stopped or failed, and
-- `reserved` tells that it is.
ALTER TABLE sandboxes ADD COLUMN reserved boolean NOT NULL DEFAULT false;
UPDATE sandboxes SET reserved = true
    WHERE host_id IS NOT NULL AND status IN ('starting', 'running', 'stopping', 'missing');
ALTER TABLE hosts
    ADD COLUMN reserved_sandboxes bigint NOT NULL DEFAULT 0,
    ADD COLUMN reserved_vcpus bigint NOT NULL DEFAULT 0,
    ADD COLUMN reserved_memory_mb bigint NOT NULL DEFAULT 0,
    ADD COLUMN security_boundary boolean NOT NULL DEFAULT false,
    -- Why the host's agent destroys nothing for this database; empty where it does.
    ADD COLUMN quarantine text NOT NULL DEFAULT '';
UPDATE hosts SET (reserved_sandboxes, reserved_vcpus, reserved_memory_mb) = (
    SELECT count(*), coalesce(sum(vcpus), 0), coalesce(sum(memory_mb), 0)
    FROM sandboxes WHERE sandboxes.host_id = hosts.id AND reserved
);

-- Failed sandboxes are not looked at again and again; old records go.
DROP INDEX sandboxes_on_host;
CREATE INDEX sandboxes_on_host ON sandboxes (host_id) WHERE status NOT IN ('stopped', 'error');
CREATE INDEX sandboxes_ended ON sandboxes (last_updated) WHERE status IN ('stopped', 'error');

-- Answers are made from the sandbox, so only the request is kept. A key is claimed before its sandbox is written down.
ALTER TABLE idempotency_keys
    DROP COLUMN response_status,
    DROP COLUMN response_body,
    ALTER CONSTRAINT idempotency_keys_sandbox_id_fkey DEFERRABLE INITIALLY DEFERRED;
CREATE INDEX idempotency_keys_sandbox ON idempotency_keys (sandbox_id);
