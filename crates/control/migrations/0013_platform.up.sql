-- The platform's templates belong to a team of their own, of which nobody has a key: administrators act for it.
INSERT INTO teams (id, name) VALUES ('00000000-0000-0000-0000-000000000000', 'platform')
    ON CONFLICT (id) DO UPDATE SET deleted_at = NULL;
ALTER TABLE api_keys
    ADD COLUMN is_admin boolean NOT NULL DEFAULT false,
    ADD CONSTRAINT api_keys_not_of_platform CHECK (team_id <> '00000000-0000-0000-0000-000000000000');
-- Who runs Wrenn has these.
UPDATE api_keys SET is_admin = true WHERE name = 'wrenn up';

-- Digests of the templates on the hosts, as NAME@DIGEST.
ALTER TABLE hosts ADD COLUMN template_digests text[] NOT NULL DEFAULT '{}';

-- What the disk of a snapshot occupies on its host, and how much of that the step added whose result it is; null if unknown.
ALTER TABLE snapshots ADD COLUMN disk_bytes bigint;
ALTER TABLE layers ADD COLUMN bytes_added bigint;
