-- Why the status of a sandbox changed last, and who changed it: `cause` and `actor` of its event. A status that ends an operation
-- keeps those of its begin, also when another server finishes it.
ALTER TABLE sandboxes ADD COLUMN changed_by jsonb;

-- A sign-in by a provider that has begun in a browser, which has the other half of it in a cookie. The row goes when the browser comes
-- back, so that what a provider gives is used once. With a `user_id`, the account at the provider becomes one of that user instead.
CREATE TABLE oauth_states (
    state_sha256 bytea PRIMARY KEY,
    provider text NOT NULL,
    browser_sha256 bytea NOT NULL,
    return_to text NOT NULL,
    is_signup boolean NOT NULL,
    user_id uuid REFERENCES users (id) ON DELETE CASCADE,
    session_id uuid REFERENCES sessions (id) ON DELETE CASCADE,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    CHECK ((user_id IS NULL) = (session_id IS NULL))
);
CREATE INDEX oauth_states_expiry ON oauth_states (expires_at);
CREATE INDEX oauth_states_user ON oauth_states (user_id) WHERE user_id IS NOT NULL;
CREATE INDEX oauth_states_session ON oauth_states (session_id) WHERE session_id IS NOT NULL;
