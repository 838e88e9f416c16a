-- Results of steps and versions of templates are snapshots without a name, which only builds refer to.
ALTER TABLE snapshots ALTER COLUMN name DROP NOT NULL;

-- A build is worked on by the one who has its lease; `token` grows with every worker, and every write of a worker names its own.
CREATE TABLE builds (
    id uuid PRIMARY KEY,
    team_id uuid NOT NULL REFERENCES teams (id),
    name text NOT NULL,
    tag text NOT NULL,
    recipe text NOT NULL,
    -- The base when the build was asked for: what its name meant.
    base jsonb NOT NULL,
    -- Digest of the uploaded files; null without any.
    context text,
    vcpus integer NOT NULL,
    memory_mb integer NOT NULL,
    disk_size_mb integer NOT NULL,
    no_cache_from integer,
    status text NOT NULL DEFAULT 'pending'
        CHECK (status IN ('pending', 'running', 'succeeded', 'failed', 'cancelled')),
    steps jsonb NOT NULL DEFAULT '[]',
    attempt integer NOT NULL DEFAULT 0,
    token bigint NOT NULL DEFAULT 0,
    lease_until timestamptz NOT NULL DEFAULT now(),
    cancel_requested boolean NOT NULL DEFAULT false,
    sandbox_id uuid,
    version integer,
    error_code text,
    error_message text,
    error_step integer,
    created_at timestamptz NOT NULL DEFAULT now(),
    started_at timestamptz,
    ended_at timestamptz
);
CREATE INDEX builds_of_team ON builds (team_id, id DESC);
CREATE INDEX builds_open ON builds (lease_until) WHERE status IN ('pending', 'running');

CREATE TABLE build_logs (
    build_id uuid NOT NULL REFERENCES builds (id) ON DELETE CASCADE,
    entry bigint GENERATED ALWAYS AS IDENTITY,
    step integer NOT NULL,
    stream text NOT NULL CHECK (stream IN ('stdout', 'stderr', 'system')),
    text text NOT NULL,
    at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (build_id, entry)
);

-- Results of steps, by a hash of all that they depend on. `inputs` is what the hash is of, to tell why another one differs.
CREATE TABLE layers (
    team_id uuid NOT NULL REFERENCES teams (id),
    key text NOT NULL,
    snapshot_id uuid NOT NULL REFERENCES snapshots (id),
    parent text NOT NULL,
    inputs jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    last_used_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (team_id, key)
);
CREATE INDEX layers_snapshot ON layers (snapshot_id);
CREATE INDEX layers_parent ON layers (team_id, parent);

-- Versions of the templates that a team has built. One is a snapshot with memory, or an image.
CREATE TABLE template_versions (
    team_id uuid NOT NULL REFERENCES teams (id),
    name text NOT NULL,
    version integer NOT NULL,
    build_id uuid NOT NULL,
    -- Hash of all that it was made of, so that the same is not made again.
    key text NOT NULL,
    host_id uuid NOT NULL REFERENCES hosts (id),
    snapshot_id uuid REFERENCES snapshots (id),
    image_id uuid,
    size_mb bigint NOT NULL,
    vcpus integer NOT NULL,
    memory_mb integer NOT NULL,
    disk_size_mb integer NOT NULL,
    envs jsonb NOT NULL,
    default_user text NOT NULL,
    workdir text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (team_id, name, version),
    CONSTRAINT template_versions_of_one CHECK (num_nonnulls(snapshot_id, image_id) = 1)
);
CREATE INDEX template_versions_key ON template_versions (team_id, key);
CREATE INDEX template_versions_snapshot ON template_versions (snapshot_id) WHERE snapshot_id IS NOT NULL;

CREATE TABLE template_tags (
    team_id uuid NOT NULL,
    name text NOT NULL,
    tag text NOT NULL,
    version integer NOT NULL,
    PRIMARY KEY (team_id, name, tag),
    FOREIGN KEY (team_id, name, version) REFERENCES template_versions (team_id, name, version) ON DELETE CASCADE
);

-- Images of deleted versions that their host has not removed yet.
CREATE TABLE doomed_images (
    image_id uuid PRIMARY KEY,
    host_id uuid NOT NULL REFERENCES hosts (id),
    lease_until timestamptz NOT NULL DEFAULT now()
);
