-- How users come and go: sign-ups, one-time links, and mail.

-- A sign-up becomes a user when its link is used, which only the owner of the address has. Several may have one address: none of
-- them keeps another from signing up, and the one whose link is used counts.
CREATE TABLE sign_ups (
    id uuid PRIMARY KEY,
    email text NOT NULL CHECK (length(email) BETWEEN 3 AND 254),
    name text NOT NULL CHECK (length(name) BETWEEN 1 AND 100),
    password_hash text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL
);
CREATE INDEX sign_ups_email ON sign_ups (lower(email));
CREATE INDEX sign_ups_expiry ON sign_ups (expires_at);

-- A link works once: its row goes when it is used. Only the SHA-256 of its token is here. `subject` is what it is for: a
-- sign-up, a user, or an invitation.
CREATE TABLE one_time_links (
    secret_sha256 bytea PRIMARY KEY,
    kind text NOT NULL CHECK (kind IN ('activation', 'sign_in', 'password_reset', 'invitation')),
    subject uuid NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL
);
CREATE INDEX one_time_links_subject ON one_time_links (kind, subject);
CREATE INDEX one_time_links_expiry ON one_time_links (expires_at);

-- Mails on their way, written with the change that they tell of. The row goes when the mail is sent. One that cannot be sent stays
-- for some days, with the reason.
CREATE TABLE mails (
    id uuid PRIMARY KEY,
    recipient text NOT NULL,
    mail jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    attempts integer NOT NULL DEFAULT 0,
    next_attempt_at timestamptz NOT NULL DEFAULT now(),
    failed_at timestamptz,
    error text
);
CREATE INDEX mails_due ON mails (next_attempt_at) WHERE failed_at IS NULL;
CREATE INDEX mails_failed ON mails (failed_at) WHERE failed_at IS NOT NULL;
