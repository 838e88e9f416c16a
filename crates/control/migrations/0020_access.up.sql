-- Who may do what: users, their sessions and teams, and what API keys may do.

-- A user. Who has not activated their address yet is `inactive`; whom an administrator has shut out is `disabled`; `deleted` is
-- somebody who asked for their deletion, until it is done and the row goes. `password_hash` is of Argon2id; without it the user
-- signs in by a link or a provider.
CREATE TABLE users (
    id uuid PRIMARY KEY,
    email text NOT NULL CHECK (length(email) BETWEEN 3 AND 254),
    name text NOT NULL CHECK (length(name) BETWEEN 1 AND 100),
    password_hash text,
    status text NOT NULL DEFAULT 'inactive' CHECK (status IN ('inactive', 'active', 'disabled', 'deleted')),
    is_admin boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT now(),
    activated_at timestamptz,
    deleted_at timestamptz,
    last_login_at timestamptz,
    last_login_method text,
    CHECK ((status = 'deleted') = (deleted_at IS NOT NULL))
);
CREATE UNIQUE INDEX users_email ON users (lower(email));
CREATE INDEX users_deleted ON users (deleted_at) WHERE status = 'deleted';

-- A user's account at a provider; `subject` is the provider's own id of them.
CREATE TABLE identities (
    provider text NOT NULL,
    subject text NOT NULL,
    user_id uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    name text NOT NULL DEFAULT '',
    email text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (provider, subject),
    UNIQUE (user_id, provider)
);

-- `slug` is the name in URLs. A team without `quotas` has those of the server.
ALTER TABLE teams
    ADD COLUMN slug text,
    ADD COLUMN is_byoc boolean NOT NULL DEFAULT false,
    ADD COLUMN quotas jsonb;
CREATE UNIQUE INDEX teams_slug ON teams (slug) WHERE deleted_at IS NULL;

-- A team has at most one owner. A team of one machine that was made before there were users has no member.
CREATE TABLE team_members (
    team_id uuid NOT NULL REFERENCES teams (id) ON DELETE CASCADE,
    user_id uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    role text NOT NULL CHECK (role IN ('owner', 'admin', 'member')),
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (team_id, user_id)
);
CREATE INDEX team_members_user ON team_members (user_id, team_id);
CREATE UNIQUE INDEX team_members_owner ON team_members (team_id) WHERE role = 'owner';

-- One sign-in. A session of kind `token` is named by a signed token, one of kind `cookie` by a secret of which only the SHA-256
-- is here. `team_id` is the team that the user acts for.
CREATE TABLE sessions (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    team_id uuid REFERENCES teams (id) ON DELETE SET NULL,
    kind text NOT NULL CHECK (kind IN ('token', 'cookie')),
    secret_sha256 bytea UNIQUE,
    method text NOT NULL,
    address text,
    user_agent text,
    created_at timestamptz NOT NULL DEFAULT now(),
    last_used_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    revoked_at timestamptz,
    CHECK ((kind = 'cookie') = (secret_sha256 IS NOT NULL))
);
CREATE INDEX sessions_user ON sessions (user_id, id DESC);
CREATE INDEX sessions_team ON sessions (team_id) WHERE team_id IS NOT NULL;
CREATE INDEX sessions_expiry ON sessions (expires_at);

-- `scopes` are names of permissions; without them a key may do all that an administrator of the team may. A key never does more
-- than its maker may, as long as that one is in the team. `created_by` stays when the user is gone: who made a key is on record.
ALTER TABLE api_keys
    ADD COLUMN created_by uuid,
    ADD COLUMN scopes text[],
    ADD COLUMN expires_at timestamptz;
CREATE INDEX api_keys_maker ON api_keys (created_by) WHERE created_by IS NOT NULL;
DROP INDEX api_keys_team;
CREATE INDEX api_keys_team ON api_keys (team_id, id DESC) WHERE revoked_at IS NULL;

-- Tickets stand for a caller in one request, by its URL: the row goes when it is used.
CREATE TABLE tickets (
    secret_sha256 bytea PRIMARY KEY,
    session_id uuid REFERENCES sessions (id) ON DELETE CASCADE,
    key_id uuid REFERENCES api_keys (id) ON DELETE CASCADE,
    team_id uuid NOT NULL,
    method text NOT NULL,
    path text NOT NULL,
    expires_at timestamptz NOT NULL,
    CHECK ((session_id IS NULL) <> (key_id IS NULL))
);
CREATE INDEX tickets_expiry ON tickets (expires_at);
CREATE INDEX tickets_session ON tickets (session_id) WHERE session_id IS NOT NULL;
CREATE INDEX tickets_key ON tickets (key_id) WHERE key_id IS NOT NULL;
