-- What a template is on a host, a snapshot or an image, is an artifact, whose id is the same on all hosts. The host that made it
-- has it by the rows that name it; these are the copies on other hosts. The one who works on a row that is not `ready` renews its
-- lease. A failure of the one who fetched it is told to all who wait, until the lease is over.
CREATE TABLE copies (
    artifact_id uuid NOT NULL,
    host_id uuid NOT NULL REFERENCES hosts (id),
    kind text NOT NULL CHECK (kind IN ('snapshot', 'image')),
    state text NOT NULL CHECK (state IN ('fetching', 'ready', 'doomed')),
    lease_until timestamptz NOT NULL DEFAULT now(),
    size_bytes bigint NOT NULL DEFAULT 0,
    failure_code text,
    failure_message text,
    created_at timestamptz NOT NULL DEFAULT now(),
    last_used_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (artifact_id, host_id)
);
CREATE INDEX copies_of_host ON copies (host_id, last_used_at) WHERE state = 'ready';
CREATE INDEX copies_unfinished ON copies (lease_until) WHERE state <> 'ready';

-- Artifacts of versions of templates in the store, by the place that they have there. `is_damaged`: what is there is written anew.
CREATE TABLE stored (
    artifact_id uuid PRIMARY KEY,
    team_id uuid NOT NULL REFERENCES teams (id),
    template text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('snapshot', 'image')),
    state text NOT NULL CHECK (state IN ('pushing', 'ready', 'doomed')),
    is_damaged boolean NOT NULL DEFAULT false,
    tries integer NOT NULL DEFAULT 0,
    lease_until timestamptz NOT NULL DEFAULT now(),
    size_bytes bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX stored_unfinished ON stored (lease_until) WHERE state <> 'ready';

CREATE INDEX template_versions_image ON template_versions (image_id) WHERE image_id IS NOT NULL;
CREATE INDEX template_versions_artifact ON template_versions (coalesce(snapshot_id, image_id), created_at);
