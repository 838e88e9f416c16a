-- Keys with which URLs of files are signed. The latest one signs; all that are here are accepted, until a rotation removes those
-- that were replaced longer ago than a URL may last. The secret is made of random UUIDs, of 122 random bits each.
CREATE TABLE signing_keys (
    number integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    secret bytea NOT NULL CHECK (length(secret) = 32),
    created_at timestamptz NOT NULL DEFAULT now(),
    replaced_at timestamptz
);
INSERT INTO signing_keys (secret) VALUES (sha256(convert_to(gen_random_uuid()::text || gen_random_uuid()::text || gen_random_uuid()::text, 'UTF8')));
