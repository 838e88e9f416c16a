ALTER TABLE layers DROP COLUMN bytes_added;
ALTER TABLE snapshots DROP COLUMN disk_bytes;
ALTER TABLE hosts DROP COLUMN template_digests;
ALTER TABLE api_keys DROP CONSTRAINT api_keys_not_of_platform, DROP COLUMN is_admin;
-- What belongs to it refers to it, so it stays, as a team that was deleted.
UPDATE teams SET deleted_at = now() WHERE id = '00000000-0000-0000-0000-000000000000';
