-- Teams own sandboxes and API keys.
CREATE TABLE teams (
    id uuid PRIMARY KEY,
    name text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz
);

-- The secret itself is never stored, only its SHA-256; `prefix` lets people recognise a key.
CREATE TABLE api_keys (
    id uuid PRIMARY KEY,
    team_id uuid NOT NULL REFERENCES teams (id),
    name text NOT NULL,
    prefix text NOT NULL,
    secret_sha256 bytea NOT NULL UNIQUE,
    created_at timestamptz NOT NULL DEFAULT now(),
    last_used_at timestamptz,
    revoked_at timestamptz
);
CREATE INDEX api_keys_team ON api_keys (team_id);

-- What an agent last said of its host; sizes in MiB.
CREATE TABLE hosts (
    id uuid PRIMARY KEY,
    kind text NOT NULL DEFAULT 'regular' CHECK (kind IN ('regular', 'byoc')),
    team_id uuid REFERENCES teams (id),
    address text NOT NULL,
    status text NOT NULL DEFAULT 'unreachable' CHECK (status IN ('online', 'unreachable')),
    cpus integer NOT NULL DEFAULT 0,
    memory_mb bigint NOT NULL DEFAULT 0,
    disk_mb bigint NOT NULL DEFAULT 0,
    disk_free_mb bigint NOT NULL DEFAULT 0,
    max_sandboxes integer NOT NULL DEFAULT 0,
    max_vcpus integer NOT NULL DEFAULT 0,
    max_memory_mb bigint NOT NULL DEFAULT 0,
    max_disk_size_mb bigint NOT NULL DEFAULT 0,
    templates text[] NOT NULL DEFAULT '{}',
    agent_version text NOT NULL DEFAULT '',
    driver text NOT NULL DEFAULT '',
    driver_reason text NOT NULL DEFAULT '',
    -- Creates that failed one after the other through the host's fault; past a few it is left out for a while.
    failed_creates integer NOT NULL DEFAULT 0,
    ejected_until timestamptz,
    last_seen_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    CHECK ((kind = 'byoc') = (team_id IS NOT NULL))
);

-- `version` grows with every change of status: changes are compare-and-set on it. A transitional status
-- carries the time until which somebody works on it; past that the reconciler takes over.
CREATE TABLE sandboxes (
    id uuid PRIMARY KEY,
    team_id uuid NOT NULL REFERENCES teams (id),
    host_id uuid REFERENCES hosts (id),
    template text NOT NULL,
    vcpus integer NOT NULL CHECK (vcpus > 0),
    memory_mb integer NOT NULL CHECK (memory_mb > 0),
    disk_size_mb integer NOT NULL CHECK (disk_size_mb > 0),
    status text NOT NULL
        CHECK (status IN ('pending', 'starting', 'running', 'stopping', 'stopped', 'missing', 'error')),
    version bigint NOT NULL DEFAULT 1,
    lease_until timestamptz,
    error_code text,
    error_message text,
    metadata jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now(),
    started_at timestamptz,
    last_updated timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX sandboxes_of_team ON sandboxes (team_id, id DESC) WHERE status <> 'stopped';
CREATE INDEX sandboxes_gone ON sandboxes (team_id, id DESC) WHERE status = 'stopped';
CREATE INDEX sandboxes_on_host ON sandboxes (host_id) WHERE status <> 'stopped';

-- The answer to a request that may be repeated. Without `response_status` it is still being made.
CREATE TABLE idempotency_keys (
    team_id uuid NOT NULL REFERENCES teams (id),
    key text NOT NULL,
    request_sha256 bytea NOT NULL,
    sandbox_id uuid NOT NULL REFERENCES sandboxes (id),
    response_status integer,
    response_body jsonb,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (team_id, key)
);
CREATE INDEX idempotency_keys_age ON idempotency_keys (created_at);

-- Events, written with the change they tell of, on their way to Redis.
CREATE TABLE outbox (
    id bigserial PRIMARY KEY,
    team_id uuid NOT NULL,
    event jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
