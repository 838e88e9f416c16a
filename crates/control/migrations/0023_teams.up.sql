-- An invitation of an address into a team. It goes when it is accepted, withdrawn or over; its one-time token is in `one_time_links`.
CREATE TABLE invitations (
    id uuid PRIMARY KEY,
    team_id uuid NOT NULL REFERENCES teams (id) ON DELETE CASCADE,
    email text NOT NULL CHECK (email = lower(email) AND length(email) BETWEEN 3 AND 254),
    role text NOT NULL CHECK (role IN ('admin', 'member')),
    -- Address of who invites, at that time.
    inviter text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    UNIQUE (team_id, email)
);
CREATE INDEX invitations_of_team ON invitations (team_id, id DESC);
CREATE INDEX invitations_email ON invitations (email, id DESC);
CREATE INDEX invitations_expiry ON invitations (expires_at);

-- When nothing was left of a deleted team; until then servers remove what is left, also from hosts that come back later.
ALTER TABLE teams ADD COLUMN emptied_at timestamptz;
CREATE INDEX teams_to_empty ON teams (deleted_at) WHERE deleted_at IS NOT NULL AND emptied_at IS NULL;

-- Administrators list all that there is.
CREATE INDEX sandboxes_all ON sandboxes (id DESC) WHERE status <> 'stopped';
CREATE INDEX sandboxes_of_host ON sandboxes (host_id, id DESC) WHERE status <> 'stopped';
CREATE INDEX snapshots_of_team ON snapshots (team_id) WHERE status <> 'deleting';
CREATE INDEX builds_open_of_team ON builds (team_id) WHERE status IN ('pending', 'running');
