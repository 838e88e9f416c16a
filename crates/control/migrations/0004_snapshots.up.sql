-- Named snapshots of sandboxes, which are templates of their team. The one who works on a row that is not `ready` renews its
-- lease; past that the upkeep removes it.
CREATE TABLE snapshots (
    id uuid PRIMARY KEY,
    team_id uuid NOT NULL REFERENCES teams (id),
    name text NOT NULL,
    host_id uuid NOT NULL REFERENCES hosts (id),
    status text NOT NULL CHECK (status IN ('creating', 'ready', 'deleting')),
    template text NOT NULL,
    vcpus integer NOT NULL,
    memory_mb integer NOT NULL,
    disk_size_mb integer NOT NULL,
    lease_until timestamptz NOT NULL DEFAULT now(),
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (team_id, name)
);
CREATE INDEX snapshots_unfinished ON snapshots (lease_until) WHERE status <> 'ready';
